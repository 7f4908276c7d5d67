"""Puts idle sessions to sleep, lets go of those that sleep, and ends what is only for once."""

import logging
import time
from datetime import datetime, timedelta

from gateway.config import Settings
from gateway.errors import Conflict, GatewayError, NotFound, StoreAway
from gateway.models.base import now
from gateway.models.sessions import Session
from gateway.services.live import Live
from gateway.services.live_session import LiveSession
from gateway.services.recorder import Spawn
from gateway.services.sessions import SessionService
from gateway.states import State
from gateway.stores.base import Store
from kernels.errors import KernelsError

log = logging.getLogger(__name__)


class Reaper:
    def __init__(self, settings: Settings, store: Store, live: Live, sessions: SessionService, spawn: Spawn) -> None:
        self._settings = settings
        self._store = store
        self._live = live
        self._sessions = sessions
        self._spawn = spawn
        self._under_way: set[str] = set()

    async def sweep(self) -> None:
        """One look at every live session; what is to be done takes its time beside it."""
        for live in self._live:
            if live.uid not in self._under_way and live.closing is None and not live.busy:
                idle_s = time.monotonic() - live.active_at
                if self._sleeps(live):
                    if idle_s >= self._settings.release_after_s:
                        live.let_go("Nobody uses it; any gateway may take it.")
                elif self._is_over(live, idle_s):
                    self._under_way.add(live.uid)
                    self._spawn(self._put_away(live, live.active_at))

    async def sweep_unheld(self) -> None:
        """One look at what is only for once and was left by a gateway that stopped."""
        try:
            left = await self._store.list_unheld_temporary()
        except StoreAway:
            return
        for session in left:
            if _idle_until(session) < now() and self._live.find(session.id) is None:
                try:
                    await self._sessions.delete(session.id)
                except (Conflict, NotFound):
                    pass  # another gateway was faster
                except GatewayError as error:
                    log.warning("Session %r could not be deleted: %s", session.id, error)

    def _sleeps(self, live: LiveSession) -> bool:
        """Whether there is nothing here that the store does not have, and nobody listens."""
        without_kernel = live.kernel is None and not live.starting and not live.is_being_changed
        heard = live.events.followers > 0 or live.front_ends.attached > 0
        return without_kernel and live.session.persistent and not heard

    def _is_over(self, live: LiveSession, idle_s: float) -> bool:
        session = live.session
        if session.state is State.READY or not session.persistent:
            return idle_s >= session.waiting_timeout_seconds
        return False

    async def _put_away(self, live: LiveSession, active_at: float) -> None:
        try:
            if not live.session.persistent:
                await self._delete(live, active_at)
            else:
                idle_s = time.monotonic() - active_at
                reason = f"It was idle for {idle_s:.0f} s; files and variables are kept."
                await self._sessions.hibernate(live.session.id, reason, active_at=active_at)
        except (Conflict, NotFound):
            pass  # it was used just now, or deleted
        except (GatewayError, KernelsError) as error:
            log.warning("Session %r stays awake (%s)", live.session.id, type(error).__name__)
            live.touch()  # its document says why; it is tried again when it has been idle once more
        finally:
            self._under_way.discard(live.uid)

    async def _delete(self, live: LiveSession, active_at: float) -> None:
        await live.outbox.flushed()  # here, so that the delete need not wait for it
        if live.active_at == active_at and live.closing is None and not live.busy:
            await self._sessions.delete(live.session.id)


def _idle_until(session: Session) -> datetime:
    return session.updated_at + timedelta(seconds=session.waiting_timeout_seconds)
