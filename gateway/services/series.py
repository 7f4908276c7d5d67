"""Runs of a session that follow one another: a notebook's cells, a history once more.

They are in the session's queue one at a time, so that others are served in between. A series is of this process alone:
when the gateway ends, the run under way lives on as any run does, and the later ones do not begin. What it was asked
for is kept for a day, so that the next gateway can tell what came of it.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from gateway.config import MEBI, Settings
from gateway.errors import ExecutionNotFound, GatewayError, NotFound
from gateway.models.base import now
from gateway.models.executions import ExecutionView, RunAnswer, RunRequest
from gateway.models.idempotency import KeptAnswer
from gateway.models.notebooks import SeriesStatus
from gateway.models.series import KeptSeries, SeriesKind, run_id
from gateway.services.executions import ExecutionService
from gateway.services.idempotency import KEPT_FOR, full_key
from gateway.services.journal import Journal
from gateway.services.recorder import Recorder, Spawn
from gateway.services.runs import Run
from kernels.errors import KernelsError

log = logging.getLogger(__name__)

_REMEMBERED = 100
_REMEMBERED_BYTES = 128 * MEBI


_STOPPED = "The gateway stopped while it ran; what had not begun by then was not run."


class SeriesNotFound(NotFound):
    code = "series_not_found"

    def __init__(self, series_id: str) -> None:
        super().__init__(f"Nothing that ran lately is called {series_id!r}; the history has every run.")


class Series:
    """It is ended by its own task alone; everybody else asks or waits. `view` tells how it stands."""

    def __init__(self, uid: str, *, interactive: bool, journal_bytes: int) -> None:
        self.id = uuid4().hex
        self.uid = uid  # of the session that it was asked for in
        self.interactive = interactive
        self.journal = Journal(journal_bytes)
        self.finished = asyncio.Event()
        self.status = SeriesStatus.RUNNING
        self.reason: str | None = None
        self.started_at = now()
        self.finished_at: datetime | None = None
        self.view: Callable[[], BaseModel]
        self.size_bytes = 0  # of what `view` holds, about
        self.keep_on = False  # nobody need follow it
        self.followers = 0
        self.departures = 0
        self.current: Run | None = None

    def stop(self, reason: str) -> None:
        """Have no further run begin."""
        if self.status is SeriesStatus.RUNNING:
            self.status, self.reason = SeriesStatus.INTERRUPTED, reason

    @property
    def goes_on(self) -> bool:
        return self.status is SeriesStatus.RUNNING


class SeriesService:
    def __init__(self, settings: Settings, executions: ExecutionService, recorder: Recorder, spawn: Spawn) -> None:
        self._settings = settings
        self._recorder = recorder
        self._executions = executions
        self._spawn = spawn
        self._known: OrderedDict[str, Series] = OrderedDict()

    def find(self, uid: str, series_id: str) -> Series:
        """One that is under way or has ended lately. Raises `SeriesNotFound`."""
        series = self._known.get(series_id)
        if series is None or series.uid != uid:
            raise SeriesNotFound(series_id)
        return series

    def new(self, uid: str, *, interactive: bool) -> Series:
        return Series(uid, interactive=interactive, journal_bytes=2 * self._settings.output_limit_bytes)

    async def begin(
        self, series: Series, kind: SeriesKind, asked: dict[str, Any], work: Callable[[], Awaitable[bool]]
    ) -> None:
        """Do its work, which tells whether all went well, in a task of its own; `asked` is kept, and must be JSON."""
        kept = KeptSeries(
            kind=kind, id=series.id, gateway_id=self._settings.gateway_id, asked=asked, started_at=series.started_at
        )
        asked_json = kept.model_dump_json()  # as it is now: its work writes into it
        reservation = _answer(series.uid, kept)  # which also makes room: older ones go
        await self._recorder.write(partial(self._recorder.store.reserve_answer, reservation, now() - KEPT_FOR))
        self._known[series.id] = series
        self._spawn(self._perform(series, asked_json, work))

    async def past(self, uid: str, kind: SeriesKind, series_id: str) -> tuple[Series, KeptSeries]:
        """One that is not under way here any more, and how it stands as far as is known. Raises `SeriesNotFound`."""
        answer = await self._recorder.store.get_answer(_key(uid, series_id))
        kept = None if answer is None else KeptSeries.model_validate_json(answer.body)
        if kept is None or kept.kind != kind:
            raise SeriesNotFound(series_id)
        if kept.status is SeriesStatus.RUNNING and not await self._is_run_elsewhere(kept):
            kept.status, kept.reason = SeriesStatus.INTERRUPTED, _STOPPED
        series = self.new(uid, interactive=False)
        series.id, series.status, series.reason = kept.id, kept.status, kept.reason
        series.started_at, series.finished_at = kept.started_at, kept.finished_at
        return series, kept

    async def past_run(self, uid: str, series_id: str, index: int) -> ExecutionView | None:
        """One of its runs, if it has begun; an earlier gateway may have begun it."""
        try:
            record = await self._executions.record(uid, run_id(series_id, index))
        except ExecutionNotFound:
            return None
        return ExecutionView.of(record) if record.started_at is not None else None

    async def _is_run_elsewhere(self, kept: KeptSeries) -> bool:
        if kept.gateway_id == self._settings.gateway_id:
            return False
        stale_before = now() - timedelta(seconds=self._settings.holder_timeout_s)
        return await self._recorder.store.is_alive(kept.gateway_id, stale_before)

    async def _perform(self, series: Series, kept: str, work: Callable[[], Awaitable[bool]]) -> None:
        try:
            fine = await work()
            if series.status is SeriesStatus.RUNNING:
                series.status = SeriesStatus.OK if fine else SeriesStatus.ERROR
        except (GatewayError, KernelsError) as error:
            series.stop(str(error))
        except Exception as error:
            log.exception("A series of runs broke")
            series.stop(f"Something went wrong here ({type(error).__name__}).")
        finally:
            series.finished_at = now()
            series.journal.add("done", series.view(), 0)
            series.journal.close()
            series.finished.set()
            self._forget_old()
        ended = {"status": series.status, "reason": series.reason, "finished_at": series.finished_at}
        answer = _answer(series.uid, KeptSeries.model_validate_json(kept).model_copy(update=ended))
        await self._recorder.write(partial(self._recorder.store.keep_answer, answer))

    async def run(
        self, series: Series, session_id: str, request: RunRequest, caller: str, *, index: int, **about: Any
    ) -> RunAnswer:
        """One run of the series, once it is over; its events go into the series' own, with all that is told `about`."""
        about["index"], id_ = index, run_id(series.id, index)
        opened = self._executions.open(session_id, request, caller, interactive=series.interactive, run_id=id_)
        async with opened as run:
            series.current = run
            try:
                async with aclosing(run.journal.follow()) as events:
                    async for event in events:
                        if event.kind == "start":
                            series.journal.add("cell", {**event.data, **about}, len(run.record.code))
                        elif event.kind != "done":
                            series.journal.add(event.kind, {**event.data, **about}, event.size_bytes)
                return await self._executions.answer_of(run)
            finally:
                series.current = None

    @contextmanager
    def following(self, series: Series) -> Iterator[None]:
        """Wait for a series, or follow its events: one that everybody has left is stopped, after the grace time."""
        series.followers += 1
        try:
            yield
        finally:
            series.followers -= 1
            series.departures += 1
            if series.followers == 0 and not series.finished.is_set() and not series.keep_on:
                self._spawn(self._stop_unless_followed(series, series.departures))

    async def _stop_unless_followed(self, series: Series, departures: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.resume_grace_s if series.interactive else 0):
                await series.finished.wait()
        if not series.finished.is_set() and series.followers == 0 and series.departures == departures:
            await self.stop(series, "Everybody who followed it has left.")

    async def stop(self, series: Series, reason: str = "It was stopped.") -> None:
        """Stop the run under way, let no further one begin, and wait for the end."""
        series.stop(reason)
        if series.current is not None:
            await series.current.stop(self._settings.interrupt_grace_s)
        await series.finished.wait()

    def _forget_old(self) -> None:
        def held_bytes(series: Series) -> int:
            return series.size_bytes + series.journal.size_bytes

        total_bytes = sum(map(held_bytes, self._known.values()))
        for series in list(self._known.values()):
            if len(self._known) <= _REMEMBERED and total_bytes <= _REMEMBERED_BYTES:
                return
            if series.finished.is_set():
                del self._known[series.id]
                total_bytes -= held_bytes(series)


def _answer(uid: str, kept: KeptSeries) -> KeptAnswer:
    body = kept.model_dump_json().encode()
    return KeptAnswer(key=_key(uid, kept.id), request_digest=uid, created_at=now(), body=body)


def _key(uid: str, series_id: str) -> str:
    return full_key("series", uid, series_id)
