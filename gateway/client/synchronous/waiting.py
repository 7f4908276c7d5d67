"""What waits: the synchronous half of the two.

Its twin is `gateway.client.asynchronous.waiting`, with the same names.
"""

import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from httpx2 import Client as Http
from httpx2 import HTTPTransport as HttpTransport

__all__ = ["Cancelled", "Http", "HttpTransport", "in_thread", "sleep"]

P = ParamSpec("P")
T = TypeVar("T")

Cancelled = KeyboardInterrupt
sleep = time.sleep


def in_thread(work: Callable[P, T], *arguments: P.args, **more: P.kwargs) -> T:
    """In this one: whoever calls waits for it anyway."""
    return work(*arguments, **more)
