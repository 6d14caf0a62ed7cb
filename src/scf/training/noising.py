"""A minibatch with its noise: what one step of training looks at.

The noise of a row is a pure function of (seed, step, the row's place in the global minibatch). So
it is the same whether one process computes the minibatch or many, whole or in parts, and a resumed
run repeats the uninterrupted one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from scf.models.noise import NoiseRange
from scf.training.data import Drawn, seed_of

# Shapes: B rows of this process, D modelled numbers, K given numbers.

# Noise is drawn in blocks of rows of about so many numbers: a process draws only blocks that it has
# rows in, and small records cost one draw for all.
_BLOCK_NUMBERS = 65536


class Batch(NamedTuple):
    """Clean records, noise, sigma, given numbers, and the true score where it is known."""

    clean_BD: Tensor
    noise_BD: Tensor
    sigma_B: Tensor
    c_BK: Tensor
    true_score_BD: Tensor | None

    def __len__(self) -> int:
        return len(self.clean_BD)

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]

    def part(self, rows: slice) -> "Batch":
        """Some of the rows."""
        return Batch(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]


def noisy(
    drawn: Drawn, noise: NoiseRange, *, seed: int, step: int, num_places: int, is_paired: bool
) -> Batch:
    """Rows with noise levels and noise, on the CPU: the same on every device.

    Args:
        drawn: Rows of this process with their places in the global minibatch.
        noise: Where levels are drawn from.
        seed: Of the run.
        step: From 1.
        num_places: Of the global minibatch, over all processes.
        is_paired: Each row comes with a noise and with its opposite.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, "noise", step))
    sigma_B = noise.draw(num_places, generator)[drawn.place_B]
    noise_BD = noise_at(drawn.place_B, drawn.rows.z_ND.shape[1], seed=seed, step=step)
    z_BD, c_BK, s_BD = drawn.rows
    if not is_paired:
        return Batch(z_BD, noise_BD, sigma_B, c_BK, s_BD)
    return Batch(
        z_BD.repeat(2, 1),
        torch.cat([noise_BD, -noise_BD]),
        sigma_B.repeat(2),
        c_BK.repeat(2, 1),
        None if s_BD is None else s_BD.repeat(2, 1),
    )


def noise_at(place_B: Tensor, num: int, *, seed: int, step: int) -> Tensor:
    """Standard normal noise (B, num) of rows at these places of the global minibatch."""
    rows = max(1, _BLOCK_NUMBERS // max(num, 1))
    if len(place_B) and (last := int(place_B.max())) < rows:  # one block, without its bookkeeping
        return _block(0, last + 1, num, seed=seed, step=step)[place_B]
    noise_BD = torch.empty(len(place_B), num)
    block_B = place_B // rows
    for block in sorted(set(block_B.tolist())):
        is_here_B = block_B == block
        last = int(place_B[is_here_B].max()) % rows + 1
        drawn = _block(block, last, num, seed=seed, step=step)
        noise_BD[is_here_B] = drawn[place_B[is_here_B] % rows]
    return noise_BD


def _block(block: int, rows: int, num: int, *, seed: int, step: int) -> Tensor:
    """The first rows of a block: what is drawn of them does not change with how many are."""
    generator = torch.Generator().manual_seed(seed_of(seed, f"noise:{step}", block))
    return torch.randn(rows * num + 16, generator=generator)[: rows * num].view(rows, num)
