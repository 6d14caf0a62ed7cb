"""Validation fossils: they are never trained on, and choose which averaged weights are kept."""

import torch

from scf.models.energy_model import EnergyModel
from scf.models.losses import denoising_and_dual
from scf.models.noise import NoiseRange
from scf.training.data import ModelRows, seed_of
from scf.training.train_config import TrainConfig

# Noise levels that each validation fossil is looked at with.
_REPEATS = 4


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
        self.dual_weight = config.dual_weight

    def loss(self, model: EnergyModel) -> float:
        """Mean training loss, over fossils and noise levels."""
        total = 0.0
        for part in torch.split(torch.arange(len(self.clean_BD)), 1024):
            found = denoising_and_dual(
                model,
                self.clean_BD[part],
                self.noise_BD[part],
                self.sigma_B[part],
                self.c_BK[part],
                true_score_BD=None if self.true_score_BD is None else self.true_score_BD[part],
                is_steady=self.is_steady,
                create_graph=False,
            )
            total += float((found.denoising_B + self.dual_weight * found.dual_B).sum())
        return total / len(self.clean_BD)
