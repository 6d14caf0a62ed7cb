"""The XY lattice against transfer matrices of narrow strips: quadrature, no random numbers."""

import numpy as np
import pytest

from scf.verification.reference_xy import XYLattice, _log_i0, _mean_direction

BETA = 0.7


def strip_log_z(
    length: int, beta: float, *, twist: float = 0.0, fields: np.ndarray | None = None, num: int = 24
) -> float:
    """ln Z of a strip two sites wide and `length` long, by quadrature over `num` angles a site.

    With `twist`, each bond along the strip is cos(a - b + twist). With `fields` (length, 2), complex,
    each site has a field. Smooth periodic integrands: the error falls exponentially with `num`.
    """
    angle = 2 * np.pi * np.arange(num) / num
    one, two = (part.reshape(-1) for part in np.meshgrid(angle, angle, indexing="ij"))
    along = np.exp(
        beta * np.cos(one[:, None] - one + twist) + beta * np.cos(two[:, None] - two + twist)
    )
    total, log_scale = np.eye(num**2), 0.0
    for row in range(length):
        here = 2 * beta * np.cos(one - two)  # two bonds: to the right, and round the edge
        if fields is not None:
            here = here + (np.conj(fields[row, 0]) * np.exp(1j * one)).real
            here = here + (np.conj(fields[row, 1]) * np.exp(1j * two)).real
        total = total @ (along * np.exp(here - here.max())) * (2 * np.pi / num) ** 2
        scale = np.abs(total).max()
        total, log_scale = total / scale, log_scale + np.log(scale) + here.max()
    return float(np.log(np.trace(total)) + log_scale)


def test_log_z_of_a_strip() -> None:
    """Within four of its own standard errors, and these are small."""
    found = XYLattice((4, 2), BETA).with_log_z(np.random.default_rng(0), chains=2000, levels=40)
    assert 0 < found.log_z_error < 0.02
    assert abs(found.log_z - strip_log_z(4, BETA)) < 4 * found.log_z_error


def test_samples_have_the_strip_s_energy_and_helicity() -> None:
    """Against derivatives of ln Z: by beta, and twice by a twist. Within four standard errors."""
    system = XYLattice((4, 2), BETA)
    found = system.observables(system.sample(2048, np.random.default_rng(1)))
    step, sites = 1e-3, 8
    slope = (strip_log_z(4, BETA + step) - strip_log_z(4, BETA - step)) / (2 * step)
    _expect(found["bond_energy"], -slope / sites)
    # d^2 ln Z / d twist^2 = -beta <sum cos> + beta^2 <(sum sin)^2> = -beta sites Y, along the strip.
    step = 0.02
    bend = (
        strip_log_z(4, BETA, twist=step)
        + strip_log_z(4, BETA, twist=-step)
        - 2 * strip_log_z(4, BETA)
    ) / step**2
    along = -bend / (BETA * sites)
    x = system.sample(2048, np.random.default_rng(2))
    down = _helicity(system, x, axis=1)
    _expect(down, along)
    both = 0.5 * (down + _helicity(system, x, axis=2))
    np.testing.assert_allclose(system.observables(x)["helicity"], both, atol=1e-12)


def _helicity(system: XYLattice, x: np.ndarray, axis: int) -> np.ndarray:
    """By its definition, with angles, along one axis."""
    theta = np.arctan2(x[:, 1], x[:, 0])
    gap = theta - np.roll(theta, -1, axis=axis)
    return (np.cos(gap).sum(axis=(1, 2)) - system.beta * np.sin(gap).sum(axis=(1, 2)) ** 2) / theta[
        0
    ].size


def _expect(values: np.ndarray, exact: float) -> None:
    error = values.std() / np.sqrt(len(values))
    assert error < 0.03
    assert abs(values.mean() - exact) < 4 * error


