"""`scf service|backup|restore`: keep the daemon running, and what it made safe."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scf.cli.common import Context, common_options, emit, json_option, remember, talk
from scf.core.clock import SystemClock
from scf.core.errors import InputError, OperatorError, UsageError

if TYPE_CHECKING:
    from scf.daemon.service import Service

KIND_OPTION = click.option(
    "--kind",
    type=click.Choice(("systemd", "launchd", "cron")),
    default=None,
    help="Default: what this machine has.",
)
REAPER_OPTION = click.option(
    "--reaper", is_flag=True, help="The reaper, which ends rented machines past their lease."
)
WEEKLY_OPTION = click.option(
    "--weekly", is_flag=True, help="The timer that makes and publishes the weekly release."
)
PASSPHRASE_OPTION = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="Its first line protects the keys. Without it you are asked.",
)

PLAIN_OPTION = click.option(
    "--plain", "is_plain", is_flag=True, help="Files of scf's own, even where restic is installed."
)
SSH_OPTION = click.option(
    "--ssh-config",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    default=None,
    help="ssh settings for ssh://, in place of your own.",
)


@click.group()
def service() -> None:
    """Have the daemon started, and started again, by this machine."""


@service.command("install")
@KIND_OPTION
@REAPER_OPTION
@WEEKLY_OPTION
@click.option("--dry-run", is_flag=True, help="Print what would be written, and do nothing.")
@common_options
def service_install(
    context: Context, kind: str | None, reaper: bool, weekly: bool, dry_run: bool
) -> None:
    """Install and start it for this user: a systemd unit, a launchd agent or a cron line."""
    from scf.daemon.service import default_kind

    kind = kind or default_kind()
    made = _service(context, is_reaper=reaper, is_weekly=weekly)
    if dry_run:
        texts = [(made.path(kind), made.text(kind)), *made.beside(kind).items()]
        for path, text in texts:
            talk(f"# {path or 'a line of your crontab'}")
            click.echo(text, nl=False)
        return
    if not (context.home / "scf.toml").exists():
        raise OperatorError(f"{context.home}: no home here", remedy="Run `scf init` first.")
    made.install(kind)
    talk(f"Installed and started ({kind}). `scf status` shows how it does.")
    if kind == "systemd":
        talk("To have it run while you are not logged in: `loginctl enable-linger`.")


@service.command("uninstall")
@KIND_OPTION
@REAPER_OPTION
@WEEKLY_OPTION
@common_options
def service_uninstall(context: Context, kind: str | None, reaper: bool, weekly: bool) -> None:
    """Stop it and take it away; home and drive are not touched."""
    from scf.daemon.service import default_kind

    made = _service(context, is_reaper=reaper, is_weekly=weekly)
    made.uninstall(kind or default_kind())
    talk("Taken away." if reaper or weekly else "Taken away. Jobs were asked to save their state.")


@service.command("status")
@json_option
@common_options
def service_status(context: Context, as_json: bool) -> None:
    """Whether it is installed, and whether a daemon runs."""
    from scf.daemon.heartbeat import is_running
    from scf.daemon.service import KINDS

    made, other = _service(context), _service(context, is_reaper=True)
    installed = [kind for kind in KINDS if made.is_installed(kind)]
    reapers = [kind for kind in KINDS if other.is_installed(kind)]
    timer = _service(context, is_weekly=True)
    timers = [kind for kind in KINDS if timer.is_installed(kind)]
    running = is_running(context.home)
    if as_json:
        found = {"installed": installed, "running": running, "reaper_installed": reapers}
        emit({"schema_version": 1, **found, "weekly_installed": timers})
        return
    click.echo(f"installed  {', '.join(installed) or 'no'}")
    click.echo(f"running    {'yes' if running else 'no'}")
    click.echo(f"reaper     {', '.join(reapers) or 'not installed'}")
    click.echo(f"weekly     {', '.join(timers) or 'not installed'}")


@click.command()
@click.option(
    "--to", "target", required=True, metavar="PLACE",
    help="A folder on another disk, ssh://user@host/path, s3://bucket/prefix or restic:REPOSITORY.",
)  # fmt: skip
@SSH_OPTION
@PASSPHRASE_OPTION
@click.option("--with-vault", is_flag=True, help="The fossils, too.")
@PLAIN_OPTION
@json_option
@common_options
def backup(
    context: Context,
    target: str,
    ssh_config: Path | None,
    passphrase_file: Path | None,
    with_vault: bool,
    is_plain: bool,
    as_json: bool,
) -> None:
    """Copy home, keys (encrypted), audit log, proofs, zoo and releases to another place.

    A second backup to the same place copies only what is new; one that was cut off is gone on with.
    Works beside a running daemon. Where restic is installed, a place that is new becomes a restic
    repository, encrypted as a whole.
    """
    from scf.daemon.backup import save
    from scf.dispatch.places import choose_place

    passphrase = _passphrase(passphrase_file, confirm=True)
    place = choose_place(target, secret=passphrase, ssh_config=ssh_config, is_plain=is_plain)
    saved = save(context.config, place, passphrase=passphrase, with_vault=with_vault,
                 clock=SystemClock(), talk=talk)  # fmt: skip
    if as_json:
        emit({"schema_version": 1, **saved.to_json()})
        return
    click.echo(f"snapshot {saved.snapshot}: {saved.files} files, {saved.new_bytes} bytes new")
    if not with_vault:
        talk("The fossils are not in it (`--with-vault`). Keep the passphrase somewhere else.")


@click.command()
@click.option(
    "--from", "source", required=True, metavar="PLACE",
    help="Where `scf backup` wrote to: as its `--to`.",
)  # fmt: skip
@SSH_OPTION
@click.option("--snapshot", default=None, help="Its name (default: the newest).")
@PASSPHRASE_OPTION
@PLAIN_OPTION
@json_option
@common_options
def restore(
    context: Context,
    source: str,
    ssh_config: Path | None,
    snapshot: str | None,
    passphrase_file: Path | None,
    is_plain: bool,
    as_json: bool,
) -> None:
    """Bring a backup back to an empty home and an empty drive: `--home DIR --root DRIVE`.

    Every file is checked against its digest, the snapshot against the passphrase, the audit log
    against the foundry's key.
    """
    from scf.daemon.restoring import restore as bring_back
    from scf.dispatch.places import choose_place

    root = context.config.need_root()
    passphrase = _passphrase(passphrase_file, confirm=False)
    place = choose_place(source, secret=passphrase, ssh_config=ssh_config, is_plain=is_plain)
    done = bring_back(place, home=context.home, root=root, snapshot=snapshot, talk=talk,
                      passphrase=passphrase)  # fmt: skip
    remember(context.home)
    if as_json:
        emit({"schema_version": 1, **done.to_json()})
        return
    click.echo(f"snapshot {done.snapshot}: {done.files} files, {done.audit_entries} audit entries")
    talk("Brought back." if done.with_vault else "Brought back, without fossils: copy them back or "
         "ingest them again.")  # fmt: skip


def _passphrase(path: Path | None, *, confirm: bool) -> str:
    """From the first line of a file that others may not read, or asked for; never an argument."""
    if path is None:
        return str(
            click.prompt("Passphrase", hide_input=True, confirmation_prompt=confirm, err=True)
        )
    try:
        mode = path.stat().st_mode
        with path.open(encoding="utf-8") as file:
            line = file.readline(4096).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if mode & 0o077 and os.name == "posix":
        raise UsageError(f"{path}: others may read it", remedy=f"Run `chmod 600 {path}`.")
    return line


def _service(context: Context, *, is_reaper: bool = False, is_weekly: bool = False) -> "Service":
    from scf.daemon.service import Service
    from scf.daemon.weekly_timer import WeeklyTimer

    if is_reaper and is_weekly:
        raise UsageError("--reaper and --weekly are two services; name one")
    root = context.config.need_root()
    if is_weekly:
        publishes = bool(context.config.release.push)
        return WeeklyTimer(context.home, root, Path.home(), publishes=publishes)
    program = "reaper" if is_reaper else "daemon"
    return Service(context.home, root, Path.home(), program=program)


__all__ = ["backup", "restore", "service"]
