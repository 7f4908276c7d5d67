"""What becomes of sessions that nobody uses."""

import asyncio
from pathlib import Path

from tests.api import Api
from tests.gateway.services.test_live import until_state
from tests.gateways import WHICH_PROCESS, gateway_process


async def test_a_session_that_sleeps_is_let_go_of_as_it_is(tmp_path: Path) -> None:
    settings = {"store": f"sqlite:///{tmp_path}/shared.db", "reaper_interval_s": 0.1, "release_after_s": 0.5}
    async with (
        gateway_process(tmp_path / "a", live_limit=1, waiting_timeout_s=2, **settings) as one,
        gateway_process(tmp_path / "b", **settings) as two,
        Api(one.url) as here,
        Api(two.url) as there,
    ):
        await here.run("ran", "1")
        await here.create(session_id="never-started")
        refused = await there.http.post("/api/sessions/ran/run", json={"code": "1"})
        await until_state(here, "ran", "IDLE")

        async with asyncio.timeout(20):
            for session_id in ("ran", "never-started"):
                while (await there.http.post(f"/api/sessions/{session_id}/wake")).status_code == 409:
                    await asyncio.sleep(0.1)
        moves = [one["after"] for one in (await there.get("/api/sessions/ran/states"))["states"]]
        never = [one["after"] for one in (await there.get("/api/sessions/never-started/states"))["states"]]

        assert refused.json()["code"] == "session_held"
        assert moves[:2] == ["READY", "IDLE"]
        assert never == ["READY", "INIT"]
        assert (await there.run("ran", "1 + 1"))["result"] == "2"


async def test_a_session_for_once_that_a_stopped_gateway_left_is_deleted(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data", reaper_interval_s=0.05) as gateway:
        async with Api(gateway.url) as api:
            await api.create(session_id="once", waiting_timeout_seconds=1, persistent=False)
            await api.create(session_id="kept", waiting_timeout_seconds=1)
        await gateway.stop()
        await gateway.start()

        async with Api(gateway.url) as api, asyncio.timeout(20):
            while (await api.http.get("/api/sessions/once")).status_code != 404:
                await asyncio.sleep(0.1)
            await api.get("/api/sessions/kept", 200)


async def test_a_run_while_files_are_counted_keeps_its_variables(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data", reaper_interval_s=0.02) as gateway, Api(gateway.url) as api:
        await api.create(session_id="demo", waiting_timeout_seconds=0.3)
        await api.run("demo", "for n in range(20_000): open(f'f{n}', 'w').close()")

        lost = 0
        for _ in range(8):
            before = await api.run("demo", f"x = 1; {WHICH_PROCESS}")
            await asyncio.sleep(0.31)
            between = await api.run("demo", f"{WHICH_PROCESS} if 'x' in globals() else None")
            after = await api.run("demo", "'x' in globals()")
            lost += between["result"] == before["result"] and after["result"] == "False"

        assert lost == 0
