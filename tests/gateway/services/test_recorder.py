"""What happens to runs while the store is away."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.gateway.services.test_executions import started
from tests.gateways import gateway_process
from tests.mongod import Mongod, own_mongod  # noqa: F401 - a fixture

pytestmark = pytest.mark.external_service


async def until_ready(api: Api, ready: bool) -> Any:
    async with asyncio.timeout(40):
        while ((answer := await api.http.get("/api/ready")).status_code == 200) is not ready:
            await asyncio.sleep(0.1)
    return answer


@pytest.mark.slow
async def test_a_run_in_flight_survives_the_loss_of_the_store(tmp_path: Path, own_mongod: Mongod) -> None:  # noqa: F811
    async with (
        gateway_process(tmp_path / "data", store=own_mongod.uri("lost"), heartbeat_interval_s=1) as gateway,
        Api(gateway.url) as api,
    ):
        await api.run("one", "x = 41")
        async with api.stream("one", "print('go'); import time; time.sleep(4); x + 1") as stream:
            await started(stream)
            own_mongod.kill()
            done = await started(stream, "done")
        away = await until_ready(api, False)
        refused = [
            await api.http.post("/api/sessions/one/run", json={"code": "1"}),
            await api.http.post("/api/sessions", json={"id": "two"}),
            await api.http.delete("/api/sessions/one"),
        ]

        own_mongod.start()
        await until_ready(api, True)
        after = await api.run("one", "x + 2")
        history = (await api.get("/api/sessions/one/history"))["history"]
        document = await api.get("/api/sessions/one")

    assert (done.data["status"], done.data["result"]) == ("ok", "42")
    assert away.status_code == 503
    assert "store" in away.text
    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert int(answer.headers["Retry-After"]) >= 1
    assert after["result"] == "43"
    assert [one["result"] for one in history] == ["43", "42", None]
    assert document["run_count"] == 3


@pytest.mark.slow
async def test_a_gateway_that_starts_without_its_store_carries_on_when_it_is_there(
    tmp_path: Path,
    own_mongod: Mongod,  # noqa: F811
) -> None:
    own_mongod.stop()
    async with (
        gateway_process(tmp_path / "data", store=own_mongod.uri("late"), heartbeat_interval_s=1) as gateway,
        Api(gateway.url) as api,
    ):
        early = await api.http.get("/api/ready")
        refused = await api.http.post("/api/sessions/one/run", json={"code": "1"})

        own_mongod.start()
        await until_ready(api, True)

        assert early.status_code == 503
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert (await api.run("one", "1 + 1"))["result"] == "2"


@pytest.mark.slow
async def test_a_store_that_hangs_is_away_too(tmp_path: Path, own_mongod: Mongod) -> None:  # noqa: F811
    async with (
        gateway_process(tmp_path / "data", store=own_mongod.uri("hangs"), heartbeat_interval_s=1) as gateway,
        Api(gateway.url) as api,
    ):
        await api.run("one", "x = 41")
        own_mongod.pause()
        try:
            answer = await api.http.post("/api/sessions/one/run", json={"code": "x + 1"})
            await until_ready(api, False)
        finally:
            own_mongod.resume()
        await until_ready(api, True)

        assert (answer.status_code == 200 and answer.json()["result"] == "42") or answer.status_code == 503
        assert (await api.run("one", "x + 2"))["result"] == "43"
