"""kill -9 anywhere, start again: nothing is lost, nothing is done twice."""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from scf.audit.check import check_log
from scf.core.identity import sha256_hex
from scf.runs.state import State
from scf.signing.keys import public_keys
from support.conducting import Works

pytestmark = pytest.mark.crash

# The whole way of one run passes each of these so often (and not much oftener).
PASSAGES = [
    ("runs.before_commit", (1, 2, 4, 7, 11, 16, 22)),
    ("runs.after_commit", (1, 3, 5, 9, 13, 19, 25)),
    ("pipeline.effect_done", (1, 2, 3, 5, 8, 11, 14)),
    ("zoo.generation_written", (1,)),
    ("release.packed", (1,)),
    ("audit.committed", (1, 9)),
    ("vault.journalled", (1,)),
]
EVERY_POINT = [(name, n) for name, numbers in PASSAGES for n in numbers]
# A spread of them runs always; all of them, and more random moments, with SCF_CRASH_ALL=1.
SPREAD = [
    ("runs.before_commit", 2), ("runs.before_commit", 11), ("runs.after_commit", 3),
    ("runs.after_commit", 19), ("pipeline.effect_done", 5), ("pipeline.effect_done", 11),
    ("zoo.generation_written", 1), ("release.packed", 1),
]  # fmt: skip
IS_WHOLE = os.environ.get("SCF_CRASH_ALL") == "1"
POINTS = EVERY_POINT if IS_WHOLE else SPREAD
SEEDS = range(20 if IS_WHOLE else 2)


@pytest.fixture
def works(tmp_path: Path) -> Works:
    works = Works(tmp_path)
    works.drop("a.ndjson", range(120))
    return works


def require_once(works: Works) -> None:
    """One run, released; each thing it did is there exactly once, and the log holds."""
    (run,) = works.runs()
    assert run.state is State.RELEASED, (run.state, run.reason)
    assert run.tries == 0
    chain = [t.to_state for t in works.transitions()]
    assert chain.count(State.PROMOTED) == chain.count(State.RELEASED) == 1
    assert works.generations() == ["ebdm_gen0001"]
    assert [move["action"] for move in works.history()] == ["promoted"]
    assert len(list((works.root / "zk_proofs").glob("proof-*.json"))) == 1
    assert len(list((works.root / "release_history").glob("week-*"))) == 1
    jobs = works.root / "system_cache" / "jobs"
    for tries in jobs.glob(f"{run.run_id}-train-ebdm-*/outputs/tries"):
        assert tries.read_text() == "one\n", "a training job was started twice"
    shards = list((works.root / "fossil_vault" / "shards").glob("??/*.ndjson"))
    assert sum(len(s.read_bytes().splitlines()) for s in shards) == 120
    assert len({sha256_hex(s.read_bytes()) for s in shards}) == len(shards)

    report = check_log(
        works.root / "zk_proofs" / "audit", public_keys(works.home / "keys")["foundry"]
    )
    assert report.ok
    indices = [t.audit_index for t in works.transitions()]
    assert None not in indices
    assert len(set(indices)) == len(indices)
    entries = Counter(audit_events(works))
    assert entries["run.PROMOTED"] == entries["release.made"] == entries["statement.attested"] == 1


def audit_events(works: Works) -> list[str]:
    from scf.audit.log import AuditLog
    from scf.storage.partitions import Folder

    log = AuditLog.open(Folder.at(works.root / "zk_proofs" / "audit"), works.home)
    return [logged.entry.event for logged in log.entries()]


@pytest.mark.parametrize(("name", "passage"), POINTS, ids=str)
def test_a_kill_at_a_failpoint_loses_and_repeats_nothing(
    works: Works, name: str, passage: int
) -> None:
    """One kill there, one start without it, and everything is as if nothing had happened."""
    code = works.run_process("--until-idle", SCF_FAIL=f"{name}:kill:{passage}")
    # The job's programs get the same environment; what kills them is retried like any lost job.
    assert code in {-signal.SIGKILL, 0}, works.said()

    assert works.run_process("--until-idle") == 0, works.said()

    require_once(works)


@pytest.mark.parametrize("seed", SEEDS)
def test_kills_at_random_moments_lose_and_repeat_nothing(works: Works, seed: int) -> None:
    """Killed again and again, sooner or later; the last start finishes what is left."""
    moments = random.Random(seed)
    for _ in range(4):
        child = works.start("--until-idle", SCF_TINY=json.dumps({"train_sleep_s": 0.2}))
        time.sleep(moments.uniform(0.25, 1.6))
        child.kill()
        child.wait()

    assert works.run_process("--until-idle") == 0, works.said()

    require_once(works)


def test_a_stopped_daemon_goes_on_where_it_was(works: Works) -> None:
    """SIGSTOP for a while, as a sleeping machine does: it goes on, nothing is repeated."""
    go = works.base / "go"
    with works.process("--until-idle", SCF_TINY=json.dumps({"train_until": str(go)})) as child:
        works.wait_for_state(State.SUBMITTED)
        child.send_signal(signal.SIGSTOP)
        go.touch()  # the job ends meanwhile
        time.sleep(1.5)
        child.send_signal(signal.SIGCONT)
        assert child.wait(timeout=120) == 0, works.said()

    require_once(works)
