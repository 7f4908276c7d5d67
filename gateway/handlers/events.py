"""Server-Sent Events: streams of runs and sessions that a client can leave and come back to."""

import asyncio
import json
import re
from typing import Any

from pydantic import BaseModel

from gateway.errors import ExecutionNotFound, Malformed
from gateway.handlers.base import ApiHandler, Operation, as_refusal, envelope
from gateway.models.access import Need
from gateway.models.executions import RunRequest
from gateway.models.idempotency import KeptAnswer
from gateway.services.journal import Journal
from gateway.services.runs import Run

_KEEP_ALIVE_S = 15.0
_RETRY_MS = 500
_NUMBER = re.compile(r"[0-9]{1,18}")
_NO_LINE = re.compile(r"[\r\n\0]")  # what would end a field of an event, or void it


class EventHandler(ApiHandler):
    """Sends numbered events; waits for a slow reader without holding up anybody else."""

    answers_once = False

    async def follow(self, journal: Journal, after: int, name: str) -> None:
        """Send every event after number `after`, until the journal is closed or the client has left."""
        following = journal.follow(after)
        waiting: asyncio.Future[Any] | None = None
        try:
            while True:
                waiting = waiting or asyncio.ensure_future(anext(following, None))
                done, _ = await asyncio.wait({waiting}, timeout=_KEEP_ALIVE_S)
                self._begin()
                if not done:
                    self.write(": waiting\n\n")
                elif (entry := waiting.result()) is None:
                    return
                else:
                    waiting = None
                    self._write_event(entry.kind, entry.data, f"{name}:{entry.number}")
                await self.flush()
        finally:
            if waiting is not None:
                waiting.cancel()
                await asyncio.wait({waiting})
            await following.aclose()

    def _begin(self) -> None:
        if not self._headers_written:
            self.set_header("Content-Type", "text/event-stream; charset=utf-8")
            self.set_header("X-Accel-Buffering", "no")
            self.write(f"retry: {_RETRY_MS}\n\n")

    def _write_event(self, kind: str, data: Any, event_id: str) -> None:
        if isinstance(data, BaseModel):
            body = data.model_dump_json()
        else:
            body = json.dumps(data, ensure_ascii=False, default=str)
        self.write(f"event: {_NO_LINE.sub('', kind)}\nid: {_NO_LINE.sub('', event_id)}\ndata: {body}\n\n")

    def last_event(self) -> tuple[str, int] | None:
        """Name and number of the event that the client has seen last. Raises `Malformed`."""
        given = self.request.headers.get("Last-Event-ID")
        if given is None:
            return None
        name, _, number = given.rpartition(":")
        if not name or not _NUMBER.fullmatch(number):
            raise Malformed("Last-Event-ID: is not the id of an event that was sent.", field="Last-Event-ID")
        return name, int(number)


class RunEventHandler(EventHandler):
    """Events of runs."""

    async def follow_run(self, run: Run, after: int) -> None:
        """All of a run's events; a run that was refused before it began raises that refusal."""
        await self.follow(run.journal, after, run.id)
        if run.failure is not None:
            if not self._headers_written:
                raise run.failure
            self._write_event("refused", envelope(as_refusal(run.failure), self.request_id), f"{run.id}:0")
        await self.finish()

    async def resume(self, session_id: str, execution_id: str, after: int) -> None:
        """Go on after an event; of a run that ended long ago only `done`, which holds everything."""
        executions = self.services.executions
        run = await executions.find_run(session_id, execution_id)
        if run is not None:
            with executions.following(run):
                return await self.follow_run(run, after)
        record = await executions.get(session_id, execution_id)
        if record.finished_at is None:
            raise ExecutionNotFound(execution_id)
        self._begin()
        self._write_event("done", record, f"{execution_id}:{after + 1}")
        return await self.finish()


class StreamHandler(RunEventHandler):
    """/api/sessions/{session_id}/stream"""

    operations = {
        "POST": Operation("Run code and stream its outputs; `Last-Event-ID` resumes", "text/event-stream",
                          body=RunRequest, body_required=False, needs=Need.RUN_OR_MAKE)
    }  # fmt: skip

    async def post(self, session_id: str) -> None:
        session_id = self.session_id(session_id)
        if last := self.last_event():
            return await self.resume(session_id, *last)
        if (key := self.request.headers.get("Idempotency-Key")) is not None:
            return await self.resume(session_id, await self._begun_once(session_id, key), 0)
        executions = self.services.executions
        async with executions.open(session_id, self.body(RunRequest), self.caller, interactive=True) as run:
            self.set_header("X-Execution-Id", run.id)
            await self.follow_run(run, 0)
        return None

    async def _begun_once(self, session_id: str, key: str) -> str:
        """The run that the first request under this key began; it goes on whoever leaves it."""
        execution_id = ""

        async def begin() -> KeptAnswer:
            nonlocal execution_id
            begun = await self.services.executions.start(session_id, self.body(RunRequest), self.caller)
            execution_id = begun.execution_id
            return self.keep(execution_id.encode(), 200, "text/plain")

        kept = await self.services.idempotency.once(self.caller, self.canonical_path, key, self.raw_body, begin)
        execution_id = execution_id if kept is None else kept.body.decode()
        self.set_header("X-Execution-Id", execution_id)
        return execution_id


class ExecutionEventsHandler(RunEventHandler):
    """/api/sessions/{session_id}/executions/{execution_id}/events: follow a run that was started elsewhere."""

    operations = {"GET": Operation("Stream the events of a run", "text/event-stream", needs=Need.READ)}

    async def get(self, session_id: str, execution_id: str) -> None:
        last = self.last_event()
        after = last[1] if last is not None and last[0] == execution_id else 0
        await self.resume(self.session_id(session_id), execution_id, after)


class SessionEventsHandler(EventHandler):
    """/api/sessions/{session_id}/events"""

    operations = {
        "GET": Operation(
            "Stream state moves and outputs, also what is printed after its cell has ended",
            "text/event-stream",
            needs=Need.READ,
        )
    }

    async def get(self, session_id: str) -> None:
        live = await self.services.sessions.hold(self.session_id(session_id), self.caller, create=False)
        last, name = self.last_event(), f"{live.uid}:{live.events.epoch}"
        self._begin()
        if last is not None and last[0] != name:  # it was sent before the session was last taken up
            self._write_event("missed", {"count": None}, f"{name}:0")
            last = None
        await self.flush()
        await self.follow(live.events, last[1] if last else 0, name)
        await self.finish()
