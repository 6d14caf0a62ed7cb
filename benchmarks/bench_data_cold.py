"""Cold and slow disks: how much faster than reading rows at random, as a memmap does?

Cold: the page cache is emptied of the files before each pass (wall time on this machine's disk).
Slow: a disk of 120 MB/s and 10 ms a seek, as a model: every read that we really make is charged
for what the page cache would not have held; nobody sleeps.
"""

import os
import statistics
import time
from pathlib import Path

import numpy as np

from benchmarks.data_common import NUM_FOSSILS, fossils, work_folder
from scf.fertilization import windows
from scf.fertilization.fossil_batcher import FossilBatcher

ROW_BYTES = 16384
PAGE_BYTES = 4096
SEEK_S, BYTES_PER_S = 0.010, 120e6


def run() -> dict[str, object]:
    folder = work_folder()
    source = fossils(folder)
    batcher = FossilBatcher(source, batch_size=64, memory_bytes=0, cache_root=folder / "cache")
    rows = next((folder / "cache").glob("*.rows"))
    cold = []
    for _ in range(3):
        _forget(rows)
        began = time.perf_counter()
        count = sum(len(m["u"]) for m in batcher.stream_minibatches())
        ours = count / (time.perf_counter() - began)
        cold.append((ours, _memmap(folder / "rows.bin")))
    batcher.close()
    mine, theirs = (statistics.median(column) for column in zip(*cold, strict=True))
    slow, slow_memmap = _slow(source, folder)
    return {
        "scf, cold, per second": round(mine),
        "numpy memmap, cold, per second": round(theirs),
        "ratio, cold (target 2)": round(statistics.median(a / b for a, b in cold), 2),
        "scf, 120 MB/s and 10 ms, per second": round(slow),
        "numpy memmap, 120 MB/s and 10 ms, per second": round(slow_memmap),
        "ratio, 120 MB/s and 10 ms (target 30)": round(slow / slow_memmap, 1),
    }


def _memmap(path: Path) -> float:
    """Rows in random order; the kernel is told so, or it would read far too much for each."""
    import mmap

    _forget(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        mapped.madvise(mmap.MADV_RANDOM)
        data = np.frombuffer(mapped, "<f4").reshape(-1, 64, 64)
        order = np.random.default_rng(0).permutation(len(data))
        began = time.perf_counter()
        for at in range(0, len(data), 64):
            data[order[at : at + 64]]
        rate = len(data) / (time.perf_counter() - began)
        del data
    return rate


def _forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


class _Disk:
    """Counts the seconds that a disk would have needed; what was read once stays cached."""

    def __init__(self) -> None:
        self.seconds, self._head = 0.0, -1
        self._cached: set[tuple[int, int]] = set()

    def read(self, inode: int, offset: int, size: int) -> None:
        pages = range(offset // PAGE_BYTES, -(-(offset + size) // PAGE_BYTES))
        missing = [page for page in pages if (inode, page) not in self._cached]
        if missing:
            self.seconds += SEEK_S * (missing[0] != self._head)
            self.seconds += (missing[-1] + 1 - missing[0]) * PAGE_BYTES / BYTES_PER_S
            self._head = missing[-1] + 1
            self._cached.update((inode, page) for page in missing)

    def holds(self, inode: int, offset: int) -> bool:
        return (inode, offset // PAGE_BYTES) in self._cached


def _slow(source: Path, folder: Path) -> tuple[float, float]:
    disk, really = _Disk(), os.preadv

    def preadv(descriptor, buffers, offset, flags=0):
        inode = os.fstat(descriptor).st_ino
        if flags and not disk.holds(inode, offset):
            raise BlockingIOError
        disk.read(inode, offset, sum(memoryview(b).nbytes for b in buffers))
        return really(descriptor, buffers, offset)

    batcher = FossilBatcher(source, batch_size=64, memory_bytes=0, cache_root=folder / "cache")
    assert isinstance(batcher._loader, windows.DirectLoader)  # noqa: SLF001
    os.preadv = preadv
    try:
        count = sum(len(m["u"]) for m in batcher.stream_minibatches())
    finally:
        os.preadv = really
        batcher.close()
    memmap = _Disk()
    for row in np.random.default_rng(0).permutation(NUM_FOSSILS).tolist():
        memmap.read(0, row * ROW_BYTES, ROW_BYTES)
    return count / disk.seconds, NUM_FOSSILS / memmap.seconds
