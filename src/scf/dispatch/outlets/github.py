"""Publish as a release on GitHub: an archive (in parts where it is long) and what it is checked by.

The token comes from `GITHUB_TOKEN` or `GH_TOKEN`; it needs `contents: write` for the one repository
and goes nowhere but into the header of calls to GitHub.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from shutil import copyfile

from scf.core.errors import OperatorError
from scf.dispatch.outlets.archive import PART_BYTES, pack
from scf.dispatch.outlets.github_api import (
    API,
    DIFFERS,
    PUBLISHED,
    GitHub,
    Refused,
    Stop,
    publish,
)
from scf.dispatch.outlets.outlet import (
    ENVELOPE_NAME,
    RELEASE_NAME,
    AlreadyPublished,
    OutletFailed,
    Published,
    PublishedOtherwise,
    Shipment,
)

BESIDE = (RELEASE_NAME, ENVELOPE_NAME, "NOTES.md", "verify_release.py")


class GitHubOutlet:
    """The releases of a repository.

    Args:
        repository: `OWNER/NAME`.
        environment: Where the token stands; `GITHUB_API_URL` names another server than GitHub's.
        part_bytes: Archives longer than this go in parts.
    """

    def __init__(
        self, repository: str, environment: Mapping[str, str], *, part_bytes: int = PART_BYTES
    ) -> None:
        token = environment.get("GITHUB_TOKEN") or environment.get("GH_TOKEN")
        if not token:
            raise OperatorError(
                f"github://{repository}: there is no token",
                remedy="Set GITHUB_TOKEN (contents: write, this repository alone).",
            )
        self._repository, self._part_bytes = repository, part_bytes
        self._api = GitHub(environment.get("GITHUB_API_URL") or API, repository, token)

    @property
    def address(self) -> str:
        return f"github://{self._repository}"

    def publish(self, shipment: Shipment) -> Published:
        """See `Outlet`. The tag is made at the default branch."""
        with tempfile.TemporaryDirectory(prefix="scf-publish-") as place:
            out = Path(place)
            pack(shipment.folder, out, part_bytes=self._part_bytes)
            for name in BESIDE:
                copyfile(shipment.folder / name, out / name)
            size_bytes = sum(path.stat().st_size for path in out.iterdir())
            try:
                tag = publish(self._api, out, "")
            except Stop as stop:
                if stop.code == PUBLISHED:
                    raise AlreadyPublished(shipment.name, self.address) from None
                if stop.code == DIFFERS and "RELEASE.json" in str(stop):
                    raise PublishedOtherwise(shipment.name, self.address) from None
                raise OutletFailed(f"{self.address}: {stop}") from None
            except (Refused, OSError) as error:
                raise OutletFailed(
                    f"{self.address}: {error}", remedy="Run the command again; it goes on."
                ) from error
        return Published(f"{self.address}/releases/tag/{tag}", size_bytes, 0)
