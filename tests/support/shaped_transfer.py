"""Send a vault across a shaped link that is cut again and again; count the bytes on the wire."""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scf.core.canonical import canonical_json
from scf.core.errors import DoorUnavailable
from scf.core.identity import sha256_hex
from scf.dispatch import sending
from scf.dispatch.bundle import Bundle, make_bundle
from scf.dispatch.job import JobInput, JobSpec
from scf.dispatch.transfer import SshLink
from scf.storage.partitions import Folder
from support.networks import Cable, new_cable
from support.ssh_boxes import start_sshd


@dataclass
class Transfer:
    """What a transfer came to.

    Attributes:
        payload_bytes: What had to get there.
        wire_bytes: What went over the cable, both ways, with all headers.
        cuts: How often the cable was pulled.
        tries: Calls of `send` until all was there.
        seconds: All of it.
        torn: Files under a final name whose digest was not their name, at any look.
    """

    payload_bytes: int
    wire_bytes: int
    cuts: int
    tries: int
    seconds: float
    torn: int

    @property
    def overhead(self) -> float:
        return self.wire_bytes / self.payload_bytes


def job_with_shards(base: Path, *, num: int, size_bytes: int) -> Bundle:
    """A bundle whose plan names `num` shards of random bytes."""
    vault = base / "vault"
    vault.mkdir(parents=True)
    shards = []
    for index in range(num):
        name = f"shard-{index:05d}.ndjson"
        data = os.urandom(size_bytes)
        (vault / name).write_bytes(data)
        shards.append({"path": name, "sha256": sha256_hex(data), "size_bytes": size_bytes})
    plan = canonical_json({"shards": shards})
    spec = JobSpec(
        "job-1", "tiny", 60.0,
        inputs=(JobInput("plan.json", "inputs/plan.json", sha256_hex(plan)),), vault=str(vault),
    )  # fmt: skip
    return make_bundle(Folder.at(base / "jobs"), spec, {"plan.json": plan})


@contextlib.contextmanager
def shaped(cable: Cable, mbit: float) -> Iterator[None]:
    """At most `mbit` from here to there. The cable's end takes it away."""
    limit = ["rate", f"{mbit:g}mbit", "burst", "512kb", "latency", "100ms"]
    command = ["tc", "qdisc", "add", "dev", cable.link_here, "root", "tbf", *limit]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    yield


def send_with_cuts(
    base: Path, *, num: int, size_bytes: int, mbit: float, cuts: int, code: Path | None = None
) -> Transfer | None:
    """Send it all; None where there are no network namespaces.

    The cable is pulled whenever another share of the payload has gone over it, for a second.
    """
    cable = new_cable()
    if cable is None:
        return None
    bundle = job_with_shards(base, num=num, size_bytes=size_bytes)
    server = start_sshd(
        Path(tempfile.mkdtemp(prefix="scf-sshd-")), host=cable.there, netns=cable.name
    )
    there = base / "box"
    box = server.box(there, keepalive_s=1, connect_timeout_s=3)
    link = SshLink(box, base / "ssh", "home-bench")
    done = threading.Event()
    payload = num * size_bytes
    state = {"cuts": 0, "torn": 0}

    def cut() -> None:
        begun = _wire_bytes(cable)
        while state["cuts"] < cuts and not done.is_set():
            share = (state["cuts"] + 0.5) / cuts * payload
            if _wire_bytes(cable) - begun >= share:
                state["cuts"] += 1
                cable.down()
                time.sleep(1.0)
                cable.up()
            time.sleep(0.01)

    began, wire = time.monotonic(), _wire_bytes(cable)
    cutter = threading.Thread(target=cut, daemon=True)
    tries = 0
    try:
        with shaped(cable, mbit):
            cutter.start()
            while True:
                tries += 1
                assert tries < 20 * (cuts + 1), "the transfer does not come to its end"
                try:
                    sent = sending.send(
                        link, bundle, staging=base / "staging", code=code, is_stopped=lambda: False
                    )
                except DoorUnavailable:
                    state["torn"] += _torn(there)
                    continue
                break
        assert sent is not None
        state["torn"] += _torn(there)
        assert len(list((there / "shards").iterdir())) >= num
        return Transfer(
            payload, _wire_bytes(cable) - wire, state["cuts"], tries,
            round(time.monotonic() - began, 1), state["torn"],
        )  # fmt: skip
    finally:
        done.set()
        cutter.join()
        server.stop()
        cable.remove()


def _torn(there: Path) -> int:
    """Files under a final name (their SHA-256) that are not what their name says."""
    shards = there / "shards"
    if not shards.exists():
        return 0
    return sum(sha256_hex(path.read_bytes()) != path.name for path in shards.iterdir())


def _wire_bytes(cable: Cable) -> int:
    folder = Path("/sys/class/net", cable.link_here, "statistics")
    return sum(int((folder / name).read_text()) for name in ("tx_bytes", "rx_bytes"))


def report(transfer: Transfer) -> str:
    return json.dumps({**vars(transfer), "overhead": round(transfer.overhead, 4)})
