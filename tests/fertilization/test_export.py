"""Fossils handed over to other tools say there what they said here."""

import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

from scf.core.errors import InputError, MissingTool
from scf.fertilization.export import export_fossils
from scf.fertilization.fossil_batcher import read_records
from scf.fertilization.readers import safe_pickle
from scf.vault.fields import field_of_array
from scf.vault.fossil import encode_fossil, make_fossil
from support.fossils import fossil, fossil_line, fossil_object, write_fossils

MANY = range(70)


@pytest.fixture
def fossils(tmp_path: Path):
    source = write_fossils(tmp_path / "in.ndjson", MANY)
    return lambda: read_records(source)


def test_webdataset_has_a_json_and_an_array_a_field(fossils, tmp_path: Path) -> None:
    [one] = export_fossils(fossils, tmp_path / "wds", "webdataset")

    assert one.fossils == len(MANY)
    with tarfile.open(tmp_path / "wds" / "000000.tar") as tar:
        names = tar.getnames()
        expected = fossil(3)
        meta = json.load(tar.extractfile(f"{expected.cid}.json"))
        data = tar.extractfile(f"{expected.cid}.x.npy").read()
    assert len(names) == 2 * len(MANY)
    assert (meta["cid"], meta["params"]) == (expected.cid, {"length_m": 1.5})
    (tmp_path / "x.npy").write_bytes(data)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), expected.arrays()["x"])


def test_npz_and_pickle_hold_columns(fossils, tmp_path: Path) -> None:
    export_fossils(fossils, tmp_path / "out.npz", "npz")
    export_fossils(fossils, tmp_path / "out.pkl", "pkl")

    with np.load(tmp_path / "out.npz", allow_pickle=False) as archive:
        npz = dict(archive)
    pkl = safe_pickle.load(tmp_path / "out.pkl")
    expected = np.stack([fossil(i).arrays()["x"] for i in MANY])
    np.testing.assert_array_equal(npz["x"], expected)
    np.testing.assert_array_equal(pkl["x"], expected)
    assert npz["_cid"].tolist() == pkl["_cid"] == [fossil(i).cid for i in MANY]
    assert npz["_family"][65] == "pendulum.csv#1"


def test_parquet_is_read_by_its_own_library(fossils, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export_fossils(fossils, tmp_path / "out.parquet", "parquet")

    table = parquet.read_table(tmp_path / "out.parquet")

    assert table.num_rows == len(MANY)
    assert table["x"][5].as_py() == fossil(5).arrays()["x"].tolist()
    assert table.schema.field("x").metadata[b"unit"] == b"m"
    assert table["cid"][5].as_py() == fossil(5).cid


@pytest.fixture
def of_all_kinds(tmp_path: Path):
    """Fossils with scalars, bools, small floats and names that are awkward as file names."""
    rng = np.random.default_rng(0)
    lines = []
    for index in range(20):
        arrays = {
            "u": rng.standard_normal((2, 3)).astype(np.float32),
            "scalar": rng.standard_normal(()),
            "mask": rng.random(4) > 0.5,
            "half": rng.standard_normal(2).astype(np.float16),
            "a/b.c": rng.integers(0, 9, 3).astype(np.int16),
        }
        fields = {name: field_of_array(np.asarray(a), "m") for name, a in arrays.items()}
        block = {k: v for k, v in fossil_object(index).items() if k not in {"cid", "verifier"}}
        verifier = fossil_object(index)["verifier"]
        lines.append(encode_fossil(make_fossil({**block, "fields": fields}, verifier)))
    source = tmp_path / "kinds.ndjson"
    source.write_bytes(b"".join(lines))
    return lambda: read_records(source)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the reader's own
def test_webdataset_is_read_by_its_own_library(of_all_kinds, tmp_path: Path) -> None:
    wds = pytest.importorskip("webdataset", reason="webdataset is not installed")
    export_fossils(of_all_kinds, tmp_path / "wds", "webdataset")

    rows = {
        row["__key__"]: row
        for row in wds.WebDataset(str(tmp_path / "wds" / "000000.tar"), shardshuffle=False).decode()
    }

    for one in of_all_kinds():
        row = rows.pop(one.cid)
        for name, array in one.arrays().items():
            np.testing.assert_array_equal(row[f"{name.replace('/', '_')}.npy"], array)
    assert rows == {}


def test_mds_is_read_by_its_own_library(of_all_kinds, tmp_path: Path) -> None:
    """MDS has no bool: masks are uint8 there."""
    streaming = pytest.importorskip("streaming", reason="mosaicml-streaming is not installed")
    export_fossils(of_all_kinds, tmp_path / "mds", "mds")

    rows = streaming.StreamingDataset(local=str(tmp_path / "mds"), shuffle=False, batch_size=1)

    for one, row in zip(of_all_kinds(), rows, strict=True):
        assert row["cid"] == one.cid
        for name, array in one.arrays().items():
            np.testing.assert_array_equal(row[name].reshape(array.shape), array)


def test_kinds_go_into_files_of_their_own(tmp_path: Path) -> None:
    source = tmp_path / "in.ndjson"
    scalar = {"y": {"dtype": "int8", "shape": [], "values": [1]}}
    source.write_bytes(fossil_line(0) + fossil_line(1, fields=scalar) + fossil_line(2))

    told = export_fossils(lambda: read_records(source), tmp_path / "out.npz", "npz")

    assert [(e.path.name, e.fossils) for e in told] == [("out-1.npz", 2), ("out-2.npz", 1)]
    with np.load(tmp_path / "out-2.npz") as archive:
        assert archive["y"].tolist() == [1]
    with pytest.raises(InputError, match=r"out-1.npz: exists already"):
        export_fossils(lambda: read_records(source), tmp_path / "out.npz", "npz")


def test_nothing_is_overwritten_and_nothing_is_made_of_nothing(fossils, tmp_path: Path) -> None:
    (tmp_path / "out.npz").write_bytes(b"mine")

    with pytest.raises(InputError, match="exists"):
        export_fossils(fossils, tmp_path / "out.npz", "npz")
    with pytest.raises(InputError, match="no fossils"):
        export_fossils(lambda: iter(()), tmp_path / "none.npz", "npz")
    assert (tmp_path / "out.npz").read_bytes() == b"mine"
    assert not (tmp_path / "none.npz").exists()


@pytest.mark.parametrize(("form", "module"), [("mds", "streaming"), ("parquet", "pyarrow")])
def test_a_missing_library_is_named(
    fossils, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)

    with pytest.raises(MissingTool, match=form):
        export_fossils(fossils, tmp_path / "out", form)
    assert not (tmp_path / "out").exists()
