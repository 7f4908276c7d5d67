"""Connections: how many there are, and how long one may take to say what it wants.

Who opens many and says little loses the oldest of them; whoever asks something meanwhile is served.
"""

import itertools
import time
from collections import OrderedDict
from collections.abc import Awaitable
from typing import Any

from tornado.http1connection import HTTP1Connection, HTTP1ServerConnection
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine
from tornado.iostream import IOStream

_SLOWEST = 4096  # bytes a second that a body must bring, beyond the patience that there is


class Server(HTTPServer):
    """Sends small packets at once: with Nagle's algorithm a keep-alive client waits 40 ms for each answer.

    Connections are numbered as they come: what is asked on them may be read in another order. Past `most`, that one is
    closed for a new one on which nothing was asked for longest; if something is asked on all, the new one is.
    """

    _numbers = itertools.count(1)

    def initialize(self, *args: Any, most: int = 4096, patience_s: float = 75.0, **kwargs: Any) -> None:
        self._most = most
        self._patience_s = patience_s
        self._silent: OrderedDict[object, None] = OrderedDict()  # connections whose next request has not come yet
        self._asking: dict[object, _Asked] = {}
        super().initialize(*args, **{**kwargs, "idle_connection_timeout": patience_s})

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        if len(self._connections) >= self._most:
            if not self._silent:
                stream.close()
                return
            oldest, _ = self._silent.popitem(last=False)
            assert isinstance(oldest, HTTP1ServerConnection)
            oldest.stream.close()
        stream.set_nodelay(True)
        stream.number = next(self._numbers)  # type: ignore[attr-defined]
        super().handle_stream(stream, address)

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        self._silent[server_conn] = None
        self._asking.pop(server_conn, None)
        return _Asked(self, server_conn, request_conn, super().start_request(server_conn, request_conn))

    def on_close(self, server_conn: object) -> None:
        self._silent.pop(server_conn, None)
        self._asking.pop(server_conn, None)
        super().on_close(server_conn)

    def begins(self, server_conn: object, asked: "_Asked") -> None:
        """The head of a request is in."""
        self._silent.pop(server_conn, None)
        self._asking[server_conn] = asked

    def ends(self, server_conn: object) -> None:
        """So is the rest."""
        self._asking.pop(server_conn, None)

    async def sweep(self) -> None:
        """Close connections whose bodies come too slowly."""
        for server_conn, asked in list(self._asking.items()):
            if asked.is_too_slow(self._patience_s):
                self._asking.pop(server_conn, None)
                asked.close()


class _Asked(HTTPMessageDelegate):
    """One request on its way in."""

    def __init__(
        self, server: Server, server_conn: object, request_conn: HTTPConnection, delegate: HTTPMessageDelegate
    ) -> None:
        self._server = server
        self._server_conn = server_conn
        self._request_conn = request_conn
        self._delegate = delegate
        self._since: float | None = None  # when it was its client's turn; None while it is ours
        self._received = 0

    def is_too_slow(self, patience_s: float) -> bool:
        if self._since is None or not self._open:
            return False
        return time.monotonic() - self._since > patience_s + self._received / _SLOWEST

    @property
    def _open(self) -> bool:
        """Whether it is HTTP still, and no websocket."""
        return isinstance(self._request_conn, HTTP1Connection) and self._request_conn.stream is not None

    def close(self) -> None:
        assert isinstance(self._request_conn, HTTP1Connection)
        self._request_conn.stream.close()

    async def headers_received(self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders) -> None:
        self._server.begins(self._server_conn, self)
        await self._ours(self._delegate.headers_received(start_line, headers))

    async def data_received(self, chunk: bytes) -> None:
        self._received += len(chunk)
        await self._ours(self._delegate.data_received(chunk))

    async def _ours(self, done: Awaitable[None] | None) -> None:
        """The time that we take is not the client's."""
        began, since = time.monotonic(), self._since
        self._since = None
        if done is not None:
            await done
        self._since = time.monotonic() if since is None else since + time.monotonic() - began

    def finish(self) -> None:
        self._server.ends(self._server_conn)
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._server.ends(self._server_conn)
        self._delegate.on_connection_close()
