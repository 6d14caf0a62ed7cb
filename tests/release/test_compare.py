"""Two releases side by side: what changed is said, what did not is not."""

from datetime import UTC, date, datetime

import pytest

from scf.release.compare import UnknownRelease, diff, find_release, show
from support.foundries import SmallFoundry
from support.releases import promote, releasable, release_week
from support.runs import fill_vault, measured_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> SmallFoundry:
    """Three weeks: a first release, a second generation, a week without a promotion."""
    place = releasable(tmp_path_factory.mktemp("foundry") / "foundry")
    release_week(place)
    place.clock.moment = datetime(2026, 11, 25, 8, tzinfo=UTC)
    fill_vault(place, fossils=25, origin="second.csv")
    promote(place, measured_run(place, number=2, champion_gain=0.2))
    release_week(place)
    release_week(place, week=date(2026, 11, 30))
    return place


def named(place: SmallFoundry, name: str):
    return find_release(place.drive.folder("release_history"), name)


def test_a_release_is_found_by_its_week(place: SmallFoundry) -> None:
    assert named(place, "2026-11-16").name == named(place, "week-2026-11-16").name
    assert named(place, "latest").name == "week-2026-11-30"
    with pytest.raises(UnknownRelease, match="2026-12-07") as caught:
        named(place, "2026-12-07")
    assert "week-2026-11-16" in str(caught.value.remedy)


def test_show_holds_the_numbers(place: SmallFoundry) -> None:
    shown = show(named(place, "week-2026-11-23"))

    assert shown["generation"]["name"] == "ebdm_gen0002"
    assert set(shown["losses"]) == {"dsm_loss", "baseline_dsm_loss", "champion_dsm_loss"}
    assert shown["gate"]["promote"] is True
    assert shown["size_bytes"] > 1000


def test_diff_says_what_changed(place: SmallFoundry) -> None:
    found = diff(named(place, "2026-11-16"), named(place, "2026-11-23"))

    changed = {change["what"]: change for change in found["changes"]["model"]}
    assert (changed["name"]["before"], changed["name"]["after"]) == ("ebdm_gen0001", "ebdm_gen0002")
    assert changed["plan.fossils"]["after"] == 65
    assert found["fossils"] == {"in": 25, "out": 0, "kept": 40}
    assert found["changes"]["software"] == []
    numbers = {change["what"] for change in found["changes"]["numbers"]}
    assert "champion_dsm_loss" in numbers


def test_a_week_without_a_promotion_differs_in_kind_alone(place: SmallFoundry) -> None:
    """Its list of fossils is that of the release it names."""
    found = diff(named(place, "2026-11-23"), named(place, "2026-11-30"))

    assert [change["what"] for change in found["changes"]["model"]] == ["kind"]
    assert found["changes"]["numbers"] == []
    assert found["fossils"] == {"in": 0, "out": 0, "kept": 65}
