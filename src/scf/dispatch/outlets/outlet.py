"""The interface of outlets: places where a release is published, whole and once.

An outlet is named by its address: `folder:/PATH`, `s3://BUCKET/PREFIX`, `hf://OWNER/REPOSITORY`,
`github://OWNER/REPOSITORY`. Each has one last step that makes a release visible: a rename, the
object RELEASE.json, a commit, the end of a draft. Before it, nobody sees anything; an upload that
was interrupted is gone on with by the next call. What was published is never changed.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scf.core.errors import DoorError, InputError, NothingToDo, VerificationFailed
from scf.core.identity import sha256_hex

RELEASE_NAME = "RELEASE.json"
ENVELOPE_NAME = "RELEASE.dsse.json"

Talk = Callable[[str], None]


class OutletFailed(DoorError):
    """The other side did not take the release. Nothing is visible there; trying again is safe."""


class AlreadyPublished(NothingToDo):
    """This very release is there."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__(f"{name} is published already: {where}")


class PublishedOtherwise(VerificationFailed):
    """Another release is there under this name. It is left alone."""

    def __init__(self, name: str, where: str) -> None:
        super().__init__(
            f"{where} holds another {name}: its {RELEASE_NAME} is not this one's",
            remedy="Look at it before going on: a release is never replaced.",
        )


@dataclass(frozen=True)
class Piece:
    """A file of a release.

    Attributes:
        path: Inside the release.
        source: Where it lies.
        sha256, size_bytes: What it must be.
    """

    path: str
    source: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Shipment:
    """A release to be published, verified by who hands it over.

    Attributes:
        folder: The release.
        pieces: Every file, RELEASE.json last.
    """

    folder: Path
    pieces: tuple[Piece, ...]

    @property
    def name(self) -> str:
        """`week-YYYY-MM-DD`."""
        return self.folder.name

    @property
    def release(self) -> Piece:
        """RELEASE.json: whose digest names the whole."""
        return self.pieces[-1]

    @classmethod
    def of(cls, folder: Path) -> "Shipment":
        """All files that RELEASE.json lists, and itself. Raises InputError."""
        data = (folder / RELEASE_NAME).read_bytes()
        try:
            listed: Mapping[str, Mapping[str, object]] = json.loads(data)["files"]
            pieces = [
                Piece(path, folder / path, str(about["sha256"]), int(str(about["size_bytes"])))
                for path, about in sorted(listed.items())
            ]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / RELEASE_NAME}: cannot be read: {error!r}") from error
        for name in (ENVELOPE_NAME, RELEASE_NAME):
            content = (folder / name).read_bytes()
            pieces.append(Piece(name, folder / name, sha256_hex(content), len(content)))
        return cls(folder, tuple(pieces))


@dataclass(frozen=True)
class Published:
    """What an outlet did.

    Attributes:
        where: Where the release is seen now.
        sent_bytes: What went over the line this time.
        kept_bytes: What an interrupted upload had left there.
    """

    where: str
    sent_bytes: int
    kept_bytes: int


class Outlet(Protocol):
    """A place where releases are published."""

    @property
    def address(self) -> str:
        """As it was given."""

    def publish(self, shipment: Shipment) -> Published:
        """Make the release visible there, whole; go on with an upload that was interrupted.

        Raises:
            AlreadyPublished: It is there.
            PublishedOtherwise: Something else is there under its name.
            OutletFailed: It did not get there; nothing is visible, and trying again is safe.
        """
