"""Publishing on GitHub from the foundry itself: parts, resuming, and no token anywhere it should not be."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from scf.core.errors import OperatorError
from scf.dispatch.outlets.github import GitHubOutlet
from scf.dispatch.outlets.outlet import AlreadyPublished, OutletFailed, PublishedOtherwise, Shipment
from support.github_double import REPOSITORY, TOKEN, GitHubDouble, running
from support.shipments import NAME, small_release


@pytest.fixture
def github() -> Iterator[GitHubDouble]:
    with running() as double:
        yield double


def outlet(github: GitHubDouble, part_bytes: int = 10**9) -> GitHubOutlet:
    environment = {"GITHUB_TOKEN": TOKEN, "GITHUB_API_URL": github.url}
    return GitHubOutlet(REPOSITORY, environment, part_bytes=part_bytes)


@pytest.fixture
def shipment(tmp_path: Path) -> Shipment:
    return Shipment.of(small_release(tmp_path, big_bytes=100_000))


def test_a_long_archive_is_published_in_parts(github: GitHubDouble, shipment: Shipment) -> None:
    outlet(github, part_bytes=600).publish(shipment)
    (assets,) = github.published().values()
    parts = [name for name in assets if ".tar.gz." in name]
    assert parts == [f"{NAME}.tar.gz.{number:03d}" for number in range(1, len(parts) + 1)]
    assert len(parts) > 1
    assert {"RELEASE.json", "RELEASE.dsse.json", "NOTES.md", "verify_release.py"} <= set(assets)
    with pytest.raises(AlreadyPublished):
        outlet(github, part_bytes=600).publish(shipment)


def test_a_draft_is_gone_on_with(github: GitHubDouble, shipment: Shipment) -> None:
    """GitHub stops answering at the archive; next time the files that arrived stay as they are."""
    github.cut = [f"POST {NAME}.tar.gz"] * 9
    github.refuse[f"POST {NAME}.tar.gz"] = 500
    with pytest.raises(OutletFailed):
        outlet(github).publish(shipment)
    assert github.published() == {}
    (draft,) = github.releases.values()
    draft["assets"] = [a for a in draft["assets"] if ".tar.gz" not in a["name"]]

    github.cut, github.log = [], []
    outlet(github).publish(shipment)

    assert "POST NOTES.md" not in github.log
    assert f"POST {NAME}.tar.gz" in github.log
    assert list(github.published()) == [NAME]


def test_another_release_under_the_tag_is_left_alone(
    github: GitHubDouble, shipment: Shipment
) -> None:
    outlet(github).publish(shipment)
    (shipment.folder / "RELEASE.json").write_text(
        (shipment.folder / "RELEASE.json").read_text() + " "
    )
    with pytest.raises(PublishedOtherwise):
        outlet(github).publish(Shipment.of(shipment.folder))


def test_without_a_token_it_says_which() -> None:
    with pytest.raises(OperatorError, match="there is no token"):
        GitHubOutlet(REPOSITORY, {})
