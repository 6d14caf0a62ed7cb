import numpy as np
import pytest

from scf.models.frame import (
    Frame,
    LinearGaussian,
    Moments,
    NonFiniteField,
    TooFewFossils,
    ZeroVariance,
)
from scf.models.record import FieldLayout, RecordLayout
from support.gaussian_records import COVARIANCE, MEAN, POINT, gaussian_points

TWO_UNITS = RecordLayout.of(
    [
        FieldLayout("a", "float64", (2,), "W/m2"),
        FieldLayout("b", "float64", (2,), "W/m2"),
        FieldLayout("t", "float64", (1,), "degC"),
    ]
)


def moments_of(layout: RecordLayout, x: np.ndarray, c: np.ndarray | None = None) -> Moments:
    moments = Moments(layout)
    moments.add(x, np.zeros((len(x), 0)) if c is None else c)
    return moments


def test_fields_of_one_unit_share_one_scale() -> None:
    """The scale of a unit is the root of its mean variance, so noise is isotropic in that unit."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 5)) * [1.0, 2.0, 3.0, 4.0, 10.0]
    frame = Frame.of(moments_of(TWO_UNITS, x))
    assert len(set(frame.scale_D[:4])) == 1
    assert frame.scale_D[0] == pytest.approx(np.sqrt(7.5), rel=0.05)
    assert frame.scale_D[4] == pytest.approx(10.0, rel=0.05)


def test_there_and_back_is_exact() -> None:
    """Large offsets survive the change of coordinates in float64."""
    x = gaussian_points(100) + 1e6
    frame = Frame.of(moments_of(POINT, x))
    np.testing.assert_allclose(frame.to_data(frame.to_model(x)), x, rtol=0, atol=1e-9)


def test_moments_do_not_lose_digits_to_a_large_offset() -> None:
    """Variance about a mean of 1e8 comes out right."""
    x = gaussian_points(5000)
    near, far = (Frame.of(moments_of(POINT, x + offset)) for offset in (0.0, 1e8))
    np.testing.assert_allclose(far.scale_D, near.scale_D, rtol=1e-6)


def test_gaussian_is_the_data_s() -> None:
    """Mean and covariance of 20,000 points come back within sampling error."""
    moments = moments_of(POINT, gaussian_points(20_000))
    frame = Frame.of(moments)
    fitted = LinearGaussian.fit(moments, frame)
    scale = frame.scale_D[0]
    covariance = scale**2 * (fitted.vectors_DD * fitted.variance_D) @ fitted.vectors_DD.T
    np.testing.assert_allclose(covariance, COVARIANCE, atol=0.06)
    np.testing.assert_allclose(frame.shift_D, MEAN, atol=0.05)


def test_small_eigenvalues_are_not_believed_too_small() -> None:
    """40 numbers from 100 records: sample eigenvalues fall to a tenth of the truth, ours do not."""
    layout = RecordLayout.of([FieldLayout("x", "float64", (40,), "m")])
    x = np.random.default_rng(0).normal(size=(100, 40))
    moments = moments_of(layout, x)
    fitted = LinearGaussian.fit(moments, Frame.of(moments))
    naive = np.linalg.eigvalsh(np.cov(x.T))
    assert naive.min() < 0.2
    assert fitted.variance_D.min() > 0.6


def test_what_is_given_explains_what_it_can() -> None:
    """z = 3 c + noise: the slope is found and the variance left is the noise's."""
    rng = np.random.default_rng(0)
    c = rng.normal(size=(4000, 1))
    x = 3 * c + 0.5 * rng.normal(size=(4000, 1))
    layout = RecordLayout.of(
        [FieldLayout("c", "float64", (1,), "1"), FieldLayout("x", "float64", (1,), "m")], ["c"]
    )
    moments = moments_of(layout, x, c)
    frame = Frame.of(moments)
    fitted = LinearGaussian.fit(moments, frame)
    left = fitted.variance_D[0] * frame.scale_D[0] ** 2
    assert left == pytest.approx(0.25, rel=0.1)


def test_hours_that_never_move_stay_still() -> None:
    """An element that is constant (radiation at midnight) has variance zero, and nothing breaks."""
    x = gaussian_points(500)
    still = np.concatenate([x, np.zeros((500, 1))], axis=1)
    layout = RecordLayout.of([FieldLayout("x", "float64", (3,), "m")])
    moments = moments_of(layout, still)
    fitted = LinearGaussian.fit(moments, Frame.of(moments))
    assert (fitted.variance_D == 0).sum() == 1


def test_a_field_without_variance_is_named() -> None:
    """A field that is the same in every record cannot be modelled."""
    x = np.concatenate(
        [np.random.default_rng(0).normal(size=(50, 4)), np.full((50, 1), 7.1)], axis=1
    )
    with pytest.raises(ZeroVariance, match="t has one value"):
        Frame.of(moments_of(TWO_UNITS, x))


def test_too_few_records_are_refused() -> None:
    """Three records are no density."""
    with pytest.raises(TooFewFossils, match="3 fossils"):
        Frame.of(moments_of(POINT, gaussian_points(3)))


def test_numbers_that_are_not_finite_are_named() -> None:
    """A NaN is refused with the name of its field, never averaged away."""
    x = gaussian_points(10)
    x[4, 1] = np.nan
    with pytest.raises(NonFiniteField, match="'x'"):
        moments_of(POINT, x)
