"""Mixtures: some fossils oftener than others, in an order that still needs nothing stored.

Fossils are in groups (fresh and replay, or several sources). A group has a share of each epoch; in
a group, fossils may have weights, of which only ratios matter. What is promised:

* An epoch has as many slots as there are fossils with a weight above 0. Each group has the same
  number of slots in every epoch: its share, to within one slot, and one at least.
* A group without weights hands its fossils out one after another, from epoch to epoch: none is
  used a second time before all were used once.
* With weights, so many slots as the group has fossils make a pass. In a pass, a fossil of weight
  w is used w / (mean weight) times, rounded down or up, and over the passes so often on average.

How: a group's fossils stand along a line, each on a piece as long as its weight, blocks of 64
neighbours in a keyed order. A pass takes points at even distances on the line (systematic
sampling), which the next pass moves by the golden ratio, so that no fossil waits long for its turn
(three-distance theorem, Sos 1958). So a slot's fossil is a function of (seed, epoch, slot); a group
of which little is used is still read in whole blocks; and how slots are shuffled is the matter of
`shuffle.EpochOrder` alone. Format and test vectors: docs/formats/batch-plan.md.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scf.core.errors import UsageError
from scf.fertilization.shuffle import BLOCK_RECORDS, KeyedPermutation, Positions, mix64

# Weights are whole numbers up to this: what is smaller than a part in 2^32 is lifted to one.
_WEIGHT_MAX = 2**32 - 1
_GOLDEN = 0.6180339887498949  # (sqrt(5) - 1) / 2
Weights = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Group:
    """Fossils that have a share together.

    Attributes:
        starts: Where its runs of neighbours begin among the selected fossils, ascending.
        counts: How long they are.
        share: Its part of an epoch, against the other groups'.
        weights: Of each fossil, by `whole_weights`; None where all are alike.
    """

    starts: Positions
    counts: Positions
    share: float
    weights: Weights | None = None

    @property
    def num_usable(self) -> int:
        """Fossils with a weight above 0."""
        if self.weights is None:
            return int(self.counts.sum())
        return int(np.count_nonzero(self.weights))


class Mixture:
    """Which fossil each slot of each epoch holds.

    Args:
        groups: With something usable in each.
        seed: Of the batcher.

    Attributes:
        num_slots: Slots of an epoch.
        slots_of: How many of them each group has.
    """

    def __init__(self, groups: Sequence[Group], *, seed: int) -> None:
        assert groups, "a mixture of nothing"
        assert all(group.num_usable for group in groups), "a group of nothing"
        self._lines = [_Line(group, f"{seed}:{number}") for number, group in enumerate(groups)]
        num_usable = sum(group.num_usable for group in groups)
        self.slots_of = _slots(num_usable, [group.share for group in groups])
        self.num_slots = sum(self.slots_of)
        self._ends = np.cumsum(self.slots_of)
        digest = hashlib.sha256()
        for group in groups:
            weights = b"" if group.weights is None else group.weights.astype("<u4").tobytes()
            digest.update(
                repr((group.share, group.starts.tolist(), group.counts.tolist())).encode()
            )
            digest.update(weights)
        self.digest = digest.digest()

    def places(self, epoch: int, slots: Positions) -> Positions:
        """The places, among the selected fossils, of those in these slots of an epoch."""
        result = np.empty(len(slots), np.int64)
        numbers = np.searchsorted(self._ends, slots, side="right")
        for number, (line, size) in enumerate(zip(self._lines, self.slots_of, strict=True)):
            mine = numbers == number
            if mine.any():
                in_group = slots[mine] - (int(self._ends[number]) - size)
                result[mine] = line.places(epoch * size + in_group)
        return result


class _Line:
    """The fossils of a group along a line, in blocks of 64 neighbours in a keyed order."""

    def __init__(self, group: Group, key: str) -> None:
        self._group = group
        self._run_ends = np.cumsum(group.counts)
        self._count = int(self._run_ends[-1])
        self._num_usable = group.num_usable
        num_blocks = -(-self._count // BLOCK_RECORDS)
        order = KeyedPermutation(num_blocks, f"scf.mixture/1:{key}:blocks")
        self._blocks = order.table()
        starts = np.arange(0, self._count, BLOCK_RECORDS)
        if group.weights is None:
            lengths = np.minimum(BLOCK_RECORDS, self._count - starts)
        else:
            lengths = np.add.reduceat(group.weights, starts, dtype=np.int64)
        self._ends = np.cumsum(lengths[self._blocks])
        self._length = int(self._ends[-1])
        self._row_key = np.frombuffer(
            hashlib.sha512(f"scf.mixture/1:{key}:rows".encode()).digest(), "<u8"
        )[0]

    def places(self, turns: Positions) -> Positions:
        """The fossils of these turns, counted from the first of epoch 0."""
        passes, at = np.divmod(turns, self._num_usable)
        shift = np.mod(passes * _GOLDEN, 1.0)
        points = np.floor((at + shift) * (self._length / self._num_usable)).astype(np.int64)
        np.minimum(points, self._length - 1, out=points)
        slots = np.searchsorted(self._ends, points, side="right")
        begins = self._ends[slots - 1]
        begins[slots == 0] = 0
        if self._group.weights is None:
            members = self._blocks[slots] * BLOCK_RECORDS + (points - begins)
        else:
            members = self._weighted(slots, points - begins)
        run = np.searchsorted(self._run_ends, members, side="right")
        result: Positions = self._group.starts[run] + (
            members - (self._run_ends[run] - self._group.counts[run])
        )
        return result

    def _weighted(self, slots: Positions, points: Positions) -> Positions:
        """Members at these points of their blocks.

        In a block, fossils stand in a keyed order of their own: points at even distances would
        otherwise pick, say, every second time step of a trajectory, in all blocks the same.
        """
        assert self._group.weights is not None
        distinct, which = np.unique(slots, return_inverse=True)
        members = self._blocks[distinct][:, None] * BLOCK_RECORDS + np.arange(BLOCK_RECORDS)
        keys = mix64(members.astype(np.uint64) ^ self._row_key)
        order = np.argsort(keys, axis=1, kind="stable")
        members = np.take_along_axis(members, order, axis=1)
        inside = members < self._count
        weights = self._group.weights[np.where(inside, members, 0)].astype(np.int64) * inside
        ends = np.cumsum(weights, axis=1)
        at = (ends[which] <= points[:, None]).sum(axis=1)
        result: Positions = members[which, at]
        return result


def whole_weights(weights: npt.NDArray[np.float64]) -> Weights:
    """Weights as whole numbers, so that sums are exact and the same on every machine.

    The largest becomes 2^32 - 1; one above 0 stays above 0.
    """
    largest = weights.max(initial=0.0)
    if not largest:
        return np.zeros(len(weights), np.uint32)
    whole = np.rint(weights / largest * _WEIGHT_MAX)
    whole[(weights > 0) & (whole == 0)] = 1
    result: Weights = whole.astype(np.uint32)
    return result


def check_shares(shares: Sequence[float]) -> None:
    """Raise UsageError unless these are shares: finite, above 0."""
    for share in shares:
        if not (0 < share < float("inf")):
            raise UsageError(f"a share of {share!r}: shares are finite and above 0")


def _slots(num_slots: int, shares: Sequence[float]) -> list[int]:
    """So many slots in parts of these shares, one at least each; what is left goes by remainder."""
    total = sum(shares)
    wanted = [num_slots * share / total for share in shares]
    slots = [int(part) for part in wanted]
    by_remainder = sorted(range(len(shares)), key=lambda at: slots[at] - wanted[at])
    for at in by_remainder[: num_slots - sum(slots)]:
        slots[at] += 1
    return [max(1, part) for part in slots]
