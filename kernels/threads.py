"""Blocking work in threads. Whoever is cancelled waits until the thread is done: nothing is closed under it."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    work = asyncio.get_running_loop().run_in_executor(None, partial(function, *args, **kwargs))
    return await outcome(work)


async def outcome(work: "asyncio.Future[T]", on_cancel: Callable[[], object] | None = None) -> T:
    """What comes of work in a thread; `on_cancel` asks it to end early."""
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        if on_cancel is not None:
            on_cancel()
        while not work.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([work])
        if not work.cancelled():
            work.exception()  # nobody is left to be told
        raise
