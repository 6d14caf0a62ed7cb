"""A directory is ingested in memory that its size does not matter to.

The figures for 300 MB are in `benchmarks/bench_ingest.py`; here it is 60 MB, in seconds.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scf.daemon.setup import FoundryPlaces
from support.processes import python_env

h5py = pytest.importorskip("h5py", reason="extra [hdf5]")

INGEST = """
import json, re, sys
from pathlib import Path
from scf.fertilization.primordial_soup import PrimordialSoupIngestor
from scf.signing.keys import load_signer
from scf.storage.partitions import Drive
from scf.vault.journal import Vault

def peak_kib():
    # Not getrusage: on Linux a child begins with the peak of the process that started it.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])


home, root, small, large = map(Path, sys.argv[1:5])
with Vault.open(Drive.open(root), home, load_signer(home / "keys", "vault")) as vault:
    ingestor = PrimordialSoupIngestor(vault, home=home)
    peaks = [peak_kib()]
    for folder in (small, large):
        report = ingestor.ingest(folder)
        peaks.append(peak_kib())
json.dump({**report.to_json(), "peaks_kib": peaks}, sys.stdout)
"""


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc"
)


def write(folder: Path, num_files: int, count: int) -> None:
    """HDF5 and npz files of 64 KiB records."""
    folder.mkdir()
    for at in range(num_files):
        u = np.random.default_rng(at + 1000 * count).standard_normal((count, 128, 128), np.float32)
        if at % 2:
            np.savez(folder / f"{at}.npz", u=u)
        else:
            with h5py.File(folder / f"{at}.h5", "w") as file:
                file["u"] = u


@needs_proc
def test_ten_times_the_data_takes_no_more_memory(foundry: FoundryPlaces, tmp_path: Path) -> None:
    write(tmp_path / "small", 4, 24)
    write(tmp_path / "large", 8, 120)

    done = subprocess.run(
        [
            *(sys.executable, "-c", INGEST, foundry.home, foundry.root),
            *(tmp_path / "small", tmp_path / "large"),
        ],
        env=python_env(),
        capture_output=True,
        timeout=120,
        check=True,
    )

    report = json.loads(done.stdout)
    before, small, large = report["peaks_kib"]
    assert report["accepted"] == 960
    assert large - small < 24 * 1024
    assert large - before < 150 * 1024
