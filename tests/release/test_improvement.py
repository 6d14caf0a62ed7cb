"""Gains by generation: paired, with intervals, and told only as far as they were measured."""

import xml.etree.ElementTree as ET

import pytest

from scf.release.improvement import Gain, Step, improvement_text, paired
from scf.release.pictures import improvement_picture
from scf.verification.report import Loss


def loss(**families: float) -> Loss:
    return Loss(mean=sum(families.values()) / len(families), by_family=families)


def step(number: int, **gains: Gain | None) -> Step:
    names = ("over_champion", "over_frozen", "over_scratch", "scratch_over_frozen")
    return Step(
        f"ebdm_gen{number:04d}", "2026-11-23T00:00:00Z", 100 * number, 0.5,
        **{name: gains.get(name) for name in names},
    )  # fmt: skip


def gain(mean: float, half: float = 0.01) -> Gain:
    return Gain("it", mean, mean - half, mean + half, 30)


def test_a_gain_is_the_mean_difference_with_its_t_interval() -> None:
    """Differences 1, 2, 3: mean 2, standard error 1/sqrt(3), t quantile 4.303 at 2 degrees."""
    found = paired("gen1", loss(a=2.0, b=3.0, c=4.0, d=9.0), loss(a=1.0, b=1.0, c=1.0, e=0.0))

    assert found is not None
    assert (found.mean, found.families) == (2.0, 3)
    assert found.low == pytest.approx(2 - 4.3027 / 3**0.5, abs=1e-3)
    assert found.high == pytest.approx(2 + 4.3027 / 3**0.5, abs=1e-3)


def test_what_shares_no_family_has_no_gain() -> None:
    assert paired("gen1", loss(a=1.0), loss(b=1.0)) is None
    assert paired("gen1", None, loss(b=1.0)) is None


def test_the_answer_comes_first_and_claims_what_the_interval_shows() -> None:
    first = step(1)
    better = improvement_text(
        [first, step(2, over_frozen=gain(0.1), over_scratch=gain(0.05))], "ebdm_gen0002"
    )
    assert "Yes: ebdm_gen0002 is better than ebdm_gen0001 by +0.1000 (0.0900 to 0.1100)" in better
    assert "and better than from nothing within the same budget by +0.0500" in better
    unsure = improvement_text([first, step(2, over_frozen=gain(0.005))], "ebdm_gen0002")
    assert "Not shown: ebdm_gen0002 against ebdm_gen0001 is +0.0050 (-0.0050 to 0.0150)." in unsure
    assert "was not measured beside" in improvement_text([first, step(2)], "ebdm_gen0002")
    assert improvement_text([first], "ebdm_gen0001") == ""


def test_after_a_rollback_it_speaks_of_the_one_that_stands() -> None:
    """Generation 3 was taken back: what it had gained is no answer."""
    steps = [step(1), step(2, over_frozen=gain(0.1)), step(3, over_frozen=gain(0.2))]
    assert "Yes: ebdm_gen0002 is better than ebdm_gen0001 by +0.1000" in improvement_text(
        steps, "ebdm_gen0002"
    )
    again = improvement_text(steps, "ebdm_gen0001")
    assert "No: ebdm_gen0001, the first, stands again" in again
    assert "| ebdm_gen0003 |" in again


def test_the_picture_says_its_numbers() -> None:
    steps = [
        step(1),
        step(2, over_frozen=gain(0.1), scratch_over_frozen=gain(-0.02)),
        step(3, over_frozen=gain(0.15)),
    ]
    svg = improvement_picture(steps)
    words = " ".join(ET.fromstring(svg).itertext())
    assert (
        "gen0002, 200 fossils: going on +0.1000 (0.0900 to 0.1100); from nothing -0.0200" in words
    )
    assert "dashed: ebdm_gen0001, never trained again" in words
    assert svg == improvement_picture(steps)
    assert b"<polyline" in svg
    bare = improvement_picture([step(1), step(2)])
    assert b"<polyline" not in bare
    assert b"not measured beside it" in bare


def test_a_year_of_generations_stays_readable() -> None:
    """All points, twelve names; the numbers of the last twelve."""
    steps = [step(1), *(step(n, over_frozen=gain(0.01 * n)) for n in range(2, 53))]
    svg = improvement_picture(steps)
    words = " ".join(ET.fromstring(svg).itertext())
    assert svg.count(b"<circle") == 51
    assert "gen0052, 5,200 fossils" in words
    assert "gen0040, 4,000 fossils" not in words
