"""Keep the daemon running: a systemd unit, a launchd agent, or a line for cron.

The texts are made here and nothing else; `install` writes what `text` gives. Jobs outlive a restart
of the daemon, so a manager must end the daemon alone (`KillMode=process`): a stop asks jobs to save
and end anyway.
"""

import os
import plistlib
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scf.core.errors import MissingTool, NothingToDo, OperatorError
from scf.storage import durable

KINDS = ("systemd", "launchd", "cron")
UNIT_NAME = "scf.service"
AGENT_LABEL = "dev.scf.daemon"
# The daemon pings at least every gear's pause and within long ingests; packing a release takes
# longest. Longer silence than this is a hang.
WATCHDOG_S = 900
# More than the daemon takes to let jobs save (scf_daemon.STOP_WAIT_S).
STOP_S = 75
CRON_EVERY_MIN = 5

Run = Callable[[Sequence[str], str | None], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Service:
    """What is to be kept running, and for whom.

    Attributes:
        home: The home.
        root: The drive.
        user_home: Where the user's own units and agents lie.
        python: The interpreter that has scf.
        program: `daemon`, or `reaper`, which ends rented machines whatever became of the daemon.
    """

    home: Path
    root: Path
    user_home: Path
    python: str = sys.executable
    program: str = "daemon"

    @property
    def command(self) -> list[str]:
        module = {"daemon": "scf.daemon.scf_daemon", "reaper": "scf.daemon.reaper"}[self.program]
        return [self.python, "-m", module, "--home", str(self.home),
                "--root", str(self.root)]  # fmt: skip

    def path(self, kind: str) -> Path | None:
        """The file that `kind` needs; None for cron, which keeps its own table."""
        if kind == "systemd":
            return self.user_home / ".config" / "systemd" / "user" / self._unit_name
        if kind == "launchd":
            return self.user_home / "Library" / "LaunchAgents" / f"{self._agent_label}.plist"
        return None

    def text(self, kind: str) -> str:
        """What the file holds, or the line of the table."""
        return {"systemd": self._unit, "launchd": self._agent, "cron": self._cron_line}[kind]()

    def beside(self, kind: str) -> dict[Path, str]:
        """Other files that it takes, by path."""
        del kind
        return {}

    def _unit(self) -> str:
        # The drive may be absent at the start (`-`); the daemon then says so and is started again.
        writable = f"{unit_word(self.home)} {unit_word(f'-{self.root}')}"
        command = " ".join(unit_word(part).replace("$", "$$") for part in self.command)
        return f"""\
# Written by `scf service install`. The {self.program} of one home on one drive.
[Unit]
Description=scf, the {self._role} of {self.home}
StartLimitIntervalSec=0

[Service]
Type=notify
ExecStart={command}
Restart=on-failure
RestartSec=15
# A wrong command line or scf.toml does not get better by itself.
RestartPreventExitStatus=2
WatchdogSec={WATCHDOG_S}
TimeoutStartSec=120
TimeoutStopSec={STOP_S}
# Jobs outlive a restart and are found again; a stop asks them to save and end.
KillMode=process
Nice=5
UMask=0077

NoNewPrivileges=yes
PrivateTmp=yes
PrivateUsers=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={writable}
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
CapabilityBoundingSet=
AmbientCapabilities=
KeyringMode=private
# Devices stay: jobs may use a GPU. Memory that is written and run stays: so do compilers of torch.

[Install]
WantedBy=default.target
"""

    @property
    def _role(self) -> str:
        return "conductor" if self.program == "daemon" else self.program

    def _agent(self) -> str:
        log = str(self.home / "logs" / "launchd.log")
        agent = {
            "Label": self._agent_label,
            "ProgramArguments": self.command,
            "RunAtLoad": True,
            # Again after a crash, not after `scf stop`.
            "KeepAlive": {"SuccessfulExit": False},
            "ThrottleInterval": 15,
            "ProcessType": "Background",
            "ExitTimeOut": STOP_S,
            # Jobs outlive the daemon.
            "AbandonProcessGroup": True,
            "StandardOutPath": log,
            "StandardErrorPath": log,
            "Umask": 0o077,
        }
        return plistlib.dumps(agent).decode()

    def _cron_line(self) -> str:
        name = "cron" if self.program == "daemon" else f"cron-{self.program}"
        lock, log = self.home / f"{name}.lock", self.home / "logs" / f"{name}.log"
        command = " ".join(shlex.quote(part) for part in self.command)
        line = (
            f"*/{CRON_EVERY_MIN} * * * * flock -n {shlex.quote(str(lock))} {command} "
            f">>{shlex.quote(str(log))} 2>&1"
        )
        # In a crontab a bare % is a newline.
        return line.replace("%", "\\%") + f" {self._cron_mark}"

    @property
    def _cron_mark(self) -> str:
        what = "scf" if self.program == "daemon" else f"scf {self.program}"
        return f"# {what} of {self.home}".replace("%", "\\%")

    def install(self, kind: str, run: "Run | None" = None) -> None:
        """Write the file (or the line) and start it. Twice is once.

        Raises:
            MissingTool: This machine has no such manager.
            OperatorError: The manager refused.
        """
        run = run or _run
        (self.home / "logs").mkdir(exist_ok=True)
        path = self.path(kind)
        _need({"systemd": "systemctl", "launchd": "launchctl", "cron": "crontab"}[kind])
        if path is None:
            _need("flock")
            self._set_crontab(run, [self.text("cron")])
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        for file, text in {**self.beside(kind), path: self.text(kind)}.items():
            durable.write_file(file, text.encode())
        if kind == "systemd":
            _ok(run, ["systemctl", "--user", "daemon-reload"])
            _ok(run, ["systemctl", "--user", "enable", "--now", self._unit_name])
        else:
            run(["launchctl", "bootout", self._agent_target()], None)
            _ok(run, ["launchctl", "bootstrap", f"gui/{os.getuid()}", str(path)])

    def uninstall(self, kind: str, run: "Run | None" = None) -> None:
        """Stop it and take the file (or the line) away. Home and drive are not touched.

        Raises:
            NothingToDo: It is not installed.
        """
        run = run or _run
        if not self.is_installed(kind, run):
            raise NothingToDo(f"no {kind} service of {self.home} is installed")
        path = self.path(kind)
        if path is None:
            self._set_crontab(run, [])
            return
        if kind == "systemd":
            run(["systemctl", "--user", "disable", "--now", self._unit_name], None)
        else:
            run(["launchctl", "bootout", self._agent_target()], None)
        for file in (path, *self.beside(kind)):
            file.unlink(missing_ok=True)

    def is_installed(self, kind: str, run: "Run | None" = None) -> bool:
        """Whether the file (or the line) is there."""
        path = self.path(kind)
        if path is not None:
            return path.exists()
        return shutil.which("crontab") is not None and any(
            line.endswith(self._cron_mark) for line in _crontab(run or _run)
        )

    def _set_crontab(self, run: Run, ours: list[str]) -> None:
        others = [line for line in _crontab(run) if not line.endswith(self._cron_mark)]
        text = "".join(f"{line}\n" for line in [*others, *ours])
        _ok(run, ["crontab", "-"], text)

    def _agent_target(self) -> str:
        return f"gui/{os.getuid()}/{self._agent_label}"

    @property
    def _unit_name(self) -> str:
        return UNIT_NAME if self.program == "daemon" else f"scf-{self.program}.service"

    @property
    def _agent_label(self) -> str:
        return AGENT_LABEL if self.program == "daemon" else f"dev.scf.{self.program}"


def default_kind() -> str:
    """What this machine most likely has: launchd on macOS, systemd where it runs, else cron."""
    if sys.platform == "darwin":
        return "launchd"
    return "systemd" if Path("/run/systemd/system").is_dir() else "cron"


def unit_word(value: str | Path) -> str:
    """One word of a unit file: quoted, with `%` as itself."""
    text = str(value).replace("\\", "\\\\").replace('"', '\\"')
    return '"' + text.replace("%", "%%") + '"'


def _crontab(run: Run) -> list[str]:
    listed = run(["crontab", "-l"], None)
    return listed.stdout.splitlines() if listed.returncode == 0 else []


def _need(tool: str) -> None:
    if shutil.which(tool) is None:
        raise MissingTool(
            f"{tool} is not on this machine",
            remedy=f"Choose another kind: `scf service install --kind {'|'.join(KINDS)}`.",
        )


def _ok(run: Run, command: Sequence[str], given: str | None = None) -> None:
    done = run(command, given)
    if done.returncode != 0:
        raise OperatorError(f"{shlex.join(command)}: {done.stderr.strip() or done.returncode}")


def _run(command: Sequence[str], given: str | None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command, input=given, capture_output=True, text=True, check=False, timeout=60
    )
