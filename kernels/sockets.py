"""ZeroMQ sockets of our own on the event loop: what comes in is bounded, and handed on without a task for each message.

What is not read yet stays with who sends it.
"""

import asyncio
import logging
import socket as sockets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from kernels.intake import Intake
from kernels.zmtp import SUBSCRIPTION, Inflow, Kind, Malformed, framed, hello

log = logging.getLogger(__name__)

Address = str | tuple[str, int]  # path of a unix socket, or host and port

_READ_BYTES = 48 * 1024  # at once; then others get their turn
_BREATH = 128  # messages, likewise
_TRICKLE_BYTES = 8 * 1024  # of which more may be waited for
_UNSENT_BYTES = 64 * 2**20
_DRAINED_BYTES = 4 * 2**20
_FIRST_AGAIN_S = 0.002
_AGAIN_S = 0.008  # at most, as long as it was never there: a kernel that starts is there any moment now
_LAST_AGAIN_S = 1.0  # at most, with one that was there


def address_of(connection: Mapping[str, Any], name: str) -> Address:
    """Where a kernel's channel is, as its connection file has it."""
    ip, port = connection["ip"], connection[f"{name}_port"]
    return (ip, port) if connection["transport"] == "tcp" else f"{ip}-{port}"


class Unread(Exception):
    """The peer does not take what is sent to it."""


