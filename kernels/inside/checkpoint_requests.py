"""What the gateway asks of a live kernel: to save the session's variables, and to bring them back.

Asked for on the control channel, done on the main thread between cells, one request at a time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from . import checkpoint
from .between_cells import A_MOMENT_S, BetweenCells, Busy
from .checkpoint_files import CheckpointError
from .gpu import gpu_in_use
from .saver import Saver, fork


class Stopped(Exception):
    """An interrupt, or the time that was over, ended the work; nothing was changed."""


class CheckpointRequests:
    """Answers them for one kernel. `quieten` makes a copy of it say nothing more; `last` tells what it did last."""

    def __init__(
        self,
        shell: Any,
        between_cells: BetweenCells,
        quieten: Callable[[], None],
        last: Callable[[], dict[str, str]],
    ) -> None:
        self._shell = shell
        self._between_cells = between_cells
        self._quieten = quieten
        self._last = last
        self._one_at_a_time = asyncio.Lock()

    async def save(self, folder: str, wait_s: float, timeout_s: float) -> dict[str, Any]:
        """Raises `Busy` if it could not begin within `wait_s`."""
        report: dict[str, Any] = await self._alone(wait_s, lambda left_s: self._save(folder, left_s, timeout_s))
        return report

    async def restore(self, folder: str, names: list[str] | None, wait_s: float, timeout_s: float) -> dict[str, Any]:
        work = _Interruptible(lambda: self._here(lambda: checkpoint.load(self._shell, folder, names)), timeout_s)
        answer: dict[str, Any] = await self._alone(wait_s, lambda left_s: work.done(self._between_cells, left_s))
        return answer

    async def _alone(self, wait_s: float, work: Callable[[float], Any]) -> Any:
        until = time.monotonic() + wait_s
        try:
            await asyncio.wait_for(self._one_at_a_time.acquire(), max(wait_s, A_MOMENT_S))
        except asyncio.TimeoutError:  # noqa: UP041 - not the same before Python 3.11
            raise Busy("Another checkpoint was under way, and did not end in time.") from None
        try:
            return await work(until - time.monotonic())
        finally:
            self._one_at_a_time.release()

    async def _save(self, folder: str, wait_s: float, timeout_s: float) -> dict[str, Any]:
        def write() -> dict[str, Any]:
            try:
                return self._here(lambda: checkpoint.dump(self._shell, folder))
            except CheckpointError as error:
                return {"refused": str(error)}

        dump = _Interruptible(write, timeout_s)
        taken: dict[str, Any] = {}

        def begin() -> tuple[Saver | dict[str, Any], str, float]:
            taken.update(self._last(), taken_at=time.time())
            began = time.perf_counter()
            reason = _why_not_forked()
            if not reason:
                try:
                    saver = fork(write, self._quieten)
                except OSError as error:
                    reason = f"The kernel can't be copied: {error.strerror or error}."
                else:
                    return saver, "", time.perf_counter() - began
            return dump.work(), reason, time.perf_counter() - began

        begun, reason, pause_s = await dump.done(self._between_cells, wait_s, begin)
        report = await begun.answer(timeout_s) if isinstance(begun, Saver) else begun
        if "refused" in report:
            raise CheckpointError(report["refused"])
        method = "fork" if isinstance(begun, Saver) else "in-process"
        return {"method": method, "method_reason": reason, "pause_ms": round(pause_s * 1000, 3), **taken, **report}

    def _here(self, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What runs meanwhile of the session's code finds the names that a cell finds."""
        with self._shell.builtin_trap:
            return work()


class _Interruptible:
    """Work on the main thread that an interrupt ends, also when the interrupt comes because the time is over."""

    def __init__(self, work: Callable[[], Any], timeout_s: float) -> None:
        self._work = work
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._lock = threading.Lock()
        self._running = False
        self._too_long = False

    async def done(self, between_cells: BetweenCells, wait_s: float, work: Callable[[], Any] | None = None) -> Any:
        try:
            return await between_cells.do(work or self.work, wait_s)
        finally:
            if self._timer is not None:
                self._timer.cancel()

    def work(self) -> Any:
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            try:
                self._running = True
                self._loop.call_soon_threadsafe(self._wind_up)
                return self._work()
            finally:
                with self._lock:
                    self._running = False
                signal.signal(signal.SIGINT, before)
        except KeyboardInterrupt:
            if self._too_long:
                raise Stopped(f"It took longer than {self._timeout_s:g} s and was ended.") from None
            raise Stopped("It was interrupted.") from None
        finally:
            signal.signal(signal.SIGINT, before)

    def _wind_up(self) -> None:
        self._timer = self._loop.call_later(self._timeout_s, self._stop)

    def _stop(self) -> None:
        with self._lock:
            if self._running:
                self._too_long = True
                ident = threading.main_thread().ident
                assert ident is not None
                signal.pthread_kill(ident, signal.SIGINT)


def _why_not_forked() -> str:
    if not hasattr(os, "fork"):
        return f"{sys.platform} can't copy a running process."
    library = gpu_in_use()
    return "" if library is None else f"{library} is using a GPU, whose state can't be copied."
