"""A release as one `.tar.gz`, in parts where it is too long for one upload. Standard library only.

The same release gives the same bytes, in the same parts. Parts are `NAME.tar.gz.001`, `.002` and so
on; joined in this order (`cat NAME.tar.gz.* > NAME.tar.gz`) they are the archive. What is unpacked
is checked by verify_release.py, file by file, so a part needs no signature of its own.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

# GitHub takes no asset of 2 GiB or more.
PART_BYTES = 2_000_000_000
_BLOCK = 1 << 20


class ArchiveDamaged(Exception):
    """An archive, or a part of it, is missing or cannot be unpacked."""


class _Parts(io.RawIOBase):
    """A file that is written as several, each of at most `part_bytes`."""

    def __init__(self, path: Path, part_bytes: int) -> None:
        self.paths: list[Path] = []
        self._path, self._part_bytes = path, part_bytes
        self._file: BinaryIO | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            if self._file is None or self._file.tell() == self._part_bytes:
                self._next()
            assert self._file is not None
            room = self._part_bytes - self._file.tell()
            written += self._file.write(view[written : written + room])
        return written

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()

    def _next(self) -> None:
        if self._file is not None:
            self._file.close()
        path = self._path.with_name(f"{self._path.name}.{len(self.paths) + 1:03d}")
        self.paths.append(path)
        self._file = path.open("wb")


def pack(release: Path, out: Path, *, part_bytes: int = PART_BYTES) -> list[Path]:
    """Write `out/NAME.tar.gz`, or its parts; returns what was written, in order."""
    whole = out / f"{release.name}.tar.gz"
    for path in (whole, *out.glob(f"{whole.name}.*")):
        path.unlink(missing_ok=True)
    with (
        _Parts(whole, part_bytes) as parts,
        gzip.GzipFile(filename="", fileobj=parts, mode="wb", mtime=0, compresslevel=1) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path in sorted(p for p in release.rglob("*") if p.is_file()):
            about = tarfile.TarInfo(f"{release.name}/{path.relative_to(release).as_posix()}")
            about.size, about.mode = path.stat().st_size, 0o444
            with path.open("rb") as file:
                tar.addfile(about, file)
    if len(parts.paths) > 1:
        return parts.paths
    return [parts.paths[0].rename(whole)]


def parts_of(archive: Path) -> list[Path]:
    """The archive, or its parts in order. Raises ArchiveDamaged where one is missing."""
    if archive.is_file():
        return [archive]
    found = sorted(archive.parent.glob(f"{archive.name}.[0-9][0-9][0-9]"))
    numbers = [int(path.suffix[1:]) for path in found]
    if not found or numbers != list(range(1, len(found) + 1)):
        raise ArchiveDamaged(f"{archive.name}: neither the archive nor all of its parts are there")
    return found


@contextmanager
def unpacking(archive: Path) -> Iterator[tarfile.TarFile]:
    """The archive, or its parts as one, to be read from front to back."""
    paths = parts_of(archive)
    with _Joined(paths) as joined, gzip.GzipFile(fileobj=joined, mode="rb") as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                yield tar
            while stream.read(_BLOCK):  # to the checksum at its end
                pass
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ArchiveDamaged(f"{archive.name} cannot be unpacked: {error}") from None


class _Joined(io.RawIOBase):
    """Several files read as one."""

    def __init__(self, paths: list[Path]) -> None:
        self._waiting = list(paths)
        self._file: BinaryIO | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._file is None:
                if not self._waiting:
                    return 0
                self._file = self._waiting.pop(0).open("rb")
            if num := self._file.readinto(buffer):  # type: ignore[attr-defined]
                return int(num)
            self._file.close()
            self._file = None

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        super().close()