def test_cluster_moves_leave_the_density_as_it_is() -> None:
    """Cluster moves alone, begun with exact draws of a strip, keep its energy; and they move."""
    system, rng = XYLattice((4, 4), 1.2), np.random.default_rng(3)
    x = system.sample(2048, rng)
    theta = np.arctan2(x[:, 1], x[:, 0])
    moved = theta
    for _ in range(5):
        moved = system._reflect(moved, rng)
    before, after = (
        system.observables(np.stack([np.cos(t), np.sin(t)], axis=1)) for t in (theta, moved)
    )
    for name, values in before.items():
        error = np.hypot(values.std(), after[name].std()) / np.sqrt(len(values))
        assert abs(values.mean() - after[name].mean()) < 4 * error
    assert np.abs(np.exp(1j * theta) - np.exp(1j * moved)).mean() > 0.3


@pytest.mark.parametrize("sigma", [0.3, 0.6, 1.5])
def test_the_smoothed_energy_of_a_strip(sigma: float) -> None:
    """Against the transfer matrix in the field of the record, within the errors that are stated."""
    rng = np.random.default_rng(4)
    system = XYLattice((4, 2), BETA, log_z=strip_log_z(4, BETA))
    y = system.sample(4, rng) + sigma * rng.standard_normal((4, 2, 4, 2))
    found = system.smoothed(y, sigma, rng, chains=400, levels=32)
    for record, energy, error in zip(y, found.energy, found.energy_error, strict=True):
        fields = (record[0] + 1j * record[1]) / sigma**2
        log_outside = -((record**2).sum() + 8) / (2 * sigma**2) - 8 * np.log(2 * np.pi * sigma**2)
        exact = system.log_z - log_outside - strip_log_z(4, BETA, fields=fields)
        assert error < 0.08
        assert abs(energy - exact) < 4 * error + 1e-3


def test_the_score_is_the_slope_of_the_exact_energy() -> None:
    """Central differences of the strip's transfer matrix, within four standard errors."""
    rng, sigma, step = np.random.default_rng(5), 0.6, 1e-4
    system = XYLattice((4, 2), BETA)
    y = system.sample(1, rng) + sigma * rng.standard_normal((1, 2, 4, 2))
    found = system.smoothed(y, sigma, rng, chains=2000)
    for channel, row, column in ((0, 0, 0), (1, 2, 1)):
        log_p = []
        for side in (-step, step):
            moved = y[0].copy()
            moved[channel, row, column] += side
            fields = (moved[0] + 1j * moved[1]) / sigma**2
            log_p.append(strip_log_z(4, BETA, fields=fields) - (moved**2).sum() / (2 * sigma**2))
        place = (0, channel, row, column)
        error = found.score_error[place]
        assert error < 0.05
        assert abs(found.score[place] - (log_p[1] - log_p[0]) / (2 * step)) < 4 * error + 1e-3


def test_stated_errors_are_the_spread_of_repeated_estimates() -> None:
    """Thirty annealings of one record: their spread is what each says of itself, within a third."""
    rng = np.random.default_rng(6)
    system = XYLattice((4, 4), 0.8)
    y = system.sample(1, rng) + 0.5 * rng.standard_normal((1, 2, 4, 4))
    found = system.smoothed(np.repeat(y, 60, axis=0), 0.5, rng)
    stated = np.sqrt((found.energy_error**2).mean())
    assert 0.67 < found.energy.std() / stated < 1.5


def test_bessel_functions() -> None:
    """ln I_0 and I_1/I_0 against their series, and where the formula changes."""
    np.testing.assert_allclose(_log_i0(np.array([0.0, 2.0])), [0.0, np.log(np.i0(2.0))], atol=1e-12)
    assert _log_i0(np.array([400.0]))[0] == pytest.approx(np.log(np.i0(400.0)), abs=1e-9)
    h = np.array([1e-3, 0.5, 5.0, 39.9, 40.1, 300.0])
    step = 1e-4
    slope = (_log_i0(h + step) - _log_i0(h - step)) / (2 * step)
    np.testing.assert_allclose(np.abs(_mean_direction(h + 0j)), slope, atol=1e-6)


def test_on_the_circles_there_is_no_density() -> None:
    system = XYLattice()
    with pytest.raises(ValueError, match="circles"):
        system.smoothed(np.ones((1, 2, 6, 6)), 0.0, np.random.default_rng(0))
