"""Small versions of `benchmarks/bench_cloud_transfer.py`."""

from pathlib import Path

import pytest

from scf.dispatch import sending
from scf.dispatch.transfer import SshLink
from support.shaped_transfer import job_with_shards, send_with_cuts
from support.ssh_boxes import session_sshd

pytestmark = pytest.mark.e2e


def test_cuts_cost_little_and_tear_nothing(tmp_path: Path) -> None:
    """24 MiB over 40 Mbit/s with two cuts: at most 1.3 times the bytes."""
    transfer = send_with_cuts(tmp_path, num=6, size_bytes=4 * 2**20, mbit=40.0, cuts=2)
    if transfer is None:
        pytest.skip("network namespaces need root on Linux and iproute2")

    assert transfer.cuts >= 1  # a busy machine may sleep over the second
    assert transfer.overhead <= 1.3, transfer
    assert transfer.torn == 0


def test_a_second_sync_sends_nothing(tmp_path: Path) -> None:
    """It is one question: no file is named to rsync."""
    bundle = job_with_shards(tmp_path, num=500, size_bytes=100)
    link = SshLink(session_sshd().box(tmp_path / "box"), tmp_path / "ssh", "home-test")

    def sync() -> None:
        sent = sending.send(
            link, bundle, staging=tmp_path / "staging", code=None, is_stopped=lambda: False
        )
        assert sent is not None

    sync()
    link.push = None  # type: ignore[method-assign, assignment]
    sync()
