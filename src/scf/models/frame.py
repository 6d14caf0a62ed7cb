"""The data's own coordinates and the model's: shift, scale, and the Gaussian that fits the data.

The model works on z = (x - shift) / scale. The shift may differ for each number; the scale is one
for all fields of a unit, so that noise is isotropic in that unit: with a single unit, sigma in the
data's units is scale * (sigma of the model), exactly. Everything here is float64 on the CPU; the
model gets float32 after the large offsets (a pressure of 1013 hPa) are gone.

The Gaussian is linear-Gaussian in the given numbers c:  z | c ~ N(B c, C). Its eigenvalues are
cross-validated (Bartz 2016, arXiv 1611.00798): with D = 192 numbers and 900 records the sample
covariance is far too sure of its small eigenvalues.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scf.core.errors import InputError
from scf.models.images import place_images
from scf.models.record import PERIODIC, Floats, RecordLayout

# Above this many numbers the full covariance (and its eigenvectors) costs more than it gives.
FULL_COVARIANCE_SIZE_MAX = 1536

_FOLDS = 4


class ZeroVariance(InputError):
    """A field is the same in every record: it has no density and no scale."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(
            f"zero variance: {', '.join(names)} has one value in every record",
            remedy="Leave the field out, or name it in params.condition_fields.",
        )


class TooFewFossils(InputError):
    """A density cannot be learned from this many records."""

    def __init__(self, found: int) -> None:
        super().__init__(
            f"{found} fossils to train on; at least {FOSSILS_MIN} are needed",
            remedy="Ingest more fossils, or check that the paths name the right files.",
        )


FOSSILS_MIN = 8


