"""Curriculum weights: how often a fossil is used against others, from a callable or from a file.

The file is NDJSON (`.zst` and `.gz` too), so that any tool can write one. Its first line names the
schema and may give a weight for fossils that have no line; each other line has a CID and a weight.
Format: docs/formats/weights.md.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scf.core.errors import InputError, UsageError
from scf.core.identity import cid_digest, cid_from_digest
from scf.fertilization.mixture import Weights, whole_weights
from scf.storage.ndjson import read_lines

SCHEMA = "scf.weights/1"
# CIDs to weights, in the same order; a pure function, since a resumed run asks again.
WeightOf = Callable[[Sequence[str]], npt.ArrayLike]
# Digests of fossils: the 32 bytes inside their CIDs, shape (N, 32).
Digests = npt.NDArray[np.uint8]


class WeightsInvalid(InputError):
    """A file of weights, or a weight, cannot be used."""

    kind = "weights"


def weights_of(source: WeightOf | Path | str, fossils: Iterator[Digests]) -> Weights:
    """The weight of each fossil, in the order of the fossils.

    Raises:
        WeightsInvalid: A fossil without a weight; one that is negative, not finite or no number; or
            a file that is none of ours.
    """
    ask = source if callable(source) else WeightsFile(Path(source)).of_cids
    name = getattr(source, "__name__", "the callable") if callable(source) else str(source)
    parts = [np.zeros(0)]
    for digests in fossils:
        cids = [cid_from_digest(digest.tobytes()) for digest in digests]
        parts.append(_checked(ask(cids), cids, name))
    weights = np.concatenate(parts)
    if len(weights) and not weights.any():
        raise WeightsInvalid(f"{name}: all weights are 0")
    return whole_weights(weights)


class WeightsFile:
    """A file of weights, 40 bytes a line in memory.

    Raises:
        WeightsInvalid: With the line that is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = read_lines(path)
        self._default = self._header(next(lines, None))
        digests, weights = bytearray(), []
        for line in lines:
            if line.fault is not None:
                raise WeightsInvalid(f"{path}, line {line.number}: {line.fault}")
            digest, weight = self._entry(line.data, line.number)
            digests += digest
            weights.append(weight)
        keys = np.frombuffer(bytes(digests), "S32")
        order = np.argsort(keys, kind="stable")
        self._keys, self._weights = keys[order], np.array(weights, float)[order]
        repeated = np.flatnonzero(self._keys[1:] == self._keys[:-1])
        if len(repeated):
            cid = cid_from_digest(_whole(self._keys[repeated[0]]))
            raise WeightsInvalid(f"{path}: {cid} has more than one weight")

    def of_cids(self, cids: Sequence[str]) -> npt.NDArray[np.float64]:
        """Weights of these fossils. Raises WeightsInvalid for one that has none."""
        wanted = np.array([cid_digest(cid) for cid in cids], "S32")
        at = np.searchsorted(self._keys, wanted)
        inside = np.minimum(at, max(0, len(self._keys) - 1))
        found = self._keys[inside] == wanted if len(self._keys) else np.zeros(len(cids), bool)
        if self._default is None and not found.all():
            cid = cids[int(np.flatnonzero(~found)[0])]
            raise WeightsInvalid(
                f"{self.path}: no weight for {cid}, and no default",
                remedy='Add its line, or `"default": NUMBER` to the first line.',
            )
        weights = np.full(len(cids), 0.0 if self._default is None else self._default)
        weights[found] = self._weights[inside[found]]
        return weights

    def _header(self, line: Any) -> float | None:
        value = _json(line.data) if line is not None and line.fault is None else None
        if not isinstance(value, dict) or value.get("schema") != SCHEMA:
            raise WeightsInvalid(
                f"{self.path}: not a file of weights",
                remedy=f'Its first line must be an object with "schema": "{SCHEMA}".',
            )
        default = value.get("default")
        if default is not None and not _is_weight(default):
            raise WeightsInvalid(f"{self.path}, line 1: default {default!r} is no weight")
        return None if default is None else float(default)

    def _entry(self, data: bytes, number: int) -> tuple[bytes, float]:
        value = _json(data)
        if not isinstance(value, dict) or set(value) != {"cid", "weight"}:
            raise WeightsInvalid(f"{self.path}, line {number}: not an object of cid and weight")
        if not _is_weight(value["weight"]):
            raise WeightsInvalid(
                f"{self.path}, line {number}: weight {value['weight']!r}; "
                "weights are finite and not negative"
            )
        try:
            return cid_digest(value["cid"]), float(value["weight"])
        except (InputError, TypeError, AttributeError) as error:
            raise WeightsInvalid(f"{self.path}, line {number}: {error}") from error


def _checked(weights: npt.ArrayLike, cids: Sequence[str], name: str) -> npt.NDArray[np.float64]:
    try:
        found = np.asarray(weights, np.float64)
    except (TypeError, ValueError) as error:
        raise WeightsInvalid(f"{name}: weights are not numbers: {error}") from error
    if found.shape != (len(cids),):
        raise UsageError(f"{name}: weights of shape {found.shape} for {len(cids)} fossils")
    wrong = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    if len(wrong):
        raise WeightsInvalid(
            f"{name}: weight {found[wrong[0]]} of {cids[wrong[0]]}; "
            "weights are finite and not negative"
        )
    return found


def _is_weight(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and 0 <= value <= 1e300 and math.isfinite(value)


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _whole(key: bytes) -> bytes:
    """All 32 bytes of a digest: numpy cuts zeros at the end of a text."""
    return key.ljust(32, b"\0")
