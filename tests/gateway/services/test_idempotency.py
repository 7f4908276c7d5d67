"""Keys: what is answered once stays answered, whatever happens to the store and to gateways."""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.app import tasks
from gateway.config import Settings
from gateway.errors import StoreAway
from gateway.metrics import Metrics
from gateway.models.base import now
from gateway.models.idempotency import KeptAnswer
from gateway.services.idempotency import IdempotencyService, InProgress
from gateway.services.recorder import Recorder, Spawn
from gateway.stores.sqlite import SqliteStore
from tests.api import Api


class ForgetfulStore(SqliteStore):
    """A real store that takes no answers while it is `away`."""

    away = False

    async def keep_answer(self, answer: KeptAnswer) -> None:
        if self.away:
            raise StoreAway("the test says so")
        await super().keep_answer(answer)


class Client:
    """Asks one gateway, and counts how often that has really done it."""

    def __init__(self, store: SqliteStore, spawn: Spawn, gateway_id: str = "g1") -> None:
        recorder = Recorder(store, spawn, Metrics(), 30)
        self.keys = IdempotencyService(Settings(gateway_id=gateway_id), recorder)
        self.count = 0

    async def ask(self) -> KeptAnswer | None:
        return await self.keys.once("local", "/api/sessions", "k", b"body", self._answer)

    async def _answer(self) -> KeptAnswer:
        self.count += 1
        return KeptAnswer(key="", request_digest="", created_at=now(), status=201, body=b"made")


def _dead(work: Coroutine[Any, Any, None]) -> None:
    """A process that does nothing any more."""
    work.close()


async def test_an_answer_is_kept_once_the_store_is_back_and_given_meanwhile(tmp_path: Path) -> None:
    store = ForgetfulStore(tmp_path / "gateway.db")
    async with store.opened(), tasks() as background:
        store.away, client = True, Client(store, background.spawn)
        assert await client.ask() is None

        meanwhile = await client.ask()
        store.away = False
        async with asyncio.timeout(10):
            while (found := await Client(store, _dead, "g2").ask()) is None:
                await asyncio.sleep(0.05)

        assert meanwhile is not None
        assert (meanwhile.body, found.body, client.count) == (b"made", b"made", 1)


async def test_a_reservation_holds_while_its_gateway_lives(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "gateway.db")
    async with store.opened():
        await store.beat("g1", now())
        await Client(store, _dead).ask()
        other = Client(store, _dead, "g2")

        with pytest.raises(InProgress):
            await other.ask()
        assert other.count == 0


@pytest.mark.parametrize("gateway_id", ["g1", "g2"])
async def test_a_reservation_of_a_process_that_is_gone_is_forgotten(tmp_path: Path, gateway_id: str) -> None:
    store = SqliteStore(tmp_path / "gateway.db")
    async with store.opened():
        await store.beat("g1", now() - timedelta(seconds=31))
        await Client(store, _dead).ask()

        later = Client(store, _dead, gateway_id)

        assert await later.ask() is None
        assert later.count == 1


async def test_a_key_is_bound_to_a_route_whatever_its_version(api: Api, session_id: str) -> None:
    headers = {"Idempotency-Key": session_id}
    answers = [
        await api.http.post(f"/api{version}/sessions/{session_id}/run", json={"code": "1"}, headers=headers)
        for version in ("/v2", "", "/v0")
    ]

    assert len({answer.json()["execution_id"] for answer in answers}) == 1
    assert [answer.headers.get("Idempotent-Replayed") for answer in answers] == [None, "true", "true"]
