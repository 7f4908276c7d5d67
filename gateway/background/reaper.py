"""Puts idle sessions to sleep, and ends what is only for once."""

import logging
import time

from gateway.config import Settings
from gateway.errors import Conflict, GatewayError
from gateway.services.live import Live, LiveSession
from gateway.services.sessions import SessionService
from gateway.states import State
from kernels.errors import KernelsError

log = logging.getLogger(__name__)


class Reaper:
    def __init__(self, settings: Settings, live: Live, sessions: SessionService) -> None:
        self._settings = settings
        self._live = live
        self._sessions = sessions

    async def sweep(self) -> None:
        """One look at every live session."""
        for live in self._live:
            idle_s = time.monotonic() - live.active_at
            if live.busy or live.closing is not None or idle_s < live.session.waiting_timeout_seconds:
                continue
            try:
                await self._put_away(live, idle_s)
            except Conflict:
                pass  # it was used just now
            except (GatewayError, KernelsError) as error:
                log.warning("Session %r could not be put to sleep: %s", live.session.id, error)

    async def _put_away(self, live: LiveSession, idle_s: float) -> None:
        if not live.session.persistent:
            await self._sessions.delete(live.session.id)
        elif live.session.state is State.READY:
            reason = f"It was idle for {idle_s:.0f} s; files are kept, variables are not."
            await self._sessions.hibernate(live.session.id, reason)
