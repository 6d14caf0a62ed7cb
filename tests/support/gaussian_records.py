"""Records whose density is known: Gaussian and mixture points, as arrays, sources and files."""

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scf.models.energy_model import EnergyModel, NetworkConfig
from scf.models.frame import Frame, LinearGaussian, Moments, Symmetry
from scf.models.noise import NoiseRange
from scf.models.record import FieldLayout, RecordLayout
from scf.models.record_energy import RecordEnergy
from scf.vault.fossil import fossil_cid

MEAN = np.array([1.0, -2.0])
COVARIANCE = np.array([[2.0, 0.8], [0.8, 1.0]])

POINT = RecordLayout.of([FieldLayout("x", "float64", (2,), "m")])


def gaussian_points(num: int, *, seed: int = 0) -> np.ndarray:
    """Points of N(MEAN, COVARIANCE), shape [num, 2]."""
    return np.random.default_rng(seed).multivariate_normal(MEAN, COVARIANCE, num)


def exact_energy(x: np.ndarray, sigma: float, mean=MEAN, covariance=COVARIANCE) -> np.ndarray:
    """-ln of N(mean, covariance + sigma^2) at each row."""
    smoothed = covariance + sigma**2 * np.eye(len(mean))
    offset = x - mean
    squares = np.einsum("ni,ij,nj->n", offset, np.linalg.inv(smoothed), offset)
    return 0.5 * (squares + np.linalg.slogdet(2 * np.pi * smoothed)[1])


def record_energy(
    layout: RecordLayout,
    x: np.ndarray,
    c: np.ndarray | None = None,
    *,
    noise: float = 0.0,
    symmetry: Symmetry | None = None,
    **config,
) -> RecordEnergy:
    """A model with its frame fitted to rows x; `noise` > 0 sets its weights to small random ones."""
    c = np.zeros((len(x), layout.given_size)) if c is None else c
    moments = Moments(layout)
    moments.add(x, c)
    moments.symmetry = symmetry or Symmetry()
    frame = Frame.of(moments)
    range_ = NoiseRange()
    torch.manual_seed(0)
    model = EnergyModel(
        layout, NetworkConfig(**{"width": 24, "depth": 1, "site_width": 8} | config), range_
    )
    model.load_frame(frame, LinearGaussian.fit(moments, frame))
    if noise:
        with torch.no_grad():
            for head in (model.body.head, *([model.site_body.head] if model.site_body else [])):
                head.weight.normal_(std=noise)
    return RecordEnergy(layout, frame, model, range_, c)


class ArraySource:
    """A `FossilSource` over arrays in memory, in minibatches of a fixed order."""

    def __init__(
        self,
        arrays: Mapping[str, np.ndarray],
        *,
        units: Mapping[str, str] | None = None,
        given: tuple[str, ...] = (),
        families: list[str] | None = None,
        batch_size: int = 64,
    ) -> None:
        self._arrays = dict(arrays)
        units = units or {}
        self.layout = RecordLayout.of(
            [
                FieldLayout(name, str(a.dtype), a.shape[1:], units.get(name, "m"))
                for name, a in arrays.items()
            ],
            given,
        )
        num = len(next(iter(arrays.values())))
        self._cids = [f"cid-{row:06d}" for row in range(num)]
        self._families = families or self._cids
        self.batch_size = batch_size
        self.turn = slice(None)
        self._at = 0

    def share(self, rank: int, world_size: int) -> "ArraySource":
        part = copy.copy(self)
        part.turn = slice(rank, None, world_size)
        return part

    def epoch(self) -> Iterator[dict[str, Any]]:
        begin, self._at = self._at, 0
        for start in range(begin, len(self._cids), self.batch_size):
            stop = start + self.batch_size
            rows = range(len(self._cids))[start:stop][self.turn]
            rows = slice(rows.start, rows.stop, rows.step)
            self._at = stop if stop < len(self._cids) else 0
            yield {
                **{name: array[rows] for name, array in self._arrays.items()},
                "_cid": self._cids[rows],
                "_family": self._families[rows],
            }

    def get_state(self) -> dict[str, Any]:
        return {"at": self._at}

    def set_state(self, state: dict[str, Any]) -> None:
        self._at = state["at"]

    def describe(self) -> dict[str, Any]:
        return {"plan_id": None}


def write_points(
    path: Path, points: np.ndarray, *, unit: str = "m", families: int = 0
) -> list[str]:
    """Points as fossils, one a line; returns their CIDs in order."""
    cids, lines = [], []
    for index, point in enumerate(points):
        obj: dict[str, Any] = {
            "schema": "scf.fossil/1",
            "source": "drawn from a known density",
            "observed_at": None,
            "fields": {
                "x": {
                    "dtype": "float64",
                    "shape": list(point.shape),
                    "unit": unit,
                    "values": point.ravel().tolist(),
                }
            },
            "params": {},
            "provenance": {
                "origin": "points",
                "origin_sha256": "5e" * 32,
                "reader": "hand",
                "index": index,
                "licence": "CC0-1.0",
                "parents": [],
            },
            "verifier": {"name": "by hand", "version": "1", "verdict": "PASS", "checks": {}},
        }
        if families:
            obj["provenance"]["family"] = f"family-{index % families:02d}"
        obj["cid"] = fossil_cid(obj)
        cids.append(obj["cid"])
        lines.append(json.dumps(obj))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return cids


def solar_days(num: int, *, seed: int = 0) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Made-up days that close, ghi = dni cos_zenith + dhi, and their units."""
    rng = np.random.default_rng(seed)
    hour = np.arange(24) + 0.5
    peak = rng.uniform(0.4, 0.95, size=(num, 1))
    cos_zenith = peak * np.cos((hour - 12) / 24 * 2 * np.pi) - 0.1
    up = np.clip(cos_zenith, 0, None)
    clear = np.clip(rng.normal(0.6, 0.25, size=(num, 1)) + rng.normal(0, 0.1, (num, 24)), 0, 1)
    dni = 900 * clear * (up > 0)
    dhi = 300 * up * (1.2 - clear)
    days = {"ghi": dni * up + dhi, "dni": dni, "dhi": dhi, "cos_zenith": cos_zenith}
    units = {"ghi": "W/m2", "dni": "W/m2", "dhi": "W/m2", "cos_zenith": "1"}
    return {name: array.astype(np.float32) for name, array in days.items()}, units
