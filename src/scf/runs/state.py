"""The life of a run: a table of states and of the moves between them. Pure.

    DISCOVERED → VALIDATED → PLANNED → SUBMITTED → RETURNED → VERIFIED → PROVEN → PROMOTED
         └ QUARANTINED          ↖ LOST ┘              └ REJECTED                      ↓
                                   └ FAILED (also from any state before PROMOTED)  RELEASED
                                     CANCELLED (likewise, when the operator asks for it)

A move that is not in the table is refused, so that a mistake in the conductor cannot, say, promote
what was never verified.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from scf.core.errors import ScfError


class State(StrEnum):
    """Where a run stands."""

    DISCOVERED = "DISCOVERED"
    VALIDATED = "VALIDATED"
    PLANNED = "PLANNED"
    SUBMITTED = "SUBMITTED"
    RETURNED = "RETURNED"
    VERIFIED = "VERIFIED"
    PROVEN = "PROVEN"
    PROMOTED = "PROMOTED"
    RELEASED = "RELEASED"
    QUARANTINED = "QUARANTINED"
    LOST = "LOST"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"


_S = State
_CANCELLED = {_S.CANCELLED: "the operator asked for its end, and no job of it runs any more"}

# from -> {to: what the move means}
MOVES: Mapping[State, Mapping[State, str]] = MappingProxyType(
    {
        _S.DISCOVERED: {
            _S.VALIDATED: "its plan is made, and every shard is in the vault as its manifest says",
            _S.QUARANTINED: "it cannot be planned, or a shard is not as its manifest says",
            _S.FAILED: "it could not be validated within its tries",
            **_CANCELLED,
        },
        _S.VALIDATED: {
            _S.PLANNED: "plan, settings and parent are fixed",
            _S.FAILED: "it could not be planned within its tries",
            **_CANCELLED,
        },
        _S.PLANNED: {
            _S.SUBMITTED: "a door has started its training job",
            _S.FAILED: "no door took it within its tries",
            **_CANCELLED,
        },
        _S.SUBMITTED: {
            _S.RETURNED: "the checkpoint is here and its files are those of the exit record",
            _S.LOST: "the attempt ended without a checkpoint, for the reason kept",
            **_CANCELLED,
        },
        _S.LOST: {
            _S.PLANNED: "it is tried again",
            _S.FAILED: "parked: it would fail again, or its tries are used up",
            **_CANCELLED,
        },
        _S.RETURNED: {
            _S.VERIFIED: "measured on held-out fossils, and the gate is for it",
            _S.REJECTED: "measured, and the gate is against it",
            _S.FAILED: "it could not be measured within its tries",
            **_CANCELLED,
        },
        _S.VERIFIED: {
            _S.PROVEN: "its statement is signed and in the audit log",
            _S.RETURNED: "another champion stands since it was measured, so it is measured again",
            _S.FAILED: "it could not be proven within its tries",
            **_CANCELLED,
        },
        _S.PROVEN: {
            _S.PROMOTED: "it is a generation of the zoo",
            _S.FAILED: "it could not be promoted within its tries",
            **_CANCELLED,
        },
        _S.PROMOTED: {
            _S.RELEASED: "it is in a weekly release",
        },
        _S.RELEASED: {},
        _S.QUARANTINED: {},
        _S.REJECTED: {},
        _S.FAILED: {},
        _S.CANCELLED: {},
    }
)

# Nothing more is to be done here. PROMOTED waits for its week and is left by the release step.
ENDED = frozenset(state for state, moves in MOVES.items() if not moves)
RESTING = ENDED | {State.PROMOTED}
# The conductor has work with these.
ACTIVE = frozenset(State) - RESTING
# Reached only by getting further: what failed before does not count against what comes next.
FORWARD = frozenset({_S.VALIDATED, _S.RETURNED, _S.VERIFIED, _S.PROVEN, _S.PROMOTED, _S.RELEASED})


class MoveRefused(ScfError):
    """A move that the table does not have, or of a run that stands elsewhere by now."""


def check_move(run_id: str, start: State, end: State) -> None:
    """Raise MoveRefused unless the table has the move."""
    if end not in MOVES[start]:
        allowed = ", ".join(MOVES[start]) or "none"
        raise MoveRefused(f"{run_id}: no move from {start} to {end}; allowed: {allowed}")
