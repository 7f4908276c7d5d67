"""Work that goes on to its end when the one who asked for it leaves."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def lasting(spawn: Callable[[Coroutine[Any, Any, None]], None], work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises; leaving early does not cancel it."""
    done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    done.add_done_callback(lambda future: future.cancelled() or future.exception())
    spawn(_do(work, done))
    return await asyncio.shield(done)


async def _do(work: Coroutine[Any, Any, T], done: asyncio.Future[T]) -> None:
    try:
        done.set_result(await work)
    except Exception as error:
        done.set_exception(error)
    finally:
        done.cancel()