class Socket:
    """Connected, again and again, and read from until it is closed. `take` gets messages as they come, some at a time.

    `broke` is told what nobody foresaw; nothing more is read then. With `batch_s` what comes one by one is read that
    much later, together: a fraction of the work, where nobody waits for it.
    """

    def __init__(
        self,
        address: Address,
        kind: Kind,
        intake: Intake,
        take: Callable[[list[list[bytes]]], None],
        broke: Callable[[Exception], None],
        *,
        identity: bytes = b"",
        most_bytes: int | None = None,
    ) -> None:
        self.batch_s = 0.0
        self.closed = False
        self._address = address
        self._hello = hello(kind, identity)
        self._first = SUBSCRIPTION if kind == "SUB" else b""
        self._intake = intake
        self._take = take
        self._broke = broke
        self._most_bytes = min(most_bytes or intake.message_bytes, intake.message_bytes)
        self._loop = asyncio.get_running_loop()
        self._inflow = Inflow(self._most_bytes)
        self._raw: sockets.socket | None = None
        self._ready = False
        self._soon: asyncio.Handle | None = None
        self._again_s = _FIRST_AGAIN_S
        self._met = False
        self._complained = False
        self._unsent: deque[bytes] = deque()
        self._unsent_bytes = 0
        self._sent_bytes = 0  # of the first of them
        self._lent_bytes = 0
        self._waits = False  # for room
        self._connect()

    # Connecting

    def _connect(self) -> None:
        self._soon = None
        family = sockets.AF_UNIX if isinstance(self._address, str) else sockets.AF_INET
        raw = self._raw = sockets.socket(family, sockets.SOCK_STREAM | sockets.SOCK_NONBLOCK | sockets.SOCK_CLOEXEC)
        try:
            if isinstance(self._address, tuple):
                raw.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NODELAY, 1)
            raw.connect(self._address)
        except BlockingIOError:
            if isinstance(self._address, tuple):
                self._loop.add_writer(raw, self._is_connected)
            else:  # too many wait there already
                self._drop()
        except OSError:
            self._drop()
        else:
            self._is_connected()

    def _is_connected(self) -> None:
        assert self._raw is not None
        self._loop.remove_writer(self._raw)
        if self._say(self._hello):
            self._met = True
            self._loop.add_reader(self._raw, self._read)

    def _say(self, words: bytes) -> bool:
        """On a new connection, where there is room for it."""
        assert self._raw is not None
        with suppress(OSError):
            if self._raw.send(words) == len(words):
                return True
        self._drop()
        return False

    def _drop(self) -> None:
        """What was on its way is lost; connect anew."""
        self._disconnect()
        if self._sent_bytes:
            self._unsent_bytes -= len(self._unsent.popleft())
            self._sent_bytes = 0
        self._inflow = Inflow(self._most_bytes)
        self._soon = self._loop.call_later(self._again_s, self._connect)
        self._again_s = min(2 * self._again_s, _LAST_AGAIN_S if self._met else _AGAIN_S)

    def _disconnect(self) -> None:
        self._ready = False
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        if self._raw is not None:
            self._loop.remove_reader(self._raw)
            self._loop.remove_writer(self._raw)
            self._raw.close()
            self._raw = None
        self._give_back()

    def close(self) -> None:
        self.closed = True
        self._disconnect()
        self._unsent.clear()

    def _fail(self, error: Exception) -> None:
        if not self.closed:
            self.close()
            self._broke(error)

    # Sending

    def send(self, frames: Sequence[bytes]) -> None:
        """Sent as soon as it can be, also once it is connected again."""
        if self.closed:
            return
        message = framed(frames)
        if self._unsent and self._unsent_bytes + len(message) > _UNSENT_BYTES:
            self._fail(Unread(f"{self._unsent_bytes:,} bytes wait to be read by a kernel"))
            return
        self._unsent.append(message)
        self._unsent_bytes += len(message)
        if self._ready and len(self._unsent) == 1:
            self._write()

    def _write(self) -> None:
        assert self._raw is not None
        while self._unsent:
            first = self._unsent[0]
            try:
                self._sent_bytes += self._raw.send(memoryview(first)[self._sent_bytes :] if self._sent_bytes else first)
            except BlockingIOError:
                pass
            except OSError:
                self._drop()
                return
            if self._sent_bytes < len(first):
                self._loop.add_writer(self._raw, self._write)
                return
            self._unsent.popleft()
            self._unsent_bytes -= len(first)
            self._sent_bytes = 0
        self._loop.remove_writer(self._raw)

    # Reading

    def _read(self) -> None:
        count = self._receive()
        if count is None:
            return
        if not count:
            self._drop()
        else:
            self._hand_on()
            if self.batch_s and count < _TRICKLE_BYTES and self._soon is None and not self._waits:
                self._pause()
                self._soon = self._loop.call_later(self.batch_s, self._read_on)

    def _receive(self) -> int | None:
        """How many bytes have come; 0 at the end, None if there are none now."""
        assert self._raw is not None
        try:
            if (space := self._inflow.space) is not None:
                count = self._raw.recv_into(space)
                self._inflow.filled(count)
                return count
            data = self._raw.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return 0
        self._inflow.feed(data)
        return len(data)

    def _read_on(self) -> None:
        self._soon = None
        if self._raw is not None:
            self._loop.add_reader(self._raw, self._read)

    def drain(self) -> None:
        """Hand on what has come already; of a peer that says no more."""
        left = _DRAINED_BYTES
        while self._ready and not self._waits and left > 0 and (count := self._receive()):
            left -= count
            self._hand_on(breathless=True)

    def _hand_on(self, *, breathless: bool = False) -> None:
        """What has come. More is read when it is through, and there is room for it."""
        try:
            self._hand_on_all(breathless)
        except Exception as error:
            self._fail(error)

    def _hand_on_all(self, breathless: bool) -> None:
        while self._raw is not None:
            messages: list[list[bytes]] = []
            try:
                while len(messages) < _BREATH and not (messages and self._lent_bytes):
                    if (message := self._inflow.next()) is None:
                        break
                    messages.append(message)
            except Malformed as error:
                if not self._complained:
                    log.warning("A kernel can't be heard: %s", error)
                self._complained = True
                self._drop()
                return
            if not self._ready and self._inflow.ready and not self._begin():
                return
            full = len(messages) == _BREATH
            if messages:
                self._give_back()
                self._take(messages)
            if self._inflow.cut:
                self._give_back()
            if full and not breathless:
                self._pause()
                self._soon = self._loop.call_soon(self._go_on)
                return
            if (wanted := self._inflow.wanted_bytes) and not self._borrow(wanted):
                return
            if not messages and not wanted:
                return

    def _begin(self) -> bool:
        if self._first and not self._say(self._first):
            return False
        self._ready = True
        self._write()
        return self._ready

    def _pause(self) -> None:
        if self._raw is not None:
            self._loop.remove_reader(self._raw)

    def _go_on(self) -> None:
        self._soon = None
        if self._raw is not None:
            self._loop.add_reader(self._raw, self._read)
            self._hand_on()

    # Room for what is large

    def _borrow(self, size_bytes: int) -> bool:
        more = size_bytes - self._lent_bytes
        self._lent_bytes = size_bytes
        if self._intake.borrow(self, more):
            self._inflow.allow(size_bytes)
            return True
        self._waits = True
        self._pause()
        return False

    def lent(self) -> None:
        if self._waits:
            self._waits = False
            self._inflow.allow(self._lent_bytes)
            self._go_on()

    def recall(self) -> None:
        log.info("A large message of a kernel was left out: it came too slowly, and others wait")
        self._inflow.cut_off()
        self._give_back()
        self._go_on()

    def _give_back(self) -> None:
        self._waits = False
        if self._lent_bytes:
            self._lent_bytes = 0
            self._intake.give_back(self)
