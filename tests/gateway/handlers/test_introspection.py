"""Looking inside a session over HTTP: variables, completion, inspection, logs and metrics; also while a cell runs."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.api import Api


@asynccontextmanager
async def busy(api: Api, session_id: str) -> AsyncIterator[None]:
    """A session whose cell runs as long as the block."""
    async with api.stream(session_id, "import time\nprint('on', flush=True)\nwhile True: time.sleep(0.05)") as events:
        async for event in events:
            if event.kind == "stdout":
                break
        yield
        await api.post(f"/api/sessions/{session_id}/interrupt")


async def variables(api: Api, session_id: str) -> dict[str, Any]:
    found = await api.get(f"/api/sessions/{session_id}/variables")
    assert found["count"] == len(found["variables"])
    return {one["name"]: one for one in found["variables"]}


async def test_variables_are_listed_with_what_they_are(api: Api, session_id: str) -> None:
    await api.run(session_id, "import math\na = 42\nb = [1, 2, 3]\nc = 'x' * 10_000\n_hidden = 1\ndef f(): pass")

    found = await variables(api, session_id)

    assert {"a", "b", "c", "f"} <= set(found)
    assert not {"_hidden", "In", "Out", "exit"} & set(found)
    assert (found["a"]["type"], found["a"]["preview"]) == ("int", "42")
    assert (found["b"]["type"], found["b"]["shape"]) == ("list", [3])
    assert found["c"]["size_bytes"] > 10_000
    assert len(found["c"]["preview"]) <= 300


async def test_variables_come_in_pages(api: Api, session_id: str) -> None:
    await api.run(session_id, "for n in range(25): globals()[f'v{n:02}'] = n\ndel n")

    page = await api.get(f"/api/sessions/{session_id}/variables?offset=10&limit=5")

    assert [one["name"] for one in page["variables"]] == ["v10", "v11", "v12", "v13", "v14"]
    assert page["total_count"] == 25


@pytest.mark.parametrize("value", [1, 1.5, "text", "é🙂", None, True, [1, [2]], {"a": {"b": [None]}}, 2**53, ""])
async def test_a_variable_is_set_and_read_as_json(api: Api, session_id: str, value: Any) -> None:
    url = f"/api/sessions/{session_id}/variables/x"
    await api.create(id=session_id)

    await api.call("PUT", url, {"value": value})

    assert (await api.get(url))["value"] == value
    assert (await api.run(session_id, "import json; print(json.dumps(x))"))["stdout"] == json.dumps(value) + "\n"


async def test_a_deleted_variable_is_gone(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}/variables/x"
    await api.run(session_id, "x = 1")

    await api.call("DELETE", url)

    assert (await api.get(url, 404))["code"] == "variable_not_found"
    assert (await api.call("DELETE", url, expect=404))["code"] == "variable_not_found"
    assert (await api.run(session_id, "x"))["error"]["ename"] == "NameError"


@pytest.mark.parametrize("name", ["a%20b", "1a", "a%00", "class", "a.b", "%22", "__builtins__"])
async def test_what_can_be_no_name_is_refused(api: Api, session_id: str, name: str) -> None:
    url = f"/api/sessions/{session_id}/variables/{name}"
    await api.create(id=session_id)
    before = await variables(api, session_id)

    refusal = await api.call("PUT", url, {"value": 1}, 422)

    assert set(refusal["details"]) == {"name"}
    assert await variables(api, session_id) == before


async def test_a_long_list_comes_in_pages(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = list(range(1000))")

    page = await api.get(f"/api/sessions/{session_id}/variables/x?offset=500&limit=3")

    assert page["value"] == [500, 501, 502]
    assert page["total"] == 1000


async def test_looking_at_variables_runs_no_code_of_the_user_that_fails(api: Api, session_id: str) -> None:
    await api.run(session_id, "class Bad:\n    def __repr__(self): raise SystemExit(3)\nbad = Bad()\nok = 1")

    found = await variables(api, session_id)

    assert {"bad", "ok"} <= set(found)
    assert (await api.get(f"/api/sessions/{session_id}"))["state"] == "READY"


async def test_variables_are_read_and_set_while_a_cell_runs(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 1")

    async with busy(api, session_id):
        found = await variables(api, session_id)
        await api.call("PUT", f"/api/sessions/{session_id}/variables/y", {"value": 2})
        assert (await api.get(f"/api/sessions/{session_id}"))["state"] == "BUSY"

    assert "x" in found
    assert (await api.run(session_id, "x + y"))["result"] == "3"


async def test_code_is_completed_inspected_and_found_complete(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}"
    await api.run(session_id, "import math\nsome_long_name = 1")

    completed = await api.post(f"{url}/complete", {"code": "some_lo"})
    at_cursor = await api.post(f"{url}/complete", {"code": "🙂; some_lo + 1", "cursor_pos": 10})
    inspected = await api.post(f"{url}/inspect", {"code": "math.sqrt", "detail_level": 0})
    unknown = await api.post(f"{url}/inspect", {"code": "no_such_name"})
    complete = await api.post(f"{url}/is_complete", {"code": "x = 1"})
    incomplete = await api.post(f"{url}/is_complete", {"code": "for x in y:"})
    invalid = await api.post(f"{url}/is_complete", {"code": "x ="})

    assert "some_long_name" in completed["matches"]
    assert (completed["cursor_start"], completed["cursor_end"]) == (0, 7)
    assert "some_long_name" in at_cursor["matches"]
    assert inspected["found"] is True
    assert "square root" in inspected["data"]["text/plain"]
    assert unknown["found"] is False
    assert [one["status"] for one in (complete, incomplete, invalid)] == ["complete", "incomplete", "invalid"]


async def test_that_is_answered_while_a_cell_runs(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}"
    await api.run(session_id, "some_long_name = 1")

    async with busy(api, session_id):
        completed = await api.post(f"{url}/complete", {"code": "some_lo"})
        inspected = await api.post(f"{url}/inspect", {"code": "some_long_name"})
        complete = await api.post(f"{url}/is_complete", {"code": "1"})
        assert (await api.get(url))["state"] == "BUSY"

    assert "some_long_name" in completed["matches"]
    assert inspected["found"] is True
    assert complete["status"] == "complete"


@pytest.mark.parametrize("call", ["complete", "inspect"])
@pytest.mark.parametrize("cursor", [-1, 4, 10**30, "1"])
async def test_a_cursor_that_is_not_in_the_code_is_refused(api: Api, session_id: str, call: str, cursor: Any) -> None:
    await api.create(id=session_id)

    refusal = await api.post(f"/api/sessions/{session_id}/{call}", {"code": "abc", "cursor_pos": cursor}, 422)

    assert set(refusal["details"]) == {"cursor_pos"}


async def test_a_kernel_that_sleeps_is_woken_to_answer(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 1")
    await api.post(f"/api/sessions/{session_id}/hibernate")

    answer = await api.post(f"/api/sessions/{session_id}/is_complete", {"code": "1"})

    assert answer["status"] == "complete"


async def test_the_kernels_own_output_is_in_its_log(api: Api, session_id: str) -> None:
    await api.run(
        session_id, "log = get_ipython().kernel.log; log.error('from the depths'); log.error('x' * 2000 + 'last')"
    )

    whole = await api.get(f"/api/sessions/{session_id}/logs")
    end = await api.get(f"/api/sessions/{session_id}/logs?limit_bytes=100")
    setup = await api.get(f"/api/sessions/{session_id}/logs?source=setup")

    assert whole["source"] == "kernel"
    assert "from the depths" in whole["text"]
    assert len(end["text"].encode()) <= 100
    assert "last" in end["text"]
    assert (setup["text"], setup["setup_status"]) == ("", None)


async def test_what_a_session_uses_is_measured(api: Api, session_id: str) -> None:
    await api.run(
        session_id, "held = bytearray(50_000_000)\nopen('file', 'w').write('x' * 1000)\nsum(range(3_000_000))"
    )

    used = await api.get(f"/api/sessions/{session_id}/metrics")
    await api.post(f"/api/sessions/{session_id}/hibernate")
    asleep = await api.get(f"/api/sessions/{session_id}/metrics")

    assert used["memory_bytes"] > 50_000_000
    assert used["disk_bytes"] == 1000
    assert used["cpu_seconds"] > 0
    assert used["uptime_s"] > 0
    assert (used["run_count"], used["process_count"] >= 1) == (1, True)
    assert (asleep["memory_bytes"], asleep["process_count"], asleep["disk_bytes"]) == (0, 0, 1000)


async def test_the_gateway_tells_that_it_lives_is_ready_and_what_it_counts(api: Api, session_id: str) -> None:
    await api.run(session_id, "1")

    health, ready = await api.get("/api/health"), await api.get("/api/ready")
    kernels = await api.get("/api/kernels")
    counted = (await api.http.get("/metrics")).text

    assert health["status"] == "ok"
    assert (ready["status"], ready["store"], ready["kernels"]) == ("ready", "ok", "ok")
    assert ready["live_kernels"] >= 1
    assert kernels["kernels"]["python3"]["language"] == "python"
    assert "# TYPE" in counted
