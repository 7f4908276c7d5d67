"""Running code: one run at a time a session, in order of arrival; all that a run can end in."""

import asyncio
import base64
import binascii
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import Any
from uuid import uuid4

from gateway.config import Settings
from gateway.errors import (
    Conflict,
    ExecutionNotFound,
    GatewayError,
    Invalid,
    SessionNotFound,
    Stopping,
    StoreAway,
    TooLarge,
    Unavailable,
)  # fmt: skip
from gateway.metrics import Metrics
from gateway.models.base import now
from gateway.models.executions import (
    Accepted,
    ExecuteRequest,
    Execution,
    ExecutionList,
    ExecutionView,
    FileContent,
    HistoryList,
    Interrupted,
    RunAnswer,
    RunError,
    RunRequest,
    Status,
)  # fmt: skip
from gateway.models.pages import PageRequest
from gateway.models.sessions import CreateSession
from gateway.services.asked import AskedCell
from gateway.services.beside import BesideService
from gateway.services.front_ends import FrontEnd
from gateway.services.guardrails import Guardrails, Named
from gateway.services.limits import Limits
from gateway.services.live import Live
from gateway.services.live_session import LiveSession
from gateway.services.past_runs import NO_TIMEOUT_S, PastRuns
from gateway.services.quotas import QuotaService
from gateway.services.recorder import Recorder, Spawn
from gateway.services.runs import Run
from gateway.services.sessions import SessionService
from gateway.states import State
from gateway.stores.base import SessionChanges, Store
from kernels.engine import Engine
from kernels.errors import KernelGone, KernelsError, NeverArrived, NotOffered, StartFailed
from kernels.journaled import PastRun
from kernels.kernel import Execution as Cell
from kernels.kernel import Kernel
from kernels.outputs import error_of

log = logging.getLogger(__name__)

_REMEMBERED_RUNS = 500
_STORE_LOOK_S = 0.5
_PATIENCE_S = 5.0
_SHORTEST_S = 0.1  # for a run whose time was over when it was taken over
_REMEMBERED_BYTES = 32 * 2**20


