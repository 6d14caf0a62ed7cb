"""Walk from a release down to the fossils, and recompute every digest that the drive holds.

`verify_release.py` checks what lies in a release. This goes on: to the generation in the zoo, the
run's proof record and job bundles, the audit log, the plan, the shards, and each fossil's CID. What
is not on the drive is said to be absent, which is no fault; what is there and does not fit is one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.audit.check import check_log
from scf.core.errors import InputError, VerificationFailed
from scf.core.identity import sha256_hex
from scf.core.merkle import root
from scf.fertilization.batch_plan import BatchPlan, read_plan
from scf.proofs.attest import record_name
from scf.proofs.verify_proof import verify_record
from scf.release.chain import verify_trusted
from scf.signing.verify import PublicKey
from scf.storage import durable
from scf.vault.manifest import manifest_path, read_manifest
from scf.vault.shard import check_shard, read_shard
from scf.verification.verify_checkpoint import file_sha256
from scf.zoo.entry import read_generation

FITS, ABSENT, DIFFERS = "fits", "absent", "differs"


@dataclass(frozen=True)
class Hop:
    """One step of the walk.

    Attributes:
        hop: `release`, `model`, `run`, `audit`, `plan` or `fossils`.
        subject: What was looked at.
        result: `fits`, `absent` or `differs`.
        detail: What was found, in words.
        digests: How many digests were recomputed.
    """

    hop: str
    subject: str
    result: str
    detail: str
    digests: int = 0

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "hop": self.hop,
            "subject": self.subject,
            "result": self.result,
            "detail": self.detail,
            "digests": self.digests,
        }


def walk(folder: Path, drive: Path, keys: Mapping[str, PublicKey]) -> Iterator[Hop]:
    """Every hop from the release in `folder` down, as it is done.

    Args:
        folder: A release.
        drive: The drive's root.
        keys: Public keys by role, from somewhere trusted.
    """
    facts: dict[str, Any] = {}
    for release in [folder, *_carriers(folder)]:
        found = verify_trusted(release, keys["foundry"])
        facts = facts or found.facts
        first = f"{found.problems[0].file}: {found.problems[0].what}" if found.problems else ""
        count = len(found.facts.get("files", {})) + 2
        yield Hop(
            "release",
            release.name,
            FITS if found.ok else DIFFERS,
            first or f"{count} files, each as signed",
            count,
        )
    if not facts:
        return
    carried = facts.get("carried_by")
    if carried is not None and not (folder.parent / carried["name"]).is_dir():
        detail = f"it has the weights of {folder.name}"
        yield Hop("release", carried["name"], ABSENT, detail)
    yield _hop("model", facts["generation"]["name"], lambda: _model(drive, facts))
    run = facts["generation"]["run"]
    yield _hop("run", record_name(run), lambda: _record(drive, facts, keys["foundry"]))
    for bundle in sorted((drive / "system_cache" / "jobs").glob(f"{run}-*")):
        yield _hop("run", bundle.name, lambda bundle=bundle: _bundle(bundle))  # type: ignore[misc]
    yield _hop("audit", "zk_proofs/audit", lambda: _audit(drive, facts, keys["foundry"]))
    yield _hop("plan", f"plan {facts['plan']['plan_id'][:16]}", lambda: _plan(folder, facts))
    yield from _fossils(folder, drive, facts, keys["vault"])


def _carriers(folder: Path) -> list[Path]:
    """The release that has the weights, if another one has and it is there."""
    try:
        about = durable.read_json(folder / "RELEASE.json")
        carried = about.get("carried_by")
        path = folder.parent / carried["name"] if carried else None
    except (InputError, AttributeError, KeyError, TypeError):
        return []
    return [path] if path is not None and path.is_dir() else []


def _hop(hop: str, subject: str, step: Callable[[], tuple[str, int] | None]) -> Hop:
    """What a step found; None means that it is not there."""
    try:
        found = step()
    except (VerificationFailed, InputError, OSError, LookupError, TypeError) as error:
        return Hop(hop, subject, DIFFERS, str(error) or repr(error))
    if found is None:
        return Hop(hop, subject, ABSENT, "not on this drive")
    return Hop(hop, subject, FITS, *found)


def _model(drive: Path, facts: Mapping[str, Any]) -> tuple[str, int] | None:
    """The generation in the zoo: the same one, every file as promoted."""
    path = drive / "model_zoo" / facts["generation"]["name"]
    if not path.is_dir():
        return None
    generation = read_generation(path)
    generation.verify()
    for what, here, there in (
        ("checkpoint", generation.checkpoint_digest, facts["generation"]["checkpoint_digest"]),
        ("statement", generation.statement_sha256, facts["statement_sha256"]),
        ("plan", generation.plan_id, facts["plan"]["plan_id"]),
    ):
        if here != there:
            raise VerificationFailed(f"{path}: another {what} than the release names")
    return f"{len(generation.files)} files, each as promoted", len(generation.files)


def _record(drive: Path, facts: Mapping[str, Any], key: PublicKey) -> tuple[str, int] | None:
    path = drive / "zk_proofs" / record_name(facts["generation"]["run"])
    if not path.is_file():
        return None
    record = verify_record(path, [key])
    if sha256_hex(record.payload) != facts["statement_sha256"]:
        raise VerificationFailed(f"{path}: another statement than the release names")
    return f"the signed statement, entry {record.index} of the audit log", 1


def _bundle(bundle: Path) -> tuple[str, int] | None:
    """A job's outputs, as its exit note lists them. Pruned outputs are counted, not missed."""
    note = bundle / "exit.json"
    if not note.is_file():
        return None
    outputs = durable.read_json(note).get("outputs", [])
    there = [(bundle / output["path"], output["sha256"]) for output in outputs]
    there = [(path, sha256) for path, sha256 in there if path.is_file()]
    for path, sha256 in there:
        if file_sha256(path) != sha256:
            raise VerificationFailed(f"{path} is not what the job wrote")
    return f"{len(there)} of {len(outputs)} outputs are there, each as written", len(there)


