"""Publish to the Hugging Face hub, with huggingface_hub (extra `[hub]`).

A release is one commit: its files under `NAME/`, and the model card as the repository's README.md.
Large files are uploaded before the commit, by digest, so an upload that was interrupted is gone on
with; nobody sees anything before the commit. The commit gets the tag NAME. The token is found as
the library finds it (HF_TOKEN, or its file after `hf auth login`); HF_ENDPOINT names another hub.
"""

import importlib
from pathlib import Path

from scf.core.errors import MissingTool, OperatorError
from scf.core.identity import sha256_hex
from scf.dispatch.outlets.outlet import (
    RELEASE_NAME,
    AlreadyPublished,
    OutletFailed,
    Published,
    PublishedOtherwise,
    Shipment,
)

CARD = "MODEL_CARD.md"


class HubOutlet:
    """A model repository."""

    def __init__(self, repository: str) -> None:
        try:
            from huggingface_hub import HfApi
            from huggingface_hub.utils.tqdm import disable_progress_bars
        except ImportError as error:
            raise MissingTool(
                "publishing to the hub needs huggingface_hub",
                remedy='Run `pip install "scf[hub]"`.',
            ) from error
        disable_progress_bars()
        self._repository = repository
        self._api = HfApi(library_name="scf")

    @property
    def address(self) -> str:
        return f"hf://{self._repository}"

    def publish(self, shipment: Shipment) -> Published:
        """See `Outlet`. The repository must be there: it is never made, public or private."""
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

        where = f"{self.address}/{shipment.name}"
        try:
            return self._publish(shipment, where)
        except RepositoryNotFoundError as error:
            raise OperatorError(
                f"{self.address}: there is no such repository, or the token may not see it",
                remedy="Make it on the hub, and log in (`hf auth login`, or HF_TOKEN).",
            ) from error
        except (HfHubHTTPError, OSError, _transport_error()) as error:
            raise OutletFailed(
                f"{where}: {error}", remedy="Nothing is visible there; run the command again."
            ) from error

    def _publish(self, shipment: Shipment, where: str) -> Published:
        from huggingface_hub import CommitOperationAdd

        listed = f"{shipment.name}/{RELEASE_NAME}"
        if self._api.file_exists(self._repository, listed):
            found = Path(self._api.hf_hub_download(self._repository, listed)).read_bytes()
            if sha256_hex(found) != shipment.release.sha256:
                raise PublishedOtherwise(shipment.name, where)
            # A crash may have come between the commit and its tag.
            self._tag(shipment.name)
            raise AlreadyPublished(shipment.name, where)
        operations = [
            CommitOperationAdd(f"{shipment.name}/{piece.path}", str(piece.source))
            for piece in shipment.pieces
        ]
        operations.append(CommitOperationAdd("README.md", str(shipment.folder / CARD)))
        self._api.create_commit(
            self._repository, operations, commit_message=f"release {shipment.name}"
        )
        self._tag(shipment.name)
        return Published(where, sum(piece.size_bytes for piece in shipment.pieces), 0)

    def _tag(self, name: str) -> None:
        self._api.create_tag(self._repository, tag=name, exist_ok=True)


def _transport_error() -> type[Exception]:
    """The base error of the HTTP library that this version of huggingface_hub works with.

    It was httpx, and is httpx2 since 2.4; a broken connection comes as an error of that library.
    """
    from huggingface_hub.utils import get_session  # type: ignore[attr-defined] # lazily there

    library = importlib.import_module(type(get_session()).__module__.partition(".")[0])
    error: type[Exception] = library.HTTPError
    return error
