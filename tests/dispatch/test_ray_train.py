"""Training on Ray as far as it needs no cluster: what becomes of us when Ray's driver does not."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from scf.core.canonical import canonical_json
from scf.core.errors import InputError
from scf.core.identity import sha256_hex
from scf.daemon.gpu_worker import reason_of
from scf.dispatch import ray_train
from scf.dispatch.bundle import Bundle
from scf.dispatch.job import ExitReason
from scf.dispatch.process import HeldFile
from scf.dispatch.ray_driver_train import NodesMissing, _name_of, choose, tree_of
from scf.dispatch.ray_node import Keeper, train
from scf.dispatch.ray_nodes import RayGroup, selectors
from support.processes import python_env
from support.waiting import wait_for

# The real launcher, with something else than Ray behind it.
LAUNCHER = """
import subprocess, sys
from scf.dispatch import ray_train
real = subprocess.Popen
def start(command, **what):
    code = "import json, os, socket, sys, time; from pathlib import Path;" \\
        "from scf.dispatch.ray_driver import send_frame;" \\
        f"channel = socket.socket(fileno={command[3]}); " + sys.argv[1]
    return real([sys.executable, "-c", code], **what)
subprocess.Popen = start
sys.exit(ray_train.main(["module"], silence_s=float(sys.argv[2])))
"""


def launch(folder: Path, then: str, *, silence_s: float = 60.0) -> "subprocess.Popen[bytes]":
    """The launcher, in a bundle, over a driver that does this."""
    command = [sys.executable, "-c", LAUNCHER, then, str(silence_s)]
    return subprocess.Popen(command, cwd=folder, env=python_env(), stderr=subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("then", "error", "told"),
    [
        ("os._exit(0)", "PeerLost", "exit code 0"),
        ("os.kill(os.getpid(), 9)", "PeerLost", "exit code -9"),
        ("send_frame(channel, b'X', b'{\"error\": \"RayFailed\", \"message\": \"no GPUs\"}')",
         "RayFailed", "no GPUs"),
    ],
)  # fmt: skip
def test_an_end_of_the_driver_is_no_end_of_the_training(
    tmp_path: Path, then: str, error: str, told: str
) -> None:
    """Exit code 0 too, which Ray gives when its node dies."""
    assert launch(tmp_path, then).wait(60) == 1

    note = Bundle(tmp_path).last_progress()
    assert (note["event"], note["error"]) == ("error", error)
    assert told in note["message"]


def test_done_is_what_the_driver_says_is_done(tmp_path: Path) -> None:
    assert launch(tmp_path, "send_frame(channel, b'.'); send_frame(channel, b'+')").wait(60) == 0
    assert Bundle(tmp_path).last_progress() == {}


def test_a_silent_driver_is_ended(tmp_path: Path) -> None:
    then = "Path('pid').write_text(str(os.getpid())); send_frame(channel, b'.'); time.sleep(600)"
    assert launch(tmp_path, then, silence_s=3.0).wait(120) == 1
    assert "said nothing for 3 s" in Bundle(tmp_path).last_progress()["message"]
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_what_the_training_said_itself_stands(tmp_path: Path) -> None:
    (tmp_path / "progress.ndjson").write_text('{"event": "error", "error": "Diverged"}\n')
    assert launch(tmp_path, "os._exit(1)").wait(60) == 1
    assert Bundle(tmp_path).last_progress()["error"] == "Diverged"


def test_sigterm_becomes_a_file_and_the_run_may_end_in_order(tmp_path: Path) -> None:
    then = (
        "Path('begun').touch()\n"
        "while not Path('.stop').exists(): time.sleep(0.05)\n"
        "send_frame(channel, b'+')"
    )
    launcher = launch(tmp_path, then)
    wait_for((tmp_path / "begun").exists, what="the driver to begin", limit_s=60)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(60) == 0
    assert not (tmp_path / ray_train.STOP_NAME).exists()


def test_a_lost_peer_is_a_lost_attempt() -> None:
    """A new try goes on from the last checkpoint; the job itself is not to blame."""
    note = {"event": "error", "error": "PeerLost", "message": "process 0 of 2 lost the others"}
    reason, detail = reason_of(1, note, "torchrun's own table", was_oom_killed=False)
    assert (reason, detail) == (ExitReason.LOST, "process 0 of 2 lost the others")


def test_the_group_is_told_and_read_again() -> None:
    group = RayGroup(3, 2, 1.5, 1.0)
    assert RayGroup.of(group.environment()) == group
    assert RayGroup.of({}) is None
    assert group.world_size == 6
    for told in ("1", "0 1 1 1", "1 1 one 1", "1 0 1 0"):
        with pytest.raises(InputError):
            RayGroup.of({"SCF_RAY_GROUP": told})


def test_the_first_nodes_processes_come_first() -> None:
    assert selectors("a", ["b"], 2) == [{"ray.io/node-id": node} for node in "aabb"]


def fake_ray(*nodes: dict, own: str = "a") -> SimpleNamespace:
    context = SimpleNamespace(get_node_id=lambda: own)
    return SimpleNamespace(nodes=lambda: list(nodes), get_runtime_context=lambda: context)


def node(name: str, cpus: float = 2, *, alive: bool = True) -> dict:
    resources = {"CPU": cpus} if cpus else {}
    return {"NodeID": name, "Alive": alive, "NodeManagerAddress": f"10.0.0.{ord(name)}",
            "Resources": resources}  # fmt: skip


def test_those_that_help_are_alive_able_and_always_the_same() -> None:
    ray = fake_ray(node("d"), node("b", alive=False), node("c", 1), node("a"), node("e"))
    first, others = choose(ray, RayGroup(nodes=2, procs=2))
    assert (first["NodeID"], [one["NodeID"] for one in others]) == ("a", ["d"])


@pytest.mark.parametrize(
    ("nodes", "told"),
    [([node("a")], "2 nodes are asked for, and the cluster has 1: 10.0.0.97"),
     ([node("a", 0), node("b")], "training begins here")],
)  # fmt: skip
def test_too_few_nodes_are_said(nodes: list[dict], told: str) -> None:
    with pytest.raises(NodesMissing, match=told):
        choose(fake_ray(*nodes), RayGroup(nodes=2))


def test_an_error_of_ray_has_a_name() -> None:
    """Lost is what Ray says of a process; what the process said itself is not."""

    def failed(*names: str) -> Exception:
        failures = {n: type(name, (Exception,), {})() for n, name in enumerate(names)}
        return type("WorkerGroupError", (Exception,), {"worker_failures": failures})()

    assert _name_of(failed("UserExceptionWithTraceback", "ActorUnavailableError")) == "PeerLost"
    assert _name_of(failed("WorkerHealthCheckFailedError")) == "PeerLost"
    assert _name_of(type("ActorDiedError", (Exception,), {})()) == "PeerLost"
    assert _name_of(failed("UserExceptionWithTraceback")) == "RayFailed"
    assert _name_of(ValueError()) == "RayFailed"
    assert _name_of(NodesMissing("two")) == "NodesMissing"


def test_a_helper_keeps_what_it_got_and_not_the_bundle(tmp_path: Path) -> None:
    """Content by content, in pieces; checked; laid as the first node's; gone when the job is over."""
    bundle = tmp_path / "root" / "jobs" / "job-1"
    for name, text in (("inputs/plan.json", b"{}"), ("vault/a/shard", b"fossils")):
        (bundle / name).parent.mkdir(parents=True, exist_ok=True)
        (bundle / name).write_bytes(text)
    tree = tree_of(bundle)
    assert tree[0] == ["inputs/plan.json", sha256_hex(b"{}"), "link"]

    keeper = Keeper(str(tmp_path / "root"), "10.0.0.2", "job-1")
    wanted = [(sha256, (bundle / name).stat().st_size) for name, sha256, _ in tree]
    assert set(keeper.missing(wanted)) == {row[1] for row in tree}
    for name, sha256, _ in tree:
        data = (bundle / name).read_bytes()
        keeper.write(sha256, 0, data[:1])
        keeper.write(sha256, 1, data[1:])
    assert keeper.receive([row[1] for row in tree]) == []
    laid = Path(keeper.lay(tree, {"job_id": "job-1"}))
    assert laid == tmp_path / "root/helping-10.0.0.2/jobs/job-1"
    assert (laid / "vault/a/shard").read_bytes() == b"fossils"
    assert HeldFile(laid / "worker.lock").is_held

    keeper.forget()
    assert not laid.exists()
    assert keeper.missing(wanted) == []
    keeper.write(wanted[0][0], 0, b"[]")
    assert keeper.receive([wanted[0][0]]) == [wanted[0][0]]


def test_each_node_reads_its_own_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of the first node's bundle are those of this node's."""
    (tmp_path / "there").mkdir()
    heard: list[object] = []
    module = SimpleNamespace(main=lambda arguments, stop_file: heard.append((arguments, stop_file)))
    monkeypatch.setitem(sys.modules, "made_up", module)
    monkeypatch.setattr("scf.dispatch.ray_node._node_id", lambda: "b")
    monkeypatch.chdir(tmp_path)
    told = {
        "module": "made_up", "arguments": ["--vault", "/first/vault", "--out", "outputs/c"],
        "bundle": "/first", "bundles": {"b": str(tmp_path / "there")}, "stop": "/first/.stop",
    }  # fmt: skip

    train(told)

    assert heard == [
        (["--vault", f"{tmp_path}/there/vault", "--out", "outputs/c"], Path("/first/.stop"))
    ]
    assert Path.cwd() == tmp_path / "there"
    module.main = lambda *_, **__: 5
    with pytest.raises(RuntimeError, match="has ended with 5"):
        train(told)
    assert canonical_json(told)  # what travels is plain
