"""What goes into a release: every file, and where its bytes come from.

Nothing is written here. Files are named relative to the release; their bytes are either a file of
the generation or the vault, or text made here from values. Weights and fossil evidence go into the
first release of a generation; a later week in which it still stands names that one by digest.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from scf.core.canonical import canonical_json
from scf.core.errors import VerificationFailed
from scf.core.merkle import TreeHasher
from scf.fertilization.batch_plan import HELD_OUT, BatchPlan, PlanShard, read_plan
from scf.proofs.verify_proof import VerifiedStatement, verify_record
from scf.release import verify_release
from scf.release.chain import Released
from scf.release.improvement import Step
from scf.release.pictures import gate_picture, improvement_picture, loss_picture
from scf.release.week import Week
from scf.signing.verify import PublicKey
from scf.vault.journal import Vault
from scf.vault.journal_file import ShardEntry
from scf.vault.manifest import manifest_path, read_manifest
from scf.vault.shard import leaf, read_shard
from scf.zoo.registry import Generation
from scf.zoo.taint import Proposal, Taint

EXCLUDED = "excluded"
METRICS_SCHEMA = "scf.metrics/1"
# Kept in the zoo for the next run, of no use to who receives a release.
NOT_RELEASED = "optimizer.safetensors"
# Rejected runs whose traces are packed: the latest ones.
GATES_MAX = 20

# What the format has a place for and this foundry cannot make yet: named, never left out silently.
ABSENT: Mapping[str, str] = {
    "zk_proof": "not made by this version of scf; proof.json is a signed attestation",
    "student": "no distilled student yet",
    "ledger": "no ledger of credits yet; what the week's jobs took stands in NOTES.md",
    "atlas": "no energy atlas yet",
}


class EvidenceMissing(VerificationFailed):
    """The vault no longer holds, or no longer vouches for, what a generation was trained on."""


@dataclass(frozen=True)
class Origin:
    """What came from one source.

    Attributes:
        fossils: In the plan.
        fresh: Of these, in shards that the plan of the previous release did not have.
    """

    name: str
    fossils: int
    fresh: int


@dataclass(frozen=True)
class Tainted:
    """Fossils of the champion's descent that were taken back, and the rollback that is proposed."""

    taints: tuple[Taint, ...] = ()
    proposal: Proposal | None = None

    def to_json(self) -> dict[str, Any]:
        """For metrics.json."""
        return {
            "fossils": [taint.to_json() for taint in self.taints],
            "proposal": self.proposal and self.proposal.to_json(),
        }


@dataclass(frozen=True)
class Contents:
    """A release to be.

    Attributes:
        generation: The champion.
        record: Its verified statement.
        plan: The plan it was trained on.
        origins: Where the plan's fossils came from.
        week: What happened since the previous release.
        carrier: The earlier release that has the weights; None where this one has them.
        steps: How the model improved, generation by generation.
        taints: Fossils that were taken back since they were trained or measured on.
        files: By path inside the release: a file to copy, or bytes.
        num_held_out: Fossils of the plan that were held out.
    """

    generation: Generation
    record: VerifiedStatement
    plan: BatchPlan
    origins: tuple[Origin, ...]
    week: Week
    carrier: Released | None
    steps: tuple[Step, ...]
    taints: Tainted
    files: Mapping[str, Path | bytes]
    num_held_out: int

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, before notes and signatures are added."""
        return sum(
            len(source) if isinstance(source, bytes) else source.stat().st_size
            for source in self.files.values()
        )


def gather(
    generation: Generation,
    vault: Vault,
    keys: Mapping[str, PublicKey],
    *,
    previous_plan: Mapping[str, Any] | None,
    week: Week,
    carrier: Released | None,
    steps: tuple[Step, ...] = (),
    taints: Tainted | None = None,
    rotations: Sequence[Any] = (),
) -> Contents:
    """Collect what `generation` is and rests on, verifying each part.

    Args:
        generation: The champion.
        vault: Holds the shards it was trained on.
        keys: By role: `foundry` for statements, `vault` for manifests.
        previous_plan: The plan in the release before, to tell what is fresh.
        week: What happened since then.
        carrier: The release that has these weights already, if one has.
        steps: How the model improved, generation by generation.
        taints: Fossils of its plans that were taken back, and what follows.
        rotations: Statements by which keys replaced each other (`signing.rotation`).

    Raises:
        GenerationDamaged, ProofInvalid, SignatureInvalid: The generation is not what it was.
        EvidenceMissing: A shard or manifest of its plan is missing or was changed.
    """
    taints = taints or Tainted()
    generation.verify()
    record = verify_record(generation.path / "statement.json", [keys["foundry"]])
    plan = read_plan(generation.path / "plan.json")
    files: dict[str, Path | bytes] = {
        "MODEL_CARD.md": generation.path / "MODEL_CARD.md",
        "plan.json": generation.path / "plan.json",
        "proof.json": generation.path / "statement.json",
        "metrics.json": canonical_json(_metrics(generation, record, week, steps, taints)),
        "verify_release.py": Path(verify_release.__file__),
        "config/model.json": generation.checkpoint / "config.json",
        "plots/losses.svg": loss_picture(generation.name, record.statement),
    }
    if len(steps) > 1:
        files["plots/improvement.svg"] = improvement_picture(steps)
    for name in generation.files:
        folder, _, file = name.partition("/")
        if folder == "checkpoint" and file != NOT_RELEASED and carrier is None:
            files[f"model/{file}"] = generation.path / name
        elif folder == "plots":
            files[name] = generation.path / name
    for role, key in keys.items():
        files[f"keys/{role}.pub"] = key.to_pem()
    if rotations:
        files["keys/rotations.json"] = canonical_json(list(rotations))
    files |= _gate_files(generation, record, week)
    # The vault is looked at in every week: one that lost fossils must not go unnoticed.
    manifests = dict(_manifests(plan, vault, keys["vault"]))
    lines, num_held_out = _fossils(plan, vault)
    if carrier is None:
        files |= manifests
        files["evidence/fossils.txt"] = lines
    return Contents(
        generation=generation,
        record=record,
        plan=plan,
        origins=_origins(plan, list(vault.entries()), previous_plan),
        week=week,
        carrier=carrier,
        steps=steps,
        taints=taints,
        files=dict(sorted(files.items())),
        num_held_out=num_held_out,
    )


def _gate_files(
    generation: Generation, record: VerifiedStatement, week: Week
) -> Iterator[tuple[str, bytes]]:
    """`gate/RUN.json` and `gate/RUN.svg`: the champion's, and those of runs that were rejected."""
    gates = {generation.run_id: (generation.name, record.statement.gate)}
    for outcome in week.outcomes[-GATES_MAX:]:
        if outcome.gate is not None:
            gates[outcome.run_id] = (outcome.run_id, outcome.gate)
    for run_id, (title, gate) in gates.items():
        yield f"gate/{run_id}.json", canonical_json(dict(gate))
        yield f"gate/{run_id}.svg", gate_picture(title, gate)


