"""Models in a notebook: `scf.load(path)` and `scf.fit(arrays)`.

    model = scf.fit({"phi": fields}, seconds=60)        # fields: [N, 8, 8]
    model.energy(fields, sigma=0.1)                     # nats, (N,)
    model.sample(16)                                    # [16, 8, 8]

Records are arrays [N, *shape]: the array itself where one field is modelled, a dict of arrays by
field name where there are several. What comes in as torch tensors goes out as torch tensors (on
their device, in their dtype); all else as numpy.

Sigma is the noise level in `sigma_unit` (the data's own unit where all fields share one). An energy
is -ln of the density of the data smoothed by that noise, at the record as it is given.
"""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scf.core.errors import TrainingError, UsageError
from scf.models.frame import NonFiniteField
from scf.models.record import FieldLayout, Floats, LayoutMismatch, RecordLayout
from scf.models.record_energy import RecordEnergy
from scf.storage.partitions import Folder
from scf.training.arrays import ArraySource, as_numpy
from scf.training.checkpoint import load_energy
from scf.training.checkpoint_files import (
    DIGESTS_NAME,
    NEEDED,
    OPTIMIZER_NAME,
    STATE_NAME,
    digests_of,
    find_checkpoint,
    read_config,
)
from scf.training.notes import Notes
from scf.training.train_config import build_config
from scf.training.train_ebdm import train

# Shapes: N records, D modelled numbers, K given numbers.

# The name of the field where an array comes without one.
ONLY_FIELD = "x"
_ROWS_AT_ONCE = 4096
SAMPLERS = ("heun", "smc", "langevin")

Records = Any  # an array or tensor [N, *shape], or a mapping of them by field name


class SamplesNotFinite(TrainingError):
    """A sampler gave NaN or an infinity: its steps are too long for this energy."""

    def __init__(self, num: int, total: int) -> None:
        super().__init__(
            f"{num} of {total} samples are not finite",
            remedy="Take more steps or another sampler, or train with a lower residual_weight.",
        )


@dataclass(frozen=True)
class _Rows:
    """Records, flat, and what their answer should look like."""

    x_ND: Tensor  # float64, with its graph if it had one
    c_NK: Tensor
    like: Tensor | None  # a tensor that came in, or None for numpy

    def answer(self, value: Tensor) -> Any:
        """To the kind that came in."""
        if self.like is None:
            return value.detach().cpu().numpy()
        dtype = self.like.dtype if self.like.is_floating_point() else torch.float32
        return value.to(device=self.like.device, dtype=dtype)