class NonFiniteField(InputError):
    """A record holds NaN or an infinity."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"field {name!r} holds a number that is not finite",
            remedy="Validate the fossils with `scf fossil validate`; such records cannot be used.",
        )


@dataclass(frozen=True)
class Symmetry:
    """What leaves the density as it is.

    Attributes:
        translation: Shifting all fields along their periodic grid.
        sign: Changing the sign of all modelled numbers.
        rotation: Turning and reflecting the grid (`models/images.py`).
    """

    translation: bool = False
    sign: bool = False
    rotation: bool = False


def waves_of(layout: RecordLayout) -> tuple[int, ...] | None:
    """The grid whose waves are the eigenvectors of fields that are the same everywhere, or None."""
    shape = layout.site_shape
    is_closed = shape is not None and len(shape) <= 3 and layout.boundary == PERIODIC
    return shape if is_closed else None


class Moments:
    """Running sums of records, for shift, scale and covariance, in one pass and small memory.

    Records are dealt to folds in turn, so that eigenvalues can be cross-validated.
    """

    def __init__(self, layout: RecordLayout) -> None:
        self.layout = layout
        self.symmetry = Symmetry()
        self.size = layout.size + layout.given_size
        self.is_full = self.size <= FULL_COVARIANCE_SIZE_MAX
        shape = (_FOLDS, self.size, self.size) if self.is_full else (_FOLDS, self.size)
        self.count = np.zeros(_FOLDS, dtype=np.int64)
        self.total = np.zeros((_FOLDS, self.size))
        self.square = np.zeros(shape)
        # Of large fields on a periodic grid: products of channels at each wave vector.
        self.waves = None if self.is_full else waves_of(layout)
        channels = len(layout.modelled)
        sites = int(np.prod(self.waves)) if self.waves else 0
        self.power_FSCC = np.zeros((_FOLDS, sites, channels, channels))
        self.low = np.full(self.size, np.inf)
        self.high = np.full(self.size, -np.inf)
        self._origin: Floats | None = None

    def add(self, x_BD: Floats, c_BK: Floats) -> None:
        """Take in records.

        Raises:
            NonFiniteField: names the field.
        """
        joint = np.concatenate([x_BD, c_BK], axis=1)
        if not np.isfinite(joint).all():
            raise NonFiniteField(self._name_of(int(np.argmin(np.isfinite(joint).all(axis=0)))))
        if self._origin is None:
            # Sums are taken about the first record: large offsets would eat the digits otherwise.
            self._origin = joint[0].copy()
        self.low = np.minimum(self.low, joint.min(axis=0))
        self.high = np.maximum(self.high, joint.max(axis=0))
        centred = joint - self._origin
        fold_B = (int(self.count.sum()) + np.arange(len(joint))) % _FOLDS
        for fold in range(_FOLDS):
            part = centred[fold_B == fold]
            self.count[fold] += len(part)
            self.total[fold] += part.sum(axis=0)
            self.square[fold] += part.T @ part if self.is_full else np.square(part).sum(axis=0)
            if self.waves is not None and len(part):
                h_BCS = self._hartley(part[:, : self.layout.size])
                self.power_FSCC[fold] += np.einsum("bcs,bds->scd", h_BCS, h_BCS, optimize=True)

    def _hartley(self, rows: Floats) -> Floats:
        """Hartley's transform of each field over the grid, (B, C, S)."""
        assert self.waves is not None
        axes = tuple(range(2, 2 + len(self.waves)))
        modes = np.fft.fftn(rows.reshape(len(rows), -1, *self.waves), axes=axes, norm="ortho")
        h: Floats = (modes.real - modes.imag).reshape(len(rows), modes.shape[1], -1)
        return h

    def waves_second(self) -> Floats:
        """Covariance of the channels at each wave vector, (S, C, C), of fields alike everywhere.

        That a wave and its opposite have the same matrix is taken for granted: what two channels
        have in common at a shift, and not at the opposite one, is left to the network.
        """
        assert self.waves is not None
        assert self._origin is not None
        count = self.count.sum()
        offset = (self.mean() - self._origin)[None, : self.layout.size]
        total = self.total.sum(axis=0)[None, : self.layout.size]
        h_offset, h_mean = self._hartley(offset)[0], self._hartley(total)[0] / count
        second = self.power_FSCC.sum(axis=0) / count
        cross = np.einsum("cs,ds->scd", h_mean, h_offset)
        second = second - cross - cross.transpose(0, 2, 1)
        second = second + np.einsum("cs,ds->scd", h_offset, h_offset)
        sites = second.shape[0]
        grid = np.arange(sites).reshape(self.waves)
        axes = tuple(range(len(self.waves)))
        opposite = np.roll(np.flip(grid, axes), 1, axes).ravel()
        even: Floats = (second + second[opposite]) / 2
        return even

    def _name_of(self, column: int) -> str:
        places = self.layout.slices()
        places |= {
            name: slice(self.layout.size + at.start, self.layout.size + at.stop)
            for name, at in self.layout.slices(given=True).items()
        }
        return next(name for name, at in places.items() if at.start <= column < at.stop)

    def mean(self) -> Floats:
        """Mean of every number, under the symmetries that are taken for granted."""
        assert self._origin is not None
        mean: Floats = self._origin + self.total.sum(axis=0) / self.count.sum()
        if self.symmetry.translation:
            mean = _stationary_mean(mean, self.layout)
        if self.symmetry.rotation:
            images = place_images(self.layout)
            mean[: self.layout.size] = np.mean([mean[at] for at in images], axis=0)
        if self.symmetry.sign:
            mean[: self.layout.size] = 0.0
        return mean

    def second(self, folds: Iterable[int] = range(_FOLDS)) -> tuple[int, Floats]:
        """Count, and mean of (v - mean)(v - mean)^T (or its diagonal) over some folds.

        The mean subtracted is that of all folds. Where translations are a symmetry, the mean over
        all of them as well: with S sites the estimate is as good as from up to S times the records.
        """
        assert self._origin is not None
        chosen = list(folds)
        count = int(self.count[chosen].sum())
        total = self.total[chosen].sum(axis=0)
        offset = self.mean() - self._origin
        square = self.square[chosen].sum(axis=0)
        if self.is_full:
            cross = np.outer(total, offset)
            second = (square - cross - cross.T) / count + np.outer(offset, offset)
            if self.symmetry.translation:
                second = _stationary_second(second, self.layout)
            if self.symmetry.rotation:
                images = place_images(self.layout)
                second = np.mean([second[np.ix_(at, at)] for at in images], axis=0)
            return count, second
        second = (square - 2 * total * offset) / count + offset * offset
        if self.symmetry.translation:
            second = _stationary_mean(second, self.layout)
        if self.symmetry.rotation:
            second = np.mean([second[at] for at in place_images(self.layout)], axis=0)
        return count, second

    def looks_stationary(self) -> bool:
        """Whether means and variances are the same at all sites, as far as the records can tell.

        Five standard errors of independent records. Records of a few long trajectories may fail for
        being fewer than they look; the answer is then the safe one.
        """
        if self.layout.site_shape is None:
            return False
        plain = Moments.__new__(Moments)
        plain.__dict__ = {**self.__dict__, "symmetry": Symmetry()}
        size, count = self.layout.size, int(self.count.sum())
        mean, variance = plain.mean()[:size], _diagonal(plain.second()[1])[:size]
        level = _stationary_mean(np.concatenate([variance, np.zeros(self.layout.given_size)]),
                                 self.layout)[:size]  # fmt: skip
        middle = _stationary_mean(plain.mean(), self.layout)[:size]
        if not (level > 0).all():
            return False
        away = np.abs(mean - middle) / np.sqrt(level / count)
        wider = np.abs(variance / level - 1) / np.sqrt(4.0 / count)
        return bool(away.max() < 5 and wider.max() < 5)


