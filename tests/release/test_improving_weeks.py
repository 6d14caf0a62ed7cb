"""Two weeks of real training on a known truth: the second model is better, and the release shows it."""

import json
from pathlib import Path

import pytest

from scf.release.verify_release import verify_release
from scf.runs.state import State
from scf.signing.keys import public_keys

pytest.importorskip("torch")

from support.simulated_weeks import SimulatedWeeks


@pytest.mark.e2e
@pytest.mark.torch
@pytest.mark.slow
def test_two_weeks_of_real_training_leave_a_better_model_and_chained_releases(
    tmp_path: Path,
) -> None:
    """Fresh fossils twice, then none: first release, promotion, no promotion; all verify offline."""
    foundry = SimulatedWeeks(tmp_path, max_steps=150)

    first, _ = foundry.live(200)
    second, promotion = foundry.live(250)
    third, quiet = foundry.live(0)

    assert (first.state, second.state, third) == (State.RELEASED, State.RELEASED, None)
    key = public_keys(foundry.works.home / "keys")["foundry"].to_pem()
    releases = sorted(foundry.folder.glob("week-*"))
    assert [path.name for path in releases] == [
        "week-2026-08-31", "week-2026-09-07", "week-2026-09-14", "week-2026-09-21",
    ]  # fmt: skip
    abouts = [json.loads((path / "RELEASE.json").read_text()) for path in releases]
    assert [about["kind"] for about in abouts] == [
        "promotion", "no_promotion", "promotion", "no_promotion",
    ]  # fmt: skip
    for path, about in zip(releases, abouts, strict=True):
        checked = verify_release(path, key)
        assert checked.problems == []
        assert checked.previous == ("fits" if about["previous"] else "none")
    assert quiet == releases[-1]

    here = str(tmp_path).encode()
    named = [p.name for p in foundry.folder.rglob("*") if p.is_file() and here in p.read_bytes()]
    assert named == []  # no path of this machine leaves it

    step = json.loads((promotion / "metrics.json").read_text())["improvement"][-1]
    assert (step["generation"], step["fossils"]) == ("ebdm_gen0002", 450)
    for name in ("over_champion", "over_frozen", "over_scratch"):
        low, high = step[name]["ci95"]
        assert 0 < low < step[name]["mean"] < high
    report = json.loads((promotion / "metrics.json").read_text())["report"]
    assert report["champion_dsm_loss"]["paired_sigma"] > 0
    assert report["near_duplicates"]["scanned"] > 300
    assert report["anchor"]["fossils"] > 0
    assert report["cost"]["num_parameters"] == report["champion_cost"]["num_parameters"]
    notes = (promotion / "NOTES.md").read_text()
    assert "Yes: ebdm_gen0002 is better than ebdm_gen0001 by +0." in notes
    assert "| training | 1 | " in notes
    assert "| training from nothing, to compare | 1 | " in notes
    assert "## What it took" not in (quiet / "NOTES.md").read_text()
    assert "No promotion: no run came to the gate this week" in (quiet / "NOTES.md").read_text()
    assert (quiet / "plots" / "improvement.svg").is_file()
