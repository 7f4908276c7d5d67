"""The audit log of a gateway that runs: every change and every run is in it, and no code, output or secret."""

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.front_ends import front_end
from tests.gateways import gateway_process
from tests.keyed import Keyed, command, keyed_gateway

SECRET = "planted-7f3a91"


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[Keyed]:
    async with keyed_gateway(tmp_path / "data", log_level="INFO") as started:
        yield started


async def lines(api: Api, **wanted: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await api.get("/api/audit", params=wanted))["audit"]
    return found


@pytest.mark.slow
async def test_every_change_and_every_run_tells_who_what_from_where_and_how_it_ended(keyed: Keyed) -> None:
    alice = await keyed.key("alice")
    async with keyed.api(alice["key"]) as api:
        made = await api.create(id="s")
        given = {"X-Request-Id": "asked-by-alice"}
        await api.post("/api/sessions/s/run", {"code": "1/0"}, headers=given)
        await api.post("/api/sessions/s/run", {"code": "1", "background": True}, 202)
        kernel_id = made["jupyter"]["kernel_id"]
        async with front_end(api.url, kernel_id, query=f"&token={alice['key']}") as page:
            reply, _ = await page.run("x = 2")
            silent, _ = await page.run("x = 3", silent=True)
        await api.call("DELETE", "/api/sessions/s?purge=true")
        await api.get("/api/audit", 403)

    runs = await lines(keyed.root, action="run", session_id="s")
    cell, first = runs[1], runs[-1]
    assert [one["outcome"] for one in runs] == ["ok", "ok", "ok", "error"]
    assert {one["actor"] for one in runs} == {"alice"}
    assert {one["key_id"] for one in runs} == {alice["id"]}
    assert all(one["remote"] == "127.0.0.1" and one["request_id"] for one in runs)
    assert (first["request_id"], cell["details"]["source"]) == ("asked-by-alice", "jupyter")
    assert [one.content["status"] for one in (reply, silent)] == ["ok", "ok"]
    of_request = await lines(keyed.root, request_id="asked-by-alice")
    assert {one["action"] for one in of_request} == {"run", "POST /api/sessions/{session_id}/run"}
    actions = [one["action"] for one in await lines(keyed.root, session_id="s")]
    assert {"session.create", "session.delete", "session.purge", "DELETE /api/sessions/{session_id}"} <= set(actions)
    assert "GET /jupyter/api/kernels/{kernel_id}/channels" in actions
    (key_line,) = await lines(keyed.root, action="POST /api/keys")
    assert key_line["details"] == {"made_key_id": alice["id"], "name": "alice", "role": "user"}


@pytest.mark.slow
async def test_what_is_exported_is_the_whole_chain_and_a_change_of_it_is_named(keyed: Keyed) -> None:
    data = keyed.gateway.data_dir
    await keyed.root.create(id="s")
    streamed = await keyed.root.http.get("/api/audit", headers={"Accept": "application/jsonl"})
    named = await keyed.root.http.get("/api/audit", params={"format": "jsonl", "action": "session.create"})

    _, exported, _ = await command("audit", "export", "--data-dir", str(data))
    code, out, _ = await command("audit", "verify", "--data-dir", str(data))
    head = out.split("Head: ")[1].strip()
    with closing(sqlite3.connect(data / "gateway.sqlite")) as connection, connection:
        connection.execute("DROP TRIGGER audit_is_not_changed")
        connection.execute(
            "UPDATE audit SET line = json_set(line, '$.actor', 'mallory')"
            " WHERE json_extract(line, '$.action') = 'session.create'"
        )
    bad, _, words = await command("audit", "verify", "--data-dir", str(data), "--expect", head)

    numbers = [json.loads(line)["number"] for line in streamed.text.splitlines()]
    assert streamed.headers["Content-Type"] == "application/jsonl"
    assert numbers == list(range(1, len(numbers) + 1))
    assert exported.startswith(streamed.text)
    (create,) = (json.loads(line) for line in named.text.splitlines())
    assert (code, bad) == (0, 1)
    assert f"Line {create['number']} (id '{create['id']}'" in words
    assert "was changed" in words


