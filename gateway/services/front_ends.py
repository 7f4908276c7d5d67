"""The Jupyter clients of one session: what its kernel says goes to all of them, an answer to the one that asked.

A client that has gone is remembered under its `session_id` for a while: what is said meanwhile is kept, and delivered
when it comes back, each message once. A slow one holds nobody up: past its limit it is sent away, and told.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterator
from typing import Protocol

from gateway.models.channels import Envelope
from kernels.messages import Content, Message, made

log = logging.getLogger(__name__)

_GLIMPSE_S = 10.0  # a socket that is younger, and on which nothing was said, may have nobody who listens
_AHEAD_BYTES = 2**20  # that a socket is given before it has sent what it had
_MOST_AWAY = 100  # clients of one session that are remembered
_OUTPUTS = frozenset(["stream", "display_data", "update_display_data", "execute_result", "comm_msg"])
_CODE_TOO_SLOW, _CODE_GONE, _CODE_REPLACED = 4013, 1001, 4000


class Socket(Protocol):
    """A websocket that is open; of two, the one with the larger number came later."""

    number: int

    def deliver(self, envelope: Envelope) -> "asyncio.Future[None]":
        """Done when it was handed to the network; raises when it can't be any more."""
        ...

    def close(self, code: int, reason: str) -> None: ...


class FrontEnd:
    """One client. `session_id` is what it goes by when it comes back; without one it does not.

    Jupyter Server opens a connection twice when a page does, and leaves the first one open, with nobody who listens:
    what a socket was sent before anything was said on it is sent to the next one too.
    """

    def __init__(self, session_id: str | None, caller: str, limit_bytes: int) -> None:
        self.session_id = session_id
        self.caller = caller
        self.left_at: float | None = None  # monotonic; None while its socket is open
        self._limit_bytes = limit_bytes
        self._socket: Socket | None = None
        self._waiting: deque[Envelope] = deque()
        self._waiting_bytes = 0
        self._written: deque[tuple[Envelope, asyncio.Future[None]]] = deque()
        self._written_bytes = 0
        self._missed = 0
        self._kernel_session = ""
        self._opened_at = 0.0
        self._spoke = False  # on the socket that it has
        self._unheeded: list[Envelope] = []  # what the socket was sent, while it is young and nothing was said on it
        self._unheeded_bytes = 0

    @property
    def attached(self) -> bool:
        return self._socket is not None

    def open(self, socket: Socket) -> None:
        """Send on this socket from now on, first what was kept."""
        if (former := self._socket) is not None:
            if socket.number < former.number and self._is_young:
                socket.close(_CODE_REPLACED, "The same client has come on a later connection.")
                return
            self.leave(former)
            former.close(_CODE_REPLACED, "The same client has come back on another connection.")
        self._socket, self.left_at = socket, None
        self._opened_at, self._spoke, self._unheeded_bytes = time.monotonic(), False, 0
        if self._missed:
            missed, self._missed = self._missed, 0
            text = f"\n[{missed} messages were left out: they came faster than this client took them]\n"
            told = made("stream", {"name": "stderr", "text": text}, session=self._kernel_session)
            self._waiting.append(Envelope("iopub", told))
        self._send()

    def leave(self, socket: Socket) -> None:
        """This socket is closed: keep what it has not sent, and what comes. Nothing happens if another has come."""
        if self._socket is socket:
            self._socket, self.left_at = None, time.monotonic()
            unsent = [envelope for envelope, sent in self._written if not _is_sent(sent)]
            if self._is_young and self._unheeded:
                unsent = list(self._unheeded)
            self._unheeded.clear()
            self._written.clear()
            self._written_bytes = 0
            self._waiting.extendleft(reversed(unsent))
            self._waiting_bytes = sum(envelope.size_bytes for envelope in self._waiting)

    def heed(self) -> None:
        """It has said something: it is there, and has what it was sent."""
        self._spoke = True
        self._unheeded.clear()

    def put(self, channel: str, message: Message) -> None:
        self.send(Envelope(channel, message))

    def send(self, envelope: Envelope) -> None:
        self._kernel_session = envelope.message.header.get("session", "")
        self._waiting.append(envelope)
        self._waiting_bytes += envelope.size_bytes
        if self._socket is not None:
            self._send()
        if self._waiting_bytes > self._limit_bytes:
            self._give_way()

    def send_away(self, code: int, reason: str) -> None:
        if self._socket is not None:
            self._socket.close(code, reason)

    def _send(self) -> None:
        socket = self._socket
        while socket is not None and self._waiting and self._written_bytes < _AHEAD_BYTES:
            envelope = self._waiting.popleft()
            self._waiting_bytes -= envelope.size_bytes
            self._written_bytes += envelope.size_bytes
            sent = socket.deliver(envelope)
            self._written.append((envelope, sent))
            if not self._spoke:
                self._keep_unheeded(envelope)
            sent.add_done_callback(self._sent)

    @property
    def _is_young(self) -> bool:
        return time.monotonic() - self._opened_at < _GLIMPSE_S

    def _keep_unheeded(self, envelope: Envelope) -> None:
        self._unheeded_bytes += envelope.size_bytes
        if self._is_young and self._unheeded_bytes <= self._limit_bytes:
            self._unheeded.append(envelope)
        else:
            self._unheeded.clear()

    def _sent(self, sent: "asyncio.Future[None]") -> None:
        """In the order in which they were written; who failed stays, until the socket is known to be closed."""
        while self._written and _is_sent(self._written[0][1]):
            self._written_bytes -= self._written.popleft()[0].size_bytes
        if not sent.cancelled():
            sent.exception()
        self._send()

    def _give_way(self) -> None:
        """Too much waits: outputs are left out first, then everything; a client that is there is sent away."""
        before = len(self._waiting)
        self._waiting = deque(one for one in self._waiting if one.message.type not in _OUTPUTS)
        self._waiting_bytes = sum(envelope.size_bytes for envelope in self._waiting)
        if self._waiting_bytes > self._limit_bytes:
            self._waiting.clear()
            self._waiting_bytes = 0
        self._missed += before - len(self._waiting)
        if self._socket is not None:
            log.info("A front end took its messages too slowly and was sent away")
            socket = self._socket
            self.leave(socket)
            socket.close(_CODE_TOO_SLOW, "Messages came faster than this client took them.")


