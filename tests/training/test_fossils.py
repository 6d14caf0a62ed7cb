import dataclasses
import json
from pathlib import Path

import pytest
import torch

from scf.core.errors import InputError, UsageError
from scf.core.identity import sha256_hex
from scf.daemon.setup import FoundryPlaces
from scf.fertilization.batch_plan import make_plan
from scf.models.record import LayoutMismatch
from scf.storage.partitions import Folder
from scf.training.data import load_data
from scf.training.fossils import NonFiniteFossils, open_source
from scf.training.train_config import TrainConfig
from scf.training.train_ebdm import train
from support.gaussian_records import gaussian_points, write_points
from support.vaults import ingest, open_vault


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


def test_a_plan_with_a_mixture_is_streamed_by_its_shares(
    foundry: FoundryPlaces, tmp_path: Path
) -> None:
    """Moments and validation are of each fossil once; steps see fresh ones by their share."""
    with open_vault(foundry) as vault:
        write_points(tmp_path / "old.ndjson", gaussian_points(1280))
        ingest(vault, tmp_path / "old.ndjson")
        parent = make_plan(vault, seed=1)
        write_points(tmp_path / "new.ndjson", gaussian_points(320, seed=1) + 100.0)
        ingest(vault, tmp_path / "new.ndjson")
        plan = make_plan(vault, seed=1, parent=parent, fresh_share=0.5)
        root = vault.folder.path
    assert plan.mixture is not None
    (tmp_path / "plan.json").write_text(json.dumps(plan.to_json()))
    source = opened(plan=tmp_path / "plan.json", vault=root)
    config = TrainConfig(batch_size=16, validation_fraction=0.0)

    data = load_data(source, config)
    minibatches = data.minibatches(source, data.fit()[0], config)

    assert source.get_state()["epoch"] == source.get_state()["position"] == 0
    assert data.num_fossils < plan.fossils
    steps = data.num_fossils // 16
    seen = torch.cat([minibatches.draw(step).rows.z_ND for step in range(1, steps + 1)])
    fresh = float((seen[:, 0] > 0.5).float().mean())
    assert fresh == pytest.approx(0.5, abs=0.02)


def weighed(folder: Path) -> tuple[Path, Path, list[str]]:
    """Forty points; a file that gives half of them no weight; the CIDs of those."""
    write_points(folder / "points.ndjson", gaussian_points(40))
    text = (folder / "points.ndjson").read_text()
    cids = [json.loads(line)["cid"] for line in text.splitlines()]
    lines = [{"schema": "scf.weights/1", "default": 1.0}]
    lines += [{"cid": cid, "weight": 0.0} for cid in cids[:20]]
    (folder / "w.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "points.ndjson", folder / "w.ndjson", cids[:20]


def test_weights_say_how_often_a_fossil_is_used(tmp_path: Path) -> None:
    """Weight 0: no minibatch has it, while frame and moments are of all; the digest is recorded."""
    points, file, without = weighed(tmp_path)
    source = opened(points, weights=file)

    used = {cid for minibatch in source.epoch() for cid in minibatch["_cid"]}
    data = load_data(source, TrainConfig(validation_fraction=0.0))

    assert len(used) == 20
    assert not used & set(without)
    assert int(data.moments.count.sum()) == 40
    assert data.rows is None  # streamed, since the mixture is the source's
    assert source.describe()["weights_sha256"] == sha256_hex(file.read_bytes())
    assert opened(points).describe()["weights_sha256"] is None


def test_a_run_goes_on_with_its_own_weights_alone(tmp_path: Path) -> None:
    """Other weights, or none, are refused before a step is taken; the same file is not."""
    points, file, _ = weighed(tmp_path)
    other = tmp_path / "other.ndjson"
    other.write_text(file.read_text().replace('"weight": 0.0', '"weight": 0.5'))
    config = TrainConfig(
        max_steps=2, width=8, depth=1, batch_size=8, calibration_particles=0, device="cpu"
    )
    out = Folder.at(tmp_path / "out")
    train(opened(points, weights=file, batch_size=8), out, config)
    longer = dataclasses.replace(config, max_steps=4)

    for weights in (other, None):
        with pytest.raises(UsageError, match="weights"):
            train(opened(points, weights=weights, batch_size=8), out, longer, resume=True)
    went_on = train(opened(points, weights=file, batch_size=8), out, longer, resume=True)

    assert went_on.step == 4
    with pytest.raises(UsageError, match="no file"):
        opened(points, weights=tmp_path / "nowhere")
