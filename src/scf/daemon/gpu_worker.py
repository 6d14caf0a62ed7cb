"""Run one job bundle: the program that a door starts, on this machine or on a rented one.

    python -m scf.daemon.gpu_worker BUNDLE

The bundle says what to do (`spec.json`); the worker checks the digests of its inputs, starts the
program of that kind in the bundle's folder, writes a heartbeat every 10 s (step, loss, what the
machine's meters say; what has no meter is named), and when the program has ended
writes `exit.json`: the reason, and the digest of every file under `outputs/`. That file comes last,
so whoever finds it finds everything.

SIGTERM is passed on, so that training writes a checkpoint; a program that does not listen within
`STOP_GRACE_S` is killed. The same happens when the bundle's deadline passes. The worker holds no
key, no audit log and no zoo; it does not import the programs that it starts.
"""

import argparse
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from scf.control.emergency_lock import EmergencyLock
from scf.core.clock import Clock, SystemClock, utc_text
from scf.core.errors import (
    EmergencyLocked,
    InputError,
    NothingToDo,
    OperatorError,
    ScfError,
    UsageError,
)
from scf.core.identity import sha256_hex
from scf.daemon.metering import Meters, num_gpus
from scf.dispatch.bundle import EXIT_NAME, HEARTBEAT_NAME, LOG_NAME, Bundle, list_outputs
from scf.dispatch.job import ExitReason, JobExit, JobSpec
from scf.dispatch.local import placement_of
from scf.dispatch.nodes import Node
from scf.dispatch.process import HeldFile, ProcessMark, kill_group
from scf.dispatch.ray_nodes import WHILE_PID, RayGroup
from scf.storage.partitions import Folder

# How often the worker looks: at its program, at the emergency lock, at its deadline.
LOOK_S = 0.1
HEARTBEAT_S = 10.0
STOP_GRACE_S = 30.0

JobKinds = Mapping[str, Callable[[JobSpec], list[str]]]


def train_ebdm(spec: JobSpec) -> list[str]:
    """Training; goes on from what an earlier try left under `outputs/checkpoint`."""
    command = [
        *_together("scf.training.train_ebdm"),
        *("--plan", _input(spec, "plan.json")),
        *("--vault", _vault(spec), "--config", _input(spec, "train_config.json")),
        *("--out", "outputs/checkpoint", "--progress", "progress.ndjson", "--resume"),
    ]
    parent = spec.input("parent")
    return [*command, "--parent", parent.path] if parent else command


def measure(spec: JobSpec) -> list[str]:
    """Held-out metrics of a checkpoint, beside those of champions, where there are any."""
    command = [
        *_program("scf.verification.measure", "--checkpoint", _input(spec, "checkpoint")),
        *("--plan", _input(spec, "plan.json"), "--vault", _vault(spec), "--out", "outputs/report"),
    ]
    if "cache_share" in spec.config:
        command += ["--cache-share", str(spec.config["cache_share"])]
    for option in ("champion", "scratch", "anchor"):
        given = spec.input("anchor.json" if option == "anchor" else option)
        command += [f"--{option}", given.path] if given else []
    for given in spec.inputs:
        kind, _, rest = given.name.partition("-")
        if kind == "earlier":
            weeks, _, name = rest.partition("-")
            command += ["--earlier", weeks, name, given.path]
    return command


def novelty(spec: JobSpec) -> list[str]:
    """How many fossils of some shards are strange to a model."""
    return [
        *_program("scf.verification.novelty", "--checkpoint", _input(spec, "checkpoint")),
        *("--vault", _vault(spec), "--asked", _input(spec, "asked.json")),
        *("--out", "outputs/novelty.json"),
    ]


def smoke(spec: JobSpec) -> list[str]:
    """What this machine is, and how fast (`scf pods smoke`)."""
    seconds = str(float(spec.config.get("seconds", 60.0)))
    return [*_program("scf.training.smoke", "--out", "outputs/smoke.json"), "--seconds", seconds]


# A control is training like any other, without a parent among its inputs.
KINDS: JobKinds = {
    "train_ebdm": train_ebdm,
    "control": train_ebdm,
    "measure": measure,
    "novelty": novelty,
    "smoke": smoke,
}


