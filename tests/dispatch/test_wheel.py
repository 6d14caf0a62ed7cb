"""The code that travels is the package, the same bytes every time, and nothing else."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from scf.core.identity import sha256_hex
from scf.dispatch.wheel import build_wheel, keep_wheel


def test_the_same_source_makes_the_same_wheel(tmp_path: Path) -> None:
    """Whatever the files' times, and in whatever order the folder lists them."""
    for name, order in (("one", "ab"), ("two", "ba")):
        folder = tmp_path / name
        folder.mkdir()
        for letter in order:
            (folder / f"{letter}.py").write_text(f"# {letter}\n")
            os.utime(folder / f"{letter}.py", (len(name), 1 if name == "one" else 2))

    assert build_wheel(tmp_path / "one") == build_wheel(tmp_path / "two")


def test_only_the_package_goes_in(tmp_path: Path) -> None:
    """No caches, no notes, no keys."""
    (tmp_path / "__pycache__").mkdir()
    for name in ("a.py", "b.toml", "py.typed", "key.pem", ".env", "__pycache__/a.py", "x.pyc"):
        (tmp_path / name).write_text("")
    (tmp_path / "wheel.whl").write_bytes(build_wheel(tmp_path))

    names = zipfile.ZipFile(tmp_path / "wheel.whl").namelist()

    assert [name for name in names if name.startswith("scf/")] == [
        "scf/a.py",
        "scf/b.toml",
        "scf/py.typed",
    ]


def test_the_wheel_of_this_package_can_be_used(tmp_path: Path) -> None:
    path, digest = keep_wheel(tmp_path)
    assert path.name == f"{sha256_hex(path.read_bytes())}.whl" == f"{digest}.whl"
    assert keep_wheel(tmp_path) == (path, digest)
    zipfile.ZipFile(path).extractall(tmp_path / "code")
    code = "import scf.daemon.gpu_worker as w; print(w.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "code")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(tmp_path / "code") in result.stdout
