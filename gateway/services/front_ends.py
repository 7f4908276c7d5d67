"""The Jupyter clients of one session: what its kernel says goes to all of them, an answer to the one that asked.

A client that has gone is remembered under its `session_id` for a while: what is said meanwhile is kept, and delivered
when it comes back, each message once. A slow one holds nobody up: past its limit it is sent away, and told.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol

from gateway.models.channels import Envelope
from gateway.services.positions import Note, Position, Positions
from kernels.messages import Content, Message, made

log = logging.getLogger(__name__)

_GLIMPSE_S = 10.0  # a socket that is younger, and on which nothing was said, may have nobody who listens
_AHEAD_BYTES = 2**20  # that a socket is given before it has sent what it had
_MOST_AWAY = 100  # clients of one session that are remembered
_OUTPUTS = frozenset(["stream", "display_data", "update_display_data", "execute_result", "comm_msg"])
_CODE_TOO_SLOW, _CODE_GONE, _CODE_REPLACED = 4013, 1001, 4000


Noting = tuple[Callable[[], None], Callable[[], None]]  # that it has a message, and that it does not have it after all


class Socket(Protocol):
    """A websocket that is open; of two, the one with the larger number came later."""

    number: int

    def deliver(self, envelope: Envelope, noting: Noting | None) -> "asyncio.Future[None]":
        """Done when it was handed to the network; raises when it can't be any more."""
        ...

    def close(self, code: int, reason: str) -> None: ...


