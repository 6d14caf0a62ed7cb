"""Windows of fossils: read in the order of the disk, handed out in the order of the epoch.

How a window's numbers get into memory is chosen once, by size:

* resident: every file's numbers are in memory since they were indexed;
* hot: they fit into `memory_bytes`: each group is read once and stays. Until a window is there,
  it is served as below;
* direct: large rows in the shard cache. A reader thread brings the window's blocks into the
  system's page cache, in the order of the disk; each row is then read straight into its place in a
  minibatch. One copy, no window in our own memory, and no view that could be overwritten;
* windowed: small rows, or lines of NDJSON: a reader thread fills one of two buffers ahead.

Everything is read with `preadv`, never through a mapping: a drive that is pulled is then an error
of a call, where a mapping would kill the process.
"""

import contextlib
import errno
import os
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scf.fertilization.fossil_table import FossilTable, Rows
from scf.fertilization.rows_file import GROUP_ROWS, HEAD, Heads, read_exactly
from scf.fertilization.segments import CachedSegment, GroupBuffer, OpenFiles, bytes_of
from scf.vault.fields import Array

CACHED, BLOCK, ALWAYS = "cached", "block", "always"
# From this size on a row is worth a system call of its own (1 us beside 1.7 us for 16 kB).
DIRECT_ROW_BYTES = 4096
# Of every hundred blocks one is read and verified anew in each epoch, another one each time.
SCRUB_EVERY = 100
# A window larger than this is not read ahead: it would push itself out of the page cache.
_AHEAD_MAX_BYTES = 2**30
# Descriptors that one of the two threads may hold; 256 is all that macOS gives a process.
_OPEN_MAX = 96
_STOP_WAIT_S = 5.0
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


@dataclass(frozen=True, slots=True)
class Window:
    """Some rows, ready to be handed out.

    Attributes:
        heads: Who they are, in the order asked for.
        segments: Which segment each is in.
        gather: Fresh arrays of the rows from one place to another.
        buffer: What has to be given back.
    """

    heads: Heads
    segments: Rows
    gather: Callable[[int, int], dict[str, Array]]
    buffer: GroupBuffer | None = None


class Loader:
    """Loads windows of a table. Made by `loader_for`."""

    def __init__(self, table: FossilTable, verify: str) -> None:
        self._table = table
        self._verify = verify
        self._files = OpenFiles(_OPEN_MAX)
        self._is_verified = np.zeros(table.num_groups if verify == BLOCK else 0, bool)

    @property
    def reads_ahead(self) -> bool:
        """Whether loading takes time that a thread of its own can hide."""
        return True

    def load(self, rows: Rows, epoch: int) -> Window:
        """Make these rows ready."""
        raise NotImplementedError

    def follow_up(self, rows: Rows, epoch: int) -> None:
        """What can be done once the window of these rows is handed over."""

    def give_back(self, window: Window) -> None:
        """The window is not used any more."""

    def close(self) -> None:
        """Close the files."""
        self._files.close()

    def _needs_check(self, group: int, epoch: int) -> bool:
        if self._verify == ALWAYS or group % SCRUB_EVERY == epoch % SCRUB_EVERY:
            return True
        return self._verify == BLOCK and not self._is_verified[group]

    def _note_check(self, group: int) -> None:
        if self._verify == BLOCK:
            self._is_verified[group] = True

    def _place(self, rows: Rows) -> tuple[Rows, Rows, Rows]:
        """Of each row: segment, group over all segments, and place in the group."""
        segments = self._table.segment_of(rows)
        groups = self._table.group_of(rows, segments)
        return segments, groups, (rows - self._table.first_rows[segments]) % GROUP_ROWS

    def _load_group(self, group: int, into: GroupBuffer, slot: int, epoch: int) -> None:
        number = int(np.searchsorted(self._table.first_groups, group, side="right")) - 1
        local = group - int(self._table.first_groups[number])
        check = self._needs_check(group, epoch)
        self._table.segments[number].load(local, into, slot, self._files, verify=check)
        if check:
            self._note_check(group)


