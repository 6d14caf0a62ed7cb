"""Every failpoint is declared, placed in the code, and crash-tested."""

import re
from pathlib import Path

import scf
from scf.storage import failpoint

SOURCE = Path(scf.__file__).parent
TESTS = Path(__file__).parents[1]


def test_every_declared_failpoint_is_placed_and_no_other() -> None:
    placed = set()
    for path in SOURCE.rglob("*.py"):
        placed |= set(re.findall(r'failpoint\(\s*"([^"]+)"\s*\)', path.read_text()))

    assert placed == set(failpoint.NAMES)


def test_every_failpoint_has_a_crash_test() -> None:
    text = "".join(p.read_text() for p in TESTS.rglob("test_*.py") if p != Path(__file__))

    assert {name for name in failpoint.NAMES if f'"{name}' not in text} == set()
