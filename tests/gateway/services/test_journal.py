"""Streams that clients leave, come back to, share, and never read."""

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from gateway.services.journal import Journal
from tests.api import Api, Sse
from tests.gateway.services.test_executions import collected, started, text_of
from tests.gateways import GatewayProcess, gateway_process

MEBI = 2**20
COUNT = "import time\nfor n in range(30): print(n, flush=True); time.sleep(0.05)"
COUNTED = "".join(f"{n}\n" for n in range(30))


async def some(stream: Any, count: int) -> list[Sse]:
    """The first events of a stream."""
    found = []
    async for event in stream:
        found.append(event)
        if len(found) == count:
            break
    return found


async def test_a_client_that_comes_back_twice_misses_nothing(api: Api, session_id: str) -> None:
    async with api.stream(session_id, COUNT) as stream:
        first = await some(stream, 5)
    async with api.stream(session_id, headers={"Last-Event-ID": first[-1].id}) as stream:
        second = await some(stream, 5)
    async with api.stream(session_id, headers={"Last-Event-ID": second[-1].id}) as stream:
        third = await collected(stream)

    events = first + second + third
    assert [event.kind for event in (events[0], events[-1])] == ["start", "done"]
    assert text_of(events) == COUNTED
    assert events[-1].data["stdout"] == COUNTED
    ids = [event.id for event in events]
    assert len(set(ids)) == len(ids)


async def test_a_client_that_comes_back_after_the_end_gets_the_rest(api: Api, session_id: str) -> None:
    async with api.stream(session_id, COUNT) as stream:
        first = await some(stream, 5)
        execution_id = first[0].data["execution_id"]
        async with api.events(f"/api/sessions/{session_id}/executions/{execution_id}/events") as other:
            await started(other, "done")

    async with api.stream(session_id, headers={"Last-Event-ID": first[-1].id}) as stream:
        rest = await collected(stream)

    assert text_of(first + rest) == COUNTED


async def test_two_followers_see_the_same(api: Api, session_id: str) -> None:
    async with api.stream(session_id, COUNT) as stream:
        first = await some(stream, 1)
        path = f"/api/sessions/{session_id}/executions/{first[0].data['execution_id']}/events"
        async with api.events(path) as other:
            mine, theirs = await asyncio.gather(collected(stream), collected(other))

    assert text_of(first + mine) == text_of(theirs) == COUNTED


async def test_a_run_goes_on_while_one_of_two_followers_stays(api: Api, session_id: str) -> None:
    slow = "import time\nfor n in range(50): print(n, flush=True); time.sleep(0.1)"
    async with api.stream(session_id, slow) as stream:
        first = await some(stream, 1)
        path = f"/api/sessions/{session_id}/executions/{first[0].data['execution_id']}/events"
        following = asyncio.ensure_future(_follow(api, path))
        await some(stream, 3)

    events = await following

    assert events[-1].data["status"] == "ok"
    assert text_of(events) == "".join(f"{n}\n" for n in range(50))


async def _follow(api: Api, path: str) -> list[Sse]:
    async with api.events(path) as stream:
        return await collected(stream)


@pytest.mark.parametrize("number", [999, 10**17])
async def test_a_client_that_claims_to_have_seen_the_future_gets_what_comes(
    api: Api, session_id: str, number: int
) -> None:
    async with api.stream(session_id, COUNT) as stream:
        first = await some(stream, 2)
        execution_id = first[0].data["execution_id"]

        async with (
            asyncio.timeout(20),
            api.stream(session_id, headers={"Last-Event-ID": f"{execution_id}:{number}"}) as ahead,
        ):
            events = await collected(ahead)

    assert events[-1].kind == "done"
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"


