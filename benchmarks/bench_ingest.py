"""How fast are files taken in, in how much memory, and what does it cost to ask again?

A directory of 300 MB (HDF5 and npz of 64x64 float32 records, NDJSON of fossils) is ingested by a
process of its own into a fresh foundry, then again, then again with a tenth of new data. Beside it
a narrow Parquet table (8 columns of float64), where all the cost is that of a record, and the
weather stations that pvlib brings (1,095 days).
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

NUM_FILES, RECORDS_PER_FILE = 12, 1500
NARROW_ROWS = 20_000

PROGRAM = """
import json, re, sys, time
from pathlib import Path
from scf.fertilization.primordial_soup import PrimordialSoupIngestor
from scf.fertilization.readers import registry
from scf.signing.keys import load_signer
from scf.storage.partitions import Drive
from scf.vault.journal import Vault

home, root, source, warm = map(Path, sys.argv[1:5])
with Vault.open(Drive.open(root), home, load_signer(home / "keys", "vault")) as vault:
    ingestor = PrimordialSoupIngestor(vault, home=home)
    ingestor.ingest(warm)  # libraries are imported, buffers are there
    # Not getrusage: on Linux a child begins with the peak of the process that started it.
    peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    before, began, cpu = peak(), time.perf_counter(), time.process_time()
    report = ingestor.ingest(source).to_json()
    print(json.dumps({
        "read": report["read"], "accepted": report["accepted"],
        "wall_s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu,
        "grown_mb": (peak() - before) * 1024 / 1e6,
    }))
"""


def run() -> dict[str, object]:
    """All figures; MB are 10^6 bytes of files."""
    with tempfile.TemporaryDirectory(prefix="scf-bench-ingest-") as folder:
        return _run(Path(folder))


def _run(work: Path) -> dict[str, object]:
    import h5py

    from scf.daemon.setup import initialise

    warm, source, narrow = work / "warm", work / "in", work / "narrow"
    for at in range(NUM_FILES):
        _write(source, at, RECORDS_PER_FILE)
    for at in range(3):
        _write(warm, 100 + at, 20)
    places = initialise(work / "home", work / "root")
    size_mb = sum(file.stat().st_size for file in source.iterdir()) / 1e6
    first = _ingest(places, source, warm)
    again = _ingest(places, source, warm)
    _write(source, NUM_FILES, RECORDS_PER_FILE)
    more = _ingest(places, source, warm)
    figures: dict[str, object] = {
        "directory, MB": round(size_mb),
        "directory, records": first["read"],
        "first ingest, CPU s": round(first["cpu_s"], 2),
        "first ingest, MB per CPU s": round(size_mb / first["cpu_s"], 1),
        "first ingest, records per CPU s": round(first["read"] / first["cpu_s"]),
        "first ingest, growth of peak memory, MB": round(first["grown_mb"], 1),
        "second ingest, CPU s": round(again["cpu_s"], 2),
        "second ingest, wall s": round(again["wall_s"], 2),
        "second ingest, newly accepted": again["accepted"],
        "with one new file of 13, CPU s": round(more["cpu_s"], 2),
        "with one new file of 13, newly accepted": more["accepted"],
        "h5py": h5py.__version__,
    }
    _write_narrow(narrow)
    table = _ingest(places, narrow, warm)
    figures["narrow Parquet, records per CPU s"] = round(table["read"] / table["cpu_s"])
    figures["narrow Parquet, us per record"] = round(1e6 * table["cpu_s"] / table["read"], 1)
    return figures | _weather(work)


def _weather(work: Path) -> dict[str, object]:
    """The whole command, start of Python included, on pvlib's folder of data."""
    import pvlib

    places = ["--home", str(work / "home2"), "--root", str(work / "root2")]
    command = [sys.executable, "-m", "scf"]
    subprocess.run([*command, "init", *places], check=True, capture_output=True)
    data = str(Path(pvlib.__file__).parent / "data")
    seconds = {}
    for which in ("first", "second"):
        timed = (
            "import json, resource, subprocess, sys, time\n"
            "began = time.perf_counter()\n"
            "subprocess.run(sys.argv[1:], check=True, capture_output=True)\n"
            "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
            "print(json.dumps([time.perf_counter() - began, used.ru_utime + used.ru_stime]))"
        )
        done = subprocess.run(
            [sys.executable, "-c", timed, *command, "ingest", data, *places],
            check=True,
            capture_output=True,
        )
        wall_s, cpu_s = json.loads(done.stdout)
        seconds[f"pvlib's 1,095 days, {which} `scf ingest`, wall s"] = round(wall_s, 2)
        seconds[f"pvlib's 1,095 days, {which} `scf ingest`, CPU s"] = round(cpu_s, 2)
    return seconds


def _ingest(places, source: Path, warm: Path) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, (places.home, places.root, source, warm))],
        check=True,
        capture_output=True,
    )
    return json.loads(done.stdout)


def _write(folder: Path, at: int, count: int) -> None:
    """One file of 64x64 records: HDF5, npz and NDJSON in turn, no two alike."""
    import h5py

    folder.mkdir(exist_ok=True)
    u = np.random.default_rng(at).standard_normal((count, 64, 64)).astype(np.float32)
    if at % 3 == 0:
        with h5py.File(folder / f"{at:03}.h5", "w") as file:
            file["u"] = u
    elif at % 3 == 1:
        np.savez(folder / f"{at:03}.npz", u=u)
    else:
        _write_fossils(folder / f"{at:03}.ndjson", u)


def _write_fossils(path: Path, u: np.ndarray) -> None:
    from scf.vault.fields import field_of_array
    from scf.vault.fossil import encode_fossil, make_fossil

    with path.open("wb") as file:
        for index, record in enumerate(u):
            block = {
                "schema": "scf.fossil/1",
                "source": "a benchmark",
                "observed_at": None,
                "fields": {"u": field_of_array(record, "")},
                "params": {},
                "provenance": {
                    "origin": path.name,
                    "origin_sha256": "0" * 64,
                    "reader": "npz",
                    "index": index,
                    "licence": None,
                    "parents": [],
                },
            }
            verifier = {"name": "bench", "version": "1", "verdict": "PASS", "checks": {}}
            file.write(encode_fossil(make_fossil(block, verifier)))


def _write_narrow(folder: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir()
    rng = np.random.default_rng(0)
    columns = {f"c{at}": rng.standard_normal(NARROW_ROWS) for at in range(8)}
    parquet.write_table(pa.table(columns), folder / "narrow.parquet")