class ResidentLoader(Loader):
    """All numbers are in memory."""

    def __init__(self, table: FossilTable, heads: Heads, columns: dict[str, Array]) -> None:
        super().__init__(table, CACHED)
        self._heads, self._columns = heads, columns

    @property
    def reads_ahead(self) -> bool:
        return False

    def load(self, rows: Rows, epoch: int) -> Window:
        return Window(
            self._heads[rows], self._table.segment_of(rows), _gather_of(self._columns, rows)
        )


class HotLoader(Loader):
    """Groups are read when they are first needed, and stay.

    Args:
        table: The fossils.
        verify: When blocks are verified.
        groups: The groups that are needed.
        direct: Serves windows that are not in memory yet, so that the first minibatch of a run need
            not wait for its whole window; what it needs is loaded meanwhile. Without it (small
            rows), a window is loaded first.
    """

    def __init__(
        self, table: FossilTable, verify: str, groups: Rows, direct: "DirectLoader | None"
    ) -> None:
        super().__init__(table, verify)
        self._direct = direct
        self._slots = np.full(table.num_groups, -1, np.int32)
        self._slots[groups] = np.arange(len(groups), dtype=np.int32)
        self._is_loaded = np.zeros(table.num_groups, bool)
        self._num_missing = len(groups)
        self._buffer = GroupBuffer(table.kind.specs, len(groups))

    @property
    def reads_ahead(self) -> bool:
        return self._num_missing > 0

    def load(self, rows: Rows, epoch: int) -> Window:
        segments, groups, in_group = self._place(rows)
        is_new = ~self._is_loaded[groups]
        if self._direct is not None and is_new.any():
            return self._direct.load(rows, epoch)
        self._load_groups(groups[is_new], epoch)
        is_due = (groups % SCRUB_EVERY == epoch % SCRUB_EVERY) & ~is_new
        for group in np.unique(groups[is_due]).tolist():
            self._scrub(group)
        places = self._slots[groups].astype(np.int64) * GROUP_ROWS + in_group
        return Window(
            self._buffer.heads[places], segments, _gather_of(self._buffer.columns, places)
        )

    def follow_up(self, rows: Rows, epoch: int) -> None:
        _, groups, _ = self._place(rows)
        self._load_groups(groups[~self._is_loaded[groups]], epoch)

    def close(self) -> None:
        super().close()
        if self._direct is not None:
            self._direct.close()

    def _load_groups(self, groups: Rows, epoch: int) -> None:
        for group in np.unique(groups).tolist():
            self._load_group(group, self._buffer, int(self._slots[group]), epoch)
            self._is_loaded[group] = True
            self._num_missing -= 1

    def _scrub(self, group: int) -> None:
        """Look at the disk again, though the numbers are here: rot is to be found early."""
        number = int(np.searchsorted(self._table.first_groups, group, side="right")) - 1
        segment = self._table.segments[number]
        if isinstance(segment, CachedSegment):
            local = group - int(self._table.first_groups[number])
            segment.rows.read_whole(self._files.descriptor(segment.path), local)


class WindowedLoader(Loader):
    """Two buffers: one is filled while the other is handed out."""

    def __init__(self, table: FossilTable, verify: str) -> None:
        super().__init__(table, verify)
        self._free: list[GroupBuffer] = []

    def load(self, rows: Rows, epoch: int) -> Window:
        segments, groups, in_group = self._place(rows)
        distinct, slots = np.unique(groups, return_inverse=True)
        buffer = self._take_buffer(len(distinct))
        for slot, group in enumerate(distinct.tolist()):
            self._load_group(group, buffer, slot, epoch)
        places = slots * GROUP_ROWS + in_group
        return Window(buffer.heads[places], segments, _gather_of(buffer.columns, places), buffer)

    def give_back(self, window: Window) -> None:
        if window.buffer is not None and len(self._free) < 2:
            self._free.append(window.buffer)

    def _take_buffer(self, num_groups: int) -> GroupBuffer:
        while self._free:
            buffer = self._free.pop()
            if buffer.num_groups >= num_groups:
                return buffer
        return GroupBuffer(self._table.kind.specs, num_groups)


