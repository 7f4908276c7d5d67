"""Cells that front ends run beside the queue, in subshells or on the control channel: on record like any other."""

import asyncio
import logging
import time
from functools import partial

from gateway.config import Settings
from gateway.models.base import now
from gateway.models.executions import Execution, RunError, Status
from gateway.services.asked import AskedCell
from gateway.services.live_session import LiveSession
from gateway.services.origin import Origin, of_old, present
from gateway.services.past_runs import NO_TIMEOUT_S
from gateway.services.recorder import Recorder, Spawn
from gateway.stores.base import SessionChanges
from kernels.channels import Channel
from kernels.engine import Engine
from kernels.errors import KernelGone, KernelsError
from kernels.kernel import Execution as Cell
from kernels.kernel import Kernel
from kernels.messages import Message
from kernels.outputs import error_of

log = logging.getLogger(__name__)


class BesideService:
    def __init__(self, settings: Settings, engine: Engine, recorder: Recorder, spawn: Spawn) -> None:
        self._settings = settings
        self._engine = engine
        self._recorder = recorder
        self._spawn = spawn

    def begin(
        self, live: LiveSession, kernel: Kernel, channel: Channel, asked: AskedCell, output_limit_bytes: int
    ) -> None:  # fmt: skip
        """Run a cell at once; it ends when it does. Raises `KernelGone`."""
        record = Execution(
            id=asked.request.id, session_uid=live.uid, session_id=live.session.id, source="jupyter",
            asked_by=asked.asked_by, created_by=asked.front_end.caller, code=asked.code, status=Status.RUNNING,
            queued_at=now(), started_at=now(), timeout_s=NO_TIMEOUT_S,
        )  # fmt: skip
        cell = kernel.execute_beside(
            channel, asked.request, on_input=asked.ask_input, on_reply=asked.reply,
            output_limit_bytes=output_limit_bytes,
        )  # fmt: skip
        if not asked.silent:
            live.outbox.execution(record.model_copy())
        self._watch(live, cell, record, asked, present(), output_limit_bytes)

    def take_over(self, live: LiveSession, kernel: Kernel, record: Execution, asked: AskedCell | None) -> None:
        """Go on with one that was begun by an earlier gateway, or has ended since."""
        self._spawn(self._take_over(live, kernel, record, asked))

    async def _take_over(self, live: LiveSession, kernel: Kernel, record: Execution, asked: AskedCell | None) -> None:
        limit_bytes = live.guards.output_limit_bytes(self._settings)
        try:
            cell = await kernel.resume_beside(
                record.id, partial(self._engine.journal, kernel.id),
                on_input=None if asked is None else asked.ask_input,
                on_reply=None if asked is None else asked.reply, output_limit_bytes=limit_bytes,
            )  # fmt: skip
        except KernelsError as error:
            died = RunError(ename="KernelDied", evalue=str(error))
            self._end(live, record, Status.DIED, died, asked, of_old(record.created_by))
        else:
            cell.started_at = (record.started_at or record.queued_at).timestamp()
            self._watch(live, cell, record, asked, of_old(record.created_by), limit_bytes)

    def _watch(
        self, live: LiveSession, cell: Cell, record: Execution, asked: AskedCell | None, origin: Origin,
        limit_bytes: int,
    ) -> None:  # fmt: skip
        front_end = None if asked is None else asked.front_end
        live.front_ends.beside.append(front_end)
        cell.request.done.add_done_callback(partial(self._over, live, cell, record, asked, origin, limit_bytes))

    def _over(
        self, live: LiveSession, cell: Cell, record: Execution, asked: AskedCell | None, origin: Origin,
        limit_bytes: int, done: "asyncio.Future[Message]",
    ) -> None:  # fmt: skip
        live.front_ends.beside.remove(None if asked is None else asked.front_end)
        record.outputs, record.truncated = cell.outputs.as_nbformat(), cell.outputs.truncated
        record.guardrails = live.guards.acts(record, limit_bytes, self._settings)
        record.execution_count = cell.execution_count
        record.duration_ms = round((time.time() - cell.started_at) * 1000, 3)
        error = None if done.cancelled() else done.exception()
        if done.cancelled() or error is not None:
            name, why = (
                ("KernelDied", str(error)) if isinstance(error, KernelGone) else ("Aborted", "It had no answer.")
            )
            self._end(live, record, Status.DIED, RunError(ename=name, evalue=why), asked, origin)
            return
        reply = done.result().content
        if reply.get("status") == "ok":
            self._end(live, record, Status.OK, None, asked, origin)
        elif reply.get("status") == "error":
            self._end(live, record, Status.ERROR, RunError(**error_of(reply)), asked, origin)
        else:
            aborted = RunError(ename="Aborted", evalue="The kernel did not run this cell.")
            self._end(live, record, Status.INTERRUPTED, aborted, asked, origin)

    def _end(
        self, live: LiveSession, record: Execution, status: Status, error: RunError | None, asked: AskedCell | None,
        origin: Origin,
    ) -> None:  # fmt: skip
        record.status, record.error, record.finished_at = status, error, now()
        record.state_kept = status is not Status.DIED
        if error is not None and asked is not None:
            asked.conclude(error.ename, error.evalue)
        if asked is None or not asked.silent:
            live.change(SessionChanges(replace={"last_run_at": record.finished_at}, add={"run_count": 1}))
            live.outbox.execution(record)
        self._recorder.note_run(record, origin)
        live.touch()