@dataclass(frozen=True)
class Frame:
    """The change of coordinates between the data and the model.

    Attributes:
        shift_D: Mean of each modelled number, in its unit.
        scale_D: Scale of its unit group: root of the mean variance of the group's numbers.
        variance_D: Variance of each modelled number in units of scale^2: the simplest baseline.
        given_shift_K: Mean of each given number.
        given_scale_K: Scale of each given field (1 where it never changes).
    """

    shift_D: Floats
    scale_D: Floats
    variance_D: Floats
    given_shift_K: Floats
    given_scale_K: Floats

    @classmethod
    def of(cls, moments: Moments) -> "Frame":
        """Shift and scale from the training records.

        Raises:
            TooFewFossils: There are too few records.
            ZeroVariance: A modelled field never changes.
        """
        if moments.count.sum() < FOSSILS_MIN:
            raise TooFewFossils(int(moments.count.sum()))
        layout = moments.layout
        mean = moments.mean()
        variance = _diagonal(moments.second()[1]).clip(min=0.0)
        # Equality of extremes, not a small variance, tells a constant: rounding cannot fake it.
        moving = moments.high > moments.low
        variance = np.where(moving, variance, 0.0)
        places = layout.slices()
        if still := [name for name, at in places.items() if not moving[: layout.size][at].any()]:
            raise ZeroVariance(still)
        scale_D = np.ones(layout.size)
        for unit in layout.units:
            columns = np.concatenate(
                [np.arange(layout.size)[places[f.name]] for f in layout.modelled if f.unit == unit]
            )
            scale_D[columns] = np.sqrt(variance[columns].mean())
        given_scale_K = np.ones(layout.given_size)
        for at in layout.slices(given=True).values():
            spread = variance[layout.size :][at].mean()
            given_scale_K[at] = np.sqrt(spread) if spread > 0 else 1.0
        return cls(
            shift_D=mean[: layout.size],
            scale_D=scale_D,
            variance_D=variance[: layout.size] / np.square(scale_D),
            given_shift_K=mean[layout.size :],
            given_scale_K=given_scale_K,
        )

    def to_model(self, x_BD: Floats) -> Floats:
        """Give z = (x - shift) / scale."""
        z: Floats = (x_BD - self.shift_D) / self.scale_D
        return z

    def to_data(self, z_BD: Floats) -> Floats:
        """Give x = shift + scale z."""
        x: Floats = self.shift_D + self.scale_D * z_BD
        return x

    def given_to_model(self, c_BK: Floats) -> Floats:
        c: Floats = (c_BK - self.given_shift_K) / self.given_scale_K
        return c

    @property
    def log_jacobian(self) -> float:
        """Give ln |dx/dz|: added to an energy of z (nats) to make it an energy of x."""
        return float(np.log(self.scale_D).sum())

    def arrays(self) -> dict[str, Floats]:
        """For the checkpoint; `Frame(**arrays)` makes the same frame."""
        return {
            "shift_D": self.shift_D,
            "scale_D": self.scale_D,
            "variance_D": self.variance_D,
            "given_shift_K": self.given_shift_K,
            "given_scale_K": self.given_scale_K,
        }


@dataclass(frozen=True)
class LinearGaussian:
    """z | c ~ N(B c, Q diag(variance) Q^T), in the model's coordinates.

    Attributes:
        slope_DK: B. Zero where the given numbers say nothing (or D is too large for a full fit).
        vectors_DD: Q, columns are eigenvectors; None stands for the unit matrix.
            Where `mixing_SCC` is there, they are waves.
        variance_D: Eigenvalues, >= 0. Zero where the data never move (radiation at midnight).
    """

    slope_DK: Floats
    vectors_DD: Floats | None
    variance_D: Floats
    mixing_SCC: Floats | None = None

    @classmethod
    def fit(cls, moments: Moments, frame: Frame) -> "LinearGaussian":
        size, given_size = moments.layout.size, moments.layout.given_size
        unit = np.concatenate([frame.scale_D, frame.given_scale_K])
        if moments.waves is not None and moments.symmetry.translation:
            sites = int(np.prod(moments.waves))
            unit_C = frame.scale_D[::sites]
            variance_SC, mixing_SCC = np.linalg.eigh(
                moments.waves_second() / np.outer(unit_C, unit_C)
            )
            variance = variance_SC.clip(min=0.0).ravel()
            return cls(np.zeros((size, given_size)), None, variance, mixing_SCC)
        if not moments.is_full:
            variance = moments.second()[1][:size].clip(min=0.0) / np.square(unit[:size])
            return cls(np.zeros((size, given_size)), None, variance)
        grid = np.outer(unit, unit)
        slope_DK, residual_DD = _regress(moments.second()[1] / grid, size)
        _, vectors_DD = np.linalg.eigh(residual_DD)
        # Cross-validation: eigenvectors and slope from three folds, variance along them in the
        # fourth. The mean over folds, made monotone, goes to the eigenvectors of all the data.
        unseen_D = np.zeros(size)
        for fold in range(_FOLDS):
            seen = [other for other in range(_FOLDS) if other != fold]
            slope, residual = _regress(moments.second(seen)[1] / grid, size)
            _, vectors = np.linalg.eigh(residual)
            test = _residual(moments.second([fold])[1] / grid, slope, size)
            unseen_D += np.einsum("di,de,ei->i", vectors, test, vectors, optimize=True) / _FOLDS
        variance_D = _monotone(unseen_D.clip(min=0.0))
        # Directions that no record moves in stay exactly still.
        still = moments.high[:size] == moments.low[:size]
        variance_D[np.square(vectors_DD[still]).sum(axis=0) > 1 - 1e-9] = 0.0
        return cls(slope_DK, vectors_DD, variance_D)


