"""Autosave: the variables of sessions that have changed and are quiet, so that a crash costs at most the work since."""

import logging
import time

from gateway.config import Settings
from gateway.errors import GatewayError
from gateway.services.live import Live
from gateway.services.live_session import LiveSession
from gateway.services.recorder import Spawn
from kernels.errors import KernelBusy, KernelGone, KernelsError

log = logging.getLogger(__name__)

_SHARE_OF_TIME = 20  # a save that takes a second is not made again before twenty have passed


class Saver:
    def __init__(self, settings: Settings, live: Live, spawn: Spawn) -> None:
        self._settings = settings
        self._live = live
        self._spawn = spawn
        self._next_at: dict[str, float] = {}

    async def sweep(self) -> None:
        """One look at every live session; saving takes its time beside it."""
        at = time.monotonic()
        self._next_at = {uid: next_at for uid, next_at in self._next_at.items() if next_at > at}
        for live in self._live:
            if self._is_due(live, at) and live.uid not in self._next_at:
                self._next_at[live.uid] = float("inf")
                self._spawn(self._save(live))

    def _is_due(self, live: LiveSession, at: float) -> bool:
        quiet = not live.busy and live.closing is None and at - live.active_at >= self._settings.autosave_quiet_s
        return quiet and live.session.persistent and live.has_unsaved_work

    async def _save(self, live: LiveSession) -> None:
        began = time.monotonic()
        try:
            await live.save("autosave")
        except (KernelBusy, KernelGone):
            pass  # it was used just now, or has ended
        except (GatewayError, KernelsError) as error:
            log.warning("Session %r could not be saved (%s)", live.session.id, type(error).__name__)
        finally:
            ended = time.monotonic()
            pause_s = max(self._settings.autosave_interval_s, _SHARE_OF_TIME * (ended - began))
            self._next_at[live.uid] = ended + pause_s
