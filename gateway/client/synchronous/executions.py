"""Runs that are followed as they go."""

# Made of asynchronous/executions.py by deploy/sync_client.py: change that.

from collections.abc import Iterator
from contextlib import nullcontext, suppress
from typing import Any

import httpx2

from gateway.client.calls import delete, get, part
from gateway.client.documents import Page, Run, read
from gateway.client.errors import ClientError, ExecutionNotFound, GatewayError, Incomplete, RunFailed
from gateway.client.events import Event, Position
from gateway.client.patience import Attempts, Patience
from gateway.client.synchronous.pages import Pages
from gateway.client.synchronous.transport import Transport
from gateway.client.synchronous.waiting import Cancelled
from gateway.models.executions import ExecutionList

_SHORT = Patience(lasts_s=2)


class RunStream:
    """The events of a run, as they come; a connection that is lost is made anew, and goes on after the last event.

    Used as a context manager it ends the run when the block is left before its end. `run` is there after `done`.
    """

    def __init__(self, transport: Transport, position: Position) -> None:
        self._transport = transport
        self._position = position
        self._ends_run = position.begin is not None
        self._attempts = Attempts(transport.patience, repeatable=True)
        self._answer: httpx2.Response | None = None
        self._sent: Iterator[httpx2.ServerSentEvent] | None = None
        self._ready: list[Event] = []
        self.run: Run | None = None

    @property
    def execution_id(self) -> str | None:
        """None until the gateway has begun it."""
        return self._position.execution_id

    def __enter__(self) -> "RunStream":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with suppress(ClientError) if kind is not None else nullcontext():
            self.close()

    def __iter__(self) -> "RunStream":
        return self

    def __next__(self) -> Event:
        while not self._ready:
            if self._position.over:
                self._hang_up()
                raise StopIteration
            try:
                self._receive()
            except Cancelled:
                with suppress(ClientError):  # what is to be raised is that the caller has stopped it
                    self.close()
                raise
        event = self._ready.pop(0)
        self.run = event.run or self.run
        return event

    def result(self) -> Run:
        """Wait for the end, whatever is told until then."""
        for _ in self:
            pass
        if self.run is None:
            raise Incomplete("The run was left before its end.")
        return self.run

    def close(self) -> None:
        """Leave it. A run that was begun by this is interrupted, or does not begin, if it has not ended."""
        over, self._position.over = self._position.over, True
        self._hang_up()
        if over or not self._ends_run or not self._attempts.count:
            return
        if self._position.execution_id is None:
            stop_unnamed(self._transport, self._position.session_id, self._position.code)
        else:
            with suppress(ExecutionNotFound):
                Execution(self._transport, self._position.session_id, self._position.execution_id).cancel()

    def _receive(self) -> None:
        """One event or more, or a connection to receive them by."""
        try:
            if self._answer is None:
                self._attempts.begin()
                self._answer = self._transport.connect(self._transport.request(self._position.next_call()))
                self._position.begun_as(self._answer.headers.get("X-Execution-Id"))
                self._sent = iter(httpx2.EventSource(self._answer, max_event_size=None))
            assert self._sent is not None
            sent = next(self._sent, None)
            if sent is None:
                self._after_the_events()
                return
        except (httpx2.TransportError, GatewayError) as failure:
            self._hang_up()
            self._transport.wait_after(self._attempts, failure)
            return
        self._ready += self._position.take(sent)
        if self._ready:
            self._attempts.heard()

    def _after_the_events(self) -> None:
        """A gateway that was started again may have counted less far than the last event: then none is left to send."""
        if self._position.execution_id is not None:
            run = Execution(self._transport, self._position.session_id, self._position.execution_id).info()
            if run.finished:
                self._ready += self._position.take_end(run)
                return
        raise httpx2.RemoteProtocolError("The events ended before the run did.")

    def _hang_up(self) -> None:
        answer, self._answer, self._sent = self._answer, None, None
        if answer is not None:
            answer.close()


class Execution:
    """A run that goes on by itself, in the background or begun by somebody else."""

    def __init__(self, transport: Transport, session_id: str, execution_id: str) -> None:
        self._transport = transport
        self._path = f"/api/sessions/{part(session_id)}/executions/{part(execution_id)}"
        self.session_id = session_id
        self.id = execution_id

    def __repr__(self) -> str:
        return f"<Execution {self.id!r} of session {self.session_id!r}>"

    def info(self) -> Run:
        """How it stands."""
        return self._transport.ask(Run, get(self._path))

    def events(self) -> RunStream:
        """All that it has told, from its beginning on, and tells. To leave it does not end it."""
        return RunStream(self._transport, Position(self.session_id, execution_id=self.id))

    def wait(self, *, check: bool = False) -> Run:
        """Its end. With `check`, raises `RunFailed` if it did not succeed."""
        try:
            with self.events() as events:
                run = events.result()
        except ExecutionNotFound:  # its events are kept no more, or it never was
            run = self.info()
        return checked(run) if check else run

    def cancel(self) -> Run:
        """Interrupt it, or have it not begin; how it ended."""
        return self._transport.ask(Run, delete(self._path))


class _Runs(ExecutionList):
    executions: list[Run]  # type: ignore[assignment]


def run_pages(transport: Transport, session_id: str, query: dict[str, Any]) -> Pages[Run]:
    def parse(body: bytes) -> Page[Run]:
        found = read(_Runs, body)
        return Page(found.executions, found.total_count, found.next_token)

    return Pages(transport, f"/api/sessions/{part(session_id)}/executions", query, parse)


def stop_unnamed(transport: Transport, session_id: str, code: str | None) -> None:
    """Interrupt a run that nobody waits for any more, before the gateway has told what it is called.

    It is the last one of this code that has not ended. Raises `ClientError` if the gateway is away.
    """
    transport = transport.with_patience(_SHORT)
    for run in (run_pages(transport, session_id, {"limit": 50}).page()).items:
        if not run.finished and run.source == "api" and code in (None, run.code):
            Execution(transport, session_id, run.execution_id).cancel()
            return


def checked(run: Run) -> Run:
    """Raises `RunFailed` for a run that did not succeed."""
    if not run.success:
        raise RunFailed(run)
    return run
