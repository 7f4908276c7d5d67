"""Two gateways on one store: a session runs on one of them at a time."""

import asyncio
import contextlib
import signal
import sqlite3
from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.config import Settings
from tests.api import Api
from tests.gateways import GatewayProcess, gateway_process


async def test_a_gateway_that_was_paused_runs_nothing_on_what_another_took_over(tmp_path: Path) -> None:
    settings = {"store": f"sqlite:///{tmp_path}/shared.db", "heartbeat_interval_s": 0.3, "holder_timeout_s": 2}
    async with (
        gateway_process(tmp_path / "a", **settings) as one,
        gateway_process(tmp_path / "b", **settings) as two,
        Api(one.url) as here,
        Api(two.url) as there,
    ):
        await here.run("demo", "x = 'stale'")
        await pause_between_writes(one, tmp_path / "shared.db")
        try:
            stale = [
                asyncio.ensure_future(here.http.post("/api/sessions/demo/run", json={"code": "x"})) for _ in range(5)
            ]
            async with asyncio.timeout(60):
                while (await there.http.post("/api/sessions/demo/run", json={"code": "1"})).status_code != 200:
                    await asyncio.sleep(0.1)
        finally:
            one.signal(signal.SIGCONT)
        answers = [await answer for answer in stale]
        await there.run("demo", "y = 'new'")
        async with asyncio.timeout(20):
            while (after := await here.http.post("/api/sessions/demo/run", json={"code": "x"})).status_code == 503:
                await asyncio.sleep(0.1)

        assert {answer.json()["code"] for answer in answers} <= {"lease_stale", "session_held"}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
        assert (after.status_code, after.json()["code"]) == (409, "session_held")
        assert (await there.run("demo", "y"))["result"] == "'new'"


async def pause_between_writes(gateway: GatewayProcess, database: Path) -> None:
    """One that was paused while it writes has SQLite's lock with it, and keeps everybody else from the store."""
    while True:
        gateway.signal(signal.SIGSTOP)
        with contextlib.closing(sqlite3.connect(database, timeout=1, isolation_level=None)) as store:
            try:
                store.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                gateway.signal(signal.SIGCONT)
                await asyncio.sleep(0.01)
            else:
                return


def test_a_holder_may_miss_a_heartbeat() -> None:
    with pytest.raises(ValidationError, match="heartbeat_interval_s"):
        Settings(holder_timeout_s=10, heartbeat_interval_s=5)
