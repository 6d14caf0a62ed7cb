"""A minibatch with its noise: what one step of training looks at.

The noise of a row is a pure function of (seed, step, the row's place in the global minibatch). So
it is the same whether one process computes the minibatch or many, whole or in parts, and a resumed
run repeats the uninterrupted one.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from scf.models.losses import Expected, expected_noise
from scf.models.noise import NoiseRange
from scf.training.data import Drawn, ModelRows, seed_of
from scf.training.distributed import ALONE, Peers

# Shapes: B rows of this process, D modelled numbers, K given numbers.

# Noise is drawn in blocks of rows of about so many numbers: a process draws only blocks that it has
# rows in, and small records cost one draw for all.
_BLOCK_NUMBERS = 65536

# Records that share their targets at most: the work is so many distances a record.
_GROUP_MAX = 512
_CPU = torch.device("cpu")


class Batch(NamedTuple):
    """Clean records, noise, sigma, given numbers; what the targets are made of beside the noise.

    Attributes:
        true_score_BD: Of the clean density at the clean records, where it is known.
        expected_noise_BD: Mean of the noise over the records of the minibatch (`models/losses.py`),
            where targets are shared.
        expected_square_B: Of its square, likewise.
    """

    clean_BD: Tensor
    noise_BD: Tensor
    sigma_B: Tensor
    c_BK: Tensor
    true_score_BD: Tensor | None
    expected_noise_BD: Tensor | None = None
    expected_square_B: Tensor | None = None

    @property
    def expected(self) -> Expected | None:
        """What stands in for the noise in the targets."""
        if self.expected_noise_BD is None or self.expected_square_B is None:
            return None
        return Expected(self.expected_noise_BD, self.expected_square_B)

    def __len__(self) -> int:
        return len(self.clean_BD)

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(*(None if part is None else part.to(device) for part in self))  # type: ignore[arg-type]

    def part(self, rows: slice | Tensor) -> "Batch":
        """Some of the rows."""
        return Batch(*(None if part is None else part[rows] for part in self))  # type: ignore[arg-type]


def noisy(
    drawn: Drawn,
    noise: NoiseRange,
    *,
    seed: int,
    step: int,
    num_places: int,
    is_paired: bool,
    is_shared: bool = False,
    peers: Peers = ALONE,
    device: torch.device = _CPU,
) -> Batch:
    """Rows with noise levels and noise, on `device`; drawn on the CPU, so the same on every device.

    Args:
        drawn: Rows of this process with their places in the global minibatch.
        noise: Where levels are drawn from.
        seed: Of the run.
        step: From 1.
        num_places: Of the global minibatch, over all processes.
        is_paired: Each row comes with a noise and with its opposite.
        is_shared: Targets are means over the records of the whole minibatch.
        peers: The processes that it is dealt to; they show each other their records then.
        device: Where the rows are wanted.
    """
    if is_shared:
        z_PD, place_P = peers.gather(drawn.rows.z_ND, drawn.place_B, num_places)
        everyone = Drawn(ModelRows(z_PD, z_PD.new_zeros(len(z_PD), 0)), place_P)
        whole = _noisy(everyone, noise, seed=seed, step=step, num_places=num_places,
                       is_paired=is_paired)  # fmt: skip
        # The same numbers on every process: all compute all targets and keep their own rows.
        whole = _with_expected(whole.to(device if device.type == "cuda" else _CPU), len(place_P))
        if peers.is_alone:
            return whole.to(device)
        row_B = torch.searchsorted(place_P, drawn.place_B)
        own_B = torch.cat([row_B, row_B + len(place_P)]) if is_paired else row_B
        return whole.part(own_B.to(whole.sigma_B.device)).to(device)
    batch = _noisy(drawn, noise, seed=seed, step=step, num_places=num_places, is_paired=is_paired)
    return batch.to(device)


def _with_expected(batch: Batch, num_records: int) -> Batch:
    """The same with targets shared among groups of its records.

    Groups bound the work, which grows with their square; whatever their size the mean is right.
    """
    clean_BD, noise_BD, sigma_B = batch.clean_BD, batch.noise_BD, batch.sigma_B
    expected_noise_BD, expected_square_B = torch.empty_like(noise_BD), torch.empty_like(sigma_B)
    for group in torch.split(torch.arange(num_records), _GROUP_MAX):
        # Of pairs, the records of the second half are those of the first.
        rows = torch.cat([group, group + num_records]) if len(batch) > num_records else group
        expected = expected_noise(
            clean_BD[rows], noise_BD[rows], sigma_B[rows], among_MD=clean_BD[group]
        )
        expected_noise_BD[rows], expected_square_B[rows] = expected
    return Batch(
        clean_BD,
        noise_BD,
        sigma_B,
        batch.c_BK,
        batch.true_score_BD,
        expected_noise_BD,
        expected_square_B,
    )


def _noisy(
    drawn: Drawn, noise: NoiseRange, *, seed: int, step: int, num_places: int, is_paired: bool
) -> Batch:
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