def _regress(second: Floats, size: int) -> tuple[Floats, Floats]:
    """Ridge regression of z on c from their joint second moments: slope and residual covariance."""
    given = second[size:, size:]
    if len(given) == 0:
        return np.zeros((size, 0)), second[:size, :size]
    # One per cent of the mean variance: neighbouring hours of cos_zenith are nearly the same
    # number.
    ridge = 0.01 * max(float(np.trace(given)) / len(given), 1e-12) * np.eye(len(given))
    slope: Floats = np.linalg.solve(given + ridge, second[size:, :size]).T.astype(np.float64)
    return slope, _residual(second, slope, size)


def _residual(second: Floats, slope: Floats, size: int) -> Floats:
    cross = second[:size, size:] @ slope.T
    given = slope @ second[size:, size:] @ slope.T
    residual: Floats = second[:size, :size] - cross - cross.T + given
    return (residual + residual.T) / 2


def _diagonal(second: Floats) -> Floats:
    return np.diagonal(second).copy() if second.ndim == 2 else second


def _stationary_mean(values: Floats, layout: RecordLayout) -> Floats:
    """Each field's numbers replaced by their mean over sites; fields off the grid stay."""
    result = values.copy()
    for place in _on_grid(layout):
        result[place] = values[place].mean()
    return result


def _stationary_second(second: Floats, layout: RecordLayout) -> Floats:
    """The mean of a second-moment matrix over all translations of the grid.

    Between two fields on the grid that is what is diagonal in Fourier space. Between such a field
    and a number off the grid it is the mean over sites.
    """
    shape = layout.site_shape
    assert shape is not None
    axes = tuple(range(len(shape)))
    sites = int(np.prod(shape))
    grid = _on_grid(layout)
    result = second.copy()
    off = np.ones(len(second), dtype=bool)
    for place in grid:
        off[place] = False
    for row in grid:
        result[row, off] = second[row, off].mean(axis=0)
        result[off, row] = second[off, row].mean(axis=1, keepdims=True)
        for column in grid:
            block = second[row, column].reshape(*shape, *shape)
            modes = np.fft.fftn(block, axes=axes, norm="ortho")
            modes = np.fft.ifftn(modes, axes=[a + len(shape) for a in axes], norm="ortho")
            power = np.diagonal(modes.reshape(sites, sites)).reshape(shape)
            # The power's transform is the covariance of two sites by how far they are apart.
            c = np.fft.ifftn(power).real.reshape(sites)
            result[row, column] = c[_differences(shape)]
    return result


def _differences(shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """Flat index of (row site - column site) on the periodic grid, (S, S)."""
    place = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    place = place.reshape(-1, len(shape))
    apart = (place[:, None] - place[None]) % np.array(shape)
    flat: npt.NDArray[np.int64] = np.ravel_multi_index(tuple(np.moveaxis(apart, -1, 0)), shape)
    return flat


def _on_grid(layout: RecordLayout) -> list[slice]:
    """Where fields on the shared grid lie in a joint row of modelled and given numbers."""
    places = layout.slices()
    found = [places[field.name] for field in layout.modelled]
    given = layout.slices(given=True)
    for field in layout.given:
        if field.shape == layout.site_shape:
            at = given[field.name]
            found.append(slice(layout.size + at.start, layout.size + at.stop))
    return found


def _monotone(values: Floats) -> Floats:
    """The non-decreasing sequence nearest to `values` (pool adjacent violators)."""
    means: list[float] = []
    counts: list[int] = []
    for value in values:
        means.append(float(value))
        counts.append(1)
        while len(means) > 1 and means[-2] > means[-1]:
            mean, count = means.pop(), counts.pop()
            means[-1] = (means[-1] * counts[-1] + mean * count) / (counts[-1] + count)
            counts[-1] += count
    return np.repeat(np.array(means, dtype=np.float64), counts).astype(np.float64)
