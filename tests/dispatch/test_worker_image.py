"""The worker's image: built, run as a pod in a network of its own, and given a real job.

Needs root, buildah and an image: `BASE=... TORCH=none TAG=localhost/scf-worker:test make image`
(docs/operations/first-h100-run.md says how without a registry). Skipped, with the reason, elsewhere.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fakes.runpod.server import FakeRunpod
from fakes.runpod.world import FakePod
from scf.dispatch.follower import FollowSettings
from scf.dispatch.job import ExitReason, JobExit, JobSpec
from scf.dispatch.runpod import Candidate, RunpodDoor, RunpodSettings
from scf.dispatch.runpod_client import ApiKey, RunpodClient
from scf.storage.partitions import Folder
from support.networks import Cable, new_cable
from support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker" / "runpod"
IMAGE = os.environ.get("SCF_TEST_IMAGE", "localhost/scf-worker:test")


def test_the_dockerfile_is_clean() -> None:
    """hadolint has nothing to say, at any level."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"
    tool = shutil.which("hadolint", path=path)
    if tool is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([tool, DOCKER / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_compose_file_is_one_and_gives_what_the_entrypoint_wants() -> None:
    """By the published schema; no Docker engine is needed for that."""
    tool = shutil.which("check-jsonschema", path=str(Path(sys.executable).parent))
    if tool is None:
        pytest.skip("check-jsonschema is not installed (extra [dev])")
    path = DOCKER / "compose.yaml"
    done = subprocess.run(
        [tool, "--builtin-schema", "vendor.compose-spec", path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout

    text, entrypoint = path.read_text(), (DOCKER / "entrypoint.sh").read_text()
    names = re.findall(r"^      ([A-Z_]+): \$\{", text, re.MULTILINE)
    assert {"PUBLIC_KEY", "SCF_SSH_HOST_KEY"} <= set(names)
    assert [name for name in names if name not in entrypoint] == []
    assert (DOCKER / re.search(r"context: (\S+)", text)[1]).resolve() == ROOT


def test_nothing_is_taken_on_trust() -> None:
    """The base by digest, each package by its hash; the builder sees two folders' files only."""
    text = (DOCKER / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE=\S+@sha256:[0-9a-f]{64}$", text, re.MULTILINE)
    for line in re.findall(r"pip install .*", text):
        assert "--require-hashes" in line
        assert "--no-deps" in line
    for name in ("requirements.lock", "torch.lock"):
        rows = re.findall(r"^(\S+)==\S+ \\\n    --hash=sha256:[0-9a-f]{64}$",
                          (DOCKER / name).read_text(), re.MULTILINE)  # fmt: skip
        assert rows
        assert len(rows) == len(re.findall(r"==", (DOCKER / name).read_text()))
    ignored = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert [line for line in ignored if line and not line.startswith("#")] == [
        "*", "!docker/runpod/*", "!src/scf/dispatch/pod_lease.py",
    ]  # fmt: skip


def test_the_lock_is_of_the_versions_that_the_tests_ran_with() -> None:
    pinned = dict(
        re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    )
    wanted = {name.lower().replace("_", "-"): version for name, version in pinned.items()}
    for name in ("requirements.lock", "torch.lock"):
        for package, version in re.findall(
            r"^([\w.-]+)==(\S+) ", (DOCKER / name).read_text(), re.MULTILINE
        ):
            known = wanted.get(package.replace("_", "-"))
            assert known in {None, version}, f"{name}: {package} {version}, constraints {known}"


class ImagePods:
    """Pods that are the image's root in a network, a mount and a process namespace of their own."""

    def __init__(self) -> None:
        self.running: dict[str, tuple[subprocess.Popen[bytes], Cable, str]] = {}
        self.logs: list[Path] = []

    def start(self, pod: FakePod) -> tuple[str, int, str]:
        cable = new_cable()
        assert cable is not None
        container = _buildah("from", IMAGE)
        root = _buildah("mount", container)
        log = Path(root, "tmp", "pod.log")
        self.logs.append(log)
        environment = {**pod.env, "RUNPOD_POD_ID": pod.pod_id, "RUNPOD_API_KEY": "rpa_POD_canary",
                       "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}  # fmt: skip
        begin = (
            f"mount -t proc proc {root}/proc && mount --bind /dev {root}/dev && "
            f"exec chroot {root} /usr/bin/tini -s -- /usr/local/bin/scf-entrypoint"
        )
        with log.open("wb") as said:
            child = subprocess.Popen(
                ["ip", "netns", "exec", cable.name, "unshare", "--pid", "--mount", "--fork",
                 "--kill-child", "/bin/sh", "-c", begin],
                env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
            )  # fmt: skip
        self.running[pod.pod_id] = (child, cable, container)
        return cable.there, 22, "root"

    def stop(self, pod: FakePod) -> None:
        child, cable, container = self.running.pop(pod.pod_id)
        child.kill()
        child.wait()
        cable.remove()
        _buildah("umount", container)
        _buildah("rm", container)


@pytest.fixture
def pods() -> ImagePods:
    if os.geteuid() != 0 or shutil.which("buildah") is None or shutil.which("ip") is None:
        pytest.skip("the image is run as a pod by root with buildah and iproute2")
    if subprocess.run(["buildah", "inspect", IMAGE], capture_output=True).returncode != 0:
        pytest.skip(f"no image {IMAGE}: build it with `make image` (TAG={IMAGE})")
    return ImagePods()


@pytest.fixture
def provider(pods: ImagePods) -> Iterator[FakeRunpod]:
    with FakeRunpod(start=pods.start, stop=pods.stop, calls_per_minute=100_000) as provider:
        yield provider


@pytest.mark.e2e
def test_the_image_holds_no_secret_no_cache_and_no_host_key(pods: ImagePods) -> None:
    """In its files above the base, its environment, its history and its labels."""
    about = subprocess.run(["buildah", "inspect", IMAGE], check=True, capture_output=True).stdout
    for word in (b"rpa_", b"RUNPOD_API_KEY", b"PRIVATE KEY", b"PUBLIC_KEY="):
        assert word not in about
    container = _buildah("from", IMAGE)
    try:
        root = Path(_buildah("mount", container))
        kept = [
            path.relative_to(root).as_posix()
            for folder in ("etc/ssh", "root", "home", "run", "tmp", "usr/local", "var/cache/apt",
                           "var/lib/apt/lists", "var/log", "workspace")
            for path in (root / folder).rglob("*")
            if path.is_file()
        ]  # fmt: skip
        unwanted = re.compile(
            r"ssh_host_|\.pyc$|\.deb$|pkgcache|\.pip/|\.cache/|authorized_keys|host_key|^var/log/"
        )
        assert [name for name in kept if unwanted.search(name)] == []
        assert "usr/local/lib/scf/pod_lease.py" in kept
        ours = [n for n in kept if "/scf/" in n or n.startswith(("usr/local/bin/scf", "home"))]
        for name in ours:
            assert b"PRIVATE KEY" not in (root / name).read_bytes()
    finally:
        _buildah("umount", container)
        _buildah("rm", container)


@pytest.mark.e2e
def test_a_job_runs_in_the_image_as_nobody_special(
    pods: ImagePods, provider: FakeRunpod, tmp_path: Path
) -> None:
    """Known host key, known user key, the code as a wheel; the pod's secrets stay with its root."""
    home = tmp_path / "home"
    home.mkdir()
    client = RunpodClient(ApiKey(provider.key), rest=provider.rest, graphql=provider.graphql)
    door = RunpodDoor(
        client,
        Folder.at(tmp_path / "jobs"),
        home,
        rental=RunpodSettings(
            image=IMAGE, candidates=(Candidate("NVIDIA RTX A4000"),), look_s=0.2, user="worker"
        ),
        settings=FollowSettings(code=home / "code", look_s=0.2),
        owns_client=True,
    )
    try:
        door.submit(JobSpec("smoke-1", "smoke", 60.0, config={"seconds": 1.0}), {})
        holders: set[str] = set()

        def look() -> JobExit | None:
            status = door.poll("smoke-1")
            if status.placement.get("stage") == "running":
                holders.update(_holders("rpa_POD_canary"))
            return status.exit

        ended = wait_for(look, what="the job", limit_s=60)
        assert ended.reason is ExitReason.COMPLETED, ended
        said = json.loads((door.collect("smoke-1") / "outputs" / "smoke.json").read_text())
        log = pods.logs[0].read_text()
        (pod,) = provider.all_pods
        wait_for(
            lambda: door.poll("smoke-1").placement["stage"] == "released", what="the pod's end"
        )
    finally:
        door.close()

    assert said["python"].startswith("3.11")
    assert {"RUNPOD_API_KEY", "RUNPOD_POD_ID", "SCF_LEASE_UNTIL"} <= set(said["provider_variables"])
    assert f"lease: pod {pod.pod_id} ends itself at" in log
    assert "rpa_POD_canary" not in log + json.dumps(said)
    # Only the agent that ends the pod has its key: not sshd, not the job.
    assert holders == {"pod_lease.py"}
    assert provider.alive() == []


def _holders(secret: str) -> set[str]:
    """Programs of pods in whose environment the secret stands."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().split(b"\0")
            if secret.encode() in (path / "environ").read_bytes():
                found.add(
                    Path(os.fsdecode(next((c for c in command if b".py" in c), command[0]))).name
                )
        except OSError:
            continue
    return found - {"unshare", "tini", "sh", "ip", "scf-entrypoint", "bash"}


def _buildah(*arguments: str) -> str:
    done = subprocess.run(["buildah", *arguments], check=True, capture_output=True, timeout=120)
    return done.stdout.decode().strip()
