"""Session id → running kernel: the only shared mutable state.

A session that is here is held by this gateway, and by no other.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from weakref import WeakValueDictionary

from gateway.errors import Exhausted, GatewayError, NoRoom, Stopping, Unavailable
from gateway.models.base import now
from gateway.models.sessions import Session
from gateway.services.admitted import admitted
from gateway.services.limits import most_sessions
from gateway.services.live_session import Copy, LiveSession, Tools
from gateway.services.runs import Run
from kernels.engine import Kept

log = logging.getLogger(__name__)


class Unsettled(Unavailable):
    code = "unsettled"

    def __init__(self) -> None:
        super().__init__("This gateway has just started; it looks which sessions are still its own.", retry_after_s=2)


class Live:
    """All sessions that are held here."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._by_id: dict[str, LiveSession] = {}
        self._holding: dict[str, asyncio.Future[LiveSession]] = {}
        self._claims: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self.stopping = False  # no session is taken any more
        self.settled = False  # what an earlier life of this gateway left has been taken back or settled

    def __iter__(self) -> Iterator[LiveSession]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def find(self, session_id: str) -> LiveSession | None:
        """The session if it is held here."""
        return self._by_id.get(session_id)

    @property
    def kernel_count(self) -> int:
        return sum(1 for live in self._by_id.values() if live.kernel is not None or live.starting)

    def check(self) -> None:
        """Raises `Stopping`, `Unsettled` while no session can be taken."""
        if self.stopping:
            raise Stopping()
        if not self.settled:
            raise Unsettled()

    def check_room(self) -> None:
        """Raises `NoRoom` when as many kernels run as may."""
        limit = self._tools.settings.live_limit
        if self.kernel_count >= limit:
            raise NoRoom(limit)

    async def get(self, session_id: str) -> LiveSession:
        """Hold a session, taking it from the store if need be. Raises `SessionNotFound`, `SessionHeld`."""
        while (live := self._by_id.get(session_id)) is not None:
            if live.closing is None:
                admitted(live.session)
                return live
            await live.closed()
        if session_id not in self._holding:
            self._holding[session_id] = taking = asyncio.get_running_loop().create_future()
            taking.add_done_callback(lambda future: future.cancelled() or future.exception())
            self._tools.spawn(self._take(session_id, taking))
        live = await asyncio.shield(self._holding[session_id])
        admitted(live.session)
        return live

    async def _take(self, session_id: str, taking: asyncio.Future[LiveSession]) -> None:
        try:
            found = await self._tools.store.get_session(session_id)
            taking.set_result(await self.hold(found))
        except GatewayError as error:
            taking.set_exception(error)
        except Exception:
            log.exception("Session %r could not be taken from the store", session_id)
            taking.set_exception(GatewayError("Something went wrong here."))
        finally:
            self._holding.pop(session_id, None)

    async def hold(self, session: Session, kept: Kept | None = None) -> LiveSession:
        """Claim a stored session, with a kernel that is there already. Raises `SessionHeld`, `Stopping`."""
        async with self.claiming(session.uid):
            while (live := self._by_id.get(session.id)) is not None and live.uid == session.uid:
                if live.closing is None:
                    return live
                await live.closed()
            if self.stopping:
                raise Stopping()
            if kept is None and not self.settled:
                raise Unsettled()
            settings = self._tools.settings
            stale_before = now() - timedelta(seconds=settings.holder_timeout_s)
            session = await self._tools.store.claim_session(session.uid, settings.gateway_id, stale_before)
            live = self._add(session)
            if kept is not None:
                live.take(kept)
            else:
                live.front_ends.begin_anew()
                live.settle()
            return live

    async def create(self, session: Session, copy: Copy | None = None) -> LiveSession:
        """Keep a new session, held by this gateway from its first moment, with a kernel that is there already.

        Raises `SessionExists`; `Stopping`, and then it is kept, but not held here.
        """
        session = session.model_copy(update={"holder": self._tools.settings.gateway_id})
        async with self.claiming(session.uid):
            await self._tools.store.create_session(session, most_sessions(self._tools.settings))
            if self.stopping:
                raise Stopping()
            live = self._add(session)
            if copy is not None:
                live.take(copy)
            return live

    @asynccontextmanager
    async def claiming(self, uid: str) -> AsyncIterator[None]:
        """Who claims or releases a session in the store does it in here, so that nobody's claim is undone."""
        lock = self._claims.setdefault(uid, asyncio.Lock())
        async with lock:
            yield

    def _add(self, session: Session) -> LiveSession:
        def gone() -> None:
            if self._by_id.get(session.id) is live:
                del self._by_id[session.id]

        live = LiveSession(session, self._tools, self.check_room, gone)
        if (former := self._by_id.get(session.id)) is not None:  # it was deleted, and its id given to this one
            self._tools.spawn(former.close("The session was deleted."))
        self._by_id[session.id] = live
        return live

    def enqueue(self, live: LiveSession, run: Run) -> None:
        """Put a run at the end of its session's queue. Raises `Exhausted` when that is full."""
        limit = self._tools.settings.queue_limit
        if len(live.queue) >= limit:
            raise Exhausted(f"{limit} runs wait for session {live.session.id!r} already.", retry_after_s=1, limit=limit)
        live.queue.append(run)