class DirectLoader(Loader):
    """Rows are read from the page cache straight into minibatches."""

    def __init__(self, table: FossilTable, verify: str, window_bytes: int) -> None:
        super().__init__(table, verify)
        self._row_files = OpenFiles(_OPEN_MAX)  # of the thread that gathers
        self._warms = window_bytes <= _AHEAD_MAX_BYTES
        self._first_epoch: int | None = None
        self._scratch = bytearray()
        self._probe = bytearray(1)

    def load(self, rows: Rows, epoch: int) -> Window:
        self._first_epoch = epoch if self._first_epoch is None else self._first_epoch
        segments, groups, in_group = self._place(rows)
        distinct, slots = np.unique(groups, return_inverse=True)
        heads = np.empty(len(distinct) * GROUP_ROWS, HEAD)
        numbers = np.searchsorted(self._table.first_groups, distinct, side="right") - 1
        for slot, (group, number) in enumerate(
            zip(distinct.tolist(), numbers.tolist(), strict=True)
        ):
            segment = self._segment(number)
            local = group - int(self._table.first_groups[number])
            count = segment.rows.group_rows(local)
            if self._needs_check(group, epoch):
                segment.rows.read_whole(self._files.descriptor(segment.path), local)
                self._note_check(group)
            elif self._warms:
                self._warm(segment, local, epoch)
            into = heads[slot * GROUP_ROWS : slot * GROUP_ROWS + count]
            segment.load_heads(local, into, self._files)
        starts = {name: np.empty(len(rows), np.int64) for name in self._table_columns}
        for number in np.unique(numbers).tolist():
            mine = segments == number
            local_rows = rows[mine] - self._table.first_rows[number]
            for name, start in starts.items():
                start[mine] = self._segment(number).offsets(local_rows, name)
        gather = _RowReads(self._table, self._row_files, segments, starts)
        return Window(heads[slots * GROUP_ROWS + in_group], segments, gather)

    @property
    def _table_columns(self) -> list[str]:
        return [spec.name for spec in self._table.kind.specs]

    def close(self) -> None:
        super().close()
        self._row_files.close()

    def _segment(self, number: int) -> CachedSegment:
        segment = self._table.segments[number]
        assert isinstance(segment, CachedSegment)
        return segment

    def _warm(self, segment: CachedSegment, group: int, epoch: int) -> None:
        """Bring a block into the page cache, unless its end is there already."""
        rows = segment.rows
        size = sum(rows.row_bytes) * rows.group_rows(group)
        start = int(rows.offsets[group])
        descriptor = self._files.descriptor(segment.path)
        if _NOWAIT:
            with contextlib.suppress(OSError):
                if os.preadv(descriptor, [self._probe], start + size - 1, _NOWAIT) == 1:
                    return
        elif epoch != self._first_epoch:
            return  # nobody can tell; after one epoch we trust the page cache
        if len(self._scratch) < size:
            self._scratch = bytearray(size)
        read_exactly(descriptor, [memoryview(self._scratch)[:size]], start, segment.path)


