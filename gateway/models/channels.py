"""What goes over a kernel's websocket: the two framings that Jupyter's front ends speak, both ways. No I/O.

The parts of a message are carried as they came: neither framing unpacks them.
"""

import re
import struct
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from typing import Any

import orjson

from kernels.channels import Channel
from kernels.messages import BadMessage, Message, received

V1 = "v1.kernel.websocket.jupyter.org"
CHANNELS: dict[str, Channel] = {"shell": "shell", "control": "control", "stdin": "stdin"}  # that a client may write to

_VERSION = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){0,2}")
_WORD = 8  # bytes of a number in v1
_NO_BUFFERS = b',"buffers":[]'


class Envelope:
    """A message on its way to clients: framed once for all who speak the same.

    `published`: by the kernel, to all; not made here.
    """

    def __init__(self, channel: str, message: Message, *, published: bool = False) -> None:
        self.channel = channel
        self.published = published
        self.message = message
        self.size_bytes = sum(map(len, message.parts)) + 200

    @cached_property
    def v1(self) -> bytes:
        return _join_v1(self.channel, self.message.parts)

    @cached_property
    def legacy(self) -> str | bytes:
        """Text, or bytes for a message that has buffers."""
        header, parent, metadata, content, *buffers = self.message.parts
        named = {"msg_id": self.message.id, "msg_type": self.message.type, "channel": self.channel}
        text = b"".join(
            (
                orjson.dumps(named)[:-1], b',"header":', header, b',"parent_header":', parent,
                b',"metadata":', metadata, b',"content":', content, b"" if buffers else _NO_BUFFERS, b"}",
            )
        )  # fmt: skip
        if not buffers:
            return text.decode(errors="replace")
        return _join_binary([text, *buffers])


def read(frame: str | bytes, *, v1: bool) -> tuple[Channel, Message]:
    """Channel and message of what a client has sent. Raises `BadMessage`."""
    if isinstance(frame, bytes) and v1:
        channel, parts = _split_v1(frame)
    else:
        channel, parts = _read_legacy(frame)
    message = received(parts)
    if channel not in CHANNELS:
        raise BadMessage(f"There is no channel {channel[:20]!r} to write to.")
    if not message.id or not message.type or len(message.id) > 128:
        raise BadMessage("Its header lacks msg_id or msg_type.")
    _check_header(message.header)
    return CHANNELS[channel], message


def _check_header(header: dict[str, Any]) -> None:
    """A kernel drops what has another kind of header, and whoever waits for its answer waits for ever."""
    for name in ("session", "username", "version", "subshell_id"):  # a date may be a number, as Jupyter Server sends it
        if not isinstance(header.get(name), str | None):
            raise BadMessage(f"{name} in its header is not a text.")
    if not _VERSION.fullmatch(header.get("version") or "5"):
        raise BadMessage("version in its header is not one.")


def _read_legacy(frame: str | bytes) -> tuple[str, list[bytes]]:
    first, *buffers = [frame] if isinstance(frame, str) else _split_binary(frame)
    try:
        told: Any = orjson.loads(first)
    except ValueError as error:
        raise BadMessage(f"It is not JSON: {error}.") from None
    if not isinstance(told, dict):
        raise BadMessage("It is not an object.")
    parts = [told.get(name) or {} for name in ("header", "parent_header", "metadata", "content")]
    channel = told.get("channel") or "shell"
    try:
        return str(channel), [*map(orjson.dumps, parts), *buffers]
    except TypeError as error:
        raise BadMessage(f"It can't be passed on: {error}.") from None


def _join_v1(channel: str, parts: Sequence[bytes]) -> bytes:
    name = channel.encode()
    at = _WORD * (len(parts) + 3)
    offsets = [at, at := at + len(name), *(at := at + len(part) for part in parts)]
    return b"".join((struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets), name, *parts))


def _split_v1(frame: bytes) -> tuple[str, list[bytes]]:
    """Number of offsets, the offsets of channel and parts and their end, then these themselves."""
    try:
        (count,) = struct.unpack_from("<Q", frame)
        if not 2 <= count <= len(frame) // _WORD:
            raise BadMessage("Its offsets can't be read.")
        offsets = struct.unpack_from(f"<{count}Q", frame, _WORD)
        channel = frame[offsets[0] : offsets[1]].decode()
    except (struct.error, UnicodeDecodeError):
        raise BadMessage("Its offsets can't be read.") from None
    if list(offsets) != sorted(offsets) or offsets[-1] > len(frame):
        raise BadMessage("Its offsets do not fit.")
    return channel, [frame[start:end] for start, end in pairwise(offsets[1:])]


def _join_binary(parts: Sequence[bytes]) -> bytes:
    at = 4 * (len(parts) + 1)
    offsets = [at, *(at := at + len(part) for part in parts[:-1])]
    return b"".join((struct.pack(f"!{len(offsets) + 1}I", len(offsets), *offsets), *parts))


def _split_binary(frame: bytes) -> list[bytes]:
    try:
        (count,) = struct.unpack_from("!I", frame)
        if not 1 <= count <= len(frame) // 4:
            raise BadMessage("Its offsets can't be read.")
        offsets = [*struct.unpack_from(f"!{count}I", frame, 4), len(frame)]
    except struct.error:
        raise BadMessage("Its offsets can't be read.") from None
    if offsets != sorted(offsets):
        raise BadMessage("Its offsets do not fit.")
    return [frame[start:end] for start, end in pairwise(offsets)]
