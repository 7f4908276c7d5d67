"""A kernel's websocket."""

import asyncio
from collections import deque

from tornado.iostream import IOStream
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from gateway.errors import Malformed
from gateway.handlers.base import Operation, OriginRefused
from gateway.handlers.jupyter_kernels import OfKernelHandler
from gateway.models.access import Need
from gateway.models.channels import V1, Envelope, read
from gateway.models.jupyter import ChannelsQuery
from gateway.services.front_ends import FrontEnd, Noting
from gateway.services.live_session import LiveSession
from kernels.messages import BadMessage

_SWITCHED = 101
_CODE_UNREADABLE, _CODE_NOT_ALLOWED = 1007, 4401


class _Handed:
    """Notes what a socket takes, as the very last thing before it does, and takes back what it did not.

    A kill between the two is a matter of a microsecond. After it the client could tell the difference: it may be what
    ends the gateway upon a message.
    """

    def __init__(self, stream: IOStream) -> None:
        self._stream = stream
        self._expected: deque[tuple[int, Noting]] = deque()
        self._send = stream.write_to_fd
        stream.write_to_fd = self._write_to_fd  # type: ignore[method-assign]

    def expect(self, payload_bytes: int, noting: Noting) -> None:
        """Note it with the last byte of the next message, which is of this size."""
        head_bytes = 2 if payload_bytes < 126 else 4 if payload_bytes <= 0xFFFF else 10
        self._expected.append((self._stream._total_write_index + head_bytes + payload_bytes, noting))

    def _write_to_fd(self, data: memoryview) -> int:
        done, expected = self._stream._total_write_done_index, self._expected
        offered = [noting for end, noting in expected if end <= done + len(data)]
        if offered:
            offered[-1][0]()
        sent = 0
        try:
            sent = self._send(data)
        finally:
            if sent < len(data) and offered:
                taken = [noting for end, noting in expected if end <= done + sent]
                (taken[-1][0] if taken else offered[0][1])()
            while expected and expected[0][0] <= done + sent:
                expected.popleft()
        return sent


class ChannelsHandler(OfKernelHandler, WebSocketHandler):
    """/jupyter/api/kernels/{kernel_id}/channels"""

    operations = {
        "GET": Operation("The kernel's channels, as a websocket", None, 101, query=ChannelsQuery, needs=Need.RUN)
    }
    _cut_off = False
    live: LiveSession
    front_end: FrontEnd
    number: int

    async def get(self, kernel_id: str) -> None:
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise Malformed("This is a websocket: ask for an upgrade.")
        self.live = await self.services.jupyter.hold(kernel_id)
        await WebSocketHandler.get(self, kernel_id)

    def check_origin(self, origin: str) -> bool:
        """A page from elsewhere may not, though this begins as a GET. Raises `OriginRefused`."""
        if not self.is_own_page(origin):
            raise OriginRefused(f"A page of {origin!r} may not do this.", origin=origin)
        return True

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return V1 if V1 in subprotocols else None

    def open(self, kernel_id: str) -> None:
        self.set_nodelay(True)
        assert self.ws_connection is not None
        assert self.ws_connection.stream is not None
        self._handed = _Handed(self.ws_connection.stream)
        self.number = getattr(self.ws_connection.stream, "number", 0)
        session_id = self.get_query_argument("session_id", "")[:256] or None
        self.front_end = self.services.channels.attach(self.live, session_id, self.caller, self)
        self.audit(101)

    def cut_off(self) -> None:
        self._cut_off = True
        self.close(_CODE_NOT_ALLOWED, "The key, or what it was granted, is good no more.")

    async def on_message(self, message: str | bytes) -> None:
        if self._cut_off:  # said before the client heard of it
            return
        try:
            channel, asked = read(message, v1=self.selected_subprotocol == V1)
        except BadMessage as error:
            self.close(_CODE_UNREADABLE, str(error)[:120])
            return
        await self.services.channels.receive(self.live, self.front_end, channel, asked)

    def on_finish(self) -> None:
        """Tornado calls this when the socket is open: what follows it is still watched."""
        watched = self._pass if self.get_status() == _SWITCHED else None
        super().on_finish()
        if watched is not None:
            self.services.access.begin(watched)

    def on_close(self) -> None:
        self._leave()
        self.services.channels.leave(self.live, self.front_end, self)

    def deliver(self, envelope: Envelope, noting: Noting | None) -> "asyncio.Future[None]":
        try:
            frame = envelope.v1 if self.selected_subprotocol == V1 else envelope.legacy
            payload = frame.encode() if isinstance(frame, str) else frame
            if noting is not None:
                self._handed.expect(len(payload), noting)
            return self.write_message(payload if isinstance(frame, bytes) else frame, binary=isinstance(frame, bytes))
        except WebSocketClosedError as error:
            failed = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed

    def on_connection_close(self) -> None:
        WebSocketHandler.on_connection_close(self)
