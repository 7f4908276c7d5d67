"""A run from the moment it is asked for: its record, its events, and the ways to end it early."""

import asyncio
import contextlib
from typing import Any

from gateway.models.executions import Execution, RunError, Status
from gateway.services.asked import AskedCell
from gateway.services.journal import Journal
from gateway.services.origin import of_old, present
from kernels.errors import KernelGone
from kernels.journaled import PastRun
from kernels.kernel import Execution as Cell
from kernels.kernel import Kernel
from kernels.outputs import Event


class Run:
    """One run. It is ended by its session's worker alone; everybody else asks or waits."""

    def __init__(
        self, record: Execution, *, env: dict[str, str], stdin: str | None,
        interactive: bool, store_history: bool, update_data: dict[str, Any] | None, output_limit_bytes: int,
        past: PastRun | None = None, asked: AskedCell | None = None,
    ) -> None:  # fmt: skip
        self.past = past  # what its kernel has told of it, when an earlier gateway has begun it
        self.asked = asked  # what a front end has sent, if one has
        self.origin = present() if past is None else of_old(record.created_by)
        self.record = record
        self.env = env
        self.store_history = store_history
        self.output_limit_bytes = output_limit_bytes
        self.journal = Journal(2 * output_limit_bytes)
        self.finished = asyncio.Event()
        self.stop_asked = asyncio.Event()
        self.update_data = update_data
        self.failure: Exception | None = None  # why it could not begin
        self.stopped_as: Status | None = None
        self.interrupted = False  # the cell was sent an interrupt, which it may take or not
        self.reason: str | None = None  # why the gateway itself has stopped it
        self.followers = 0
        self.departures = 0
        self.waits_for_input = False
        self.answer: Any = None
        self.keep_on = False  # nobody need follow it
        self.stdin = None if interactive and stdin is None else (stdin or "").splitlines()  # None: who follows is asked
        self.followable = interactive
        self._kernel: Kernel | None = None
        self._cell: Cell | None = None

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def keeps_busy(self) -> bool:
        """Whether its kernel has begun it and has not said that it is idle again."""
        return self._cell is not None and not self._cell.request.idle_seen and not self.finished.is_set()

    @property
    def request_header(self) -> dict[str, Any]:
        """What its cell's messages tell as their parent."""
        return {"msg_id": self.id, "msg_type": "execute_request"} if self.asked is None else self.asked.request.header

    @property
    def on_record(self) -> bool:
        """Whether it is written down: what a front end asks silently is not, as in Jupyter's own history."""
        return self.asked is None or not self.asked.silent

    @property
    def timeout_s(self) -> float:
        return self.record.timeout_s

    @property
    def running(self) -> bool:
        return self._cell is not None and not self.finished.is_set()

    def so_far(self) -> list[tuple[str, dict[str, Any]]]:
        """Type and content of what tells somebody who comes now what it has told; nothing before it has begun."""
        if self._cell is None or self.finished.is_set() or not self.on_record:
            return []
        began = {"code": self.record.code, "execution_count": self._cell.execution_count}
        return [("execute_input", began), *self._cell.outputs.as_published()]

    def begin(self, kernel: Kernel, cell: Cell) -> None:
        self._kernel, self._cell = kernel, cell
        if self.waits_for_input and self.asked is not None and cell.input_request is not None:  # since before
            self.asked.ask_input(cell.input_request)

    def on_event(self, event: Event) -> None:
        self.journal.add(event.kind, event.data, event.size_bytes)

    def on_input(self, prompt: str, password: bool) -> None:
        """Answer an `input()` from the run's stdin, or tell who follows that the cell waits."""
        if self.stdin is None:
            self.waits_for_input = True
            if self.asked is not None and self._cell is not None and self._cell.input_request is not None:
                self.asked.ask_input(self._cell.input_request)
            self.journal.add("input_request", {"prompt": prompt, "password": password})
        else:
            self._send_input(self.stdin.pop(0) if self.stdin else None)

    def give_input(self, text: str) -> bool:
        """Answer a cell that waits in `input()`; False if none does."""
        if not self.waits_for_input:
            return False
        self.waits_for_input = False
        self._send_input(text)
        return True

    def _send_input(self, text: str | None) -> None:
        if self._kernel is not None and self._cell is not None:
            self._kernel.answer_input(self._cell, text)

    def cancel(self) -> None:
        """Have it not begin; one that has begun is not touched."""
        self.stop_asked.set()
        if not self.running and self.stopped_as is None:
            self.stopped_as = Status.INTERRUPTED

    async def interrupt(self) -> None:
        """Send the interrupt; the cell may take it or not."""
        if self._kernel is not None and self.running:
            self.interrupted = True
            await self._kernel.interrupt()

    async def stop(self, grace_s: float) -> None:
        """Have it end: not begin, be interrupted, or lose its kernel after `grace_s`."""
        self.cancel()
        if self._kernel is not None and self._cell is not None and self.running:
            self.stopped_as = Status.INTERRUPTED
            with contextlib.suppress(KernelGone):
                await self._kernel.stop(self._cell, grace_s)
        await self.finished.wait()

    def end(self) -> None:
        """Nothing more will happen: let all know who wait."""
        if self.asked is not None:
            error = self.record.error or RunError(ename="Aborted", evalue="The kernel did not answer.")
            self.asked.conclude(error.ename, error.evalue, aborted=error.ename == "Aborted")
        self.journal.close()
        self.finished.set()

    def conclude(self, status: Status, error: RunError | None = None, *, state_kept: bool = True) -> None:
        """Fill in how it ended."""
        record, cell = self.record, self._cell
        record.status = status
        record.error = error
        record.state_kept = state_kept
        if cell is not None:
            record.outputs = cell.outputs.as_nbformat()
            record.truncated = cell.outputs.truncated
            record.execution_count = cell.execution_count
