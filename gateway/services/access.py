"""Who may do what: the one place that decides.

What a caller may not see is not there for it: it gets the very answer that an unknown id gets. What it sees but may
not do is denied.
"""

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from gateway.config import Settings
from gateway.errors import (
    AgentNotFound,
    Denied,
    GatewayError,
    SessionNotFound,
    SnapshotNotFound,
    StoreAway,
    Unauthenticated,
)
from gateway.models.access import LOCAL, Caller, Level, Need, Role
from gateway.models.sessions import Session
from gateway.models.snapshots import Snapshot
from gateway.services.guardrails import Guardrails
from gateway.services.keys import KeyService, hashed
from gateway.services.live import Live
from gateway.services.throttle import Throttle
from gateway.stores.base import Store

log = logging.getLogger(__name__)

_MOST_REMEMBERED = 10_000
_YOUNG_S = 1.0
_GRANTED = {"read": Level.READ, "run": Level.RUN, "write": Level.WRITE}
_DOES = {
    Level.READ: "look into", Level.RUN: "run in", Level.WRITE: "change", Level.OWN: "delete or grant",
}  # fmt: skip


@dataclass(eq=False, slots=True)
class Pass:
    """A request that was let in. When its caller may no longer do what it does, `cut_off` is called."""

    again: Callable[[], Awaitable[Caller]]  # who it is now; raises if nobody any more
    need: Need
    session_uid: str | None
    cut_off: Callable[[], None]
    since: float = field(default_factory=time.monotonic)


