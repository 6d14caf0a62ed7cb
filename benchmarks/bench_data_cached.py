"""Cached steady state: how many 64x64 float32 fossils a CPU-second, beside seven other loaders?

Minibatches of 64, shuffled, one process, torch tensors. Each peer runs in its own process; we run
just before and just after it on the same fossils, so that every ratio is of neighbours in time.
"""

import resource
import statistics
import time
from pathlib import Path

import torch

from benchmarks.data_common import fossils, run_peer, work_folder
from scf.fertilization.fossil_batcher import FossilBatcher

TARGETS = {
    "litdata": 8,
    "grain + array_record": 10,
    "MosaicML streaming": 40,
    "webdataset": 50,
    "HF IterableDataset": 100,
    "numpy memmap": 0.8,
}
ROUNDS = 3
EPOCHS = 4


def run() -> dict[str, object]:
    torch.set_num_threads(1)
    folder = work_folder()
    source = fossils(folder)
    hot = _open(source, folder)
    direct = _open(source, folder, memory_bytes=0)
    for batcher in (hot, direct):  # build the cache, warm it
        for _ in batcher.stream_minibatches():
            pass
    figures: dict[str, object] = {"fossils": hot.num_fossils}
    ours = []
    for name, target in TARGETS.items():
        before = _rates(hot)
        theirs = run_peer(name, folder)
        after = _rates(hot)
        ours += [before, after]
        if "skipped" in theirs:
            figures[f"{name}"] = theirs["skipped"]
            continue
        figures[f"{name}, per CPU-second"] = theirs["per_cpu_s"]
        figures[f"{name}, per second"] = theirs["per_s"]
        mine = (before[0] + after[0]) / 2
        figures[f"ratio to {name} (target {target})"] = round(mine / theirs["per_cpu_s"], 2)
    figures["scf, per CPU-second"] = round(statistics.median(rate for rate, _ in ours))
    figures["scf, per second"] = round(statistics.median(rate for _, rate in ours))
    again = run_peer("numpy memmap", folder)
    rate, _ = _rates(direct)
    figures["scf beyond the memory budget, per CPU-second"] = round(rate)
    figures["ratio to numpy memmap beyond the memory budget"] = round(rate / again["per_cpu_s"], 2)
    _plot(figures)
    return figures


def _open(source: Path, folder: Path, **options: int) -> FossilBatcher:
    return FossilBatcher(source, batch_size=64, cache_root=folder / "cache", **options)


def _rates(batcher: FossilBatcher) -> tuple[float, float]:
    """Fossils a CPU-second and a second: medians."""
    found = []
    for _ in range(ROUNDS):
        usage, began, count = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter(), 0
        for _ in range(EPOCHS):
            for minibatch in batcher.stream_minibatches():
                count += len(minibatch["u"])
        now = resource.getrusage(resource.RUSAGE_SELF)
        cpu = now.ru_utime + now.ru_stime - usage.ru_utime - usage.ru_stime
        found.append((count / cpu, count / (time.perf_counter() - began)))
    by_cpu, by_wall = (statistics.median(column) for column in zip(*found, strict=True))
    return by_cpu, by_wall


def _plot(figures: dict[str, object]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    end = ", per CPU-second"
    bars = {k.removesuffix(end): v for k, v in figures.items() if k.endswith(end)}
    names = sorted(bars, key=lambda name: float(str(bars[name])))
    figure, axes = plt.subplots(figsize=(8, 3.5), layout="constrained")
    axes.barh(names, [float(str(bars[name])) for name in names], color="#3b6ea5")
    axes.set_xscale("log")
    axes.set_xlabel("64x64 float32 fossils per CPU-second (cached, shuffled, minibatches of 64)")
    figure.savefig(Path(__file__).parent / "results" / "data_cached.png", dpi=120)
    plt.close(figure)
