import numpy as np
import pytest

from scf.models.physics import constraints_named
from scf.models.record import FieldLayout, RecordLayout
from scf.verification.physics_checks import check_physics, mean_residual
from support.gaussian_records import solar_days


def test_residuals_are_in_the_constraint_s_unit() -> None:
    """Days that close have none; 24 W/m2 added to one hour of each is 1 W/m2 in the mean."""
    days, units = solar_days(20)
    layout = RecordLayout.of(
        [FieldLayout(n, "float32", (24,), units[n]) for n in days], ["cos_zenith"]
    )
    (closure,) = constraints_named(["closure"])
    x, c = layout.pack(days)
    off = x.copy()
    off[:, layout.slices()["ghi"].start + 3] += 24.0
    assert mean_residual(closure, layout, x, c) < 1e-4
    assert mean_residual(closure, layout, off, c) == pytest.approx(1.0, abs=1e-3)


def test_nothing_is_asked_that_the_data_do_not_show() -> None:
    """Samples are held to the tolerance, or to the real records where these are worse."""
    days, units = solar_days(20)
    layout = RecordLayout.of(
        [FieldLayout(n, "float32", (24,), units[n]) for n in days], ["cos_zenith"]
    )
    x, c = layout.pack(days)
    wild = x.copy()
    wild[:, layout.slices()["ghi"]] += 100.0
    closure = constraints_named(["closure"])
    verdicts = [
        check_physics(closure, layout, (real, c), (sampled, c))["closure"]["ok"]
        for real, sampled in ((x, x), (x, wild), (wild, wild))
    ]
    assert verdicts == [True, False, True]
    assert np.isfinite(check_physics(closure, layout, (x, c), (wild, c))["closure"]["sampled"])
