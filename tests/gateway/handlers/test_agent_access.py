"""Whose agents are whose, and what an agent's window narrows its caller to."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass

import httpx2
import pytest
import pytest_asyncio

from tests.api import Api
from tests.keyed import keyed_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class World:
    root: Api
    ann: Api
    bob: Api
    vic: Api  # a viewer's key of ann's name would be ann's: this one has made nothing
    bot: Api  # the key of the agent `bot`


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        keyed = await stack.enter_async_context(keyed_gateway(tmp_path_factory.mktemp("agents") / "data"))
        apis = []
        for name, role in (("ann", "user"), ("bob", "user"), ("vic", "viewer"), ("bot", "agent")):
            key = (await keyed.key(name, role=role))["key"]
            apis.append(await stack.enter_async_context(keyed.api(key)))
        yield World(keyed.root, *apis)


async def test_an_agent_is_there_for_who_made_it_for_itself_and_for_admins(world: World) -> None:
    await world.ann.post("/api/agents", {"id": "anns", "name": "Ann's"}, 201)

    for api, status in ((world.ann, 200), (world.root, 200), (world.bob, 404), (world.vic, 404), (world.bot, 404)):
        await api.get("/api/agents/anns", status)
        await api.call("PUT", "/api/agents/anns", {"name": "Changed"}, status)
        await api.call("POST", "/api/agents/anns/deactivate", {}, status)
    assert [one["id"] for one in (await world.ann.get("/api/agents"))["agents"]] == ["anns"]
    assert (await world.bob.get("/api/agents"))["total_count"] == 0


async def test_nobody_activates_what_is_anothers_and_a_viewer_nothing(world: World) -> None:
    await world.ann.post("/api/agents/of-ann/activate", {}, 200)

    await world.bob.post("/api/agents/of-ann/activate", {}, 404)
    await world.vic.post("/api/agents/of-nobody/activate", {}, 403)
    await world.bot.post("/api/agents/of-nobody/activate", {}, 404)
    await world.bot.post("/api/agents/bot/activate", {}, 200)


async def test_a_deleted_agent_comes_back_for_who_made_it_and_nobody_else_learns_of_it(world: World) -> None:
    for name in ("lost", "taken"):
        await world.ann.post("/api/agents", {"id": name, "name": "Ann's"}, 201)
        await world.ann.call("DELETE", f"/api/agents/{name}")
    await world.bob.post("/api/agents", {"id": "taken", "name": "Bob's"}, 201)

    for api, status in ((world.bob, 404), (world.bot, 404), (world.vic, 403), (world.ann, 200), (world.ann, 409)):
        await api.post("/api/agents/lost/undelete", expect=status)
    await world.ann.post("/api/agents/taken/undelete", expect=409)
    await world.bob.call("DELETE", "/api/agents/taken")
    bobs = await world.bob.post("/api/agents/taken/undelete")
    await world.bob.call("DELETE", "/api/agents/taken")

    assert (await world.ann.post("/api/agents/taken/undelete"))["name"] == "Ann's"
    assert bobs["name"] == "Bob's"


async def test_a_window_token_is_of_no_use_to_another_key(world: World) -> None:
    token = (await world.ann.post("/api/agents/guarded/activate", {}, 200))["session_token"]
    inside = {"X-Session-Token": token}

    assert (await world.bob.http.get("/api/session/current", headers=inside)).status_code == 404
    assert (await world.bob.http.post("/api/session/extend", headers=inside)).status_code == 404
    assert (await world.bob.http.get("/api/agents/guarded/memories", headers=inside)).status_code == 404
    assert (await world.bob.http.get("/api/sessions", headers=inside)).status_code == 404
    assert (await world.ann.http.get("/api/session/current", headers=inside)).status_code == 200


async def test_inside_a_window_only_the_agents_sessions_are_there(world: World) -> None:
    await world.ann.create(session_id="anns-own")
    await world.ann.create(session_id="anns-assigned", agent_ids=["inner"])
    token = (await world.ann.post("/api/agents/inner/activate", {}, 200))["session_token"]
    inside = {"X-Session-Token": token}
    code = {"code": "1 + 1"}

    assert (await world.ann.http.post("/api/sessions/anns-own/run", json=code, headers=inside)).status_code == 404
    assert (await world.ann.http.post("/api/sessions/anns-assigned/run", json=code, headers=inside)).json()[
        "result"
    ] == "2"
    made = await world.ann.http.post("/api/sessions", json={"session_id": "made-inside"}, headers=inside)
    assert made.json()["created_by"] == "agent:inner"
    listed = (await world.ann.http.get("/api/sessions", headers=inside)).json()["sessions"]
    assert {one["id"] for one in listed} == {"anns-assigned", "made-inside"}

    events = world.ann.http.stream("GET", "/api/sessions/anns-assigned/events", headers=inside, timeout=30)
    async with events as answer:
        assert answer.status_code == 200
        await world.ann.post("/api/agents/inner/deactivate", {}, 200)
        with suppress(httpx2.ReadError, httpx2.RemoteProtocolError):  # cut off, in whatever way
            async for _ in answer.aiter_bytes():
                pass
    over = await world.ann.http.post("/api/sessions/anns-assigned/run", json=code, headers=inside)
    assert (over.status_code, over.json()["code"]) == (401, "window_expired")
    assert (await world.ann.run("anns-own", "1 + 1"))["result"] == "2"
