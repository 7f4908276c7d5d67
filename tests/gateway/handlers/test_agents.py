"""Agents and their windows over HTTP."""

import asyncio
import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.agents import ActiveAgent
from tests.api import Api
from tests.gateway.services.test_live import until_state
from tests.gateways import gateway_process
from tests.mongod import Mongod, mongod  # noqa: F401 - a fixture


@pytest.fixture
def agent_id() -> str:
    return f"agent-{uuid.uuid4().hex[:12]}"


async def test_an_agent_is_created_changed_listed_and_deleted(api: Api, agent_id: str) -> None:
    made = await api.post(
        "/api/agents", {"id": agent_id, "name": "客服 Агент", "model": "m-1", "config": {"a.b": {"$c": [1]}}}, 201
    )
    with_an_id = await api.post("/api/agents", {"name": "without an id"}, 201)
    taken = await api.post("/api/agents", {"id": agent_id, "name": "x"}, 409)
    changed = await api.call("PUT", f"/api/agents/{agent_id}", {"name": "new", "config": {"b": 2}})
    listed = await api.get("/api/agents", params={"limit": 1})

    assert made["status"] == "inactive"
    assert (made["name"], made["model"], made["config"]) == ("客服 Агент", "m-1", {"a.b": {"$c": [1]}})
    assert with_an_id["id"].startswith("agent_")
    assert taken["code"] == "agent_exists"
    assert (changed["name"], changed["model"], changed["config"]) == ("new", "m-1", {"b": 2})
    assert [one["id"] for one in listed["agents"]] == [with_an_id["id"]]
    assert listed["total_count"] >= 2
    assert (await api.call("DELETE", f"/api/agents/{agent_id}"))["success"]
    assert (await api.get(f"/api/agents/{agent_id}", 404))["code"] == "agent_not_found"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"),
        ({"name": ""}, "name"),
        ({"name": "x", "id": "über"}, "id"),
        ({"name": "x", "id": "a/b"}, "id"),
        ({"name": "x", "id": "a" * 129}, "id"),
        ({"name": "x", "config": []}, "config"),
        ({"name": "x", "colour": "red"}, "colour"),
        ({"name": "x\0"}, "name"),
    ],
)
async def test_a_field_that_does_not_hold_what_it_must_is_named(api: Api, body: dict[str, object], field: str) -> None:
    refused = await api.post("/api/agents", body, 422)

    assert field in refused["details"]


async def test_an_id_in_a_path_is_taken_as_it_is_and_only_if_it_is_one(api: Api, agent_id: str) -> None:
    await ActiveAgent.of(api, agent_id)

    for other in (agent_id.upper(), f"{agent_id}%00", f"{agent_id}%2f..", f"%2e%2e%2f{agent_id}", f"{agent_id}%20"):
        assert (await api.http.get(f"/api/agents/{other}")).status_code in (404, 422)
    assert (await api.http.get(f"/api/agents/%61{agent_id[1:]}")).json()["id"] == agent_id


async def test_activating_opens_a_window_as_the_reference_shows_it(api: Api, agent_id: str) -> None:
    opened = await api.post(f"/api/v2/agents/{agent_id}/activate", expect=200)
    headers = {"X-Session-Token": opened["session_token"]}
    current = await api.get("/api/v2/session/current", 200, headers=headers)
    agent = await api.get(f"/api/agents/{agent_id}")

    assert (opened["agent_id"], opened["status"], opened["time_remaining_minutes"]) == (agent_id, "active", 360)
    assert opened["created_at"] == opened["started_at"] < opened["expires_at"]
    assert {name: current[name] for name in ("session_id", "agent_id", "expires_at", "status")} == {
        name: opened[name] for name in ("session_id", "agent_id", "expires_at", "status")
    }
    assert 21_590 < current["time_remaining_seconds"] <= 21_600
    assert (agent["status"], agent["window"]["session_id"]) == ("active", opened["session_id"])
    assert "session_token" not in json.dumps([agent, current])


async def test_a_window_is_extended_from_its_expiry_by_either_name_in_query_or_json(api: Api, agent_id: str) -> None:
    agent = await ActiveAgent.of(api, agent_id, duration_hours=1.5)

    spans = [
        await agent.call("POST", "/api/session/extend", extend_hours=6),
        await agent.call("POST", "/api/session/extend", additional_hours=0.5),
        await agent.call("POST", "/api/session/extend", {"extend_hours": 2}),
        await agent.call("POST", "/api/session/extend", {"additional_hours": 1}),
        await agent.call("POST", "/api/session/extend"),
    ]

    assert [round(span["time_remaining_minutes"] / 60, 1) for span in spans] == [7.5, 8, 10, 11, 17]
    for token in (agent.token, *(span["session_token"] for span in spans)):
        assert await api.get("/api/session/current", 200, headers={"X-Session-Token": token})


