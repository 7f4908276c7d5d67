"""Writes behind the answer: in order per session, tried again until the store is there.

A run never waits for its history to be written, and nothing that was promised is lost while the store is away:
new work is refused instead, until what is waiting has been written.
"""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, TypeVar
from uuid import uuid4

from gateway.errors import Conflict, GatewayError, NotFound, StoreAway, Unavailable
from gateway.metrics import Metrics
from gateway.models.audit import AuditLine
from gateway.models.base import now, told
from gateway.models.executions import Execution, Status
from gateway.models.sessions import Move
from gateway.services.origin import GATEWAY, Origin, present
from gateway.stores.base import MOST_MOVES, NO_CHANGES, SessionChanges, Store

log = logging.getLogger(__name__)

Write = Callable[[], Awaitable[object]]
T = TypeVar("T")
Spawn = Callable[[Coroutine[Any, Any, None]], None]

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 2.0
_TOGETHER_S = 0.01
_AUDIT_TOGETHER_S = 0.2
_AUDIT_BATCH = 1000
_MOST_AUDIT_LINES = 100_000


class LeaseStale(Unavailable):
    code = "lease_stale"

    def __init__(self) -> None:
        super().__init__("This gateway was out of touch; it looks which sessions are still its own.", retry_after_s=2)


