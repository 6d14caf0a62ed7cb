"""The rooms on the drive, opened together: what the stages of a run work with.

Glue and nothing else: each method hands values from one room to another. Rooms that bring heavy
libraries are imported where they are used, so that a waiting daemon stays small.
"""

import platform
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scf
from scf.audit.log import AuditLog
from scf.config import FoundryConfig
from scf.core.canonical import canonical_json
from scf.core.clock import Clock, monday_of
from scf.core.identity import sha256_hex
from scf.daemon.doors import Doors, OpenDoor, open_doors, open_local_door
from scf.dispatch.dispatcher import Dispatcher
from scf.signing.keys import load_signer, public_keys, read_rotations
from scf.signing.signer import Signer
from scf.storage import durable
from scf.storage.partitions import Drive, DriveMissing, Folder
from scf.zoo.looks import SeenLooks

if TYPE_CHECKING:
    from scf.fertilization.batch_plan import BatchPlan
    from scf.fertilization.primordial_soup import IngestReport
    from scf.release.weekly import ReleaseResult
    from scf.verification.gate import GateDecision, Looks
    from scf.verification.report import Report
    from scf.verification.verify_checkpoint import CheckpointFacts
    from scf.zoo.registry import Generation, Zoo

__all__ = ["OpenDoor", "Rooms", "Shelves", "open_local_door", "own_drive", "plan_id_of", "week_of"]


@dataclass
class Shelves:
    """What can be looked up and thought of on a drive; nothing here changes what lies on it.

    Attributes:
        config: All settings.
        drive: The drive they are on.
        clock: Time.
    """

    config: FoundryConfig
    drive: Drive
    clock: Clock

    @property
    def vault_folder(self) -> Path:
        """`fossil_vault` on the drive."""
        return self.drive.root / "fossil_vault"

    def make_plan(
        self,
        parent: Mapping[str, Any] | None,
        *,
        seed: int,
        held_out_fraction: float,
        fresh_share: float,
        num_shards: int,
    ) -> "BatchPlan":
        """A plan over the first shards of the vault; a child keeps what its parent held out."""
        from scf.fertilization.batch_plan import BatchPlan, make_plan
        from scf.vault.journal import Vault

        with Vault.open(self.drive, self.config.home) as vault:
            return make_plan(
                vault,
                seed=seed,
                held_out_fraction=held_out_fraction,
                parent=BatchPlan.from_json(parent) if parent is not None else None,
                fresh_share=fresh_share or None,
                num_shards=num_shards,
            )

    def retracted_digest(self) -> str:
        """A digest over the CIDs that were taken back, whatever was said about them."""
        names = (path.stem for path in (self.vault_folder / "retracted").glob("b*.json"))
        return sha256_hex("\n".join(sorted(names)).encode())

    def zoo(self) -> "Zoo":
        """The zoo of this drive."""
        from scf.zoo.registry import Zoo

        return Zoo.open(self.drive.folder("model_zoo"), clock=self.clock)

    def champion(self) -> "Generation | None":
        """The generation that stands now."""
        return self.zoo().champion()

    def plan_of(self, generation: "Generation") -> dict[str, Any]:
        """The batch plan of a generation."""
        plan = durable.read_json(generation.path / "plan.json")
        assert isinstance(plan, dict), f"{generation.path / 'plan.json'} is not an object"
        return plan

    def start_of(self, champion: "Generation | None") -> "Generation | None":
        """Whose weights a new run begins with; None is random ones.

        The champion's; if it learned from fossils that were taken back, those of the latest sound
        generation, since who goes on from such weights has learned from them, too.
        """
        from scf.zoo.taint import propose, read_taints

        zoo = self.zoo()
        proposal = propose(zoo, read_taints(zoo.folder))
        if proposal is not None:
            champion = zoo.generation(proposal.target) if proposal.target is not None else None
        return champion if champion is not None and self._can_go_on_from(champion) else None

    def _can_go_on_from(self, generation: "Generation") -> bool:
        """Whether training with the present settings can begin from these weights."""
        config = durable.read_json(generation.checkpoint / "config.json")
        made_with = config.get("training", config) if isinstance(config, dict) else {}
        return bool(made_with.get("preset") == self.config.training.preset)


