"""What the benchmarks of the data plane share: the same fossils, and the peers' environment."""

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

import numpy as np

from scf.vault.fields import field_of_array
from scf.vault.fossil import encode_fossil, make_fossil

NUM_FOSSILS = 9066
PASS = {"name": "benchmark", "version": "1", "verdict": "PASS", "checks": {}}
PACKAGES = {
    "litdata": "litdata",
    "grain + array_record": "grain array_record",
    "MosaicML streaming": "mosaicml-streaming",
    "webdataset": "webdataset",
    "HF IterableDataset": "datasets",
    "HF json streaming": "datasets",
    "polars scan_ndjson": "polars",
    "polars read_ndjson": "polars",
}
_INSTALL_TIMEOUT_S = 300


def work_folder() -> Path:
    """Made once and kept for the next run: SCF_BENCH_DIR, or a folder among temporary files."""
    folder = Path(os.environ.get("SCF_BENCH_DIR", Path(tempfile.gettempdir()) / "scf-bench"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def fossils(folder: Path, count: int = NUM_FOSSILS, *, side: int = 64) -> Path:
    """`count` random fields of side x side float32 as packed NDJSON, and as `rows.bin`."""
    path = folder / f"packed-{count}x{side}.ndjson"
    if path.exists():
        return path
    rng = np.random.default_rng(0)
    staged = path.with_suffix(".staged")
    with staged.open("wb") as file, (folder / "rows.staged").open("wb") as raw:
        for index in range(count):
            array = rng.standard_normal((side, side)).astype("<f4")
            file.write(encode_fossil(_fossil(array, index)))
            raw.write(array.tobytes())
    if side == 64 and count == NUM_FOSSILS:
        (folder / "rows.staged").replace(folder / "rows.bin")
    staged.replace(path)
    return path


def number_lists(folder: Path, count: int = 1536) -> Path:
    """The first fossils with their numbers as lists; beside them the bare lists for the peers."""
    path = folder / f"lists-{count}.ndjson"
    if path.exists():
        return path
    data = np.memmap(folder / "rows.bin", "<f4", "r").reshape(-1, 64, 64)
    staged = path.with_suffix(".staged")
    with staged.open("w") as file, (folder / "numbers.ndjson").open("w") as bare:
        for index in range(count):
            obj = _fossil(np.array(data[index]), index).obj
            values = [float(str(number)) for number in data[index].ravel()]
            del obj["fields"]["u"]["b64"]
            obj["fields"]["u"]["values"] = values
            file.write(json.dumps(obj) + "\n")
            bare.write(json.dumps({"x": values}) + "\n")
    staged.replace(path)
    return path


def _fossil(array, index):
    block = {
        "schema": "scf.fossil/1",
        "source": "benchmark",
        "observed_at": None,
        "fields": {"u": field_of_array(array, "m/s")},
        "params": {},
        "provenance": {
            "origin": "benchmark.npz",
            "origin_sha256": "5e" * 32,
            "reader": "npz",
            "index": index,
            "licence": None,
            "parents": [],
        },
    }
    return make_fossil(block, PASS)


def peers_python(packages: str) -> Path:
    """An environment for a peer, apart from ours; packages that are here already are borrowed.

    One for each, because their requirements contradict each other.
    """
    root = Path(os.environ.get("SCF_BENCH_PEERS", Path(tempfile.gettempdir()) / "scf-bench-peers"))
    folder = root / (packages.replace(" ", "+") or "ours")
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=False, symlinks=True)
        ours = Path(np.__file__).parents[1]
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "borrowed.pth").write_text(f"{ours}\n")
    return python


def run_peer(name: str, folder: Path) -> dict:
    """A peer's figures, or `{"skipped": why}`."""
    packages = PACKAGES.get(name, "")
    python = peers_python(packages)
    installed = _install(python, packages) if packages else ""
    if installed:
        return {"skipped": installed}
    script = Path(__file__).with_name("data_peers.py")
    try:
        done = subprocess.run(
            [python, script, name, folder],
            capture_output=True, text=True, timeout=240, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1",
                 "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"skipped": "took more than 240 s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        return {"skipped": (done.stderr.strip().splitlines() or ["no output"])[-1][-300:]}
    figures: dict = json.loads(lines[-1])
    return figures


def _install(python: Path, packages: str) -> str:
    """Install, once; what went wrong, or nothing."""
    marker = python.parent.parent / f"installed-{packages.replace(' ', '+')}"
    if marker.exists():
        return marker.read_text()
    command = [
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        *packages.split(),
    ]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False
        )
        fault = "" if done.returncode == 0 else f"does not install: {done.stderr.strip()[-200:]}"
    except subprocess.TimeoutExpired:
        fault = f"did not install within {_INSTALL_TIMEOUT_S} s"
    marker.write_text(fault)
    return fault


def fresh_python(code: str, *arguments: object) -> dict:
    """Run code of ours in a process of its own (for peak memory, for cold starts)."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    figures: dict = json.loads(done.stdout.splitlines()[-1])
    return figures