def _audit(drive: Path, facts: Mapping[str, Any], key: PublicKey) -> tuple[str, int] | None:
    path = drive / "zk_proofs" / "audit"
    if not (path / "checkpoint").is_file():
        return None
    report = check_log(path, key)
    if not report.ok:
        raise VerificationFailed(report.problems[0])
    if report.size < facts["audit"]["size"]:
        raise VerificationFailed(f"{report.size} entries, {facts['audit']['size']} when released")
    return f"{report.size} entries lead to the signed head", report.size


def _plan(folder: Path, facts: Mapping[str, Any]) -> tuple[str, int]:
    plan = read_plan(folder / "plan.json")
    if plan.plan_id != facts["plan"]["plan_id"]:
        raise VerificationFailed("not the plan that the release names")
    return f"{len(plan.shards)} shards, {plan.fossils:,} fossils", 1


def _fossils(folder: Path, drive: Path, facts: Mapping[str, Any], key: PublicKey) -> Iterator[Hop]:
    """Each shard of the plan: manifest, bytes, every CID; then the plan's root over all of them."""
    try:
        plan = read_plan(folder / "plan.json")
    except (InputError, VerificationFailed):
        return  # told by the hop before
    cids: list[str] = []
    excluded = set(plan.excluded)
    is_whole = True
    for shard in plan.shards:
        path = drive / "fossil_vault" / shard.path

        def check(path: Path = path, sha256: str = shard.sha256) -> tuple[str, int] | None:
            if not path.is_file():
                return None
            summary = read_manifest(manifest_path(path), [key])
            if summary.sha256 != sha256:
                raise VerificationFailed(f"{path}: the manifest is about another shard")
            check_shard(path, summary)
            found = [fossil.cid for fossil in read_shard(path, verify_cid=False)]
            cids.extend(cid for cid in found if cid not in excluded)
            return f"{len(found):,} fossils, every CID recomputed", len(found) + 2

        hop = _hop("fossils", shard.path, check)
        is_whole &= hop.result == FITS
        yield hop
    if is_whole:
        yield _hop("fossils", "Merkle root", lambda: _root(plan, cids, facts))


def _root(plan: BatchPlan, cids: list[str], facts: Mapping[str, Any]) -> tuple[str, int]:
    found = root(cid.encode() for cid in sorted(cids)).hex()
    if not found == plan.merkle_root == facts["plan"]["merkle_root"]:
        raise VerificationFailed(f"the fossils lead to {found}, the release says another")
    return f"{len(cids):,} fossils lead to {found}", 1
