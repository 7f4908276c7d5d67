"""One kernel's ZMQ sockets: requests go out, and all that comes back is routed by its parent id."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import zmq
import zmq.asyncio

from kernels.errors import KernelGone
from kernels.messages import BadMessage, Content, Message, Wire

log = logging.getLogger(__name__)

Channel = Literal["shell", "control", "stdin"]
Listener = Callable[[Message], None]

_RECONNECT_MS = {"ipc": (2, 8), "tcp": (5, 1000)}  # at first, at most: a starting kernel binds any moment now
_BREATH = 64  # messages that are handled before other tasks get their turn
_RECEIVED_AHEAD = 1000  # messages, as in any Jupyter client: more wait in our own kernel, and others drop them


class Request:
    """A request under way; `done` once its reply and, if that is waited for, its `idle` are in."""

    __slots__ = (
        "_held",
        "_wants_idle",
        "answered",
        "done",
        "idle_seen",
        "msg_id",
        "on_idle",
        "on_input",
        "on_iopub",
        "reply",
    )

    def __init__(self, msg_id: str, on_iopub: Listener | None, on_input: Listener | None, wants_idle: bool) -> None:
        self.msg_id = msg_id
        self.on_iopub = on_iopub
        self.on_input = on_input
        self.on_idle: Callable[[], None] | None = None
        self._held: list[Message] | None = None
        self.reply: Message | None = None
        self.idle_seen = False
        self._wants_idle = wants_idle
        self.done: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(_retrieve)
        self.answered = asyncio.Event()  # or there will be no answer

    def got_reply(self, message: Message) -> None:
        if self.reply is None:
            self.reply = message
            self.answered.set()
            self._check()

    def got_idle(self) -> None:
        self.idle_seen = True
        self._check()
        if self.on_idle:
            self.on_idle()

    def hear(self, message: Message) -> None:
        """What the kernel publishes about it."""
        if message.type == "status":
            if message.content.get("execution_state") == "idle":
                self.got_idle()
        elif self.on_iopub:
            self.on_iopub(message)

    def hear_live(self, message: Message) -> None:
        if self._held is None:
            self.hear(message)
        else:
            self._held.append(message)

    def hold(self) -> None:
        """From now on, nothing that comes in is heard before `release`."""
        self._held = []

    def release(self) -> None:
        held, self._held = self._held or [], None
        for message in held:
            self.hear(message)

    def fail(self, error: Exception) -> None:
        self.answered.set()
        if not self.done.done():
            self.done.set_exception(error)

    def _check(self) -> None:
        if self.reply is not None and (self.idle_seen or not self._wants_idle) and not self.done.done():
            self.done.set_result(self.reply)


def _retrieve(future: asyncio.Future[Message]) -> None:
    if not future.cancelled():
        future.exception()  # a request whose asker has left is nobody's unhandled error


class Channels:
    """The sockets of one kernel. Made by `connected`."""

    def __init__(self, context: zmq.asyncio.Context, connection: Mapping[str, Any]) -> None:
        self.wire = Wire.of(connection)
        self._requests: dict[str, Request] = {}
        self._listeners: list[Listener] = []
        self._broken: Exception | None = None
        self.reading: asyncio.Task[None]  # ends, before it is cancelled, only by what nobody foresaw
        self.shell = self._connect(context, connection, "shell", zmq.DEALER)
        self.control = self._connect(context, connection, "control", zmq.DEALER)
        self.stdin = self._connect(context, connection, "stdin", zmq.DEALER)
        self.iopub = self._connect(context, connection, "iopub", zmq.SUB)

    def _connect(
        self, context: zmq.asyncio.Context, connection: Mapping[str, Any], name: str, kind: int
    ) -> zmq.asyncio.Socket:
        socket = context.socket(kind)
        socket.linger = 0
        socket.reconnect_ivl, socket.reconnect_ivl_max = _RECONNECT_MS[connection["transport"]]
        socket.set_hwm(0)
        if kind == zmq.SUB:
            socket.rcvhwm = _RECEIVED_AHEAD
            socket.subscribe(b"")
        else:
            socket.identity = self.wire.identity  # shell and stdin must share it, or input requests go astray
        port = connection[f"{name}_port"]
        separator = ":" if connection["transport"] == "tcp" else "-"
        socket.connect(f"{connection['transport']}://{connection['ip']}{separator}{port}")
        return socket

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Hear every IOPub message from now on; call what is returned to stop."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    async def send(
        self,
        channel: Channel,
        msg_type: str,
        content: Content,
        *,
        metadata: Content | None = None,
        subshell_id: str | None = None,
        msg_id: str | None = None,
        on_iopub: Listener | None = None,
        on_input: Listener | None = None,
        wants_idle: bool = False,
    ) -> Request:
        """Send a request. Its `done` raises `KernelGone` if the kernel ends first."""
        if self._broken:
            raise self._broken
        msg_id, frames = self.wire.request(msg_type, content, metadata=metadata, subshell_id=subshell_id, msg_id=msg_id)
        request = self._awaited(Request(msg_id, on_iopub, on_input, wants_idle))
        socket: zmq.asyncio.Socket = getattr(self, channel)
        await socket.send_multipart(frames)
        return request

    def expect(self, msg_id: str, on_iopub: Listener, on_input: Listener) -> Request:
        """A request that somebody else has sent, who is gone; what comes of it is held until `release`."""
        if self._broken:
            raise self._broken
        request = self._awaited(Request(msg_id, on_iopub, on_input, wants_idle=True))
        request.hold()
        return request

    def _awaited(self, request: Request) -> Request:
        self._requests[request.msg_id] = request
        request.done.add_done_callback(lambda _: self._requests.pop(request.msg_id, None))
        return request

    async def ask(
        self, channel: Channel, msg_type: str, content: Content, *, subshell_id: str | None = None
    ) -> dict[str, Any]:
        """Send a request and wait for the content of its reply; leaving early forgets it."""
        request = await self.send(channel, msg_type, content, subshell_id=subshell_id)
        try:
            return (await request.done).content
        finally:
            request.done.cancel()

    async def reply_input(self, request: Message, content: Content) -> None:
        """Answer an `input_request`."""
        _, frames = self.wire.request("input_reply", content, parent=request.header)
        await self.stdin.send_multipart(frames)

    @property
    def broken(self) -> bool:
        """Whether nothing more will come."""
        return self._broken is not None

    def fail(self, error: Exception) -> None:
        """Nothing more will come: every request under way, and any later one, raises `error`."""
        self._broken = error
        for request in list(self._requests.values()):
            request.fail(error)

    async def read(self) -> None:
        """Route what comes in until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for socket, route in (
                (self.iopub, self._route_iopub),
                (self.shell, self._route_reply),
                (self.control, self._route_reply),
                (self.stdin, self._route_input),
            ):
                tasks.create_task(self._read(socket, route))

    async def _read(self, socket: zmq.asyncio.Socket, route: Listener) -> None:
        handled = 0
        while True:
            frames = await socket.recv_multipart()
            try:
                route(self.wire.read(frames))
            except BadMessage as error:
                log.warning("A message that can't be read was left aside: %s", error)
            except Exception:
                log.exception("A message could not be handled")
            handled += 1
            if handled % _BREATH == 0:
                await asyncio.sleep(0)

    def _route_reply(self, message: Message) -> None:
        if request := self._requests.get(message.parent_id or ""):
            request.got_reply(message)

    def _route_input(self, message: Message) -> None:
        request = self._requests.get(message.parent_id or "")
        if request and request.on_input and message.type == "input_request":
            request.on_input(message)

    def _route_iopub(self, message: Message) -> None:
        for listener in tuple(self._listeners):
            listener(message)
        request = self._requests.get(message.parent_id or "")
        if request is not None:
            request.hear_live(message)


@asynccontextmanager
async def connected(context: zmq.asyncio.Context, connection: Mapping[str, Any]) -> AsyncIterator[Channels]:
    """The channels of a kernel, read from until the block is left."""
    channels = Channels(context, connection)
    channels.reading = asyncio.create_task(channels.read())
    try:
        yield channels
    finally:
        channels.fail(KernelGone("The connection to the kernel was closed."))
        channels.reading.cancel()
        await asyncio.wait({channels.reading})
        if not channels.reading.cancelled() and (error := channels.reading.exception()) is not None:
            log.error("The connection to a kernel broke", exc_info=error)
        for socket in (channels.shell, channels.control, channels.stdin, channels.iopub):
            socket.close()
