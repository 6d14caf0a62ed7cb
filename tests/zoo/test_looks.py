"""Looks at the sealed pool are counted where they happened: in the audit log."""

from datetime import UTC, datetime

from scf.audit.entry import Entry
from scf.zoo.looks import looks_used

NOW = datetime(2026, 11, 23, tzinfo=UTC)
GATE = {"gate": {"trace": {"superiority": {"llr": 1.0}}}}


def entry(at: str, event: str, details: dict) -> Entry:
    return Entry(at=at, event=event, subject="run-00000000000a", details={"details": details})


def test_judgements_against_a_champion_count_for_a_month() -> None:
    entries = [
        entry("2026-09-01T00:00:00Z", "run.REJECTED", GATE),  # too long ago
        entry("2026-11-01T00:00:00Z", "run.REJECTED", GATE),
        entry("2026-11-20T00:00:00Z", "run.VERIFIED", GATE),
        entry("2026-11-20T00:00:00Z", "run.PROVEN", GATE),  # no judgement
        entry("2026-11-20T00:00:00Z", "run.REJECTED", {"gate": {"trace": {"superiority": None}}}),
        entry("2026-11-20T00:00:00Z", "run.REJECTED", {}),
    ]

    looks = looks_used(entries, NOW)

    assert (looks.used, looks.budget, looks.days) == (2, 20, 28)
    assert not looks.is_spent
    assert looks_used(entries, NOW, budget=2).is_spent


def test_a_run_does_not_stand_in_its_own_way() -> None:
    """What the run at hand has used already, judged once more after a crash, is not counted."""
    entries = [entry("2026-11-20T00:00:00Z", "run.VERIFIED", GATE)]
    assert looks_used(entries, NOW, besides="run-00000000000a").used == 0
    assert looks_used(entries, NOW, besides="run-00000000000b").used == 1
