"""Doors are opened by name, and only the one that is asked for is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from fakes.runpod.server import FakeRunpod
from scf.core.errors import MissingTool, UsageError
from scf.dispatch.ray_access import RaySettings
from scf.dispatch.registry import NAMES, RunpodAccess, open_door
from scf.dispatch.rental import RunpodSettings
from scf.dispatch.transfer import SshBox
from scf.storage.partitions import Folder

BOX = SshBox(name="box", host="localhost", user="me", host_keys=("ssh-ed25519 AAAA",))
ACCESS = RunpodAccess(key="rpa_CANARY", rental=RunpodSettings(image="worker@sha256:0"))


@pytest.fixture
def places(tmp_path: Path) -> tuple[Folder, Path]:
    (tmp_path / "home").mkdir()
    return Folder.at(tmp_path / "jobs"), tmp_path / "home"


@pytest.mark.parametrize("name", NAMES)
def test_every_door_opens_without_calling_out(name: str, places: tuple[Folder, Path]) -> None:
    token = places[1] / "ray.token"
    token.touch(mode=0o600)
    token.write_text("CANARY")
    cluster = RaySettings(address="http://127.0.0.1:1", token_file=token)
    door = open_door(name, *places, box=BOX, runpod=ACCESS, ray=cluster)

    assert door.name == name
    assert door.poll("job-1").phase == "absent"
    if name == "runpod":
        door._pods._client.close()


def test_a_door_that_is_not_there_is_named(places: tuple[Folder, Path]) -> None:
    with pytest.raises(UsageError, match="local, ssh, runpod, ray"):
        open_door("carrier-pigeon", *places)


@pytest.mark.parametrize("name", ["ssh", "runpod", "ray"])
def test_what_a_door_needs_is_asked_for(name: str, places: tuple[Folder, Path]) -> None:
    with pytest.raises(UsageError, match="needs"):
        open_door(name, *places)


def test_without_httpx_only_the_runpod_door_is_missing(
    places: tuple[Folder, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("scf.dispatch.runpod")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(MissingTool, match="httpx"):
        open_door("runpod", *places, runpod=ACCESS)
    assert open_door("ssh", *places, box=BOX).name == "ssh"


def test_the_local_door_loads_no_http() -> None:
    code = "import sys, scf.dispatch.registry; print('httpx' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "False"


def test_the_addresses_are_the_callers(places: tuple[Folder, Path]) -> None:
    """`SCF_RUNPOD_REST` and `SCF_RUNPOD_GRAPHQL` come in as values."""
    with FakeRunpod(key="rpa_CANARY") as provider:
        access = RunpodAccess(
            key="rpa_CANARY",
            rental=RunpodSettings(image="x@sha256:0"),
            rest=provider.rest,
            graphql=provider.graphql,
        )
        door = open_door("runpod", *places, runpod=access)
        assert door.sweep() == []
        assert provider.count("list") == 1
        door._pods._client.close()


def test_the_key_is_not_printed() -> None:
    assert "CANARY" not in repr(ACCESS)
