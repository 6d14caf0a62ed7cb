"""`scf pods`, `scf pods smoke`, `scf doctor`, and where the API key comes from."""

import json
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import pytest

from fakes.runpod.server import FakeRunpod
from fakes.runpod.world import INVALID, NO_BALANCE, NO_CAPACITY, PodScript
from scf.cli.main import run as scf_command
from scf.core.clock import SystemClock
from scf.daemon.setup import initialise
from scf.dispatch.pod_record import PodFiles
from scf.dispatch.runpod_client import ApiKey, RunpodClient
from scf.dispatch.runpod_key import ApiKeyMissing, find_key
from scf.dispatch.runpod_model import PodOrder
from scf.dispatch.sweeping import name_prefix
from support.cloud_settings import write_settings
from support.processes import python_env
from support.rented_pods import real_provider

KEY = "rpa_CANARY0123456789abcdef"


@dataclass
class Foundry:
    """A home with an account."""

    home: Path
    provider: FakeRunpod

    def scf(self, *arguments: str) -> int:
        return scf_command([*arguments, "--home", str(self.home)])


@pytest.fixture
def provider() -> Iterator[FakeRunpod]:
    with real_provider(key=KEY) as provider:
        yield provider


@pytest.fixture
def foundry(tmp_path: Path, provider: FakeRunpod, monkeypatch: pytest.MonkeyPatch) -> Foundry:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    initialise(home, tmp_path / "root")
    doors = '[doors]\norder = ["runpod", "local"]'
    write_settings(home, tmp_path / "root", provider, more=doors, look_s=0.1, visible_s=0.5)
    monkeypatch.setenv("RUNPOD_API_KEY", KEY)
    return Foundry(home, provider)


def order(foundry: Foundry, name: str, *, num_pods: int = 1) -> None:
    provider = foundry.provider
    provider.pod_scripts.extend([PodScript(until_running=None)] * num_pods)
    client = RunpodClient(ApiKey(KEY), rest=provider.rest, graphql=provider.graphql)
    later = SystemClock().now() + timedelta(hours=1)
    client.create(
        PodOrder(name=name, image="w", gpu="NVIDIA RTX A4000", terminate_after=later,
                 num_pods=num_pods)
    )  # fmt: skip
    client.close()


def test_pods_are_listed_with_their_cost_and_whoever_has_no_lease_is_named(
    foundry: Foundry, capsys: pytest.CaptureFixture[str]
) -> None:
    order(foundry, f"{name_prefix(foundry.home)}forgotten")
    order(foundry, "somebody-elses")
    foundry.provider.pass_time(1800)

    assert foundry.scf("pods", "--json") == 0
    out = capsys.readouterr().out
    found = json.loads(out)
    (row,) = found["pods"]
    assert row["fault"] == "no job needs it"
    assert row["lease_until"] is None
    assert row["usd_per_h"] == 0.25
    assert found["others"] == 1
    assert found["balance_usd"] < 100
    assert set(found["caps"]) == {"usd_hour", "usd_day", "usd_month"}
    assert KEY not in out

    assert foundry.scf("pods") == 0
    text = capsys.readouterr().out
    assert "no job needs it; `scf reaper run --once` ends it" in text
    assert "1 pods of others in this account are left alone" in text