@pytest.mark.slow
async def test_no_code_output_or_secret_is_in_logs_or_audit(keyed: Keyed) -> None:
    """All routes are driven with secrets wherever a caller may put something."""
    root, planted = keyed.root, {"note": SECRET}
    await root.create(id="s", data=planted, metadata=planted, env={"TOKEN": SECRET}, starting_prompt=SECRET)
    await root.run("s", f"v = '{SECRET}'; print(v); v", env={"MORE": SECRET})
    await root.run("s", f"raise ValueError('{SECRET}')")
    await root.http.put("/api/sessions/s/files/a.txt", content=SECRET.encode())
    document = json.loads((await root.http.get("/api/openapi.json")).text)
    for path, operations in document["paths"].items():
        filled = path.replace("{session_id}", "s").replace("{kernel_id}", "none").replace("{", "").replace("}", "")
        for method in operations:
            if method in ("parameters", "delete") or filled.endswith("/events"):
                continue
            body = {"code": SECRET, "value": SECRET, "text": SECRET, "name": SECRET, "content": SECRET}
            reads = method in ("get", "head")
            await root.http.request(method, filled, params={"token": SECRET}, json=None if reads else body)
    keys = [await keyed.key("bob"), await root.post(f"/api/keys/{(await keyed.key('carol'))['id']}/rotate")]
    await root.http.get("/api/sessions", headers={"Authorization": f"Bearer {SECRET}"})
    exported = (await root.http.get("/api/audit", params={"format": "jsonl"})).text

    told = keyed.gateway.log() + exported
    assert len(exported.splitlines()) > 50
    for secret in (SECRET, keyed.root_key, *(key["key"] for key in keys)):
        assert secret not in told


@pytest.mark.slow
async def test_what_the_gateway_does_by_itself_is_told(tmp_path: Path) -> None:
    quick = {"autosave_quiet_s": 0, "snapshots_kept": 1}
    async with gateway_process(tmp_path / "data", **quick) as gateway, Api(gateway.url) as api:
        await api.create(id="s", waiting_timeout_seconds=1)
        async with api.events("/api/sessions/s/events") as events:
            await api.run("s", "1")
            async for event in events:
                if event.kind == "state" and event.data["after"] == "IDLE":
                    break
        while not (slept := await lines(api, action="session.hibernate", session_id="s")):
            pass
        await api.create(id="t")
        await api.run("t", "x = 1")
        while not (saved := await lines(api, action="session.autosave", session_id="t")):
            pass
        first = await api.post("/api/sessions/t/snapshots", {"name": "first"}, 201)
        await api.post("/api/sessions/t/snapshots", {"name": "second"}, 201)
        while not (removed := await lines(api, action="snapshot.remove", session_id="t")):
            pass

    assert [(one["actor"], one["remote"]) for one in (*slept, *saved, *removed)] == [("gateway", None)] * 3
    assert saved[0]["details"]["snapshot_id"].startswith("snap_")
    assert (removed[0]["details"]["snapshot_id"], removed[0]["details"]["name"]) == (first["id"], "first")


async def test_what_front_ends_do_to_widgets_is_told_at_once_and_then_by_its_number(keyed: Keyed) -> None:
    kernel = (await keyed.root.create(id="widgets"))["jupyter"]["kernel_id"]
    async with front_end(keyed.url, kernel, query=f"&token={keyed.root_key}") as page:
        for _ in range(5):
            await page.send("comm_msg", {"comm_id": "none", "data": {}})
        await page.run("1")
        while not (told := await lines(keyed.root, action="comm_msg", session_id="widgets")):
            pass

    assert [(one["actor"], one["details"]["count"]) for one in told] == [("root", 1)]
