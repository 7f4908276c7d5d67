"""Jupyter wire messages, packed as jupyter_client's `Session` packs them, signed and checked. No I/O."""

import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol
from uuid import uuid4

import orjson
from jupyter_client._version import protocol_version
from jupyter_client.session import Session

from kernels.errors import KernelsError

DELIMITER = b"<IDS|MSG>"

_COPIED_BYTES = 2**16  # to be signed in one go, which is faster while it is little
_MOST_HEADER_BYTES = 2**18  # of a header, parent header or metadata
_MOST_WEIGHT_BYTES = 2**27  # of what is unpacked
_LIGHT_BYTES = 2**18
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)

Content = Mapping[str, Any]


class BadMessage(KernelsError):
    """Frames that are no message, or were not signed with our key."""


class Message:
    """A received message. Content is unpacked when it is asked for: most of what a kernel says is only routed.

    `parts` are its frames as they came: header, parent header, metadata, content, buffers.
    """

    __slots__ = (
        "_content", "_unpack", "buffers", "content_bytes", "cut", "header", "metadata", "parent", "parent_id", "parts",
    )  # fmt: skip

    def __init__(self, unpack: Callable[[bytes], Any], frames: Sequence[bytes]) -> None:
        self._unpack = unpack
        self._content: dict[str, Any] | None = None
        self.parts = frames
        self.cut = False  # whether it was too large, so that there is no content
        self.header: dict[str, Any] = unpack(frames[0])
        self.parent: dict[str, Any] = unpack(frames[1])
        parent_id = self.parent.get("msg_id")
        self.parent_id: str | None = parent_id if isinstance(parent_id, str) else None
        self.metadata: dict[str, Any] = unpack(frames[2])
        if not isinstance(self.header, dict) or not isinstance(self.metadata, dict):
            raise BadMessage("header or metadata is not an object")
        self.content_bytes = frames[3]
        self.buffers = list(frames[4:])

    @property
    def type(self) -> str:
        kind = self.header.get("msg_type")
        return kind if isinstance(kind, str) else ""

    @property
    def id(self) -> str:
        """Empty if it has none that can be an id."""
        msg_id = self.header.get("msg_id")
        return msg_id if isinstance(msg_id, str) else ""

    @property
    def content(self) -> dict[str, Any]:
        """Empty if it is nothing that can be read."""
        if self._content is None:
            try:
                content = self._unpacked() if weight_bytes(self.content_bytes) <= _MOST_WEIGHT_BYTES else None
            except (ValueError, RecursionError):
                content = None
            self._content = content if isinstance(content, dict) else {}
        return self._content

    def _unpacked(self) -> Any:
        content = self._unpack(self.content_bytes)
        if b"\\" in self.content_bytes and b"\\ud" in self.content_bytes.lower():
            # half a surrogate pair can be neither stored nor sent
            content = json.loads(json.dumps(content, ensure_ascii=False).encode(errors="replace"))
        return content


class Sieve(Protocol):
    """What all that a kernel says goes through before anybody hears it: it may change messages, and hold text back."""

    def take(self, message: Message) -> Sequence[Message]:
        """What is to be heard now, in order."""
        ...

    def rest(self) -> Sequence[Message]:
        """What was held back, when nothing more comes."""
        ...


NewSieve = Callable[[], Sieve]


def weight_bytes(packed: bytes) -> int:
    """How much memory JSON takes once it is unpacked: no more than that, and nothing counts that is small."""
    if len(packed) <= _LIGHT_BYTES:
        return 0
    text = len(packed) if packed.isascii() and b"\\u" not in packed else 4 * len(packed)
    if (weight := text + _values(packed)) > _MOST_WEIGHT_BYTES:
        weight = text + _values(_STRING.sub(b"", packed))
    return weight


def _values(packed: bytes) -> int:
    return 40 * packed.count(b",") + 64 * (packed.count(b"[") + packed.count(b"{"))


def received(parts: Sequence[bytes]) -> Message:
    """The message that a client has sent, in the order of `Message.parts`. Raises `BadMessage`."""
    if len(parts) < 4:
        raise BadMessage("too few parts")
    try:
        return Message(orjson.loads, parts)
    except (ValueError, AttributeError, RecursionError) as error:
        raise BadMessage(str(error)) from error