def test_a_cluster_is_shown_as_one_lease_with_its_members(
    foundry: Foundry, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its price is that of all members; one in no book is named and ended whole."""
    name = f"{name_prefix(foundry.home)}forgotten"
    order(foundry, name, num_pods=2)
    order(foundry, "somebody-elses", num_pods=3)

    assert foundry.scf("pods", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (row,) = found["pods"]
    assert (row["name"], row["usd_per_h"], row["fault"]) == (name, 0.5, "no job needs it")
    assert [member["rank"] for member in row["members"]] == [0, 1]
    assert found["others"] == 1

    assert foundry.scf("pods") == 0
    text = capsys.readouterr().out
    assert f"node 1 {row['members'][1]['pod_id']}" in text
    assert "0 of 2 run" in text

    assert foundry.scf("reaper", "run", "--once") == 0
    assert [cluster.name for cluster in foundry.provider.alive_clusters()] == ["somebody-elses"]


@pytest.mark.e2e
@pytest.mark.torch
def test_smoke_rents_the_cheapest_runs_a_job_and_gives_it_back(
    foundry: Foundry, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says what it learnt: price, times, Python, torch, variables."""
    code = foundry.scf(
        "pods", "smoke", "--max-usd", "0.5", "--timeout", "240", "--job-seconds", "0.1", "--json"
    )
    told = capsys.readouterr()
    assert code == 0, told.err
    report = json.loads(told.out)
    learnt = {row["what"]: row["value"] for row in report["learnt"]}

    assert learnt["cheapest"] == "NVIDIA RTX A4000 at 0.25 USD/h"
    assert learnt["pod is gone"] == "yes"
    assert report["machine"]["torch"]
    assert report["machine"]["device"] == "cpu"
    assert foundry.provider.alive() == []
    assert [pod.gpu for pod in foundry.provider.all_pods] == ["NVIDIA RTX A4000"]
    # The lease is about the time that was allowed, so that its price is.
    (pod,) = foundry.provider.all_pods
    assert (pod.terminate_after - pod.created_at).total_seconds() <= 240 + 180
    assert KEY not in told.out + told.err
    assert not list((foundry.home / "smoke").iterdir())


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("script", "fault", "says"),
    [
        (PodScript(until_running=None), None, "the job ended with"),
        (PodScript(until_running=0, num_gpus=0), None, "the job ended with"),
        (None, NO_BALANCE, "balance is too low"),
        (None, NO_CAPACITY, "no candidate could be rented"),
        (None, INVALID, "refused: create"),
    ],
    ids=["stuck image", "zero GPUs", "no balance", "no capacity", "not a request"],
)
def test_smoke_exits_with_8_and_leaves_no_pod(
    foundry: Foundry, capsys: pytest.CaptureFixture[str], script: PodScript | None, fault: object,
    says: str,
) -> None:  # fmt: skip
    foundry.provider.pod_scripts.extend([script] * 30 if script else [])
    foundry.provider.script("create", *[fault] * 60)

    code = foundry.scf("pods", "smoke", "--max-usd", "0.5", "--timeout", "10")

    assert code == 8
    assert foundry.provider.alive() == []
    # In the home's book, so that the reaper knows its lease, should the command be killed.
    (record,) = PodFiles(foundry.home / "runpod").all()
    assert record.job_id.startswith("smoke-")
    assert all(pod.until is not None for pod in record.rented)
    told = capsys.readouterr()
    assert "pod is gone                  yes" in told.out
    assert says in told.err