async def test_a_client_that_never_reads_holds_up_nobody(gateway: GatewayProcess, api: Api, session_id: str) -> None:
    process = psutil.Process(gateway.pid)
    await api.run(session_id, "1")
    before = process.memory_info().rss
    code = "for n in range(2000): print('x' * 100_000, flush=True)"
    sockets = [_send_and_never_read(gateway.url, f"{session_id}-{n}", code) for n in range(3)]
    try:
        for n in range(3):
            async with asyncio.timeout(60):
                answer = await api.run(f"{session_id}-{n}", "1 + 1")
            assert answer["result"] == "2"
        began = time.perf_counter()
        await api.run(session_id, "1 + 1")
        assert time.perf_counter() - began < 1
        assert process.memory_info().rss - before < 150 * MEBI
        history = (await api.get(f"/api/sessions/{session_id}-0/history"))["history"]
        assert [one["status"] for one in history] == ["ok", "ok"]
    finally:
        for one in sockets:
            one.close()


def _send_and_never_read(url: str, session_id: str, code: str) -> socket.socket:
    address = urlsplit(url)
    assert address.hostname is not None
    one = socket.socket()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    one.connect((address.hostname, address.port))
    body = json.dumps({"code": code}).encode()
    head = [
        f"POST /api/sessions/{session_id}/stream HTTP/1.1",
        *(f"Host: {address.netloc}", "Content-Type: application/json", f"Content-Length: {len(body)}", "", ""),
    ]
    one.sendall("\r\n".join(head).encode() + body)
    return one


async def test_a_session_that_was_taken_up_anew_numbers_its_events_anew_and_says_so(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as first, Api(first.url) as api:
        await api.run("kept", "1")
        async with api.events("/api/sessions/kept/events") as stream:
            [seen, *_] = await some(stream, 3)
    async with gateway_process(tmp_path / "data") as second, Api(second.url) as api:
        await api.run("kept", "print('anew')")

        async with api.events("/api/sessions/kept/events", headers={"Last-Event-ID": seen.id}) as stream:
            missed = await some(stream, 1)
            await started(stream)
        async with api.events("/api/sessions/kept/events", headers={"Last-Event-ID": missed[0].id}) as stream:
            again = await some(stream, 1)

    assert [(event.kind, event.data) for event in missed] == [("missed", {"count": None})]
    assert again[0].kind == "state"
    assert again[0].id.endswith(":1")


async def test_the_id_of_another_run_does_not_hide_events(api: Api, session_id: str) -> None:
    run = await api.post(f"/api/sessions/{session_id}/run", {"code": COUNT, "background": True})
    path = f"/api/sessions/{session_id}/executions/{run['execution_id']}/events"

    async with api.events(path, headers={"Last-Event-ID": "another:5"}) as stream:
        events = await collected(stream)

    assert text_of(events) == COUNTED


async def test_the_events_of_a_purged_session_are_not_those_of_its_namesake(api: Api, session_id: str) -> None:
    async with api.stream(session_id, "print('secret')") as stream:
        events = await collected(stream)
    path = f"/api/sessions/{session_id}"
    await api.call("DELETE", f"{path}?purge=true")
    await api.create(id=session_id)

    followed = await api.http.get(f"{path}/executions/{events[0].data['execution_id']}/events")
    resumed = await api.http.post(f"{path}/stream", headers={"Last-Event-ID": events[0].id})

    assert (followed.status_code, resumed.status_code) == (404, 404)
    assert "secret" not in followed.text + resumed.text


async def test_methods_that_nobody_knows_are_counted_together(gateway: GatewayProcess, api: Api) -> None:
    for method in ("FOO", "FOO2"):
        await api.http.request(method, "/api/health")

    counted = (await api.http.get("/metrics")).text

    assert "FOO" not in counted
    assert 'method="other"' in counted


async def test_who_comes_too_late_is_told_how_much_was_missed() -> None:
    journal = Journal(limit_bytes=1000)
    for n in range(20):
        journal.add("stdout", n, 100)
    journal.close()

    entries = [entry async for entry in journal.follow(3)]

    assert (entries[0].kind, entries[0].data) == ("missed", {"count": 12})
    assert [entry.data for entry in entries[1:]] == [15, 16, 17, 18, 19]
