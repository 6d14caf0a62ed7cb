"""The order of fossils: a pure function of (seed, epoch, position), with nothing stored.

Two levels, so that a slow disk reads in large pieces and the order is still nearly random: blocks
of 64 neighbours are permuted; a window of 128 permuted blocks is read in the order of the disk; its
records are permuted within the window. With 8,192 records in memory the design effect (variance of
minibatch means of a trend along the file, against a perfect shuffle) is about 1.5, where 64 is no
shuffle at all (research, data plane, section 5).

The permutations are keyed Feistel networks with cycle-walking: they cost no memory, can be
inverted, and are the same on every machine and in every version.
Test vectors: docs/formats/batch-plan.md.
"""

import hashlib
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Positions = npt.NDArray[np.int64]
_Numbers = npt.NDArray[np.uint64]
_Step = Callable[[_Numbers], _Numbers]
BLOCK_RECORDS = 64
_ROUNDS = 8


class KeyedPermutation:
    """A permutation of 0 .. size-1 that is chosen by a text key.

    The smallest domain of 4^h >= size numbers is permuted by a Feistel network of 8 rounds with the
    finaliser of splitmix64; results beyond `size` are walked on until they fall inside.
    """

    def __init__(self, size: int, key: str) -> None:
        if size < 1:
            raise ValueError(f"a permutation of {size} numbers")
        self.size = size
        self._half_bits = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        self._mask = np.uint64((1 << int(self._half_bits)) - 1)
        # 64 bytes: one 64-bit key a round, little-endian.
        self._keys = np.frombuffer(hashlib.sha512(key.encode()).digest(), "<u8")

    def __call__(self, positions: Positions) -> Positions:
        """What stands at these positions."""
        return self._walk(positions, self._forward)

    def inverse(self, values: Positions) -> Positions:
        """The positions at which these numbers stand."""
        return self._walk(values, self._backward)

    def table(self) -> Positions:
        """What stands at every position: as calling it with all of them, and twice as fast."""
        domain = np.arange(1 << 2 * int(self._half_bits), dtype=np.uint64)
        step = self._forward(domain).astype(np.int64)
        result: Positions = step[: self.size]
        while len(outside := np.flatnonzero(result >= self.size)):
            result[outside] = step[result[outside]]
        return result

    def _walk(self, numbers: Positions, step: _Step) -> Positions:
        current = step(np.asarray(numbers, np.uint64))
        while (outside := current >= self.size).any():
            current[outside] = step(current[outside])
        result: Positions = current.astype(np.int64)
        return result

    def _forward(self, numbers: _Numbers) -> _Numbers:
        left, right = numbers >> self._half_bits, numbers & self._mask
        for key in self._keys:
            mixed = mix64(right ^ key)
            mixed &= self._mask
            mixed ^= left
            left, right = right, mixed
        return (left << self._half_bits) | right

    def _backward(self, numbers: _Numbers) -> _Numbers:
        left, right = numbers >> self._half_bits, numbers & self._mask
        for key in self._keys[::-1]:
            left, right = right ^ (mix64(left ^ key) & self._mask), left
        return (left << self._half_bits) | right


class EpochOrder:
    """The order of one epoch, window by window.

    Args:
        num_records: How many records there are.
        seed: Of the batcher.
        epoch: From 0; each epoch has another order.
        window_records: Records that are in memory at a time; rounded to whole blocks.
        shuffle: False gives the order as stored.
    """

    def __init__(
        self, num_records: int, *, seed: int, epoch: int, window_records: int, shuffle: bool = True
    ) -> None:
        self.num_records = num_records
        self._num_blocks = -(-num_records // BLOCK_RECORDS)
        self._window_blocks = max(1, window_records // BLOCK_RECORDS)
        self._key = f"scf.shuffle/1:{seed}:{epoch}"
        self._shuffle = shuffle
        # Only the last block may be short. Where it stands decides where later windows begin.
        self._shortage = self._num_blocks * BLOCK_RECORDS - num_records
        self._blocks: KeyedPermutation | None = None
        self._short_window = self.num_windows - 1
        if shuffle and num_records:
            self._blocks = KeyedPermutation(self._num_blocks, f"{self._key}:blocks")
            at = int(self._blocks.inverse(np.array([self._num_blocks - 1]))[0])
            self._short_window = at // self._window_blocks

    @property
    def num_windows(self) -> int:
        """How many windows an epoch has."""
        return -(-self._num_blocks // self._window_blocks)

    def window_start(self, window: int) -> int:
        """The position in the epoch of the first record of `window`."""
        start = window * self._window_blocks * BLOCK_RECORDS
        start -= self._shortage if window > self._short_window else 0
        return min(start, self.num_records)

    def window_at(self, position: int) -> int:
        """The window that holds `position`."""
        window = position // (self._window_blocks * BLOCK_RECORDS)
        return window + 1 if self.window_start(window + 1) <= position else window

    def window(self, window: int) -> Positions:
        """The records of `window`, as places in the stored order, in the order of this epoch."""
        first = window * self._window_blocks
        slots = np.arange(first, min(first + self._window_blocks, self._num_blocks), dtype=np.int64)
        blocks = slots if self._blocks is None else np.sort(self._blocks(slots))
        starts = blocks * BLOCK_RECORDS
        records = (starts[:, None] + np.arange(BLOCK_RECORDS)).ravel()
        records = records[records < self.num_records]
        if self._shuffle:
            rows = KeyedPermutation(len(records), f"{self._key}:window:{window}")
            records = records[rows.table()]
        return records


def mix64(numbers: _Numbers) -> _Numbers:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014); wraps modulo 2^64.

    `numbers` is changed on the way: the caller has no use for it, and memory is what this costs.
    """
    shifted = numbers >> np.uint64(30)
    numbers ^= shifted
    numbers *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(numbers, np.uint64(27), out=shifted)
    numbers ^= shifted
    numbers *= np.uint64(0x94D049BB133111EB)
    np.right_shift(numbers, np.uint64(31), out=shifted)
    numbers ^= shifted
    return numbers
