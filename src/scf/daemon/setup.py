"""Make a foundry: the drive's partitions, the keys, the settings file."""

from dataclasses import dataclass
from pathlib import Path

from scf.config.settings import CONFIG_NAME, config_text
from scf.core.errors import OperatorError, UsageError
from scf.signing import keys
from scf.storage import durable
from scf.storage.partitions import Drive


@dataclass(frozen=True)
class FoundryPlaces:
    """Where a foundry lives, and whether this call made it."""

    home: Path
    root: Path
    drive_uuid: str
    key_ids: dict[str, str]
    is_new: bool


def initialise(home: Path, root: Path) -> FoundryPlaces:
    """Make (or complete) a foundry. Doing it twice changes nothing.

    Raises:
        OperatorError: The home belongs to another drive.
        UsageError: Home and root are the same folder, or home lies inside a partition.
    """
    home, root = home.resolve(), root.resolve()
    if home == root or root in home.parents:
        raise UsageError(
            f"the home {home} lies on the drive {root}",
            remedy="Keep the home on the internal disk: the lock and the run states must be "
            "readable when the drive is gone.",
        )
    is_new = not (home / CONFIG_NAME).exists()
    drive = Drive.scaffold(root)
    with durable.os_errors(home):
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    _bind(home, drive)
    public = keys.create_keys(home / "keys")
    if is_new:
        durable.write_file(home / CONFIG_NAME, config_text(root).encode())
    key_ids = {role: key.key_id for role, key in public.items()}
    return FoundryPlaces(home, drive.root, drive.uuid, key_ids, is_new)


def _bind(home: Path, drive: Drive) -> None:
    """A home serves one drive: its states and its audit head would mean nothing on another."""
    path = home / "drive.json"
    if not path.exists():
        durable.write_json(path, {"schema": "scf.drive/1", "uuid": drive.uuid})
        return
    bound = durable.read_json(path).get("uuid")
    if bound != drive.uuid:
        raise OperatorError(
            f"the home {home} belongs to drive {bound}, not to {drive.uuid} at {drive.root}",
            remedy="Give this drive its own home with `--home`, or plug the other drive in.",
        )
