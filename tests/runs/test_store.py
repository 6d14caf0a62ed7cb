"""The store forgets nothing, repeats nothing and refuses what the table of moves has not."""

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from scf.core.errors import OperatorError, UsageError
from scf.runs.record import AttemptEnd, Origin, Run
from scf.runs.state import FORWARD, MOVES, MoveRefused, State
from scf.runs.store import RunStore
from support.clocks import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(tmp_path: Path, clock: ManualClock):
    opened = RunStore.open(tmp_path, clock)
    yield opened
    opened.close()


def new_run(store: RunStore, number: int = 1) -> Run:
    run, _ = store.add_run({"number": number}, {"plan": number}, facts={"fossils": 64})
    return run


def test_the_same_intent_is_the_same_run(store: RunStore) -> None:
    """Whatever the order of its keys; and nothing is noted twice."""
    first, is_new = store.add_run({"a": 1, "b": 2}, {"p": 1}, facts={})
    second, is_new_again = store.add_run({"b": 2, "a": 1}, {"p": 1}, facts={})

    assert (is_new, is_new_again) == (True, False)
    assert first == second
    assert first.run_id.startswith("run-")
    assert len(first.run_id) == 16
    assert len(store.transitions()) == 1
    assert store.plan(first.run_id) == {"p": 1}


def test_a_move_keeps_its_reason_and_facts(store: RunStore) -> None:
    run = store.move(new_run(store), State.VALIDATED, "all shards are there", facts={"shards": 2})

    assert run.state is State.VALIDATED
    assert run.reason == "all shards are there"
    assert run.facts == {"fossils": 64, "shards": 2}
    last = store.transitions(run.run_id)[-1]
    assert (last.from_state, last.to_state) == (State.DISCOVERED, State.VALIDATED)
    assert last.details == {"shards": 2}


def test_a_move_from_where_the_run_no_longer_stands_is_refused(store: RunStore) -> None:
    """Whoever read the run earlier cannot undo what happened since."""
    stale = new_run(store)
    store.move(stale, State.VALIDATED, "")

    with pytest.raises(MoveRefused, match="no longer stands"):
        store.move(stale, State.QUARANTINED, "")
    assert store.run(stale.run_id).state is State.VALIDATED


def test_failures_count_until_the_run_gets_further(store: RunStore, clock: ManualClock) -> None:
    run = store.move(new_run(store), State.VALIDATED, "")
    later = clock.now() + timedelta(seconds=5)
    run = store.postpone(run, "no luck", not_before=later, counts=True)
    run = store.postpone(run, "not its fault", not_before=later, counts=False)
    assert (run.tries, run.not_before, run.reason) == (1, later, "not its fault")

    for state in (State.PLANNED, State.SUBMITTED):
        run = store.move(run, state, "")
    assert (run.tries, run.not_before) == (1, None)
    assert store.move(run, State.RETURNED, "").tries == 0


def test_an_attempt_is_opened_once_and_closed_with_its_move(store: RunStore) -> None:
    """Intent first: the open attempt is found again, and its receipt comes with the move."""
    run = new_run(store)
    for state in (State.VALIDATED, State.PLANNED):
        run = store.move(run, state, "")
    first = store.open_attempt(run.run_id, "train_ebdm", "local", lambda name: {"job_id": name})
    again = store.open_attempt(run.run_id, "train_ebdm", "local", lambda name: {"other": name})
    assert first == again
    assert first.attempt_id == f"{run.run_id}-train-ebdm-1"
    assert store.open_attempts() == [first]

    run = store.move(run, State.SUBMITTED, "")
    end = AttemptEnd(first.attempt_id, "preempted", {"returncode": 0})
    run = store.move(run, State.LOST, "preempted", ends=end)
    second = store.open_attempt(run.run_id, "train_ebdm", "local", lambda name: {"job_id": name})

    closed = store.attempt(first.attempt_id)
    assert (closed.exit_reason, closed.receipt) == ("preempted", {"returncode": 0})
    assert second.attempt_id == f"{run.run_id}-train-ebdm-2"
    with pytest.raises(MoveRefused, match="not open"):
        store.move(run, State.PLANNED, "", ends=end)
    assert store.run(run.run_id).state is State.LOST


def test_commands_are_answered_once(store: RunStore) -> None:
    """The second answer changes neither the acknowledgement nor the settings."""
    assert store.acknowledge("a", "done", "gear HYPER", sets={"gear": "HYPER"})
    assert not store.acknowledge("a", "done", "gear STANDARD", sets={"gear": "STANDARD"})
    assert store.acknowledge("b", "error", "unknown command 'FLY'")

    assert store.get("gear") == "HYPER"
    assert [ack["id"] for ack in store.acks(limit=10)] == ["a", "b"]
    assert store.acks(limit=1)[0]["message"] == "unknown command 'FLY'"


def test_transitions_wait_until_the_audit_log_has_them(store: RunStore) -> None:
    run = store.move(new_run(store), State.VALIDATED, "")
    first, second = store.unaudited(limit=10)
    store.mark_audited(first.seq, 7)

    assert [t.seq for t in store.unaudited(limit=10)] == [second.seq]
    assert store.transitions(run.run_id)[0].audit_index == 7


def test_origins_are_found_by_path_and_by_content(store: RunStore) -> None:
    origin = Origin("drop/a.ndjson", 10, 1_700_000_000_000_000_123, "0" * 64, {"read": 3})
    store.remember_origin(origin)

    assert store.origin("drop/a.ndjson") == origin
    assert store.origin_with_digest("0" * 64) == origin
    assert store.origin("drop/b.ndjson") is None


