"""Are the fresh fossils strange to the champion? Asked of a short job on this machine.

The job is named by what is asked (the vault's root and the champion), so a conductor that starts
again finds it. It is asked once there are `novel_fossils_min` fresh fossils, and again each time
their number has doubled; it never keeps a run waiting, and one that fails is an answer that is not
known. A fossil is strange when its energy is above that of 95 of 100 fossils that the champion was
measured on.
"""

import json
import shutil
from dataclasses import dataclass
from typing import Any

from scf.config import StartSettings
from scf.core.canonical import canonical_json
from scf.core.errors import DoorError, InputError
from scf.core.identity import sha256_hex
from scf.daemon.pulse import Signs
from scf.daemon.rooms import Rooms
from scf.daemon.triggers import Novelty
from scf.dispatch.job import ExitReason, JobInput, JobPhase, JobSpec
from scf.runs.store import RunStore
from scf.storage import durable
from scf.vault.watcher import JournalPrefix

KIND = "novelty"
# {"job", "fresh", "champion"} of the last question; with its answer, once there is one.
ASKED = "novelty.asked"
LIMIT_S = 900.0
FOSSILS_MAX = 4096


@dataclass
class Strangeness:
    """Asks, and remembers the answer.

    Attributes:
        rooms: Champion, door, jobs.
        store: Remembers question and answer.
        settings: When to ask.
        log: Gets what was asked and answered.
    """

    rooms: Rooms
    store: RunStore
    settings: StartSettings
    log: Any

    @property
    def is_asking(self) -> bool:
        """Whether an answer is on its way."""
        return bool(self.settings.novel_share) and "job" in self._kept() and self._is_open()

    def found(self) -> Novelty | None:
        """The last answer about what is fresh; None where there is none."""
        return novelty_of(self.store)

    def look(self, signs: Signs, prefix: JournalPrefix) -> bool:
        """Ask, or take the answer in; returns whether anything was done."""
        if not self.settings.novel_share:
            return False
        if not signs.fresh_fossils:
            if self._kept():
                self.store.set(ASKED, {})
            return False
        if self.is_asking:
            return self._take()
        asked_about = int(self._kept().get("fresh", 0))
        wanted = max(self.settings.novel_fossils_min, 2 * asked_about)
        if signs.fresh_fossils < wanted or not signs.is_settled or self.store.open_attempts():
            return False
        return self._ask(signs, prefix)

    def _ask(self, signs: Signs, prefix: JournalPrefix) -> bool:
        champion = self.rooms.champion()
        if champion is None:
            return False
        report = durable.read_json(champion.path / "report.json")
        threshold = report.get("energy", {}).get("real", {}).get("q95")
        about = {"fresh": signs.fresh_fossils, "champion": champion.name}
        if threshold is None or "sigma" not in report:
            self.store.set(ASKED, {**about, "fault": "its report has no energies"})
            return True
        name = sha256_hex(f"{prefix.root}:{champion.checkpoint_digest}".encode())[:24]
        asked = canonical_json(
            {
                "shards": list(signs.fresh_shards),
                "sigma": report["sigma"],
                "threshold": threshold,
                "fossils_max": FOSSILS_MAX,
            }
        )
        spec = JobSpec(
            job_id=f"{KIND}-{name}",
            kind=KIND,
            deadline_s=LIMIT_S,
            inputs=(
                JobInput("asked.json", "inputs/asked.json", sha256_hex(asked)),
                JobInput("checkpoint", str(champion.checkpoint)),
            ),
            vault=str(self.rooms.vault_folder),
        )
        # The question is on the medium before the door is asked: a restart finds the same job.
        self.store.set(ASKED, {**about, "job": spec.job_id, "spec": spec.to_json(),
                               "asked": asked.decode()})  # fmt: skip
        self.log.info("novelty.asked", job=spec.job_id, fresh=signs.fresh_fossils)
        self.rooms.door.submit(spec, {"asked.json": asked})
        return True

    def _take(self) -> bool:
        kept = self._kept()
        job, about = str(kept["job"]), {key: kept[key] for key in ("fresh", "champion")}
        status = self.rooms.door.poll(job)
        if status.phase is JobPhase.ABSENT:
            spec = JobSpec.from_json(kept["spec"])
            self.rooms.door.submit(spec, {"asked.json": kept["asked"].encode()})
            return True
        if status.phase is JobPhase.RUNNING or status.exit is None:
            return False
        answer: dict[str, Any] = {"fault": f"{status.exit.reason}: {status.exit.detail}"}
        if status.exit.reason is ExitReason.COMPLETED:
            try:
                path = self.rooms.door.collect(job) / "outputs" / "novelty.json"
                found = json.loads(path.read_bytes())
                answer = {name: int(found[name]) for name in ("asked", "strange")}
            except (InputError, DoorError, OSError, KeyError, TypeError, ValueError) as error:
                answer = {"fault": f"the answer cannot be used: {error}"}
        self.log.info("novelty.answered", job=job, **answer)
        self.store.set(ASKED, {**about, **answer})
        shutil.rmtree(self.rooms.jobs.path / job, ignore_errors=True)
        return True

    def _kept(self) -> dict[str, Any]:
        kept = self.store.get(ASKED, {})
        assert isinstance(kept, dict)
        return kept

    def _is_open(self) -> bool:
        kept = self._kept()
        return "strange" not in kept and "fault" not in kept


def novelty_of(store: RunStore) -> Novelty | None:
    """The last answer; None where there is none, or it was none."""
    kept = store.get(ASKED, {})
    if "strange" not in kept:
        return None
    return Novelty(asked=kept["asked"], strange=kept["strange"], champion=kept["champion"])