def _metrics(
    generation: Generation,
    record: VerifiedStatement,
    week: Week,
    steps: tuple[Step, ...],
    taints: Tainted,
) -> dict[str, Any]:
    return {
        "schema": METRICS_SCHEMA,
        "generation": generation.name,
        "report": dict(record.statement.report.raw),
        "gate": dict(record.statement.gate),
        "week": week.to_json(generation),
        "improvement": [step.to_json() for step in steps],
        "tainted": taints.to_json(),
    }


def _manifests(plan: BatchPlan, vault: Vault, key: PublicKey) -> Iterator[tuple[str, Path]]:
    for shard in plan.shards:
        path = manifest_path(vault.folder.path / shard.path)
        summary = read_manifest(path, [key])
        if (summary.sha256, summary.merkle_root) != (shard.sha256, shard.merkle_root):
            raise EvidenceMissing(f"{path} is about another shard than the plan's {shard.path}")
        yield f"evidence/manifests/{shard.sha256}.json", path


def _fossils(plan: BatchPlan, vault: Vault) -> tuple[bytes, int]:
    """A line for each fossil of the plan's shards: CID, verdict, split; and how many are held out.

    CIDs and verdicts come from the vault's index and must lead to each shard's Merkle root, which
    its manifest has signed; a shard of which the index says otherwise is read. Of the others only
    the sizes are looked at: reading a vault of 1.5 TB takes hours. Whether bytes have rotted is for
    `scf release verify --deep`, `scf fossil validate` and the scrub of each epoch.
    """
    excluded = set(plan.excluded)
    lines: list[str] = []
    num_held_out = 0
    known = vault.within(shard.path for shard in plan.shards).in_order()
    by_place = itertools.groupby(known, key=lambda row: row[0])
    place, rows = next(by_place, (None, iter(())))
    for index, shard in enumerate(plan.shards):
        path = vault.folder.path / shard.path
        found: list[_Line] = []
        if place == index:
            found = [_Line(at.cid, at.verdict, at.family, at.line) for _, at in rows]
            place, rows = next(by_place, (None, iter(())))
        if not _is_whole(path, shard.size_bytes) or not _leads_to(found, shard):
            found = [
                _Line(fossil.cid, fossil.verdict, fossil.family, fossil.position)
                for fossil in read_shard(path, verify_cid=False)
            ]
            if not _leads_to(found, shard):
                raise EvidenceMissing(
                    f"{path}: its fossils are not those of the plan",
                    remedy="Restore the shard from a backup; nothing was released.",
                )
        for line in found:
            is_excluded = line.cid in excluded
            split = EXCLUDED if is_excluded else plan.split_of(line.family, line.position)
            num_held_out += split == HELD_OUT
            lines.append(f"{line.cid} {line.verdict} {split}\n")
    return "".join(lines).encode(), num_held_out


class _Line(NamedTuple):
    """A fossil of a shard, without its numbers."""

    cid: str
    verdict: str
    family: str
    position: int


def _leads_to(found: Sequence[_Line], shard: PlanShard) -> bool:
    tree = TreeHasher()
    for line in found:
        tree.add(leaf(line.cid, line.verdict))
    return (tree.size, tree.root().hex()) == (shard.count, shard.merkle_root)


def _is_whole(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except FileNotFoundError:
        return False


def _origins(
    plan: BatchPlan, entries: list[ShardEntry], previous_plan: Mapping[str, Any] | None
) -> tuple[Origin, ...]:
    known = {shard["sha256"] for shard in (previous_plan or {}).get("shards", [])}
    names = {entry.sha256: entry.origin for entry in entries}
    counts: dict[str, list[int]] = {}
    for shard in plan.shards:
        count = counts.setdefault(names.get(shard.sha256, "unknown"), [0, 0])
        count[0] += shard.count
        count[1] += 0 if shard.sha256 in known else shard.count
    return tuple(Origin(name, *count) for name, count in sorted(counts.items()))
