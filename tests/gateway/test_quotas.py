"""Kernels, processor seconds and disk: quotas of keys and settings, as those meet them who run code."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.api import Api
from tests.front_ends import front_end
from tests.keyed import Keyed, keyed_gateway

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

BURN = "import time\nuntil = time.process_time() + {seconds}\nwhile time.process_time() < until: pass"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Keyed]:
    folder = tmp_path_factory.mktemp("quotas") / "data"
    async with keyed_gateway(folder, quota_kernels=2, pool_size=2) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def root(keyed: Keyed) -> AsyncIterator[Api]:
    yield keyed.root
    await keyed.root.call("DELETE", "/api/sessions")


async def test_so_many_kernels_of_one_owner_run_by_whatever_way_they_start(keyed: Keyed, root: Api) -> None:
    alice, bob = await keyed.key("alice"), await keyed.key("bob", most_kernels=1)
    async with keyed.api(alice["key"]) as api, keyed.api(bob["key"]) as bobs:
        await bobs.run("bobs", "1")
        await bobs.post("/api/sessions/more/run", {"code": "1"}, 429)
        for name in ("a", "b"):
            await api.run(name, f"x = {name!r}")
        refused = [
            await api.post("/api/sessions/c/run", {"code": "1"}, 429),
            await api.post("/api/sessions/a/duplicate", {"new_id": "d"}, 429),
            await api.post("/api/execute", {"language": "python", "code": "1"}, 429),
        ]
        kernel = (await api.get("/api/sessions/c"))["jupyter"]["kernel_id"]
        async with front_end(keyed.url, kernel, query=f"&token={alice['key']}") as page:
            cell, _ = await page.run("1")
        waits = await api.get("/api/sessions/c")
        await api.post("/api/sessions/a/hibernate")
        fine = await api.run("c", "6 * 7")
        again = await api.post("/api/sessions/a/run", {"code": "x"}, 429)
        await api.call("DELETE", "/api/sessions/b")
        back = await api.run("a", "x")

    for one in (*refused, again):
        assert (one["code"], one["details"]) == ("quota_exceeded", {"quota": "kernels", "limit": 2})
        assert one["error"] == "'alice' may have 2 kernels at once: one has to sleep first."
    assert cell.content["ename"] == "QuotaExceeded"
    assert waits["state"] == "INIT"
    assert (fine["result"], back["result"]) == ("42", "'a'")


async def test_who_has_used_its_processor_seconds_runs_nothing_more_today(keyed: Keyed, root: Api) -> None:
    alice = await keyed.key("cpu", cpu_seconds_per_day=1.5)
    async with keyed.api(alice["key"]) as api:
        await api.create(id="s")
        await api.run("s", BURN.format(seconds=0.3))
        async with asyncio.timeout(30):
            ended = await api.run("s", BURN.format(seconds=60))
        refused = await api.http.post("/api/sessions/s/run", json={"code": "1"})
        elsewhere = await api.post("/api/execute", {"language": "python", "code": "1"}, 429)
        kept = await api.get("/api/sessions/s/executions")

    assert (ended["status"], ended["error"]["ename"]) == ("interrupted", "QuotaExceeded")
    assert "has used the 1.5 seconds of processors" in ended["error"]["evalue"]
    assert refused.status_code == 429
    assert refused.json()["details"] == {"quota": "cpu_seconds_per_day", "limit": 1.5}
    assert 1 <= int(refused.headers["Retry-After"]) <= 24 * 3600
    assert elsewhere["code"] == "quota_exceeded"
    assert kept["executions"][0]["error"]["ename"] == "QuotaExceeded"


async def test_a_run_of_another_in_ones_session_is_ones_own_use(keyed: Keyed, root: Api) -> None:
    owner, guest = await keyed.key("owner", cpu_seconds_per_day=0.5), await keyed.key("guest")
    async with keyed.api(owner["key"]) as api, keyed.api(guest["key"]) as guests:
        await api.create(id="s")
        await api.call("PUT", "/api/sessions/s/grants", {"guest": "run"})
        await guests.run("s", BURN.format(seconds=0.6))

        refused = await guests.post("/api/sessions/s/run", {"code": "1"}, 429)
        fine = await guests.run("own", "1")

    assert "'owner' has used" in refused["error"]
    assert fine["status"] == "ok"


async def test_who_keeps_as_many_bytes_as_it_may_brings_none_in_until_some_have_gone(keyed: Keyed, root: Api) -> None:
    alice = await keyed.key("disk", disk_bytes=100_000)
    async with keyed.api(alice["key"]) as api:
        await api.create(id="a")
        await api.call("PUT", "/api/sessions/a/files/big", content=b"x" * 90_000)
        await api.create(id="b")
        too_large = await api.http.put("/api/sessions/b/files/more", content=b"x" * 20_000)
        await api.call("PUT", "/api/sessions/b/files/small", content=b"x" * 10_000)
        refused = [
            await api.call("PUT", "/api/sessions/b/files/one", content=b"x", expect=429),
            await api.post("/api/sessions/b/run", {"code": "1"}, 429),
            await api.post("/api/sessions/a/duplicate", {}, 429),
            await api.call(
                "PUT", "/jupyter/api/contents/b/one", {"type": "file", "format": "text", "content": "x"}, 429
            ),
        ]
        read = await api.http.get("/api/sessions/a/files/big")
        await api.call("DELETE", "/api/sessions/a/files/big")
        fine = await api.run("b", "open('mine', 'w').write('x' * 1000)")

    assert too_large.status_code == 413
    for one in refused[:3]:
        assert (one["code"], one["details"]) == ("quota_exceeded", {"quota": "disk_bytes", "limit": 100_000})
    assert "may keep 100,000 bytes of files" in refused[3]["message"]
    assert (len(read.content), fine["result"]) == (90_000, "1000")
