"""Student's t must agree with scipy, which the core does not install."""

import math

import pytest
from scipy import stats

from scf.verification.student_t import quantile, survival


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 19, 22, 155, 5000])
@pytest.mark.parametrize("t", [-40.0, -3.0, -0.1, 0.0, 1e-6, 0.5, 1.7, 6.3, 25.0])
def test_survival_is_scipys(t: float, degrees: float) -> None:
    """P(T > t) has ten digits, far into the tail."""
    assert survival(t, degrees) == pytest.approx(stats.t.sf(t, degrees), rel=1e-10, abs=1e-300)


def test_a_million_families_still_have_eight_digits() -> None:
    """Log-gamma functions of large numbers lose digits; eight remain, which decides anything."""
    assert survival(1.7, 1e6) == pytest.approx(stats.t.sf(1.7, 1e6), rel=1e-8)


@pytest.mark.parametrize("degrees", [1, 2, 5, 19, 22, 155, 4000])
@pytest.mark.parametrize("probability", [0.01, 0.5, 0.9, 0.95, 0.975, 0.999])
def test_quantile_is_scipys(probability: float, degrees: float) -> None:
    """The quantile has nine digits, so that a bound is the bound that a textbook gives."""
    expected = stats.t.ppf(probability, degrees)
    assert quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_textbook_values() -> None:
    """The numbers printed in every table."""
    assert quantile(0.95, 1) == pytest.approx(6.313752, abs=1e-6)
    assert quantile(0.95, 19) == pytest.approx(1.729133, abs=1e-6)


@pytest.mark.parametrize(("t", "degrees"), [(1.0, 0), (1.0, -3), (math.nan, 5)])
def test_nonsense_is_refused(t: float, degrees: float) -> None:
    """No number comes back for a question that has no answer."""
    with pytest.raises(ValueError, match="undefined"):
        survival(t, degrees)
