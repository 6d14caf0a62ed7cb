"""NDJSON number lists straight to tensors: how many 64x64 fossils a CPU-second, beside two peers?

Ours are whole fossils, streamed without any cache in shuffled order, their file indexed (every CID
recomputed) once before; the peers read bare lists with nothing else on the line.
"""

import statistics
import time
from pathlib import Path

from benchmarks.data_common import fossils, number_lists, run_peer, work_folder
from scf.fertilization.fossil_batcher import FossilBatcher

TARGETS = {"HF json streaming": 10, "polars scan_ndjson": 2, "polars read_ndjson": 2}


def run() -> dict[str, object]:
    folder = work_folder()
    fossils(folder)
    source = number_lists(folder)
    began = time.process_time()
    batcher = FossilBatcher(source, batch_size=64, memory_bytes=0)
    index_s = time.process_time() - began
    figures: dict[str, object] = {
        "fossils": batcher.num_fossils,
        "scf, first reading with every CID, per CPU-second": round(batcher.num_fossils / index_s),
    }
    for name, target in TARGETS.items():
        before = _rate(batcher)
        theirs = run_peer(name, folder)
        mine = (before + _rate(batcher)) / 2
        figures["scf, per CPU-second"] = round(mine)
        if "skipped" in theirs:
            figures[name] = theirs["skipped"]
            continue
        figures[f"{name}, per CPU-second"] = theirs["per_cpu_s"]
        figures[f"ratio to {name} (target {target})"] = round(mine / theirs["per_cpu_s"], 2)
    batcher.close()
    figures["scf, packed form, per CPU-second"] = round(_packed(folder / "packed-9066x64.ndjson"))
    return figures


def _rate(batcher: FossilBatcher) -> float:
    rates = []
    for _ in range(3):
        began, count = time.process_time(), 0
        for minibatch in batcher.stream_minibatches():
            count += len(minibatch["u"])
        rates.append(count / (time.process_time() - began))
    return statistics.median(rates)


def _packed(source: Path) -> float:
    batcher = FossilBatcher(source, batch_size=64, memory_bytes=0)
    rate = _rate(batcher)
    batcher.close()
    return rate
