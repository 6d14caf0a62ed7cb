"""Doors as the settings describe them: opened when asked for, each with its reason when it is not."""

from dataclasses import replace
from pathlib import Path

import pytest

from scf.config import load_config
from scf.core.errors import DoorUnavailable, OperatorError, UsageError
from scf.daemon.doors import Doors, box_of, open_doors
from scf.dispatch.remote_state import RemoteJob, RemoteJobs, Stage
from scf.storage.partitions import Folder
from support.clocks import ManualClock

KEYS = 'host_keys = ["ssh-ed25519 AAAA"]'


def doors(tmp_path: Path, text: str, **environment: str) -> Doors:
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "home" / "scf.toml").write_text(text)
    config = load_config(tmp_path / "home", environment={})
    return open_doors(config, Folder.at(tmp_path / "jobs"), ManualClock(), environment=environment)


def test_without_settings_there_is_this_machine(tmp_path: Path) -> None:
    found = doors(tmp_path, "")

    assert found.order == ("local",)
    assert found.get("local") is found.local


@pytest.mark.parametrize(
    ("text", "door", "why"),
    [
        ('[doors]\norder = ["ssh"]', "ssh", r"\[ssh\] host is not set"),
        ('[doors]\norder = ["runpod"]', "runpod", r"\[runpod\] image is not set"),
        ('[runpod]\nimage = "w@sha256:0"', "runpod", "no RunPod API key"),
        ('[doors]\norder = ["ray"]', "ray", r"\[ray\] address is not set"),
        ('[ray]\naddress = "http://10.0.0.5:8265"', "ray", r"ray.token: .* cannot be read"),
    ],
)
def test_a_door_that_cannot_be_opened_says_why(
    tmp_path: Path, text: str, door: str, why: str
) -> None:
    """And keeps no other from being used."""
    found = doors(tmp_path, text)

    with pytest.raises(DoorUnavailable, match=why) as caught:
        found.get(door)
    assert caught.value.remedy
    assert found.get("local").name == "local"


def test_it_is_tried_again_after_a_minute() -> None:
    clock, tries = ManualClock(), []

    def open_one(name: str) -> None:
        tries.append(name)
        raise OperatorError("the cellar is locked")

    found = Doors(("ssh",), open_one, clock)
    for _ in range(5):
        with pytest.raises(DoorUnavailable, match="the cellar is locked"):
            found.get("ssh")
    assert tries == ["ssh"]
    clock.advance(61)
    with pytest.raises(DoorUnavailable):
        found.get("ssh")

    assert tries == ["ssh", "ssh"]


def test_a_pod_of_yesterdays_settings_is_still_given_back(tmp_path: Path) -> None:
    """The runpod door is opened at the start, though it stands in no order any more."""
    jobs = RemoteJobs(tmp_path / "home" / "runpod_jobs")
    jobs.write("job-1", RemoteJob(Stage.ENDED, "2026-11-23T00:00:00Z"))
    opened = []
    found = doors(tmp_path, "")
    found._open_one = opened.append

    found.resume()

    assert opened == ["runpod"]


def test_a_damaged_record_keeps_no_daemon_from_starting(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "runpod_jobs"
    folder.mkdir(parents=True)
    (folder / "job-1.json").write_text("{")

    found = doors(tmp_path, "")
    found.resume()

    assert found._left_open == ("runpod",)


def test_peers_are_the_same_machine_at_another_address(tmp_path: Path) -> None:
    text = f'[ssh]\nhost = "a"\nuser = "me"\n{KEYS}\npeers = ["b:2222 ssh-ed25519 BBBB"]'
    (tmp_path / "scf.toml").write_text(text)
    box = box_of(load_config(tmp_path, environment={}))

    (peer,) = box.peers
    assert (peer.host, peer.port, peer.host_keys) == ("b", 2222, ("ssh-ed25519 BBBB",))
    assert replace(peer, name=box.name, host="a", port=22, host_keys=box.host_keys) == replace(
        box, peers=()
    )


@pytest.mark.parametrize(
    "text",
    ['[ssh]\nhost = "a"', f'[ssh]\nhost = "a"\n{KEYS}\npeers = ["b"]', "[doors]\norder = []",
     '[doors]\norder = ["taxi"]', '[doors]\norder = ["local", "local"]', "[doors]\norder = [1]",
     '[ray]\naddress = "10.0.0.5:6379"', "[ray]\nnodes = 0", '[ray]\nports = "9-"',
     '[runpod]\nroute = "pigeon"', "[runpod]\nmax_usd_per_h = 0"],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"scf\.toml"):
        doors(tmp_path, text)
