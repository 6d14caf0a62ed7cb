"""Looks at the sealed pool are counted where they happened: in the audit log."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from scf.audit.entry import Entry
from scf.audit.log import LoggedEntry
from scf.verification.gate import Looks
from scf.zoo.looks import Look, SeenLooks, looks_used, next_free

NOW = datetime(2026, 11, 23, tzinfo=UTC)
GATE = {"gate": {"trace": {"superiority": {"llr": 1.0}}}}


def entry(at: str, event: str, details: dict) -> Entry:
    return Entry(at=at, event=event, subject="run-00000000000a", details={"details": details})


class Log:
    """Entries in memory, and which of them were read."""

    def __init__(self, entries: Iterable[Entry]) -> None:
        self.logged = [LoggedEntry(i, entry, b"") for i, entry in enumerate(entries)]
        self.read: list[int] = []

    def entries(self, start: int = 0) -> Iterator[LoggedEntry]:
        for logged in self.logged[start:]:
            self.read.append(logged.index)
            yield logged


def used(entries: Iterable[Entry], **about) -> Looks:
    return looks_used(SeenLooks(Log(entries)).all(), NOW, **about)


def test_judgements_against_a_champion_count_for_a_month() -> None:
    entries = [
        entry("2026-09-01T00:00:00Z", "run.REJECTED", GATE),  # too long ago
        entry("2026-11-01T00:00:00Z", "run.REJECTED", GATE),
        entry("2026-11-20T00:00:00Z", "run.VERIFIED", GATE),
        entry("2026-11-20T00:00:00Z", "run.PROVEN", GATE),  # no judgement
        entry("2026-11-20T00:00:00Z", "run.REJECTED", {"gate": {"trace": {"superiority": None}}}),
        entry("2026-11-20T00:00:00Z", "run.REJECTED", {}),
    ]

    looks = used(entries)

    assert (looks.used, looks.budget, looks.days) == (2, 20, 28)
    assert not looks.is_spent
    assert used(entries, budget=2).is_spent


def test_a_run_does_not_stand_in_its_own_way() -> None:
    """What the run at hand has used already, judged once more after a crash, is not counted."""
    entries = [entry("2026-11-20T00:00:00Z", "run.VERIFIED", GATE)]
    assert used(entries, besides="run-00000000000a").used == 0
    assert used(entries, besides="run-00000000000b").used == 1


def test_a_judgement_that_had_no_look_left_spends_none() -> None:
    """It could promote nothing; counted, refused runs would keep later ones from their look."""

    def judged(used: int) -> Entry:
        trace = {"superiority": {"llr": 1.0}, "looks": {"used": used, "budget": 2, "days": 28}}
        return entry("2026-11-20T00:00:00Z", "run.REJECTED", {"gate": {"trace": trace}})

    assert used([judged(0), judged(1), judged(2), judged(2)], budget=2).used == 2


def test_each_entry_of_the_log_is_read_once() -> None:
    log = Log([entry("2026-11-20T00:00:00Z", "run.VERIFIED", GATE)] * 3)
    seen = SeenLooks(log)
    assert len(seen.all()) == 3
    log.logged.append(LoggedEntry(3, log.logged[0].entry, b""))
    assert len(seen.all()) == 4
    assert log.read == [0, 1, 2, 3]


def test_a_look_is_free_when_the_oldest_of_too_many_is_out_of_the_window() -> None:
    ago = [timedelta(days=days) for days in (40, 20, 10, 5)]
    looks = [Look(NOW - age, "run-00000000000a") for age in ago]

    def free(budget: int, coming: int = 0) -> datetime | None:
        return next_free(looks, NOW, budget=budget, days=28, coming=coming)

    assert free(4) == NOW
    for budget, coming, age in [(3, 0, ago[1]), (2, 0, ago[2]), (1, 0, ago[3]), (3, 1, ago[2])]:
        found = free(budget, coming)
        assert found == NOW - age + timedelta(days=28, seconds=1)
        assert not looks_used(looks, found, budget=budget - coming).is_spent
        before = found - timedelta(seconds=2)
        assert looks_used(looks, before, budget=budget - coming).is_spent
    assert free(1, coming=1) is None  # the run under way will take it
