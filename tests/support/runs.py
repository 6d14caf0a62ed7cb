"""A measured run with everything that evidence needs: vault, plan, checkpoint, report, decision."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scf.core.canonical import canonical_json
from scf.core.identity import sha256_hex
from scf.core.merkle import root
from scf.proofs.attest import attest
from scf.proofs.statement import Parent, Statement, build_statement
from scf.vault.fields import field_of_array
from scf.vault.fossil import make_fossil
from scf.vault.journal import Vault
from scf.verification.gate import GateDecision, decide
from scf.verification.report import Report, parse_report
from scf.verification.verify_checkpoint import CheckpointFacts, verify_checkpoint
from support.checkpoints import write_checkpoint
from support.foundries import SmallFoundry
from support.reports import report_json

# A valid PNG of one pixel: a plot that needs no matplotlib.
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55"
    "0000000a49444154789c6360000000020001e221bc330000000049454e44ae426082"
)


@dataclass(frozen=True)
class Limits:
    alpha: float = 0.05
    min_families: int = 20


def fill_vault(place: SmallFoundry, *, fossils: int = 40, origin: str = "soup.csv") -> None:
    """Commit `fossils` small records in shards of a few each."""
    verifier = {"name": "scf.fossil_validator", "version": "1", "verdict": "PASS", "checks": {}}
    with (
        Vault.open(place.drive, place.home, place.signer("vault"), clock=place.clock) as vault,
        vault.writing(origin=origin, shard_bytes=6000) as writer,
    ):
        for i in range(fossils):
            values = np.linspace(i, i + 1, 5).astype("f4")
            block = {
                "schema": "scf.fossil/1",
                "source": "tests",
                "observed_at": None,
                "fields": {"ghi": field_of_array(values, "W/m2")},
                "params": {"n": i},
                "provenance": {
                    "origin": origin,
                    "origin_sha256": sha256_hex(origin.encode()),
                    "reader": "csv",
                    "index": i,
                    "licence": None,
                    "parents": [],
                    "family": f"week-{i // 2}",
                },
            }
            writer.add(make_fossil(block, verifier))


def plan_json(place: SmallFoundry, *, seed: int = 0, held_out: float = 0.3) -> dict[str, Any]:
    """The plan over all that the vault holds, in the form of scf.plan/1."""
    with Vault.open(place.drive, place.home) as vault:
        shards = [
            {
                "path": e.path,
                "sha256": e.sha256,
                "size_bytes": e.size_bytes,
                "count": e.count,
                "merkle_root": e.merkle_root,
            }
            for e in vault.entries()
        ]
        cids = list(vault.cids())
    return {
        "schema": "scf.plan/1",
        "shards": shards,
        "fossils": len(cids),
        "merkle_root": root(cid.encode() for cid in cids).hex(),
        "seed": seed,
        "held_out_below": f"{int(held_out * 2**64):016x}",
        "excluded": [],
    }


@dataclass(frozen=True)
class MeasuredRun:
    """A run that came back and was measured; nothing of it is signed yet."""

    run_id: str
    checkpoint: Path
    report_folder: Path
    plan: dict[str, Any]
    facts: CheckpointFacts
    report: Report
    decision: GateDecision
    parent: Parent | None

    @property
    def statement(self) -> Statement:
        return build_statement(
            run_id=self.run_id,
            checkpoint=self.facts,
            plan=self.plan,
            parent=self.parent,
            report=self.report,
            decision=self.decision,
            code_version="0.1.0",
        )


def measured_run(
    place: SmallFoundry,
    *,
    number: int = 1,
    plan: dict[str, Any] | None = None,
    gain: float = 0.2,
    champion_gain: float | None = None,
    parent: Parent | None = None,
    width: int = 8,
) -> MeasuredRun:
    """Weights by `number`, a report about them with plots, and the gate's decision.

    `width` makes the weights 40 bytes longer by one.
    """
    plan = plan or plan_json(place)
    folder = place.base / f"job-{number}"
    write_checkpoint(folder / "checkpoint", seed=number, width=width)
    facts = verify_checkpoint(folder / "checkpoint")
    plan_id = sha256_hex(canonical_json(plan))
    value = report_json(
        gain=gain,
        champion_gain=champion_gain,
        checkpoint_digest=facts.digest,
        plan_id=plan_id,
        seed=number,
    )
    report_folder = folder / "report"
    report_folder.mkdir()
    (report_folder / "report.json").write_text(json.dumps(value))
    for name in value["files"]:
        (report_folder / name).write_bytes(PNG)
    report = parse_report(value)
    decision = decide(
        report,
        settings=Limits(),
        checkpoint_digest=facts.digest,
        plan_id=plan_id,
        has_champion=champion_gain is not None,
    )
    run_id = f"run-{number:012x}"
    return MeasuredRun(run_id, facts.path, report_folder, plan, facts, report, decision, parent)


def attested(place: SmallFoundry, run: MeasuredRun) -> Path:
    """Sign and log the run's statement; returns the record's path."""
    return attest(
        run.statement,
        folder=place.drive.folder("zk_proofs"),
        audit=place.log(),
        signer=place.signer(),
    )
