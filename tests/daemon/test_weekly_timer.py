"""The weekly release by systemd, launchd or cron: the texts do what they say."""

import plistlib
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scf.daemon.service import KINDS
from scf.daemon.weekly_timer import WeeklyTimer
from support.foundries import SmallFoundry
from support.managers import Machine
from support.processes import python_env
from support.releases import releasable


@pytest.fixture
def timer(tmp_path: Path) -> WeeklyTimer:
    home = tmp_path / "a home, 100%"
    home.mkdir()
    return WeeklyTimer(home, tmp_path / "the $drive", tmp_path / "user", python=sys.executable)


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(
        "scf.daemon.service.shutil.which", lambda tool: real(tool) or f"/usr/bin/{tool}"
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_systemd_reads_both_files_and_the_calendar(timer: WeeklyTimer, tmp_path: Path) -> None:
    (unit,) = timer.beside("systemd").values()
    (tmp_path / "scf-weekly.service").write_text(unit)
    (tmp_path / "scf-weekly.timer").write_text(timer.text("systemd"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", *map(str, tmp_path.glob("scf-weekly.*"))],
        capture_output=True, text=True,
    )  # fmt: skip
    assert [line for line in verified.stderr.splitlines() if "scf-weekly" in line] == []
    (when,) = [w for w in timer.text("systemd").splitlines() if w.startswith("OnCalendar=")]
    told = subprocess.run(
        ["systemd-analyze", "calendar", "--base-time=2026-11-23 07:00", when.partition("=")[2]],
        capture_output=True, text=True,
    )  # fmt: skip
    assert "Mon 2026-11-30 06:23:00" in told.stdout


@pytest.mark.parametrize("kind", ["launchd", "cron"])
def test_the_shell_runs_it_with_the_credentials_and_nothing_to_do_is_no_failure(
    tmp_path: Path, kind: str
) -> None:
    """As /bin/sh gets it: made the first time; the second time 3, which is a success."""
    place: SmallFoundry = releasable(tmp_path / "a foundry, 100%")
    env_file = tmp_path / "user" / ".config" / "scf" / "publish.env"
    env_file.parent.mkdir(parents=True)
    env_file.write_text("SCF_SEEN=yes\n")
    timer = WeeklyTimer(place.home, place.root, tmp_path / "user", python=sys.executable)
    if kind == "launchd":
        command = plistlib.loads(timer.text(kind).encode())["ProgramArguments"]
    else:
        line = timer.text(kind).removeprefix("23 6 * * 1 ").replace("\\%", "%")
        command = shlex.split(line.partition(" >>")[0])
    assert command[:2] == ["/bin/sh", "-c"]
    shell = ["/bin/sh", "-c", f"{command[2]}; code=$?; echo seen $SCF_SEEN; exit $code"]

    for _ in range(2):
        done = subprocess.run(shell, capture_output=True, text=True, env=python_env())
        assert done.returncode == 0, done.stderr
        assert "seen yes" in done.stdout
    assert len(list((place.root / "release_history").glob("week-*"))) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_installed_beside_the_daemon_and_taken_away_whole(
    timer: WeeklyTimer, kind: str, tools: None
) -> None:
    machine = Machine()
    machine.crontab = "0 1 * * * other\n" if kind == "cron" else None
    timer.install(kind, machine)
    timer.install(kind, machine)
    assert timer.is_installed(kind, machine)
    if kind == "systemd":
        folder = timer.path(kind).parent
        assert sorted(p.name for p in folder.iterdir()) == [
            "scf-weekly.service",
            "scf-weekly.timer",
        ]
        assert "systemctl --user enable --now scf-weekly.timer" in machine.asked
    if kind == "cron":
        assert machine.crontab.count("scf weekly of") == 1
    timer.uninstall(kind, machine)
    assert not timer.is_installed(kind, machine)
    assert list((timer.user_home).rglob("scf-weekly*")) == []


def test_it_publishes_where_that_is_configured(timer: WeeklyTimer) -> None:
    assert "--publish" not in timer.command
    publishing = WeeklyTimer(timer.home, timer.root, timer.user_home, publishes=True)
    assert "--publish" in publishing.command
