"""The other loaders, each on the same numbers. Runs in the peers' own environment, without scf.

    python data_peers.py NAME FOLDER      prints one line of JSON

FOLDER holds `rows.bin` (N x 64 x 64 float32) and, for the text readers, `lists.ndjson`. What a peer
has to convert first is kept in FOLDER/NAME and not timed. Each loader runs as its documentation
shows it, shuffled where it can, minibatches of 64, in one process: with rows of 16 kB every one of
them is slower per CPU-second with worker processes.
"""

import json
import os
import resource
import shutil
import statistics
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np

B = 64
ROUNDS = 3
# A slow loader is measured on fewer minibatches, but for at least this long (CPU-seconds).
CPU_MIN_S = 1.0


def cpu_s() -> float:
    own, children = (
        resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def rows(folder: Path) -> np.ndarray:
    return np.memmap(folder / "rows.bin", "<f4", "r").reshape(-1, 64, 64)


def numpy_memmap(folder: Path):
    import torch

    data = rows(folder)
    data.sum()

    def epoch():
        order = np.random.permutation(len(data))
        for at in range(0, len(data), B):
            yield torch.from_numpy(data[order[at : at + B]])

    return epoch


def litdata_fn(index: int) -> dict:
    return {"x": np.array(rows(Path(os.environ["PEER_FOLDER"]))[index])}


def litdata(folder: Path):
    import litdata as ld

    out = folder / "litdata"
    if not (out / "index.json").exists():
        os.environ["PEER_FOLDER"] = str(folder)
        ld.optimize(
            fn=litdata_fn, inputs=list(range(len(rows(folder)))), output_dir=str(out),
            chunk_bytes="64MB", num_workers=1,
        )  # fmt: skip
    dataset = ld.StreamingDataset(str(out), shuffle=True)
    return lambda: (m["x"] for m in ld.StreamingDataLoader(dataset, batch_size=B, num_workers=0))


def grain_array_record(folder: Path):
    import grain
    from array_record.python.array_record_module import ArrayRecordWriter

    path = folder / "grain" / "rows.array_record"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for row in rows(folder):
            writer.write(row.tobytes())
        writer.close()
    source = grain.sources.ArrayRecordDataSource(str(path))
    dataset = (
        grain.MapDataset.source(source)
        .shuffle(seed=0)
        .map(lambda data: np.frombuffer(data, "<f4").reshape(64, 64))
        .batch(B)
    )
    return lambda: iter(dataset.to_iter_dataset())


def mosaicml_streaming(folder: Path):
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    clean_stale_shared_memory()
    out = folder / "mds"
    if not (out / "index.json").exists():
        with MDSWriter(out=str(out), columns={"x": "ndarray:float32:64,64"}) as writer:
            for row in rows(folder):
                writer.write({"x": np.array(row)})
    dataset = StreamingDataset(local=str(out), shuffle=True, batch_size=B, num_canonical_nodes=1)
    return lambda: (m["x"] for m in DataLoader(dataset, batch_size=B, num_workers=0))


def webdataset(folder: Path):
    import webdataset as wds

    out = folder / "wds"
    if not out.exists():
        staging = folder / "wds.staging"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        with wds.ShardWriter(str(staging / "%03d.tar"), maxcount=2000, verbose=0) as writer:
            for number, row in enumerate(rows(folder)):
                writer.write({"__key__": f"{number:06d}", "x.npy": np.array(row)})
        staging.rename(out)
    urls = sorted(map(str, out.glob("*.tar")))
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls))
        .shuffle(2000)
        .decode()
        .to_tuple("x.npy")
        .batched(B)
    )
    return lambda: (m[0] for m in dataset)


def _hf(folder: Path):
    import datasets

    datasets.disable_progress_bars()
    out = folder / "hf"
    if not out.exists():
        features = datasets.Features({"x": datasets.Array2D((64, 64), "float32")})

        def generate():
            for row in rows(folder):
                yield {"x": np.array(row)}

        made = datasets.Dataset.from_generator(
            generate, features=features, cache_dir=str(folder / "hf.cache")
        )
        made.save_to_disk(str(folder / "hf.staging"))
        (folder / "hf.staging").rename(out)
    return datasets.load_from_disk(str(out))