@dataclass
class _Stop:
    """Why the worker ends its program before it ends by itself."""

    reason: ExitReason | None = None
    detail: str = ""
    kill_at: float = 0.0


class Worker:
    """One job, from its spec to its exit record."""

    def __init__(
        self, path: Path, *, kinds: JobKinds, lock: EmergencyLock | None, clock: Clock
    ) -> None:
        self._folder = Folder.at(path)
        self._bundle = Bundle(self._folder.path)
        self._kinds = kinds
        self._lock = lock
        self._clock = clock
        self._started_at = utc_text(clock.now())
        self._deadline = 0.0
        self._next_beat = 0.0
        self._meters = Meters()
        self._used_j: float | None = None
        self._machines = 1
        self._is_told_to_stop = False
        # The gate of a Ray job: when Ray ends it, what belongs to it ends, too.
        gate = os.environ.get(WHILE_PID, "")
        self._only_while = ProcessMark.of(int(gate)) if gate.isdecimal() else None

    def run(self, held: int) -> JobExit:
        """Do the job and write its exit record.

        Args:
            held: Descriptor of the job's lock; the program inherits it.

        Raises:
            NothingToDo: The job has ended before.
            DriveError: The drive went away; the program is ended, no record could be written.
        """
        if self._bundle.exit() is not None:
            raise NothingToDo(f"{self._bundle.path}: this job has ended; see {EXIT_NAME}")
        fault = self._lock.fault() if self._lock is not None else None
        if fault is not None:
            return self._write_exit(ExitReason.CANCELLED, f"emergency lock: {fault}", None)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        try:
            spec = self._bundle.spec()
            check_inputs(self._bundle.path, spec)
            if spec.kind not in self._kinds:
                raise InputError(f"kind {spec.kind!r} is not one of {', '.join(self._kinds)}")
            command = self._kinds[spec.kind](spec)
        except InputError as error:
            return self._write_exit(ExitReason.BAD_DATA, str(error), None)
        ooms_before = _oom_kills()
        try:
            child = self._start(command, held)
        except OSError as error:
            detail = f"{command[0]}: cannot be started: {error.strerror}"
            return self._write_exit(ExitReason.WORKER_ERROR, detail, None)
        try:
            stop = self._watch(child, spec)
        except BaseException:
            child.kill()
            child.wait()
            raise
        if stop.reason is not None:
            return self._write_exit(stop.reason, stop.detail, child.returncode)
        reason, detail = reason_of(
            child.returncode,
            self._bundle.last_progress(),
            self._bundle.log_tail(),
            was_oom_killed=_oom_kills() > ooms_before,
        )
        return self._write_exit(reason, detail, child.returncode)

    def _start(self, command: list[str], held: int) -> "subprocess.Popen[bytes]":
        self._folder.check()
        node = Node.of(os.environ, num_gpus=0)
        self._machines = node.count if node is not None else 1
        with (self._bundle.path / LOG_NAME).open("ab") as log:
            return subprocess.Popen(
                command,
                env={**os.environ, **(node.environment() if node is not None else {})},
                cwd=self._bundle.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(held,),
            )

    def _watch(self, child: "subprocess.Popen[bytes]", spec: JobSpec) -> _Stop:
        stop = _Stop()
        self._deadline = self._clock.monotonic() + spec.deadline_s
        while True:
            self._beat(child, spec)
            try:
                child.wait(timeout=LOOK_S)
            except subprocess.TimeoutExpired:
                self._consider_stopping(child, stop, spec)
            else:
                return stop

    def _consider_stopping(
        self, child: "subprocess.Popen[bytes]", stop: _Stop, spec: JobSpec
    ) -> None:
        now = self._clock.monotonic()
        if self._only_while is not None and not self._only_while.is_alive:
            self._is_told_to_stop = True
        fault = self._lock.fault() if self._lock is not None else None
        if fault is not None:
            stop.reason, stop.detail = ExitReason.CANCELLED, f"emergency lock: {fault}"
            child.kill()
        elif stop.reason is not None:
            if now >= stop.kill_at:
                child.kill()
        elif (why := self._why_stop(spec, now)) is not None:
            stop.reason, stop.detail = why
            stop.kill_at = now + STOP_GRACE_S
            child.terminate()

    def _why_stop(self, spec: JobSpec, now: float) -> tuple[ExitReason, str] | None:
        if self._is_told_to_stop:
            return ExitReason.PREEMPTED, "told to stop (SIGTERM)"
        if now >= self._deadline:
            return ExitReason.TIMED_OUT, f"deadline of {spec.deadline_s:g} s passed"
        if self._used_j is None or spec.joules_max is None:
            return None
        limit_j = spec.joules_max / self._machines  # each of several has its share
        if self._used_j > limit_j:
            return ExitReason.OVER_BUDGET, f"{self._used_j:.4g} J were used of {limit_j:.4g} J"
        return None

    def _beat(self, child: "subprocess.Popen[bytes]", spec: JobSpec) -> None:
        now = self._clock.monotonic()
        if now < self._next_beat:
            return
        self._next_beat = now + HEARTBEAT_S
        progress = self._bundle.last_progress()
        metered = self._meters.read()
        self._used_j = metered.energy_j
        beat = {
            "schema": "scf.heartbeat/1",
            "job_id": spec.job_id,
            "at": utc_text(self._clock.now()),
            "worker_pid": os.getpid(),
            "program_pid": child.pid,
            "step": progress.get("step"),
            "loss": progress.get("loss"),
            **metered.to_json(),
            "progress": progress,
        }
        self._folder.write_json(HEARTBEAT_NAME, beat)

    def _write_exit(self, reason: ExitReason, detail: str, returncode: int | None) -> JobExit:
        try:
            outputs = list_outputs(self._bundle.path)
        except ScfError as error:
            # A link or a pipe among the outputs: whatever else it says, this job is not to be
            # collected, and no digest list can be given.
            outputs, reason, detail = [], ExitReason.WORKER_ERROR, str(error)
        metered = self._meters.read()
        energies = {
            name: value
            for name, value in metered.to_json().items()
            if name.endswith("_j") and value is not None
        }
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        rss_unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB here
        record = JobExit(
            reason=reason,
            detail=detail,
            returncode=returncode,
            started_at=self._started_at,
            ended_at=utc_text(self._clock.now()),
            outputs=tuple(outputs),
            usage={
                "cpu_s": round(usage.ru_utime + usage.ru_stime, 3),
                "rss_max_bytes": float(usage.ru_maxrss * rss_unit),
                **energies,
            },
            not_metered=metered.not_metered,
        )
        self._folder.write_json(EXIT_NAME, record.to_json())
        return record

    def _on_sigterm(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._is_told_to_stop = True


def check_inputs(bundle: Path, spec: JobSpec) -> None:
    """Make sure that every input is there and is what the spec says.

    Raises:
        InputError: Names the input.
    """
    for given in spec.inputs:
        path = bundle / given.path
        if given.sha256 is None:
            if not path.is_dir():
                raise InputError(f"input {given.name}: {path} is not a folder")
            continue
        try:
            digest = sha256_hex(path.read_bytes())
        except OSError as error:
            raise InputError(f"input {given.name}: {path}: {error.strerror}") from error
        if digest != given.sha256:
            raise InputError(f"input {given.name}: expected {given.sha256}, found {digest}")


def reason_of(
    returncode: int, last_note: Mapping[str, Any], log_tail: str, *, was_oom_killed: bool
) -> tuple[ExitReason, str]:
    """Why a program that nobody stopped has ended, and a line for people.

    A program says what happened in the last note of its progress file (`error`: the name of the
    error); the log's last line is the detail.
    """
    lines = [line.strip() for line in log_tail.splitlines() if line.strip()]
    last_line = lines[-1][:500] if lines else ""
    if returncode == 0:
        return ExitReason.COMPLETED, ""
    error = str(last_note.get("error", ""))
    if error and last_note.get("message"):
        last_line = str(last_note["message"])[:500]  # the log may end with torchrun's own table
    is_said = "MemoryError" in last_line or "out of memory" in last_line.lower()
    if was_oom_killed or is_said or error == "OutOfMemory":
        return ExitReason.OUT_OF_MEMORY, last_line or "killed by the system for want of memory"
    if error == "PeerLost":
        # Of several machines one is lost: this one did nothing wrong, and the checkpoint stands.
        return ExitReason.LOST, last_line
    if error == "Diverged":
        return ExitReason.DIVERGED, last_line
    if error == "InputError" or last_note.get("kind") == "bad_data":
        return ExitReason.BAD_DATA, last_line
    if returncode < 0:
        return ExitReason.WORKER_ERROR, f"ended by signal {-returncode}; {last_line}"
    return ExitReason.WORKER_ERROR, f"exit code {returncode}; {last_line}"


def main(arguments: Sequence[str] | None = None, *, kinds: JobKinds = KINDS) -> int:
    """Run the worker; returns the exit code."""
    options = _parser().parse_args(arguments)
    path: Path = options.bundle
    if not (path / "spec.json").is_file():
        sys.stderr.write(f"gpu_worker: {path}: no job bundle here (spec.json is missing)\n")
        return UsageError.exit_code
    lock = EmergencyLock(options.home) if options.home else None
    held_file = HeldFile(options.held_file or path / "worker.lock")
    held = options.held_fd if options.held_fd is not None else held_file.acquire()
    if held is None:
        sys.stderr.write(f"gpu_worker: {path}: another worker is at this bundle\n")
        return OperatorError.exit_code
    HeldFile.write(held, placement_of(os.getpid(), path.resolve()))
    try:
        record = Worker(path, kinds=kinds, lock=lock, clock=SystemClock()).run(held)
    except ScfError as error:
        sys.stderr.write(f"gpu_worker: {error}\n")
        return error.exit_code
    finally:
        if options.held_fd is not None and os.getpgrp() == os.getpid():
            # A door gave this job a process group of its own. Whatever is left in it (a program
            # that does not listen, what it started) ends here, and so does this worker: nothing of
            # a job outlives its exit record, and the door reads that, not an exit code.
            kill_group(os.getpid(), signal.SIGKILL)
        os.close(held)
    sys.stderr.write(f"gpu_worker: {record.reason} {record.detail}\n")
    if record.reason is ExitReason.COMPLETED:
        return 0
    is_locked = lock is not None and lock.is_set
    return EmergencyLocked.exit_code if is_locked else ScfError.exit_code


def _oom_kills() -> int:
    """How often the kernel has killed in our memory group (Linux cgroup v2); 0 where unknown."""
    try:
        text = Path("/sys/fs/cgroup/memory.events").read_text()
    except OSError:
        return 0
    counts = dict(line.split() for line in text.splitlines())
    return int(counts.get("oom_kill", 0))


def _program(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def _together(module: str) -> list[str]:
    """The program; or torchrun or Ray Train with it, where the door told of more than a process."""
    if (group := RayGroup.of(os.environ)) is not None:
        return group.command(module)
    node = Node.of(os.environ, num_gpus=num_gpus())
    return _program(module) if node is None else node.command(module)


def _input(spec: JobSpec, name: str) -> str:
    given = spec.input(name)
    if given is None:
        raise InputError(f"a {spec.kind} job needs the input {name!r}")
    return given.path


def _vault(spec: JobSpec) -> str:
    if spec.vault is None:
        raise InputError(f"a {spec.kind} job needs `vault`")
    return spec.vault


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scf.daemon.gpu_worker",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit codes: 0 the job completed; 1 it did not, exit.json says why; 2 no bundle; "
        "3 it had ended before;\n4 emergency lock; 7 the drive is missing.",
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="folder with spec.json")
    parser.add_argument(
        "--home",
        type=Path,
        default=None,
        help="end the job when this home's EMERGENCY_LOCK appears (a door on this machine sets it)",
    )
    parser.add_argument(
        "--held-fd",
        type=int,
        default=None,
        metavar="N",
        help="for doors: inherited descriptor of the job's lock",
    )
    parser.add_argument(
        "--held-file",
        type=Path,
        default=None,
        metavar="FILE",
        help="for doors: the file that --held-fd locks (default: BUNDLE/worker.lock)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
