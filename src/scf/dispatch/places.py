"""Where backups go: a folder, a folder on a machine reached by ssh, a bucket, a restic repository.

    /mnt/share/scf                     a folder
    ssh://user@host:22/srv/scf         rsync over the system's ssh; the user's own ssh settings
    s3://bucket/prefix                 needs boto3 (extra `[s3]`); credentials as boto3 finds them
    restic:REPOSITORY                  needs restic; REPOSITORY as restic writes it

Where restic is installed, the first three hold a restic repository too, unless they hold files of
ours already (`choose_place`).

A place holds files by name and is told nothing else: what they mean, and whether they are what they
were, is the matter of `daemon.backup`. A file is at its name whole or not at all.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol
from urllib.parse import urlsplit

from scf.core.errors import DoorError, DoorUnavailable, MissingTool, UsageError
from scf.dispatch.limited import run_limited
from scf.storage import durable

# A transfer that takes longer than this is ended; the next backup goes on with what is missing.
TRANSFER_MAX_S = 24 * 3600.0
ASK_MAX_S = 600.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*")


class PlaceFault(DoorError):
    """A place answered, and not as it must."""


class Place(Protocol):
    """Files by name, on another disk or another machine."""

    @property
    def folder_here(self) -> Path | None:
        """The folder itself, where its files are on this machine and need not be fetched."""

    @property
    def lies_in(self) -> Path | None:
        """The folder of this machine that it lies in, in whatever form."""

    def names(self) -> set[str]:
        """Every file there.

        Raises:
            DoorUnavailable: It cannot be reached.
        """

    def put(self, source: Path, names: Sequence[str]) -> None:
        """Copy (or move) `source/NAME`, which is on the medium, to each name.

        Putting the same file twice is success.

        Raises:
            DoorError: Some of them may not be there.
        """

    def get(self, names: Sequence[str], into: Path) -> None:
        """Copy each name to `into/NAME`.

        Raises:
            DoorError: Some of them could not be had.
        """


def open_place(where: str, *, secret: str = "", ssh_config: Path | None = None) -> Place:
    """The place that `where` names; nothing is asked of it yet.

    Args:
        where: See the module.
        secret: Opens a restic repository.
        ssh_config: In place of the user's own ssh settings.

    Raises:
        UsageError: It names no place.
        MissingTool: A program or a library that it needs is not installed.
    """
    scheme = where.partition(":")[0] if ":" in where else ""
    if scheme == "restic":
        return ResticPlace(where.removeprefix("restic:"), secret)
    if scheme == "ssh":
        return SshPlace.of(where, ssh_config)
    if scheme == "s3":
        return S3Place.of(where)
    if "://" in where:
        raise UsageError(
            f"{where}: no place for a backup",
            remedy="A folder, ssh://user@host/path, s3://bucket/prefix or restic:REPOSITORY.",
        )
    return FolderPlace(Path(where).expanduser())


def choose_place(
    where: str, *, secret: str = "", ssh_config: Path | None = None, is_plain: bool = False
) -> Place:
    """The place that `where` names, as a restic repository where restic is installed.

    What was begun is gone on with: a place that holds files of ours stays as it is. They are also
    what a new place holds where restic is not installed, where it cannot get to (an ssh server
    without sftp), or where `is_plain` says so.

    Raises:
        UsageError, MissingTool: As `open_place`.
        DoorError: It could not be asked what is there.
    """
    if is_plain or where.startswith("restic:") or shutil.which("restic") is None:
        return open_place(where, secret=secret, ssh_config=ssh_config)
    try:
        plain = open_place(where, secret=secret, ssh_config=ssh_config)
    except MissingTool:  # boto3: restic can do without
        return ResticPlace(_s3_for_restic(where), secret)
    if any(name.startswith("objects/") for name in plain.names()):
        return plain
    if isinstance(plain, FolderPlace):
        return ResticPlace(str(plain.folder), secret)
    if isinstance(plain, SshPlace):
        repository, options = plain.for_restic()
        restic = ResticPlace(repository, secret, options)
        return restic if restic.is_reached() else plain
    return ResticPlace(_s3_for_restic(where), secret)


def _s3_for_restic(where: str) -> str:
    """The bucket as restic writes it; the endpoint from where boto3 has it, too."""
    parts = urlsplit(where)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    return f"s3:{endpoint or 'https://s3.amazonaws.com'}/{parts.netloc}{parts.path}"


@dataclass(frozen=True)
class FolderPlace:
    """A folder of this machine, on another disk."""

    folder: Path

    @property
    def folder_here(self) -> Path | None:
        return self.folder

    @property
    def lies_in(self) -> Path | None:
        return self.folder

    def names(self) -> set[str]:
        return set(_names_below(self.folder)) if self.folder.is_dir() else set()

    def put(self, source: Path, names: Sequence[str]) -> None:
        for name in names:
            target = self.folder / name
            with durable.os_errors(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                if source.stat().st_dev == target.parent.stat().st_dev:
                    (source / name).replace(target)
                    durable.flush_folder(target.parent)
                    continue
                with (source / name).open("rb") as reader, durable.open_staged(target) as writer:
                    shutil.copyfileobj(reader, writer, 2**20)

    def get(self, names: Sequence[str], into: Path) -> None:
        for name in names:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                shutil.copyfile(self.folder / name, into / name)
            except OSError as error:
                raise PlaceFault(f"{self.folder / name}: {error.strerror}") from error


@dataclass(frozen=True)
class SshPlace:
    """A folder on a machine that the user's ssh reaches without asking for a password.

    Attributes:
        host: As ssh takes it, with the user.
        port: TCP port; None leaves it to the settings.
        folder: Absolute path there.
        config: In place of the user's ssh settings.
    """

    host: str
    port: int | None
    folder: PurePosixPath
    config: Path | None = None
    folder_here: None = None
    lies_in: None = None

    @classmethod
    def of(cls, where: str, config: Path | None) -> "SshPlace":
        parts = urlsplit(where)
        host = f"{parts.username}@{parts.hostname}" if parts.username else str(parts.hostname)
        folder = PurePosixPath(parts.path)
        # Neither may begin as an option does.
        safe = parts.hostname and re.fullmatch(r"(?:\w[\w.-]*@)?\w[\w.:-]*", host, re.ASCII)
        if not safe or parts.password or len(folder.parts) < 2 or ".." in folder.parts:
            raise UsageError(
                f"{where}: not of the form ssh://user@host/absolute/path",
                remedy="Keys and passwords are the matter of ssh: `ssh user@host` must just work.",
            )
        return cls(host, parts.port, folder, config)

    def for_restic(self) -> tuple[str, tuple[str, ...]]:
        """(repository, options) with which restic finds this folder, by the same ssh."""
        command = shlex.join([*self._ssh(), self.host, "-s", "sftp"])
        return f"sftp:{self.host}:{self.folder}", ("-o", f"sftp.command={command}")

    def names(self) -> set[str]:
        folder = shlex.quote(str(self.folder))
        found = self._run(
            [*self._ssh(), "--", self.host,
             f"mkdir -p {folder} && cd {folder} && find . -type f -printf '%P\\n'"],
            ASK_MAX_S, stdout_max_bytes=2**30,
        )  # fmt: skip
        return {name for name in found.decode().split("\n") if _NAME.fullmatch(name)}

    def put(self, source: Path, names: Sequence[str]) -> None:
        # A file arrives beside its name, and takes it once it is whole.
        self._rsync(["--fsync", f"{source}/", f"{self.host}:{self.folder}/"], names)

    def get(self, names: Sequence[str], into: Path) -> None:
        self._rsync([f"{self.host}:{self.folder}/", f"{into}/"], names)

    def _rsync(self, ends: Sequence[str], names: Sequence[str]) -> None:
        command = ["rsync", "--archive", "--partial-dir=.rsync-partial", "--no-owner", "--no-group",
                   "--files-from=-", "--from0", "-e", shlex.join(self._ssh()), *ends]  # fmt: skip
        self._run(command, TRANSFER_MAX_S, stdin="\0".join(names).encode())

    def _ssh(self) -> list[str]:
        # Nobody is there to answer a question, and nobody is trusted on first use.
        options = ["-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes",
                   "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=10"]  # fmt: skip
        config = ["-F", str(self.config)] if self.config else []
        port = ["-p", str(self.port)] if self.port else []
        return ["ssh", *config, *options, *port]

    def _run(
        self, command: Sequence[str], limit_s: float, *, stdin: bytes = b"",
        stdout_max_bytes: int = 2**20,
    ) -> bytes:  # fmt: skip
        done = run_limited(command, stdin=stdin, limit_s=limit_s, stdout_max_bytes=stdout_max_bytes)
        if done.fault is None and done.returncode == 0:
            return done.stdout
        said = done.fault or done.stderr.strip()[-500:] or f"exit code {done.returncode}"
        if done.returncode == 255 or "connection" in said.lower():
            raise DoorUnavailable(
                f"{self.host} cannot be reached: {said}",
                remedy=f"`ssh {self.host}` must work without a question.",
            )
        raise PlaceFault(f"{self.host}:{self.folder}: {said}")


class S3Place:
    """A prefix of a bucket. Endpoint and credentials are found as boto3 finds them."""

    folder_here = None
    lies_in = None

    def __init__(self, client: Any, bucket: str, prefix: str) -> None:
        self._client = client
        self._bucket = bucket
        self._prefix = prefix

    @classmethod
    def of(cls, where: str) -> "S3Place":
        try:
            import boto3
        except ModuleNotFoundError as error:
            raise MissingTool(
                "a backup to S3 needs boto3", remedy="pip install 'scf[s3]', or use restic:s3:..."
            ) from error
        parts = urlsplit(where)
        prefix = parts.path.strip("/")
        if not parts.netloc or (prefix and not _NAME.fullmatch(prefix)):
            raise UsageError(f"{where}: not of the form s3://bucket/prefix")
        return cls(boto3.client("s3"), parts.netloc, f"{prefix}/" if prefix else "")

    def names(self) -> set[str]:
        pages = self._client.get_paginator("list_objects_v2")
        with self._faults():
            keys = [
                row["Key"]
                for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix)
                for row in page.get("Contents", [])
            ]
        names = (str(key).removeprefix(self._prefix) for key in keys)
        return {name for name in names if _NAME.fullmatch(name)}

    def put(self, source: Path, names: Sequence[str]) -> None:
        with self._faults():
            for name in names:
                self._client.upload_file(str(source / name), self._bucket, self._prefix + name)

    def get(self, names: Sequence[str], into: Path) -> None:
        with self._faults():
            for name in names:
                (into / name).parent.mkdir(parents=True, exist_ok=True)
                self._client.download_file(self._bucket, self._prefix + name, str(into / name))

    @contextlib.contextmanager
    def _faults(self) -> Iterator[None]:
        """Turns what boto3 raises into errors of ours."""
        import botocore.exceptions as faults
        from boto3.exceptions import Boto3Error

        where = f"s3://{self._bucket}/{self._prefix}"
        try:
            yield
        except (faults.EndpointConnectionError, faults.NoCredentialsError) as error:
            raise DoorUnavailable(
                f"{where}: {error}",
                remedy="Check the network, AWS_ENDPOINT_URL and the credentials.",
            ) from error
        except (faults.BotoCoreError, faults.ClientError, Boto3Error) as error:
            raise PlaceFault(f"{where}: {error}") from error


# What restic exits with from version 0.17 on; before, its words must do.
_NO_REPOSITORY = 10


class ResticPlace:
    """A restic repository: each `put` is one snapshot of it, with the tag `scf`.

    restic has its own encryption, checks and backends (sftp, s3, rest, b2 ...); the credentials of
    a backend are read from the environment, as restic has them. The repository's password is ours.
    """

    folder_here = None

    def __init__(self, repository: str, secret: str, options: Sequence[str] = ()) -> None:
        """`options` are restic's own, for its backend."""
        if shutil.which("restic") is None:
            raise MissingTool("restic is not installed", remedy="Install restic, or name a folder.")
        if not repository or repository.startswith("-"):
            raise UsageError(f"restic:{repository}: no repository")
        self._repository = repository
        self._secret = secret
        self._options = options
        self._where: dict[str, str] = {}
        self._made = False

    @property
    def lies_in(self) -> Path | None:
        is_remote = re.match(r"[a-z0-9]+:", self._repository) is not None
        return None if is_remote else Path(self._repository)

    def names(self) -> set[str]:
        self._where = {}
        if not self._is_made():
            return set()
        listed = self._restic(["snapshots", "--tag", "scf", "--json"])
        for snapshot in json.loads(listed):
            for name in self._names_in(str(snapshot["id"]), snapshot["paths"]):
                self._where[name] = str(snapshot["id"])
        return set(self._where)

    def put(self, source: Path, names: Sequence[str]) -> None:
        if not self._is_made():
            self._restic(["init"])
        with tempfile.NamedTemporaryFile("wb") as wanted:
            wanted.write("".join(f"{name}\0" for name in names).encode())
            wanted.flush()
            self._restic(["backup", "--tag", "scf", "--files-from-raw", wanted.name], at=source)

    def get(self, names: Sequence[str], into: Path) -> None:
        if not set(names) <= self._where.keys():
            self.names()
        by_snapshot: dict[str, list[str]] = {}
        for name in names:
            if name not in self._where:
                raise PlaceFault(f"restic:{self._repository}: {name} is not there")
            by_snapshot.setdefault(self._where[name], []).append(name)
        for snapshot, wanted in by_snapshot.items():
            with tempfile.TemporaryDirectory(dir=into) as scratch:
                includes = [part for name in wanted for part in ("--include", name)]
                self._restic(["restore", snapshot, "--target", scratch, *includes])
                self._take(Path(scratch), wanted, into)

    def is_reached(self) -> bool:
        """False where the other machine's ssh server has no sftp, by which restic goes there."""
        try:
            self._is_made()
        except PlaceFault as fault:
            if "subsystem request failed" not in str(fault):
                raise
            return False
        return True

    def _is_made(self) -> bool:
        """Whether there is a repository, which this password opens. Reading makes none."""
        if not self._made:
            done = self._run(["cat", "config"])
            said = done.stderr.decode(errors="replace")
            is_absent = done.returncode == _NO_REPOSITORY or "unable to open config file" in said
            if done.returncode != 0 and not is_absent:
                raise PlaceFault(f"{self._repository}: {said.strip()[-500:] or done.returncode}")
            self._made = done.returncode == 0
        return self._made

    def _take(self, scratch: Path, names: Iterable[str], into: Path) -> None:
        found = {path.name: path for path in scratch.rglob("*") if path.is_file()}
        for name in names:
            path = found.get(PurePosixPath(name).name)
            if path is None:
                raise PlaceFault(f"restic:{self._repository}: {name} did not come back")
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(into / name)

    def _names_in(self, snapshot: str, paths: Sequence[str]) -> Iterator[str]:
        listed = self._restic(["ls", "--json", snapshot])
        for line in listed.splitlines():
            node = json.loads(line)
            match = re.search(r"(?:objects/[0-9a-f]{2}/[0-9a-f]{64}|snapshots/[^/]+\.json)$",
                              str(node.get("path", "")))  # fmt: skip
            if node.get("type") == "file" and match:
                yield match[0]

    def _restic(self, arguments: Sequence[str], *, at: Path | None = None) -> bytes:
        done = self._run(arguments, at=at)
        if done.returncode == 0:
            return done.stdout
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise PlaceFault(f"restic {arguments[0]}: {said or done.returncode}")

    def _run(
        self, arguments: Sequence[str], *, at: Path | None = None
    ) -> "subprocess.CompletedProcess[bytes]":
        command = ["restic", "--repo", self._repository, "--password-file", "/dev/stdin",
                   "--quiet", *self._options, *arguments]  # fmt: skip
        try:
            return subprocess.run(
                command, input=self._secret.encode(), cwd=at, capture_output=True,
                timeout=TRANSFER_MAX_S, check=False, env=os.environ,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise PlaceFault(f"restic took longer than {TRANSFER_MAX_S:g} s") from error


def _names_below(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and _NAME.fullmatch(name):
            yield name
