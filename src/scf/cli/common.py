"""What every command shares: the context, the options, and how answers leave."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import click

from scf.config import FoundryConfig, find_home, load_config, record_home
from scf.core.errors import OperatorError
from scf.storage.partitions import Drive

P = ParamSpec("P")
R = TypeVar("R")


class Context:
    """Home, settings and drive, each found when it is first asked for."""

    def __init__(self, home: Path | None, root: Path | None) -> None:
        self._home = home
        self._root = root

    @functools.cached_property
    def home(self) -> Path:
        """The home; it need not exist yet."""
        return find_home(self._home, os.environ)

    @functools.cached_property
    def config(self) -> FoundryConfig:
        """All settings. Raises UsageError for a bad scf.toml."""
        return load_config(self.home, root=self._root, environment=os.environ)

    @functools.cached_property
    def drive(self) -> Drive:
        """The opened drive. Raises DriveMissing, or OperatorError when none is configured."""
        return Drive.open(self.config.need_root())

    @property
    def key_folder(self) -> Path:
        """Where the keys lie."""
        return self.home / "keys"

    def require_clear(self, effect: str) -> None:
        """Raise EmergencyLocked if the emergency lock of this home is set.

        A command that needs no foundry, such as training by hand, goes on where there is no home.
        """
        from scf.control.emergency_lock import EmergencyLock

        try:
            home = self.home
        except OperatorError:
            return
        if home.is_dir():
            EmergencyLock(home).require_clear(effect)


def common_options(command: Callable[..., R]) -> Callable[..., R]:
    """Add `--home` and `--root`; the command gets a `Context` as its first argument."""

    @click.option(
        "--home",
        type=click.Path(path_type=Path, file_okay=False),
        default=None,
        help="Small state on the internal disk (default: SCF_HOME, or what `scf init` recorded).",
    )
    @click.option(
        "--root",
        type=click.Path(path_type=Path, file_okay=False),
        default=None,
        help="The drive (default: SCF_ROOT, or `root` in scf.toml).",
    )
    @functools.wraps(command)
    def wrapped(*args: Any, home: Path | None, root: Path | None, **kwargs: Any) -> R:
        shared = click.get_current_context().find_root().params
        context = Context(home or shared.get("home"), root or shared.get("root"))
        return command(context, *args, **kwargs)

    return wrapped


def json_option(command: Callable[P, R]) -> Callable[P, R]:
    """Add `--json` as the argument `as_json`."""
    option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
    return option(command)


def emit(value: Any) -> None:
    """Print a JSON answer to stdout."""
    click.echo(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False))


def talk(message: str) -> None:
    """Say something to the person, on stderr."""
    click.echo(message, err=True)


def remember(home: Path) -> None:
    """Have `scf` without `--home` find `home` from now on, and say so where it found another one.

    Where SCF_HOME is set, that is what says it, and nothing is recorded.
    """
    if os.environ.get("SCF_HOME"):
        return
    try:
        before = find_home(None, os.environ)
    except OperatorError:
        before = None
    if before == home:
        return
    record_home(home)
    if before is not None and before.is_dir():
        talk(f"`scf` without `--home` now means {home} (it meant {before}).")
