"""Sizes and durations as people write them."""

import re

from scf.core.errors import UsageError

_BYTE_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*")


def parse_size_bytes(text: str | int) -> int:
    """Bytes in `1500`, `1.5 TB` (10^12) or `256 MiB` (2^20). Raises UsageError otherwise."""
    if isinstance(text, int):
        return text
    match = _SIZE.fullmatch(text)
    unit = match[2].lower() if match else None
    if match is None or unit not in _BYTE_UNITS:
        raise UsageError(
            f"size {text!r} is not understood",
            remedy=f"Write a number and one of {', '.join(u.upper() for u in _BYTE_UNITS if u)}.",
        )
    return int(float(match[1]) * _BYTE_UNITS[unit])


def format_bytes(size_bytes: float) -> str:
    """`1.50 TB`, `12.3 kB`, `17 B`: decimal units, three digits."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if abs(size_bytes) >= factor:
            return f"{size_bytes / factor:.3g} {unit}"
    return f"{size_bytes:.0f} B"


def format_duration(seconds: float) -> str:
    """`1 h 02 min`, `3 min 20 s`, `4.2 s`."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
