"""Ingest on a Ray cluster of two nodes, as a person would call it."""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from scf.cli.main import run
from scf.core.errors import MissingTool, UsageError
from scf.daemon.setup import FoundryPlaces, initialise
from support.fossils import fossil_line, write_fossils
from support.processes import python_env
from support.waiting import wait_for

START_S, STOP_S, RUN_S = 120, 60, 180
NODES = Path(__file__).parents[1] / "support" / "ray_nodes.py"


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from scf.dispatch.ray_cluster import RayCluster

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingTool, match="ray, which is not installed") as refused:
        RayCluster("auto")
    assert "scf[ray]" in str(refused.value.remedy)


def test_the_address_of_a_client_is_refused() -> None:
    from scf.dispatch.ray_cluster import RayCluster

    with pytest.raises(UsageError, match="HOST:PORT or auto"):
        RayCluster("ray://somewhere:10001")


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[str, int]]:
    """Address and head raylet of two nodes; they are gone afterwards, whatever happens."""
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    nodes = subprocess.Popen(
        [sys.executable, str(NODES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=python_env(),
        start_new_session=True,
        text=True,
    )
    assert nodes.stdin is not None
    assert nodes.stdout is not None
    try:
        ready, _, _ = select.select([nodes.stdout], [], [], START_S)
        address, _, raylet = nodes.stdout.readline().strip().partition(" ") if ready else ("",) * 3
        assert address, f"two Ray nodes did not start within {START_S} s"
        yield address, int(raylet)
    finally:
        nodes.stdin.close()
        try:
            nodes.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(nodes.pid, signal.SIGKILL)
            nodes.wait(STOP_S)
        nodes.stdout.close()


@pytest.fixture
def cluster(nodes: tuple[str, int]) -> str:
    """The address of two nodes."""
    return nodes[0]


def scf(places: FoundryPlaces, *arguments: object) -> subprocess.CompletedProcess[str]:
    where = ["--home", str(places.home), "--root", str(places.root)]
    return subprocess.run(
        [sys.executable, "-m", "scf.cli.main", *map(str, arguments), *where],
        capture_output=True,
        text=True,
        timeout=RUN_S,
        env=python_env(),
    )


def shards(places: FoundryPlaces) -> dict[str, bytes]:
    vault = places.root / "fossil_vault"
    return {p.relative_to(vault).as_posix(): p.read_bytes() for p in vault.rglob("*.ndjson")}


def num_committed(places: FoundryPlaces) -> int:
    journal = places.root / "fossil_vault" / "journal.log"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


@pytest.mark.e2e
@pytest.mark.slow
def test_two_nodes_ingest_what_one_machine_would(
    cluster: str, foundry: FoundryPlaces, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Same counts, same root, same shards byte for byte; both nodes have read."""
    folder = tmp_path / "in"
    rng = np.random.default_rng(0)
    for number in range(6):
        start = 200 * number
        write_fossils(folder / f"f{number}.ndjson", range(start, start + 220))  # they overlap
        values = rng.standard_normal((300, 16, 16)).astype(np.float32)
        np.savez(folder / f"g{number}.npz", u=values)
    (folder / "bad.ndjson").write_bytes(b"{\n" + fossil_line(9999))
    other = initialise(tmp_path / "home2", tmp_path / "drive2")

    told = scf(foundry, "ingest", folder, "--json", "--ray", cluster)
    assert told.returncode == 0, told.stderr
    assert run(["ingest", str(folder), "--json", "--home", str(other.home), "--root",
                str(other.root)]) == 0  # fmt: skip
    alone = json.loads(capsys.readouterr().out)

    assert json.loads(told.stdout) == alone
    assert alone["accepted"] == 220 + 5 * 200 + 6 * 300 + 1
    assert shards(foundry) == shards(other)

    again = json.loads(scf(foundry, "ingest", folder, "--json", "--ray", cluster).stdout)
    assert again["accepted"] == 0
    assert again["fossils_root"] == alone["fossils_root"]


PROBE = """
import sys, time
import scf.dispatch.ray_cluster as door

def work(number):
    import ray
    time.sleep(0.2)
    yield f"{number} {ray.get_runtime_context().get_node_id()}".encode()
    if number == 3:
        while True:
            yield b"x" * 100

with door.RayCluster(sys.argv[1], block_wait_s=60) as cluster:
    seen, nodes = [], set()
    for blocks in cluster.stream(work, [(n,) for n in range(8)]):
        number, node = next(blocks).split()
        seen.append(int(number))
        nodes.add(node)
    print(seen, len(nodes), cluster.num_cpus)
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_work_is_spread_over_the_nodes_and_comes_back_in_order(cluster: str) -> None:
    """What is left before its end is ended: an endless task does not hold the others up."""
    found = subprocess.run(
        [sys.executable, "-c", PROBE, cluster],
        capture_output=True,
        text=True,
        timeout=RUN_S,
        env=python_env(),
    )

    assert found.stdout.strip() == "[0, 1, 2, 3, 4, 5, 6, 7] 2 2", found.stderr


@pytest.mark.e2e
@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_said_to_be_so(
    foundry: FoundryPlaces, tmp_path: Path
) -> None:
    """At once: left alone, ray knocks for minutes."""
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    path = write_fossils(tmp_path / "a.ndjson", range(3))

    told = scf(foundry, "ingest", path, "--ray", "127.0.0.1:1")

    assert told.returncode == 8
    assert "no Ray cluster answers at 127.0.0.1:1" in told.stderr


DIES = """
import os, shutil, sys, tempfile, threading, time
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
from ray.cluster_utils import Cluster
import scf.dispatch.ray_cluster as door

def work(number):
    for piece in range(6):
        time.sleep(0.2)
        yield f"{number}.{piece}".encode() + b" " + b"x" * 300_000  # kept by the node that made it

folder = tempfile.mkdtemp(prefix="scf-ray-", dir="/tmp")
node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
nodes = Cluster(initialize_head=True, head_node_args={**node, "temp_dir": folder})
nodes.add_node(**node)
try:
    with door.RayCluster(nodes.address, block_wait_s=100) as cluster:
        import ray
        here = ray.get_runtime_context().get_node_id()
        other = next(n for n in nodes.list_all_nodes() if n.node_id != here)
        end = lambda: nodes.remove_node(other, allow_graceful=False)
        threading.Timer(1.5, end).start()
        seen = []
        for blocks in cluster.stream(work, [(n,) for n in range(4)]):
            seen += [block.split()[0].decode() for block in blocks]
        print(seen == [f"{n}.{p}" for n in range(4) for p in range(6)], cluster.num_cpus)
finally:
    nodes.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
"""


@pytest.mark.e2e
@pytest.mark.slow
def test_when_a_machine_dies_its_work_is_done_again_and_nothing_comes_twice() -> None:
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    child = subprocess.Popen(
        [sys.executable, "-c", DIES],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=python_env(),
        start_new_session=True,
        text=True,
    )
    try:
        out, err = child.communicate(timeout=RUN_S)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        out, err = child.communicate(timeout=STOP_S)

    assert "True 1" in out, err[-3000:]


@pytest.mark.e2e
@pytest.mark.slow
def test_when_the_node_of_this_machine_dies_ingest_says_so_and_a_new_one_goes_on(
    nodes: tuple[str, int], foundry: FoundryPlaces, tmp_path: Path
) -> None:
    """Ray ends its driver with exit code 0, or leaves it waiting. The last test of these nodes."""
    address, raylet = nodes
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        values = rng.standard_normal((400, 16, 16)).astype(np.float32)
        np.savez(folder / f"g{number:02}.npz", u=values)
    other = initialise(tmp_path / "home2", tmp_path / "drive2")
    for places in (foundry, other):
        settings = places.home / "scf.toml"
        text = settings.read_text().replace("# shard_bytes = 256000000", "shard_bytes = 1000000")
        settings.write_text(text)
    alone = json.loads(scf(other, "ingest", folder, "--json").stdout)

    where = ["--home", str(foundry.home), "--root", str(foundry.root)]
    ingest = subprocess.Popen(
        [sys.executable, "-m", "scf.cli.main", "ingest", folder, "--ray", address, *where],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=python_env(),
        text=True,
    )
    try:
        wait_for(lambda: num_committed(foundry), what="a first shard", limit_s=RUN_S)
        (driver,) = Path(f"/proc/{ingest.pid}/task/{ingest.pid}/children").read_text().split()
        os.kill(raylet, signal.SIGKILL)
        out, err = ingest.communicate(timeout=RUN_S)
    finally:
        ingest.kill()
        ingest.wait(STOP_S)

    assert (ingest.returncode, out) == (8, ""), err
    assert "Ray has failed in the middle" in err
    assert "what is committed is kept" in err
    assert not Path(f"/proc/{driver}").exists()
    assert 0 < num_committed(foundry) < num_committed(other)
    again = json.loads(scf(foundry, "ingest", folder, "--json").stdout)
    assert again["duplicates"] > 0
    assert again["accepted"] + again["duplicates"] == alone["accepted"] == 30 * 400
    assert again["fossils_root"] == alone["fossils_root"]
