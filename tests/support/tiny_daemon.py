"""The real daemon with small jobs: `tiny_daemon.py HOME [--once | --until-idle]`."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scf.config import load_config
from scf.core.errors import ScfError
from scf.daemon.scf_daemon import run_daemon
from scf.dispatch.dispatcher import Dispatcher
from scf.dispatch.local import LocalDoor
from scf.storage.partitions import Folder
from support.tiny_worker import WORKER


def open_tiny_door(jobs: Folder, home: Path) -> Dispatcher:
    return LocalDoor(jobs, home, worker=WORKER)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("home", type=Path)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--until-idle", action="store_true")
    options = parser.parse_args()
    try:
        code = run_daemon(
            load_config(options.home, environment=os.environ),
            once=options.once,
            until_idle=options.until_idle,
            gear="SINGULARITY",
            open_door=open_tiny_door,
            talk=lambda line: sys.stderr.write(line + "\n"),
        )
    except ScfError as error:
        sys.stderr.write(f"scf: {error}\n")
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)
