"""The ssh door's own promises: cuts, restarts, strangers, and what a hostile box may not do."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from scf.control.emergency_lock import EmergencyLock
from scf.core.canonical import canonical_json
from scf.core.clock import SystemClock
from scf.core.errors import DoorUnavailable, UsageError
from scf.core.identity import sha256_hex
from scf.dispatch import sending
from scf.dispatch.bundle import Bundle, make_bundle
from scf.dispatch.dispatcher import BundleMismatch
from scf.dispatch.follower import FollowSettings
from scf.dispatch.job import ExitReason, JobInput, JobPhase, JobSpec
from scf.dispatch.returned import ReturnLimits
from scf.dispatch.ssh import SshDoor
from scf.dispatch.transfer import BoxNotTrusted, BoxRefusedUs, BoxUnreachable, SshBox, SshLink
from scf.storage.partitions import Drive, Folder
from support.hostile_worker import write_hostile
from support.remote_jobs import ended, tiny
from support.ssh_boxes import IMPATIENT, QUICK, Sshd, session_sshd, start_sshd
from support.waiting import is_gone, wait_for

pytestmark = pytest.mark.e2e

PLAN = JobInput("plan.json", "inputs/plan.json")


@pytest.fixture
def sshd() -> Sshd:
    return session_sshd()


@pytest.fixture
def own_sshd(tmp_path: Path) -> Iterator[Sshd]:
    """A server of this test's own, to be cut off."""
    server = start_sshd(tmp_path / "sshd")
    yield server
    server.stop()


@pytest.fixture
def places(tmp_path: Path) -> tuple[Folder, Path]:
    (tmp_path / "home").mkdir()
    return Folder.at(tmp_path / "jobs"), tmp_path / "home"


def open_door(
    box: SshBox, places: tuple[Folder, Path], settings: FollowSettings = QUICK
) -> SshDoor:
    return SshDoor(box, *places, settings=settings)


def started(places: tuple[Folder, Path], job_id: str = "job-1") -> int:
    path = places[0].path / job_id / "outputs" / "started"
    return int(wait_for(lambda: path.exists() and path.read_text(), what="the program to start"))


def vault_job(tmp_path: Path, sizes: list[int], job_id: str = "job-1") -> tuple[JobSpec, dict]:
    """A job that reads a vault of shards with these sizes, and the files that go with it."""
    vault = tmp_path / "vault"
    shards = []
    for index, size in enumerate(sizes):
        data = os.urandom(size)
        path = f"shards/{index:02x}/{index}.ndjson"
        (vault / path).parent.mkdir(parents=True, exist_ok=True)
        (vault / path).write_bytes(data)
        shards.append({"path": path, "sha256": sha256_hex(data), "size_bytes": size})
    plan = canonical_json({"schema": "scf.plan/1", "shards": shards})
    given = replace(PLAN, sha256=sha256_hex(plan))
    spec = replace(tiny(job_id), vault=str(vault), inputs=(given,))
    return spec, {"plan.json": plan}


def cached(tmp_path: Path) -> dict[str, Path]:
    return {path.name: path for path in (tmp_path / "box" / "shards").iterdir()}


# What travels.