@pytest.mark.parametrize("hours", ["0", "-1", "nan", "inf", "1e9", "six", ""])
async def test_hours_that_are_none_are_refused_by_name(api: Api, agent_id: str, hours: str) -> None:
    agent = await ActiveAgent.of(api, agent_id)

    activate = await api.post(f"/api/agents/{agent_id}/activate", expect=422, params={"duration_hours": hours})
    extend = await agent.call("POST", "/api/session/extend", expect=422, extend_hours=hours)

    assert "duration_hours" in activate["details"]
    assert "extend_hours" in extend["details"]


async def test_without_an_active_window_nothing_of_an_agent_is_told(api: Api, agent_id: str) -> None:
    first = await ActiveAgent.of(api, agent_id)
    memory = await first.remember("a secret")
    second = await ActiveAgent.of(api, agent_id)
    other = await ActiveAgent.of(api, f"{agent_id}-2")
    calls = [
        ("POST", f"/api/agents/{agent_id}/remember", {"content": "x"}),
        ("POST", f"/api/agents/{agent_id}/recall", {"query": "secret"}),
        ("GET", f"/api/agents/{agent_id}/recall?query=secret", None),
        ("POST", f"/api/agents/{agent_id}/answer", {"question": "secret?"}),
        ("GET", f"/api/agents/{agent_id}/memories", None),
        ("GET", f"/api/agents/{agent_id}/memories/{memory['id']}", None),
        ("PATCH", f"/api/agents/{agent_id}/memories/{memory['id']}", {"content": "y"}),
        ("DELETE", f"/api/agents/{agent_id}/memories/{memory['id']}", None),
        ("GET", "/api/session/current", None),
        ("POST", "/api/session/extend", None),
    ]
    await second.call("POST", "deactivate")

    for token, status, code in (
        (None, 401, "window_required"),
        (first.token, 401, "window_expired"),
        (second.token, 401, "window_expired"),
        (second.token[:-2], 401, "window_invalid"),
        (other.token, 403, "window_of_another_agent"),
    ):
        for method, path, body in calls:
            if status == 403 and "/session/" in path:
                continue
            headers = {"X-Session-Token": token} if token else {}
            refused = await api.http.request(method, path, json=body, headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (status, code), (method, path)
            assert "secret" not in refused.text


async def test_deactivating_ends_the_window_and_may_be_asked_for_again(api: Api, agent_id: str) -> None:
    await ActiveAgent.of(api, agent_id)

    first = await api.post(f"/api/agents/{agent_id}/deactivate", expect=200)
    second = await api.post(f"/api/agents/{agent_id}/deactivate", expect=200)

    assert first["session_id"].startswith("win_")
    assert first["ended_at"] is not None
    assert (second["success"], second["session_id"], second["status"]) == (True, None, "inactive")
    assert (await api.post(f"/api/agents/{agent_id}-none/deactivate", expect=404))["code"] == "agent_not_found"


async def test_a_deleted_agent_takes_its_memories_with_it_and_brings_them_back(api: Api, agent_id: str) -> None:
    agent = await ActiveAgent.of(api, agent_id)
    await agent.remember("blue is the colour")

    await api.call("DELETE", f"/api/agents/{agent_id}")
    refused = await agent.call("POST", "recall", {"query": "blue"}, 401)
    stranger = await ActiveAgent.of(api, agent_id)
    assert await stranger.recall("blue") == []
    assert (await api.post(f"/api/agents/{agent_id}/undelete", expect=409))["code"] == "agent_exists"
    await api.call("DELETE", f"/api/agents/{agent_id}", params={"purge": True})
    await api.post(f"/api/agents/{agent_id}/undelete", expect=200)
    back = await ActiveAgent.of(api, agent_id)

    assert refused["code"] == "window_expired"
    assert await back.recall("blue") == ["blue is the colour"]
    await api.call("DELETE", f"/api/agents/{agent_id}", params={"purge": True})
    assert (await api.post(f"/api/agents/{agent_id}/undelete", expect=404))["code"] == "agent_not_found"


async def test_an_activation_that_is_asked_for_again_under_its_key_gets_the_same_window(
    api: Api, agent_id: str
) -> None:
    headers = {"Idempotency-Key": agent_id}

    first = await api.post(f"/api/agents/{agent_id}/activate", expect=200, headers=headers)
    again = await api.post(f"/api/agents/{agent_id}/activate", expect=200, headers=headers)

    assert first == again


async def test_a_session_names_its_agents_as_they_are_known(api: Api, agent_id: str, session_id: str) -> None:
    await api.post("/api/agents", {"id": agent_id, "name": "Ann", "model": "m"}, 201)

    session = await api.create(session_id=session_id, agent_ids=[agent_id, "unknown", agent_id])

    assert session["agents"] == [
        {"id": agent_id, "name": "Ann", "model": "m"},
        {"id": "unknown", "name": None, "model": None},
    ]


async def test_no_token_is_written_to_the_log_or_the_store_in_the_clear(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data", log_level="DEBUG") as gateway, Api(gateway.url) as api:
        agent = await ActiveAgent.of(api, "bot")
        await agent.remember("something")
        await api.get("/api/session/current", 401, headers={"X-Session-Token": agent.token[:-3]})
        await api.get("/api/session/current", 401, headers={"X-Session-Token": "bad"})
        key = json.loads((tmp_path / "data" / "window-keys.json").read_text())["keys"][0]["secret"]

        assert await gateway.stop() == 0
        kept = b"".join(file.read_bytes() for file in (tmp_path / "data").glob("gateway.sqlite*"))
        for secret in (agent.token, agent.token[:-3], key):
            assert secret not in gateway.log()
            assert secret.encode() not in kept


async def test_sessions_that_a_window_held_sleep_when_it_ends_and_others_do_not(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data", reaper_interval_s=0.1) as gateway, Api(gateway.url) as api:
        await ActiveAgent.of(api, "short", duration_hours=6 / 3600)
        await ActiveAgent.of(api, "long")
        await api.create(session_id="held", agent_ids=["short"])
        await api.create(session_id="busy", agent_ids=["short", "never-active"])
        await api.create(session_id="shared", agent_ids=["short", "long"])
        await api.create(session_id="nobodys", agent_ids=["never-active"])
        await asyncio.gather(*(api.run(one, "x = 1") for one in ("held", "shared", "nobodys")))
        running = asyncio.ensure_future(api.run("busy", "import time; time.sleep(8); x = 2"))

        await until_state(api, "held", "IDLE")
        states = {one["id"]: one["state"] for one in (await api.get("/api/sessions"))["sessions"]}
        answer = await running
        await until_state(api, "busy", "IDLE")

        assert answer["status"] == "ok"
        assert (states["shared"], states["nobodys"]) == ("READY", "READY")
        assert (await api.get("/api/agents/short"))["status"] == "inactive"
        reason = (await api.get("/api/sessions/held/states"))["states"][0]["reason"]
        assert "window" in reason
        assert (await api.run("held", "x"))["result"] == "1"  # woken by somebody: it stays awake
        await api.post("/api/agents/long/deactivate")
        await until_state(api, "shared", "IDLE")
        assert (await api.get("/api/sessions/held"))["state"] == "READY"


async def test_a_rotation_counts_at_once_in_a_gateway_that_runs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    rotate = [sys.executable, "-m", "gateway", "window-keys", "rotate", "--data-dir", str(data)]
    async with gateway_process(data) as gateway, Api(gateway.url) as api:
        agents = [await ActiveAgent.of(api, "before")]
        stopped = asyncio.Event()

        async def load() -> int:
            count = 0
            while not stopped.is_set():
                for agent in agents:
                    await agent.call("GET", "/api/session/current", expect=200)
                    count += 1
            return count

        loading = asyncio.ensure_future(load())
        for number in range(2):
            done = await asyncio.to_thread(subprocess.run, rotate, capture_output=True, text=True, check=True)
            assert "new tokens are signed with" in done.stdout
            agents.append(await ActiveAgent.of(api, f"after-{number}"))
        stopped.set()
        assert await loading > 0

        await asyncio.to_thread(subprocess.run, [*rotate, "--keep", "1"], capture_output=True, check=True)
        for agent in agents:
            assert (await agent.call("GET", "/api/session/current", expect=401))["code"] == "window_invalid"
        await gateway.stop()
        await gateway.start()
        async with Api(gateway.url) as again:
            late = await ActiveAgent.of(again, "late")
            assert await late.call("GET", "/api/session/current", expect=200)


@pytest.mark.external_service
async def test_two_gateways_on_one_mongodb_agree_on_windows(tmp_path: Path, mongod: Mongod) -> None:  # noqa: F811
    with mongod.database() as uri:
        settings = {"store": uri, "window_keys": tmp_path / "keys.json", "reaper_interval_s": 0.1}
        async with (
            gateway_process(tmp_path / "a", **settings) as one,
            gateway_process(tmp_path / "b", **settings) as two,
            Api(one.url) as here,
            Api(two.url) as there,
        ):
            first = await ActiveAgent.of(here, "bot")
            await first.remember("blue is the colour")
            elsewhere = ActiveAgent(there, "bot", first.token)
            assert await elsewhere.recall("blue") == ["blue is the colour"]
            await elsewhere.call("POST", "/api/session/extend", extend_hours=6)
            assert (await first.call("GET", "/api/session/current"))["time_remaining_minutes"] > 700

            activated = await asyncio.gather(*(
                ActiveAgent.of(here if number % 2 else there, "bot") for number in range(12)
            ))  # fmt: skip
            for api in (here, there):
                answers = [
                    (await api.http.get("/api/session/current", headers=agent.headers)).status_code
                    for agent in (first, *activated)
                ]
                assert sorted(answers) == [200] + [401] * 12

            await here.create(session_id="held", agent_ids=["bot"])
            await here.run("held", "1")
            await there.post("/api/agents/bot/deactivate")
            await until_state(here, "held", "IDLE")
            assert (await here.get("/api/agents/bot"))["status"] == "inactive"
