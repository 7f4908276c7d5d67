"""Runs that an earlier gateway had begun: what their kernels, and the store, know of them."""

from datetime import UTC, datetime
from typing import Any

from gateway.config import Settings
from gateway.errors import ExecutionNotFound
from gateway.models.base import now
from gateway.models.executions import Execution, RunError, Status
from gateway.services.asked import AskedCell
from gateway.services.guardrails import Guardrails
from gateway.services.live_session import LiveSession
from gateway.services.origin import of_old
from gateway.services.recorder import Recorder
from gateway.stores.base import Store
from kernels.engine import Engine, Exit, Kept
from kernels.journaled import PastRun, past_runs, retold
from kernels.kernel import Kernel
from kernels.messages import Wire
from kernels.outputs import error_of

NO_TIMEOUT_S = 31_536_000.0  # of a front end's cell, whose client interrupts it


class PastRuns:
    def __init__(
        self, settings: Settings, store: Store, engine: Engine, recorder: Recorder, guardrails: Guardrails
    ) -> None:  # fmt: skip
        self._guardrails = guardrails
        self._settings = settings
        self._recorder = recorder
        self._store = store
        self._engine = engine

    async def begun(self, live: LiveSession, kernel: Kernel) -> list[tuple[Execution, PastRun]]:
        """Runs that the kernel has begun and whose end is not on record, in order; the others never began, and end."""
        begun = await past_runs(self._engine.journal(kernel.id), kernel.channels.wire)
        unfinished = await self._store.list_unfinished(live.uid)
        open_ = {record.id: record for record in unfinished}
        runs = []
        for past in reversed(begun):
            by_us = past.asked_by == kernel.channels.wire.session
            record = open_.pop(past.run_id, None) or await self._without_record(live, past, by_us=by_us)
            if record is None:
                live.tell_by(None)
                break  # it is on record, and so is all before it
            record.started_at = record.started_at or _moment(past.started_at)
            runs.append((record, past))
        for record in open_.values():
            if record.started_at is not None:  # its beginning is not in the journal any more, or on its way
                past = PastRun(record.id, record.code, None, record.started_at.timestamp())
                runs.insert(0, (record, past))
                continue
            if (front_end := live.front_ends.known(record.asked_by, record.created_by)) is not None:
                header = {"msg_id": record.id, "msg_type": "execute_request", "session": record.asked_by}
                asked = AskedCell.again(header, record.code, front_end, live.front_ends)
                asked.conclude("Aborted", "The gateway stopped before this run began.", aborted=True)
            record.status, record.finished_at = Status.INTERRUPTED, now()
            record.error = RunError(ename="GatewayStopped", evalue="The gateway stopped before this run began.")
            live.outbox.execution(record)
            self._recorder.note_run(record, of_old(record.created_by))
        return runs[::-1]

    async def _without_record(self, live: LiveSession, past: PastRun, *, by_us: bool) -> Execution | None:
        """The beginnings of a record for a run that the store has not heard of, or not of its begin; None if it has.

        Whoever is not the gateway is a front end.
        """
        try:
            record = await self._store.get_execution(live.uid, past.run_id)
        except ExecutionNotFound:
            timeout_s = self._settings.run_timeout_s if by_us else NO_TIMEOUT_S
            return Execution(
                id=past.run_id, session_uid=live.uid, session_id=live.session.id, code=past.code,
                source="api" if by_us else "jupyter", asked_by=None if by_us else past.asked_by,
                queued_at=_moment(past.started_at),
                timeout_s=live.session.default_timeout or timeout_s,
            )  # fmt: skip
        return record if record.started_at is None else None

    async def end_lost(self, uid: str, why: str) -> None:
        """End the records of runs that nobody can go on with."""
        for lost in await self._store.list_unfinished(uid):
            error = RunError(ename="GatewayStopped", evalue=why)
            ended = {"status": Status.DIED, "error": error, "state_kept": False, "finished_at": now()}
            record = lost.model_copy(update=ended)
            await self._store.put_execution(record)
            self._recorder.note_run(record, of_old(record.created_by))

    async def end_with(self, uid: str, kept: Kept) -> None:
        """End the records of runs whose kernel ended while nobody was there, with all that they had published."""
        async with self._engine.adopt(kept.kernel_id) as process:
            exit_, wire = await process.ended(), Wire.of(process.connection)
            guards = self._guardrails.of(await self._store.get_session_by_uid(uid))
            limit_bytes = guards.output_limit_bytes(self._settings)
            for record in await self._store.list_unfinished(uid):
                told = await retold(
                    self._engine.journal(kept.kernel_id), wire, record.id,
                    output_limit_bytes=limit_bytes, new_sieve=guards.new_sieve,
                )  # fmt: skip
                record.outputs, record.truncated = told.outputs.as_nbformat(), told.outputs.truncated
                record.execution_count = told.execution_count
                record.guardrails = guards.acts(record, limit_bytes, self._settings)
                record.status, record.error = _told_status(told.reply, exit_)
                record.state_kept, record.finished_at = False, now()
                await self._store.put_execution(record)
                self._recorder.note_run(record, of_old(record.created_by))


def _told_status(reply: dict[str, Any] | None, exit_: Exit) -> tuple[Status, RunError | None]:
    if reply is None:
        return Status.DIED, RunError(ename="KernelDied", evalue=exit_.reason)
    return (Status.OK, None) if reply["status"] == "ok" else (Status.ERROR, RunError(**error_of(reply)))


def _moment(unix_time: float | None) -> datetime:
    return now() if unix_time is None else datetime.fromtimestamp(unix_time, UTC)
