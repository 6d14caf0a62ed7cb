"""What do ten cuts cost a transfer of 1 GiB, and a second sync that has nothing to send?

Over a cable between two network namespaces, shaped to 200 Mbit/s; needs root on Linux. The code is
the doors' own: shards named by their SHA-256, sent with rsync over ssh, checked on arrival.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from scf.dispatch import sending
from scf.dispatch.transfer import SshLink
from support.shaped_transfer import job_with_shards, send_with_cuts
from support.ssh_boxes import session_sshd

MIB = 2**20


def run() -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        transfer = send_with_cuts(Path(folder), num=16, size_bytes=64 * MIB, mbit=200.0, cuts=10)
    if transfer is None:
        figures["1 GiB with 10 cuts"] = "not run: network namespaces need root on Linux"
    else:
        figures["1 GiB with 10 cuts: bytes on the wire / payload"] = round(transfer.overhead, 4)
        figures["cuts"] = transfer.cuts
        figures["torn files under a final name"] = transfer.torn
        figures["seconds (43 at 200 Mbit/s without a cut)"] = transfer.seconds
    figures |= _second_sync()
    return figures


def _second_sync() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        bundle = job_with_shards(base, num=10_000, size_bytes=1000)
        link = SshLink(session_sshd().box(base / "box"), base / "ssh", "home-bench")

        def sync() -> float:
            began = time.perf_counter()
            sent = sending.send(
                link, bundle, staging=base / "staging", code=base / "code", is_stopped=lambda: False
            )
            assert sent is not None
            return time.perf_counter() - began

        first = sync()
        again = [sync() for _ in range(5)]
    return {
        "10,000 files, first sync, s": round(first, 2),
        "10,000 unchanged files, median of 5, s": round(statistics.median(again), 3),
    }


if __name__ == "__main__":
    print(run())
