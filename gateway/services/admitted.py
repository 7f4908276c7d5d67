"""What the request under way was let in for: a session that it finds later must still be one of those.

Between the check and its use a session may be deleted and its id be given to another's, or be made by another when
there was none. Tasks that a request starts stay bound by it; what the gateway does by itself is bound by nothing.
"""

from collections.abc import Callable
from contextvars import ContextVar

from gateway.models.sessions import Session

_check: ContextVar[Callable[[Session], None] | None] = ContextVar("admitted", default=None)


def admit(check: Callable[[Session], None]) -> None:
    """Have `check` raise for each session, found by its id, that the request under way may not use."""
    _check.set(check)


def admitted(session: Session) -> Session:
    """The session, which the request under way may use. Raises what the check raises."""
    if (check := _check.get()) is not None:
        check(session)
    return session
