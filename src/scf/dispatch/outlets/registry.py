"""Which outlets there are, by address, and how one is opened; its library is imported then."""

import os
from pathlib import Path

from scf.core.errors import UsageError
from scf.dispatch.outlets.outlet import Outlet, Talk

KINDS = ("folder:/PATH", "s3://BUCKET/PREFIX", "hf://OWNER/REPOSITORY", "github://OWNER/REPOSITORY")


def open_outlet(address: str, *, talk: Talk | None = None) -> Outlet:
    """The outlet at an address; credentials are found when it is opened, never given in it.

    Raises:
        UsageError: Not an address.
        MissingTool: The library for it is not installed.
        OperatorError: There are no credentials for it.
    """
    kind, _, rest = address.partition(":")
    rest = rest.removeprefix("//")
    if "@" in rest.partition("/")[0]:
        raise UsageError(
            "an address holds no credentials",
            remedy="See docs/operations/publish.md for where they go.",
        )
    if kind == "folder" and rest:
        from scf.dispatch.outlets.folder import FolderOutlet

        return FolderOutlet(Path(rest).expanduser().absolute())
    if kind == "s3" and rest:
        from scf.dispatch.outlets.s3 import S3Outlet

        bucket, _, prefix = rest.partition("/")
        return S3Outlet(bucket, prefix.strip("/"), talk=talk or _say_nothing)
    if kind == "hf" and rest.count("/") == 1:
        from scf.dispatch.outlets.hub import HubOutlet

        return HubOutlet(rest)
    if kind == "github" and rest.count("/") == 1:
        from scf.dispatch.outlets.github import GitHubOutlet

        return GitHubOutlet(rest, os.environ)
    raise UsageError(f"{address!r} is not an outlet", remedy=f"Known are {', '.join(KINDS)}.")


def _say_nothing(line: str) -> None:
    del line
