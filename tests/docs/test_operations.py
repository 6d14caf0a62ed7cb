"""Every command on the operator's pages is run, in the order of the page, in a foundry that works."""

import re
import shlex
from pathlib import Path

import pytest

from support.conducting import Works

FOLDER = Path(__file__).parents[2] / "docs" / "operations"
# Not run here, each with its reason; that they exist, with these options, is checked elsewhere.
NOT_HERE = {
    "scf daemon run": "runs until it is stopped",
    "scf status --watch": "shows until it is stopped",
    "scf service install": "would start a daemon of this user's for good",
    "scf service uninstall": "likewise",
    "scf backup --to ssh": "tests/daemon/test_backup_places.py",
    "scf backup --to s3": "tests/daemon/test_backup_places.py",
    "scf backup --to restic": "tests/daemon/test_backup_places.py",
}
# 3: nothing to do, such as stopping a daemon that does not run.
FINE = {0, 3}
# A run of this name is not there; the page means one of the operator's own.
FINE_FOR = {"scf cancel run-0123456789ab": {2}}


def commands(page: str) -> list[str]:
    text = (FOLDER / page).read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line.strip() for block in blocks for line in block.splitlines()
            if line.strip().startswith("scf ")]  # fmt: skip


def reason_not_to(line: str) -> str | None:
    if line.startswith(("scf service install --dry-run", "scf daemon run --until-idle")):
        return None
    return next((why for start, why in NOT_HERE.items() if line.startswith(start)), None)


@pytest.fixture
def works(tmp_path: Path) -> Works:
    works = Works(tmp_path / "foundry", {"auto_release": False, "settle_s": 0.0})
    works.drop("a.ndjson", range(120))
    works.until_idle()
    return works


@pytest.mark.parametrize(
    "page", ["start-and-stop.md", "emergency.md", "disk-full.md", "backup-and-restore.md",
             "new-machine.md"],
)  # fmt: skip
def test_the_commands_of_a_page_do_what_they_say(
    works: Works, page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    secret = tmp_path / "passphrase"
    secret.touch(mode=0o600)
    secret.write_text("correct horse battery staple\n")
    places = {
        "/mnt/other-disk/scf": str(tmp_path / "copy"),
        "/mnt/new-drive/scf": str(tmp_path / "new" / "drive"),
        "/mnt/drive/scf": str(works.root),
        "/home/me/scf-new": str(tmp_path / "new" / "home"),
        "/home/me/scf": str(works.home if page == "new-machine.md" else tmp_path / "new" / "home"),
        "~/.scf-passphrase": str(secret),
    }
    ran = 0
    for written in commands(page):
        if reason_not_to(written) is not None:
            continue
        line = written
        for place, here in places.items():
            line = line.replace(place, here)
        words = shlex.split(line, comments=True)[1:]
        if words[0] in {"backup", "restore"} and "--passphrase-file" not in words:
            words += ["--passphrase-file", str(secret)]
        code = _run(works, words)
        assert code in FINE_FOR.get(line, FINE), f"{page}: {line}: exit code {code}"
        ran += 1

    assert ran >= 4


def _run(works: Works, words: list[str]) -> int:
    from scf.cli.main import run

    if "--home" in words:
        return run(words)
    if words[:2] == ["daemon", "run"]:
        return works.until_idle()
    return works.cli(*words)
