"""What `scf ingest` says: what it understood, how far it is, and what it cannot mean."""

import json
from pathlib import Path

import numpy as np
import pytest

from scf.cli.ingest_talk import progress_teller, progress_text, read_options
from scf.cli.main import run
from scf.core.errors import UsageError
from scf.daemon.setup import FoundryPlaces
from scf.fertilization.ingest_report import IngestProgress
from support.fossils import write_fossils


@pytest.fixture
def scf(foundry: FoundryPlaces, capsys: pytest.CaptureFixture[str]):
    """Runs a command in the foundry; returns exit code, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        places = ["--home", str(foundry.home), "--root", str(foundry.root)]
        code = run([*map(str, arguments), *places])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def simulations(path: Path) -> Path:
    h5py = pytest.importorskip("h5py", reason="extra [hdf5]")
    with h5py.File(path, "w") as file:
        file["tensor"] = np.arange(2 * 6 * 8 * 8, dtype=np.float32).reshape(2, 6, 8, 8)
        file["x-coordinate"] = np.arange(8.0)
    return path


def test_a_rehearsal_says_first_what_is_understood(scf, tmp_path: Path) -> None:
    path = simulations(tmp_path / "a.h5")

    code, out, _ = scf("ingest", path, "--dry-run", "--window", 2, "--patch", "4x4")

    assert code == 0
    assert "reader pdebench" in out
    assert "records 24; families 2" in out
    assert "tensor                   float32  2x4x4          no unit stated" in out
    assert out.index("records 24") < out.index("24 read = 24 accepted")


def test_each_plain_format_is_described(scf, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write_fossils(folder / "a.ndjson", range(3))
    (folder / "b.csv").write_text("x [m],family\n1,a\n2,b\n")
    np.savez(folder / "c.npz", u=np.zeros((5, 2, 3)), **{"u.unit": "K"})
    (folder / "d.npz").write_bytes(b"PK damaged")

    code, out, _ = scf("ingest", folder, "--dry-run", "--json")

    report = json.loads(out)
    told = {item["origin"]: item for item in report["understood"]}
    assert code == 0
    assert told["a.ndjson"]["description"]["fields"][0]["unit"] == "m"
    assert told["b.csv"]["description"]["fields"] == [
        {"name": "x", "dtype": "float64", "shape": [], "unit": "m", "is_given": False}
    ]
    assert told["c.npz"]["description"]["num_records"] == 5
    assert told["c.npz"]["description"]["fields"][0]["shape"] == [2, 3]
    assert "d.npz" in told["d.npz"]["fault"]


def test_options_go_into_provenance_and_unknown_ones_are_usage_errors(scf, tmp_path: Path) -> None:
    path = simulations(tmp_path / "a.h5")
    (tmp_path / "b.csv").write_text("x [m]\n1\n")

    code, out, _ = scf("ingest", path, "--window", 3, "--stride", 1, "--field", "tensor", "--json")
    assert (code, json.loads(out)["accepted"]) == (0, 8)
    code, _, err = scf("ingest", path, "--field", "pressure")
    assert (code, "the file has tensor" in err) == (0, False)  # one quarantined record says so
    code, _, err = scf("ingest", tmp_path / "b.csv", "--window", 3)
    assert code == 2
    assert "reader 'csv' does not know --window" in err
    assert scf("ingest", path, "--patch", "64")[0] == 0
    assert scf("ingest", path, "--patch", "64*64")[0] == 2


def test_the_limit_on_records_can_be_raised(scf, tmp_path: Path) -> None:
    path = simulations(tmp_path / "a.h5")

    refused = json.loads(scf("ingest", path, "--record-max", "100 B", "--json")[1])
    taken = json.loads(scf("ingest", path, "--record-max", "1 kB", "--json")[1])

    assert (refused["reasons"], refused["accepted"]) == ({"size": 1}, 0)
    assert taken["accepted"] == 12


def test_settings_are_read_as_they_are_written() -> None:
    assert read_options(None, None, (), (), None) == {}
    assert read_options(4, 2, ("u",), ("v",), "64x32") == {
        "window_steps": 4,
        "stride": 2,
        "fields": ("u",),
        "mask_fields": ("v",),
        "patch": (64, 32),
    }
    with pytest.raises(UsageError, match="patch 'x64'"):
        read_options(None, None, (), (), "x64")


def step(done_bytes: int, read: int, **changes) -> IngestProgress:
    return IngestProgress("runs/a.h5", 0, 2, read, done_bytes, 400_000_000, **changes)


def test_progress_tells_rates_and_the_time_left() -> None:
    assert progress_text(step(100_000_000, 5000), 10.0) == (
        "5,000 records, 500/s; 100 MB of 400 MB; 10 MB/s, 30 s left; file 1 of 2: runs/a.h5"
    )
    assert progress_text(step(0, 0, digested_bytes=64_000_000), 1.0) == (
        "0 records, 0/s; 0 B of 400 MB; file 1 of 2: runs/a.h5; digest 64 MB"
    )


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_is_one_line_on_a_terminal_and_plain_lines_elsewhere(capsys, is_terminal) -> None:
    moments = iter([0.0, 0.1, 11.0, 11.1, 25.0, 26.0])
    tell = progress_teller(is_terminal=is_terminal, now=lambda: next(moments))
    for at in range(1, 5):
        tell(step(at, at))
    tell(IngestProgress("a", 2, 2, 9, 400_000_000, 400_000_000))

    err = capsys.readouterr().err
    if is_terminal:
        assert err.count("\r") == 3
        assert "\n" not in err
    else:
        assert len(err.splitlines()) == 2
        assert "\x1b" not in err