class Access:
    def __init__(
        self, settings: Settings, store: Store, live: Live, keys: KeyService, guardrails: Guardrails
    ) -> None:  # fmt: skip
        self._guardrails = guardrails
        self._auto_create = settings.auto_create
        self._always_asks = settings.exposed and not settings.insecure
        self._store = store
        self._live = live
        self._keys = keys
        self._throttle = Throttle()
        self._let_in: OrderedDict[tuple[str, str], None] = OrderedDict()  # address and hash of a key that was good
        self._passes: set[Pass] = set()

    # Who

    async def enter(self, token: str | None, remote: str) -> Caller:
        """Who is asking. Raises `Unauthenticated`; `Exhausted` for an address that has guessed too often.

        An address from which a key was good before goes on with that very key, also while others guess from it.
        """
        if not self._always_asks and not await self._keys.any():
            return LOCAL
        if token is None:
            raise Unauthenticated("This gateway asks for a key: send it as Authorization: Bearer …")
        here = (remote, hashed(token))
        if here not in self._let_in:
            self._throttle.check(remote)
        try:
            key = await self._keys.open(token)
        except Unauthenticated:
            self._let_in.pop(here, None)
            self._throttle.failed(remote)
            raise
        self._let_in[here] = None
        self._let_in.move_to_end(here)
        if len(self._let_in) > _MOST_REMEMBERED:
            self._let_in.popitem(last=False)
        self._keys.used(key)
        return key.caller

    async def again(self, token: str | None) -> Caller:
        """Who has entered with that, now. Raises `Unauthenticated`."""
        return LOCAL if token is None else (await self._keys.open(token)).caller

    # What

    def level(self, who: Caller, session: Session) -> Level:
        """What a caller may do with a session; NONE if it is not to know of it."""
        if who.is_admin:
            return Level.OWN
        if session.created_by == who.acts_as:
            level = Level.OWN
        else:
            level = _GRANTED.get(session.grants.get(who.acts_as, ""), Level.NONE)
            if who.agent_id is not None and any(agent.id == who.agent_id for agent in session.agents):
                level = max(level, Level.RUN)
        return min(level, Level.READ) if who.role is Role.VIEWER else level

    def check(self, who: Caller, need: Need, session: Session | None, missing: GatewayError) -> None:
        """Raise `missing` for what the caller is not to see, `Denied` for what it may not do.

        `session`: the one that the request names, None if there is none.
        """
        if who.is_admin:
            return
        if need.level is not Level.NONE:
            makes = need is Need.RUN_OR_MAKE and self._auto_create and self.may_make(who)
            if not (session is None and makes):
                self.require(who, need.level, session, missing)
        if need in (Need.MAKE, Need.COPY, Need.UNDELETE):
            self.check_may_make(who)
        elif need is Need.MONITOR and (who.role is not Role.VIEWER or who.agent_id is not None):
            raise Denied("This needs a key of the role admin or viewer.", role=who.role)
        elif need is Need.ADMIN:
            raise Denied("This needs a key of the role admin.", role=who.role)

    def require(self, who: Caller, level: Level, session: Session | None, missing: GatewayError) -> None:
        """The part of `check` that is about a session, also for one that a request names in its body."""
        has = self.level(who, session) if session is not None else Level.NONE
        if has is Level.NONE:
            raise missing
        if has < level:
            raise Denied(
                f"{who.acts_as!r} may {_DOES[has]} this session, not {_DOES[level]} it.", needs=level.name.lower()
            )
        if session is not None:
            self._guardrails.check_session(who, session)

    def check_admin(self, who: Caller) -> None:
        if not who.is_admin:
            raise Denied("This needs a key of the role admin.", role=who.role)

    def may_make(self, who: Caller) -> bool:
        return who.role is not Role.VIEWER

    def check_may_make(self, who: Caller) -> None:
        if not self.may_make(who):
            raise Denied("A viewer makes no sessions.", role=who.role)

    async def check_agent(self, who: Caller, need: Need, agent_id: str) -> None:
        """An agent is that of who made it, and a key of its own is it. Raises `AgentNotFound`, `Denied`."""
        if who.is_admin:
            return
        if need is Need.AGENT_UNDELETE and who.agent_id is None:
            sees = True  # or not: the store finds it only for who made it
        elif need is Need.AGENT_UNDELETE:
            sees = False
        elif who.agent_id is not None:
            sees = who.agent_id == agent_id
        else:
            sees = await self._has_made(who, agent_id, otherwise=need is Need.AGENT_OR_MAKE)
        if not sees:
            raise AgentNotFound(agent_id)
        if who.role is Role.VIEWER and need is not Need.AGENT_READ:
            raise Denied("A viewer changes no agents.", role=who.role)

    async def _has_made(self, who: Caller, agent_id: str, *, otherwise: bool) -> bool:
        """`otherwise`: if nobody has."""
        try:
            return (await self._store.get_agent(agent_id)).created_by == who.name
        except AgentNotFound:
            return otherwise

    async def check_snapshot(self, who: Caller, snapshot_id: str) -> None:
        """Raise `SnapshotNotFound` unless the caller may read it: it brought it in, or may read its session."""
        if who.is_admin:
            return
        snapshot = await self._store.get_snapshot(snapshot_id)
        if snapshot.is_loose:
            self.check_brought_in(who, snapshot)
            return
        try:
            session = await self._session(snapshot.place)
        except SessionNotFound:
            raise SnapshotNotFound(snapshot_id) from None
        self.require(who, Level.READ, session, SnapshotNotFound(snapshot_id))

    def check_brought_in(self, who: Caller, snapshot: Snapshot) -> None:
        """Raise `SnapshotNotFound` unless the caller has brought it in."""
        if not who.is_admin and snapshot.created_by != who.acts_as:
            raise SnapshotNotFound(snapshot.id)

    # For how long

    def begin(self, watched: Pass) -> None:
        """Keep an eye on a request until `end`."""
        self._passes.add(watched)

    def end(self, watched: Pass) -> None:
        self._passes.discard(watched)

    async def recheck(self) -> None:
        """Cut off what has been under way for a while, and would not be let in any more."""
        before = time.monotonic() - _YOUNG_S
        for one in [one for one in self._passes if one.since < before]:
            try:
                await self._let_in_again(one)
            except StoreAway:
                return  # whatever was decided while it was there holds
            except SessionNotFound:
                continue  # what goes on in a session ends with it
            except GatewayError as error:
                self._passes.discard(one)
                log.info("A request was cut off: %s", type(error).__name__)
                one.cut_off()

    async def _let_in_again(self, one: Pass) -> None:
        who = await one.again()
        if one.session_uid is not None:
            session = await self._session(one.session_uid)
            self.check(who, one.need, session, Denied("It was granted before."))

    async def _session(self, uid: str) -> Session:
        for live in self._live:
            if live.uid == uid and live.closing is None:
                return live.session
        return await self._store.get_session_by_uid(uid)
