import json
from pathlib import Path

import pytest

from scf.core.errors import InputError, UsageError
from scf.models.record import LayoutMismatch
from scf.training.fossils import NonFiniteFossils, open_source
from support.gaussian_records import gaussian_points, write_points


def opened(*paths: Path, **options):
    defaults = {"plan": None, "vault": None, "batch_size": 16, "seed": 0, "memory_bytes": 10**7}
    return open_source(list(paths), **(defaults | options))


def test_plain_files_are_read_with_units(tmp_path: Path) -> None:
    """Names, shapes and units of the fossils become the layout."""
    write_points(tmp_path / "points.ndjson", gaussian_points(40), unit="km")
    source = opened(tmp_path / "points.ndjson")
    (field,) = source.layout.modelled
    assert (field.name, field.shape, field.unit) == ("x", (2,), "km")
    assert sum(len(minibatch["_cid"]) for minibatch in source.epoch()) == 40


def test_records_of_two_kinds_are_refused(tmp_path: Path) -> None:
    """Points of the plane and of space in one call: the odd ones out are named."""
    write_points(tmp_path / "plane.ndjson", gaussian_points(40))
    write_points(tmp_path / "space.ndjson", gaussian_points(30).repeat(2, axis=1)[:, :3])
    with pytest.raises(LayoutMismatch, match=r"space.ndjson"):
        opened(tmp_path)


def test_a_number_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    """NaN inside packed bytes is found, with its file and line."""
    import base64

    import numpy as np

    path = tmp_path / "points.ndjson"
    write_points(path, gaussian_points(40))
    lines = path.read_text().splitlines()
    spoiled = json.loads(lines[3])
    del spoiled["fields"]["x"]["values"]
    spoiled["fields"]["x"]["b64"] = base64.b64encode(np.array([1.0, np.nan]).tobytes()).decode()
    path.write_text("\n".join([*lines[:3], json.dumps(spoiled), *lines[4:]]) + "\n")
    with pytest.raises(NonFiniteFossils, match="line 4"):
        opened(path)


def test_nothing_there_is_said(tmp_path: Path) -> None:
    """An empty folder, and a path that does not exist."""
    for path in (tmp_path, tmp_path / "nowhere.ndjson"):
        with pytest.raises(InputError):
            opened(path)


def test_a_plan_needs_its_vault(tmp_path: Path) -> None:
    """A plan names shards by their place in a vault."""
    with pytest.raises(UsageError, match="--vault"):
        opened(plan=tmp_path / "plan.json")
