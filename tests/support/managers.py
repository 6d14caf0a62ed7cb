"""What systemd, launchd and cron are asked, without any of them."""

import shlex
import subprocess
from collections.abc import Sequence


class Machine:
    """Takes the managers' commands, and keeps a crontab."""

    def __init__(self, *, code: int = 0) -> None:
        self.asked: list[str] = []
        self.crontab: str | None = None
        self.code = code

    def __call__(
        self, command: Sequence[str], given: str | None
    ) -> "subprocess.CompletedProcess[str]":
        self.asked.append(shlex.join(command))
        if list(command) == ["crontab", "-"]:
            self.crontab = given
        if list(command) == ["crontab", "-l"]:
            code = 0 if self.crontab is not None else 1
            return subprocess.CompletedProcess(command, code, self.crontab or "", "no crontab")
        return subprocess.CompletedProcess(command, self.code, "", "refused")
