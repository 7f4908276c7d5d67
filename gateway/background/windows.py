"""Ends windows whose time has come, and puts to sleep the sessions that they held."""

import logging
from datetime import datetime

from gateway.errors import Conflict, GatewayError, NotFound, StoreAway
from gateway.services.live import Live
from gateway.services.live_session import LiveSession
from gateway.services.recorder import Spawn
from gateway.services.sessions import SessionService
from gateway.services.windows import WindowService
from gateway.states import State
from kernels.errors import KernelsError

log = logging.getLogger(__name__)

_REASON = "The window of its agent is over; files and variables are kept."


class WindowSweeper:
    """A session is held while one of its agents has an active window.

    When the last of these ends it is put to sleep, once: whoever wakes it afterwards has it as long as any other.
    """

    def __init__(self, live: Live, sessions: SessionService, windows: WindowService, spawn: Spawn) -> None:
        self._live = live
        self._sessions = sessions
        self._windows = windows
        self._spawn = spawn
        self._held: set[str] = set()  # uids
        self._due: set[str] = set()
        self._under_way: set[str] = set()

    async def sweep(self) -> None:
        """One look at all windows, and at every session here that has agents."""
        try:
            await self._windows.end_expired()
            here = [live for live in self._live if live.session.agents and live.closing is None]
            agent_ids = {agent.id for live in here for agent in live.session.agents}
            over = await self._windows.over_since(sorted(agent_ids))
        except StoreAway:
            return
        uids = {live.uid for live in here}
        self._held &= uids
        self._due &= uids
        for live in here:
            self._look_at(live, [over[agent.id] for agent in live.session.agents if agent.id in over])

    def _look_at(self, live: LiveSession, over_since: list[datetime | None]) -> None:
        """`over_since` holds one entry for each of its agents that ever had a window, None if that is active."""
        if not over_since:
            return
        if None in over_since:
            self._held.add(live.uid)
            self._due.discard(live.uid)
            return
        ended = max(at for at in over_since if at is not None)
        # The second is for a gateway that was not there when the window ended.
        if live.uid in self._held or live.session.updated_at <= ended:
            self._held.discard(live.uid)
            self._due.add(live.uid)
        if live.uid in self._due and live.uid not in self._under_way and not live.busy:
            self._under_way.add(live.uid)
            self._spawn(self._put_to_sleep(live))

    async def _put_to_sleep(self, live: LiveSession) -> None:
        try:
            if live.session.state is State.READY and live.uid in self._due:
                await self._sessions.hibernate(live.session.id, _REASON, active_at=live.active_at)
            if live.session.state is not State.INIT:
                self._due.discard(live.uid)
        except Conflict:
            pass  # it runs code just now: the next sweep looks again
        except NotFound:
            self._due.discard(live.uid)
        except (GatewayError, KernelsError) as error:
            log.warning("Session %r stays awake (%s)", live.session.id, type(error).__name__)
            self._due.discard(live.uid)  # its document says why; it sleeps when it has been idle
        finally:
            self._under_way.discard(live.uid)
