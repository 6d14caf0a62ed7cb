"""Why a run that is due is held back: what it would come to is known to be nothing.

Training costs hours and money, so none is begun whose result could not be judged, because every
look at the sealed pool is spent, nor is a run noted over fossils that cannot be split. Either wait
has its reason and, where time alone ends it, its end.
"""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from scf.core.clock import utc_text
from scf.core.errors import InputError
from scf.daemon.planning import SHARDS_HERE_MAX
from scf.daemon.rooms import Shelves
from scf.runs.state import ACTIVE
from scf.runs.store import RunStore
from scf.vault.provenance import FAMILY_BLOCK
from scf.vault.watcher import JournalPrefix
from scf.zoo.looks import SeenLooks, next_free

# What holds a run back is looked at again after so long, or when the vault has grown.
LOOK_EVERY_S = 5.0


@dataclass(frozen=True)
class Held:
    """Why no run is noted now.

    Attributes:
        reason: For people; it ends with what it waits for.
        until: When time alone makes way; None where something else must come first.
        is_impossible: No run can be made, not even one that the operator asks for.
    """

    reason: str
    until: datetime | None = None
    is_impossible: bool = False

    def to_json(self) -> dict[str, Any]:
        until = None if self.until is None else utc_text(self.until)
        return {"reason": self.reason, "until": until}


@dataclass
class Holding:
    """Says what holds the next run back.

    Attributes:
        shelves: What would be planned over.
        store: The runs under way.
        looks: Looks at the sealed pool, as the audit log has them.
    """

    shelves: Shelves
    store: RunStore
    looks: SeenLooks
    _last: tuple[JournalPrefix, float, Held] | None = field(default=None, init=False)

    def look(self, prefix: JournalPrefix) -> Held | None:
        """What holds a run about `prefix` back. A refusal is remembered for `LOOK_EVERY_S`.

        Raises:
            GenerationDamaged: The champion cannot be read.
        """
        now_s = self.shelves.clock.monotonic()
        if self._last is not None and self._last[0] == prefix and now_s < self._last[1]:
            return self._last[2]
        found = self._find(prefix)
        self._last = None if found is None else (prefix, now_s + LOOK_EVERY_S, found)
        return found

    def _find(self, prefix: JournalPrefix) -> Held | None:
        if self.shelves.champion() is not None:
            # What stands was made of a beginning of this vault, which could be split.
            return self._without_a_look()
        return self._not_to_be_split(prefix)

    def _without_a_look(self) -> Held | None:
        """A candidate is judged against the champion on the sealed pool, if a look is left."""
        now, gate = self.shelves.clock.now(), self.shelves.config.gate
        looks = self.looks.all()
        judged = {look.run_id for look in looks}
        coming = sum(run.run_id not in judged for run in self.store.runs(ACTIVE))
        free = next_free(looks, now, budget=gate.looks, days=gate.looks_days, coming=coming)
        if free == now:
            return None
        when = "once a run under way has ended" if free is None else f"at {free:%Y-%m-%d %H:%M} UTC"
        reserved = f" ({coming} of them by runs under way)" if coming else ""
        return Held(
            f"its result could not be judged: all {gate.looks} looks at the sealed pool within "
            f"{gate.looks_days} days are taken{reserved} ([gate] looks); the next is free {when}",
            until=free,
        )

    def _not_to_be_split(self, prefix: JournalPrefix) -> Held | None:
        """Fossils of one family and one block of neighbours leave nothing to measure on."""
        from scf.fertilization.batch_plan import can_be_split
        from scf.vault.journal import Vault

        # With more than a block of neighbours in some shard there is something to split; and a
        # vault of so many shards is not asked while the conductor waits.
        if not 0 < prefix.fossils <= FAMILY_BLOCK * prefix.shards <= FAMILY_BLOCK * SHARDS_HERE_MAX:
            return None
        try:
            with Vault.open(self.shelves.drive, self.shelves.config.home) as vault:
                is_possible = can_be_split(vault)
        except InputError:
            return None  # what is wrong with a shard is said of the run that needs it
        if is_possible:
            return None
        return Held(
            f"the vault's {prefix.fossils} fossils are one family within one block of "
            f"{FAMILY_BLOCK} neighbours, so nothing can be held out to measure on; it waits for "
            f"more: another family, or more than {FAMILY_BLOCK} records in one file",
            is_impossible=True,
        )
