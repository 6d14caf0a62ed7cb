"""Two simulated weeks of a whole foundry: two chained releases, the second without a promotion."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from scf.release.deep import FITS, walk
from scf.release.verify_release import verify_release
from scf.runs.state import State
from scf.signing.keys import public_keys
from support.clocks import CalendarClock
from support.conducting import Works, tick_until


@pytest.mark.e2e
def test_two_weeks_leave_two_chained_releases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Week one: fossils, a run, a generation, a release. Then a run that is no better; week two."""
    works = Works(tmp_path, {"min_fresh_fossils": 8, "settle_s": 0.0})
    clock = CalendarClock(datetime(2026, 11, 18, 12, tzinfo=UTC))
    history = works.root / "release_history"
    works.drop("first.ndjson", range(200), age_s=30 * 86400)

    with works.conductor(clock) as (conductor, _):
        tick_until(conductor, lambda _: (history / "week-2026-11-16").is_dir())

        monkeypatch.setenv("SCF_TINY", json.dumps({"champion_gain": 0.0}))
        works.drop("second.ndjson", range(200, 300), age_s=30 * 86400)
        tick_until(conductor, lambda _: works.runs()[-1].state is State.REJECTED)
        rejected = works.runs()[-1]
        tick_until(conductor, lambda tick: not tick.did)

        clock.today = datetime(2026, 11, 23, 0, 5, tzinfo=UTC)
        tick_until(conductor, lambda _: (history / "week-2026-11-23").is_dir())

    first, second = history / "week-2026-11-16", history / "week-2026-11-23"
    key = public_keys(works.home / "keys")
    for release in (first, second):
        assert verify_release(release, key["foundry"].to_pem()).problems == []
        settings = json.loads((release / "config" / "foundry.json").read_text())
        assert settings["daemon"]["min_fresh_fossils"] == 8  # the conductor hands them over
    about = json.loads((second / "RELEASE.json").read_text())
    assert about["kind"] == "no_promotion"
    assert about["carried_by"] == about["previous"]
    assert about["previous"]["name"] == "week-2026-11-16"
    assert not (second / "model").exists()

    (told,) = json.loads((second / "metrics.json").read_text())["week"]["not_promoted"]
    assert (told["run"], told["measured_against"]) == (rejected.run_id, "ebdm_gen0001")
    assert told["comparison"]["families"] == 24
    notes = (second / "NOTES.md").read_text()
    assert "No promotion: 1 run was measured or checked, and rejected" in notes
    assert "24 held-out families are all there are" in notes
    trace = json.loads((second / "gate" / f"{rejected.run_id}.json").read_text())
    assert trace["trace"]["superiority"]["decision"] == "undecided"
    assert {hop.result for hop in walk(second, works.root, key)} == {FITS}
