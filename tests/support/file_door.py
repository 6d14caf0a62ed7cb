"""A door whose jobs end at once, kept in files: it outlives a process that is killed.

What it does wrong is its `fault`: a door that `lies`, `stalls`, `flaps` (says that a job has ended,
then that it runs), `loses` files, or loses its `answer`. Every start is a line of `starts.log`, so
that two are seen.
"""

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError

from scf.core.canonical import canonical_json
from scf.core.errors import SubmissionUnknown
from scf.core.identity import sha256_hex
from scf.dispatch.bundle import Bundle, list_outputs, make_bundle
from scf.dispatch.job import ExitReason, Job, JobExit, JobPhase, JobSpec, JobStatus
from scf.storage.partitions import Folder
from scf.verification.verify_checkpoint import verify_checkpoint
from support.checkpoints import write_checkpoint
from support.reports import report_json
from support.runs import PNG


class FileDoor:
    """Promises: `Dispatcher`, but for its fault, which it has for the first job of each kind."""

    name = "local"

    def __init__(self, jobs: Folder, home: Path, fault: str = "") -> None:
        self.jobs = jobs
        self.fault = fault
        self._state = home / "file_door"
        self._state.mkdir(exist_ok=True)
        self._looks: Counter[str] = Counter()

    def submit(
        self, spec: JobSpec, files: Mapping[str, bytes], *, resume: Path | None = None
    ) -> Job:
        mark = self._state / spec.job_id
        if not mark.exists() and not self._cancelled(spec.job_id):
            make_bundle(self.jobs, spec, files, resume=resume)
            with (self._state / "starts.log").open("a") as log:
                log.write(f"{spec.job_id}\n")
            mark.touch()
            if self._errs(spec.job_id, "answer"):
                raise SubmissionUnknown("the answer was lost")
        return Job(spec.job_id, {"door": self.name})

    def poll(self, job_id: str) -> JobStatus:
        bundle = self.jobs.path / job_id
        self._looks[job_id] += 1
        if not (self._state / job_id).exists():
            phase = JobPhase.ENDED if self._cancelled(job_id) else JobPhase.ABSENT
            ended = JobExit(ExitReason.CANCELLED) if self._cancelled(job_id) else None
            return JobStatus(phase, ended)
        if self._errs(job_id, "stalls") and not self._cancelled(job_id):
            return JobStatus(JobPhase.RUNNING)
        if self._errs(job_id, "stalls"):
            return JobStatus(JobPhase.ENDED, JobExit(ExitReason.TIMED_OUT, "never answered"))
        if self._errs(job_id, "flaps") and self._looks[job_id] % 2:
            return JobStatus(JobPhase.RUNNING)
        if not (bundle / "spec.json").exists():  # its drive has gone
            return JobStatus(JobPhase.RUNNING)
        try:
            record = Bundle(bundle).exit() or self._do(job_id, bundle)
        except (OSError, SafetensorError) as error:
            if os.strerror(errno.ENOSPC) in str(error):
                return JobStatus(JobPhase.ENDED, JobExit(ExitReason.WORKER_ERROR, str(error)))
            return JobStatus(JobPhase.RUNNING)  # its drive fails; it goes on when that is mended
        if self._errs(job_id, "loses"):
            shutil.rmtree(bundle / "outputs", ignore_errors=True)
        return JobStatus(JobPhase.ENDED, record)

    def collect(self, job_id: str) -> Path:
        bundle = Bundle(self.jobs.path / job_id)
        bundle.verify_outputs()
        return bundle.path

    def cancel(self, job_id: str, *, at_once: bool = False) -> None:
        (self._state / f"{job_id}.cancelled").touch()

    def starts(self) -> Counter[str]:
        """How often each job was started."""
        path = self._state / "starts.log"
        return Counter(path.read_text().split()) if path.exists() else Counter()

    def _cancelled(self, job_id: str) -> bool:
        return (self._state / f"{job_id}.cancelled").exists()

    def _errs(self, job_id: str, fault: str) -> bool:
        return self.fault == fault and job_id.endswith("-1")

    def _do(self, job_id: str, bundle: Path) -> JobExit:
        spec = Bundle(bundle).spec()
        plan = json.loads((bundle / "inputs" / "plan.json").read_text())
        shutil.rmtree(bundle / "outputs", ignore_errors=True)
        (bundle / "outputs").mkdir()
        if spec.kind == "train_ebdm":
            write_checkpoint(bundle / "outputs" / "checkpoint", seed=plan["fossils"])
        else:
            _measure(spec, bundle, plan)
        ended = JobExit(ExitReason.COMPLETED, returncode=0, outputs=tuple(list_outputs(bundle)))
        if self._errs(job_id, "lies"):
            for path in (bundle / "outputs").rglob("*.json"):
                path.write_text('{"schema": "scf.report/1"}')
        # Its own write, not one of the conductor's: no failpoint in it.
        beside = bundle / ".exit.tmp"
        beside.write_text(json.dumps(ended.to_json()))
        beside.replace(bundle / "exit.json")
        return ended


def _measure(spec: JobSpec, bundle: Path, plan: dict[str, object]) -> None:
    checkpoint, champion = spec.input("checkpoint"), spec.input("champion")
    assert checkpoint is not None
    folder = bundle / "outputs" / "report"
    folder.mkdir(exist_ok=True)
    value = report_json(
        checkpoint_digest=verify_checkpoint(Path(checkpoint.path)).digest,
        plan_id=sha256_hex(canonical_json(plan)),
        gain=0.2,
        champion_gain=0.4 if champion else None,
        seed=int(str(plan["fossils"])),
    )
    (folder / "report.json").write_text(json.dumps(value))
    for name in value["files"]:
        (folder / name).write_bytes(PNG)
