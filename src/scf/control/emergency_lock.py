"""The emergency lock: while its file is in the home, nothing starts, spends or publishes.

Presence alone counts, whatever the file holds, and a path that cannot be looked at counts as
locked: a stop that depends on something working is no stop. Setting it needs no daemon, no
database and no drive. The file lies on the internal disk; it is one `stat` to look, so it is
looked at before every effect, in every gear.
"""

import contextlib
import os
from datetime import datetime
from pathlib import Path

from scf.core.clock import utc_text
from scf.core.errors import EmergencyLocked, NothingToDo, OperatorError
from scf.storage import durable

LOCK_NAME = "EMERGENCY_LOCK"


class EmergencyLock:
    """The lock of one home.

    Args:
        home: The home.
        token: A file that must be there, on a key that somebody can pull; None for none.
    """

    def __init__(self, home: Path, *, token: Path | None = None) -> None:
        self.path = home / LOCK_NAME
        self._token = token

    def token_fault(self) -> str | None:
        """Why the hardware token counts as pulled; None where it is there, or none is wanted."""
        if self._token is None:
            return None
        try:
            self._token.stat()
        except OSError as error:
            return f"the hardware token {self._token} is not there ({error.strerror})"
        return None

    def fault(self) -> str | None:
        """Why nothing may start, as one sentence; None when all is clear.

        Only the clear answer "there is a home, and no such name in it" means clear. A missing home,
        a link that goes nowhere, a refused look: all locked.
        """
        try:
            self.path.lstat()
        except FileNotFoundError:
            if self.path.parent.is_dir():
                return self.token_fault()
            return f"the home {self.path.parent} is gone, so its emergency lock cannot be read"
        except OSError as error:
            return f"{self.path} cannot be read ({error.strerror}), which counts as locked"
        return f"{self.path} is set"

    @property
    def is_set(self) -> bool:
        """Whether nothing may start, spend or publish now."""
        return self.fault() is not None

    def require_clear(self, effect: str) -> None:
        """Raise EmergencyLocked unless `effect` may go ahead now."""
        fault = self.fault()
        if fault is not None:
            raise EmergencyLocked(
                f"emergency lock: {fault}; not done: {effect}",
                remedy="When the reason is gone, run `scf unlock --reason TEXT`.",
            )

    def set(self, reason: str, *, now: datetime) -> bool:
        """Lock. Returns whether this call made the file; False when it was there before.

        The lock holds from the moment that the name exists; the reason inside is for people, so a
        disk too full to hold it does not undo the lock.

        Raises:
            OperatorError: The name could not be made: not locked.
        """
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        except OSError as error:
            raise OperatorError(
                f"{self.path}: the lock could not be set: {error.strerror}",
                remedy="End the daemon with `kill -9` and see to the home's disk.",
            ) from error
        try:
            with contextlib.suppress(OSError):
                os.write(descriptor, f"{utc_text(now)} {reason}\n".encode())
                durable.flush_file(descriptor)
        finally:
            os.close(descriptor)
        with contextlib.suppress(OSError):
            durable.flush_folder(self.path.parent)
        return True

    def reason(self) -> str | None:
        """What the file says, for people; None when there is nothing to read."""
        try:
            with self.path.open("rb") as file:
                return file.read(4096).decode(errors="replace").strip() or None
        except OSError:
            return None

    def release(self) -> None:
        """Unlock. Whoever calls this has recorded why, first.

        Raises:
            NothingToDo: It is not set.
            OperatorError: It is set and cannot be removed.
        """
        try:
            self.path.unlink()
            durable.flush_folder(self.path.parent)
        except FileNotFoundError as error:
            raise NothingToDo(f"{self.path} is not set") from error
        except OSError as error:
            raise OperatorError(
                f"{self.path}: still locked, it cannot be removed: {error.strerror}",
                remedy="Remove it by hand.",
            ) from error
