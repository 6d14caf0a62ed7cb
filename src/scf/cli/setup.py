"""`scf init`, `scf config`, `scf quickstart`."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import click

from scf.cli.common import Context, common_options, emit, json_option, remember, talk
from scf.config import FoundryConfig
from scf.core.errors import UsageError


@click.command()
@json_option
@common_options
def init(context: Context, as_json: bool) -> None:
    """Make a root with six partitions, a home, keys (0600) and scf.toml.

    Doing it twice changes nothing. The root is `--root` or SCF_ROOT; the home `--home` or SCF_HOME.
    """
    from scf.daemon.setup import initialise

    root = context.config.root
    if root is None:
        raise UsageError(
            "no root given", remedy="Name the drive: `scf init --root /path/on/the/drive`."
        )
    places = initialise(context.home, root)
    remember(places.home)
    if as_json:
        emit(
            {
                "home": str(places.home),
                "root": str(places.root),
                "drive_uuid": places.drive_uuid,
                "keys": places.key_ids,
                "is_new": places.is_new,
            }
        )
        return
    talk("Made a new foundry." if places.is_new else "This foundry was there already.")
    click.echo(f"home  {places.home}\nroot  {places.root}")
    for role, key_id in places.key_ids.items():
        click.echo(f"key   {role:8} {key_id}")


@click.group()
def config() -> None:
    """Show the settings in force."""


@config.command("show")
@json_option
@common_options
def config_show(context: Context, as_json: bool) -> None:
    """Every setting, its value, and whether it is a default or was set."""
    rows = list(_settings(context.config))
    if as_json:
        emit({"schema_version": 1, "settings": rows})
        return
    for row in rows:
        click.echo(f"{row['name']:32} {row['value']!s:28} {row['origin']}")


def _settings(config_value: FoundryConfig) -> "list[dict[str, Any]]":
    rows: list[dict[str, Any]] = [
        {
            "name": "home",
            "value": str(config_value.home),
            "origin": "SCF_HOME" if os.environ.get("SCF_HOME") else "option or record",
        },
        {
            "name": "root",
            "value": str(config_value.root) if config_value.root else None,
            "origin": "SCF_ROOT" if os.environ.get("SCF_ROOT") else "option or scf.toml",
        },
    ]
    for section in ("vault", "training", "daemon", "gate", "start", "run", "tune", "keep",
                    "doors", "ssh", "runpod", "ray"):  # fmt: skip
        settings = getattr(config_value, section)
        for setting in dataclasses.fields(settings):
            value = getattr(settings, setting.name)
            origin = "default" if value == setting.default else "scf.toml"
            rows.append({"name": f"{section}.{setting.name}", "value": value, "origin": origin})
    return rows


@click.command()
@click.option(
    "--report",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="Where the report and its picture go (default: quickstart/ in the home).",
)
@json_option
@common_options
def quickstart(context: Context, report: Path | None, as_json: bool) -> None:
    """Real weather data to a verified weekly release, in minutes, on a CPU.

    Takes the typical meteorological years that ship inside the pvlib package (Greensboro, Sand
    Point, Miami: 1,095 days), makes a root, ingests, trains an energy-based diffusion model,
    measures it on held-out weeks, signs and logs the statement, promotes, packs the weekly release
    and checks it as a stranger would. A second run finds nothing new and exits with 3.
    """
    from scf.daemon.quickstart import run_quickstart

    remember(context.home)
    outcome = run_quickstart(context.config, report_folder=report, talk=talk)
    if as_json:
        emit(outcome.to_json())
    else:
        click.echo(outcome.text())
