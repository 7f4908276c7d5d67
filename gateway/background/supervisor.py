"""Keeps this gateway known to the others on its store, and takes in what a dead one left behind."""

import logging
import time
from datetime import timedelta

from gateway.config import Settings
from gateway.errors import GatewayError, StoreAway
from gateway.models.base import now
from gateway.models.executions import RunError, Status
from gateway.models.sessions import Session
from gateway.services.live import Live, settlement
from gateway.services.recorder import Recorder
from gateway.stores.base import Store

log = logging.getLogger(__name__)


class Supervisor:
    def __init__(self, settings: Settings, store: Store, live: Live, recorder: Recorder) -> None:
        self._settings = settings
        self._store = store
        self._live = live
        self._recorder = recorder

    async def beat(self) -> None:
        """Say that we live; let go of what another has taken over; settle what dead gateways, or our last life, left.

        The lease is renewed only when nothing is here any more that is not ours.
        """
        beat_at, here = time.monotonic(), [live for live in self._live if live.closing is None]
        try:
            await self._store.beat(self._settings.gateway_id, now())
            stale_before = now() - timedelta(seconds=self._settings.holder_timeout_s)
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
        for session in abandoned:
            try:
                await self._settle(session)
            except GatewayError as error:
                log.warning("Session %r could not be settled: %s", session.id, error.sentence)

    async def _settle(self, session: Session) -> None:
        """Make the document of a session without a kernel true, and end the records of its lost runs."""
        if self._live.find(session.id) is not None:
            return  # not even to wait for who claims it: the next beat must be in time
        async with self._live.claiming(session.uid):
            if self._live.find(session.id) is None:
                await self._settle_claimed(session)

    async def _settle_claimed(self, session: Session) -> None:
        stale_before = now() - timedelta(seconds=self._settings.holder_timeout_s)
        session = await self._store.claim_session(session.uid, self._settings.gateway_id, stale_before)
        for lost in await self._store.list_unfinished(session.uid):
            error = RunError(ename="GatewayStopped", evalue="The gateway stopped while this run was under way.")
            ended = {"status": Status.DIED, "error": error, "state_kept": False, "finished_at": now()}
            await self._store.put_execution(lost.model_copy(update=ended))
        if settled := settlement(session):
            await self._store.move_session(session.uid, settled)
        await self._store.release_session(session.uid, self._settings.gateway_id)
        log.info("Session %r was taken in after a gateway that is gone", session.id)
