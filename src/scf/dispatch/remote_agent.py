"""The other half of a door to another machine: this one file runs there, and nothing stays behind.

Its text is sent over ssh to `python -I -S -`, followed by one call of `main` with the request as
JSON; so nothing has to be installed there first, and nothing of the request appears in a command
line. It uses the standard library alone, and imports late what is slow to import: looks at jobs are
asked for all the time. The answer is one line on standard output that begins with `MARK`; whatever
a login shell prints around it is not read.

What lies under the root on that machine:

    shards/<sha256>      everything that travels, named by its content, read-only
    incoming/<sender>/   what is arriving; moved to shards/ once its digest fits its name
    code/<sha256>/       an unpacked wheel
    jobs/<job id>/       bundles
    cancelled/<job id>   this job may not start
    ended/<job id>       exit record of a job whose bundle has been taken away again

Every request can be made twice. `start` starts a job at most once: the lock on `worker.lock` is
inherited by all its processes, and its text, written when it was started, stays.
"""

import binascii
import contextlib
import fcntl
import hashlib
import json
import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MARK = "scf-remote/1 "
TAIL_BYTES = 65_536
EXIT_MAX_BYTES = 16 * 2**20
SMALL_FILES = ("progress.ndjson", "heartbeat.json", "worker.log")

_SHA256 = re.compile(r"[0-9a-f]{64}")
_JOB_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,79}")

Json = dict[str, Any]


class Refused(Exception):
    """The request cannot be met; the text says why."""


