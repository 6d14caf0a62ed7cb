"""A program that is run with limits leaves nothing behind and tells nothing."""

import sys

import pytest

from scf.core.errors import MissingTool
from scf.dispatch.limited import run_limited
from support.waiting import is_gone, wait_for


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_input_and_output_pass_through_pipes_of_any_size() -> None:
    """More than a pipe holds, both ways at once."""
    data = bytes(range(256)) * 4000
    code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])"

    finished = run_limited(python(code), stdin=data, limit_s=240, stdout_max_bytes=2**21)

    assert finished.stdout == data[::-1]
    assert (finished.returncode, finished.fault) == (0, None)


def test_a_program_that_takes_too_long_is_ended_with_its_children() -> None:
    finished = run_limited(["sh", "-c", "sleep 240 & echo $!; sleep 240"], limit_s=4.0)

    assert finished.fault == "took longer than 4 s"
    wait_for(lambda: is_gone(int(finished.stdout)), what="the child to be gone")


def test_a_program_that_closes_its_output_and_stays_is_ended() -> None:
    code = "import os, time; os.close(1); os.close(2); time.sleep(240)"

    assert run_limited(python(code), limit_s=1.0).fault == "took longer than 1 s"


def test_endless_output_is_cut() -> None:
    code = "import sys\nwhile True: sys.stdout.write('x' * 10000)"

    finished = run_limited(python(code), limit_s=240, stdout_max_bytes=50_000)

    assert finished.fault == "said more than 50000 bytes"
    assert len(finished.stdout) < 200_000


def test_a_program_that_does_not_listen_is_no_fault() -> None:
    """It ends before it has read what it is told."""
    assert run_limited(["true"], stdin=bytes(2**20), limit_s=240).returncode == 0


def test_only_an_allow_list_of_the_environment_is_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RUNPOD_API_KEY", "canary")

    said = run_limited(["env"], limit_s=240).stdout

    assert b"PATH=" in said
    assert b"canary" not in said


def test_an_absent_program_is_named() -> None:
    with pytest.raises(MissingTool, match="no-such-program"):
        run_limited(["no-such-program"], limit_s=1)
