"""Runs, told from what their kernel has published: which there were, and how one of them went.

IOPub alone is enough for that: also when nobody was there to hear the reply.
"""

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kernels.journal import Entry
from kernels.messages import DELIMITER, BadMessage, Message, NewSieve, Wire
from kernels.outputs import Event, Outputs, error_of


@dataclass(slots=True)
class PastRun:
    """A cell that a kernel has begun. `request` is the header of what asked for it."""

    run_id: str
    code: str
    execution_count: int | None
    started_at: float | None  # unix time, seconds
    ended: bool = False
    request: dict[str, Any] = field(default_factory=dict)

    @property
    def asked_by(self) -> str:
        """The `session` of who asked for it."""
        session = self.request.get("session")
        return session if isinstance(session, str) else ""

    @property
    def beside(self) -> bool:
        """Whether it runs in a subshell."""
        return self.request.get("subshell_id") is not None


@dataclass(frozen=True, slots=True)
class Retold:
    """How a run went, as far as it was published."""

    outputs: Outputs
    execution_count: int | None
    reply: dict[str, Any] | None  # None: its end is not there


class Verdict:
    """What the reply to a run must have been, from what was published."""

    def __init__(self) -> None:
        self.execution_count: int | None = None
        self.request: dict[str, Any] = {}  # the header of what asked for it
        self.began = False
        self._error: dict[str, Any] | None = None

    def take(self, message: Message) -> None:
        if message.type == "execute_input":
            self.began, self.request = True, message.parent
            self.execution_count = count_of(message)
        elif message.type == "error":
            self._error = error_of(message.content)

    def reply(self) -> dict[str, Any]:
        if self._error is not None:
            return {"status": "error", **self._error, "execution_count": self.execution_count}
        return {"status": "ok", "execution_count": self.execution_count, "payload": [], "user_expressions": {}}


class RunOf:
    """Picks the messages of one run out of a journal. `incomplete` if some of them may be lost."""

    def __init__(
        self, wire: Wire, run_id: str, hear: Callable[[Message], None], new_sieve: NewSieve | None = None
    ) -> None:
        self.incomplete = False
        self._sieve = new_sieve() if new_sieve is not None else None
        self._wire = wire
        self._run_id = run_id
        self._hear = hear
        self._began = False
        self._lost = False
        self._over = False

    def take(self, entry: Entry) -> bool:
        """Whether it is a message of the run."""
        lost = bool(entry.lost) or not entry.frames
        self._lost = self._lost or lost
        if self._began and not self._over and lost:
            self.incomplete = True
        if not may_follow(entry, self._run_id):
            return False
        message = read(self._wire, entry)
        if message is None or message.parent_id != self._run_id:
            return False
        if message.type == "execute_input":
            self._began = True
        elif self._lost and not self._began:
            self.incomplete = True
        self._over = is_idle(message)
        for one in self._sieve.take(message) if self._sieve is not None else (message,):
            self._hear(one)
        return True

    def rest(self) -> None:
        """Nothing more comes from the journal: hear what its sieve has held back."""
        for one in self._sieve.rest() if self._sieve is not None else ():
            self._hear(one)


async def past_runs(entries: AsyncIterator[Entry], wire: Wire) -> list[PastRun]:
    """The runs that a kernel has begun, as far back as its journal goes, in order."""
    found: dict[str, PastRun] = {}
    async for entry in entries:
        header = part(entry, 0)
        if b'"execute_input"' not in header and b'"status"' not in header:
            continue
        message = read(wire, entry)
        if message is None or message.parent_id is None:
            continue
        if message.type == "execute_input":
            code = message.content.get("code")
            found[message.parent_id] = PastRun(
                message.parent_id,
                code if isinstance(code, str) else "",
                count_of(message),
                _sent_at(message),
                request=message.parent,
            )
        elif is_idle(message) and message.parent_id in found:
            found[message.parent_id].ended = True
    return list(found.values())


async def retold(
    entries: AsyncIterator[Entry],
    wire: Wire,
    run_id: str,
    *,
    output_limit_bytes: int,
    on_event: Callable[[Event], None] = lambda event: None,
    new_sieve: NewSieve | None = None,
) -> Retold:
    """One run of a kernel, also of one that has ended."""
    outputs, verdict, ended = Outputs(output_limit_bytes), Verdict(), False

    def hear(message: Message) -> None:
        nonlocal ended
        verdict.take(message)
        if is_idle(message):
            ended = True
        elif event := outputs.add(message):
            on_event(event)

    run = RunOf(wire, run_id, hear, new_sieve)
    async for entry in entries:
        run.take(entry)
    run.rest()
    outputs.truncated = outputs.truncated or run.incomplete
    return Retold(outputs, verdict.execution_count, verdict.reply() if ended else None)


def may_follow(entry: Entry, msg_id: str) -> bool:
    """Whether it may be an answer to this request; cheap, for what is looked at by the hundred thousand."""
    return msg_id.encode() in part(entry, 1)


def part(entry: Entry, number: int) -> bytes:
    """Header (0) or parent header (1), as it came."""
    try:
        return entry.frames[entry.frames.index(DELIMITER) + 2 + number]
    except (ValueError, IndexError):
        return b""


def read(wire: Wire, entry: Entry) -> Message | None:
    try:
        return wire.read(entry.frames)
    except BadMessage:
        return None


def is_idle(message: Message) -> bool:
    return message.type == "status" and message.content.get("execution_state") == "idle"


def count_of(message: Message) -> int | None:
    count = message.content.get("execution_count")
    return count if isinstance(count, int) else None


def _sent_at(message: Message) -> float | None:
    date = message.header.get("date")
    if isinstance(date, str):
        try:
            return datetime.fromisoformat(date).timestamp()
        except ValueError:
            return None
    return date.timestamp() if isinstance(date, datetime) else None
