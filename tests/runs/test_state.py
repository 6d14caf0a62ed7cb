"""The table of moves says what the design says."""

import pytest

from scf.runs.state import ACTIVE, ENDED, MOVES, MoveRefused, State, check_move


def reachable(start: State) -> set[State]:
    seen: set[State] = set()
    todo = [start]
    while todo:
        state = todo.pop()
        if state not in seen:
            seen.add(state)
            todo.extend(MOVES[state])
    return seen


def test_every_state_can_be_reached_and_every_active_one_can_end() -> None:
    assert reachable(State.DISCOVERED) == set(State)
    for state in ACTIVE:
        assert reachable(state) & ENDED


def test_nothing_is_promoted_that_was_not_verified_and_proven() -> None:
    """Without VERIFIED, or without PROVEN, there is no way to PROMOTED."""
    for gate in (State.RETURNED, State.VERIFIED, State.PROVEN):
        before = {state for state in State if gate in reachable(state)} - {gate}
        without = {s: [t for t in MOVES[s] if t is not gate] for s in before}
        seen: set[State] = set()
        todo = [State.DISCOVERED]
        while todo:
            state = todo.pop()
            if state not in seen:
                seen.add(state)
                todo.extend(without.get(state, MOVES[state]))
        assert State.PROMOTED not in seen


def test_what_has_ended_stays_ended() -> None:
    ends = {State.RELEASED, State.QUARANTINED, State.REJECTED, State.FAILED, State.CANCELLED}
    assert ends == ENDED


def test_whatever_is_under_way_can_be_cancelled_and_nothing_else_can() -> None:
    assert {state for state in State if State.CANCELLED in MOVES[state]} == ACTIVE


def test_a_refused_move_says_what_is_allowed() -> None:
    with pytest.raises(MoveRefused, match="from RETURNED to PROMOTED; allowed: VERIFIED"):
        check_move("run-1", State.RETURNED, State.PROMOTED)