def made(
    msg_type: str, content: Content, *, session: str, parent: Content | None = None, metadata: Content | None = None
) -> Message:
    """A message as the kernel with that `session` would have sent it."""
    about = {"username": "gateway", "session": session, "version": protocol_version}
    header = {"msg_id": uuid4().hex, "msg_type": msg_type, "date": datetime.now(UTC), **about}
    parts = (header, dict(parent or {}), dict(metadata or {}), dict(content))
    return Message(orjson.loads, [orjson.dumps(part, option=orjson.OPT_UTC_Z) for part in parts])


class Wire:
    """Turns requests into frames and frames into messages, for one kernel and its key."""

    def __init__(self, key: str | bytes, signature_scheme: str = "hmac-sha256", session: str | None = None) -> None:
        """With the `session` of somebody who is gone, what the kernel still sends to them comes here."""
        packer = Session(
            key=key.encode() if isinstance(key, str) else key,
            signature_scheme=signature_scheme,
            username="gateway",
            session=session or uuid4().hex,
        )
        # Its attributes are traits, which take long to look up: what is needed for each message is kept here.
        self._pack, self._unpack = packer.pack, packer.unpack
        self._key: bytes | None = packer.key if packer.auth is not None else None
        self._digest = signature_scheme.removeprefix("hmac-")
        self._about = {"username": packer.username, "session": packer.session, "version": protocol_version}
        self.session: str = packer.session
        self.identity: bytes = packer.bsession

    @classmethod
    def of(cls, connection: Mapping[str, Any]) -> "Wire":
        return cls(connection["key"], connection.get("signature_scheme", "hmac-sha256"), connection.get("session"))

    def request(
        self,
        msg_type: str,
        content: Content,
        *,
        metadata: Content | None = None,
        subshell_id: str | None = None,
        parent: dict[str, Any] | None = None,
        msg_id: str | None = None,
    ) -> tuple[str, list[bytes]]:
        """The id of a new message (`msg_id` if one is given), and its frames."""
        msg_id = msg_id or uuid4().hex  # never again one of who had this session before
        header = {"msg_id": msg_id, "msg_type": msg_type, "date": datetime.now(UTC), **self._about}
        if subshell_id is not None:
            header["subshell_id"] = subshell_id
        parts = [self._pack(part) for part in (header, parent or {}, dict(metadata or {}), dict(content))]
        return msg_id, self.signed(parts)

    def signed(self, parts: Sequence[bytes]) -> list[bytes]:
        """The frames of a message whose parts are packed already, whoever wrote it."""
        return [DELIMITER, self._signature(parts[:4]), *parts]

    def pack(self, part: Content) -> bytes:
        """Raises `ValueError`, `TypeError` for what JSON does not have."""
        packed: bytes = self._pack(part)
        return packed

    def _signature(self, parts: Sequence[bytes]) -> bytes:
        """As the wire protocol has it: of header, parent header, metadata and content in hexadecimal."""
        if self._key is None:
            return b""
        if len(parts[-1]) <= _COPIED_BYTES:
            return hmac.digest(self._key, b"".join(parts), self._digest).hex().encode()
        signing = hmac.new(self._key, digestmod=self._digest)
        for part in parts:
            signing.update(part)
        return signing.hexdigest().encode()

    def read(self, frames: Sequence[bytes]) -> Message:
        """Raises `BadMessage` unless it was signed with our key."""
        try:
            start = frames.index(DELIMITER) + 1
        except ValueError:
            raise BadMessage("no delimiter") from None
        signature, *parts = frames[start:]
        if len(parts) < 4:
            raise BadMessage("too few frames")
        if max(map(len, parts[:3])) > _MOST_HEADER_BYTES:
            raise BadMessage("a header is too large")
        if self._key is not None and not hmac.compare_digest(self._signature(parts[:4]), signature):
            raise BadMessage("bad signature")
        try:
            return Message(self._unpack, parts)
        except (ValueError, AttributeError, RecursionError) as error:
            raise BadMessage(str(error)) from error

    def read_cut(self, frames: Sequence[bytes]) -> Message:
        """What is left of a message that was too large: an error instead of its content. Raises `BadMessage`."""
        start = frames.index(DELIMITER) + 2 if DELIMITER in frames else len(frames)
        header, *rest = [*frames[start : start + 3]] or [b"{}"]
        why = {"status": "error", "ename": "TooLarge", "evalue": "What the kernel said is too large.", "traceback": []}
        message = received([header, rest[0] if rest else b"{}", b"{}", self.pack(why)])
        message.cut = True
        return message
