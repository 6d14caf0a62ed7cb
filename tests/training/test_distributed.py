"""How one of several processes ends; what they do together: test_several_processes.py."""

import subprocess
import sys

import pytest

from support.processes import python_env


@pytest.mark.parametrize("world_size", ["1", "2"])
def test_a_process_ends_with_its_code_and_its_last_words(world_size: str) -> None:
    """One of several skips the interpreter's end, which threads of torch may not survive."""
    program = (
        "import atexit\n"
        "from scf.training.distributed import end_process\n"
        "atexit.register(print, 'the end of the interpreter')\n"
        "print('last words')\n"
        "end_process(3)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=python_env(WORLD_SIZE=world_size), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stdout.startswith("last words\n")
    assert ("the end of the interpreter" in done.stdout) is (world_size == "1")
