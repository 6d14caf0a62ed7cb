#!/usr/bin/env python3
"""On the overseer (a self-hosted runner): make the week's release and put it into an archive.

    python scripts/release/overseer.py OUT

Week and dry run come from the environment (SCF_WEEK, SCF_DRY_RUN), so that no text of a workflow
ever becomes part of a command. OUT gets `week-YYYY-MM-DD.tar.gz`, in parts where that is long; the
name goes to GITHUB_OUTPUT as `release`. A week that is released already is packed again, byte for
byte the same; where nothing was ever promoted, `release` stays empty and there is nothing to
publish.

Exit code 0, or that of `scf release make` (DESIGN section 6).
"""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scf.dispatch.outlets.archive import pack

PROMOTE = Path(__file__).with_name("weekly_promote.py")
NOTHING_TO_DO = 3


def main(arguments: list[str]) -> int:
    """Make, pack, tell; returns the exit code."""
    if len(arguments) != 1:
        sys.stderr.write("usage: overseer.py OUT\n")
        return 2
    week, dry_run = os.environ.get("SCF_WEEK", ""), os.environ.get("SCF_DRY_RUN", "") == "true"
    made = _run(
        [str(PROMOTE), "--json", *(["--week", week] if week else [])]
        + (["--dry-run"] if dry_run else [])
    )
    if made.returncode not in {0, NOTHING_TO_DO}:
        return made.returncode
    if made.returncode == NOTHING_TO_DO:
        today = datetime.now(UTC).date()
        monday = week or str(today - timedelta(today.weekday()))
        shown = _run(["-m", "scf", "release", "show", monday, "--json"])
        folder = json.loads(shown.stdout)["path"] if shown.returncode == 0 else None
    else:
        folder = json.loads(made.stdout)["path"]
    if folder is None:
        sys.stderr.write("overseer: nothing to publish\n")
        _tell("")
        return 0
    out = Path(arguments[0])
    out.mkdir(parents=True, exist_ok=True)
    release = Path(folder)
    pack(release, out)
    _tell(release.name)
    return 0


def _run(arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run Python with these arguments; what it says to people goes on to people."""
    done = subprocess.run(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    sys.stderr.write(done.stdout)
    return done


def _tell(release: str) -> None:
    """Name the release to the workflow."""
    path: Any = os.environ.get("GITHUB_OUTPUT")
    if path:
        with Path(path).open("a") as file:
            file.write(f"release={release}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
