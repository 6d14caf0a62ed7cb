"""Starting, resuming, memory and shuffle: what does the batcher cost beside its rate?"""

import numpy as np

from benchmarks.data_common import fossils, fresh_python, work_folder
from scf.fertilization.shuffle import EpochOrder

_START = """
import json, sys, time
import torch
from scf.fertilization.fossil_batcher import FossilBatcher
torch.zeros(1)
source, cache, memory = sys.argv[1], sys.argv[2], int(sys.argv[3])
options = dict(batch_size=64, cache_root=cache, memory_bytes=memory)
began = time.perf_counter()
batcher = FossilBatcher(source, **options)
stream = batcher.stream_minibatches()
next(stream)
first_s = time.perf_counter() - began
for _ in range(59):
    next(stream)
state = batcher.get_state()
expected = next(stream)
stream.close()
resumed = FossilBatcher(source, **options)
began = time.process_time()
resumed.set_state(json.loads(json.dumps(state)))
stream = resumed.stream_minibatches()
got = next(stream)
resume_s = time.process_time() - began
stream.close()
same = bool((got["u"] == expected["u"]).all()) and got["_cid"] == expected["_cid"]
print(json.dumps([first_s, resume_s, same, len(json.dumps(state))]))
"""

_MEMORY = """
import json, sys
from scf.fertilization.fossil_batcher import FossilBatcher
source, cache, memory = sys.argv[1], sys.argv[2], int(sys.argv[3])
batcher = FossilBatcher(source, batch_size=64, as_numpy=True, cache_root=cache, memory_bytes=memory)
for _ in range(2):
    for minibatch in batcher.stream_minibatches():
        pass
with open("/proc/self/status") as file:
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
print(json.dumps(peak / 1024))
"""
_BUILD = """
import sys
from scf.fertilization.fossil_batcher import FossilBatcher
FossilBatcher(sys.argv[1], batch_size=64, as_numpy=True, cache_root=sys.argv[2], memory_bytes=0)
print(0)
"""
SMALL = 3022


def run() -> dict[str, object]:
    folder = work_folder()
    cache = folder / "cache"
    source = fossils(folder)
    fresh_python(_BUILD, source, cache)
    figures: dict[str, object] = {}
    for memory, told in ((512 * 2**20, "in memory"), (0, "beyond the memory budget")):
        runs = sorted(fresh_python(_START, source, cache, memory) for _ in range(3))
        first_s, resume_s, _, state_bytes = runs[1]
        figures[f"first minibatch, {told}, s (target 0.2)"] = round(first_s, 3)
        figures[f"resume, {told}, CPU s (target 0.05)"] = round(resume_s, 4)
        figures[f"resume, {told}, bit for bit"] = all(run[2] for run in runs)
        figures["state, bytes (target 200)"] = state_bytes
    sources = [fossils(folder, count) for count in (SMALL, 10 * SMALL)]
    for one in sources:
        fresh_python(_BUILD, one, cache)
    for memory, told in ((0, "beyond the memory budget"), (96 * 2**20, "budget of 96 MiB")):
        peaks = [fresh_python(_MEMORY, one, cache, memory) for one in sources]
        figures[f"peak RSS with {SMALL} fossils, {told}, MB"] = round(peaks[0])
        figures[f"peak RSS with {10 * SMALL} fossils, {told}, MB"] = round(peaks[1])
        figures[f"growth, {told}, MB (target ring + 50)"] = round(peaks[1] - peaks[0])
    deciles = [design_effects(epoch) for epoch in range(20)]
    figures["design effect, whole epoch (target 1.6)"] = round(float(np.mean(deciles)), 2)
    figures["design effect, worst tenth of an epoch"] = round(float(np.mean(deciles, 0).max()), 2)
    figures["design effect, tenths"] = [round(float(value), 2) for value in np.mean(deciles, 0)]
    return figures


def design_effects(epoch: int, *, count: int = 1_000_000, size: int = 64) -> list[float]:
    """Variance of minibatch means of a linear trend over file order / iid value, by tenths."""
    order = EpochOrder(count, seed=1, epoch=epoch, window_records=8192)
    records = np.concatenate([order.window(number) for number in range(order.num_windows)])
    means = (records[: count // size * size] / count).reshape(-1, size).mean(axis=1)
    tenths = np.array_split(means, 10)
    return [float(((tenth - 0.5) ** 2).mean() / (1 / 12 / size)) for tenth in tenths]
