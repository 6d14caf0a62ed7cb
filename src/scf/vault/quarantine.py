"""Quarantine: records that were refused, each with its place and the reason.

One file an origin, `quarantine/<name>-<digest>.jsonl`, written anew whenever that origin is
ingested: it says what was wrong with it the last time. The origin itself stays where it is.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import pybase64

from scf.storage.partitions import Folder

SCHEMA = "scf.quarantine/1"
# So much of a refused record is kept; its digest and size tell the whole of it.
EXCERPT_MAX_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Rejection:
    """A record that was refused.

    Attributes:
        kind: One word for statistics: `json`, `cid`, `shape`, `not-finite`, `physics`, ...
        reason: What is wrong, as a sentence.
        line: Line in the origin, from 1; None where the origin has no lines.
        offset: Byte of the (uncompressed) origin at which the record begins, where known.
        index: Place of the record in the origin, from 0, where known.
        data: The record's bytes, or as many as there were.
    """

    kind: str
    reason: str
    line: int | None = None
    offset: int | None = None
    index: int | None = None
    data: bytes = b""


class Quarantine:
    """The folder of refused records."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder

    @contextlib.contextmanager
    def file(self, origin: str, origin_sha256: str) -> Iterator["QuarantineFile"]:
        """Collect the rejections of one origin. The file appears, whole, when the block ends.

        With no rejection no file is made. When the block raises, none is left.
        """
        name = f"{_slug(origin)}-{origin_sha256[:16]}.jsonl"
        with contextlib.ExitStack() as stack:
            yield QuarantineFile(self._folder, name, origin, origin_sha256, stack)


class QuarantineFile:
    """The rejections of one origin, being written."""

    def __init__(
        self,
        folder: Folder,
        name: str,
        origin: str,
        origin_sha256: str,
        stack: contextlib.ExitStack,
    ) -> None:
        self._folder = folder
        self.name = name
        self._about = {"schema": SCHEMA, "origin": origin, "origin_sha256": origin_sha256}
        self._stack = stack
        self._file: BinaryIO | None = None
        self.count = 0

    def add(self, rejection: Rejection) -> None:
        """Write one rejection."""
        if self._file is None:
            self._file = self._stack.enter_context(self._folder.open_staged(self.name))
        entry = {
            **self._about,
            "kind": rejection.kind,
            "reason": rejection.reason,
            "line": rejection.line,
            "offset": rejection.offset,
            "index": rejection.index,
            "size_bytes": len(rejection.data),
            "sha256": hashlib.sha256(rejection.data).hexdigest(),
            **_excerpt(rejection.data),
        }
        text = json.dumps(entry, sort_keys=True, allow_nan=False)
        self._file.write(text.encode() + b"\n")
        self.count += 1


def _excerpt(data: bytes) -> dict[str, Any]:
    """`text` where the bytes are UTF-8, else `b64`; cut at `EXCERPT_MAX_BYTES`."""
    part = data[:EXCERPT_MAX_BYTES]
    try:
        return {"text": part.decode()}
    except UnicodeDecodeError:
        return {"b64": pybase64.b64encode_as_string(part)}


def _slug(origin: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", origin).strip("._")[-80:] or "origin"
