"""Publishing to the hub with the library's own upload, against a double that HF_ENDPOINT names."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.hub_double import REPOSITORY, TOKEN, HubDouble, running
from support.processes import python_env
from support.shipments import NAME, small_release

pytest.importorskip("huggingface_hub")

PROGRAM = """
import sys
from pathlib import Path
from scf.core.errors import ScfError
from scf.dispatch.outlets.outlet import Shipment
from scf.dispatch.outlets.registry import open_outlet
try:
    print(open_outlet(sys.argv[1]).publish(Shipment.of(Path(sys.argv[2]))).where)
except ScfError as error:
    print(type(error).__name__, error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def hub() -> Iterator[HubDouble]:
    with running() as double:
        yield double


def publish(hub: HubDouble, release: Path, repository: str = REPOSITORY, token: str = TOKEN):
    """In a process of its own: the library reads its environment when it is imported."""
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, f"hf://{repository}", str(release)],
        capture_output=True, text=True, timeout=120,
        env=python_env(
            HF_ENDPOINT=hub.url, HF_TOKEN=token, HF_HOME=str(release.parent / "hf"),
            # The double speaks LFS, not the hub's newer chunk store.
            HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_TELEMETRY="1",
        ),
    )  # fmt: skip


def test_a_release_is_one_commit_and_a_tag_and_twice_is_once(
    hub: HubDouble, tmp_path: Path
) -> None:
    release = small_release(tmp_path)

    done = publish(hub, release)

    assert done.returncode == 0, done.stderr
    assert (hub.commits, hub.tags) == ([f"release {NAME}"], [NAME])
    for path in (p for p in release.rglob("*") if p.is_file()):
        assert hub.files[f"{NAME}/{path.relative_to(release)}"] == path.read_bytes()
    assert hub.files["README.md"] == (release / "MODEL_CARD.md").read_bytes()
    assert TOKEN not in done.stdout + done.stderr

    again = publish(hub, release)
    assert again.returncode == 3, again.stderr
    assert hub.commits == [f"release {NAME}"]


def test_a_cut_upload_shows_nothing_and_large_files_are_not_sent_again(
    hub: HubDouble, tmp_path: Path
) -> None:
    """The connection breaks at the commit; the weights are there already next time."""
    release = small_release(tmp_path, big_bytes=200_000)
    hub.cut = ["POST commit"] * 10

    cut = publish(hub, release)
    assert cut.returncode == 8, cut.stderr
    assert hub.files == {}
    assert len(hub.blobs) == 1

    hub.cut, hub.log = [], []
    done = publish(hub, release)
    assert done.returncode == 0, done.stderr
    assert "PUT lfs" not in hub.log
    assert f"{NAME}/RELEASE.json" in hub.files


def test_another_release_under_the_name_is_left_alone(hub: HubDouble, tmp_path: Path) -> None:
    hub.files[f"{NAME}/RELEASE.json"] = b"theirs"
    done = publish(hub, small_release(tmp_path))
    assert done.returncode == 5, done.stderr
    assert "PublishedOtherwise" in done.stderr
    assert hub.commits == []


def test_what_is_not_there_or_not_allowed_is_said(hub: HubDouble, tmp_path: Path) -> None:
    release = small_release(tmp_path)
    missing = publish(hub, release, repository="no/body")
    assert "there is no such repository" in missing.stderr
    refused = publish(hub, release, token="hf_wrong")
    assert refused.returncode in {1, 8}
    assert "hf_wrong" not in refused.stderr
