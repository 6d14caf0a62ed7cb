"""What breaks first at 10, 100 and 1,000 times the vault, and at 1,000 readers?

Constants are measured here in a minute (index, plan, start of the batcher) or taken from the
results of the other benchmarks; times and sizes at scale follow from them. The shared disk is
simulated, request by request. docs/scale.md says what the figures mean; its tables are these.
"""

import json
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from benchmarks.data_common import fossils, work_folder

RESULTS = Path(__file__).parent / "results"
VAULT_BYTES = 1.5e12
SHARD_BYTES = 256e6
LINE_BYTES = 22_700  # a fossil of 64x64 float32 as a line
NUMBERS_BYTES = 16_384
NARROW_LINE_BYTES = 1_300  # eight scalars
DISK_BYTES_S, SEEK_FULL_S, SEEK_MIN_S = 120e6, 0.015, 0.002
SCALES = (1, 10, 100, 1000)
READERS = (1, 4, 16, 64, 256, 1000)


def run() -> dict[str, object]:
    """Constants, then what they come to."""
    constants = measured()
    figures: dict[str, object] = {name: _short(value) for name, value in constants.items()}
    for scale in SCALES:
        for name, value in at_scale(scale, constants).items():
            figures[f"{scale}x: {name}"] = _short(value)
    for readers in READERS:
        figures[f"one disk, {readers} readers: fossils/s for each"] = _short(shared_disk(readers))
    for ranks in (2, 8, 64):
        figures[f"{ranks} ranks: blocks that each touches, of a window's"] = _short(touched(ranks))
    return figures


def measured() -> dict[str, float]:
    """The constants of this machine."""
    found = {**_index(), **_start()}
    ingest, state = _result("ingest"), _result("data_state")
    found["ingest, bytes/CPU-s"] = 1e6 * ingest["first ingest, MB per CPU s"]
    found["ingest, narrow, records/CPU-s"] = ingest["narrow Parquet, records per CPU s"]
    found["batcher, cached, fossils/CPU-s"] = _result("data_cached")["scf, per CPU-second"]
    found["batcher, from NDJSON, fossils/CPU-s"] = _result("data_ndjson")[
        "scf, packed form, per CPU-second"
    ]
    found["resume, CPU s"] = state["resume, beyond the memory budget, CPU s (target 0.05)"]
    return found


def _index(count: int = 200_000) -> dict[str, float]:
    """The vault's index, filled as an ingest fills it, and a plan's pass over it."""
    from scf.core.merkle import TreeHasher
    from scf.vault.index import Index

    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="scf-bench-scale-") as folder:
        path = Path(folder) / "index.db"
        index = Index(path)
        began = time.process_time()
        for shard in range(20):
            for line in range(count // 20):
                at = shard * count // 20 + line
                family = SimpleNamespace(family_at=lambda _, at=at: f"origin.h5#{at // 64}")
                index.offer(
                    SimpleNamespace(digest=rng.bytes(32), provenance=family, verdict="PASS"), line
                )
            with index.change():
                index.add_pending(f"shards/{shard:02}/{shard:016}.ndjson")
        index_s = time.process_time() - began
        began = time.process_time()
        tree = TreeHasher()
        for cid in index.cids():
            tree.add(cid.encode())
        families = len(list(index.families()))
        plan_s = time.process_time() - began
        assert families == -(-count // 64)
        index.close()
        return {
            "index, bytes/fossil": path.stat().st_size / count,
            "index, CPU s/fossil": index_s / count,
            "plan, CPU s/fossil": plan_s / count,
        }


def _start(count: int = 30_220) -> dict[str, float]:
    """Opening a batcher on a built cache: what it costs for each fossil there is."""
    from scf.fertilization.fossil_batcher import FossilBatcher

    folder = work_folder()
    options = {"batch_size": 64, "as_numpy": True, "memory_bytes": 0}
    options["cache_root"] = folder / "cache"
    costs = {}
    for size in (count // 10, count):
        source = fossils(folder, size)
        FossilBatcher(source, **options)
        times = []
        for _ in range(3):
            began = time.process_time()
            FossilBatcher(source, split="train", **options)
            times.append(time.process_time() - began)
        costs[size] = min(times)
    per_fossil = (costs[count] - costs[count // 10]) / (count - count // 10)
    return {"batcher start, CPU s/fossil": per_fossil}


def at_scale(scale: int, constants: dict[str, float]) -> dict[str, float]:
    """Sizes and times for `scale` vaults of 1.5 TB of 64x64 fossils, one machine, one disk."""
    size = scale * VAULT_BYTES
    count = size / LINE_BYTES
    shards = size / SHARD_BYTES
    return {
        "fossils, 1e6": count / 1e6,
        "shards": shards,
        "disk read once, h": size / DISK_BYTES_S / 3600,
        "ingest on one core, h": count * NUMBERS_BYTES / constants["ingest, bytes/CPU-s"] / 3600,
        "index, GB": count * constants["index, bytes/fossil"] / 1e9,
        "index of narrow fossils, GB": size
        / NARROW_LINE_BYTES
        * constants["index, bytes/fossil"]
        / 1e9,
        "plan, CPU min": count * constants["plan, CPU s/fossil"] / 60,
        "plan.json, MB": shards * 250 / 1e6,
        "batcher start, CPU s": count * constants["batcher start, CPU s/fossil"],
        "batcher start, heads read, GB": count * 40 / 1e9,
        "batcher, memory for offsets and digests, MB": count * 40 / 64 / 1e6,
        "batcher, memory where streamed, GB": count * 56 / 1e9,
        "cache wanted, TB": count * (NUMBERS_BYTES + 40) / 1e12,
        "epoch from NDJSON, h": max(
            size / DISK_BYTES_S, count / constants["batcher, from NDJSON, fossils/CPU-s"]
        )
        / 3600,
    }


def shared_disk(readers: int, *, block_rows: int = 64, rounds: int = 200) -> float:
    """Fossils a second for each of some readers that share one disk of 120 MB/s.

    Each asks for its window's blocks in ascending order; the disk serves readers in turn. A seek
    takes 2 ms and up to 15 ms, by the square root of the distance (mean 10 ms at random).
    """
    rng = np.random.default_rng(readers)
    head, elapsed, served = 0.0, 0.0, 0
    queues = [np.sort(rng.random(128)) for _ in range(readers)]
    places = [0] * readers
    for _ in range(max(1, rounds * 128 // readers)):
        for reader in range(readers):
            if places[reader] == 128:
                queues[reader], places[reader] = np.sort(rng.random(128)), 0
            place = float(queues[reader][places[reader]])
            places[reader] += 1
            elapsed += SEEK_MIN_S + (SEEK_FULL_S - SEEK_MIN_S) * abs(place - head) ** 0.5
            elapsed += block_rows * NUMBERS_BYTES / DISK_BYTES_S
            head, served = place, served + block_rows
    return served / elapsed / readers


def touched(ranks: int, *, minibatch: int = 1024) -> float:
    """Share of a window's blocks of which a rank needs at least one row."""
    from scf.fertilization.shuffle import EpochOrder

    rows = EpochOrder(10**6, seed=0, epoch=0, window_records=8192).window(3)
    mine = rows[np.arange(len(rows)) % minibatch % ranks == 0]
    return len(np.unique(mine // 64)) / len(np.unique(rows // 64))


def _result(name: str) -> dict[str, float]:
    figures: dict[str, float] = json.loads((RESULTS / f"{name}.json").read_text())["figures"]
    return figures


def _short(value: float) -> float:
    return float(f"{value:.3g}")