@pytest.mark.e2e
def test_ctrl_c_in_the_middle_of_a_smoke_test_leaves_no_pod(foundry: Foundry) -> None:
    """Exit code 130, once the pod is seen to be gone."""
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from scf.cli.main import main; main()"
    )
    command = ["pods", "smoke", "--max-usd", "1", "--timeout", "600", "--job-seconds", "240"]
    environment = python_env(RUNPOD_API_KEY=KEY)
    with subprocess.Popen(
        [sys.executable, "-c", program, *command, "--home", str(foundry.home)],
        env=environment, stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        lines = iter(child.stdout.readline, "")
        assert any(line.startswith("stage running") for line in lines)
        assert foundry.provider.alive()
        child.send_signal(signal.SIGINT)
        said = child.stdout.read()

    assert child.returncode == 130
    assert "pod is gone                  yes" in said
    assert foundry.provider.alive() == []


def test_smoke_asks_the_price_first(foundry: Foundry, capsys: pytest.CaptureFixture[str]) -> None:
    """Over --max-usd, or over a cap: exit 6, and nothing was ordered."""
    assert foundry.scf("pods", "smoke", "--max-usd", "0.01") == 6
    assert "over --max-usd 0.01" in capsys.readouterr().err
    foundry.scf("budget", "set", "usd_day", "0.01")
    assert foundry.scf("pods", "smoke", "--max-usd", "1") == 6
    assert "of 0.01 USD of this day" in capsys.readouterr().err
    foundry.scf("lock", "--reason", "smoke")
    assert foundry.scf("pods", "smoke", "--max-usd", "1") == 4
    assert foundry.provider.count("create") == 0


def verdicts(foundry: Foundry, capsys: pytest.CaptureFixture[str], *options: str) -> dict:
    capsys.readouterr()
    code = foundry.scf("doctor", "--json", *options)
    out = capsys.readouterr().out
    assert KEY not in out
    found = json.loads(out)
    assert code == (0 if found["ok"] else 1)
    return {row["what"]: row for row in found["findings"]}


def test_doctor_says_what_is_there(foundry: Foundry, capsys: pytest.CaptureFixture[str]) -> None:
    found = verdicts(foundry, capsys)

    assert found["runpod key"]["detail"] == "from the environment (RUNPOD_API_KEY); accepted"
    for what in ("python", "home", "signing keys", "drive", "emergency lock", "balance", "clock",
                 "gpu", "account's ssh keys", "runpod image"):  # fmt: skip
        assert found[what]["verdict"] == "ok", found[what]
    assert "0.25 USD/h" in found["gpu"]["detail"]

    assert foundry.scf("doctor") == 0
    assert KEY not in capsys.readouterr().out


def test_doctor_says_what_a_cluster_costs_and_who_ends_it(
    foundry: Foundry, capsys: pytest.CaptureFixture[str]
) -> None:
    path = foundry.home / "scf.toml"
    path.write_text(path.read_text().replace("[runpod]\n", "[runpod]\nnodes = 3\n"))
    found = verdicts(foundry, capsys)

    assert "0.75 USD/h for 3 pods together" in found["gpu"]["detail"]
    assert found["cluster"]["verdict"] == "warn"
    assert "the reaper" in found["cluster"]["remedy"]


def test_doctor_names_what_is_wrong_and_what_to_do(
    foundry: Foundry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:  # fmt: skip
    foundry.provider.balance_usd = 0.1
    foundry.provider.ssh_keys = []
    foundry.home.chmod(0o755)
    key = next(p for p in (foundry.home / "keys").iterdir() if b"PRIVATE" in p.read_bytes())
    key.chmod(0o644)
    (tmp_path / "root").rename(tmp_path / "pulled")
    found = verdicts(foundry, capsys)

    assert found["balance"]["verdict"] == "fail"
    assert found["account's ssh keys"]["verdict"] == "warn"
    assert found["home"]["verdict"] == "warn"
    assert found["signing keys"]["remedy"].startswith("`chmod 600")
    assert found["drive"]["verdict"] == "fail"

    monkeypatch.setenv("RUNPOD_API_KEY", "rpa_WRONG")
    found = verdicts(foundry, capsys)["runpod key"]
    assert found["detail"] == "from the environment (RUNPOD_API_KEY); not accepted"
    assert "new API key" in found["remedy"]
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert "no RunPod API key" in verdicts(foundry, capsys)["runpod key"]["detail"]


def test_doctor_offline_asks_nobody(foundry: Foundry, capsys: pytest.CaptureFixture[str]) -> None:
    found = verdicts(foundry, capsys, "--offline")

    assert found["runpod key"]["verdict"] == "warn"
    assert foundry.provider.calls == []


# Where the key comes from.


def test_the_environment_goes_before_the_file(tmp_path: Path) -> None:
    path = tmp_path / "runpod.key"
    path.touch(mode=0o600)
    path.write_text("rpa_FILE\n")

    assert find_key(tmp_path, "", {"RUNPOD_API_KEY": "rpa_ENV"}).key == "rpa_ENV"
    found = find_key(tmp_path, "", {})
    assert found.key == "rpa_FILE"
    assert "rpa_FILE" not in repr(found)
    assert str(path) in found.origin


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o644])
def test_a_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "mine.key"
    path.write_text("rpa_FILE\n")
    path.chmod(mode)

    with pytest.raises(ApiKeyMissing, match="others may read") as caught:
        find_key(tmp_path, str(path), {})
    assert f"{stat.S_IMODE(path.stat().st_mode):04o}" in str(caught.value)
    assert "rpa_FILE" not in str(caught.value)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").touch(mode=0o600)
    (tmp_path / "link").symlink_to(tmp_path / "real")

    with pytest.raises(ApiKeyMissing, match="cannot be read"):
        find_key(tmp_path, str(tmp_path / "link"), {})


def test_the_keyring_is_asked_last(tmp_path: Path) -> None:
    """With a real keyring of the library, in memory."""
    keyring = pytest.importorskip("keyring")
    from keyring.backend import KeyringBackend

    class InMemory(KeyringBackend):
        priority = 1
        kept: ClassVar = {("scf", "runpod"): "rpa_RING"}

        def get_password(self, service: str, username: str) -> str | None:
            return self.kept.get((service, username))

        def set_password(self, service: str, username: str, password: str) -> None:
            self.kept[service, username] = password

    before = keyring.get_keyring()
    keyring.set_keyring(InMemory())
    try:
        found = find_key(tmp_path, "", {})
    finally:
        keyring.set_keyring(before)
    assert found.key == "rpa_RING"
    assert "keyring" in found.origin


def test_no_key_says_how_to_give_one(tmp_path: Path) -> None:
    with pytest.raises(ApiKeyMissing) as caught:
        find_key(tmp_path, "", {})
    assert "umask 077" in str(caught.value.remedy)


def test_the_key_is_no_setting(foundry: Foundry, capsys: pytest.CaptureFixture[str]) -> None:
    """It would lie in backups and on pages."""
    path = foundry.home / "scf.toml"
    path.write_text(path.read_text() + f'api_key = "{KEY}"\n')

    assert foundry.scf("pods") == 2
    told = capsys.readouterr().err
    assert "does not stand here" in told
    assert KEY not in told
