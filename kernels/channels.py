"""One kernel's ZMQ sockets: requests go out, and all that comes back is routed by its parent id."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Literal

from kernels.errors import KernelGone
from kernels.intake import Intake
from kernels.messages import BadMessage, Content, Message, NewSieve, Sieve, Wire
from kernels.sockets import Socket, address_of
from kernels.zmtp import Cut, Kind

log = logging.getLogger(__name__)

Channel = Literal["shell", "control", "stdin"]
Listener = Callable[[Message], None]


class Request:
    """A request under way; `done` once its reply and, if that is waited for, its `idle` are in."""

    __slots__ = (
        "_held", "_replied", "_wants_idle", "done", "heard", "idle_seen", "msg_id", "on_idle", "on_input", "on_iopub",
        "on_reply", "reply",
    )  # fmt: skip

    def __init__(self, msg_id: str, on_iopub: Listener | None, on_input: Listener | None, wants_idle: bool) -> None:
        self.msg_id = msg_id
        self.on_iopub = on_iopub
        self.on_input = on_input
        self.on_idle: Callable[[], None] | None = None
        self.on_reply: Listener | None = None
        self._held: list[Message] | None = None
        self._replied: asyncio.Future[Message] | None = None
        self.reply: Message | None = None
        self.heard = False  # whether the kernel has published anything about it
        self.idle_seen = False
        self._wants_idle = wants_idle
        self.done: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(_retrieve)

    @property
    def replied(self) -> "asyncio.Future[Message]":
        """Done with its reply, whether its `idle` is in or not; raises what `done` raises."""
        if self._replied is None:
            self._replied = self.done.get_loop().create_future()
            self._replied.add_done_callback(_retrieve)
            self.done.add_done_callback(self._settle_replied)
            if self.reply is not None:
                self._replied.set_result(self.reply)
        return self._replied

    def _settle_replied(self, done: "asyncio.Future[Message]") -> None:
        assert self._replied is not None
        if not self._replied.done():
            if done.cancelled():
                self._replied.cancel()
            elif (error := done.exception()) is not None:
                self._replied.set_exception(error)
            else:
                self._replied.set_result(done.result())

    def got_reply(self, message: Message) -> None:
        if self.reply is None:
            self.reply = message
            if self.on_reply is not None:
                self.on_reply(message)
            if self._replied is not None and not self._replied.done():
                self._replied.set_result(message)
            self._check()

    def got_idle(self) -> None:
        self.idle_seen = True
        self._check()
        if self.on_idle:
            self.on_idle()

    def hear(self, message: Message) -> None:
        """What the kernel publishes about it."""
        self.heard = True
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

    def __init__(self, intake: Intake, connection: Mapping[str, Any]) -> None:
        self.wire = Wire.of(connection)
        self.last_published = ""  # the id of what was heard last on IOPub
        self.lost: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()  # by what nobody foresaw
        self._intake = intake
        self._connection = connection
        self._requests: dict[str, Request] = {}
        self._listeners: list[Listener] = []
        self.new_sieve: NewSieve | None = None
        self._sieve: Sieve | None = None
        self._broken: Exception | None = None
        self._complained = False
        self._sockets: dict[str, Socket] = {}
        self._connect("iopub", "SUB", self._route_iopub)
        self._connect("shell", "DEALER", self._route_reply)
        self._connect("stdin", "DEALER", self._route_input)

    def _connect(self, name: str, kind: Kind, route: Listener) -> Socket:
        # shell and stdin must share their identity, or input requests go astray
        identity = self.wire.identity if kind == "DEALER" else b""
        address, take = address_of(self._connection, name), partial(self._take, route)
        made = self._sockets[name] = Socket(address, kind, self._intake, take, self._lose, identity=identity)
        return made

    def _socket(self, channel: Channel) -> Socket:
        """That of the control channel is made when somebody first has something to say there: most never do."""
        return self._sockets.get(channel) or self._connect(channel, "DEALER", self._route_reply)

    def _lose(self, error: Exception) -> None:
        if not self.lost.done():
            self.lost.set_result(error)

    def sift(self, new_sieve: NewSieve | None) -> None:
        """Have all that comes from now on go through a sieve; who reads the journal makes another one."""
        self.new_sieve, self._sieve = new_sieve, new_sieve() if new_sieve is not None else None

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
        self._socket(channel).send(frames)
        return request

    def forward(
        self,
        channel: Channel,
        message: Message,
        *,
        on_reply: Listener | None = None,
        on_iopub: Listener | None = None,
        on_input: Listener | None = None,
        wants_idle: bool = False,
    ) -> Request:
        """Send what somebody else has written, signed by us; its reply comes here. Raises what `send` raises."""
        if self._broken:
            raise self._broken
        request = self._awaited(Request(message.id, on_iopub, on_input, wants_idle))
        request.on_reply = on_reply
        self._socket(channel).send(self.wire.signed(message.parts))
        return request

    def pass_on(self, channel: Channel, message: Message) -> None:
        """Send what somebody else has written, and what no reply comes to. Raises what `send` raises."""
        if self._broken:
            raise self._broken
        self._socket(channel).send(self.wire.signed(message.parts))

    def expect(self, msg_id: str, on_iopub: Listener, on_input: Listener) -> Request:
        """A request that somebody else has sent, who is gone; what comes of it is held until `release`."""
        if self._broken:
            raise self._broken
        request = self._awaited(Request(msg_id, on_iopub, on_input, wants_idle=True))
        request.hold()
        return request

    def _awaited(self, request: Request) -> Request:
        self._requests[request.msg_id] = request
        request.done.add_done_callback(lambda _: self._forget(request))
        return request

    def _forget(self, request: Request) -> None:
        if self._requests.get(request.msg_id) is request:  # else somebody has used its id again
            del self._requests[request.msg_id]

    async def ask(
        self, channel: Channel, msg_type: str, content: Content, *, subshell_id: str | None = None
    ) -> dict[str, Any]:
        """Send a request and wait for the content of its reply; leaving early forgets it."""
        request = await self.send(channel, msg_type, content, subshell_id=subshell_id)
        try:
            return (await request.done).content
        finally:
            request.done.cancel()

    def reply_input(self, request: Message, content: Content) -> None:
        """Answer an `input_request`."""
        _, frames = self.wire.request("input_reply", content, parent=request.header)
        self._socket("stdin").send(frames)

    def awaits(self, msg_id: str) -> bool:
        """Whether a request of that id is under way."""
        return msg_id in self._requests

    @property
    def broken(self) -> bool:
        """Whether nothing more will come."""
        return self._broken is not None

    def fail(self, error: Exception) -> None:
        """Nothing more will come: every request under way, and any later one, raises `error`."""
        if self._sieve is not None and self._broken is None:
            for message in self._sieve.rest():
                self._route_iopub(message)
        self._broken = error
        for request in list(self._requests.values()):
            request.fail(error)

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close()

    def _take(self, route: Listener, messages: list[list[bytes]]) -> None:
        for frames in messages:
            try:
                message = self.wire.read_cut(frames) if isinstance(frames, Cut) else self.wire.read(frames)
                if self._sieve is None:
                    route(message)
                else:
                    for one in self._sieve.take(message):
                        route(one)
            except BadMessage as error:
                if not self._complained:  # a kernel may say nothing else
                    log.warning("Messages that can't be read are left aside: %s", error)
                self._complained = True
            except Exception:
                log.exception("A message could not be handled")

    def _route_reply(self, message: Message) -> None:
        if request := self._requests.get(message.parent_id or ""):
            request.got_reply(message)

    def _route_input(self, message: Message) -> None:
        request = self._requests.get(message.parent_id or "")
        if request and request.on_input and message.type == "input_request":
            request.on_input(message)

    def _route_iopub(self, message: Message) -> None:
        self.last_published = message.id
        if not message.cut:
            for listener in tuple(self._listeners):
                listener(message)
        request = self._requests.get(message.parent_id or "")
        if request is not None:
            request.hear_live(message)


@asynccontextmanager
async def connected(intake: Intake, connection: Mapping[str, Any]) -> AsyncIterator[Channels]:
    """The channels of a kernel, read from until the block is left."""
    channels = Channels(intake, connection)
    try:
        yield channels
    finally:
        channels.fail(KernelGone("The connection to the kernel was closed."))
        channels.close()
        if channels.lost.done():
            log.error("The connection to a kernel broke", exc_info=channels.lost.result())