class Model:
    """A trained energy. Made by `scf.load` and `scf.fit`.

    Attributes:
        energies: The same model for flat float64 rows, as the other programs use it.
        default_sigma: Noise level used where none is named, in `sigma_unit`.
        config: `config.json` of its checkpoint: fields, scales, settings, what it was trained on.
        state: `state.json`: steps, seconds, losses on the records that were not trained on.
    """

    def __init__(
        self, energies: RecordEnergy, config: Mapping[str, Any], files: Mapping[str, bytes]
    ) -> None:
        self.energies = energies
        self.config = dict(config)
        self.default_sigma = float(config["score_sigma"])
        self.state: dict[str, Any] = json.loads(files[STATE_NAME])
        self._files = dict(files)

    def __repr__(self) -> str:
        names = ", ".join(f"{f.name}{list(f.shape)} {f.unit}".strip() for f in self.layout.modelled)
        given = ", ".join(field.name for field in self.layout.given)
        low, high = self.sigma_range
        about = f" given {given}" if given else ""
        return f"<scf.Model of {names}{about}; sigma {low:.3g} to {high:.3g} {self.sigma_unit}>"

    @property
    def layout(self) -> RecordLayout:
        """The fields of a record."""
        return self.energies.layout

    @property
    def sigma_unit(self) -> str:
        """The unit of every sigma."""
        return self.energies.sigma_unit

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest trained sigma, in `sigma_unit`."""
        return self.energies.sigma_range

    def energy(
        self, x: Records, sigma: Any = None, *, condition: Mapping[str, Any] | None = None
    ) -> Any:
        """-ln p(x; sigma | condition), nats, (N,). For tensors that require it, with gradient.

        Args:
            x: Records in the data's own units.
            sigma: A number, or one for each record, in `sigma_unit`; default `default_sigma`.
            condition: The given fields, where the model has any and `x` does not hold them:
                [N, *shape], or [*shape] for all records alike.

        Raises:
            LayoutMismatch: The records are of another kind than the model's.
            NonFiniteField: A record holds NaN or an infinity.
            UsageError: Not real numbers, or a sigma that is not above zero.
        """
        rows = self._rows(x, condition)
        sigma_N = self._sigma(sigma, rows)
        is_trained = rows.x_ND.requires_grad and torch.is_grad_enabled()
        parts = []
        with torch.set_grad_enabled(is_trained):
            for z, s, c in self._parts(rows, sigma_N):
                parts.append(self.energies.model.energy(z, s, c).double())
            energy_N = torch.cat(parts) + self.energies.frame.log_jacobian
        return rows.answer(energy_N)

    def log_prob(
        self, x: Records, sigma: Any = None, *, condition: Mapping[str, Any] | None = None
    ) -> Any:
        """Log density ln p(x; sigma | condition), nats, (N,): minus the energy.

        The density is that of the data smoothed by `sigma` (default `default_sigma`, a twentieth of
        the data's scale), and a density over x in the data's own units.
        """
        return -self.energy(x, sigma, condition=condition)

    def score(
        self, x: Records, sigma: Any = None, *, condition: Mapping[str, Any] | None = None
    ) -> Any:
        """-dE/dx, in 1/unit, shaped like the records."""
        rows = self._rows(x, condition)
        sigma_N = self._sigma(sigma, rows)
        found = [self.energies.model.score(*part) for part in self._parts(rows, sigma_N)]
        scale_D = torch.from_numpy(self.energies.frame.scale_D)
        return self._shaped(torch.cat(found).detach().cpu().double() / scale_D, x, rows)

    def denoise(
        self, x: Records, sigma: Any = None, *, condition: Mapping[str, Any] | None = None
    ) -> Any:
        """The mean of the clean records that noisy ones may have come from, shaped like them."""
        rows = self._rows(x, condition)
        sigma_N = self._sigma(sigma, rows)
        found = [self.energies.model.denoise(*part) for part in self._parts(rows, sigma_N)]
        z_ND = torch.cat(found).detach().cpu().double().numpy()
        return self._shaped(torch.from_numpy(self.energies.frame.to_data(z_ND)), x, rows)

    def sample(
        self,
        n: int,
        *,
        steps: int = 32,
        condition: Mapping[str, Any] | None = None,
        sampler: str = "heun",
        langevin_steps: int = 0,
        keep: Mapping[str, float] | Sequence[str] = (),
        keep_sigma: float | None = None,
        keep_moves: int = 0,
        seed: int = 0,
    ) -> Any:
        """`n` records: an array [n, *shape], or a dict of them where there are several fields.

        Args:
            n: How many.
            steps: Noise levels, at least 2.
            condition: What is known, [n, *shape] or [*shape] for all alike. Given fields: without
                them they are those of training records drawn at random, and part of the answer.
                Modelled fields: held as they are, and the rest is drawn given them by
                `models.completion`; NaN marks numbers that are not known (inpainting).
            sampler: `heun` (probability-flow ODE), `smc` (weighted particles, exact as n grows) or
                `langevin` (annealed, unadjusted). Not used where modelled fields are known.
            langevin_steps: After `heun`, Metropolis-adjusted Langevin steps at the smallest trained
                sigma, which turn what the solver got wrong into rejections.
            keep: Laws (names of constraints, built in or registered) that the records are brought
                to at the end, by an implicit draw (`models/restraint.py`). With numbers,
                `keep={"darcy_pressure": 0.01}`: to what standard deviation at each site, in the
                constraint's unit; without, to its tolerance. Known modelled fields stay held.
            keep_sigma: Noise up to which samples are trusted in this, in `sigma_unit`; default a
                tenth of the data's scale.
            keep_moves: Then so many rounds of noise, denoising and a draw under the laws.
            seed: The same seed gives the same records on a CPU.

        Raises:
            LayoutMismatch: A condition that is not a field of the model, or is shaped otherwise.
            UsageError: Numbers out of range, or an unknown sampler.
            SamplesNotFinite: The sampler lost its footing; no number is put in place of a NaN.
            LawsNotKept: Some records could not be brought to the laws in `keep`.
        """
        if n < 1 or steps < 2 or langevin_steps < 0 or keep_moves < 0:
            raise UsageError(
                "sample: n >= 1, steps >= 2, langevin_steps >= 0 and keep_moves >= 0 are needed"
            )
        if keep_sigma is not None and not keep_sigma > 0:
            raise UsageError(f"keep_sigma {keep_sigma} must be above 0")
        if sampler not in SAMPLERS:
            raise UsageError(f"sampler {sampler!r} is not one of {', '.join(SAMPLERS)}")
        condition = dict(condition or {})
        modelled = {field.name for field in self.layout.modelled}
        known = {name: condition.pop(name) for name in list(condition) if name in modelled}
        generator = torch.Generator().manual_seed(seed)
        is_drawn = bool(self.layout.given) and not condition
        given_NK = self.energies.draw_given(n, generator) if is_drawn else self._given(condition, n)
        is_held_ND = None
        if known:
            x_ND, is_held_ND = self._complete(known, given_NK, steps=steps, generator=generator)
        else:
            x_ND, given_NK = self.energies.draw(
                given_NK,
                sampler=sampler,
                steps=steps,
                generator=generator,
                langevin_steps=langevin_steps,
            )
        if not np.isfinite(x_ND).all():
            raise SamplesNotFinite(int((~np.isfinite(x_ND).all(axis=1)).sum()), n)
        if keep:
            x_ND = self.energies.restrain(
                x_ND,
                given_NK,
                keep,
                sigma=keep_sigma,
                moves=keep_moves,
                is_held_ND=is_held_ND,
                generator=generator,
            )
        arrays: dict[str, Any] = dict(self.layout.unpack(x_ND))
        if is_drawn or sampler == "smc":
            arrays |= self.layout.unpack(given_NK, given=True)
        if _a_tensor({**known, **condition}) is not None:
            arrays = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return arrays if len(arrays) > 1 else next(iter(arrays.values()))

    def _complete(
        self,
        known: Mapping[str, Any],
        given_NK: Floats,
        *,
        steps: int,
        generator: torch.Generator,
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Records (N, D) with the known numbers held, the others drawn; which are held (N, D)."""
        num = len(given_NK)
        arrays = {}
        for field in self.layout.modelled:
            array = as_numpy(known.get(field.name, np.nan)).astype(np.float64)
            try:
                arrays[field.name] = np.broadcast_to(array, (num, *field.shape))
            except ValueError:
                raise LayoutMismatch(
                    f"known field {field.name!r} has shape {list(array.shape)}, expected "
                    f"{[num, *field.shape]} or {list(field.shape)}"
                ) from None
        x_ND = self.layout.pack_modelled(arrays)
        is_known_ND = ~np.isnan(x_ND)
        drawn_ND = np.empty_like(x_ND)
        # Records with the same numbers known are completed together.
        patterns, group_N = np.unique(is_known_ND, axis=0, return_inverse=True)
        for index, is_known_D in enumerate(patterns):
            rows = group_N.reshape(-1) == index
            drawn_ND[rows] = self.energies.complete(
                x_ND[rows],
                is_known_D,
                given_NK[rows],
                sigma=self.default_sigma,
                steps=steps,
                generator=generator,
            )
        return drawn_ND, is_known_ND

    def save(self, path: Path | str) -> Path:
        """Write the checkpoint into a folder; `scf.load(path)` and `scf score` read it."""
        out = Folder.at(Path(path))
        for name, data in self._files.items():
            out.write_file(name, data)
        return out.path

    def _rows(self, x: Records, condition: Mapping[str, Any] | None) -> _Rows:
        """Records and given fields as flat float64 tensors."""
        arrays = dict(x) if isinstance(x, Mapping) else self._named(x)
        known = {field.name for field in (*self.layout.modelled, *self.layout.given)}
        if unknown := set(arrays) - known:
            raise LayoutMismatch(f"field {min(unknown)!r} is not one of the model's")
        x_ND = _flatten(arrays, self.layout.modelled)
        given = {**{f.name: arrays[f.name] for f in self.layout.given if f.name in arrays}}
        c_NK = torch.from_numpy(self._given(given | dict(condition or {}), len(x_ND)))
        return _Rows(x_ND, c_NK, _a_tensor(arrays))

    def _named(self, x: Any) -> dict[str, Any]:
        if len(self.layout.modelled) != 1:
            names = ", ".join(field.name for field in self.layout.modelled)
            raise LayoutMismatch(f"the model has several fields: give a dict with {names}")
        return {self.layout.modelled[0].name: x}

    def _given(self, condition: Mapping[str, Any] | None, num: int) -> Floats:
        """Given numbers (num, K), original units; one record's worth is used for all."""
        arrays = {}
        for name, value in (condition or {}).items():
            field = next((f for f in self.layout.given if f.name == name), None)
            if field is None:
                raise LayoutMismatch(f"{name!r} is not a given field of this model")
            array = as_numpy(value)
            is_one = array.shape == field.shape
            arrays[name] = np.broadcast_to(array, (num, *field.shape)) if is_one else array
            if arrays[name].shape != (num, *field.shape):
                raise LayoutMismatch(
                    f"given field {name!r} has shape {list(array.shape)}, expected "
                    f"{[num, *field.shape]} or {list(field.shape)}"
                )
        if missing := [f.name for f in self.layout.given if f.name not in arrays]:
            raise LayoutMismatch(f"given field {missing[0]!r} is missing: name it in `condition`")
        return self.layout.pack_given(arrays, num)

    def _sigma(self, sigma: Any, rows: _Rows) -> Tensor:
        """Sigma of each record in the model's own scale, (N,)."""
        sigma = self.default_sigma if sigma is None else sigma
        _need_real(sigma, "sigma")
        value = torch.from_numpy(np.asarray(as_numpy(sigma)))
        if value.dim() > 1 or (value.dim() == 1 and len(value) != len(rows.x_ND)):
            raise UsageError(f"sigma of shape {list(value.shape)} for {len(rows.x_ND)} records")
        if not bool((value > 0).all() & value.double().isfinite().all()):
            raise UsageError("sigma must be a finite number above 0")
        return (value.double() / self.energies.sigma_scale).expand(len(rows.x_ND)).float()

    def _parts(self, rows: _Rows, sigma_N: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Records in the model's coordinates, so many at once."""
        frame, device = self.energies.frame, self.energies.model.offset_L.device
        shift_D, scale_D = torch.from_numpy(frame.shift_D), torch.from_numpy(frame.scale_D)
        z_ND = ((rows.x_ND.cpu() - shift_D) / scale_D).float().to(device)
        c_NK = torch.from_numpy(frame.given_to_model(rows.c_NK.numpy())).float().to(device)
        sigma_N = sigma_N.to(device)
        starts = range(0, max(len(z_ND), 1), _ROWS_AT_ONCE)
        parts = [slice(start, start + _ROWS_AT_ONCE) for start in starts]
        return [(z_ND[part], sigma_N[part], c_NK[part]) for part in parts]

    def _shaped(self, flat_ND: Tensor, x: Records, rows: _Rows) -> Any:
        """Flat numbers in the shape in which the records came."""
        arrays = {
            field.name: rows.answer(flat_ND[:, place].reshape(-1, *field.shape))
            for field, place in zip(
                self.layout.modelled, self.layout.slices().values(), strict=True
            )
        }
        return arrays if isinstance(x, Mapping) else next(iter(arrays.values()))


def load(path: Path | str, *, device: str = "cpu") -> Model:
    """The model of a checkpoint, a generation of the zoo, or a release.

    Raises:
        CheckpointIncomplete, CheckpointDamaged, OtherArchitecture: What is wrong with it.
    """
    folder = find_checkpoint(Path(path))
    energies = load_energy(folder, device=device)
    return Model(energies, read_config(folder), _files_of(folder))


def fit(
    arrays: Records,
    *,
    seconds: float | None = None,
    preset: str = "base",
    given: Sequence[str] = (),
    units: Mapping[str, str] | None = None,
    families: Sequence[str] | None = None,
    boundary: str = "",
    true_score: Any = None,
    seed: int = 0,
    out: Path | str | None = None,
    talk: Callable[[str], object] | None = None,
    clock: Callable[[], float] = time.monotonic,
    **settings: Any,
) -> Model:
    """Train a model on arrays: what `scf train` does with fossils, without vault or files.

    Args:
        arrays: [N, *shape], or a dict of such arrays by field name; numpy or torch.
        seconds: Limit on training time (default: the preset's); calibration takes some more.
        preset: `tiny`, `base` or `h100`.
        given: Names of the fields that are conditioned on, not modelled.
        units: Unit of each field by name. Fields of one unit share one noise scale.
        families: What belongs together (a trajectory, a station), one name a record, so that
            records that choose the weights are not neighbours of those trained on. Default: blocks
            of 64 neighbours.
        boundary: `periodic` where the grid that the fields share closes on itself: then a lattice
            with circular neighbours is used, blind to translations if the records are.
        true_score: d ln p / dx where it is known, as for a lattice action: an array like the field,
            or a function of the arrays (as given) that returns such. Energies become ten times as
            good at small noise (docs/science.md section 5).
        seed: Same seed, same steps: the same model on a CPU, bit for bit.
        out: Folder for the checkpoint; by default nothing is left on disk (`Model.save` writes it).
        talk: Told of progress, a line every five seconds: `talk=print`.
        clock: What `seconds` is measured with; `time.process_time` for CPU seconds.
        settings: Any other setting of `scf.training.train_config.TrainConfig`.

    Raises:
        InputError: A subclass: too few records, shapes that differ, a field without variance,
            numbers that are not finite.
        UsageError: An unknown setting, or one out of range.
        Diverged: The loss is no longer finite.
    """
    named = {name: as_numpy(value) for name, value in _by_name(arrays).items()}
    config = build_config({"preset": preset, "seed": seed, "max_steps": 1_000_000}, settings)
    if seconds is not None:
        config = build_config(config.to_json(), {"preset": preset, "max_seconds": seconds})
    scores = true_score(arrays) if callable(true_score) else true_score
    source = ArraySource(
        named,
        units=units,
        given=given,
        families=families,
        boundary=boundary,
        batch_size=config.batch_size,
        true_score={name: as_numpy(value) for name, value in _by_name(scores).items()}
        if scores is not None
        else None,
    )
    notes = Notes(talk=talk or (lambda _: None))
    threads = torch.get_num_threads()
    try:
        with tempfile.TemporaryDirectory(prefix="scf-fit-") as scratch:
            folder = Folder.at(Path(out) if out is not None else Path(scratch))
            train(source, folder, config, notes=notes, clock=clock)
            return load(folder.path)
    finally:
        torch.set_num_threads(threads)


def _by_name(arrays: Records) -> dict[str, Any]:
    return dict(arrays) if isinstance(arrays, Mapping) else {ONLY_FIELD: arrays}


def _files_of(folder: Path) -> dict[str, bytes]:
    """A checkpoint's files without the optimiser's state, `digests.json` last."""
    files = {name: (folder / name).read_bytes() for name in NEEDED}
    assert OPTIMIZER_NAME not in files
    digests = json.dumps(digests_of(files), indent=2, sort_keys=True) + "\n"
    return files | {DIGESTS_NAME: digests.encode()}


def _a_tensor(arrays: Any) -> Tensor | None:
    """One of the tensors among arrays, or None."""
    values = arrays.values() if isinstance(arrays, Mapping) else [arrays]
    return next((value for value in values if isinstance(value, Tensor)), None)


def _need_real(value: Any, what: str) -> None:
    """Raises UsageError for what is not made of real numbers."""
    if isinstance(value, Tensor):
        found, is_real = str(value.dtype), not value.is_complex()
    else:
        dtype = np.asarray(value).dtype
        found, is_real = str(dtype), dtype.kind in "biuf"
    if not is_real:
        raise UsageError(f"{what} holds {found}, not real numbers")


def _flatten(arrays: Mapping[str, Any], fields: Sequence[FieldLayout]) -> Tensor:
    """Modelled fields side by side, (N, D), float64, gradients kept."""
    columns: list[Tensor] = []
    for field in fields:
        if field.name not in arrays:
            raise LayoutMismatch(f"field {field.name!r} is missing")
        value = arrays[field.name]
        _need_real(value, f"field {field.name!r}")
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
        if tensor.shape[1:] != field.shape or tensor.dim() == 0:
            raise LayoutMismatch(
                f"field {field.name!r} has shape {list(tensor.shape)}, "
                f"expected [records, {', '.join(map(str, field.shape))}]"
            )
        if not bool(tensor.isfinite().all()):
            raise NonFiniteField(field.name)
        columns.append(tensor.double().cpu().reshape(len(tensor), field.size))
    if len({len(column) for column in columns}) > 1:
        raise LayoutMismatch("fields hold different numbers of records")
    return torch.cat(columns, dim=1)