@dataclass
class Rooms(Shelves):
    """One drive's rooms, open.

    Attributes:
        jobs: Where job bundles lie.
        doors: Where jobs run.
        audit: The audit log, open for writing.
        seen_looks: Looks at the sealed pool that it records.
    """

    jobs: Folder
    doors: Doors
    audit: AuditLog
    seen_looks: SeenLooks

    @classmethod
    def open(cls, config: FoundryConfig, clock: Clock, open_door: OpenDoor) -> "Rooms":
        """Open everything on the configured drive.

        Raises:
            DriveMissing: The drive is not there, or it is not the one that this home belongs to.
            KeyMissing: There are no keys: `scf init` was not run.
        """
        drive = own_drive(config)
        signer = load_signer(config.home / "keys", "foundry")
        jobs = drive.folder("system_cache", "jobs")
        folder = drive.folder("zk_proofs", "audit")
        audit = AuditLog.open(folder, config.home, signer, clock=clock)
        doors = open_doors(config, jobs, clock, open_local=open_door)
        return cls(config, drive, clock, jobs, doors, audit, SeenLooks(audit))

    @property
    def door(self) -> Dispatcher:
        """The door of this machine."""
        return self.doors.local

    def signer(self, role: str) -> Signer:
        """A signer, opened for this one use."""
        return load_signer(self.config.home / "keys", role)

    def ingest(self, path: Path, on_progress: Callable[[int], None]) -> "IngestReport":
        """Take one file in; `on_progress` gets the number of records met, and may raise to stop."""
        from scf.fertilization.primordial_soup import PrimordialSoupIngestor
        from scf.vault.journal import Vault

        settings = self.config.vault
        with Vault.open(self.drive, self.config.home, self.signer("vault")) as vault:
            ingestor = PrimordialSoupIngestor(
                vault,
                progress=lambda progress: on_progress(progress.read),
                line_max_bytes=settings.line_max_bytes,
                record_max_bytes=settings.record_max_bytes,
                shard_bytes=settings.shard_bytes,
                home=self.config.home,
            )
            return ingestor.ingest(path)

    def promote(
        self,
        run_id: str,
        *,
        checkpoint: Path,
        report_folder: Path,
        plan: Mapping[str, Any],
        proof: str,
    ) -> "Generation":
        """Make the run a generation and the champion; once for each run.

        What it learned from may have been taken back since its plan was made: that is marked.
        """
        from scf.vault.journal import Vault
        from scf.zoo.taint import mark_tainted

        zoo, signer = self.zoo(), self.signer("foundry")
        generation = zoo.promote(
            run_id=run_id,
            checkpoint=checkpoint,
            report_folder=report_folder,
            plan=plan,
            proof=self.drive.folder("zk_proofs").path / proof,
            keys=[signer.public_key],
        )
        with Vault.open(self.drive, self.config.home) as vault:
            mark_tainted(zoo, vault, self.clock, audit=self.audit, among=[generation])
        return generation

    def anchor(self) -> Path | None:
        """The anchor set, frozen now if a first generation has just been promoted; None before."""
        from scf.fertilization.batch_plan import BatchPlan
        from scf.zoo.anchor import ANCHOR_NAME, EVENT, anchor_of, anchor_set

        folder = self.drive.folder("model_zoo")
        history = self.zoo().history()
        if anchor_of(folder) is None and history:
            first = self.zoo().generation(history[0].generation)
            plan = BatchPlan.from_json(self.plan_of(first))
            data = anchor_set(first.name, plan, self.vault_folder)
            # Logged, then written: what stands there is always what the log names.
            self.audit.append(EVENT, first.name, {"sha256": sha256_hex(data)}, key=EVENT)
            folder.write_once(ANCHOR_NAME, data)
        return anchor_of(folder)

    def earlier_champions(self) -> "list[tuple[int, Generation]]":
        """(weeks ago, generation) of those that stood some weeks ago and are still there."""
        from scf.zoo.earlier import stood_weeks_ago

        zoo = self.zoo()
        there = {generation.name: generation for generation in zoo.generations()}
        stood = stood_weeks_ago(zoo.history(), self.clock.now())
        return [(weeks, there[name]) for name, weeks in stood.items() if name in there]

    def verify_checkpoint(self, folder: Path) -> "CheckpointFacts":
        """Every byte of a checkpoint. Raises CheckpointInvalid."""
        from scf.verification.verify_checkpoint import verify_checkpoint

        return verify_checkpoint(folder)

    def looks(self, run_id: str) -> "Looks":
        """How often the sealed pool was looked at lately, by other runs than this one."""
        from scf.zoo.looks import looks_used

        gate = self.config.gate
        return looks_used(
            self.seen_looks.all(),
            self.clock.now(),
            budget=gate.looks,
            days=gate.looks_days,
            besides=run_id,
        )

    def judge(
        self,
        report_path: Path,
        *,
        checkpoint_digest: str,
        plan_id: str,
        has_champion: bool,
        looks: "Looks | None",
    ) -> "tuple[Report, GateDecision]":
        """Read a report and ask the gate. Raises InputError for a report that is none."""
        from scf.verification.gate import decide
        from scf.verification.report import read_report

        report = read_report(report_path)
        decision = decide(
            report,
            settings=self.config.gate,
            checkpoint_digest=checkpoint_digest,
            plan_id=plan_id,
            has_champion=has_champion,
            looks=looks,
        )
        return report, decision

    def attest(
        self,
        run_id: str,
        *,
        checkpoint: Path,
        plan: Mapping[str, Any],
        parent: Mapping[str, str] | None,
        report_path: Path,
        has_champion: bool,
        looks: "Looks | None",
    ) -> Path:
        """Sign and log what the run made; returns the proof record. Twice is once.

        `looks` are those that it was judged with: the statement holds the same decision.
        """
        from scf.proofs.attest import attest
        from scf.proofs.statement import Parent, build_statement

        facts = self.verify_checkpoint(checkpoint)
        report, decision = self.judge(
            report_path,
            checkpoint_digest=facts.digest,
            plan_id=plan_id_of(plan),
            has_champion=has_champion,
            looks=looks,
        )
        statement = build_statement(
            run_id=run_id,
            checkpoint=facts,
            plan=plan,
            parent=Parent(**parent) if parent is not None else None,
            report=report,
            decision=decision,
            code_version=scf.__version__,
        )
        return attest(
            statement,
            folder=self.drive.folder("zk_proofs"),
            audit=self.audit,
            signer=self.signer("foundry"),
        )

    def make_release(self) -> "ReleaseResult":
        """Pack this week's release. Raises AlreadyReleased with its path when there is one."""
        from scf.release.costs import closed_attempts
        from scf.release.foundry import Foundry, size_cap_bytes
        from scf.release.weekly import make_release
        from scf.vault.journal import Vault

        with Vault.open(self.drive, self.config.home) as vault:
            foundry = Foundry(
                releases=self.drive.folder("release_history"),
                zoo=self.zoo(),
                vault=vault,
                audit=self.audit,
                signer=self.signer("foundry"),
                keys=public_keys(self.config.home / "keys"),
                code_version=scf.__version__,
                clock=self.clock,
                settings=self.config.public(),
                rotations=read_rotations(self.config.home / "keys"),
                attempts=closed_attempts(self.config.home),
                size_max_bytes=self.config.release.size_max_bytes or size_cap_bytes(self.drive),
            )
            return make_release(foundry)

    def generation_in(self, release: Path) -> str:
        """The generation that a release holds."""
        from scf.release.archive import read_release

        return str(read_release(release)["generation"]["name"])

    def placement(self) -> dict[str, Any]:
        """What a receipt says of this machine and this code. Unknown figures are null, not zero."""
        return {
            "code_version": scf.__version__,
            "host": socket.gethostname(),
            "machine": f"{platform.system()} {platform.machine()}",
            "cost_usd": 0.0,
            "energy_j": None,
        }


def own_drive(config: FoundryConfig) -> Drive:
    """Open the drive that the home was bound to by `scf init`.

    Raises:
        DriveMissing: There is none, or another one under the same name, which is no better.
    """
    drive = Drive.open(config.need_root())
    path = config.home / "drive.json"
    bound = durable.read_json(path).get("uuid") if path.exists() else drive.uuid
    if bound != drive.uuid:
        raise DriveMissing(drive.root, f"this is drive {drive.uuid}, the home's is {bound}")
    return drive


def plan_id_of(plan: Mapping[str, Any]) -> str:
    """The plan's name: the digest of its canonical JSON."""
    return sha256_hex(canonical_json(dict(plan)))


def week_of(clock: Clock) -> date:
    """The Monday that names the release of this week (UTC)."""
    return monday_of(clock.now().date())
