"""A job's bundle: one folder with everything that goes in and everything that comes out.

    spec.json        what to do (`scf.job/1`)
    inputs/          what travels with it, digests in the spec
    outputs/         what the job makes
    progress.ndjson  the job's own notes, a line each
    heartbeat.json   the worker is alive
    worker.log       what the job said
    exit.json        how it ended (`scf.job-exit/1`): written last, so that its presence means
                     that everything else is complete

The folder appears under its name complete, or not at all.
"""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scf.core.canonical import canonical_json, parse_json
from scf.core.errors import InputError, UsageError
from scf.core.identity import sha256_hex
from scf.dispatch.dispatcher import BundleMismatch
from scf.dispatch.job import JobExit, JobSpec
from scf.storage import durable
from scf.storage.partitions import Folder

SPEC_NAME = "spec.json"
EXIT_NAME = "exit.json"
HEARTBEAT_NAME = "heartbeat.json"
PROGRESS_NAME = "progress.ndjson"
LOG_NAME = "worker.log"
OUTPUTS_NAME = "outputs"

EXIT_MAX_BYTES = 16 * 2**20
TAIL_BYTES = 16_384


@dataclass(frozen=True)
class Bundle:
    """A bundle on this machine, to be read. Everything read from it is checked."""

    path: Path

    @property
    def exists(self) -> bool:
        return (self.path / SPEC_NAME).is_file()

    def spec(self) -> JobSpec:
        """Raises InputError when the spec is absent or ill-formed."""
        return JobSpec.from_json(durable.read_json(self.path / SPEC_NAME))

    def exit(self) -> JobExit | None:
        """How the job ended; None while there is no exit record.

        Raises:
            InputError: There is one, and it is not what it must be.
        """
        if not (self.path / EXIT_NAME).exists():
            return None
        record = durable.read_json(self.path / EXIT_NAME, size_max_bytes=EXIT_MAX_BYTES)
        return JobExit.from_json(record)

    def heartbeat(self) -> dict[str, Any]:
        """The worker's last sign of life; empty when there is none."""
        try:
            value = durable.read_json(self.path / HEARTBEAT_NAME, size_max_bytes=65_536)
        except InputError:
            return {}
        return value if isinstance(value, dict) else {}

    def last_progress(self) -> dict[str, Any]:
        """The job's latest whole note; empty when there is none. Reads the end of the file only."""
        for line in reversed(_tail(self.path / PROGRESS_NAME).split(b"\n")):
            try:
                value = parse_json(line)
            except InputError:
                continue
            if isinstance(value, dict):
                return value
        return {}

    def log_tail(self) -> str:
        """The end of what the job said."""
        return _tail(self.path / LOG_NAME).decode(errors="replace")

    def verify_outputs(self) -> JobExit:
        """Check every output against the exit record, and that nothing else lies there.

        Raises:
            BundleMismatch: Names the file.
        """
        try:
            record = self.exit()
        except InputError as error:
            raise BundleMismatch(str(error)) from error
        if record is None:
            raise BundleMismatch(f"{self.path}: no exit record")
        expected = {row["path"]: row for row in record.outputs}
        found = {row["path"]: row for row in list_outputs(self.path)}
        for name in sorted(expected.keys() | found.keys()):
            if name not in found:
                raise BundleMismatch(f"{self.path / name}: promised by the exit record, missing")
            if name not in expected:
                raise BundleMismatch(f"{self.path / name}: not in the exit record")
            if found[name] != expected[name]:
                raise BundleMismatch(
                    f"{self.path / name}: expected sha256 {expected[name]['sha256']}, "
                    f"found {found[name]['sha256']}"
                )
        return record


def make_bundle(
    jobs: Folder, spec: JobSpec, files: Mapping[str, bytes], *, resume: Path | None = None
) -> Bundle:
    """Make the bundle of `spec` under `jobs`, or find the one made before.

    Args:
        jobs: Where bundles lie; the bundle's folder is named by the job id.
        spec: The job. Each input with a digest whose path is inside the bundle must be in `files`.
        files: Content by input name.
        resume: An earlier bundle whose outputs are copied in.

    Raises:
        UsageError: The id is taken by another spec, or `files` do not fit the spec.
    """
    bundle = Bundle(jobs.path / spec.job_id)
    if bundle.exists:
        if canonical_json(bundle.spec().to_json()) != canonical_json(spec.to_json()):
            raise UsageError(f"{bundle.path}: this job id belongs to a job with another spec")
        return bundle
    staged = jobs.new_staging(spec.job_id)
    try:
        _fill(staged, spec, files, resume)
        jobs.publish_folder(staged, spec.job_id)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return bundle


def list_outputs(bundle: Path) -> list[dict[str, Any]]:
    """`{path, sha256, size_bytes}` of each file under `outputs/`, in order of path.

    Raises:
        BundleMismatch: Something there is no plain file: a link, a pipe, a device.
    """
    return [
        {"path": name, "sha256": digest, "size_bytes": size_bytes}
        for name, digest, size_bytes in _hashed(bundle)
    ]


def _hashed(bundle: Path) -> Iterator[tuple[str, str, int]]:
    for path in sorted(_files_below(bundle / OUTPUTS_NAME)):
        # O_NOFOLLOW: a name that became a link since it was listed is refused, not followed.
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise BundleMismatch(f"{path}: cannot be read: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            yield path.relative_to(bundle).as_posix(), digest, os.fstat(file.fileno()).st_size


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(parent, name)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                yield path
            elif not stat.S_ISDIR(mode):
                raise BundleMismatch(f"{path}: neither a file nor a folder")


def _fill(staged: Path, spec: JobSpec, files: Mapping[str, bytes], resume: Path | None) -> None:
    with durable.os_errors(staged):
        (staged / "inputs").mkdir()
        (staged / OUTPUTS_NAME).mkdir()
    carried = {row.name: row for row in spec.inputs if not row.path.startswith("/")}
    if carried.keys() != files.keys():
        raise UsageError(f"{spec.job_id}: inputs {sorted(carried)} but files {sorted(files)}")
    for name, row in carried.items():
        if row.sha256 != sha256_hex(files[name]):
            raise UsageError(f"{spec.job_id}: input {name} does not have the digest in the spec")
        durable.write_file(staged / row.path, files[name])
    if resume is not None and (resume / OUTPUTS_NAME).is_dir():
        with durable.os_errors(staged):
            # Links are not followed and not copied: the job reads only what a job has written.
            shutil.copytree(
                resume / OUTPUTS_NAME,
                staged / OUTPUTS_NAME,
                dirs_exist_ok=True,
                symlinks=True,
                ignore=_only_plain,
            )
    durable.write_json(staged / SPEC_NAME, spec.to_json())


def _only_plain(folder: str, names: list[str]) -> list[str]:
    modes = {name: Path(folder, name).lstat().st_mode for name in names}
    return [n for n, mode in modes.items() if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))]


def _tail(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, os.SEEK_END)
            file.seek(max(0, size_bytes - TAIL_BYTES))
            return file.read(TAIL_BYTES)
    except OSError:
        return b""
