"""Where the home is: small state on the internal disk. Never found by the current folder.

`scf lock` typed anywhere must stop the right daemon, so the order is fixed: `--home`, then
`SCF_HOME`, then what `scf init` recorded in the user's config folder, then, in a source checkout,
its `data/scf`. A record that points to a folder which is no longer there is passed over.
"""

from collections.abc import Mapping
from pathlib import Path

import platformdirs

import scf
from scf.core.errors import OperatorError
from scf.storage import durable


def find_home(given: Path | None, environment: Mapping[str, str]) -> Path:
    """The home's path; it need not exist yet.

    Raises:
        OperatorError: Nothing says where it is.
    """
    if given is not None:
        return given.expanduser().resolve()
    if environment.get("SCF_HOME"):
        return Path(environment["SCF_HOME"]).expanduser().resolve()
    recorded = _recorded_home()
    if recorded is not None and recorded.is_dir():
        return recorded
    checkout = source_checkout()
    if checkout is not None:
        return checkout / "data" / "scf"
    raise OperatorError(
        "no home is known",
        remedy="Run `scf init --home DIR --root DRIVE`, or set SCF_HOME.",
    )


def record_home(home: Path) -> None:
    """Remember `home` for this user, unless it is what would be found without a record."""
    checkout = source_checkout()
    record = _record_path()
    if checkout is not None and home == checkout / "data" / "scf":
        record.unlink(missing_ok=True)
        return
    record.parent.mkdir(parents=True, exist_ok=True)
    durable.write_file(record, f"{home}\n".encode())


def source_checkout() -> Path | None:
    """The root of the source checkout that this code runs from, if it does."""
    root = Path(scf.__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").is_file() and (root / "src" / "scf").is_dir() else None


def _record_path() -> Path:
    return Path(platformdirs.user_config_dir("scf")) / "home"


def _recorded_home() -> Path | None:
    try:
        text = _record_path().read_text().strip()
    except OSError:
        return None
    return Path(text) if text else None
