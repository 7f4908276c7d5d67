"""Work that is asked for by other threads and done on the main one, while no request of the shell is under way.

So it never meets a cell half way, not even one that awaits. It sees the context variables that cells see.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from .duplicate import Reborn

T = TypeVar("T")

A_MOMENT_S = 0.25
"""A main thread that has nothing to do gets to the work within that."""


class Busy(Exception):
    """No moment between cells came in time; the work was not begun, and will not be."""


class BetweenCells:
    """Knows when no cell runs. The lock is held while work is done, so that no thread begins a cell meanwhile."""

    def __init__(self) -> None:
        self.loop: Any = None  # of the main thread, once it runs
        self._lock = threading.Lock()
        self._requests = 0
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._context: contextvars.Context | None = None

    def begin(self, loop: Any, context: contextvars.Context) -> None:
        """`context` is the one that all requests of the shell share."""
        self.loop, self._context = loop, context

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """While a request is handled, by whatever thread."""
        with self._lock:
            self._requests += 1
        try:
            yield
        finally:
            with self._lock:
                self._requests -= 1
            if self._waiting:
                self.loop.add_callback(self._turn)

    async def do(self, work: Callable[[], T], wait_s: float) -> T:
        """Have `work` done; other tasks of the caller's loop go on. Raises `Busy`, and whatever it raises."""
        future: Future[T] = Future()
        asked = future, work
        self._waiting.append(asked)
        self.loop.add_callback(self._turn)
        done = asyncio.wrap_future(future)
        await asyncio.wait({done}, timeout=max(wait_s, A_MOMENT_S))
        if not done.done() and future.cancel():
            with contextlib.suppress(ValueError):
                self._waiting.remove(asked)
            raise Busy("A cell was running, and did not end in time.")
        return await done

    def _turn(self) -> None:
        with self._lock:
            if self._requests or not self._waiting:
                return
            future, work = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                try:
                    result = self._context.run(work) if self._context is not None else work()
                except Reborn:
                    raise
                except Exception as error:
                    future.set_exception(error)
                except BaseException as error:  # it would end the loop that waits for it
                    future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
                else:
                    future.set_result(result)
        if self._waiting:
            self.loop.add_callback(self._turn)