class Place:
    """The folders of one root."""

    def __init__(self, request: Json) -> None:
        self.root = Path(request["root"]).expanduser().absolute()
        self.shards = self.root / "shards"
        self.incoming = self.root / "incoming" / _matching(_JOB_ID, request["sender"])
        self.jobs = self.root / "jobs"
        self.code = self.root / "code"
        self.cancelled = self.root / "cancelled"
        self.ended = self.root / "ended"

    def make(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        for folder in (self.shards, self.incoming, self.jobs, self.code, self.cancelled):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.ended.mkdir(exist_ok=True, mode=0o700)

    def job(self, request: Json) -> Path:
        return self.jobs / _matching(_JOB_ID, request["job_id"])


def prepare(place: Place, request: Json) -> Json:
    """Make the folders; say what this machine is and which contents it has not got."""
    import shutil

    place.make()
    sizes = {entry.name: entry.stat().st_size for entry in os.scandir(place.shards)}
    wanted = {_matching(_SHA256, sha256): size_bytes for sha256, size_bytes in request["wanted"]}
    return {
        "root": str(place.root),
        "host": os.uname().nodename,
        "python": ".".join(map(str, sys.version_info[:3])),
        "scf": _installed_version() if request.get("asks_version") else None,
        "rsync": shutil.which("rsync") is not None,
        "free_bytes": shutil.disk_usage(place.root).free,
        "missing": [sha256 for sha256, size in wanted.items() if sizes.get(sha256) != size],
    }


def receive(place: Place, request: Json) -> Json:
    """Take in what has arrived whole; throw away what is not what its name says."""
    refused = []
    for sha256 in request["contents"]:
        path = place.incoming / _matching(_SHA256, sha256)
        if not path.exists():
            continue
        if not stat.S_ISREG(path.lstat().st_mode) or _sha256_of(path) != sha256:
            path.unlink()
            refused.append(sha256)
            continue
        path.chmod(0o444)
        _flush(path)
        path.replace(place.shards / sha256)
    _flush(place.shards)
    return {"refused": refused}


def start(place: Place, request: Json) -> Json:
    """Start the job, or find it. `phase` says which: started, running, ended, lost, cancelled."""
    job = place.job(request)
    if (place.ended / job.name).exists():
        return {"phase": "ended"}
    if not job.exists():
        if (place.cancelled / job.name).exists():
            return {"phase": "cancelled"}
        _make_bundle(place, job, request)
    descriptor = _acquire(job / "worker.lock")
    if descriptor is None:
        return {"phase": "running", **_holder(job)}
    try:
        if (job / "exit.json").exists():
            return {"phase": "ended"}
        if _was_started(job):
            return {"phase": "lost"}
        if (place.cancelled / job.name).exists():
            return {"phase": "cancelled"}
        return {"phase": "started", **_spawn(place, job, descriptor, request)}
    finally:
        os.close(descriptor)


def lay(place: Place, request: Json) -> Json:
    """Make the job's bundle, and start nothing: on a node that trains with the job's own."""
    job = place.job(request)
    if not job.exists():
        _make_bundle(place, job, request)
    return {"bundle": str(job)}


def look(place: Place, request: Json) -> Json:
    """Where the job is, and what lies in its bundle. Changes nothing."""
    job = place.job(request)
    gone = place.ended / job.name
    if gone.exists():
        return {"phase": "ended", "exit": _encoded(gone), "outputs": [], "small": []}
    if not job.exists():
        return {"phase": "cancelled" if (place.cancelled / job.name).exists() else "absent"}
    # Alive first, then the exit record: in the other order a job could end between the looks.
    alive = _is_held(job / "worker.lock")
    outputs, odd = _listing(job, request["files_max"])
    answer: Json = {
        "outputs": outputs,
        "odd": odd,
        "small": [_row(job, job / name) for name in SMALL_FILES if (job / name).is_file()],
        "tails": {name: _tail(job / name) for name in SMALL_FILES},
        **_holder(job),
    }
    if (job / "exit.json").exists():
        return {"phase": "ended", "exit": _encoded(job / "exit.json"), **answer}
    if alive:
        return {"phase": "running", **answer}
    if not _was_started(job):
        is_cancelled = (place.cancelled / job.name).exists()
        return {"phase": "cancelled" if is_cancelled else "absent", **answer}
    return {"phase": "lost", **answer}


def cancel(place: Place, request: Json) -> Json:
    """Never start the job; if it runs, tell it to end, or end it with all its processes."""
    place.make()
    job = place.job(request)
    (place.cancelled / job.name).touch()
    if not _is_held(job / "worker.lock"):
        return {"signalled": False}
    pid = _holder(job).get("pid")
    if not isinstance(pid, int) or pid <= 1:
        raise Refused(f"job {job.name} is alive and has not said which process it is")
    # The lock is held, so a process of this job lives, in the group that `pid` leads; a process id
    # is not given out again while a group of that number exists.
    with contextlib.suppress(ProcessLookupError):
        if not request["at_once"]:
            try:
                os.kill(pid, signal.SIGTERM)
                return {"signalled": True}
            except ProcessLookupError:
                pass
        os.killpg(pid, signal.SIGKILL)
    return {"signalled": True}


def forget(place: Place, request: Json) -> Json:
    """Take the bundle of an ended job away; that it has ended stays known."""
    import shutil

    job = place.job(request)
    if not job.exists() or _is_held(job / "worker.lock"):
        return {"forgotten": not job.exists()}
    record = job / "exit.json"
    text = record.read_bytes() if record.is_file() else b"{}"
    _write(place.ended / job.name, text)
    shutil.rmtree(job)
    return {"forgotten": True}


def trim(place: Place, request: Json) -> Json:
    """Remove the contents used longest ago until the cache fits its budget; spare `keep`."""
    keep = set(request["keep"])
    rows = [(entry.stat(), Path(entry.path)) for entry in os.scandir(place.shards)]
    total = sum(info.st_size for info, _ in rows)
    removed = 0
    for info, path in sorted(rows, key=lambda row: row[0].st_mtime):
        if total <= request["cache_max_bytes"]:
            break
        if path.name not in keep:
            path.unlink(missing_ok=True)
            total -= info.st_size
            removed += 1
    return {"removed": removed, "size_bytes": total}


REQUESTS: dict[str, Callable[[Place, Json], Json]] = {
    "prepare": prepare,
    "receive": receive,
    "start": start,
    "lay": lay,
    "look": look,
    "cancel": cancel,
    "forget": forget,
    "trim": trim,
}


def main(text: str) -> None:
    """Answer one request."""
    os.umask(0o077)
    try:
        request = json.loads(text)
        answer = REQUESTS[request["verb"]](Place(request), request)
    except Refused as error:
        answer = {"error": str(error)}
    except (OSError, KeyError, TypeError, ValueError) as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(f"\n{MARK}{json.dumps(answer)}\n")


def _make_bundle(place: Place, job: Path, request: Json) -> None:
    import shutil

    staged = job.with_name(f".{job.name}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    for name in ("inputs", "outputs"):
        (staged / name).mkdir(parents=True)
    for name, sha256, how in request["tree"]:
        path = staged / _inside(name)
        source = place.shards / _matching(_SHA256, sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        os.utime(source)  # `trim` spares what was used last.
        if how == "link":
            _link(source, path)
        else:
            # What the job may write to is never the cache's own file.
            shutil.copyfile(source, path)
    _write(staged / "spec.json", json.dumps(request["spec"], indent=2, sort_keys=True).encode())
    staged.rename(job)
    _flush(place.jobs)


def _spawn(place: Place, job: Path, descriptor: int, request: Json) -> Json:
    import subprocess

    environment = {**os.environ, **request["environment"]}
    if request["code"] is not None:
        environment["PYTHONPATH"] = str(_unpacked(place, request["code"]))
    held = job / "worker.lock"
    command = [
        *[sys.executable if part == "{python}" else part for part in request["worker"]],
        *(str(job), "--held-fd", str(descriptor), "--held-file", str(held)),
    ]
    # From here on it counts as started: a crash now makes it lost, never started twice.
    _say(descriptor, {"pid": None})
    try:
        with (job / "worker.log").open("ab") as log:
            child = subprocess.Popen(
                command,
                cwd=job,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=(descriptor,),
            )
    except OSError as error:
        os.ftruncate(descriptor, 0)
        raise Refused(f"the worker could not be started: {error}") from error
    child.returncode = 0  # it outlives us; its lock and its exit record say how it is
    about = {"pid": child.pid, "host": os.uname().nodename}
    _say(descriptor, about)
    return about


def _say(descriptor: int, about: Json) -> None:
    # The worker writes its own, longer text here as it starts, in whatever order with ours. Blanks
    # after a short text keep the file JSON in each of them.
    os.pwrite(descriptor, json.dumps(about).encode().ljust(512), 0)


def _unpacked(place: Place, sha256: str) -> Path:
    """The folder of a wheel's content, unpacked once; its digest is looked at again before."""
    import shutil
    import zipfile

    folder = place.code / _matching(_SHA256, sha256)
    if folder.exists():
        return folder
    wheel = place.shards / sha256
    if _sha256_of(wheel) != sha256:
        wheel.unlink()
        raise Refused(f"the wheel {sha256} is damaged here; it is sent again")
    staged = folder.with_name(f".{sha256}.{os.getpid()}")
    shutil.rmtree(staged, ignore_errors=True)
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                _inside(name)
            archive.extractall(staged)
    except zipfile.BadZipFile as error:
        raise Refused(f"the wheel {sha256} is none: {error}") from error
    with contextlib.suppress(OSError):  # somebody else was first
        staged.rename(folder)
    shutil.rmtree(staged, ignore_errors=True)
    return folder


def _installed_version() -> str | None:
    import subprocess

    # Asked of a Python of its own: this one was started without the place where packages are.
    code = "from importlib.metadata import version; print(version('scf'))"
    command = [sys.executable, "-I", "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return result.stdout.strip() or None


def _listing(job: Path, files_max: int) -> tuple[list[list[Any]], list[str]]:
    rows: list[list[Any]] = []
    odd: list[str] = []
    for path in _below(job / "outputs"):
        if len(rows) + len(odd) > files_max:
            break
        try:
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                rows.append(_row(job, path))
            elif not stat.S_ISDIR(mode):
                odd.append(path.relative_to(job).as_posix())
        except FileNotFoundError:
            continue
    return sorted(rows), odd


def _below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        yield from (Path(parent, name) for name in (*folders, *names))


def _row(job: Path, path: Path) -> list[Any]:
    info = path.lstat()
    return [path.relative_to(job).as_posix(), info.st_size, info.st_mtime_ns]


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            return binascii.b2a_base64(file.read(TAIL_BYTES), newline=False).decode()
    except OSError:
        return ""


def _encoded(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(EXIT_MAX_BYTES + 1)
    return binascii.b2a_base64(data, newline=False).decode()


def _acquire(path: Path) -> int | None:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def _is_held(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _was_started(job: Path) -> bool:
    path = job / "worker.lock"
    return path.exists() and path.stat().st_size > 0


def _holder(job: Path) -> Json:
    """What the lock's file says of who was started; empty when nobody was."""
    try:
        value = json.loads((job / "worker.lock").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(value, dict):
        return {}
    return {key: value[key] for key in ("pid", "host") if key in value}


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError:  # a file system without hard links
        path.symlink_to(source)


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    _flush(temporary)
    temporary.replace(path)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _matching(pattern: re.Pattern[str], text: Any) -> str:
    if not isinstance(text, str) or not pattern.fullmatch(text):
        raise Refused(f"{text!r} is not a name that can stand here")
    return text


def _inside(name: str) -> str:
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\0" in name or "\\" in name:
        raise Refused(f"{name!r} does not stay inside the bundle")
    return name
