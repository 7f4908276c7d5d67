"""Outboxes and audit lines, on a store that fails when it is told to."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gateway.app import tasks
from gateway.errors import GatewayError, StoreAway, Unavailable
from gateway.metrics import Metrics
from gateway.models.audit import AuditLine
from gateway.models.base import now
from gateway.models.sessions import Session
from gateway.services import recorder as recorders
from gateway.services.recorder import Recorder
from gateway.stores.base import SessionChanges
from gateway.stores.sqlite import SqliteStore


class FailingStore(SqliteStore):
    """A real store that does not take some of what it is given."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.away = False

    async def append_audit(self, lines: list[AuditLine]) -> None:
        if self.away:
            raise StoreAway("the test says so")
        await super().append_audit(lines)

    async def update_session(
        self, uid: str, changes: SessionChanges, at: datetime, holder: str | None = None
    ) -> Session:
        if "unforeseen" in changes.replace:
            raise ZeroDivisionError
        return await super().update_session(uid, changes, at, holder)


@asynccontextmanager
async def recording(path: Path) -> AsyncIterator[tuple[FailingStore, Recorder]]:
    store = FailingStore(path / "gateway.db")
    async with store.opened(), tasks() as background:
        yield store, Recorder(store, background.spawn, Metrics(), holder_timeout_s=1)


async def held_session(store: SqliteStore, holder: str = "g1") -> Session:
    session = Session(uid=uuid.uuid4().hex, id="demo", name="demo", created_at=now(), updated_at=now())
    await store.create_session(session)
    return await store.claim_session(session.uid, holder, now())


def renamed(name: Any) -> SessionChanges:
    return SessionChanges(replace={"name": name})


def line(number: int) -> AuditLine:
    return AuditLine(id=f"a{number}", at=now(), actor="local", action="create", outcome="ok", request_id="r")


async def test_flushed_waits_for_what_was_there_and_not_for_what_still_comes(tmp_path: Path) -> None:
    async with recording(tmp_path) as (store, recorder):
        outbox = recorder.outbox((await held_session(store)).uid, "g1", lambda error: None)
        over = asyncio.Event()

        async def traffic() -> None:
            number = 0
            while not over.is_set():
                outbox.change(renamed(f"later {number}"), now())
                number += 1
                await asyncio.sleep(0)

        outbox.change(renamed("first"), now())
        busy = asyncio.ensure_future(traffic())
        try:
            for _ in range(3):
                await outbox.flushed(timeout_s=2)
        finally:
            over.set()
            await busy
        await outbox.flushed()

        assert (await store.get_session("demo")).name.startswith("later")


async def test_what_is_unforeseen_holds_up_nothing_behind_it(tmp_path: Path) -> None:
    def lost(error: GatewayError) -> None:
        raise ZeroDivisionError

    async with recording(tmp_path) as (store, recorder):
        uid = (await held_session(store)).uid
        outbox, stranger = recorder.outbox(uid, "g1", lost), recorder.outbox(uid, "g2", lost)

        for change in (SessionChanges(replace={"unforeseen": 1}), renamed("fine")):
            outbox.change(change, now())
            await outbox.flushed(timeout_s=2)
        for name in ("stolen", "stolen again"):
            stranger.change(renamed(name), now())
            await stranger.flushed(timeout_s=2)

        assert (await store.get_session("demo")).name == "fine"
        assert stranger.refused is not None


async def test_audit_lines_are_all_written_when_the_store_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorders, "_MOST_AUDIT_LINES", 10)
    async with recording(tmp_path) as (store, recorder):
        store.away = True
        recorder.audit(line(0))
        await recorder.audit_flushed(timeout_s=0.1)
        for number in range(1, 15):
            recorder.audit(line(number))

        store.away = False
        await recorder.audit_flushed()

        recorder.audit(line(15))
        await recorder.audit_flushed()

        begin, *lines = [one.line async for one in store.read_audit()]
        *kept, lost, last = lines
        assert begin.action == "audit.begin"
        assert [one.id for one in kept] == [f"a{number}" for number in range(11)]
        assert (lost.action, lost.details, last.id) == ("audit.lost", {"lines": 4}, "a15")
        assert b"gateway_audit_lines_dropped_total 4.0" in recorder.metrics.text()


async def test_nothing_new_is_taken_once_the_lease_is_over(tmp_path: Path) -> None:
    async with recording(tmp_path) as (_, recorder):
        recorder.renew_lease(asyncio.get_running_loop().time())
        recorder.check()

        recorder.renew_lease(asyncio.get_running_loop().time() - 1)

        with pytest.raises(Unavailable) as caught:
            recorder.check()
        assert caught.value.retry_after_s
