"""Runs of a session that follow one another: a notebook's cells, a history once more.

They are in the session's queue one at a time, so that others are served in between. A series is of this process alone:
when the gateway ends, the run under way lives on as any run does, and the later ones do not begin.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from datetime import datetime
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from gateway.config import MEBI, Settings
from gateway.errors import GatewayError, NotFound
from gateway.models.base import now
from gateway.models.executions import RunAnswer, RunRequest
from gateway.models.notebooks import SeriesStatus
from gateway.services.executions import ExecutionService
from gateway.services.journal import Journal
from gateway.services.recorder import Spawn
from gateway.services.runs import Run
from kernels.errors import KernelsError

log = logging.getLogger(__name__)

_REMEMBERED = 100
_REMEMBERED_BYTES = 128 * MEBI


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
    def __init__(self, settings: Settings, executions: ExecutionService, spawn: Spawn) -> None:
        self._settings = settings
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

    def begin(self, series: Series, work: Callable[[], Awaitable[bool]]) -> None:
        """Do its work, which tells whether all went well, in a task of its own."""
        self._known[series.id] = series
        self._spawn(self._perform(series, work))

    async def _perform(self, series: Series, work: Callable[[], Awaitable[bool]]) -> None:
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

    async def run(self, series: Series, session_id: str, request: RunRequest, caller: str, **about: Any) -> RunAnswer:
        """One run of the series, once it is over; its events go into the series' own, with all that is told `about`."""
        async with self._executions.open(session_id, request, caller, interactive=series.interactive) as run:
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
