"""The `scf` command: a lazy group, so that `scf status` does not pay for `scf train`."""

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import click

import scf
from scf.core.errors import ScfError

# Command name -> (module under scf.cli, attribute, one line for the list). In the order of a day.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "quickstart": ("setup", "quickstart", "Real data to a verified weekly release, in minutes."),
    "init": ("setup", "init", "Make a root with its partitions, keys and settings."),
    "config": ("setup", "config", "Show the settings in force and where each comes from."),
    "status": ("operate", "status", "Where the foundry stands."),
    "ingest": ("fossils", "ingest", "Take files in as fossils."),
    "fossil": ("fossils", "fossil", "Validate, show, trace, retract or export fossils."),
    "daemon": ("operate", "daemon", "Run the conductor."),
    "gear": ("operate", "gear", "Shift the conductor's gear."),
    "pause": ("operate", "pause", "Start nothing new until `scf resume`."),
    "resume": ("operate", "resume", "Go on after `scf pause`."),
    "stop": ("operate", "stop", "Ask the conductor to stop."),
    "run-now": ("operate", "run_now", "Start a run on what is there now."),
    "cancel": ("operate", "cancel", "End a run; no other try is made."),
    "budget": ("operate", "budget", "Limits on room, money and what is kept, with a forecast."),
    "lock": ("operate", "lock", "Emergency stop: end jobs, start nothing."),
    "unlock": ("operate", "unlock", "Release the emergency lock, with a reason."),
    "runs": ("operate", "runs", "List runs."),
    "run": ("operate", "run", "Show one run, its attempts and its fossils."),
    "pods": ("pods", "pods", "Rented machines: what they are for, cost, and when they end."),
    "reaper": ("pods", "reaper", "End rented machines that outlive their lease."),
    "doctor": ("pods", "doctor", "Whether all that is needed is there."),
    "service": ("upkeep", "service", "Have the daemon kept running by this machine."),
    "backup": ("upkeep", "backup", "Copy what cannot be made again to another disk."),
    "restore": ("upkeep", "restore", "Bring a backup back to an empty machine."),
    "train": ("models", "train", "Train an energy-based diffusion model."),
    "score": ("models", "score", "Energy of each fossil under a model."),
    "sample": ("models", "sample", "Draw samples from a model."),
    "verify-science": ("models", "verify_science", "Train where the truth is known; compare."),
    "zoo": ("evidence_zoo", "zoo", "Generations: list, show, roll back."),
    "proof": ("evidence", "proof", "Verify proof records."),
    "audit": ("evidence", "audit", "Check the audit log, prove an entry."),
    "keys": ("evidence", "keys", "Show the public keys."),
    "release": ("evidence_release", "release", "Make, list and verify weekly releases."),
}


class LazyGroup(click.Group):
    """Imports a command's module when the command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"scf.cli.{module}"), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, _, line) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean `scf {close[0]}`?" if close else ""
            raise click.UsageError(f"No command `{args[0]}`.{hint}", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(scf.__version__, prog_name="scf")
@click.option("--home", type=click.Path(path_type=Path, file_okay=False), help="The home folder.")
@click.option("--root", type=click.Path(path_type=Path, file_okay=False), help="The drive's root.")
def root_command(home: Path | None, root: Path | None) -> None:
    """Keep physics models current, with evidence from the release down to the single record.

    Begin with `scf quickstart`. Answers go to stdout, talk to stderr.
    Exit codes: 0 ok, 1 failure, 2 usage, 3 nothing to do, 4 emergency lock, 5 verification failed,
    6 budget exceeded, 7 drive missing, 8 provider, 130 interrupt.
    """
    del home, root  # read by `common_options` from the root context


def main(arguments: list[str] | None = None) -> None:
    """Run `scf` and exit with the code that fits."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run `scf`; returns the exit code. Errors of ours end in a sentence, never in a traceback."""
    try:
        outcome: Any = root_command(arguments, prog_name="scf", standalone_mode=False)
    except ScfError as error:
        say_error(error)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("scf: interrupted", err=True)
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone: not an error. Keep Python from flushing to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return outcome if isinstance(outcome, int) else 0


def say_error(error: ScfError) -> None:
    """The message, and under it the remedy."""
    click.echo(f"scf: {error}", err=True)
    if error.remedy:
        click.echo(f"     {error.remedy}", err=True)


if __name__ == "__main__":
    main()
