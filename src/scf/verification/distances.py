"""Distances between two sets of records, each beside what two sets of the truth show.

Shapes: N records, D numbers, P projections.
"""

import numpy as np

from scf.models.record import Floats

_PROJECTIONS = 128


def sliced_wasserstein(
    x_ND: Floats, y_ND: Floats, rng: np.random.Generator, *, projections: int = _PROJECTIONS
) -> float:
    """Mean over random directions of the Wasserstein-1 distance of the projections.

    Both sets are taken to the size of the smaller. In the numbers' own unit: bring numbers of
    different units to one scale before.
    """
    size = min(len(x_ND), len(y_ND))
    direction_DP = rng.standard_normal((x_ND.shape[1], projections))
    direction_DP /= np.linalg.norm(direction_DP, axis=0)
    ends = [np.sort(part[:size] @ direction_DP, axis=0) for part in (x_ND, y_ND)]
    return float(np.abs(ends[0] - ends[1]).mean())


def beside_floor(
    real_ND: Floats, sampled_ND: Floats, rng: np.random.Generator
) -> tuple[float, float]:
    """Distance of samples to one half of the real records, and of its other half: the floor.

    All three sets have the same size, half of the real records or the number of samples. What the
    floor shows is chance alone; a perfect sampler comes to it and not below.
    """
    order = rng.permutation(len(real_ND))
    size = min(len(real_ND) // 2, len(sampled_ND))
    one_ND, other_ND = real_ND[order[:size]], real_ND[order[size : 2 * size]]
    seed = int(rng.integers(2**32))
    found = sliced_wasserstein(one_ND, sampled_ND[:size], np.random.default_rng(seed))
    floor = sliced_wasserstein(one_ND, other_ND, np.random.default_rng(seed))
    return found, floor
