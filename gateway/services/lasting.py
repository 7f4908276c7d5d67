"""Work that goes on to its end when the one who asked for it leaves."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from gateway.errors import GatewayError
from kernels.errors import KernelsError

log = logging.getLogger(__name__)

T = TypeVar("T")


async def lasting(spawn: Callable[[Coroutine[Any, Any, None]], None], work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns or raises; leaving early does not cancel it."""
    done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    done.add_done_callback(lambda future: future.cancelled() or future.exception())
    spawn(_do(work, done))
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        done.add_done_callback(_tell)  # nobody else hears of it any more
        raise


def _tell(done: asyncio.Future[Any]) -> None:
    if not done.cancelled() and isinstance(error := done.exception(), Exception):
        foreseen = isinstance(error, GatewayError | KernelsError)
        log.log(logging.INFO if foreseen else logging.ERROR, "What nobody waited for failed (%s)", type(error).__name__)


async def _do(work: Coroutine[Any, Any, T], done: asyncio.Future[T]) -> None:
    try:
        done.set_result(await work)
    except Exception as error:
        done.set_exception(error)
    finally:
        done.cancel()
