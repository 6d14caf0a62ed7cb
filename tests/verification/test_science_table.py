"""What counts as a shortfall, what as a known one, and what as a defect that must fail."""

import numpy as np
import pytest

from scf.verification.reference_systems import GaussianField, GaussianMixture
from scf.verification.science_cases import Target
from scf.verification.science_figures import measure_case
from scf.verification.science_table import CHECKS, is_right, rows_of, summary_of, table_lines
from support.science import Exact, gaussian_case

ASKED = Target("score_error@0.1", 0.1, known=0.2)


class WrongSign(Exact):
    """Trained upside down, as a library once shipped it: energy and score with the wrong sign."""

    def energy(self, x, sigma):
        return -super().energy(x, sigma)

    def score(self, x, sigma):
        return -super().score(x, sigma)


class Noise(Exact):
    """Right energies, and a sampler that draws noise of the right spread."""

    def sample(self, n, *, steps, langevin_steps, seed):
        x = super().sample(n, steps=steps, langevin_steps=langevin_steps, seed=seed)
        return np.random.default_rng(seed).normal(x.mean(), 3 * x.std(), size=x.shape)


def verdicts(model, system, case=None) -> dict[str, str]:
    case = case or gaussian_case(targets=())
    rows = rows_of(case, measure_case(model, case, system, seed=0).figures)
    return {row["figure"]: row["verdict"] for row in rows}


@pytest.mark.parametrize("system", [GaussianField.power_law(6), GaussianMixture.ring()])
def test_the_truth_is_sound(system) -> None:
    assert set(verdicts(Exact(system), system).values()) == {"sound"}


@pytest.mark.parametrize("system", [GaussianField.power_law(6), GaussianMixture.ring()])
def test_a_wrong_sign_is_a_defect(system) -> None:
    found = verdicts(WrongSign(system), system)
    assert found["score_cosine_min"] == found["energy_correlation_min"] == "DEFECT"


@pytest.mark.parametrize("system", [GaussianField.power_law(6), GaussianMixture.ring()])
def test_a_broken_sampler_is_a_defect(system) -> None:
    assert verdicts(Noise(system), system) == {
        "score_cosine_min": "sound",
        "energy_correlation_min": "sound",
        "sampler_distance": "DEFECT",
    }


@pytest.mark.parametrize(
    ("value", "verdict", "right"),
    [
        (0.09, "met", True),
        (0.15, "short, known", True),
        (0.25, "SHORT", False),
        (float("nan"), "DEFECT", False),
    ],
)
def test_a_figure_is_met_or_known_or_short(value: float, verdict: str, right: bool) -> None:
    """A documented shortfall reads as such, no further than it is documented."""
    rows = rows_of(gaussian_case(targets=(ASKED,)), {"score_error@0.1": value})
    assert [row["verdict"] for row in rows] == [verdict]
    assert is_right(rows) is right
    assert [row["met"] for row in rows] == [verdict == "met"]


def test_without_a_documented_shortfall_a_miss_is_short() -> None:
    plain = gaussian_case(targets=(Target("ess@1", 0.9, at_least=True),))
    assert rows_of(plain, {"ess@1": 0.89})[0]["verdict"] == "SHORT"


def test_a_figure_that_is_no_number_is_none() -> None:
    (row,) = rows_of(gaussian_case(targets=(ASKED,)), {"score_error@0.1": float("inf")})
    assert (row["measured"], row["met"]) == (None, False)
    assert "none" in table_lines({"table": [row], "systems": []})[1]


def test_the_summary_counts_each_verdict() -> None:
    figures = {"score_error@0.1": 0.15} | {check.figure: 1.0 for check in CHECKS}
    table = rows_of(gaussian_case(targets=(ASKED,)), figures)
    assert summary_of(table) == (
        "1 figures: 0 met, 1 short as docs/science.md says, 0 SHORT beyond it; "
        "3 checks: 2 sound, 1 DEFECT"
    )