def test_an_unknown_run_is_a_usage_error(store: RunStore) -> None:
    with pytest.raises(UsageError, match="no run"):
        store.run("run-0")


def test_a_damaged_database_is_refused(tmp_path: Path, clock: ManualClock) -> None:
    """Never replaced by an empty one."""
    (tmp_path / "runs.db").write_bytes(b"this is not a database at all" * 100)

    with pytest.raises(OperatorError, match="the state database is damaged"):
        RunStore.open(tmp_path, clock)


@pytest.mark.crash
@pytest.mark.parametrize(
    ("failpoint", "expected"),
    [("runs.before_commit", State.DISCOVERED), ("runs.after_commit", State.VALIDATED)],
)
def test_a_kill_leaves_a_move_done_or_not_done(
    tmp_path: Path, clock: ManualClock, failpoint: str, expected: State
) -> None:
    """Run and transition agree after a kill -9 on either side of the commit."""
    script = f"""
from pathlib import Path
from scf.core.clock import SystemClock
from scf.runs.state import State
from scf.runs.store import RunStore
store = RunStore.open(Path({str(tmp_path)!r}), SystemClock())
run, _ = store.add_run({{"n": 1}}, {{}}, facts={{}})
store.move(run, State.VALIDATED, "")
"""
    env = {**os.environ, "SCF_FAIL": f"{failpoint}:kill:2"}
    result = subprocess.run([sys.executable, "-c", script], env=env, check=False)
    assert result.returncode == -signal.SIGKILL

    store = RunStore.open(tmp_path, clock)
    (run,) = store.runs()
    assert run.state is expected
    assert store.transitions()[-1].to_state is expected
    store.close()


class StoreMachine(RuleBasedStateMachine):
    """Any order of calls, with restarts in between, agrees with a dictionary."""

    runs = Bundle("runs")

    @initialize()
    def begin(self) -> None:
        self.clock = ManualClock()
        self.home = Path(os.environ["SCF_TEST_STORE_HOME"]) / os.urandom(8).hex()
        self.home.mkdir()
        self.store = RunStore.open(self.home, self.clock)
        self.model: dict[str, list[State]] = {}
        self.tries: dict[str, int] = {}
        self.open: dict[tuple[str, str], str] = {}
        self.closed: list[str] = []

    @rule(target=runs, number=st.integers(0, 3))
    def add(self, number: int) -> str:
        run, is_new = self.store.add_run({"number": number}, {}, facts={})
        assert is_new == (run.run_id not in self.model)
        self.model.setdefault(run.run_id, [State.DISCOVERED])
        self.tries.setdefault(run.run_id, 0)
        return run.run_id

    @rule(run_id=runs, to=st.sampled_from(State), counts=st.booleans())
    def move(self, run_id: str, to: State, counts: bool) -> None:
        self.clock.advance(1)
        here = self.model[run_id][-1]
        if to in MOVES[here]:
            self.store.move(self.store.run(run_id), to, "because", counts=counts)
            self.model[run_id].append(to)
            self.tries[run_id] = (0 if to in FORWARD else self.tries[run_id]) + counts
        else:
            with pytest.raises(MoveRefused):
                self.store.move(self.store.run(run_id), to, "because", counts=counts)

    @rule(run_id=runs, kind=st.sampled_from(["train_ebdm", "measure"]))
    def open_attempt(self, run_id: str, kind: str) -> None:
        attempt = self.store.open_attempt(run_id, kind, "local", lambda name: {"job_id": name})
        assert attempt.attempt_id == self.open.setdefault((run_id, kind), attempt.attempt_id)
        assert attempt.attempt_id not in self.closed

    @rule(run_id=runs, kind=st.sampled_from(["train_ebdm", "measure"]))
    def close_attempt(self, run_id: str, kind: str) -> None:
        attempt_id = self.open.pop((run_id, kind), None)
        if attempt_id is not None:
            end = AttemptEnd(attempt_id, "lost", {})
            run = self.store.run(run_id)
            self.store.postpone(run, "lost", not_before=self.clock.now(), counts=True, ends=end)
            self.tries[run_id] += 1
            self.closed.append(attempt_id)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = RunStore.open(self.home, self.clock)

    @rule(limit=st.integers(0, 3))
    def audit(self, limit: int) -> None:
        for transition in self.store.unaudited(limit=limit):
            self.store.mark_audited(transition.seq, transition.seq - 1)

    @invariant()
    def agrees(self) -> None:
        assert {r.run_id: (r.state, r.tries) for r in self.store.runs()} == {
            run_id: (states[-1], self.tries[run_id]) for run_id, states in self.model.items()
        }
        for run_id, states in self.model.items():
            chain = self.store.transitions(run_id)
            assert [t.to_state for t in chain] == states
            assert [t.from_state for t in chain] == [None, *states[:-1]]
        assert {a.attempt_id for a in self.store.open_attempts()} == set(self.open.values())
        waiting = [t.audit_index is None for t in self.store.transitions()]
        assert waiting == sorted(waiting), "the audit log gets transitions in order"

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()


def test_any_order_of_calls_agrees_with_a_dictionary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    monkeypatch.setenv("SCF_TEST_STORE_HOME", str(tmp_path))
    run_state_machine_as_test(
        StoreMachine,
        settings=settings(max_examples=25, stateful_step_count=25, deadline=None),
    )
