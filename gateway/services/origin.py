"""On whose behalf something happens: who asked, from where, in which request.

Tasks that a request starts have its origin. What outlives the request and serves others too, such as the worker of a
session, keeps the origin of each piece of work beside it.
"""

from contextvars import ContextVar
from dataclasses import dataclass

from gateway.models.access import Caller, Role


@dataclass(frozen=True, slots=True)
class Origin:
    who: Caller
    request_id: str = ""
    remote: str | None = None


GATEWAY = Origin(Caller("gateway", Role.ADMIN))  # what it does by itself

_origin: ContextVar[Origin] = ContextVar("origin", default=GATEWAY)


def begin(origin: Origin) -> None:
    """All that the request under way does from here on is done for this one."""
    _origin.set(origin)


def present() -> Origin:
    return _origin.get()


def of_old(name: str) -> Origin:
    """Of work that an earlier gateway was asked for: only the name is known."""
    return Origin(Caller(name, Role.VIEWER))
