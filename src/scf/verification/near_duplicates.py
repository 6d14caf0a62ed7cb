"""Held-out records that lie within a thousandth of a training record: a pool with these is no test.

Exact, in bounded memory. Records are compared in the model's coordinates, where units do not
matter: near is |a - b| <= 1e-3 |b|, b held out. A projection onto a unit vector never lengthens a
difference, so pairs whose projections lie further apart than that are passed over unseen: the
held-out records are sorted along their longest axis, each training record meets the few whose place
there is near its own, and of these only the ones that agree along three more axes are compared in
full. Speed: `near_duplicates` in benchmarks/results/gate.json.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scf.models.record import Floats

# Shapes: N held-out records, M training records, D numbers, A axes, P pairs.

TOLERANCE = 1e-3
# In fewer dimensions than this, points lie so close by chance.
SIZE_MIN = 4
SECONDS_MAX = 120.0
_AXES = 4
_PAIRS_AT_ONCE = 200_000
_ROWS_AT_ONCE = 2048


@dataclass(frozen=True)
class NearDuplicates:
    """What a scan found.

    Attributes:
        is_near_N: Of each held-out record, whether a training record lies near it.
        scanned: Training records it was compared with.
        is_complete: Whether these are all; a scan has a limit in seconds.
        seconds: How long it took.
        skipped: Why nothing was compared; "" where it was.
    """

    is_near_N: npt.NDArray[np.bool_]
    scanned: int
    is_complete: bool
    seconds: float
    skipped: str = ""

    def to_json(self, families: list[str]) -> dict[str, Any]:
        """For the report. `families` are those of the held-out records."""
        near = [name for name, is_near in zip(families, self.is_near_N, strict=True) if is_near]
        return {
            "tolerance": TOLERANCE,
            "found": len(near),
            "of": len(families),
            "families": len(set(near)),
            "left_out": True,
            "scanned": self.scanned,
            "is_complete": self.is_complete,
            "seconds": round(self.seconds, 3),
            "skipped": self.skipped,
        }


def find_near_duplicates(
    held_out_ND: Floats, training: Iterable[Floats], *, seconds_max: float = SECONDS_MAX
) -> NearDuplicates:
    """Scan `training` (arrays [m, D] one after another) against the held-out records.

    Args:
        held_out_ND: In the model's coordinates.
        training: Likewise; read once, in pieces.
        seconds_max: The scan stops after this long, and says that it did.
    """
    began = time.monotonic()
    num, size = held_out_ND.shape
    if size < SIZE_MIN:
        why = f"records of fewer than {SIZE_MIN} numbers lie this close by chance"
        return NearDuplicates(np.zeros(num, bool), 0, True, 0.0, why)
    scan = _Scan(held_out_ND)
    scanned, is_complete = 0, True
    for block_MD in training:
        for start in range(0, len(block_MD), _ROWS_AT_ONCE):
            if time.monotonic() - began > seconds_max:
                is_complete = False
                break
            rows_MD = block_MD[start : start + _ROWS_AT_ONCE]
            scan.compare(rows_MD)
            scanned += len(rows_MD)
        if not is_complete:
            break
    seconds = time.monotonic() - began
    return NearDuplicates(scan.found(), scanned, is_complete, seconds)


class _Scan:
    """The held-out records, sorted along their longest axis."""

    def __init__(self, held_out_ND: Floats) -> None:
        self._axes_DA = _long_axes(held_out_ND)
        projected_NA = held_out_ND @ self._axes_DA
        self._order_N = np.argsort(projected_NA[:, 0], kind="stable")
        self._rows_ND = held_out_ND[self._order_N]
        self._projected_NA = projected_NA[self._order_N]
        norm_N = np.linalg.norm(self._rows_ND, axis=1)
        # Projections are rounded: a millionth more lets no pair slip through.
        self._reach_N = TOLERANCE * norm_N * (1 + 1e-6) + 1e-9 * (1 + norm_N)
        self._limit_N = TOLERANCE * norm_N
        self._near_N = np.zeros(len(held_out_ND), bool)

    def found(self) -> npt.NDArray[np.bool_]:
        """Which are near, in the order in which the records were given, (N,)."""
        found_N = np.zeros_like(self._near_N)
        found_N[self._order_N] = self._near_N
        return found_N

    def compare(self, rows_MD: Floats) -> None:
        """Mark the held-out records that lie near one of these rows."""
        projected_MA = rows_MD @ self._axes_DA
        reach = float(self._reach_N.max(initial=0.0))
        first_N = self._projected_NA[:, 0]
        low_M = np.searchsorted(first_N, projected_MA[:, 0] - reach, side="left")
        high_M = np.searchsorted(first_N, projected_MA[:, 0] + reach, side="right")
        count_M = high_M - low_M
        start = 0
        while start < len(rows_MD):
            # As many rows as make a bounded number of pairs, and at least one.
            total_M = np.cumsum(count_M[start:])
            stop = start + max(1, int(np.searchsorted(total_M, _PAIRS_AT_ONCE, side="right")))
            counts = count_M[start:stop]
            row_P = np.repeat(np.arange(start, stop), counts)
            offset_P = np.arange(len(row_P)) - np.repeat(np.cumsum(counts) - counts, counts)
            held_P = np.repeat(low_M[start:stop], counts) + offset_P
            self._compare_pairs(rows_MD, projected_MA, row_P, held_P)
            start = stop

    def _compare_pairs(
        self,
        rows_MD: Floats,
        projected_MA: Floats,
        row_P: npt.NDArray[np.intp],
        held_P: npt.NDArray[np.intp],
    ) -> None:
        keep_P = ~self._near_N[held_P]
        for axis in range(self._axes_DA.shape[1]):
            row_P, held_P = row_P[keep_P], held_P[keep_P]
            apart_P = np.abs(projected_MA[row_P, axis] - self._projected_NA[held_P, axis])
            keep_P = apart_P <= self._reach_N[held_P]
        row_P, held_P = row_P[keep_P], held_P[keep_P]
        at_once = max(1, 4_000_000 // self._rows_ND.shape[1])
        for start in range(0, len(row_P), at_once):
            part = slice(start, start + at_once)
            apart_PD = rows_MD[row_P[part]] - self._rows_ND[held_P[part]]
            is_near_P = np.linalg.norm(apart_PD, axis=1) <= self._limit_N[held_P[part]]
            self._near_N[held_P[part][is_near_P]] = True


def _long_axes(held_out_ND: Floats) -> Floats:
    """Orthonormal axes (D, A) along which the records spread most, found from a few of them."""
    few_ND = held_out_ND[:: max(1, len(held_out_ND) // 256)]
    centred_ND = few_ND - few_ND.mean(axis=0)
    _, _, axes_AD = np.linalg.svd(centred_ND, full_matrices=False)
    axes_DA: Floats = np.ascontiguousarray(axes_AD[:_AXES].T)
    return axes_DA
