"""Is one changed byte in a release always found, and the file named?

Two releases are made: one with weights, one of a week without a promotion. Then, 500 times each,
one bit of one byte of one file (any file with equal chance) is flipped, and the release is verified
without a pinned key. `seconds_per_gb` is the time to hash a gigabyte from the page cache.
"""

import random
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from scf.release.verify_release import file_sha256, verify_release

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
        big = Path(place) / "big"
        with big.open("wb") as file:
            for _ in range(256):
                file.write(b"\x5a" * 10**6)
        file_sha256(big)
        began = time.perf_counter()
        file_sha256(big)
        figures["seconds_per_gb"] = round((time.perf_counter() - began) / 0.256, 2)
    return figures
