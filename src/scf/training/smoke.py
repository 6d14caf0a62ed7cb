"""A small job that says what a machine is: `scf pods smoke` runs it on a rented one.

    python -m scf.training.smoke --out FILE [--seconds 60]

Writes JSON: Python, torch, what accelerator there is, and how fast it multiplies. Nothing that was
not measured is in it; what cannot be known is null, with the reason.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Side of the square matrices that are multiplied.
SIDE_GPU, SIDE_CPU = 8192, 512


def facts(seconds: float) -> dict[str, Any]:
    """What this machine is; takes about `seconds`."""
    found: dict[str, Any] = {
        "schema": "scf.smoke/1",
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "free_bytes": shutil.disk_usage(".").free,
        "driver": _driver(),
        # Names only: what the provider puts into a pod's environment, none of it shown.
        "provider_variables": _names_of_variables(),
    }
    try:
        import torch
    except ModuleNotFoundError:
        return found | {"torch": None, "why": "torch is not installed in this image"}
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    found |= {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory if on_gpu else None,
    }
    side = SIDE_GPU if on_gpu else SIDE_CPU
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    products, began = 0, time.monotonic()
    while (elapsed_s := time.monotonic() - began) < seconds:
        _ = a @ a
        if on_gpu:
            torch.cuda.synchronize()
        products += 1
    found |= {
        "device": str(device),
        "matmul_dtype": str(a.dtype),
        "matmul_flop_per_s": round(2.0 * side**3 * products / elapsed_s) if products else None,
        "seconds": round(elapsed_s, 2),
    }
    return found


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version,power.draw", "--format=csv,noheader"]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip()[:200] or None if asked.returncode == 0 else None


def _names_of_variables() -> list[str] | None:
    """As our image's entrypoint wrote them down; None in another image."""
    try:
        return Path("/run/scf/variables").read_text().split()
    except OSError:
        return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the facts; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m scf.training.smoke", description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args(arguments)
    found = facts(options.seconds)
    options.out.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
