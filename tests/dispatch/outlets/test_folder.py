"""Publishing into a plain folder: whole or not at all, and gone on with after a cut."""

import hashlib
from pathlib import Path

import pytest

from scf.core.errors import OperatorError
from scf.dispatch.outlets import folder as folder_module
from scf.dispatch.outlets.folder import FolderOutlet
from scf.dispatch.outlets.outlet import (
    AlreadyPublished,
    OutletFailed,
    PublishedOtherwise,
    Shipment,
)
from support.foundries import tree_bytes
from support.shipments import small_release


@pytest.fixture
def shipment(tmp_path: Path) -> Shipment:
    return Shipment.of(small_release(tmp_path / "from"))


@pytest.fixture
def outlet(tmp_path: Path) -> FolderOutlet:
    (tmp_path / "to").mkdir()
    return FolderOutlet(tmp_path / "to")


def test_a_release_arrives_whole_and_once(
    shipment: Shipment, outlet: FolderOutlet, tmp_path: Path
) -> None:
    done = outlet.publish(shipment)

    assert tree_bytes(tmp_path / "to" / shipment.name) == tree_bytes(shipment.folder)
    assert done.sent_bytes == sum(piece.size_bytes for piece in shipment.pieces)
    with pytest.raises(AlreadyPublished):
        outlet.publish(shipment)


def test_another_release_under_the_name_is_left_alone(
    shipment: Shipment, outlet: FolderOutlet, tmp_path: Path
) -> None:
    other = tmp_path / "to" / shipment.name
    other.mkdir()
    (other / "RELEASE.json").write_text("{}")
    with pytest.raises(PublishedOtherwise):
        outlet.publish(shipment)
    assert (other / "RELEASE.json").read_text() == "{}"


def test_a_cut_upload_shows_nothing_and_is_gone_on_with(
    shipment: Shipment, outlet: FolderOutlet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full at the third file; next time only the rest is copied."""
    copied: list[str] = []
    copy = folder_module._copy

    def full_at_three(piece, target) -> None:
        if len(copied) == 2:
            raise OSError(28, "No space left on device")
        copied.append(piece.path)
        copy(piece, target)

    monkeypatch.setattr(folder_module, "_copy", full_at_three)
    with pytest.raises(OutletFailed, match="No space left"):
        outlet.publish(shipment)
    assert [p.name for p in (tmp_path / "to").iterdir()] == [f".partial-{shipment.name}"]
    (tmp_path / "to" / f".partial-{shipment.name}" / "stray").write_text("of an older try")

    monkeypatch.setattr(folder_module, "_copy", copy)
    done = outlet.publish(shipment)
    assert done.kept_bytes == sum(p.size_bytes for p in shipment.pieces if p.path in copied)
    assert tree_bytes(tmp_path / "to" / shipment.name) == tree_bytes(shipment.folder)


def test_a_file_that_changes_meanwhile_is_not_published(
    shipment: Shipment, outlet: FolderOutlet, tmp_path: Path
) -> None:
    shipment.pieces[0].source.chmod(0o644)
    shipment.pieces[0].source.write_bytes(b"something else")
    with pytest.raises(OutletFailed, match="changed while it was copied"):
        outlet.publish(shipment)
    assert not (tmp_path / "to" / shipment.name).exists()


def test_a_folder_that_is_not_there_is_not_made(shipment: Shipment, tmp_path: Path) -> None:
    """A share that is not mounted must not become a folder on the system disk."""
    with pytest.raises(OperatorError, match="no such folder"):
        FolderOutlet(tmp_path / "unmounted").publish(shipment)
    assert not (tmp_path / "unmounted").exists()


def test_the_digest_is_of_what_lies_there(shipment: Shipment) -> None:
    data = (shipment.folder / "RELEASE.json").read_bytes()
    assert shipment.release.sha256 == hashlib.sha256(data).hexdigest()
    assert shipment.pieces[-2].path == "RELEASE.dsse.json"
