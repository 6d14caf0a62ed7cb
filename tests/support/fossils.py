"""Fossils made by hand, as a stranger would write them with a JSON library."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from scf.vault.fossil import Fossil, encode_fossil, fossil_cid, parse_fossil

ORIGIN_SHA256 = "5e" * 32


def fossil_object(index: int = 0, **changes: Any) -> dict[str, Any]:
    """A fossil with one field `x` of two numbers, its CID right unless `cid` is among `changes`."""
    obj: dict[str, Any] = {
        "schema": "scf.fossil/1",
        "source": "a pendulum",
        "observed_at": None,
        "fields": {
            "x": {
                "dtype": "float64",
                "shape": [2],
                "unit": "m",
                "values": [0.25 * index, 1.0 + 1e-3 * index],
            }
        },
        "params": {"length_m": 1.5},
        "provenance": {
            "origin": "pendulum.csv",
            "origin_sha256": ORIGIN_SHA256,
            "reader": "csv",
            "index": index,
            "licence": "CC0-1.0",
            "parents": [],
        },
        "verifier": {"name": "by hand", "version": "1", "verdict": "PASS", "checks": {}},
    }
    obj.update(changes)
    if "cid" not in changes:
        obj["cid"] = fossil_cid(obj)
    return obj


def fossil_line(index: int = 0, **changes: Any) -> bytes:
    """That fossil as one NDJSON line, number lists and all."""
    return json.dumps(fossil_object(index, **changes)).encode() + b"\n"


def fossil(index: int = 0, **changes: Any) -> Fossil:
    """That fossil, parsed."""
    return parse_fossil(fossil_line(index, **changes))


def write_fossils(path: Path, indices: Iterable[int]) -> Path:
    """An NDJSON file of good fossils."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(fossil_line(index) for index in indices))
    return path


def write_random_fossils(path: Path, count: int, *, size: int = 16, seed: int = 0) -> Path:
    """An NDJSON file of packed fossils of `size` random float32 numbers."""
    rng = np.random.default_rng(seed)
    with path.open("wb") as file:
        for index in range(count):
            values = rng.standard_normal(size).astype(np.float32)
            field = {"dtype": "float32", "shape": [size], "unit": "K", "values": values.tolist()}
            obj = fossil_object(index, fields={"t": field}, cid="")
            obj["cid"] = fossil_cid(obj)
            file.write(encode_fossil(obj))
    return path
