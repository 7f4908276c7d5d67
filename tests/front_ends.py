"""A Jupyter front end for tests, as thin as it can be: one websocket, and what comes over it."""

import asyncio
import itertools
import json
import struct
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

V1 = "v1.kernel.websocket.jupyter.org"
_PATIENCE_S = 30


@dataclass(frozen=True)
class Got:
    """A message that came."""

    channel: str
    header: dict[str, Any]
    parent: dict[str, Any]
    metadata: dict[str, Any]
    content: dict[str, Any]
    buffers: list[bytes]

    @property
    def type(self) -> str:
        return str(self.header["msg_type"])

    @property
    def state(self) -> str | None:
        return self.content.get("execution_state") if self.type == "status" else None

    @property
    def text(self) -> str:
        return str(self.content.get("text", "")) if self.type == "stream" else ""


class FrontEnd:
    """Speaks v1, or the older framing; keeps all that came in `seen`."""

    def __init__(self, socket: WebSocketClientConnection, session: str, v1: bool) -> None:
        assert socket.protocol is not None
        assert socket.protocol.stream is not None
        self.socket = socket
        self._stream = socket.protocol.stream
        self.session = session
        self.v1 = v1
        self.seen: list[Got] = []
        self._numbers = itertools.count()

    async def send(
        self, msg_type: str, content: dict[str, Any], channel: str = "shell", buffers: tuple[bytes, ...] = (),
        **header: Any,
    ) -> str:  # fmt: skip
        """The id of what was sent."""
        msg_id = header.pop("msg_id", None) or f"{uuid.uuid4().hex}-{next(self._numbers)}"
        about = {"msg_id": msg_id, "msg_type": msg_type, "session": self.session, "username": "someone"}
        parts = [about | {"version": "5.4", "date": "2026-01-20T10:00:00Z"} | header, {}, {}, content]
        if self.v1:
            await self.socket.write_message(_join_v1(channel, parts, buffers), binary=True)
        else:
            names = ("header", "parent_header", "metadata", "content")
            text = json.dumps(dict(zip(names, parts, strict=True)) | {"channel": channel})
            await self.socket.write_message(_join_older(text.encode(), buffers) if buffers else text, bool(buffers))
        return msg_id

    async def execute(self, code: str, **fields: Any) -> str:
        header = fields.pop("header", {})
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": True}
        return await self.send("execute_request", content | {"stop_on_error": True} | fields, **header)

    async def next(self) -> Got:
        """The next message. Raises `EOFError` once the socket is closed."""
        async with asyncio.timeout(_PATIENCE_S):
            frame = await self.socket.read_message()
        if frame is None:
            raise EOFError(self.socket.close_code, self.socket.close_reason)
        got = _read_v1(frame) if self.v1 and isinstance(frame, bytes) else _read_older(frame)
        self.seen.append(got)
        return got

    async def until(self, wanted: Callable[[Got], bool]) -> Got:
        while not wanted(got := await self.next()):
            pass
        return got

    async def has(self, wanted: Callable[[Got], bool]) -> Got:
        """The first such message, whether it has come or not."""
        return next(filter(wanted, self.seen), None) or await self.until(wanted)

    async def until_state(self, state: str) -> Got:
        return await self.until(lambda got: got.state == state)

    async def outcome(self, msg_id: str) -> tuple[Got, list[Got]]:
        """Its reply, and what was published about it, once both its reply and its `idle` are in."""
        about, reply, idle = self.about(msg_id), None, False
        while True:
            for one in about:
                if one.channel != "iopub" and one.type.endswith("_reply"):
                    reply = reply or one
                idle = idle or one.state == "idle"
            if reply is not None and idle:
                return reply, [one for one in self.about(msg_id) if one.channel == "iopub"]
            about = [one for one in [await self.next()] if one.parent.get("msg_id") == msg_id]

    def about(self, msg_id: str) -> list[Got]:
        return [one for one in self.seen if one.parent.get("msg_id") == msg_id]

    async def run(self, code: str, **fields: Any) -> tuple[Got, list[Got]]:
        return await self.outcome(await self.execute(code, **fields))

    def vanish(self) -> None:
        """Be gone, without a word."""
        self._stream.close()


@asynccontextmanager
async def front_end(
    url: str, kernel_id: str, *, session: str | None = "", v1: bool = True, origin: str | None = None, query: str = ""
) -> AsyncIterator[FrontEnd]:
    """One on a kernel; `session` is what it goes by, None for one that tells none."""
    name = session or uuid.uuid4().hex
    asked = "" if session is None else f"session_id={name}"
    address = f"{url.replace('http', 'ws', 1)}/jupyter/api/kernels/{kernel_id}/channels?{asked}{query}"
    request = HTTPRequest(address, headers={"Origin": origin} if origin else {})
    socket = await websocket_connect(request, subprotocols=[V1] if v1 else None)
    assert socket.selected_subprotocol == (V1 if v1 else None)
    client = FrontEnd(socket, name, v1)
    try:
        yield client
    finally:
        socket.close()
        client.vanish()  # the loop may end before the other side has said good-bye


def text_of(published: list[Got]) -> str:
    return "".join(one.text for one in published)


def _join_v1(channel: str, parts: list[dict[str, Any]], buffers: tuple[bytes, ...]) -> bytes:
    pieces = [channel.encode(), *(json.dumps(part).encode() for part in parts), *buffers]
    starts = [8 * (len(pieces) + 2)]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    return struct.pack(f"<{len(starts) + 1}Q", len(starts), *starts) + b"".join(pieces)


def _read_v1(frame: bytes) -> Got:
    (count,) = struct.unpack_from("<Q", frame)
    at = struct.unpack_from(f"<{count}Q", frame, 8)
    channel, header, parent, metadata, content, *buffers = (
        frame[start:end] for start, end in itertools.pairwise(at)
    )  # fmt: skip
    return Got(
        channel.decode(), json.loads(header), json.loads(parent), json.loads(metadata), json.loads(content), buffers
    )  # fmt: skip


def _join_older(text: bytes, buffers: tuple[bytes, ...]) -> bytes:
    starts = [4 * (len(buffers) + 2)]
    for piece in (text, *buffers[:-1]):
        starts.append(starts[-1] + len(piece))
    return struct.pack(f"!{len(starts) + 1}I", len(starts), *starts) + text + b"".join(buffers)


def _read_older(frame: str | bytes) -> Got:
    buffers: list[bytes] = []
    if isinstance(frame, bytes):
        (count,) = struct.unpack_from("!I", frame)
        at = [*struct.unpack_from(f"!{count}I", frame, 4), len(frame)]
        frame, *buffers = (frame[start:end] for start, end in itertools.pairwise(at))
    told = json.loads(frame)
    return Got(
        told["channel"], told["header"], told["parent_header"], told["metadata"], told["content"], buffers
    )  # fmt: skip
