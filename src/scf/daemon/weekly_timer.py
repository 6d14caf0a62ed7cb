"""Make and publish the weekly release by the machine's own timer: for users without GitHub.

The twin of .github/workflows/weekly-release.yml: Mondays at 06:23, `scf release make`, published
where [release] push says. Exit code 3 (nothing to do) is a success. Credentials of outlets stand in
`~/.config/scf/publish.env` (mode 0600), which is read where it is there.
"""

import plistlib
import shlex
from dataclasses import dataclass
from pathlib import Path

from scf.daemon.service import Service, unit_word

ENVIRONMENT_NAME = Path(".config") / "scf" / "publish.env"
WEEKDAY, HOUR, MINUTE = 1, 6, 23


@dataclass(frozen=True)
class WeeklyTimer(Service):
    """A timer beside the daemon.

    Attributes:
        publishes: Whether the release is published after it was made.
    """

    program: str = "weekly"
    publishes: bool = False

    @property
    def command(self) -> list[str]:
        publish = ["--publish"] if self.publishes else []
        place = ["--home", str(self.home), "--root", str(self.root)]
        return [self.python, "-m", "scf", "release", "make", *publish, *place]

    @property
    def shell_command(self) -> str:
        """The same for a shell, with the credentials in its environment and 3 as a success."""
        given = shlex.quote(str(self.user_home / ENVIRONMENT_NAME))
        command = shlex.join(self.command)
        return f"set -a; [ ! -f {given} ] || . {given}; {command} || [ $? -eq 3 ]"

    def beside(self, kind: str) -> dict[Path, str]:
        """The unit that the timer starts."""
        timer = self.path(kind)
        if kind != "systemd" or timer is None:
            return {}
        return {timer.with_suffix(".service"): self._service_unit()}

    def _unit(self) -> str:
        return f"""\
# Written by `scf service install --weekly`.
[Unit]
Description=scf, the weekly release of {self.home}

[Timer]
OnCalendar=Mon *-*-* {HOUR:02d}:{MINUTE:02d}
RandomizedDelaySec=10min
# A machine that slept on Monday morning makes up for it.
Persistent=true

[Install]
WantedBy=timers.target
"""

    def _service_unit(self) -> str:
        command = " ".join(unit_word(part).replace("$", "$$") for part in self.command)
        return f"""\
# Written by `scf service install --weekly`; started by the timer of this name.
[Unit]
Description=scf, the weekly release of {self.home}
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={command}
# Nothing to do; locked by the operator.
SuccessExitStatus=3 4
EnvironmentFile=-%h/{ENVIRONMENT_NAME}
TimeoutStartSec=6h
Nice=5
UMask=0077

NoNewPrivileges=yes
PrivateTmp=yes
# A folder to publish into may lie anywhere but here.
ProtectSystem=full
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
ProtectClock=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
CapabilityBoundingSet=
"""

    def _agent(self) -> str:
        log = str(self.home / "logs" / "weekly.log")
        agent = {
            "Label": self._agent_label,
            "ProgramArguments": ["/bin/sh", "-c", self.shell_command],
            "StartCalendarInterval": {"Weekday": WEEKDAY, "Hour": HOUR, "Minute": MINUTE},
            "ProcessType": "Background",
            "StandardOutPath": log,
            "StandardErrorPath": log,
            "Umask": 0o077,
        }
        return plistlib.dumps(agent).decode()

    def _cron_line(self) -> str:
        log = shlex.quote(str(self.home / "logs" / "weekly.log"))
        shell = shlex.quote(self.shell_command)
        line = f"{MINUTE} {HOUR} * * {WEEKDAY} /bin/sh -c {shell} >>{log} 2>&1"
        # In a crontab a bare % is a newline.
        return line.replace("%", "\\%") + f" {self._cron_mark}"

    @property
    def _unit_name(self) -> str:
        return "scf-weekly.timer"
