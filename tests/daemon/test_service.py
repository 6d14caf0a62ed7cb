"""The daemon is kept running by whatever the machine has; the texts are checked by their own tools."""

import plistlib
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from scf.core.errors import NothingToDo, OperatorError
from scf.daemon.notify import Manager
from scf.daemon.service import KINDS, Service
from support.conducting import Works
from support.managers import Machine


@pytest.fixture
def service(tmp_path: Path) -> Service:
    home = tmp_path / "a home, 100%"
    home.mkdir()
    return Service(home, tmp_path / "the $drive", tmp_path / "user", python="/usr/bin/python3")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which
    monkeypatch.setattr(
        "scf.daemon.service.shutil.which", lambda tool: real(tool) or f"/usr/bin/{tool}"
    )


@pytest.mark.parametrize("kind", ["systemd", "launchd", "cron"])
def test_the_reaper_is_a_service_beside_the_daemons(kind: str, tmp_path: Path) -> None:
    """Another file (or line), another name, its own program: one can go without the other."""
    places = (tmp_path / "home", tmp_path / "root", tmp_path)
    daemon, reaper = Service(*places), Service(*places, program="reaper")

    assert "scf.daemon.reaper" in reaper.text(kind)
    assert "scf.daemon.scf_daemon" not in reaper.text(kind)
    if kind == "cron":
        assert daemon.text(kind).split("#")[1] != reaper.text(kind).split("#")[1]
        assert "cron-reaper.lock" in reaper.text(kind)
    else:
        assert daemon.path(kind) != reaper.path(kind)
    if kind == "systemd" and shutil.which("systemd-analyze"):
        unit = tmp_path / "scf-reaper.service"
        unit.write_text(reaper.text(kind))
        done = subprocess.run(
            ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True
        )
        assert [line for line in done.stderr.splitlines() if unit.name in line] == []


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
def test_the_unit_is_valid_and_little_exposed(service: Service, tmp_path: Path) -> None:
    """`systemd-analyze` reads it without a complaint; the exposure is below 4.0."""
    unit = tmp_path / "scf.service"
    unit.write_text(service.text("systemd"))
    verified = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True
    )
    ours = [line for line in verified.stderr.splitlines() if "scf.service" in line]
    assert ours == []
    judged = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True, text=True,
    )  # fmt: skip
    match = re.search(r"exposure level for scf.service: ([0-9.]+)", judged.stdout)
    assert match is not None, judged.stdout + judged.stderr
    assert float(match[1]) < 4.0


def test_the_unit_says_what_a_daemon_needs(service: Service) -> None:
    lines = service.text("systemd").splitlines()

    assert {"Type=notify", "KillMode=process", "NoNewPrivileges=yes"} <= set(lines)
    (start,) = [line for line in lines if line.startswith("ExecStart=")]
    assert '"-m" "scf.daemon.scf_daemon"' in start
    assert "a home, 100%%" in start
    assert "the $$drive" in start


def test_the_agent_is_a_property_list(service: Service) -> None:
    """macOS: started again after a crash, not after a stop; jobs are left alone."""
    agent = plistlib.loads(service.text("launchd").encode())

    assert agent["ProgramArguments"] == service.command
    assert agent["KeepAlive"] == {"SuccessfulExit": False}
    assert agent["AbandonProcessGroup"] is True
    assert agent["ExitTimeOut"] > 45


def test_the_cron_line_survives_percent_signs_and_spaces(service: Service) -> None:
    """What cron hands to the shell is the command as it was."""
    line = service.text("cron")
    assert line.startswith("*/5 * * * * flock -n ")
    shell = line.removeprefix("*/5 * * * * ").replace("\\%", "%")
    words = shlex.split(shell, comments=True)

    assert words[:2] == ["flock", "-n"]
    assert words[3 : 3 + len(service.command)] == service.command


@pytest.mark.parametrize("kind", KINDS)
def test_installed_twice_is_installed_once_and_taken_away_whole(
    service: Service, kind: str, tools: None
) -> None:
    machine = Machine()
    machine.crontab = "0 1 * * * other\n" if kind == "cron" else None
    assert not service.is_installed(kind, machine)
    service.install(kind, machine)
    service.install(kind, machine)
    assert service.is_installed(kind, machine)
    if kind == "cron":
        assert machine.crontab is not None
        assert len(machine.crontab.splitlines()) == 2
    else:
        path = service.path(kind)
        assert path is not None
        assert path.read_text() == service.text(kind)
    service.uninstall(kind, machine)
    assert not service.is_installed(kind, machine)
    assert machine.crontab == ("0 1 * * * other\n" if kind == "cron" else None)
    with pytest.raises(NothingToDo):
        service.uninstall(kind, machine)


def test_a_manager_that_refuses_is_an_error(service: Service, tools: None) -> None:
    with pytest.raises(OperatorError, match="systemctl --user daemon-reload: refused"):
        service.install("systemd", Machine(code=1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_dry_run_prints_and_writes_nothing(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    works = Works(tmp_path / "w")
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert works.cli("service", "install", "--kind", kind, "--dry-run") == 0
    assert str(works.home) in capsys.readouterr().out
    assert not (tmp_path / "user").exists()
    assert works.cli("service", "status") == 0
    assert "running    no" in capsys.readouterr().out


def test_systemd_is_told_once_that_we_are_ready_and_pinged(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(2)
        said = Manager.of({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "20000000"})
        assert said.ping_every_s == 10.0
        said.ready("IDLE")
        assert manager.recv(1000) == b"READY=1\nSTATUS=IDLE"
        assert manager.recv(1000) == b"WATCHDOG=1"
        said.ready("IDLE")
        said.ready("DISK_FULL: no\nroom")
        assert manager.recv(1000) == b"STATUS=DISK_FULL: no room"
        said.say("STOPPING=1")
        assert manager.recv(1000) == b"STOPPING=1"


@pytest.mark.parametrize(
    "environment",
    [{}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "@scf-nobody-listens"},
     {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}],
)  # fmt: skip
def test_nobody_who_listens_is_no_error(environment: dict[str, str]) -> None:
    manager = Manager.of(environment)
    manager.ready("IDLE")
    manager.alive()
    manager.say("STOPPING=1")


def test_a_daemon_under_systemd_says_ready_and_stopping(tmp_path: Path) -> None:
    works = Works(tmp_path / "w")
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(20)
        assert works.run_process("--until-idle", NOTIFY_SOCKET=address) == 0
        heard = [manager.recv(1000).decode()]
        while "STOPPING" not in heard[-1]:
            heard.append(manager.recv(1000).decode())
    assert heard[0].startswith("READY=1")
