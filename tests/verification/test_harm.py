"""A loss somewhere is found; a loss that is none does not stop what is good."""

import random

from hypothesis import given
from hypothesis import strategies as st

from scf.verification.harm import find_harm, holm, prefix_of, slices_of


def spread(gain: float, count: int, seed: int) -> list[float]:
    generator = random.Random(seed)
    return [generator.gauss(gain, 0.6) for _ in range(count)]


def test_a_slice_that_loses_is_found_by_name() -> None:
    gains = {f"slice-{i}": spread(0.1, 40, i) for i in range(5)}
    gains["slice-3"] = spread(-0.5, 40, 9)

    found = find_harm(gains, margin=0.05, alpha=0.05)

    assert [harm.name for harm in found if harm.is_harmed] == ["slice-3"]


def test_with_no_loss_anywhere_five_percent_are_refused_at_most() -> None:
    """Holm: 8 slices at once, none worse; 400 trials (standard error 1.1 %)."""
    refused = 0
    for trial in range(400):
        gains = {str(i): spread(0.0, 10, 1000 * trial + i) for i in range(8)}
        refused += any(harm.is_harmed for harm in find_harm(gains, margin=0.05, alpha=0.05))

    assert refused / 400 < 0.085


def test_a_loss_within_the_margin_is_no_harm() -> None:
    gains = {"a": [-0.02, -0.021, -0.019] * 10}

    (harm,) = find_harm(gains, margin=0.05, alpha=0.05)

    assert not harm.is_harmed
    assert harm.is_non_inferior
    assert harm.p_worse < 0.001


def test_what_is_not_shown_is_not_claimed() -> None:
    """Few families: neither harmed nor shown to be safe."""
    (harm,) = find_harm({"a": [0.9, -1.0, 0.4, -0.2]}, margin=0.05, alpha=0.05)

    assert (harm.is_harmed, harm.is_non_inferior) == (False, False)


def test_holm_goes_step_by_step() -> None:
    """0.01 <= 0.05/3; 0.02 <= 0.05/2; 0.06 > 0.05/1."""
    assert holm({"a": 0.01, "b": 0.02, "c": 0.06}, 0.05) == {"a", "b"}
    assert holm({"a": 0.02, "b": 0.02, "c": 0.02}, 0.05) == set()
    assert holm({}, 0.05) == set()


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=6))
def test_holm_rejects_no_more_than_no_correction_and_no_less_than_bonferroni(p) -> None:
    rejected = holm(p, 0.05)

    assert rejected <= {name for name, value in p.items() if value <= 0.05}
    assert rejected >= {name for name, value in p.items() if value <= 0.05 / len(p)}


def test_slices_follow_the_report_or_the_names() -> None:
    gains = {f"tmy3-{station}/week-{i:02d}": 0.1 for station in "ab" for i in range(6)}
    assert {name: len(v) for name, v in slices_of(gains).items()} == {"tmy3-a": 6, "tmy3-b": 6}
    named = dict.fromkeys(list(gains)[:7], "coast")
    assert {n: len(v) for n, v in slices_of(gains, named).items()} == {"coast": 7, "tmy3-b": 5}


def test_small_slices_are_joined_and_one_slice_is_none() -> None:
    gains = {
        f"{station}/{i}": 0.1 for station, n in (("a", 8), ("b", 2), ("c", 1)) for i in range(n)
    }
    assert {name: len(v) for name, v in slices_of(gains).items()} == {"a": 8, "others": 3}
    assert slices_of({f"a/{i}": 0.1 for i in range(9)}) == {}
    assert slices_of({f"week-{i}": 0.1 for i in range(9)}) == {}


def test_the_prefix_of_a_family() -> None:
    assert prefix_of("tmy3-723170/week-07") == "tmy3-723170"
    assert prefix_of("soup/a.csv#12") == "soup/a.csv"
    assert prefix_of("trajectory-7") == "others"
