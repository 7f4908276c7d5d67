"""A kernel's websocket."""

import asyncio

from tornado.websocket import WebSocketClosedError, WebSocketHandler

from gateway.errors import Malformed
from gateway.handlers.base import Operation, OriginRefused
from gateway.handlers.jupyter import JupyterHandler
from gateway.models.channels import V1, Envelope, read
from gateway.models.jupyter import ChannelsQuery
from gateway.services.front_ends import FrontEnd
from gateway.services.live_session import LiveSession
from kernels.messages import BadMessage

_CODE_UNREADABLE = 1007


class ChannelsHandler(JupyterHandler, WebSocketHandler):
    """/jupyter/api/kernels/{kernel_id}/channels"""

    operations = {"GET": Operation("The kernel's channels, as a websocket", None, 101, query=ChannelsQuery)}
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
        self.number = getattr(self.ws_connection.stream, "number", 0) if self.ws_connection is not None else 0
        session_id = self.get_query_argument("session_id", "")[:256] or None
        self.front_end = self.services.channels.attach(self.live, session_id, self.caller, self)

    async def on_message(self, message: str | bytes) -> None:
        try:
            channel, asked = read(message, v1=self.selected_subprotocol == V1)
        except BadMessage as error:
            self.close(_CODE_UNREADABLE, str(error)[:120])
            return
        await self.services.channels.receive(self.live, self.front_end, channel, asked)

    def on_close(self) -> None:
        self.services.channels.leave(self.live, self.front_end, self)

    def deliver(self, envelope: Envelope) -> "asyncio.Future[None]":
        try:
            if self.selected_subprotocol == V1:
                return self.write_message(envelope.v1, binary=True)
            frame = envelope.legacy
            return self.write_message(frame, binary=isinstance(frame, bytes))
        except WebSocketClosedError as error:
            failed = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed

    def on_connection_close(self) -> None:
        WebSocketHandler.on_connection_close(self)
