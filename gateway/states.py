"""The states of a session, and every legal move between them.

Nothing outside this file decides whether a move is legal.
"""

from enum import StrEnum

from gateway.errors import IllegalMove


class State(StrEnum):
    INIT = "INIT"
    READY = "READY"
    IDLE = "IDLE"
    BUSY = "BUSY"
    ERROR = "ERROR"


MOVES: dict[State, frozenset[State]] = {
    State.INIT: frozenset({State.READY, State.ERROR}),
    State.READY: frozenset({State.IDLE, State.BUSY, State.ERROR}),
    State.IDLE: frozenset({State.READY, State.ERROR}),
    State.BUSY: frozenset({State.READY, State.ERROR}),
    State.ERROR: frozenset({State.INIT, State.READY}),
}


def check_move(before: State, after: State) -> None:
    """Raise `IllegalMove` unless a session may go from `before` to `after`."""
    if after not in MOVES[before]:
        raise IllegalMove(before, after)
