#!/usr/bin/env python3
"""Pack this week's release: a thin command over `scf.release.weekly`, for cron, systemd or launchd.

It does what `scf release make` does, under a path that never changes. Home and drive are found as
for every scf command: --home/--root, SCF_HOME/SCF_ROOT, or what `scf init` recorded. Running it
twice in a week is safe: the second run changes nothing and exits with 3.
"""

import sys

import click

from scf.cli.evidence_release import release_make
from scf.cli.main import say_error
from scf.core.errors import ScfError

EPILOG = """\b
Examples:
  python scripts/release/weekly_promote.py --dry-run
  python scripts/release/weekly_promote.py --week 2026-11-16
  5 6 * * 1  scf-venv/bin/python .../weekly_promote.py     (a crontab line: Mondays, 06:05)
"""


def main(arguments: list[str]) -> int:
    """Make the release; returns the exit code."""
    release_make.epilog = EPILOG
    try:
        release_make.main(arguments, prog_name="weekly_promote.py", standalone_mode=False)
    except ScfError as error:
        say_error(error)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
