"""Tell systemd that the daemon is ready, alive, stopping: one datagram each, sd_notify(3)."""

import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass


@dataclass
class Manager:
    """The service manager that started us, or nobody.

    Attributes:
        address: The socket of `NOTIFY_SOCKET`; empty when nobody listens.
        ping_every_s: Half of the watchdog's patience; nothing to ping for when it is infinite.
    """

    address: str
    ping_every_s: float
    _is_ready: bool = False
    _status: str = ""
    _next_ping: float = 0.0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Manager":
        """As `NOTIFY_SOCKET` and `WATCHDOG_USEC` say; a watchdog meant for another pid is not."""
        address = environment.get("NOTIFY_SOCKET", "")
        is_ours = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        patience = environment.get("WATCHDOG_USEC", "") if is_ours else ""
        every_s = int(patience) / 2e6 if patience.isdecimal() else float("inf")
        return cls(address, every_s)

    def ready(self, status: str) -> None:
        """A tick was done: READY once, the status when it changes, a ping now and then."""
        lines = []
        if not self._is_ready:
            self._is_ready = True
            lines.append("READY=1")
        if status != self._status:
            self._status = status
            lines.append("STATUS=" + status.replace("\n", " "))
        if lines:
            self.say("\n".join(lines))
        self.alive()

    def alive(self) -> None:
        """Ping the watchdog, if one waits and the time has come."""
        if time.monotonic() >= self._next_ping and self.ping_every_s != float("inf"):
            self._next_ping = time.monotonic() + self.ping_every_s
            self.say("WATCHDOG=1")

    def say(self, text: str) -> None:
        """Send a message; nobody to hear it is no error."""
        if not self.address:
            return
        path = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as door:
            door.sendto(text.encode(), path)
