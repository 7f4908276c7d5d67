"""Notebooks and replays whose gateway is killed: the next one tells how far they came."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tests.api import Api
from tests.gateways import GatewayProcess, gateway_process

pytestmark = pytest.mark.slow


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    async with gateway_process(tmp_path / "data") as started:
        yield started


def notebook(*cells: str) -> dict[str, Any]:
    made: list[Any] = [new_code_cell(cell) for cell in cells]  # type: ignore[no-untyped-call]
    return dict(new_notebook(cells=made))  # type: ignore[no-untyped-call]


async def until(api: Api, path: str, text: str) -> None:
    """Wait until this was printed by something that runs."""
    async with api.events(path) as found:
        async for event in found:
            if event.kind == "stdout" and text in event.data["text"]:
                return
    raise AssertionError(f"no {text!r}")


async def test_a_notebook_whose_gateway_was_killed_is_told_as_interrupted_with_what_was_done(
    own: GatewayProcess,
) -> None:
    content = notebook("print('first')\n6 * 7", "print('on', flush=True); import time; time.sleep(3)", "never = 1")
    async with Api(own.url) as api:
        begun = await api.post("/api/sessions/s/notebook?background=true", content, 202)
        path = f"/api/sessions/s/notebook/{begun['run_id']}"
        await until(api, f"{path}/events", "on\n")
        await own.kill()
    await own.start()
    async with Api(own.url) as api:
        meanwhile = await api.get(path)
        assert (await api.run("s", "'never' in globals()"))["result"] == "False"
        left = await api.get(path)
        async with api.events(f"{path}/events") as found:
            told = [event async for event in found]
        stopped = await api.call("DELETE", path, expect=200)

    assert meanwhile["status"] == left["status"] == "interrupted"
    assert "not run" in left["reason"]
    assert [cell["status"] for cell in left["cells"]] == ["ok", "ok", None]
    cells = left["notebook"]["cells"]
    assert cells[0]["outputs"][1]["data"]["text/plain"] == "42"
    assert [cell["outputs"][0]["text"] for cell in cells[:2]] == ["first\n", "on\n"]
    assert (cells[2]["source"], cells[2]["outputs"]) == ("never = 1", [])
    assert ([event.kind for event in told], told[0].data) == (["done"], left)
    assert stopped == left


async def test_a_notebook_that_has_ended_is_told_the_same_by_the_next_gateway(own: GatewayProcess) -> None:
    async with Api(own.url) as api:
        ran = await api.post("/api/sessions/s/notebook", notebook("print(1)", "1 / 0", "2"))
        await api.get("/api/sessions/s/history")  # once all is written
        await own.kill()
    await own.start()
    async with Api(own.url) as api:
        assert await api.get(f"/api/sessions/s/notebook/{ran['run_id']}") == ran
        await api.get(f"/api/sessions/s/replay/{ran['run_id']}", 404)
        await api.get("/api/sessions/s/notebook/none", 404)


async def test_a_replay_whose_gateway_was_killed_is_told_as_interrupted_with_what_was_done(
    own: GatewayProcess,
) -> None:
    async with Api(own.url) as api:
        await api.run("s", "x = 1\nprint('one')")
        await api.run("s", "import time\nprint('on', flush=True)\ntime.sleep(2)")
        await api.run("s", "x + 1")
        begun = await api.post("/api/sessions/s/replay", {"background": True, "session_id": "again"}, 202)
        path = f"/api/sessions/s/replay/{begun['replay_id']}"
        await until(api, f"{path}/events", "on\n")
        await own.kill()
    await own.start()
    async with Api(own.url) as api:
        await api.run("again", "1")
        left = await api.get(path)

    assert (left["status"], left["session_id"], left["same"]) == ("interrupted", "again", False)
    assert [run["verdict"] for run in left["runs"]] == ["same", "same", None]
    assert left["counts"] == {"same": 2, "different": 0, "failed": 0, "skipped": 0}
