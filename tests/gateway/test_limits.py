"""Rates, quotas, and what an admin may do with what was deleted."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.front_ends import front_end
from tests.keyed import Keyed, keyed_gateway

pytestmark = pytest.mark.slow


@pytest.fixture
async def keyed(tmp_path: Path) -> AsyncIterator[Keyed]:
    async with keyed_gateway(
        tmp_path / "data", quota_sessions=2, session_runs_per_second=0.01, session_runs_burst=3
    ) as started:
        yield started


async def test_a_key_has_a_rate_of_its_own_and_is_told_when_to_come_again(keyed: Keyed) -> None:
    slow = await keyed.key("alice", requests_per_second=0.01, burst=2)
    fast = await keyed.key("alice")
    async with keyed.api(slow["key"]) as api, keyed.api(fast["key"]) as other:
        answers = [await api.http.get("/api/sessions") for _ in range(4)]
        await other.get("/api/sessions")

    assert [one.status_code for one in answers] == [200, 200, 429, 429]
    assert answers[2].json()["code"] == "rate_limited"
    assert 50 <= int(answers[2].headers["Retry-After"]) <= 100
    assert (slow["requests_per_second"], slow["burst"], fast["burst"]) == (0.01, 2, None)


async def test_a_session_takes_so_many_runs_whoever_asks_and_by_whatever_way(keyed: Keyed) -> None:
    made = await keyed.root.create(id="s")
    for _ in range(2):
        await keyed.root.run("s", "1")
    async with front_end(keyed.url, made["jupyter"]["kernel_id"], query=f"&token={keyed.root_key}") as page:
        fine, _ = await page.run("2")
        refused, _ = await page.run("3")
    answer = await keyed.root.http.post("/api/sessions/s/run", json={"code": "4"})

    assert (fine.content["status"], refused.content["ename"]) == ("ok", "RateLimited")
    assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")


async def test_a_caller_owns_as_many_sessions_as_its_quota_by_whatever_way_they_are_made(keyed: Keyed) -> None:
    alice, bob = await keyed.key("alice"), await keyed.key("bob", most_sessions=1)
    async with keyed.api(alice["key"]) as api, keyed.api(bob["key"]) as bobs:
        await bobs.create(id="bobs")
        await bobs.post("/api/sessions", {"id": "more"}, 429)
        for name in ("a", "b"):
            await api.create(id=name)
        refused = [
            await api.post("/api/sessions", {"id": "c"}, 429),
            await api.post("/api/sessions/c/run", {"code": "1"}, 429),
            await api.post("/api/sessions/a/duplicate", {"new_id": "c"}, 429),
            await api.post("/api/execute", {"language": "python", "code": "1"}, 429),
            await api.post("/jupyter/api/kernels", {}, 429),
        ]
        await api.call("DELETE", "/api/sessions/a")
        await api.create(id="c")
        refused.append(await api.post("/api/sessions/a/undelete", expect=429))

    assert {one["code"] for one in refused} == {"quota_exceeded"}
    assert refused[0]["details"] == {"quota": "sessions", "limit": 2}


async def test_an_admin_reads_what_was_deleted_and_purges_it_which_leaves_its_line(keyed: Keyed) -> None:
    alice, root = await keyed.key("alice"), keyed.root
    async with keyed.api(alice["key"]) as api:
        await api.run("s", "6 * 7")
        await api.call("DELETE", "/api/sessions/s")
        await api.get("/api/sessions/s/history?include_deleted=true", 404)
        await api.call("DELETE", "/api/sessions/s?purge=true", expect=404)
    await root.get("/api/sessions/s/history", 404)
    history = (await root.get("/api/sessions/s/history?include_deleted=true"))["history"]
    await root.call("DELETE", "/api/sessions/s?purge=true")
    await root.get("/api/sessions/s/history?include_deleted=true", 404)
    await root.post("/api/sessions/s/undelete", expect=410)

    noted = (await root.get("/api/audit?session_id=s&actor=root"))["audit"]
    assert [(one["code"], one["result"]) for one in history] == [("6 * 7", "42")]
    assert {"history.read", "session.purge"} <= {one["action"] for one in noted}
