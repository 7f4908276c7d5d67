"""What waits: the asynchronous half of the two.

Its twin is `gateway.client.synchronous.waiting`, with the same names.
"""

import asyncio

from httpx2 import AsyncClient as Http
from httpx2 import AsyncHTTPTransport as HttpTransport

__all__ = ["Cancelled", "Http", "HttpTransport", "in_thread", "sleep"]

Cancelled = asyncio.CancelledError
in_thread = asyncio.to_thread
sleep = asyncio.sleep
