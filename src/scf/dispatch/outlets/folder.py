"""Publish into a plain folder: another drive, a share, what a web server shows.

Files are copied into `.partial-NAME` beside the name and compared by digest; the last step is a
rename. Works on file systems without permissions, links or locks.
"""

import hashlib
from pathlib import Path

from scf.core.errors import BudgetExceeded, DriveError, OperatorError
from scf.dispatch.outlets.outlet import (
    RELEASE_NAME,
    AlreadyPublished,
    OutletFailed,
    Piece,
    Published,
    PublishedOtherwise,
    Shipment,
)
from scf.storage import durable


class FolderOutlet:
    """A folder that holds releases."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def address(self) -> str:
        return f"folder:{self._folder}"

    def publish(self, shipment: Shipment) -> Published:
        """See `Outlet`."""
        if not self._folder.is_dir():
            raise OperatorError(
                f"{self._folder}: there is no such folder to publish into",
                remedy="Make it, or mount what it lies on; it is never made silently.",
            )
        final = self._folder / shipment.name
        if final.exists():
            found = final / RELEASE_NAME
            if found.is_file() and _sha256(found) == shipment.release.sha256:
                raise AlreadyPublished(shipment.name, str(final))
            raise PublishedOtherwise(shipment.name, str(final))
        partial = self._folder / f".partial-{shipment.name}"
        sent = kept = 0
        try:
            _drop_what_is_not_ours(partial, shipment)
            for piece in shipment.pieces:
                target = partial / piece.path
                if target.is_file() and _sha256(target) == piece.sha256:
                    kept += piece.size_bytes
                    continue
                _copy(piece, target)
                sent += piece.size_bytes
            durable.publish_folder(partial, final)
        except (OSError, BudgetExceeded, DriveError) as error:
            raise OutletFailed(
                f"{self._folder}: {error}",
                remedy="What was copied stays in a hidden folder; run the command again.",
            ) from error
        return Published(str(final), sent, kept)


def _copy(piece: Piece, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with piece.source.open("rb") as reader, durable.open_staged(target, mode=0o444) as writer:
        while block := reader.read(2**20):
            digest.update(block)
            writer.write(block)
    if digest.hexdigest() != piece.sha256:
        target.unlink()
        raise OutletFailed(f"{piece.source} changed while it was copied")


def _drop_what_is_not_ours(partial: Path, shipment: Shipment) -> None:
    wanted = {partial / piece.path for piece in shipment.pieces}
    for path in partial.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
    partial.mkdir(exist_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
