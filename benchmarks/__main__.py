"""Run benchmarks by name (default: all); print a table, write `benchmarks/results/NAME.json`.

Each `benchmarks/bench_NAME.py` has `run() -> dict` with its figures and a docstring that says
the question. The result carries the commit and the machine, without which a figure means nothing.
"""

import argparse
import importlib
import json
import os
import platform
import subprocess
import time
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> None:
    names = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    chosen = parser.parse_args().names or names
    for name in chosen:
        if name not in names:
            parser.error(f"no benchmark {name!r}; there are {', '.join(names)}")
    for name in chosen:
        module = importlib.import_module(f"benchmarks.bench_{name}")
        print(f"\n{name}: {(module.__doc__ or '').splitlines()[0]}", flush=True)
        began = time.perf_counter()
        figures = module.run()
        result = {
            "benchmark": name,
            "figures": figures,
            "seconds": round(time.perf_counter() - began, 1),
            "machine": _machine(),
        }
        path = FOLDER / "results" / f"{name}.json"
        path.write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")
        for key, value in figures.items():
            print(f"  {key:52} {value}")


def _machine() -> dict[str, object]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=FOLDER,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in _read("/proc/cpuinfo").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "commit": commit,
        "cpu": cpu,
        "cores": os.cpu_count(),
        "load_at_end": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "system": platform.system(),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
