"""Jupyter wire messages, packed, signed and checked by jupyter_client's `Session`. No I/O."""

import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from jupyter_client.session import Session

from kernels.errors import KernelsError

DELIMITER = b"<IDS|MSG>"

Content = Mapping[str, Any]


class BadMessage(KernelsError):
    """Frames that are no message, or were not signed with our key."""


class Message:
    """A received message. Content is unpacked when it is asked for: most of what a kernel says is only routed."""

    __slots__ = ("_content", "_session", "buffers", "content_bytes", "header", "metadata", "parent_id")

    def __init__(self, session: Session, frames: Sequence[bytes]) -> None:
        self._session = session
        self._content: dict[str, Any] | None = None
        self.header: dict[str, Any] = session.unpack(frames[0])
        parent_id = session.unpack(frames[1]).get("msg_id")
        self.parent_id: str | None = parent_id if isinstance(parent_id, str) else None
        self.metadata: dict[str, Any] = session.unpack(frames[2])
        if not isinstance(self.header, dict) or not isinstance(self.metadata, dict):
            raise BadMessage("header or metadata is not an object")
        self.content_bytes = frames[3]
        self.buffers = list(frames[4:])

    @property
    def type(self) -> str:
        kind = self.header.get("msg_type")
        return kind if isinstance(kind, str) else ""

    @property
    def content(self) -> dict[str, Any]:
        """Empty if it is nothing that can be read."""
        if self._content is None:
            try:
                content = self._unpacked()
            except (ValueError, RecursionError):
                content = None
            self._content = content if isinstance(content, dict) else {}
        return self._content

    def _unpacked(self) -> Any:
        content = self._session.unpack(self.content_bytes)
        if b"\\" in self.content_bytes and b"\\ud" in self.content_bytes.lower():
            # half a surrogate pair can be neither stored nor sent
            content = json.loads(json.dumps(content, ensure_ascii=False).encode(errors="replace"))
        return content


class Wire:
    """Turns requests into frames and frames into messages, for one kernel and its key."""

    def __init__(self, key: str | bytes, signature_scheme: str = "hmac-sha256", session: str | None = None) -> None:
        """With the `session` of somebody who is gone, what the kernel still sends to them comes here."""
        self._session = Session(
            key=key.encode() if isinstance(key, str) else key,
            signature_scheme=signature_scheme,
            username="gateway",
            session=session or uuid4().hex,
        )
        self.identity: bytes = self._session.bsession

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
        message = self._session.msg(msg_type, dict(content), metadata=dict(metadata or {}), parent=parent)
        message["header"]["msg_id"] = msg_id or uuid4().hex  # never again one of who had this session before
        if subshell_id is not None:
            message["header"]["subshell_id"] = subshell_id
        return message["header"]["msg_id"], self._session.serialize(message)

    def read(self, frames: Sequence[bytes]) -> Message:
        """Raises `BadMessage` unless it was signed with our key."""
        try:
            start = frames.index(DELIMITER) + 1
        except ValueError:
            raise BadMessage("no delimiter") from None
        signature, *parts = frames[start:]
        if len(parts) < 4:
            raise BadMessage("too few frames")
        if self._session.auth is not None and not hmac.compare_digest(self._session.sign(parts[:4]), signature):
            raise BadMessage("bad signature")
        try:
            return Message(self._session, parts)
        except (ValueError, AttributeError, RecursionError) as error:
            raise BadMessage(str(error)) from error
