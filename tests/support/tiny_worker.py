"""The real worker with small job kinds.

`tiny` does what its config says (`tiny_program.py`); `train_ebdm` and `measure` are the miniatures of
`tiny_jobs.py`, which make real checkpoints and reports without torch.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from scf.daemon import gpu_worker
from scf.dispatch.job import JobSpec

HERE = Path(__file__).parent
WORKER = (sys.executable, __file__)


def tiny(spec: JobSpec) -> list[str]:
    return [sys.executable, str(HERE / "tiny_program.py"), json.dumps(dict(spec.config))]


def train(spec: JobSpec) -> list[str]:
    return [sys.executable, str(HERE / "tiny_jobs.py"), "train"]


def measure(spec: JobSpec) -> list[str]:
    given = {name: spec.input(name) for name in ("checkpoint", "champion", "scratch")}
    options = [part for name, row in given.items() if row for part in (f"--{name}", row.path)]
    return [sys.executable, str(HERE / "tiny_jobs.py"), "measure", *options]


def novelty(spec: JobSpec) -> list[str]:
    """Says what the environment says; the real program is tested with real models."""
    said = os.environ.get("SCF_TINY_NOVELTY", '{"asked": 10, "strange": 0}')
    program = "import sys; open('outputs/novelty.json', 'w').write(sys.argv[1])"
    return [sys.executable, "-c", program, said]


class PatientPopen(subprocess.Popen[bytes]):
    """A program begins with SIGTERM held back, until it is ready to listen: however slow its start."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            super().__init__(*arguments, **options)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


if __name__ == "__main__":
    subprocess.Popen = PatientPopen  # type: ignore[misc]
    sys.exit(
        gpu_worker.main(
            kinds={
                "tiny": tiny,
                "train_ebdm": train,
                "control": train,
                "measure": measure,
                "novelty": novelty,
            }
        )
    )