def hf_iterable(folder: Path):
    from torch.utils.data import DataLoader

    dataset = _hf(folder).to_iterable_dataset(num_shards=4).shuffle(buffer_size=2000, seed=0)
    dataset = dataset.with_format("torch")
    return lambda: (m["x"] for m in DataLoader(dataset, batch_size=B, num_workers=0))


def hf_json(folder: Path):
    """NDJSON lists by HF streaming; the field's numbers only, as a flat list."""
    import datasets
    from torch.utils.data import DataLoader

    files = str(folder / "numbers.ndjson")
    dataset = datasets.load_dataset("json", data_files=files, streaming=True, split="train")
    dataset = dataset.shuffle(buffer_size=256, seed=0).with_format("torch")
    return lambda: (m["x"] for m in DataLoader(dataset, batch_size=B, num_workers=0))


def polars_ndjson(folder: Path):
    import polars as pl
    import torch

    def epoch():
        frame = pl.scan_ndjson(
            folder / "numbers.ndjson", schema={"x": pl.List(pl.Float32)}
        ).collect()
        data = frame["x"].list.to_array(4096).to_numpy().reshape(-1, 64, 64)
        for at in range(0, len(data), B):
            yield torch.from_numpy(np.array(data[at : at + B]))

    return epoch


def polars_read_ndjson(folder: Path):
    """As `polars`, with the types found out by reading."""
    import polars as pl
    import torch

    def epoch():
        frame = pl.read_ndjson(folder / "numbers.ndjson")
        data = frame["x"].list.to_array(4096).to_numpy().astype("<f4").reshape(-1, 64, 64)
        for at in range(0, len(data), B):
            yield torch.from_numpy(data[at : at + B])

    return epoch


PEERS = {
    "numpy memmap": numpy_memmap,
    "litdata": litdata,
    "grain + array_record": grain_array_record,
    "MosaicML streaming": mosaicml_streaming,
    "webdataset": webdataset,
    "HF IterableDataset": hf_iterable,
    "HF json streaming": hf_json,
    "polars scan_ndjson": polars_ndjson,
    "polars read_ndjson": polars_read_ndjson,
}


def measure(epoch, *, whole_epochs: bool = False) -> dict:
    """Samples per CPU-second and per second: median of rounds after one warm pass.

    Readers that parse everything before their first minibatch are measured over whole epochs.
    """
    began_cpu, began = cpu_s(), time.perf_counter()
    first = None
    for minibatch in islice(epoch(), 20):
        if first is None:
            first = (cpu_s() - began_cpu, time.perf_counter() - began)
            assert tuple(minibatch.shape[-2:]) == (64, 64) or minibatch.shape[-1] == 4096
    rates = []
    for _ in range(ROUNDS):
        count, skip = 0, 0 if whole_epochs else 3
        start_cpu, start = cpu_s(), time.perf_counter()
        while cpu_s() - start_cpu < CPU_MIN_S:
            for number, minibatch in enumerate(epoch()):
                if number < skip:
                    start_cpu, start, count = cpu_s(), time.perf_counter(), 0
                    continue
                count += len(minibatch)
                if not whole_epochs and cpu_s() - start_cpu > 4 * CPU_MIN_S:
                    break
            skip = 0
        rates.append((count / (cpu_s() - start_cpu), count / (time.perf_counter() - start)))
    by_cpu, by_wall = (statistics.median(column) for column in zip(*rates, strict=True))
    return {
        "per_cpu_s": round(by_cpu),
        "per_s": round(by_wall),
        "first_cpu_s": round(first[0], 3),
        "first_s": round(first[1], 3),
    }


if __name__ == "__main__":
    name, where = sys.argv[1], Path(sys.argv[2])
    print(json.dumps(measure(PEERS[name](where), whole_epochs="json" in name)), flush=True)
    os._exit(0)  # some peers leave threads behind that keep the process alive
