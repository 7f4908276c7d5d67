"""Looks what kernels use whose owners have a quota, and stops those that run on past it."""

import logging

from gateway.errors import GatewayError
from gateway.services.executions import ExecutionService
from gateway.services.live import Live
from gateway.services.live_session import LiveSession
from gateway.services.quotas import QuotaService
from gateway.services.recorder import Spawn
from gateway.services.sessions import SessionService
from kernels.errors import KernelsError

log = logging.getLogger(__name__)


class Meter:
    def __init__(
        self, live: Live, sessions: SessionService, executions: ExecutionService, quotas: QuotaService, spawn: Spawn
    ) -> None:
        self._live = live
        self._sessions = sessions
        self._executions = executions
        self._quotas = quotas
        self._spawn = spawn
        self._ending: set[str] = set()

    async def sweep(self) -> None:
        """One look at every session here; what is to be ended takes its time beside it."""
        held = [live for live in self._live if live.kernel is not None and live.closing is None]
        for live in held:
            try:
                await self._look_at(live)
            except (GatewayError, KernelsError) as error:
                log.warning("What session %r uses could not be counted (%s)", live.session.id, type(error).__name__)

    async def _look_at(self, live: LiveSession) -> None:
        if self._quotas.disk_limit(live.session) is not None:
            await self._sessions.count_files(live.session)
        if self._quotas.counts_cpu(live.session) and (kernel := live.kernel) is not None:
            may_go_on = await self._quotas.measure(live.session, kernel)
            if not may_go_on and live.busy and live.uid not in self._ending:
                self._ending.add(live.uid)
                self._spawn(self._end(live))

    async def _end(self, live: LiveSession) -> None:
        try:
            await self._quotas.check_cpu(live.session)
        except GatewayError as error:
            await self._executions.end(live, error.sentence)
        finally:
            self._ending.discard(live.uid)
