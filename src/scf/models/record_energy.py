"""A trained model on the data's own coordinates: what scoring, sampling and measuring work with.

Sigma here is in the data's own units. All fields that share a unit share one scale, so:

* one unit in the record: sigma in that unit, exactly;
* several units: sigma is in multiples of each unit group's scale (sigma 0.1 stands for a tenth of
  the scale of W/m2 in radiation and a tenth of the scale of degC in temperatures, at once).

`sigma_unit` says which. Energies are -ln p(x; sigma | given), nats, with p a density over x in the
data's own units: the Jacobian of the scaling is included.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from scf.models.completion import complete
from scf.models.energy_model import EnergyModel
from scf.models.frame import Frame
from scf.models.monte_carlo import annealed_langevin, smc
from scf.models.noise import NoiseRange
from scf.models.physics import constraints_for
from scf.models.record import Floats, RecordLayout
from scf.models.restraint import laws_named, restrained
from scf.models.samplers import heun, mala

# Shapes: N records, D modelled numbers, K given numbers.

# Records evaluated at once: bounds the memory, not the result.
_ROWS_AT_ONCE = 4096
# Noise up to which samples are trusted where laws are to be kept, in scales of the data.
_TRUSTED = 0.1


class Scored(NamedTuple):
    """Energies (N,) in nats, and norms (N,) of the score in 1/`sigma_unit`."""

    energy_N: Floats
    score_norm_N: Floats


@dataclass
class RecordEnergy:
    """E(x, sigma | c) with its frame.

    Attributes:
        layout: The fields of a record.
        frame: Between the data's coordinates and the model's.
        model: The energy in the model's coordinates.
        noise: Trained noise levels, in the model's coordinates.
        given_bank_MK: Given numbers of training records, original units: where samples take theirs.
    """

    layout: RecordLayout
    frame: Frame
    model: EnergyModel
    noise: NoiseRange
    given_bank_MK: Floats

    @property
    def sigma_scale(self) -> float:
        """Sigma in the data's units over sigma in the model's."""
        return float(self.frame.scale_D[0]) if len(self.layout.units) == 1 else 1.0

    @property
    def sigma_unit(self) -> str:
        """The unit of sigma: the records' one unit, or words that say how several are scaled."""
        units = self.layout.units
        return units[0] if len(units) == 1 else "scale of each unit group"

    @property
    def sigma_range(self) -> tuple[float, float]:
        """Smallest and largest trained sigma, in `sigma_unit`."""
        return self.noise.sigma_min * self.sigma_scale, self.noise.sigma_max * self.sigma_scale

    def energy(self, x_ND: Floats, sigma: float, given_NK: Floats) -> Floats:
        """E in nats, (N,), of x as a point of the density smoothed by sigma (in `sigma_unit`)."""
        parts = []
        with torch.no_grad():
            for z, c in self._parts(x_ND, given_NK):
                parts.append(self.model.energy(z, self._sigma(z, sigma), c).cpu().double().numpy())
        energy_N: Floats = np.concatenate(parts) + self.frame.log_jacobian
        return energy_N

    def score(self, x_ND: Floats, sigma: float, given_NK: Floats) -> Floats:
        """-dE/dx, (N, D), in 1/unit of each number."""
        parts = []
        for z, c in self._parts(x_ND, given_NK):
            parts.append(self.model.score(z, self._sigma(z, sigma), c).cpu().double().numpy())
        score_ND: Floats = np.concatenate(parts) / self.frame.scale_D
        return score_ND

    def scored(self, x_ND: Floats, sigma: float, given_NK: Floats) -> Scored:
        """Energies and score norms together, for one pass over many records."""
        energies, norms = [], []
        for z, c in self._parts(x_ND, given_NK):
            found = self.model.derivatives(z, self._sigma(z, sigma), c)
            energies.append(found.energy_B.detach().cpu().double().numpy())
            norms.append(found.gradient_BD.norm(dim=1).cpu().double().numpy())
        return Scored(
            np.concatenate(energies) + self.frame.log_jacobian,
            np.concatenate(norms) / self.sigma_scale,
        )

    def denoise(self, x_ND: Floats, sigma: float, given_NK: Floats) -> Floats:
        """Mean of the clean records that x may have come from, (N, D), original units."""
        parts = []
        for z, c in self._parts(x_ND, given_NK):
            parts.append(self.model.denoise(z, self._sigma(z, sigma), c).cpu().double().numpy())
        return self.frame.to_data(np.concatenate(parts))

    def draw_given(self, num: int, generator: torch.Generator) -> Floats:
        """Given numbers (num, K) of training records drawn at random."""
        if self.layout.given_size == 0:
            return np.zeros((num, 0))
        index = torch.randint(len(self.given_bank_MK), (num,), generator=generator)
        drawn: Floats = self.given_bank_MK[index.numpy()]
        return drawn

    def sample(
        self,
        given_NK: Floats,
        *,
        steps: int,
        generator: torch.Generator,
        langevin_steps: int = 0,
    ) -> Floats:
        """Records x (N, D), original units, one for each row of given numbers.

        Args:
            given_NK: In original units.
            steps: Noise levels of the Heun solver.
            generator: On the CPU; the same seed gives the same records on the CPU.
            langevin_steps: MALA steps at the smallest trained sigma before the last denoising:
                they turn what the solver got wrong into rejections.
        """
        parts = []
        _, c_NK = self._to_model(np.zeros((len(given_NK), self.layout.size)), given_NK)
        for c in torch.split(c_NK, _ROWS_AT_ONCE):
            if langevin_steps:
                sigma = self.noise.sigma_min
                z = heun(
                    self.model, self.noise, c, steps=steps, generator=generator, sigma_end=sigma
                )
                z = mala(
                    self.model,
                    z,
                    sigma,
                    c,
                    steps=langevin_steps,
                    step_size=0.1,
                    generator=generator,
                ).z_BD
                z = self.model.denoise(z, self._model_sigma(z, sigma), c)
            else:
                z = heun(self.model, self.noise, c, steps=steps, generator=generator)
            parts.append(z.cpu().double().numpy())
        return self.frame.to_data(np.concatenate(parts))

    def draw(
        self,
        given_NK: Floats,
        *,
        sampler: str,
        steps: int,
        generator: torch.Generator,
        langevin_steps: int = 0,
    ) -> tuple[Floats, Floats]:
        """Records x (N, D) and their given numbers, by `heun`, `smc` or `langevin`.

        Weighted particles may keep some given numbers and drop others; else these are as asked for.
        """
        if sampler == "heun":
            x_ND = self.sample(
                given_NK, steps=steps, generator=generator, langevin_steps=langevin_steps
            )
            return x_ND, given_NK
        _, c_NK = self._to_model(np.zeros((len(given_NK), self.layout.size)), given_NK)
        if sampler == "smc":
            drawn = smc(self.model, self.noise, c_NK, levels=steps, generator=generator)
            frame = self.frame
            given = frame.given_shift_K + frame.given_scale_K * drawn.c_BK.cpu().double().numpy()
            return self.frame.to_data(drawn.z_BD.detach().cpu().double().numpy()), given
        z = annealed_langevin(self.model, self.noise, c_NK, levels=steps, generator=generator)
        return self.frame.to_data(z.detach().cpu().double().numpy()), given_NK

    def complete(
        self,
        x_ND: Floats,
        is_known_D: npt.NDArray[np.bool_],
        given_NK: Floats,
        *,
        sigma: float,
        steps: int,
        generator: torch.Generator,
    ) -> Floats:
        """Records (N, D) with the known numbers of `x_ND` held, the others drawn given them.

        `sigma` is the noise level of the energies that decide at last, in `sigma_unit`.
        """
        filled_ND = np.where(is_known_D, x_ND, self.frame.shift_D)
        z_ND, c_NK = self._to_model(filled_ND, given_NK)
        mask_D = torch.from_numpy(is_known_D).to(z_ND.device)
        z = complete(
            self.model,
            self.noise,
            z_ND,
            mask_D,
            c_NK,
            sigma_end=sigma / self.sigma_scale,
            levels=steps,
            generator=generator,
        )
        drawn_ND = self.frame.to_data(z.detach().cpu().double().numpy())
        found: Floats = np.where(is_known_D, x_ND, drawn_ND)
        return found

    def restrain(
        self,
        x_ND: Floats,
        given_NK: Floats,
        laws: Mapping[str, float] | Sequence[str],
        *,
        sigma: float | None = None,
        moves: int = 0,
        is_held_ND: npt.NDArray[np.bool_] | None = None,
        generator: torch.Generator,
    ) -> Floats:
        """Records (N, D) near sampled ones that keep known laws (`models/restraint.py`).

        Args:
            x_ND: Sampled records.
            given_NK: Their given numbers.
            laws: Names of constraints; with numbers, to what standard deviation at each site they
                are to be kept, in their own units (default: their tolerances).
            sigma: Noise up to which samples are trusted, in `sigma_unit`; default a tenth of the
                data's scale.
            moves: Rounds of noise, denoising and a draw under the laws, after the first draw.
            is_held_ND: True where a number must stay as it is.
            generator: On the CPU.

        Raises:
            UsageError: A law that is not known here, or a tolerance that is not above 0.
            LawsNotKept: Some records could not be brought to them.
        """
        names = [field.name for field in (*self.layout.modelled, *self.layout.given)]
        known = {c.name: c for c in (*self.model.encoder.constraints, *constraints_for(names))}
        z_ND, c_NK = self._to_model(x_ND, given_NK)
        held_ND = None if is_held_ND is None else torch.from_numpy(is_held_ND).to(z_ND.device)
        found_ND = restrained(
            self.model,
            z_ND,
            c_NK,
            laws_named(laws, list(known.values())),
            sigma=_TRUSTED if sigma is None else sigma / self.sigma_scale,
            moves=moves,
            held_BD=held_ND,
            generator=generator,
        )
        kept_ND = self.frame.to_data(found_ND.numpy())
        return kept_ND if is_held_ND is None else np.where(is_held_ND, x_ND, kept_ND)

    def to_model(self, x_ND: Floats, given_NK: Floats) -> tuple[Tensor, Tensor]:
        """Give z (N, D) and c (N, K) of the model, float32 on its device."""
        return self._to_model(x_ND, given_NK)

    def _to_model(self, x_ND: Floats, given_NK: Floats) -> tuple[Tensor, Tensor]:
        device = self.model.offset_L.device
        z_ND = torch.from_numpy(self.frame.to_model(x_ND)).float().to(device)
        c_NK = torch.from_numpy(self.frame.given_to_model(given_NK)).float().to(device)
        return z_ND, c_NK

    def _parts(self, x_ND: Floats, given_NK: Floats) -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, max(len(x_ND), 1), _ROWS_AT_ONCE):
            stop = start + _ROWS_AT_ONCE
            yield self._to_model(x_ND[start:stop], given_NK[start:stop])

    def _sigma(self, z_BD: Tensor, sigma: float) -> Tensor:
        return self._model_sigma(z_BD, sigma / self.sigma_scale)

    def _model_sigma(self, z_BD: Tensor, sigma: float) -> Tensor:
        return z_BD.new_full((len(z_BD),), sigma)


def as_fields(energy: RecordEnergy, x_ND: Floats, given_NK: Floats) -> dict[str, npt.NDArray[Any]]:
    """Records as arrays by field name, [N, *shape] in each field's dtype, given fields included."""
    return energy.layout.unpack(x_ND) | energy.layout.unpack(given_NK, given=True)