class ExecutionService:
    def __init__(
        self, settings: Settings, store: Store, live: Live, sessions: SessionService, recorder: Recorder,
        spawn: Spawn, metrics: Metrics, engine: Engine, past: PastRuns,
        beside: BesideService, limits: Limits, guardrails: Guardrails, quotas: QuotaService,
    ) -> None:  # fmt: skip
        self._quotas = quotas
        self._guardrails = guardrails
        self._limits = limits
        self._beside = beside
        self._settings = settings
        self._store = store
        self._engine = engine
        self._past = past
        self._live = live
        self._sessions = sessions
        self._recorder = recorder
        self._spawn = spawn
        self._metrics = metrics
        self._recent: OrderedDict[str, Run] = OrderedDict()
        self._recent_bytes = 0
        self._stopping = asyncio.Event()
        self._taking_over: dict[str, asyncio.Event] = {}  # by uid: set once it is known what had begun

    async def run(self, session_id: str, request: RunRequest, caller: str, *, run_id: str | None = None) -> RunAnswer:
        """Run code and answer with all of its outputs.

        With a `run_id`, under which a caller asks again, it runs to its end if the caller leaves, and never twice.
        """
        if run_id is not None and (known := await self._known(session_id, run_id)) is not None:
            return await self._answer_again(known)
        async with self.open(session_id, request, caller, interactive=False, run_id=run_id) as run:
            run.keep_on = run_id is not None
            return await self.answer_of(run)

    async def start(self, session_id: str, request: RunRequest, caller: str, *, run_id: str | None = None) -> Accepted:
        """Begin a run that nobody waits for."""
        if run_id is not None and (known := await self._known(session_id, run_id)) is not None:
            record = known.record if isinstance(known, Run) else known
            return Accepted(execution_id=record.id, session_id=record.session_id, status=record.status)
        async with self.open(session_id, request, caller, interactive=True, run_id=run_id) as run:
            run.keep_on = True
            return Accepted(execution_id=run.id, session_id=run.record.session_id, status=run.record.status)

    async def _known(self, session_id: str, run_id: str) -> Run | Execution | None:
        """A run that was asked for before and has begun, or will: an earlier gateway may have had it."""
        try:
            live = await self._live.get(session_id)
        except SessionNotFound:
            return None
        await self._taken_over(live.uid)
        if (run := self._recent.get(run_id)) is not None:
            return run
        await live.outbox.flushed()
        try:
            record = await self._store.get_execution(live.uid, run_id)
        except ExecutionNotFound:
            return None
        return record if record.started_at is not None else None

    async def _answer_again(self, known: Run | Execution) -> RunAnswer:
        if isinstance(known, Run):
            with self.following(known):
                return await self.answer_of(known)
        live = await self._live.get(known.session_id)
        return RunAnswer.after(known, live.session.data, live.session.state)

    async def answer_of(self, run: Run) -> RunAnswer:
        """Wait for a run's end. Raises what it was refused with."""
        await run.finished.wait()
        if run.failure is not None:
            raise run.failure
        assert isinstance(run.answer, RunAnswer)
        return run.answer

    @asynccontextmanager
    async def open(
        self, session_id: str, request: RunRequest, caller: str, *, interactive: bool, run_id: str | None = None
    ) -> AsyncIterator[Run]:
        """Queue a run and hand it out.

        Who leaves the block before it has ended has it stopped, once nobody else has come to follow it
        within the grace time; a run that is told to keep on is not.
        """
        self._recorder.check()
        live = await self._sessions.hold(session_id, caller, create=self._settings.auto_create)
        with self.following(self._submit(live, request, caller, interactive, run_id)) as run:
            yield run

    @contextmanager
    def following(self, run: Run) -> Iterator[Run]:
        """Wait for a run, or follow its events: one that everybody has left is stopped after the grace time."""
        run.followers += 1
        try:
            yield run
        finally:
            run.followers -= 1
            run.departures += 1
            if run.followers == 0 and not run.finished.is_set() and not run.keep_on:
                self._spawn(self._stop_unless_followed(run, run.departures))

    async def _stop_unless_followed(self, run: Run, departures: int) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.resume_grace_s if run.followable else 0):
                await run.finished.wait()
        if not run.finished.is_set() and run.followers == 0 and run.departures == departures:
            await run.stop(self._settings.interrupt_grace_s)

    async def find_run(self, session_id: str, execution_id: str) -> Run | None:
        """A run that is under way or has ended lately, with all of its events."""
        uid = await self._sessions.uid_of(session_id)
        await self._taken_over(uid)
        run = self._recent.get(execution_id)
        return run if run is not None and run.record.session_uid == uid else None

    def _submit(
        self, live: LiveSession, request: RunRequest, caller: str, interactive: bool, run_id: str | None
    ) -> Run:
        if self._live.stopping:
            raise Stopping()
        code = request.code if request.code is not None else live.session.code
        if code is None:
            raise Invalid("code: there is none in the request and none stored in the session.", field="code")
        own = self.admit(live, code)
        record = Execution(
            id=run_id or uuid4().hex,
            session_uid=live.uid,
            session_id=live.session.id,
            created_by=caller,
            code=code,
            queued_at=now(),
            timeout_s=request.timeout_s or live.session.default_timeout or self._settings.run_timeout_s,
        )
        run = Run(
            record,
            env=request.env,
            stdin=request.stdin,
            interactive=interactive,
            store_history=request.store_history,
            update_data=request.update_data,
            output_limit_bytes=live.guards.output_limit_bytes(self._settings, own),
        )
        self._queue(live, run)
        return run

    def admit(self, live: LiveSession, code: str) -> tuple[Named, ...]:
        """Let code run: all that is to run in a session passes here, whichever way it came.

        The guardrails that hold for this run beside the session's. Raises `RateLimited`, `GuardrailRefused`,
        `GuardrailLimited`.
        """
        self._limits.check_run(live.uid)
        return self._guardrails.admit(live.session, live.guards.rules, code)

    async def check_quotas(self, live: LiveSession) -> None:
        """Before code begins to run, once its turn has come. Raises `QuotaExceeded`."""
        await self._quotas.check_cpu(live.session)
        await self._quotas.check_disk(live.session)

    def check_code(self, live: LiveSession, code: str) -> None:
        """What is evaluated beside all runs, such as a debugger's expressions. Raises `GuardrailRefused`."""
        self._guardrails.check_code(live.session, (*live.guards.rules, *self._guardrails.of_caller()), code)

    def _queue(self, live: LiveSession, run: Run) -> None:
        self._live.enqueue(live, run)
        self._metrics.queued.inc()
        self._write_down(live, run)
        self._recent[run.id] = run
        if live.worker_wanted():
            self._spawn(self._work(live))

    def _write_down(self, live: LiveSession, run: Run) -> None:
        if run.on_record:
            live.outbox.execution(run.record.model_copy())

    def ask(self, live: LiveSession, asked: AskedCell, caller: str) -> None:
        """Queue a cell that a front end has sent, and that was not `known_before`.

        Nobody need follow it, and it has no timeout but the session's own: who sent it interrupts it.
        """
        record = Execution(
            id=asked.request.id,
            session_uid=live.uid,
            session_id=live.session.id,
            source="jupyter",
            asked_by=asked.asked_by,
            created_by=caller,
            code=asked.code,
            queued_at=now(),
            timeout_s=live.session.default_timeout or NO_TIMEOUT_S,
        )
        try:
            self._recorder.check()
            if self._live.stopping:
                raise Stopping()
            own = self.admit(live, asked.all_code)
            run = Run(
                record, env={}, stdin=None, interactive=True, store_history=True, update_data=None,
                output_limit_bytes=live.guards.output_limit_bytes(self._settings, own), asked=asked,
            )  # fmt: skip
            run.keep_on = True
            self._queue(live, run)
        except GatewayError as error:
            asked.conclude(type(error).__name__, error.sentence)

    async def known_before(self, live: LiveSession, asked: AskedCell, caller: str) -> bool:
        """Whether a cell was sent before, by a client that does not know: then it is answered, and not run again.

        It is looked for in the store as long as its client may be unsure. One that has heard the rest, or will, is
        told how the cell ended; one that can't have it gets its outputs too.
        """
        run = self._recent.get(asked.request.id)
        known: Run | Execution | None = run
        if run is None and asked.front_end.unsure:
            known = await self._known(live.session.id, asked.request.id)
        if known is None:
            return False
        record = known.record if isinstance(known, Run) else known
        first = known.asked if isinstance(known, Run) else None
        if (record.session_uid, record.source, record.created_by) != (live.uid, "jupyter", caller):
            asked.conclude("Conflict", "Its msg_id is that of another run.")
        elif isinstance(known, Run) and not known.finished.is_set():
            if first is None or first.front_end is not asked.front_end:
                self._spawn(self._answer_once_over(known, asked))
        elif record.finished_at is None:
            asked.conclude("Conflict", "It is run already, and its end is not known here.")
        elif (first is not None and first.front_end is asked.front_end) or self._has_heard(asked, record):
            asked.reply_again(record)
        else:
            asked.tell_again(record)
        return True

    def _has_heard(self, asked: AskedCell, record: Execution) -> bool:
        """Whether all that was published about it came to its client, or will: it was remembered all the time."""
        return asked.front_end.openings > 1 and asked.front_end.session_id == record.asked_by

    async def _answer_once_over(self, run: Run, asked: AskedCell) -> None:
        await run.finished.wait()
        asked.answer(run.record)

    # Runs that an earlier gateway had begun, in a kernel that has outlived it

    def take_over(self, live: LiveSession) -> None:
        """Tell how runs ended while nobody was there, and go on with one that is under way; later ones wait."""
        if live.worker_wanted():
            self._taking_over[live.uid] = known = asyncio.Event()
            self._spawn(self._take_over(live, known))

    async def _take_over(self, live: LiveSession, known: asyncio.Event) -> None:
        try:
            try:
                begun = await self._begun_before(live)
                self._spawn(self._answer_late(live, {record.id for record, _ in begun}))
                for record, past in begun:
                    if past.beside and live.kernel is not None:
                        self._beside.take_over(live, live.kernel, record, self._asked_before(live, record, past))
                runs = [self._resumed(live, record, past) for record, past in begun if not past.beside]
                live.queue.extendleft(reversed(runs))
                self._metrics.queued.inc(len(runs))
                self._recent.update((run.id, run) for run in runs)
                if not runs and live.session.state is State.BUSY:
                    live.move(State.READY)
            except Exception as error:
                foreseen = isinstance(error, GatewayError | KernelsError)
                log.warning("The runs of session %r could not be taken over", live.session.id, exc_info=not foreseen)
                why = str(error) if foreseen else "Something went wrong here."
                if live.session.state is State.BUSY:
                    live.move(State.ERROR, why)
                with contextlib.suppress(StoreAway):  # then the next life of this gateway ends them
                    await self._past.end_lost(live.uid, why)
        finally:
            del self._taking_over[live.uid]
            known.set()
            await self._work(live)

    async def _begun_before(self, live: LiveSession) -> list[tuple[Execution, PastRun]]:
        """Once the kernel has been taken back and the store is there. Raises `Stopping` if this gateway ends first."""
        looking, stopping = asyncio.ensure_future(self._look_back(live)), asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({looking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not looking.done():
                raise Stopping()
            return looking.result()
        finally:
            looking.cancel()
            stopping.cancel()

    async def _look_back(self, live: LiveSession) -> list[tuple[Execution, PastRun]]:
        while True:
            try:
                return await self._past.begun(live, await live.ready())
            except StoreAway:
                await asyncio.sleep(_STORE_LOOK_S)

    async def _taken_over(self, uid: str) -> None:
        """Wait until it is known what an earlier gateway had begun in a session. Raises `Unavailable` in time."""
        if (taking_over := self._taking_over.get(uid)) is not None:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await taking_over.wait()
            except TimeoutError:
                why = "This gateway still looks what had begun in the session before."
                raise Unavailable(why, retry_after_s=2) from None

    def _resumed(self, live: LiveSession, record: Execution, past: PastRun) -> Run:
        run = Run(
            record, env={}, stdin=None, interactive=True, store_history=True, update_data=None,
            output_limit_bytes=live.guards.output_limit_bytes(self._settings), past=past,
            asked=self._asked_before(live, record, past),
        )  # fmt: skip
        run.keep_on = True
        return run

    def _asked_before(self, live: LiveSession, record: Execution, past: PastRun) -> AskedCell | None:
        """The cell as the front end sent it to an earlier gateway, if that one is known."""
        front_end = live.front_ends.known(record.asked_by, record.created_by)
        if front_end is None:
            return None
        header = past.request or {"msg_id": record.id, "msg_type": "execute_request", "session": record.asked_by}
        return AskedCell.again(header, record.code, front_end, live.front_ends)

    async def _answer_late(self, live: LiveSession, resumed: set[str]) -> None:
        """Answer cells whose end is on record, but not known to the front end that sent them to an earlier gateway."""
        if live.missed is None:
            return
        await live.missed.given.wait()
        for front_end, header in live.missed.ended:
            if header["msg_id"] not in resumed:
                with contextlib.suppress(ExecutionNotFound):
                    record = await self._store.get_execution(live.uid, header["msg_id"])
                    AskedCell.again(header, record.code, front_end, live.front_ends).answer(record)

    async def _go_on(self, live: LiveSession, run: Run) -> None:
        try:
            kernel = await self._ready(live, run)
        except (StartFailed, GatewayError) as error:
            return self._finish(live, run, Status.DIED, _error("KernelDied", str(error)), state_kept=False)
        if kernel is None:
            return self._finish(live, run, Status.INTERRUPTED, _cancelled())
        if live.session.state is State.READY:
            live.begin_run(run, {})
        else:
            live.tell_by(run.record)
        record = run.record
        record.status = Status.RUNNING
        self._write_down(live, run)
        run.journal.add("start", {"execution_id": run.id, "session_id": record.session_id, "code": record.code})
        try:
            status, error_, kept = await self._run_cell(kernel, run)
        except NeverArrived as error:
            record.started_at = None
            if live.session.state is State.BUSY:
                live.move(State.READY)
            return self._finish(live, run, Status.INTERRUPTED, _error("GatewayStopped", str(error)))
        if run.past is not None and not run.past.ended and record.started_at is not None:
            record.duration_ms = round((now() - record.started_at).total_seconds() * 1000, 3)
        return self._finish(live, run, status, error_, state_kept=kept)

    def _forget_old(self, ended: Run) -> None:
        """Keep the events of the streams that ended last, within bounds; the records of all runs are in the store."""
        self._recent_bytes += ended.journal.size_bytes
        if not ended.followable:
            del self._recent[ended.id]
            self._recent_bytes -= ended.journal.size_bytes
        for run in list(self._recent.values()):
            if len(self._recent) <= _REMEMBERED_RUNS and self._recent_bytes <= _REMEMBERED_BYTES:
                return
            if run.finished.is_set():
                del self._recent[run.id]
                self._recent_bytes -= run.journal.size_bytes

    async def _work(self, live: LiveSession) -> None:
        """Run what is queued in a session, one after another, until nothing is."""
        try:
            while live.queue:
                run = live.current = live.queue.popleft()
                self._metrics.queued.dec()
                try:
                    await self._perform(live, run)
                    self._drop_after(live, run)
                except Exception as error:
                    log.exception("Run %s broke", run.id)
                    await self._give_up(live, run, error)
                finally:
                    live.current = None
                    live.touch()
        finally:
            live.worker_done()

    def _drop_after(self, live: LiveSession, run: Run) -> None:
        """After a cell of a front end that failed: those that it has waiting are not run, unless it said so."""
        if run.asked is not None and run.asked.stops_on_error and run.record.status is not Status.OK:
            self.drop(live, run.asked.front_end)

    def drop(self, live: LiveSession, front_end: FrontEnd | None = None) -> None:
        """Have the cells not run that a front end (or any) has waiting."""
        for run in [run for run in live.queue if run.asked is not None]:
            if run.asked is not None and front_end in (None, run.asked.front_end):
                live.queue.remove(run)
                self._metrics.queued.dec()
                self._finish(live, run, Status.INTERRUPTED, _error("Aborted", "A cell before it failed."))

    async def _give_up(self, live: LiveSession, run: Run, error: Exception) -> None:
        """After something unforeseen: who waits hears of it, and the session starts anew."""
        try:
            self._refuse(live, run, GatewayError(f"Something went wrong here ({type(error).__name__})."))
            await live.recover("Something went wrong here.")
        except Exception:
            log.exception("Session %r could not recover", live.session.id)
            run.end()

    async def _perform(self, live: LiveSession, run: Run) -> None:
        if run.past is not None:
            return await self._go_on(live, run)
        if run.stopped_as is not None:
            return self._finish(live, run, Status.INTERRUPTED, _cancelled())
        try:
            await self.check_quotas(live)
            kernel = await self._ready(live, run)
            if kernel is not None and run.env:
                kernel.check_run_env()
        except StartFailed as error:
            return self._finish(live, run, Status.DIED, _error("KernelDied", str(error)), state_kept=False)
        except (GatewayError, NotOffered) as error:
            return self._refuse(live, run, error)
        if kernel is None or run.stopped_as is not None:
            return self._finish(live, run, Status.INTERRUPTED, _cancelled())
        try:
            live.begin_run(run, run.update_data or {})
        except TooLarge as error:
            return self._refuse(live, run, error)
        record = run.record
        record.status, record.started_at = Status.RUNNING, now()
        self._write_down(live, run)
        run.journal.add("start", {"execution_id": run.id, "session_id": record.session_id, "code": record.code})
        began = time.perf_counter()
        status, error_, kept = await self._run_cell(kernel, run)
        record.duration_ms = round((time.perf_counter() - began) * 1000, 3)
        await self._quotas.measure(live.session, kernel)
        return self._finish(live, run, status, error_, state_kept=kept)

    async def _ready(self, live: LiveSession, run: Run) -> Kernel | None:
        """The kernel, or None once the run is to be stopped, which does not wait for a start or a setup."""
        while not run.stop_asked.is_set():
            if (at_hand := live.at_hand) is not None:
                return at_hand
            starting, stopping = asyncio.ensure_future(live.ready()), asyncio.ensure_future(run.stop_asked.wait())
            try:
                await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if starting.done() and live.serves(kernel := starting.result()):
                    return kernel  # with nothing awaited since it was looked at
            finally:
                starting.cancel()
                stopping.cancel()
        return None

    async def _run_cell(self, kernel: Kernel, run: Run) -> tuple[Status, RunError | None, bool]:
        """How it ended, the error if there was one, and whether the kernel still has its variables."""
        try:
            async with self._cell(kernel, run) as cell:
                run.begin(kernel, cell)
                if run.stop_asked.is_set():  # before it could be stopped
                    run.stopped_as = Status.INTERRUPTED
                    await kernel.stop(cell, self._settings.interrupt_grace_s)
                try:
                    async with asyncio.timeout(max(_SHORTEST_S, run.timeout_s - (time.time() - cell.started_at))):
                        reply = await kernel.finish(cell)
                except TimeoutError:
                    run.stopped_as = Status.TIMEOUT
                    await kernel.stop(cell, self._settings.interrupt_grace_s)
                    await kernel.process.kill_children(since=cell.started_at)
                    reply = await kernel.finish(cell)
                return self._verdict(run, reply)
        except KernelGone as error:
            await asyncio.wait({kernel.ended})
            if run.stopped_as is not None:
                return run.stopped_as, _stopped(run, str(error)), False
            return Status.DIED, _error("KernelDied", str(error)), False

    def _cell(self, kernel: Kernel, run: Run) -> AbstractAsyncContextManager[Cell]:
        """The cell of a run: begun now, or by an earlier gateway."""
        settings = self._settings
        if run.past is not None:
            started_at = run.record.started_at or run.record.queued_at
            return kernel.resume(
                run.id, partial(self._engine.journal, kernel.id), started_at=started_at.timestamp(),
                on_event=run.on_event, on_input=run.on_input, output_limit_bytes=run.output_limit_bytes,
                on_reply=None if run.asked is None else run.asked.reply, grace_s=settings.interrupt_grace_s,
            )  # fmt: skip
        if run.asked is not None:
            return kernel.execute_request(
                run.asked.request, on_event=run.on_event, on_input=run.on_input, on_reply=run.asked.reply,
                output_limit_bytes=run.output_limit_bytes, grace_s=settings.interrupt_grace_s,
            )  # fmt: skip
        return kernel.execute(
            run.id, run.record.code, on_event=run.on_event, on_input=run.on_input,
            output_limit_bytes=run.output_limit_bytes, store_history=run.store_history,
            env=run.env, stdin=run.stdin, grace_s=settings.interrupt_grace_s,
        )  # fmt: skip

    def _verdict(self, run: Run, reply: dict[str, Any]) -> tuple[Status, RunError | None, bool]:
        if run.stopped_as is Status.TIMEOUT:
            return Status.TIMEOUT, _stopped(run, "It was interrupted; its variables are kept."), True
        if reply.get("status") == "ok":
            return Status.OK, None, True
        if reply.get("status") == "error":
            error = RunError(**error_of(reply))
            asked = run.interrupted or run.stopped_as is Status.INTERRUPTED
            interrupted = asked and error.ename in ("KeyboardInterrupt", "CancelledError")
            return (Status.INTERRUPTED if interrupted else Status.ERROR), error, True
        return (run.stopped_as or Status.ERROR), _error("Aborted", "The kernel did not run this cell."), True

    def _finish(
        self, live: LiveSession, run: Run, status: Status, error: RunError | None, *, state_kept: bool = True
    ) -> None:
        record = run.record
        if run.reason is not None and status in (Status.INTERRUPTED, Status.DIED):
            error = _error("QuotaExceeded", run.reason)
        run.conclude(status, error, state_kept=state_kept)
        record.guardrails = live.guards.acts(record, run.output_limit_bytes, self._settings)
        record.finished_at = now()
        if record.started_at is not None:  # a run that never began has not made the session BUSY
            changes = SessionChanges(replace={"last_run_at": record.finished_at}, add={"run_count": 1})
            if live.session.state is not State.BUSY:
                live.change(changes)
            elif state_kept and live.closing is None:
                live.move(State.READY, changes=changes)
            else:
                live.move(State.ERROR, error.evalue if error else None, changes=changes)
        if run.on_record:
            live.outbox.execution(record)
        self._recorder.note_run(record, run.origin)
        run.answer = RunAnswer.after(record, live.session.data, live.session.state)
        self._metrics.runs.labels(status.value).inc()
        self._metrics.run_seconds.observe((record.duration_ms or 0) / 1000)
        run.journal.add("done", run.answer, 0)
        run.end()
        self._forget_old(run)

    def _refuse(self, live: LiveSession, run: Run, failure: GatewayError | KernelsError) -> None:
        """End a run that could not begin; who waits gets the failure, and the record tells it to all others."""
        run.failure = failure
        run.conclude(Status.DIED, _error(type(failure).__name__, str(failure)))
        run.record.finished_at = now()
        self._recorder.note_run(run.record, run.origin, getattr(failure, "code", type(failure).__name__))
        if run.on_record:
            live.outbox.execution(run.record)
        run.end()
        self._forget_old(run)

    # Looking back

    async def get(self, session_id: str, execution_id: str) -> ExecutionView:
        """A run that is queued, under way or over. Raises `ExecutionNotFound`."""
        uid = await self._sessions.uid_of(session_id)
        run = self._recent.get(execution_id)
        if run is not None and run.record.session_uid == uid:
            return ExecutionView.of(run.record)
        return ExecutionView.of(await self._store.get_execution(uid, execution_id))

    async def record(self, uid: str, execution_id: str) -> Execution:
        """Of a run as it stands, once it is known what an earlier gateway had begun. Raises `ExecutionNotFound`."""
        await self._taken_over(uid)
        run = self._recent.get(execution_id)
        if run is not None and run.record.session_uid == uid:
            return run.record
        return await self._store.get_execution(uid, execution_id)

    async def list(self, session_id: str, page: PageRequest, *, include_deleted: bool = False) -> ExecutionList:
        uid = await (self._sessions.uid_of_last if include_deleted else self._sessions.uid_of)(session_id)
        if include_deleted:
            self._recorder.note("history.read", session_id, uid=uid)
        found = await self._store.list_executions(uid, page)
        return ExecutionList(
            executions=[ExecutionView.of(one) for one in found.items],
            count=len(found.items), total_count=found.total_count, next_token=found.next_token,
        )  # fmt: skip

    async def history(self, session_id: str, page: PageRequest, *, include_deleted: bool = False) -> HistoryList:
        """`include_deleted`: of one that was deleted, if none lives; that is for audit, and is noted there."""
        found = await self.list(session_id, page, include_deleted=include_deleted)
        return HistoryList(history=found.executions, **found.model_dump(exclude={"executions"}))

    # Ending early

    async def interrupt(self, session_id: str) -> Interrupted:
        """Interrupt the run under way; waits up to the grace time for it to end."""
        live = await self._sessions.hold(session_id, "", create=False)
        run = live.current
        if run is None or not run.running:
            return Interrupted(interrupted=False, ended=True, execution_id=None, state=live.session.state)
        await run.interrupt()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.interrupt_grace_s):
                await run.finished.wait()
        return Interrupted(interrupted=True, ended=run.finished.is_set(), execution_id=run.id, state=live.session.state)

    async def cancel(self, session_id: str, execution_id: str) -> ExecutionView:
        """Take a run out of the queue, or end it; one that is over stays as it is."""
        uid = await self._sessions.uid_of(session_id)
        run = self._recent.get(execution_id)
        if run is None or run.record.session_uid != uid:
            return ExecutionView.of(await self._store.get_execution(uid, execution_id))
        if not run.finished.is_set():
            live = self._live.find(session_id)
            if live is not None and run in live.queue and run.past is None:
                live.queue.remove(run)
                self._metrics.queued.dec()
                self._finish(live, run, Status.INTERRUPTED, _cancelled())
            else:
                await run.stop(self._settings.interrupt_grace_s)
        return ExecutionView.of(run.record)

    async def give_input(self, session_id: str, text: str) -> None:
        """Raises `Conflict` when no cell waits in `input()`."""
        live = await self._sessions.hold(session_id, "", create=False)
        run = live.current
        if run is None or not run.give_input(text):
            raise Conflict(f"No cell of session {session_id!r} waits for input.", session_id=session_id)

    async def stop(self, run: Run) -> None:
        """End a run, with its kernel if it will not stop within the grace time."""
        await run.stop(self._settings.interrupt_grace_s)

    async def end(self, live: LiveSession, why: str) -> None:
        """End what runs in a session, in its queue or beside it, and say why."""
        if (run := live.current) is not None:
            run.reason = why
            await self.stop(run)
        else:
            await live.stop_kernel(why)

    async def quiet(self) -> None:
        """Wait until no run is under way or queued."""
        await asyncio.gather(*(run.finished.wait() for run in list(self._recent.values())))

    async def stop_all(self) -> None:
        """End every run: those that wait do not begin, those under way are interrupted."""
        self._stopping.set()
        unfinished = [run for run in self._recent.values() if not run.finished.is_set()]
        await asyncio.gather(
            *(run.stop(self._settings.interrupt_grace_s) for run in unfinished), return_exceptions=True
        )

    # One run in a session of its own

    async def execute(self, request: ExecuteRequest, caller: str) -> RunAnswer:
        """A fresh session, its files, one run; gone afterwards, also when the caller leaves."""
        files = [(path, _content(path, content)) for path, content in request.files.items()]
        session = await self._sessions.create(
            CreateSession(language=request.language, kernel=request.kernel, persistent=False), caller, start=False
        )
        try:
            for path, content in files:
                await self._sessions.write_file(session.id, path, content)
            run = RunRequest(
                code=request.code,
                timeout=request.timeout,
                timeout_ms=request.timeout_ms,
                env=request.env,
                stdin=request.stdin,
            )
            return await self.run(session.id, run, caller)
        finally:
            self._spawn(self._discard(session.id))

    async def _discard(self, session_id: str) -> None:
        try:
            await self._sessions.delete(session_id, purge=True)
        except SessionNotFound:
            pass
        except (GatewayError, KernelsError) as error:
            log.warning("Session %r could not be removed: %s", session_id, error)


def _content(path: str, content: str | FileContent) -> bytes:
    if isinstance(content, str):
        return content.encode()
    if content.encoding == "utf-8":
        return content.content.encode()
    try:
        return base64.b64decode(content.content, validate=True)
    except binascii.Error as error:
        raise Invalid(f"files.{path}.content: is not base64: {error}.", field=f"files.{path}.content") from None


def _error(ename: str, evalue: str) -> RunError:
    return RunError(ename=ename, evalue=evalue)


def _cancelled() -> RunError:
    return _error("KeyboardInterrupt", "It was cancelled before it began.")


def _stopped(run: Run, sentence: str) -> RunError:
    if run.stopped_as is Status.TIMEOUT:
        return _error("TimeoutError", f"It ran longer than {run.timeout_s:g} s. {sentence}")
    return _error("KeyboardInterrupt", sentence)
