import pytest
import torch

from scf.models.physics import BUILT_IN, PhysicsConstraint, constraints_for, constraints_named

ONE_HOUR = {
    "ghi": 510.0, "dni": 800.0, "dhi": 110.0, "cos_zenith": 0.5,
    "temp_air": 20.0, "temp_dew": 21.5, "relative_humidity": 103.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "expected"),
    [("closure", 0.0), ("dew_point_below_air", 1.5), ("below_saturation", 3.0),
     ("night_is_dark", 0.0), ("ghi_not_negative", 0.0)],
)  # fmt: skip
def test_residuals_of_an_hour(name: str, expected: float) -> None:
    """510 = 800 * 0.5 + 110 closes; a dew point 1.5 above the air breaks its bound by 1.5."""
    (constraint,) = constraints_named([name])
    fields = {key: torch.tensor([[value]]) for key, value in ONE_HOUR.items()}
    assert constraint.residual(fields).item() == pytest.approx(expected, abs=1e-4)


def test_light_at_night_is_seen() -> None:
    """20 W/m2 with the sun 10 degrees below the horizon is a residual of 20."""
    (constraint,) = constraints_named(["night_is_dark"])
    fields = {"ghi": torch.tensor([20.0]), "cos_zenith": torch.tensor([-0.17])}
    assert constraint.residual(fields).item() == 20.0


def test_only_fitting_constraints_apply() -> None:
    """Records without humidity are not held to saturation."""
    names = {c.name for c in constraints_for(["ghi", "dni", "dhi", "cos_zenith"])}
    assert "closure" in names
    assert "below_saturation" not in names


def test_linear_constraints_are_linear() -> None:
    """What calls itself linear is: r(x + y) - r(0) = r(x) + r(y) - 2 r(0)."""
    for constraint in BUILT_IN:
        if constraint.is_linear:
            given = {"cos_zenith": torch.rand(3, 4)}
            modelled = [n for n in constraint.needs if n not in given]
            x, y = ({n: torch.randn(3, 4) for n in modelled} for _ in range(2))
            zero = {n: torch.zeros(3, 4) for n in modelled}
            both = {n: x[n] + y[n] for n in modelled}
            r0, rx, ry, rb = (constraint.residual({**f, **given}) for f in (zero, x, y, both))
            torch.testing.assert_close(rb - r0, rx + ry - 2 * r0)


def test_a_constraint_of_one_s_own() -> None:
    """A name, a unit, a function, a tolerance: that is all."""
    mass = PhysicsConstraint(
        name="mass", unit="kg", needs=("rho",), tolerance=0.1,
        residual=lambda fields: fields["rho"].sum(dim=1) - 1,
    )  # fmt: skip
    assert mass.applies_to(["rho", "u"])
    assert mass.residual({"rho": torch.full((1, 4), 0.25)}).item() == 0
