"""Keep this machine from falling asleep, only while a rented one is paid for.

A Mac on a desk may sleep while its own jobs wait; asleep while a pod runs it would pay for nothing.
`caffeinate -i -w PID` ends with the daemon, however that ends. Elsewhere servers do not sleep, and
nothing is done.
"""

import os
import shutil
import subprocess
import sys

CAFFEINATE = "caffeinate"


class Wakeful:
    """Holds one assertion that the machine stays awake, or none.

    Args:
        program: What holds it; None where this system has none.
    """

    def __init__(self, program: str | None = None) -> None:
        found = shutil.which(CAFFEINATE) if sys.platform == "darwin" else None
        self._program = program or found
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def is_held(self) -> bool:
        """Whether the machine is kept awake now."""
        return self._child is not None and self._child.poll() is None

    def keep(self, *, is_needed: bool) -> None:
        """Hold it or let go of it; the same twice changes nothing."""
        if self._program is None or is_needed == self.is_held:
            return
        if is_needed:
            self._child = subprocess.Popen(
                [self._program, "-i", "-w", str(os.getpid())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        elif self._child is not None:
            self._child.terminate()
            self._child.wait(timeout=10)
            self._child = None
