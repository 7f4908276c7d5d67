"""Writes behind the answer: in order per session, tried again until the store is there.

A run never waits for its history to be written, and nothing that was promised is lost while the store is away:
new work is refused instead, until what is waiting has been written.
"""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any

from gateway.errors import Conflict, GatewayError, NotFound, StoreAway
from gateway.metrics import Metrics
from gateway.models.audit import AuditLine
from gateway.models.executions import Execution
from gateway.models.sessions import Move
from gateway.stores.base import MOST_MOVES, NO_CHANGES, SessionChanges, Store

log = logging.getLogger(__name__)

Write = Callable[[], Awaitable[object]]
Spawn = Callable[[Coroutine[Any, Any, None]], None]

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 2.0
_TOGETHER_S = 0.01
_AUDIT_TOGETHER_S = 0.2
_MOST_AUDIT_LINES = 100_000


class Recorder:
    """Makes outboxes, and knows whether the store is there."""

    def __init__(self, store: Store, spawn: Spawn, metrics: Metrics) -> None:
        self.store = store
        self.spawn = spawn
        self.metrics = metrics
        self._audit: deque[AuditLine] = deque(maxlen=_MOST_AUDIT_LINES)
        self._auditing = False
        self._away: StoreAway | None = None

    def outbox(self, uid: str, holder: str, lost: Callable[[GatewayError], None]) -> "Outbox":
        return Outbox(self, uid, holder, lost)

    def check(self) -> None:
        """Raises `StoreAway` while the store is known to be away."""
        if self._away is not None:
            raise StoreAway("it went away")

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

    def audit(self, line: AuditLine) -> None:
        self._audit.append(line)
        if not self._auditing:
            self._auditing = True
            self.spawn(self._write_audit())

    async def _write_audit(self) -> None:
        try:
            while self._audit:
                await asyncio.sleep(_AUDIT_TOGETHER_S)
                lines = list(self._audit)[:1000]
                await self.write(lambda lines=lines: self.store.append_audit(lines))  # type: ignore[misc]
                for _ in lines:
                    self._audit.popleft()
        finally:
            self._auditing = False

    async def write(self, write: Write) -> None:
        """Write, again and again while the store is away. Raises what else goes wrong."""
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                await write()
            except StoreAway as error:
                self.away(error)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, _LONGEST_RETRY_S)
            else:
                if self._away is not None:
                    self.back()
                return


@dataclass(slots=True)
class _Waiting:
    """What is to be written about a session: as many of its changes together as happened close together."""

    executions: dict[str, Execution] = field(default_factory=dict)
    moves: list[Move] = field(default_factory=list)
    changes: SessionChanges = NO_CHANGES
    changed_at: datetime | None = None


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
        self._written = asyncio.Event()
        self._written.set()
        self._hurry = asyncio.Event()

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
        """Wait until all is written. Raises `StoreAway` if it is not in time."""
        self._hurry.set()
        try:
            async with asyncio.timeout(timeout_s):
                await self._written.wait()
        except TimeoutError:
            raise StoreAway("it does not take what is to be written") from None

    def _begin(self) -> None:
        if self._written.is_set():
            self._written.clear()
            self._hurry.clear()
            self._recorder.metrics.store_backlog.inc()
            self._recorder.spawn(self._drain())
        elif len(self._waiting.moves) >= MOST_MOVES:
            self._hurry.set()

    async def _drain(self) -> None:
        try:
            while self._waiting.executions or self._waiting.changed_at is not None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_TOGETHER_S):
                        await self._hurry.wait()
                waiting, self._waiting = self._waiting, _Waiting()
                await self._write(waiting)
        finally:
            self._recorder.metrics.store_backlog.dec()
            self._written.set()

    async def _write(self, waiting: _Waiting) -> None:
        store = self._recorder.store
        for record in waiting.executions.values():
            await self._insist(partial(store.put_execution, record))
        moves, changes, at = waiting.moves, waiting.changes, waiting.changed_at
        while len(moves) > MOST_MOVES:
            first, moves = moves[:MOST_MOVES], moves[MOST_MOVES:]
            await self._insist(partial(store.move_session, self._uid, *first, holder=self._holder))
        if moves:
            await self._insist(partial(store.move_session, self._uid, *moves, changes=changes, holder=self._holder))
        elif at is not None:
            await self._insist(partial(store.update_session, self._uid, changes, at))

    async def _insist(self, write: Write) -> None:
        try:
            await self._recorder.write(write)
        except (Conflict, NotFound) as error:
            self._lost(error)
        except Exception:
            log.exception("Something about a session could not be written")