class FrontEnds:
    """All clients of one session, those that have left included."""

    def __init__(self, session_id: str, limit_bytes: int, remembered_s: float) -> None:
        self._limit_bytes = limit_bytes
        self._remembered_s = remembered_s
        self._all: list[FrontEnd] = []
        self._kernel_session = session_id  # what the kernel signs its messages with; until one is heard a stand-in
        self.beside = 0  # cells that run beside the queue, in subshells

    def __iter__(self) -> Iterator[FrontEnd]:
        return iter(self._all)

    @property
    def attached(self) -> int:
        return sum(1 for one in self._all if one.attached)

    def attach(self, session_id: str | None, caller: str, socket: Socket) -> FrontEnd:
        """The client on this socket: a new one, or one that comes back."""
        self.forget_old()
        known = [one for one in self._all if one.session_id == session_id and one.caller == caller and session_id]
        front_end = known[0] if known else FrontEnd(session_id or None, caller, self._limit_bytes)
        if not known:
            self._all.append(front_end)
        front_end.open(socket)
        return front_end

    def knows(self, session_id: str | None, caller: str) -> bool:
        """Whether the client that goes by this has been here, also if it has left."""
        return any(one.session_id == session_id and one.caller == caller for one in self._all if session_id)

    def leave(self, front_end: FrontEnd, socket: Socket) -> None:
        front_end.leave(socket)
        if front_end.session_id is None and front_end in self._all:
            self._all.remove(front_end)

    def forget_old(self) -> None:
        """Those that have been away for long, or are too many."""
        at = time.monotonic()
        away = sorted((one for one in self._all if one.left_at is not None), key=lambda one: one.left_at or 0.0)
        for number, one in enumerate(away):
            if at - (one.left_at or 0.0) > self._remembered_s or number < len(away) - _MOST_AWAY:
                self._all.remove(one)

    def hear(self, own_session: str, message: Message) -> None:
        """Pass on what the kernel publishes, but for what it says of the gateway's own questions."""
        if not self._all:
            return
        self._kernel_session = message.header.get("session", self._kernel_session)
        parent = message.parent
        if parent.get("session") == own_session and parent.get("msg_type") != "execute_request":
            return
        envelope = Envelope("iopub", message)
        for front_end in self._all:
            front_end.send(envelope)

    def tell(self, state: str) -> None:
        """Tell all a state of the kernel that it can't tell itself."""
        if self._all:
            envelope = Envelope("iopub", self.made("status", {"execution_state": state}))
            for front_end in self._all:
                front_end.send(envelope)

    def made(self, msg_type: str, content: Content, parent: Content | None = None) -> Message:
        """A message as if the kernel had sent it: front ends leave aside what another session sends."""
        return made(msg_type, content, session=self._kernel_session, parent=parent)

    def close(self, reason: str) -> None:
        """Send all away: the session is not here any more."""
        for front_end in self._all:
            front_end.send_away(_CODE_GONE, reason[:120])


def _is_sent(sent: "asyncio.Future[None]") -> bool:
    return sent.done() and not sent.cancelled() and sent.exception() is None
