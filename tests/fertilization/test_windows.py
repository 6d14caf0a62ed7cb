"""However the numbers get into memory, order, ranks and states are the same, and memory is bounded."""

import gc
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from scf.fertilization import windows
from scf.fertilization.fossil_batcher import FossilBatcher
from scf.fertilization.shuffle import EpochOrder
from support.fossils import write_random_fossils

# Options that lead to each way of reading, for rows of 8 kB in the cache.
WAYS = {
    "hot": ({}, windows.HotLoader),
    "direct": ({"memory_bytes": 0}, windows.DirectLoader),
    "windowed": ({"memory_bytes": 0, "verify": "always"}, windows.WindowedLoader),
    "resident": ({"cache_bytes": 0}, windows.ResidentLoader),
    "lines": ({"cache_bytes": 0, "memory_bytes": 0}, windows.WindowedLoader),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> tuple[list[Path], Path]:
    """Three files, 330 fossils of 8 kB, and where they are cached."""
    folder = tmp_path_factory.mktemp("windows")
    sizes = (100, 30, 200)
    sources = [
        write_random_fossils(folder / f"{n}.ndjson", count, size=2048, seed=n)
        for n, count in enumerate(sizes)
    ]
    return sources, folder / "cache"


def batcher(places, way: str, **options) -> FossilBatcher:
    sources, cache = places
    extra, loader = WAYS[way]
    made = FossilBatcher(
        sources,
        **{"batch_size": 12, "as_numpy": True, "window_records": 128, "cache_root": cache}
        | extra
        | options,
    )
    assert isinstance(made._loader, loader)
    return made


def stream(made: FossilBatcher, until_epoch: int) -> list[tuple[list[str], bytes]]:
    seen = []
    while made.epoch < until_epoch:
        seen += [(list(m["_cid"]), m["t"].tobytes()) for m in made.stream_minibatches()]
    made.close()
    return seen


@pytest.mark.parametrize("way", WAYS)
def test_resuming_in_any_epoch_and_at_a_border_goes_on_bit_for_bit(places, way: str) -> None:
    expected = stream(batcher(places, "resident"), 2)
    for stop in (1, 10, 27, 28, 40):  # 28 minibatches an epoch
        first = batcher(places, way)
        seen = 0
        while seen < stop:
            for _ in first.stream_minibatches():
                seen += 1
                if seen == stop:
                    break
        state = json.loads(json.dumps(first.get_state()))
        first.close()
        resumed = batcher(places, way)
        resumed.set_state(state)
        assert stream(resumed, 2) == expected[stop:]


@pytest.mark.parametrize("way", WAYS)
def test_ranks_share_each_minibatch_of_one_rank(places, way: str) -> None:
    alone = stream(batcher(places, "resident"), 1)
    for world_size in (2, 4):
        ranks = [
            stream(batcher(places, way, rank=rank, world_size=world_size), 1)
            for rank in range(world_size)
        ]
        assert {len(rank) for rank in ranks} == {len(alone)}
        for whole, *parts in zip(alone, *ranks, strict=True):
            assert sorted(cid for part in parts for cid in part[0]) == sorted(whole[0])


def test_more_files_than_may_be_open_at_once(places, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = stream(batcher(places, "resident", batch_size=100), 2)
    monkeypatch.setattr(windows, "_OPEN_MAX", 2)

    for way in ("hot", "direct", "windowed"):
        assert stream(batcher(places, way, batch_size=100), 2) == expected


@pytest.mark.parametrize("way", ["direct", "windowed", "lines"])
def test_minibatches_stay_what_they_were(places, way: str) -> None:
    """No buffer is handed out twice: what a consumer keeps is not overwritten later."""
    made = batcher(places, way)
    kept = [(m["t"], m["t"].copy()) for _ in range(2) for m in made.stream_minibatches()]
    made.close()

    for now, then in kept:
        np.testing.assert_array_equal(now, then)


def test_an_epoch_left_in_the_middle_leaves_no_thread(places) -> None:
    made = batcher(places, "direct")
    running = made.stream_minibatches()
    next(running)
    assert any(thread.name == "fossil reader" for thread in threading.enumerate())

    del running
    gc.collect()

    assert not any(thread.name == "fossil reader" for thread in threading.enumerate())
    made.close()


def test_the_shuffle_is_as_good_in_every_tenth_of_an_epoch() -> None:
    """Design effect: variance of minibatch means of a trend along the file, 1 if fully random.

    Expected 1 + 63 / 128 = 1.49 for windows of 128 blocks; the mean of 12 epochs scatters by 0.1.
    """
    count, size = 400_000, 64
    tenths = []
    for epoch in range(12):
        order = EpochOrder(count, seed=3, epoch=epoch, window_records=8192)
        records = np.concatenate([order.window(number) for number in range(order.num_windows)])
        means = (records[: count // size * size] / count).reshape(-1, size).mean(axis=1)
        tenths.append([((m - 0.5) ** 2).mean() * 12 * size for m in np.array_split(means, 10)])

    assert np.mean(tenths) <= 1.6
    assert np.mean(tenths, axis=0).max() <= 1.9


PEAK = """
import sys
from scf.fertilization.fossil_batcher import FossilBatcher
batcher = FossilBatcher(
    sys.argv[1], batch_size=16, as_numpy=True, cache_root=sys.argv[2], memory_bytes=0,
    window_records=256,
)
for _ in range(3):
    for minibatch in batcher.stream_minibatches():
        pass
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_ten_times_the_data_takes_no_more_memory(tmp_path: Path) -> None:
    """4 MB and 41 MB of numbers: the peak differs by less than 8 MB, index and all."""
    peaks = []
    for count in (250, 2500):
        source = write_random_fossils(tmp_path / f"{count}.ndjson", count, size=4096)
        for _ in range(2):  # built by the first, read by the second
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", PEAK, str(source), str(tmp_path / "cache")],
                check=True,
                capture_output=True,
                text=True,
            )
        peaks.append(int(done.stdout))

    assert peaks[1] - peaks[0] < 8 * 1024
