"""A week in which nothing passed is released all the same, and names the weights instead of them."""

import json
import shutil
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from scf.core.errors import BudgetExceeded
from scf.release.foundry import open_foundry
from scf.release.verify_release import verify_release
from scf.release.weekly import ReleaseTooLarge, make_release
from support.foundries import SmallFoundry, SteppingClock, tree_bytes
from support.releases import promote, releasable, release_week, writable_copy, zoo_of
from support.runs import measured_run

SECOND_WEEK = date(2026, 11, 23)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A foundry that is ready to release, to be copied."""
    return releasable(tmp_path_factory.mktemp("template") / "foundry").base


@pytest.fixture
def place(template: Path, tmp_path: Path) -> SmallFoundry:
    shutil.copytree(template, tmp_path / "foundry")
    clock = SteppingClock(datetime(2026, 11, 18, 13, tzinfo=UTC))
    return SmallFoundry(tmp_path / "foundry", clock)


def reject(place: SmallFoundry, number: int = 2) -> str:
    """A run that was measured against the champion and rejected, as the conductor logs it."""
    run = measured_run(place, number=number, champion_gain=0.0)
    assert not run.decision.promote
    reason = "; ".join(run.decision.reasons)
    facts = {
        "measured_against": "ebdm_gen0001",
        "dsm_loss": run.report.dsm_loss.mean,
        "gate": run.decision.to_json(),
    }
    place.log().append("run.REJECTED", run.run_id, {"reason": reason, "details": facts})
    return run.run_id


def about_of(path: Path) -> dict:
    return json.loads((path / "RELEASE.json").read_text())


def test_it_names_the_champions_release_by_digest_and_carries_no_weights(
    place: SmallFoundry,
) -> None:
    first = release_week(place)
    rejected = reject(place)

    second = release_week(place, week=SECOND_WEEK)

    about, files = about_of(second.path), set(tree_bytes(second.path))
    assert (about["kind"], about["promotion"]) == ("no_promotion", False)
    named = {"name": "week-2026-11-16", "release_sha256": first.release_sha256}
    assert about["carried_by"] == about["previous"] == named
    assert not [name for name in files if name.startswith(("model/", "evidence/"))]
    assert files >= {"MODEL_CARD.md", "metrics.json", "proof.json", "plan.json", "NOTES.md"}
    for name in ("MODEL_CARD.md", "proof.json"):
        assert (second.path / name).read_bytes() == (first.path / name).read_bytes()
    checked = verify_release(second.path, place.keys["foundry"].to_pem())
    assert (checked.problems, checked.previous, checked.carrier) == ([], "fits", "fits")
    assert "in week-2026-11-16, beside this one: they fit" in checked.text()
    assert f"gate/{rejected}.json" in files


def test_the_rejected_runs_numbers_are_in_metrics_and_notes(place: SmallFoundry) -> None:
    release_week(place)
    run_id = reject(place)
    second = release_week(place, week=SECOND_WEEK)

    week = json.loads((second.path / "metrics.json").read_text())["week"]
    (told,) = week["not_promoted"]
    assert (told["run"], told["state"]) == (run_id, "rejected")
    assert told["measured_against"] == "ebdm_gen0001"
    assert abs(told["comparison"]["gain"]) < 0.1
    assert told["reason"]
    assert week["chosen"] == "ebdm_gen0001"
    notes = (second.path / "NOTES.md").read_text()
    assert "No promotion: 1 run was measured or checked, and rejected" in notes
    assert f"| {run_id} |" in notes


def test_a_third_quiet_week_still_names_the_release_with_the_weights(place: SmallFoundry) -> None:
    """The chain goes week by week; the weights are where they were."""
    first = release_week(place)
    second = release_week(place, week=SECOND_WEEK)

    third = release_week(place, week=date(2026, 11, 30))

    about = about_of(third.path)
    assert about["previous"]["release_sha256"] == second.release_sha256
    assert about["carried_by"]["release_sha256"] == first.release_sha256
    assert "no run came to the gate" in (third.path / "NOTES.md").read_text()
    assert verify_release(third.path).ok


def test_alone_it_verifies_and_says_where_the_weights_are(
    place: SmallFoundry, tmp_path: Path
) -> None:
    release_week(place)
    second = release_week(place, week=SECOND_WEEK)

    checked = verify_release(writable_copy(second.path, tmp_path / "alone" / second.name))

    assert (checked.ok, checked.carrier) == (True, "absent")
    assert "in week-2026-11-16, not here to compare" in checked.text()


def test_weights_exchanged_in_the_earlier_release_are_noticed(place: SmallFoundry) -> None:
    first = release_week(place)
    second = release_week(place, week=SECOND_WEEK)
    weights = first.path / "model" / "ema.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")

    checked = verify_release(second.path)

    assert [p.what for p in checked.problems] == [
        "week-2026-11-16/model/ema.safetensors is not the file that was signed"
    ]


def test_a_quiet_week_may_not_bring_its_own_weights(place: SmallFoundry, tmp_path: Path) -> None:
    """Signed or not: two sets of weights for one generation is a contradiction."""
    from scf.release.archive import pack

    release_week(place)
    second = release_week(place, week=SECOND_WEEK)
    about = about_of(second.path)
    files = {n: (second.path / n).read_bytes() for n in about["files"] if n != "SHA256SUMS"}
    del about["files"], about["schema"]
    files["model/model.safetensors"] = b"other"
    (tmp_path / "forged").mkdir()
    pack(tmp_path / "forged", files, about, place.signer())

    checked = verify_release(tmp_path / "forged")

    assert any("belongs to week-2026-11-16" in p.what for p in checked.problems)


def test_a_release_must_hold_what_releases_hold(place: SmallFoundry, tmp_path: Path) -> None:
    """A signed release that leaves the list of fossils out does not pass for want of it."""
    from scf.release.archive import pack

    first = release_week(place)
    about = about_of(first.path)
    files = {n: (first.path / n).read_bytes() for n in about["files"] if n != "SHA256SUMS"}
    del about["files"], about["schema"], files["evidence/fossils.txt"]
    (tmp_path / "forged").mkdir()
    pack(tmp_path / "forged", files, about, place.signer())

    checked = verify_release(tmp_path / "forged")

    assert [p.what for p in checked.problems] == [
        "evidence/fossils.txt is not part of it, and should be"
    ]


def test_a_rollback_names_the_release_that_has_the_weights(place: SmallFoundry) -> None:
    first = release_week(place)
    promote(place, measured_run(place, number=2, champion_gain=0.2))
    release_week(place, week=SECOND_WEEK)
    zoo_of(place).rollback("ebdm_gen0001", "0002 drifts at night")

    third = release_week(place, week=date(2026, 11, 30))

    assert (third.kind, third.promotion) == ("rollback", False)
    assert about_of(third.path)["carried_by"]["release_sha256"] == first.release_sha256
    assert verify_release(third.path).ok


def test_the_best_of_a_week_is_on_record(place: SmallFoundry) -> None:
    """Two promotions in a week: both are listed, the one that stands is released."""
    promote(place, measured_run(place, number=2, champion_gain=0.2))

    made = release_week(place)

    week = json.loads((made.path / "metrics.json").read_text())["week"]
    assert [(p["generation"], p["is_standing"]) for p in week["promoted"]] == [
        ("ebdm_gen0001", False), ("ebdm_gen0002", True),
    ]  # fmt: skip
    assert "had to beat" in week["rule"]
    assert made.generation == "ebdm_gen0002"


def test_any_monday_may_be_released_past_or_future(place: SmallFoundry) -> None:
    """The chain follows the order of making, whatever the weeks are called."""
    future = release_week(place, week=date(2027, 1, 4))
    past = release_week(place, week=date(2026, 10, 5))
    third = release_week(place)

    assert past.previous == future.name
    assert third.previous == past.name
    for made in (future, past, third):
        assert verify_release(made.path).problems == []


def test_a_release_over_the_cap_is_refused_by_name(place: SmallFoundry) -> None:
    with open_foundry(
        place.drive, place.home, code_version="0.1.0", clock=place.clock, size_max_bytes=5000
    ) as foundry:
        with pytest.raises(ReleaseTooLarge, match=r"a release may take 5 kB") as caught:
            make_release(foundry)
    assert isinstance(caught.value, BudgetExceeded)
    assert "--size-max" in str(caught.value.remedy)
    assert list((place.root / "release_history").iterdir()) == []


def test_settings_lock_and_bill_of_materials_are_in_it(place: SmallFoundry) -> None:
    with open_foundry(
        place.drive, place.home, code_version="0.1.0", clock=place.clock,
        settings={"gate": {"alpha": 0.05}},
    ) as foundry:  # fmt: skip
        made = make_release(foundry)

    assert json.loads((made.path / "config" / "foundry.json").read_text())["gate"]["alpha"] == 0.05
    assert "numpy==" in (made.path / "config" / "constraints.txt").read_text()
    bill = json.loads((made.path / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    gate = json.loads((made.path / "gate" / "run-000000000001.json").read_text())
    assert gate["promote"] is True