class _RowReads:
    """Reads rows into fresh arrays, each by one call a field."""

    def __init__(
        self, table: FossilTable, files: OpenFiles, segments: Rows, starts: dict[str, Rows]
    ) -> None:
        self._table, self._files = table, files
        self._segments, self._starts = segments, starts

    def __call__(self, low: int, high: int) -> dict[str, Array]:
        arrays = {}
        segments = self._segments[low:high].tolist()
        if high - low > _OPEN_MAX and len(set(segments)) > _OPEN_MAX:
            middle = (low + high) // 2
            halves = self(low, middle), self(middle, high)
            return {name: np.concatenate([half[name] for half in halves]) for name in halves[0]}
        # Distinct files are few, and all of them stay open while one minibatch is read.
        opened = {s: self._files.descriptor(self._table.segments[s].path) for s in set(segments)}
        descriptors = [opened[s] for s in segments]
        preadv = os.preadv
        for spec in self._table.kind.specs:
            array = np.empty((high - low, *spec.shape), spec.numpy_dtype)
            rows: Any = bytes_of(array).reshape(high - low, spec.size_bytes)
            starts = self._starts[spec.name][low:high].tolist()
            size = spec.size_bytes
            try:
                for row, start, descriptor in zip(rows, starts, descriptors, strict=True):
                    if preadv(descriptor, (row,), start) != size:
                        raise OSError(errno.EIO, "short read")
            except OSError:  # once more, carefully, and with the file's name
                for row, start, number in zip(rows, starts, segments, strict=True):
                    read_exactly(opened[number], [row], start, self._table.segments[number].path)
            arrays[spec.name] = array
        return arrays


def loader_for(
    table: FossilTable, *, verify: str, window_records: int, memory_bytes: int
) -> Loader:
    """How this table is best read."""
    resident = table.resident() if verify != ALWAYS else None
    if resident is not None:
        return ResidentLoader(table, *resident)
    row_bytes = sum(spec.size_bytes for spec in table.kind.specs)
    is_cached = all(isinstance(segment, CachedSegment) for segment in table.segments)
    direct: DirectLoader | None = None
    if is_cached and row_bytes >= DIRECT_ROW_BYTES and verify != ALWAYS:
        direct = DirectLoader(table, verify, window_records * row_bytes)
    if verify != ALWAYS and len(table) * row_bytes <= memory_bytes:
        groups = table.selected_groups()
        if len(groups) * GROUP_ROWS * (row_bytes + HEAD.itemsize) <= memory_bytes:
            return HotLoader(table, verify, groups, direct)
    return direct or WindowedLoader(table, verify)


def read_windows(
    loader: Loader, order: Callable[[int], Rows], numbers: range, epoch: int
) -> Iterator[Window]:
    """The windows of an epoch one after another, the next one being loaded meanwhile.

    Args:
        loader: Loads them.
        order: The rows of a window.
        numbers: Which windows.
        epoch: The epoch.
    """
    if not loader.reads_ahead:
        for number in numbers:
            yield loader.load(order(number), epoch)
        return
    reader = _Reader(loader, order, numbers, epoch)
    try:
        yield from reader.windows()
    finally:
        reader.stop()


class _Reader:
    """The reader thread of one epoch. At most one window is ready beside the one in use."""

    def __init__(
        self, loader: Loader, order: Callable[[int], Rows], numbers: range, epoch: int
    ) -> None:
        self._loader, self._order = loader, order
        self._numbers, self._epoch = numbers, epoch
        self._ready: queue.SimpleQueue[Window | BaseException | None] = queue.SimpleQueue()
        self._may_load = threading.Semaphore(2)
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fossil reader", daemon=True)
        self._thread.start()

    def windows(self) -> Iterator[Window]:
        """What the thread loads; what it raises is raised here."""
        while (item := self._ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
            self._loader.give_back(item)
            self._may_load.release()

    def stop(self) -> None:
        """End the thread. One that hangs in a drive that does not answer is left behind."""
        self._is_stopped.set()
        self._may_load.release()
        self._thread.join(_STOP_WAIT_S)

    def _run(self) -> None:
        try:
            for number in self._numbers:
                self._may_load.acquire()
                if self._is_stopped.is_set():
                    return
                rows = self._order(number)
                self._ready.put(self._loader.load(rows, self._epoch))
                self._loader.follow_up(rows, self._epoch)
            self._ready.put(None)
        except BaseException as error:  # noqa: BLE001 - carried over to the thread that waits
            self._ready.put(error)


def _gather_of(columns: dict[str, Array], places: Rows) -> Callable[[int, int], dict[str, Array]]:
    def gather(low: int, high: int) -> dict[str, Array]:
        chosen: npt.NDArray[Any] = places[low:high]
        return {name: column.take(chosen, axis=0) for name, column in columns.items()}

    return gather
