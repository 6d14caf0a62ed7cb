"""Where the RunPod API key comes from. The only file that reads it.

In this order: the environment (`RUNPOD_API_KEY`), the system's keyring (service `scf`, user
`runpod`), a file that nobody else may read. A file that others may read is refused: a key that was
readable is a key that was read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scf.core.errors import OperatorError
from scf.dispatch.secret_file import read_secret

VARIABLE = "RUNPOD_API_KEY"
SERVICE, USER = "scf", "runpod"
FILE_NAME = "runpod.key"


class ApiKeyMissing(OperatorError):
    """No API key is given, or it may not be used as it lies there."""


@dataclass(frozen=True, repr=False)
class FoundKey:
    """A key and where it was found.

    Attributes:
        key: The secret. It is not printed.
        origin: For people: never the key.
    """

    key: str
    origin: str

    def __repr__(self) -> str:
        return f"FoundKey(origin={self.origin!r})"


def find_key(home: Path, key_file: str, environment: Mapping[str, str]) -> FoundKey:
    """The account's API key.

    Args:
        home: The home.
        key_file: Setting `[runpod] key_file`; empty: `runpod.key` in the home.
        environment: Where `RUNPOD_API_KEY` may stand.

    Raises:
        ApiKeyMissing: There is none, or its file may be read by others.
    """
    if text := environment.get(VARIABLE, "").strip():
        return FoundKey(text, f"the environment ({VARIABLE})")
    path = Path(key_file).expanduser() if key_file else home / FILE_NAME
    if path.exists() or key_file:
        return FoundKey(_read(path), f"the file {path}")
    if (kept := _from_keyring()) is not None:
        return FoundKey(kept, f"the keyring (service {SERVICE}, user {USER})")
    raise ApiKeyMissing(
        "no RunPod API key is given",
        remedy=f"Make one in the RunPod console (Settings, API keys), then "
        f"`(umask 077; cat > {home / FILE_NAME})`, or set {VARIABLE}, or "
        f"`python -m keyring set {SERVICE} {USER}`.",
    )


def _read(path: Path) -> str:
    text = read_secret(
        path,
        "the API key",
        error=ApiKeyMissing,
        remedy_exposed=f"Make a new key (this one may be known), then `chmod 600 {path}`.",
    )
    if not text:
        raise ApiKeyMissing(f"{path}: holds no API key")
    return text


def _from_keyring() -> str | None:
    """The key in the system's keyring; None where there is no keyring, or nothing in it."""
    try:
        import keyring
        import keyring.errors
    except ModuleNotFoundError:
        return None
    try:
        return keyring.get_password(SERVICE, USER)
    except keyring.errors.KeyringError:
        return None