class FrontEnd:
    """One client. `session_id` is what it goes by when it comes back; without one it does not.

    Jupyter Server opens a connection twice when a page does, and leaves the first one open, with nobody who listens:
    what a socket was sent before anything was said on it is sent to the next one too.

    `position` tells the next gateway what it has, if this one is killed. One that an earlier gateway had is `behind`
    until it was given what it has missed; all that comes meanwhile is held.
    """

    def __init__(self, session_id: str | None, caller: str, limit_bytes: int, position: Position | None) -> None:
        self.session_id = session_id
        self.caller = caller
        self.position = position
        self._has = Note("", "")
        self._note: Callable[[], None] = lambda: None  # what notes that
        self.openings = 0  # of a socket for it
        self._settled = 0
        self.behind = False
        self.replied_before = ""  # the last cell whose reply came from an earlier gateway
        self._held: list[Envelope] = []
        self._held_bytes = 0
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
        self.openings += 1
        if self.position is not None:
            self._has = self.position.noted
            self._note = self.position.noting(self._has)
        if self._missed:
            missed, self._missed = self._missed, 0
            text = f"\n[{missed} messages were left out: more came than are kept for a client that is slow or away]\n"
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
        if not self.behind:
            self.give(envelope)
        elif self._held_bytes < self._limit_bytes or envelope.message.type not in _OUTPUTS:
            self._held.append(envelope)
            self._held_bytes += envelope.size_bytes
        else:
            self._missed += 1

    def give(self, envelope: Envelope) -> None:
        """Send, also while it is behind."""
        self._kernel_session = envelope.message.header.get("session", "")
        self._waiting.append(envelope)
        self._waiting_bytes += envelope.size_bytes
        if self._socket is not None:
            self._send()
        if self._waiting_bytes > self._limit_bytes:
            self._give_way()

    def caught_up(self) -> None:
        """It has been given what it had missed."""
        self.behind, held, self._held, self._held_bytes = False, self._held, [], 0
        for envelope in held:
            self.give(envelope)

    def miss(self, count: int) -> None:
        """So many messages are lost."""
        self._missed += count

    @property
    def unsure(self) -> bool:
        """Whether it may send again what it sent on an earlier connection: nothing of this one was answered yet."""
        return self._settled != self.openings

    def settle(self, opening: int) -> None:
        """A cell was answered that it had sent on this connection."""
        self._settled = opening

    def send_away(self, code: int, reason: str) -> None:
        if self._socket is not None:
            self._socket.close(code, reason)

    def _send(self) -> None:
        socket = self._socket
        while socket is not None and self._waiting and self._written_bytes < _AHEAD_BYTES:
            envelope = self._waiting.popleft()
            self._waiting_bytes -= envelope.size_bytes
            self._written_bytes += envelope.size_bytes
            sent = socket.deliver(envelope, self._noting(envelope))
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

    def _noting(self, envelope: Envelope) -> Noting | None:
        """After a kill it is sent what is not noted."""
        if self.position is None:
            return None
        before, has = self._note, self._has
        if envelope.published:
            self._has = Note(envelope.message.id, has.replied)
        elif envelope.message.type == "execute_reply":
            self._has = Note(has.heard, envelope.message.parent_id or "")
        if self._has is not has:
            self._note = self.position.noting(self._has)
        return self._note, before

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

    def __init__(self, session_id: str, limit_bytes: int, remembered_s: float, positions: Positions) -> None:
        self._positions = positions
        self._in_journal = False  # what is heard now will be in the journal, for those who are behind
        self._limit_bytes = limit_bytes
        self._remembered_s = remembered_s
        self._all: list[FrontEnd] = []
        self._kernel_session = session_id  # what the kernel signs its messages with; until one is heard a stand-in
        self.beside: list[FrontEnd | None] = []  # who has a cell beside the queue, once for each

    def __iter__(self) -> Iterator[FrontEnd]:
        return iter(self._all)

    @property
    def attached(self) -> int:
        return sum(1 for one in self._all if one.attached)

    def attach(self, session_id: str | None, caller: str, socket: Socket, last_published: str) -> FrontEnd:
        """The client on this socket: a new one, for which `last_published` is past, or one that comes back."""
        self.forget_old()
        front_end = self.known(session_id, caller)
        if front_end is None:
            position = self._positions.of(session_id, caller) if session_id else None
            if position is not None:
                position.noting(Note(last_published, ""))()
            front_end = FrontEnd(session_id or None, caller, self._limit_bytes, position)
            self._all.append(front_end)
        front_end.open(socket)
        return front_end

    def known(self, session_id: str | None, caller: str) -> FrontEnd | None:
        """The client that goes by this, also while it is away."""
        named = (one for one in self._all if session_id and one.session_id == session_id and one.caller == caller)
        return next(named, None)

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
                if one.position is not None:
                    one.position.forget()

    # Those of an earlier gateway

    def begin_anew(self) -> None:
        """Nobody has heard anything of this kernel."""
        self._positions.remove()

    def recall(self) -> None:
        """Remember those that an earlier gateway had: they are behind, until `caught_up`."""
        for session_id, caller, position in self._positions.left():
            one = FrontEnd(session_id, caller, self._limit_bytes, position)
            one.left_at, one.behind, one.openings = time.monotonic(), True, 1
            one.replied_before = position.noted.replied
            self._all.append(one)
        self._in_journal = True

    @property
    def behind(self) -> list[FrontEnd]:
        return [one for one in self._all if one.behind]

    def hear_on(self) -> None:
        """What is heard from now on is not in what those who are behind are given."""
        self._in_journal = False

    def caught_up(self) -> None:
        self._in_journal = False
        for one in self.behind:
            one.caught_up()

    def hear(self, own_session: str, message: Message) -> None:
        """Pass on what the kernel publishes, but for what it says of the gateway's own questions."""
        if not self._all:
            return
        self._kernel_session = message.header.get("session", self._kernel_session)
        if not is_for_clients(own_session, message):
            return
        envelope = Envelope("iopub", message, published=True)
        for front_end in self._all:
            if not (self._in_journal and front_end.behind):
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
        """Send all away, and forget them: the session, or its kernel, is not here any more."""
        gone, self._all = self._all, []
        self._positions.remove()
        for front_end in gone:
            front_end.position = None
        for front_end in gone:
            front_end.send_away(_CODE_GONE, reason[:120])


def is_for_clients(own_session: str, message: Message) -> bool:
    """Whether it is not about one of the gateway's own questions."""
    parent = message.parent
    return parent.get("session") != own_session or parent.get("msg_type") == "execute_request"


def _is_sent(sent: "asyncio.Future[None]") -> bool:
    return sent.done() and not sent.cancelled() and sent.exception() is None
