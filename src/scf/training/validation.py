"""Validation fossils: they are never trained on, and choose which averaged weights are kept."""

import math
from typing import NamedTuple

import torch

from scf.models.energy_model import EnergyModel
from scf.models.losses import Expected, denoising_and_dual, expected_noise
from scf.models.noise import NoiseRange
from scf.training.data import ModelRows, seed_of
from scf.training.distributed import ALONE, Peers
from scf.training.sharding import is_sharded
from scf.training.train_config import TrainConfig

# Noise levels that each validation fossil is looked at with.
_REPEATS = 4
_ROWS_AT_ONCE = 1024


class Look(NamedTuple):
    """What averaged weights are worth on fossils that were not trained on.

    Attributes:
        loss: Mean training loss, over fossils and noise levels.
        energy_gap_nats: How far the energy lies below that of the Gaussian with the data's mean and
            covariance, on average: what was learned beyond the second moments.
        score_error: Root mean square of noise minus what the score takes for it, over the
            Gaussian's. Not zero for the perfect model: noise cannot be told from data altogether.
    """

    loss: float
    energy_gap_nats: float
    score_error: float


class Validation:
    """Validation fossils with fixed noise, so that two looks differ by the weights alone."""

    def __init__(
        self,
        rows: ModelRows,
        config: TrainConfig,
        noise: NoiseRange,
        device: torch.device,
        *,
        is_antithetic: bool = False,
        is_shared: bool = False,
    ) -> None:
        z_ND, c_NK, s_ND = rows
        generator = torch.Generator().manual_seed(seed_of(config.seed, "validation", 0))
        self.num_fossils = len(z_ND)
        self.is_steady = is_antithetic or s_ND is not None
        repeats = _REPEATS // 2 if is_antithetic else _REPEATS
        noise_BD = torch.randn((repeats * len(z_ND), z_ND.shape[1]), generator=generator)
        sigma_B = noise.draw(max(len(noise_BD), 1), generator)
        if is_antithetic:
            noise_BD, sigma_B = torch.cat([noise_BD, -noise_BD]), sigma_B.repeat(2)
        self.clean_BD = z_ND.repeat(_REPEATS, 1).to(device)
        self.c_BK = c_NK.repeat(_REPEATS, 1).to(device)
        self.true_score_BD = None if s_ND is None else s_ND.repeat(_REPEATS, 1).to(device)
        self.noise_BD, self.sigma_B = noise_BD.to(device), sigma_B.to(device)
        self.expected: Expected | None = None
        if is_shared and len(noise_BD):
            clean_BD = z_ND.repeat(_REPEATS, 1)
            found = expected_noise(clean_BD, noise_BD, sigma_B, among_MD=z_ND)
            self.expected = Expected(*(value.to(device) for value in found))
        self.dual_weight = config.dual_weight

    def look(self, model: EnergyModel, peers: Peers = ALONE) -> Look:
        """What the weights of `model` are worth; processes share the work and hear the same."""
        # Where weights are sharded every pass is a meeting, so every process makes them all.
        is_shared = not is_sharded(model.parameters())
        mine = peers.share(len(self.clean_BD)) if is_shared else torch.arange(len(self.clean_BD))
        sums = torch.zeros(4, dtype=torch.float64)
        for part in torch.split(mine, _ROWS_AT_ONCE):
            z_BD, n_BD, sigma_B, c_BK = (
                values[part] for values in (self.clean_BD, self.noise_BD, self.sigma_B, self.c_BK)
            )
            found = denoising_and_dual(
                model,
                z_BD,
                n_BD,
                sigma_B,
                c_BK,
                true_score_BD=None if self.true_score_BD is None else self.true_score_BD[part],
                expected=None
                if self.expected is None
                else Expected(*(value[part] for value in self.expected)),
                is_steady=self.is_steady,
                create_graph=False,
            )
            noisy_BD = z_BD + sigma_B[:, None] * n_BD
            found_at = model.derivatives(noisy_BD, sigma_B, c_BK)
            energy_B, gradient_BD, _ = model.base.energy(noisy_BD, sigma_B, c_BK)
            loss_B = found.denoising_B + self.dual_weight * found.dual_B
            told = (
                loss_B,
                energy_B - found_at.energy_B,
                (n_BD - sigma_B[:, None] * found_at.gradient_BD).square(),
                (n_BD - sigma_B[:, None] * gradient_BD).square(),
            )
            sums += torch.stack([value.detach().cpu().double().sum() for value in told])
        if is_shared:
            sums = peers.add_up([], sums)  # float64 throughout
        loss, gap, error, error_of_base = sums.tolist()
        num = len(self.clean_BD)
        return Look(loss / num, gap / num, math.sqrt(error / error_of_base))
