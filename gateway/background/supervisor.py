"""Keeps this gateway known to the others on its store, and takes in what a dead one left behind."""

import contextlib
import logging
import time
from datetime import timedelta

from gateway.config import Settings
from gateway.errors import GatewayError, StoreAway
from gateway.models.base import now
from gateway.models.sessions import Session
from gateway.services.executions import ExecutionService
from gateway.services.live import Live
from gateway.services.live_session import settlement
from gateway.services.past_runs import PastRuns
from gateway.services.recorder import Recorder
from gateway.stores.base import Store
from kernels.engine import Engine, Kept
from kernels.errors import KernelsError

log = logging.getLogger(__name__)


class Supervisor:
    def __init__(
        self, settings: Settings, store: Store, engine: Engine, live: Live, executions: ExecutionService,
        past: PastRuns, recorder: Recorder,
    ) -> None:  # fmt: skip
        self._engine = engine
        self._executions = executions
        self._past = past
        self._kept: list[Kept] = []  # kernels that have outlived an earlier gateway, and wait to be taken back
        self._cleared = False
        self._settings = settings
        self._store = store
        self._live = live
        self._recorder = recorder

    async def look_for_kept(self) -> None:
        """Find the kernels that have outlived an earlier gateway here; the next beats take them back, or end them."""
        self._kept = await self._engine.kept()

    async def beat(self) -> None:
        """Say that we live; let go of what another has taken over; settle what dead gateways, or our last life, left.

        The lease is renewed only when nothing is here any more that is not ours.
        """
        beat_at, here = time.monotonic(), [live for live in self._live if live.closing is None]
        try:
            await self._store.beat(self._settings.gateway_id, now())
            stale_before = now() - timedelta(seconds=self._settings.holder_timeout_s)
            if not self._cleared:  # before any kernel is here
                await self._store.clear_places(self._settings.gateway_id)
                self._cleared = True
            abandoned = await self._store.list_abandoned(self._settings.gateway_id, stale_before)
        except StoreAway as error:
            self._recorder.away(error)
            return
        self._recorder.back()
        ours = {session.uid for session in abandoned if session.holder == self._settings.gateway_id}
        for live in here:
            if live.uid not in ours:
                live.lose("the store names another holder")
        self._recorder.renew_lease(beat_at)
        settled = True
        for session in abandoned:
            try:
                await self._settle(session)
            except GatewayError as error:
                settled = False
                log.warning("Session %r could not be settled: %s", session.id, error.sentence)
        if settled:  # else a kernel may be one of those that could not be
            self._live.settled = True
            while self._kept:
                await self._end_kept(self._kept.pop(), "its session is gone, or another gateway's")

    async def _end_kept(self, kept: Kept, why: str) -> None:
        log.info("Kernel %s of an earlier gateway is ended: %s", kept.kernel_id, why)
        with contextlib.suppress(KernelsError):
            async with self._engine.adopt(kept.kernel_id):
                pass

    async def _settle(self, session: Session) -> None:
        """Make the document of a session without a kernel true, and end the records of its lost runs."""
        if self._live.find(session.id) is not None:
            return  # not even to wait for who claims it: the next beat must be in time
        of_it = sorted((one for one in self._kept if one.place == session.uid), key=_newest_that_runs)
        kept = of_it[-1] if of_it else None
        if kept is not None and kept.exit is None:
            self._executions.take_over(await self._live.hold(session, kept))
            log.info("Session %r carries on with the kernel that it had", session.id)
            self._kept.remove(kept)
            return
        async with self._live.claiming(session.uid):
            if self._live.find(session.id) is None:
                await self._settle_claimed(session, kept)
                if kept is not None:
                    self._kept.remove(kept)

    async def _settle_claimed(self, session: Session, kept: Kept | None) -> None:
        stale_before = now() - timedelta(seconds=self._settings.holder_timeout_s)
        session = await self._store.claim_session(session.uid, self._settings.gateway_id, stale_before)
        if kept is not None:
            with contextlib.suppress(KernelsError):
                await self._past.end_with(session.uid, kept)
        await self._past.end_lost(session.uid, "The gateway stopped while this run was under way.")
        if settled := settlement(session):
            await self._store.move_session(session.uid, settled, holder=self._settings.gateway_id)
        await self._store.release_session(session.uid, self._settings.gateway_id)
        log.info("Session %r was taken in after a gateway that is gone", session.id)


def _newest_that_runs(kept: Kept) -> tuple[bool, float]:
    return kept.exit is None, kept.started_at