class Recorder:
    """Makes outboxes, and knows whether the store is there and the sessions are still ours.

    The other gateways take our sessions over when they hear nothing of us for `holder_timeout_s`; the lease ends
    before that, also for a process that was stopped meanwhile and does not know.
    """

    def __init__(self, store: Store, spawn: Spawn, metrics: Metrics, holder_timeout_s: float) -> None:
        self.store = store
        self.spawn = spawn
        self.metrics = metrics
        self._audit: deque[AuditLine] = deque()
        self._audit_lost = 0
        self._audit_ends = False
        self._audit_hurry = asyncio.Event()
        self._audited = asyncio.Event()
        self._audited.set()
        self._away: StoreAway | None = None
        self._lease_s = 0.9 * holder_timeout_s
        self._leased_until = float("-inf")

    def outbox(self, uid: str, holder: str, lost: Callable[[GatewayError], None]) -> "Outbox":
        return Outbox(self, uid, holder, lost)

    def check(self) -> None:
        """Raises `StoreAway` while the store is known to be away, `LeaseStale` while sessions may be another's."""
        if self._away is not None:
            raise StoreAway("it went away")
        if self.lease_is_stale:
            raise LeaseStale

    @property
    def lease_is_stale(self) -> bool:
        return time.monotonic() > self._leased_until

    def renew_lease(self, beat_at: float) -> None:
        """A beat that began at `beat_at` (monotonic) was heard, and no session is here that is not ours."""
        self._leased_until = beat_at + self._lease_s

    def away(self, error: StoreAway) -> None:
        if self._away is None:
            log.warning("The store is away: %s", error.sentence)
        self._away = error
        self.metrics.store_up.set(0)

    def back(self) -> None:
        if self._away is not None:
            log.warning("The store is back.")
        self._away = None
        self.metrics.store_up.set(1)

    def note(
        self, action: str, session_id: str | None = None, outcome: str = "ok", *, by: Origin | None = None,
        **details: Any,
    ) -> None:  # fmt: skip
        """Write into the audit log what was done, by whom (the request under way, if nobody is given).

        Details never hold code, outputs or secrets.
        """
        by = by or present()
        self.audit(
            AuditLine(
                id=uuid4().hex, at=now(), actor=by.who.acts_as, key_id=by.who.key_id, agent_id=by.who.agent_id,
                window_id=by.who.window_id, action=action, session_id=session_id and told(session_id, 128),
                outcome=outcome, request_id=by.request_id, remote=by.remote,
                details={name: value for name, value in details.items() if value is not None},
            )
        )  # fmt: skip

    def note_run(self, record: Execution, by: Origin, code: str | None = None) -> None:
        """Write down that a run has ended, and how. `code` is that of a refusal."""
        error = record.error.ename if record.error is not None and record.status is not Status.ERROR else None
        self.note(
            "run", record.session_id, record.status.value, by=by, execution_id=told(record.id, 128),
            uid=record.session_uid, source=record.source, duration_ms=record.duration_ms, reason=code or error,
            guardrails={one.guardrail: one.counts for one in record.guardrails} or None,
        )  # fmt: skip

    def audit(self, line: AuditLine) -> None:
        """Keep a line; when too many wait for the store it is dropped, and a later line says how many were."""
        if len(self._audit) >= _MOST_AUDIT_LINES:
            self.metrics.audit_dropped.inc()
            self._audit_lost += 1
            return
        lost, self._audit_lost = self._audit_lost, 0
        if lost:
            self.note("audit.lost", outcome="error", by=GATEWAY, lines=lost)
        self._audit.append(line)
        self._begin_audit()

    def _begin_audit(self) -> None:
        if self._audit and self._audited.is_set():
            self._audited.clear()
            self.spawn(self._write_audit())

    async def audit_flushed(self, timeout_s: float = 5.0) -> None:
        """Have all lines written, as far as the store takes them within that time; later ones are written at once."""
        self._audit_ends = True
        await self.audit_written(timeout_s)

    async def audit_written(self, timeout_s: float = 5.0) -> None:
        """Have all lines written that there are, as far as the store takes them within that time."""
        self._audit_hurry.set()
        self._begin_audit()
        try:
            async with asyncio.timeout(timeout_s):
                await self._audited.wait()
        except TimeoutError:
            pass
        finally:
            if not self._audit_ends:
                self._audit_hurry.clear()

    async def _write_audit(self) -> None:
        try:
            while self._audit:
                await _unless(self._audit_hurry, _AUDIT_TOGETHER_S)
                lines = [self._audit.popleft() for _ in range(min(len(self._audit), _AUDIT_BATCH))]
                try:
                    await self.write(partial(self.store.append_audit, lines))
                except BaseException:
                    self._audit.extendleft(reversed(lines))
                    raise
        finally:
            self._audited.set()

    async def write(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write (or read), again and again while the store is away. Raises what else goes wrong."""
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                done = await write()
            except StoreAway as error:
                self.away(error)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _LONGEST_RETRY_S)
            else:
                if self._away is not None:
                    self.back()
                return done


@dataclass(slots=True)
class _Waiting:
    """What is to be written about a session: as many of its changes together as happened close together."""

    executions: dict[str, Execution] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    changes: SessionChanges = NO_CHANGES
    changed_at: datetime | None = None
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    written: asyncio.Event = field(default_factory=asyncio.Event)

    def __bool__(self) -> bool:
        return bool(self.executions) or self.changed_at is not None


class Outbox:
    """What is still to be written about one session, in order.

    What follows within milliseconds is written together: a short run is one write, not four.
    """

    def __init__(self, recorder: "Recorder", uid: str, holder: str, lost: Callable[[GatewayError], None]) -> None:
        self._recorder = recorder
        self._uid = uid
        self._holder = holder
        self._lost = lost
        self._waiting = _Waiting()
        self._writing: _Waiting | None = None
        self._draining = False
        self.refused: GatewayError | None = None  # what the store said when the session was no longer ours

    def execution(self, record: Execution) -> None:
        """Keep a record, which must not be changed any more."""
        self._waiting.executions[record.id] = record
        self._begin()

    def move(self, move: Move, changes: SessionChanges) -> None:
        self._waiting.moves.append(move)
        self.change(changes, move.at)

    def change(self, changes: SessionChanges, at: datetime) -> None:
        self._waiting.changes = self._waiting.changes.then(changes)
        self._waiting.changed_at = at
        self._begin()

    async def flushed(self, timeout_s: float = 5.0) -> None:
        """Wait until all that was waiting when this was called is written. Raises `StoreAway` if it is not in time."""
        last = self._waiting or self._writing
        if last is None:
            return
        last.hurry.set()
        try:
            async with asyncio.timeout(timeout_s):
                await last.written.wait()
        except TimeoutError:
            raise StoreAway("it does not take what is to be written") from None

    def _begin(self) -> None:
        if len(self._waiting.moves) >= MOST_MOVES:
            self._waiting.hurry.set()
        if not self._draining:
            self._draining = True
            self._recorder.metrics.store_backlog.inc()
            self._recorder.spawn(self._drain())

    async def _drain(self) -> None:
        try:
            while self._waiting:
                await _unless(self._waiting.hurry, _TOGETHER_S)
                self._writing, self._waiting = self._waiting, _Waiting()
                try:
                    await self._write(self._writing)
                except Exception:
                    log.exception("Something about a session could not be written")
                finally:
                    self._writing.written.set()
                    self._writing = None
        finally:
            self._draining = False
            self._recorder.metrics.store_backlog.dec()

    async def _write(self, waiting: _Waiting) -> None:
        store = self._recorder.store
        moves, changes, at = waiting.moves, waiting.changes, waiting.changed_at
        executions = list(waiting.executions.values())
        if 0 < len(moves) <= MOST_MOVES:  # as after each run: one write for all of it
            move = partial(store.move_session, self._uid, *moves, changes=changes, holder=self._holder)
            if await self._insist(partial(move, executions=executions)):
                return
        for record in executions:
            await self._insist(partial(store.put_execution, record))
        while len(moves) > MOST_MOVES:
            first, moves = moves[:MOST_MOVES], moves[MOST_MOVES:]
            await self._insist(partial(store.move_session, self._uid, *first, holder=self._holder))
        if moves:
            await self._insist(partial(store.move_session, self._uid, *moves, changes=changes, holder=self._holder))
        elif at is not None:
            await self._insist(partial(store.update_session, self._uid, changes, at, holder=self._holder))

    async def _insist(self, write: Write) -> bool:
        """Whether it was written or refused, rather than failed."""
        try:
            await self._recorder.write(write)
        except (Conflict, NotFound) as error:
            self.refused = error
            self._lost(error)
        except Exception:
            log.exception("Something about a session could not be written")
            return False
        return True


async def _unless(hurry: asyncio.Event, delay_s: float) -> None:
    """Wait for more to write together, unless somebody is in a hurry."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(delay_s):
            await hurry.wait()
