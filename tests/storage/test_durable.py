"""A file is complete or absent, whatever happens in between."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scf.core.errors import BudgetExceeded, DriveError, InputError
from scf.storage import durable
from support.processes import python_env


def test_a_written_file_holds_the_bytes_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    durable.write_file(tmp_path / "a", b"one")
    durable.write_file(tmp_path / "a", b"two")

    assert (tmp_path / "a").read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_an_error_inside_the_block_leaves_the_old_file(tmp_path: Path) -> None:
    durable.write_file(tmp_path / "a", b"old")

    with pytest.raises(RuntimeError), durable.open_staged(tmp_path / "a") as file:
        file.write(b"half")
        raise RuntimeError

    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_write_once_accepts_the_same_bytes_and_refuses_others(tmp_path: Path) -> None:
    durable.write_once(tmp_path / "a", b"x")
    durable.write_once(tmp_path / "a", b"x")

    with pytest.raises(durable.AlreadyWritten):
        durable.write_once(tmp_path / "a", b"y")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_torn_tail_is_closed_before_the_next_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    durable.append_line(path, b"one")
    with path.open("ab") as file:
        file.write(b"tor")

    durable.append_line(path, b"two")

    assert path.read_bytes() == b"one\ntor\ntwo\n"


def test_a_folder_is_published_whole_and_never_over_another(tmp_path: Path) -> None:
    staged = durable.new_staging(tmp_path, "final")
    (staged / "inside").mkdir()
    (staged / "inside" / "file").write_bytes(b"x")
    durable.publish_folder(staged, tmp_path / "final")

    again = durable.new_staging(tmp_path, "final")
    with pytest.raises(durable.AlreadyWritten):
        durable.publish_folder(again, tmp_path / "final")
    assert (tmp_path / "final" / "inside" / "file").read_bytes() == b"x"


CRASH = """
import sys
from pathlib import Path
from scf.storage import durable
folder = Path(sys.argv[1])
if sys.argv[2] == "file":
    durable.write_file(folder / "a", b"new" * 1000)
elif sys.argv[2] == "append":
    durable.append_line(folder / "log", b"line")
else:
    staged = durable.new_staging(folder, "final")
    (staged / "x").write_bytes(b"y" * 1000)
    durable.publish_folder(staged, folder / "final")
"""


@pytest.mark.crash
@pytest.mark.parametrize(
    ("what", "point", "is_written"),
    [
        ("file", "durable.before_write", False),
        ("file", "durable.before_rename", False),
        ("file", "durable.after_rename", True),
        ("append", "durable.append.before", False),
        ("append", "durable.append.after", True),
        ("folder", "durable.folder.before_rename", False),
        ("folder", "durable.folder.after_rename", True),
    ],
)
def test_a_kill_leaves_all_or_nothing_and_the_next_try_succeeds(
    tmp_path: Path, what: str, point: str, is_written: bool
) -> None:
    command = [sys.executable, "-c", CRASH, str(tmp_path), what]
    killed = subprocess.run(command, env=python_env(SCF_FAIL=f"{point}:kill"), timeout=300)
    name = {"file": "a", "append": "log", "folder": "final"}[what]

    assert killed.returncode == -9
    has_bytes = (tmp_path / name).exists() and (
        what != "append" or (tmp_path / name).read_bytes() == b"line\n"
    )
    assert has_bytes is is_written

    durable.sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} <= {name}
    if not is_written:
        subprocess.run(command, env=python_env(), check=True, timeout=300)
        assert (tmp_path / name).exists()


@pytest.mark.parametrize(
    ("fault", "error"), [("enospc", BudgetExceeded), ("error", DriveError)]
)  # fmt: skip
@pytest.mark.parametrize("point", ["durable.before_write", "durable.before_rename"])
def test_disk_errors_have_names_and_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, error: type, point: str
) -> None:
    monkeypatch.setenv("SCF_FAIL", f"{point}:{fault}")

    with pytest.raises(error):
        durable.write_file(tmp_path / "a", b"x")

    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, small_disk: Path) -> None:
    """On a real full file system, not a pretended one."""
    durable.write_file(small_disk / "a", b"old")

    with pytest.raises(BudgetExceeded) as caught:
        durable.write_file(small_disk / "a", b"x" * 10_000_000)

    assert caught.value.exit_code == 6
    assert (small_disk / "a").read_bytes() == b"old"
    assert [p.name for p in small_disk.iterdir()] == ["a"]


def test_sweep_leaves_the_temporaries_of_living_writers(tmp_path: Path) -> None:
    (tmp_path / f".a.tmp-{os.getppid()}-00").write_bytes(b"")
    (tmp_path / ".b.tmp-999999999-00").write_bytes(b"")

    assert durable.sweep(tmp_path) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_reading_json_is_bounded_and_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"[" + b"1," * 1000 + b"1]")

    with pytest.raises(InputError, match=r"a\.json: larger than 100"):
        durable.read_json(tmp_path / "a.json", size_max_bytes=100)
    with pytest.raises(InputError, match=r"missing\.json: cannot be read"):
        durable.read_json(tmp_path / "missing.json")
