"""The real worker with one more job kind, `tiny`: `tiny_program.py` with the spec's config."""

import json
import sys
from pathlib import Path

from scf.daemon import gpu_worker
from scf.dispatch.job import JobSpec

PROGRAM = Path(__file__).with_name("tiny_program.py")
WORKER = (sys.executable, __file__)


def tiny(spec: JobSpec) -> list[str]:
    return [sys.executable, str(PROGRAM), json.dumps(dict(spec.config))]


if __name__ == "__main__":
    sys.exit(gpu_worker.main(kinds={**gpu_worker.KINDS, "tiny": tiny}))
