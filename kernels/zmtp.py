"""ZMTP 3.0, ZeroMQ's protocol on a connection, for who connects: what is said first, frames out, messages in. No I/O.

Kernels are the sessions' own, so whatever is at the other end may say anything. libzmq bounds what it takes in by
messages, each of any number of parts; here it is bounded by bytes: what is larger than allowed passes by unread, and
what comes after it is as good as ever.
"""

from collections.abc import Sequence
from typing import Literal

Kind = Literal["SUB", "DEALER"]

SMALL_BYTES = 256 * 1024  # a message of that much is taken in without asking
MOST_PARTS = 10_000  # of a message

_GREETING_BYTES = 64
_LONGEST_COMMAND = 4096
_HELD_BACK_BYTES = 16 * 1024  # of a frame, until it is whole: a larger one gets its place at once
_MORE, _LONG, _COMMAND = 1, 2, 4
_READY, _ERROR = b"\x05READY", b"\x05ERROR"


class Malformed(Exception):
    """What the peer says is not ZMTP 3, or nothing that we would hear."""


class Cut(list[bytes]):
    """The first parts of a message that was too large, as far as they were small."""


SUBSCRIPTION = b"\x00\x01\x01"  # to everything


def hello(kind: Kind, identity: bytes = b"") -> bytes:
    """What is said first. Anything else has to wait until the peer is `ready`: libzmq may lose what it hears before."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    properties = {b"Socket-Type": kind.encode(), **({b"Identity": identity} if identity else {})}
    ready = _READY + b"".join(
        bytes([len(name)]) + name + len(value).to_bytes(4) + value for name, value in properties.items()
    )
    return greeting + bytes([_COMMAND, len(ready)]) + ready


def framed(parts: Sequence[bytes]) -> bytes:
    """A message as it goes over the wire."""
    pieces: list[bytes] = []
    last = len(parts) - 1
    for number, part in enumerate(parts):
        flags = _MORE if number < last else 0
        size = len(part)
        pieces.append(bytes((flags, size)) if size < 256 else bytes((flags | _LONG,)) + size.to_bytes(8))
        pieces.append(part)
    return b"".join(pieces)


class Inflow:
    """Turns what comes in on one connection into messages. One that is larger than `most_bytes` comes as a `Cut`.

    When `next` has none, `wanted_bytes` says how large the one on its way is about to be, if it is more than
    `allowed_bytes`: it does not go on before that is raised.
    """

    def __init__(self, most_bytes: int) -> None:
        self.allowed_bytes = SMALL_BYTES
        self.wanted_bytes = 0
        self.ready = False  # whether the peer hears what is sent to it
        self._most_bytes = most_bytes
        self._greeted = False
        self._data = b""
        self._at = 0
        self._parts: list[bytes] = []
        self._size_bytes = 0
        self._more = False  # whether other parts follow the one that is on its way
        self._large: bytearray | None = None
        self._missing_bytes = 0  # of that one, or of what passes by
        self.cut = False  # whether the message on its way is too large

    @property
    def space(self) -> memoryview | None:
        """Where to put what comes next, for `filled`; None if it is for `feed`."""
        if self._large is None:
            return None
        return memoryview(self._large)[len(self._large) - self._missing_bytes :]

    def filled(self, count: int) -> None:
        self._missing_bytes -= count

    def feed(self, data: bytes) -> None:
        self._data = self._data[self._at :] + data if self._at < len(self._data) else data
        self._at = 0

    def next(self) -> list[bytes] | None:
        """The next message. Raises `Malformed`."""
        if not self._greeted and not self._greet():
            return None
        if self._large is not None or self._missing_bytes:
            if self._large is None:
                self._pass_by(self._missing_bytes)
            if self._missing_bytes:
                return None
            if self._large is not None:
                self._parts.append(self._large)  # type: ignore[arg-type] # read as bytes are, and not copied once more
                self._large = None
            if not self._more:
                return self._whole()
        return self._read()

    def _read(self) -> list[bytes] | None:
        data, at, end, parts = self._data, self._at, len(self._data), self._parts
        while end - at >= 2:
            flags, length, start = data[at], data[at + 1], at + 2
            if flags & _LONG:
                start = at + 9
                if start > end:
                    break
                length = int.from_bytes(data[at + 1 : start])
            if flags & _COMMAND:
                if start + length > end and length <= _LONGEST_COMMAND:
                    break
                self._obey(data[start : start + length], length)
                at = start + length
                continue
            if flags & ~(_MORE | _LONG):
                raise Malformed("a frame of an unknown kind")
            size_bytes = self._size_bytes + length
            if self.cut or size_bytes > self._most_bytes or len(parts) >= MOST_PARTS:
                self.cut_off()
                self._at, self._more = start, bool(flags & _MORE)
                self._pass_by(length)
                if self._missing_bytes:
                    return None
                if not self._more:
                    return self._whole()
                at, parts = self._at, self._parts
                continue
            if size_bytes > self.allowed_bytes:
                self.wanted_bytes = size_bytes
                break
            if start + length > end:
                if length > _HELD_BACK_BYTES:
                    self._large = bytearray(length)
                    self._large[: end - start] = data[start:]
                    self._missing_bytes = length - (end - start)
                    self._size_bytes, self._more = size_bytes, bool(flags & _MORE)
                    at = end
                break
            parts.append(data[start : start + length])
            self._size_bytes = size_bytes
            at = start + length
            if not flags & _MORE:
                self._at = at
                return self._whole()
        self._at = at
        return None

    def _pass_by(self, length: int) -> None:
        passed = min(length, len(self._data) - self._at)
        self._at += passed
        self._missing_bytes = length - passed

    def allow(self, size_bytes: int) -> None:
        """Let the message on its way become that large."""
        self.allowed_bytes, self.wanted_bytes = size_bytes, 0

    def cut_off(self) -> None:
        """Have what is left of the message on its way pass by."""
        if self.cut:
            return
        self.cut = True
        self._large, self.wanted_bytes = None, 0
        kept, room = 0, SMALL_BYTES
        while kept < min(len(self._parts), 8) and (room := room - len(self._parts[kept])) >= 0:
            kept += 1
        self._parts = self._parts[:kept]

    def _whole(self) -> list[bytes]:
        parts: list[bytes] = Cut(self._parts) if self.cut else self._parts
        self._parts, self._size_bytes, self.cut, self.allowed_bytes = [], 0, False, SMALL_BYTES
        return parts

    def _greet(self) -> bool:
        greeting = self._data[self._at : self._at + _GREETING_BYTES]
        if len(greeting) < _GREETING_BYTES:
            return False
        if greeting[0] != 0xFF or greeting[9] & 1 != 1 or greeting[10] < 3:
            raise Malformed("it does not speak ZMTP 3")
        if greeting[12:32].rstrip(b"\0") != b"NULL":
            raise Malformed(f"it wants to be met by {greeting[12:32].rstrip(bytes(1))!r}")
        self._at += _GREETING_BYTES
        self._greeted = True
        return True

    def _obey(self, command: bytes, length: int) -> None:
        if length > _LONGEST_COMMAND or command.startswith(_ERROR):
            raise Malformed(f"a command of {length} bytes: {command[:100]!r}")
        self.ready = self.ready or command.startswith(_READY)
