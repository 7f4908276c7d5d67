"""Threads that a cell starts, and what they print."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def keep_threads_with_their_cell(shell: Any) -> None:
    """What a thread prints belongs to the cell that started it, or gave a pool the work, also when that has ended."""

    def of_this_cell(work: Callable[..., Any]) -> Callable[..., Any]:
        parent = shell.get_parent()

        @functools.wraps(work)
        def worked(*args: Any, **kwargs: Any) -> Any:
            tokens = shell.set_thread_parent(parent)
            try:
                return work(*args, **kwargs)
            finally:
                shell.reset_thread_parent(tokens)

        return worked

    def start(thread: Any) -> None:
        thread.run = of_this_cell(thread.run)
        stock_start(thread)

    def submit(pool: Any, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return stock_submit(pool, of_this_cell(work), *args, **kwargs)

    stock_start, threading.Thread.start = threading.Thread.start, start  # type: ignore[method-assign,assignment]
    stock_submit, ThreadPoolExecutor.submit = ThreadPoolExecutor.submit, submit  # type: ignore[method-assign]
