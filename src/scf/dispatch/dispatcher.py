"""The door: a `Protocol` with four verbs. `tests/dispatch` holds every door to these promises."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from scf.core.errors import VerificationFailed
from scf.dispatch.job import Job, JobSpec, JobStatus


class BundleMismatch(VerificationFailed):
    """A bundle that came back does not hold what its exit record says."""


class Dispatcher(Protocol):
    """A way to have a job run somewhere."""

    @property
    def name(self) -> str:
        """`local`, `ssh`, `runpod`: for receipts and for people."""

    def submit(
        self, spec: JobSpec, files: Mapping[str, bytes], *, resume: Path | None = None
    ) -> Job:
        """Start `spec`, or find the job already started for `spec.job_id`; never two.

        A job that has ended or was cancelled is found, not started again: a new try has a new id.

        Args:
            spec: The job.
            files: Content of each input that travels in the bundle, by input name.
            resume: An earlier bundle of the same work; what it left under `outputs/` is put into
                the new one, so that the job goes on from there.

        Raises:
            DoorUnavailable: Nothing was started. Trying later is safe.
            SubmissionUnknown: It may have started. Call `submit` again with the same spec.
            UsageError: `spec.job_id` is taken by a job with another spec.
        """

    def poll(self, job_id: str) -> JobStatus:
        """Where the job is now. Changes nothing; a job that vanished reads as ended, `lost`.

        Raises:
            DoorUnavailable: Nothing could be learnt. The job may well be running.
        """

    def collect(self, job_id: str) -> Path:
        """The ended job's bundle on this machine, its outputs checked against its exit record.

        Calling it twice gives the same bundle.

        Raises:
            BundleMismatch: A file is missing, differs, or is not a plain file.
            DoorUnavailable: It could not be brought here. Trying later is safe.
        """

    def cancel(self, job_id: str, *, at_once: bool = False) -> None:
        """Ask the job to end; `poll` says when it has. Twice, or for an ended job, changes nothing.

        A job cancelled before it was submitted never starts. Works without the drive.

        Args:
            job_id: The job.
            at_once: Do not ask: end it with all its processes. Otherwise it may save its state.
        """
