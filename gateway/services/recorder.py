"""Writes behind the answer: in order per session, tried again until the store is there.

A run never waits for its history to be written, and nothing that was promised is lost while the store is away:
new work is refused instead, until what is waiting has been written.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from gateway.errors import Conflict, GatewayError, NotFound, StoreAway
from gateway.metrics import Metrics
from gateway.models.audit import AuditLine
from gateway.stores.base import Store

log = logging.getLogger(__name__)

Write = Callable[[], Awaitable[object]]
Spawn = Callable[[Coroutine[Any, Any, None]], None]

_FIRST_RETRY_S = 0.1
_LONGEST_RETRY_S = 2.0
_MOST_AUDIT_LINES = 100_000


class Recorder:
    """Makes outboxes, and knows whether the store is there."""

    def __init__(self, store: Store, spawn: Spawn, metrics: Metrics) -> None:
        self._store = store
        self._spawn = spawn
        self._metrics = metrics
        self._audit: deque[AuditLine] = deque(maxlen=_MOST_AUDIT_LINES)
        self._auditing = False
        self._away: StoreAway | None = None

    def outbox(self, lost: Callable[[GatewayError], None]) -> "Outbox":
        return Outbox(self, self._spawn, self._metrics, lost)

    def check(self) -> None:
        """Raises `StoreAway` while the store is known to be away."""
        if self._away is not None:
            raise StoreAway("it went away")

    def away(self, error: StoreAway) -> None:
        if self._away is None:
            log.warning("The store is away: %s", error.sentence)
        self._away = error
        self._metrics.store_up.set(0)

    def back(self) -> None:
        if self._away is not None:
            log.warning("The store is back.")
        self._away = None
        self._metrics.store_up.set(1)

    def audit(self, line: AuditLine) -> None:
        self._audit.append(line)
        if not self._auditing:
            self._auditing = True
            self._spawn(self._write_audit())

    async def _write_audit(self) -> None:
        try:
            while self._audit:
                lines = list(self._audit)[:1000]
                await self.write(lambda lines=lines: self._store.append_audit(lines))  # type: ignore[misc]
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


class Outbox:
    """What is still to be written about one session, in order."""

    def __init__(
        self, recorder: Recorder, spawn: Spawn, metrics: Metrics, lost: Callable[[GatewayError], None]
    ) -> None:
        self._recorder = recorder
        self._spawn = spawn
        self._metrics = metrics
        self._lost = lost
        self._waiting: deque[Write] = deque()
        self._empty = asyncio.Event()
        self._empty.set()

    def put(self, write: Write) -> None:
        self._waiting.append(write)
        self._metrics.store_backlog.inc()
        if self._empty.is_set():
            self._empty.clear()
            self._spawn(self._drain())

    async def flushed(self, timeout_s: float = 5.0) -> None:
        """Wait until all is written. Raises `StoreAway` if it is not in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._empty.wait()
        except TimeoutError:
            raise StoreAway("it does not take what is to be written") from None

    async def _drain(self) -> None:
        try:
            while self._waiting:
                try:
                    await self._recorder.write(self._waiting[0])
                except (Conflict, NotFound) as error:
                    self._lost(error)
                except Exception:
                    log.exception("Something about a session could not be written")
                self._waiting.popleft()
                self._metrics.store_backlog.dec()
        finally:
            self._empty.set()
