"""Is one changed byte in a release always found, and the file named?

Two releases are made: one with weights, one of a week without a promotion. Then, 500 times each,
one bit of one byte of one file (any file with equal chance) is flipped, and the release is verified
without a pinned key. `one_gb` is a release with a gigabyte of weights: packed, and verified by its
own verify_release.py as a stranger would, in wall-clock and CPU seconds.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from scf.release.verify_release import verify_release

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

TRIALS = 500


def flips(release: Path, seed: int) -> tuple[int, int]:
    """How many of the flips were found, and how many with the right file named."""
    generator = random.Random(seed)
    files = sorted(path for path in release.rglob("*") if path.is_file())
    found = named = 0
    for _ in range(TRIALS):
        path = generator.choice(files)
        data = path.read_bytes()
        changed = bytearray(data)
        changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        path.write_bytes(changed)
        result = verify_release(release)
        found += not result.ok
        named += path.relative_to(release).as_posix() in {p.file for p in result.problems}
        path.write_bytes(data)
    return found, named


def one_gb(base: Path) -> dict[str, float]:
    from scf.release.foundry import open_foundry
    from scf.release.weekly import make_release
    from support.releases import releasable

    place = releasable(base, width=25_000_000)
    began = time.perf_counter()
    with open_foundry(
        place.drive, place.home, code_version="0.1.0", clock=place.clock, size_max_bytes=2 * 10**9
    ) as foundry:
        release = make_release(foundry).path
    packed = time.perf_counter() - began
    assert release is not None
    key = base / "home" / "keys" / "foundry.pub"
    command = [sys.executable, "-I", str(release / "verify_release.py"), str(release)]
    before, began = os.times(), time.perf_counter()
    subprocess.run([*command, "--key", str(key)], check=True, capture_output=True)
    took, after = time.perf_counter() - began, os.times()
    size = sum(path.stat().st_size for path in release.rglob("*") if path.is_file())
    cpu = after.children_user + after.children_system
    cpu -= before.children_user + before.children_system
    return {
        "one_gb.size_gb": round(size / 1e9, 3),
        "one_gb.packed_and_verified_s": round(packed, 1),
        "one_gb.verify_s": round(took, 2),
        "one_gb.verify_cpu_s": round(cpu, 2),
    }


def run() -> dict[str, Any]:
    from support.releases import releasable, release_week, writable_copy

    figures: dict[str, Any] = {"flips_each": TRIALS}
    with tempfile.TemporaryDirectory() as place:
        foundry = releasable(Path(place) / "foundry")
        made = [release_week(foundry), release_week(foundry, week=date(2026, 11, 23))]
        for seed, result in enumerate(made):
            copy = writable_copy(result.path, Path(place) / "copies" / result.name)
            found, named = flips(copy, seed)
            figures[f"{result.kind}.found"] = found
            figures[f"{result.kind}.file_named"] = named
            began = time.perf_counter()
            assert verify_release(copy).ok
            figures[f"{result.kind}.verify_ms"] = round(1000 * (time.perf_counter() - began), 1)
        figures |= one_gb(Path(place) / "large")
    return figures