def test_a_box_gets_the_shards_of_the_plan_and_no_others(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """The worker over there finds them in the bundle, under the names of the plan."""
    spec, files = vault_job(tmp_path, [1000, 2000])
    (tmp_path / "vault" / "shards" / "secret.ndjson").write_text("not in the plan")
    link = SshLink(sshd.box(tmp_path / "box"), tmp_path / "ssh", "home-1")
    bundle = places[0].path / "job-1"
    make_bundle(places[0], spec, files)
    sent = sending.send(
        link, Bundle(bundle), staging=tmp_path / "staging", code=None, is_stopped=lambda: False
    )
    assert sent is not None
    sending.start(link, sent, worker=("/bin/true",), environment={})

    there = tmp_path / "box" / "jobs" / "job-1"
    spec_there = json.loads((there / "spec.json").read_text())
    names = sorted(
        p.relative_to(there / "vault").as_posix()
        for p in (there / "vault").rglob("*")
        if p.is_file()
    )
    assert names == ["shards/00/0.ndjson", "shards/01/1.ndjson"]
    assert spec_there["vault"] == str(there / "vault")
    assert (there / "inputs" / "plan.json").read_bytes() == files["plan.json"]


def test_a_second_run_sends_only_what_is_missing(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """Shards that are in the box's cache stay as they are; only the new one travels."""
    door = open_door(sshd.box(tmp_path / "box"), places)
    spec, files = vault_job(tmp_path, [1000, 2000])
    door.submit(spec, files)
    assert ended(door).reason is ExitReason.COMPLETED
    before = {name: path.stat().st_ino for name, path in cached(tmp_path).items()}

    plan = json.loads(files["plan.json"])
    data = b"a new shard"
    (tmp_path / "vault" / "shards" / "new.ndjson").write_bytes(data)
    plan["shards"].append(
        {"path": "shards/new.ndjson", "sha256": sha256_hex(data), "size_bytes": len(data)}
    )
    text = canonical_json(plan)
    again = replace(spec, job_id="job-2", inputs=(replace(PLAN, sha256=sha256_hex(text)),))
    door.submit(again, {"plan.json": text})
    assert ended(door, "job-2").reason is ExitReason.COMPLETED

    after = {name: path.stat().st_ino for name, path in cached(tmp_path).items()}
    assert after.keys() - before.keys() == {sha256_hex(data), sha256_hex(text)}
    assert before.items() <= after.items()


def test_the_cache_keeps_to_its_budget(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """What was used longest ago goes; what the job needs stays."""
    door = open_door(sshd.box(tmp_path / "box", cache_max_bytes=8_000), places)
    old, old_files = vault_job(tmp_path, [5000])
    door.submit(old, old_files)
    ended(door)
    new, new_files = vault_job(tmp_path, [4000], "job-2")
    door.submit(new, new_files)

    assert ended(door, "job-2").reason is ExitReason.COMPLETED
    sizes = sorted(path.stat().st_size for path in cached(tmp_path).values())
    assert sizes[-1] == 4000
    assert sum(sizes) <= 8_000


def test_a_bug_in_a_follower_ends_the_job_with_its_reason(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never a silent thread, and never a loop without end."""
    door = open_door(sshd.box(tmp_path / "box"), places)
    monkeypatch.setattr(sending, "send", lambda *_, **__: {}["no such key"])
    door.submit(tiny(), {})

    record = ended(door)

    assert record.reason is ExitReason.WORKER_ERROR
    assert "KeyError: 'no such key'" in record.detail


def test_a_shard_that_is_not_what_the_plan_says_is_bad_data(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """It is noticed over there, before anything is used, and nothing is started."""
    door = open_door(sshd.box(tmp_path / "box"), places)
    spec, files = vault_job(tmp_path, [1000])
    shard = tmp_path / "vault" / "shards" / "00" / "0.ndjson"
    shard.write_bytes(b"x" * 1000)
    door.submit(spec, files)

    record = ended(door)

    assert record.reason is ExitReason.BAD_DATA
    assert "0.ndjson" in record.detail
    assert not (tmp_path / "box" / "jobs" / "job-1").exists()


def test_the_code_travels_as_a_wheel_and_is_what_runs(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """The worker imports scf from the folder named by the wheel's digest; the receipt says so."""
    door = open_door(sshd.box(tmp_path / "box"), places, replace(QUICK, code=tmp_path / "code"))
    door.submit(tiny(), {})
    assert ended(door).reason is ExitReason.COMPLETED

    digest = door.poll("job-1").placement["code"].removeprefix("sha256:")
    wheel = tmp_path / "code" / f"{digest}.whl"
    assert sha256_hex(wheel.read_bytes()) == digest
    code = tmp_path / "box" / "code" / digest
    assert (code / "scf" / "daemon" / "gpu_worker.py").is_file()
    # The worker compiled it as it ran.
    assert list((code / "scf" / "daemon" / "__pycache__").glob("gpu_worker.*.pyc"))


# Cuts and restarts.


def test_a_transfer_that_is_cut_goes_on_where_it_was(
    own_sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """No torn file under a final name, and what had arrived is not sent again."""
    size = 12_000_000
    box = own_sshd.box(tmp_path / "box", bandwidth_kib_s=4000)
    door = open_door(box, places)
    spec, files = vault_job(tmp_path, [size])
    name = json.loads(files["plan.json"])["shards"][0]["sha256"]
    incoming = tmp_path / "box" / "incoming"

    def arriving() -> int:
        rows = [p for p in incoming.rglob("*") if p.is_file() and name in p.name]
        return sum(p.stat().st_size for p in rows)

    door.submit(spec, files)
    wait_for(lambda: arriving() > 2_000_000, what="a part to arrive")
    own_sshd.stop()
    wait_for(lambda: list(incoming.rglob(f".rsync-partial/{name}")), what="the part to be kept")
    kept = arriving()
    assert not (tmp_path / "box" / "shards" / name).exists()
    assert not [p for p in incoming.rglob(name) if p.parent.name != ".rsync-partial"]
    own_sshd.start()

    assert ended(door).reason is ExitReason.COMPLETED
    assert 1_000_000 < kept < size
    shard = tmp_path / "box" / "shards" / name
    assert sha256_hex(shard.read_bytes()) == name
    door.close()


def test_a_job_outlives_its_link_and_its_daemon(
    own_sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """kill -9 of the daemon, the link cut meanwhile: the next daemon finds the job and its work."""
    box, go = own_sshd.box(tmp_path / "box"), tmp_path / "go"
    script = f"""
import os, signal, sys, time
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from pathlib import Path
from scf.dispatch.job import JobSpec
from scf.dispatch.ssh import SshDoor
from scf.dispatch.transfer import SshBox
from scf.storage.partitions import Folder
from support.ssh_boxes import QUICK
door = SshDoor({box!r}, Folder.at(Path({str(places[0].path)!r})), Path({str(places[1])!r}), settings=QUICK)
door.submit(JobSpec(job_id="job-1", kind="tiny", deadline_s=600.0, config={{"until": {str(go)!r}}}), {{}})
while not Path({str(places[0].path)!r}, "job-1/outputs/started").exists():
    time.sleep(0.05)
os.kill(os.getpid(), signal.SIGKILL)
""".replace("PosixPath", "Path")
    result = subprocess.run([sys.executable, "-c", script], check=False, timeout=240)
    assert result.returncode == -signal.SIGKILL
    own_sshd.stop()

    door = open_door(box, places, IMPATIENT)
    wait_for(lambda: _is_unavailable(door), what="the door to say that it learns nothing")
    own_sshd.start()
    go.touch()

    assert ended(door).reason is ExitReason.COMPLETED
    assert (door.collect("job-1") / "outputs" / "count").read_text() == "once\n"
    door.close()


def _is_unavailable(door: SshDoor) -> bool:
    try:
        door.poll("job-1")
    except DoorUnavailable:
        return True
    return False


def test_a_job_whose_processes_are_killed_over_there_is_lost_and_its_work_is_here(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """What it had written comes back, for the next try; it is not started a second time."""
    door = open_door(sshd.box(tmp_path / "box"), places)
    door.submit(tiny(sleep_s=240), {})
    started(places)
    os.killpg(door.poll("job-1").placement["pid"], signal.SIGKILL)

    assert ended(door).reason is ExitReason.LOST
    assert (places[0].path / "job-1" / "outputs" / "started").exists()
    door.submit(tiny(sleep_s=240), {})
    assert ended(door).reason is ExitReason.LOST


def test_nothing_of_an_ended_job_stays_on_the_box(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """Its bundle is taken away; that it ended stays known, so that it never starts again."""
    door = open_door(sshd.box(tmp_path / "box"), places)
    door.submit(tiny(), {})
    ended(door)
    box = tmp_path / "box"

    wait_for(lambda: not list((box / "jobs").iterdir()), what="the bundle to be taken away")
    assert (box / "ended" / "job-1").exists()
    # A daemon that lost its home and kept its drive:
    shutil.rmtree(places[1])
    places[1].mkdir()
    again = open_door(sshd.box(box), places)
    again.submit(tiny(), {})
    assert ended(again).reason is ExitReason.COMPLETED
    assert (again.collect("job-1") / "outputs" / "count").read_text() == "once\n"


def test_the_emergency_lock_ends_the_job_over_there(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """The follower sees the lock by itself, and ends every process."""
    door = open_door(sshd.box(tmp_path / "box"), places)
    door.submit(tiny(sleep_s=240, deaf=True), {})
    pid = started(places)
    EmergencyLock(places[1]).set("smoke", now=SystemClock().now())

    record = ended(door)

    assert record.reason is ExitReason.CANCELLED
    assert "emergency lock" in record.detail
    wait_for(lambda: is_gone(pid), what="the program to be gone")


def test_a_job_can_be_cancelled_when_the_drive_has_gone(sshd: Sshd, tmp_path: Path) -> None:
    """What is needed for that lies on the internal disk; no folder appears instead of the drive."""
    drive = Drive.scaffold(tmp_path / "root")
    (tmp_path / "home").mkdir()
    places = (drive.folder("system_cache", "jobs"), tmp_path / "home")
    door = open_door(sshd.box(tmp_path / "box"), places)
    door.submit(tiny(sleep_s=240), {})
    pid = started(places)
    drive.root.rename(tmp_path / "pulled")

    door.cancel("job-1", at_once=True)

    wait_for(lambda: is_gone(pid), what="the program to be gone")
    assert not drive.root.exists()
    (tmp_path / "pulled").rename(drive.root)
    assert ended(door).reason is ExitReason.CANCELLED


# Strangers.


def test_a_machine_without_the_host_key_given_in_advance_is_not_talked_to(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """No trust on first use: nothing is started, nothing is sent, no key is learnt."""
    key = (sshd.folder / "id.pub").read_text().split()
    box = sshd.box(tmp_path / "box", host_keys=(f"{key[0]} {key[1]}",))

    for _ in range(2):
        with pytest.raises(BoxNotTrusted, match="host key"):
            open_door(box, places).submit(tiny(), {})
    assert not (tmp_path / "box").exists()
    assert open_door(box, places).poll("job-1").phase is JobPhase.ABSENT


def test_a_box_that_does_not_know_our_key_says_so(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True
    )
    with pytest.raises(BoxRefusedUs, match="Permission denied"):
        open_door(sshd.box(tmp_path / "box", identity=tmp_path / "other"), places).submit(
            tiny(), {}
        )


def test_a_box_that_is_off_is_an_unavailable_door(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """Nothing was started; the same job starts once the box is there."""
    with pytest.raises(BoxUnreachable):
        open_door(sshd.box(tmp_path / "box", port=1), places).submit(tiny(), {})

    door = open_door(sshd.box(tmp_path / "box"), places)
    door.submit(tiny(), {})
    assert ended(door).reason is ExitReason.COMPLETED


@pytest.mark.parametrize(
    "change",
    [
        {"host": "-oProxyCommand=evil"},
        {"host": "a b"},
        {"user": "$(id)"},
        {"root": "/tmp/x; rm -rf /"},
        {"python": "python3 -c evil"},
        {"host_keys": ()},
        {"host_keys": ("ssh-ed25519 AAAA\n* ssh-ed25519 BBBB",)},
    ],
)
def test_settings_that_would_say_something_else_to_a_shell_are_refused(
    tmp_path: Path, change: dict[str, object]
) -> None:
    good = {
        "name": "box",
        "host": "localhost",
        "user": "me",
        "host_keys": ("ssh-ed25519 AAAA",),
    }
    with pytest.raises(UsageError):
        SshBox(**(good | change))


def test_nothing_of_our_environment_or_request_is_in_a_command_line(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A canary in the environment and in the job's config is seen in no process of the machine."""
    monkeypatch.setenv("RUNPOD_API_KEY", "canary-in-the-environment")
    door = open_door(sshd.box(tmp_path / "box"), places)
    door.submit(tiny(sleep_s=0.5), {})
    seen = b""
    while door.poll("job-1").phase is JobPhase.RUNNING:
        for path in Path("/proc").glob("[0-9]*"):
            try:
                command = (path / "cmdline").read_bytes()
                seen += command
                if b"ssh" in command or b"tiny_worker" in command:
                    seen += (path / "environ").read_bytes()
            except OSError:
                continue
    assert b"ssh" in seen
    # The tests' own process has it; what it started has not.
    assert b"canary-in-the-environment" not in seen


# A hostile box: it runs what it likes under our name, so the agent's answers are anything.


@pytest.mark.parametrize(
    ("harm", "reason", "message"),
    [
        ("(outputs / 'count').write_text('twice\\n')", "completed", "expected sha256"),
        ("(outputs / 'l').symlink_to('/etc/passwd')", "worker_error", "neither a file"),
        ("promise('outputs/../../../evil')", "worker_error", "not inside outputs"),
        ("exit_path.write_bytes(bytes(17 * 2**20))", "worker_error", "exit record"),
    ],
)
def test_what_a_hostile_box_gives_back_is_refused(
    sshd: Sshd,
    places: tuple[Folder, Path],
    tmp_path: Path,
    harm: str,
    reason: str,
    message: str,
) -> None:
    """With the reason; and nothing appears outside the bundle."""
    worker = tmp_path / "hostile.py"
    write_hostile(worker, harm)
    box = tmp_path / "box"
    door = open_door(sshd.box(box), places, replace(QUICK, worker=("{python}", str(worker))))
    door.submit(tiny(), {})

    record = ended(door)

    assert record.reason == reason
    with pytest.raises(BundleMismatch) as refusal:
        door.collect("job-1")
    assert message in f"{record.detail} {refusal.value}"
    assert sorted(p.name for p in places[0].path.iterdir()) == ["job-1"]
    assert not (tmp_path / "evil").exists()


def test_an_endless_log_comes_back_as_its_end(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    limits = ReturnLimits(small_max_bytes=1000)
    door = open_door(sshd.box(tmp_path / "box"), places, replace(QUICK, limits=limits))
    door.submit(tiny(say="x" * 100_000 + "the end"), {})
    ended(door)

    log = (places[0].path / "job-1" / "worker.log").read_bytes()

    assert len(log) <= 65_536
    assert b"the end" in log


def test_outputs_over_the_limit_end_the_job(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    """Also while it runs: it is ended over there, and nothing of it is fetched."""
    limits = ReturnLimits(file_max_bytes=3)
    door = open_door(sshd.box(tmp_path / "box"), places, replace(QUICK, limits=limits))
    door.submit(tiny(sleep_s=240, checkpoint="far too long"), {})

    record = ended(door)

    assert record.reason is ExitReason.WORKER_ERROR
    assert "over the limit" in record.detail
    assert not list((places[0].path / "job-1" / "outputs").iterdir())


def test_a_job_without_its_plan_is_bad_data(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    door = open_door(sshd.box(tmp_path / "box"), places)
    door.submit(replace(tiny(), vault=str(tmp_path)), {})

    record = ended(door)

    assert record.reason is ExitReason.BAD_DATA
    assert "plan.json" in record.detail


def test_an_input_error_names_a_folder_that_is_not_there(
    sshd: Sshd, places: tuple[Folder, Path], tmp_path: Path
) -> None:
    door = open_door(sshd.box(tmp_path / "box"), places)
    door.submit(replace(tiny(), inputs=(JobInput("parent", str(tmp_path / "none")),)), {})

    assert "parent" in ended(door).detail


# Two machines.


def test_a_job_on_another_machine_across_a_cut_cable(
    places: tuple[Folder, Path], tmp_path: Path, two_machines: str
) -> None:
    """Across two network namespaces: the cable is pulled while the job runs, and put back."""
    server = start_sshd(tmp_path / "sshd", host="10.77.9.2", netns=two_machines)
    try:
        box, go = server.box(tmp_path / "box", keepalive_s=1, connect_timeout_s=2), tmp_path / "go"
        door = open_door(box, places, IMPATIENT)
        door.submit(tiny(until=str(go)), {})
        started(places)
        _ip("-n", two_machines, "link", "set", "scf_there", "down")
        wait_for(lambda: _is_unavailable(door), what="the door to notice")
        _ip("-n", two_machines, "link", "set", "scf_there", "up")
        go.touch()

        assert ended(door).reason is ExitReason.COMPLETED
        assert (door.collect("job-1") / "outputs" / "count").read_text() == "once\n"
        door.close()
    finally:
        server.stop()


@pytest.fixture
def two_machines() -> Iterator[str]:
    """A network namespace with a cable to this one; skipped where that is not allowed."""
    name = f"scf_{os.getpid()}"
    try:
        _ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces need root on Linux and iproute2")
    try:
        _ip("link", "add", "scf_here", "type", "veth", "peer", "name", "scf_there", "netns", name)
        _ip("addr", "add", "10.77.9.1/24", "dev", "scf_here")
        _ip("-n", name, "addr", "add", "10.77.9.2/24", "dev", "scf_there")
        _ip("link", "set", "scf_here", "up")
        _ip("-n", name, "link", "set", "scf_there", "up")
        _ip("-n", name, "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "link", "del", "scf_here"], capture_output=True, timeout=60)
        subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=60)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=60)
