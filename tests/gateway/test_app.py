"""The gateway as a process: how it stops, what it leaves behind when it is killed, and that it leaks nothing."""

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.api import Api
from tests.gateway.services.test_executions import marked, marker, started  # noqa: F401 - a fixture among them
from tests.gateways import GatewayProcess, gateway_process, keepers_of
from tests.gateways import kernels_of as kernels_below

MEBI = 2**20

BUSY = """
import subprocess, sys
print('go', flush=True)
subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)', {marker!r}])
"""


def kernels_of(gateway: GatewayProcess) -> list[psutil.Process]:
    return kernels_below(gateway.data_dir)


def runtime_folder(gateway: GatewayProcess) -> Path:
    """Where the sockets of its kernels are."""
    (announcement,) = (gateway.data_dir / "keepers").glob("*.json")
    return Path(json.loads(announcement.read_text())["runtime"])


async def all_gone(processes: list[psutil.Process], timeout_s: float = 15) -> None:
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout_s)
    assert alive == []


async def test_sigterm_lets_a_run_end_within_the_grace_time(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        async with api.stream("one", "print('go'); import time; time.sleep(2); 'whole'") as stream:
            await started(stream)
            kernels = kernels_of(gateway)

            gateway.signal(signal.SIGTERM)
            done = await started(stream, "done")

        assert (done.data["status"], done.data["result"]) == ("ok", "'whole'")
        assert await gateway.ended() == 0
        await all_gone(kernels)


async def test_sigterm_interrupts_a_run_after_the_grace_time(tmp_path: Path, marker: str) -> None:  # noqa: F811
    async with gateway_process(tmp_path / "data", shutdown_grace_s=1) as gateway, Api(gateway.url) as api:
        await api.run("idle", "1")
        async with api.stream("one", BUSY.format(marker=marker)) as stream:
            await started(stream)
            kernels, runtime = kernels_of(gateway), runtime_folder(gateway)
            queued = asyncio.ensure_future(api.http.post("/api/sessions/one/run", json={"code": "1"}))
            await asyncio.wait({queued}, timeout=0.2)

            gateway.signal(signal.SIGTERM)
            done = await started(stream, "done")

        assert (done.data["status"], done.data["exit_code"]) == ("interrupted", 130)
        assert (await queued).json()["status"] == "interrupted"
        assert await gateway.ended() == 0
        await all_gone(kernels)
        assert marked(marker) == []
        assert not runtime.exists()

        await gateway.start()
        async with Api(gateway.url) as again:
            states = {one["id"]: one["state"] for one in (await again.get("/api/sessions"))["sessions"]}
            history = (await again.get("/api/sessions/one/history"))["history"]
        assert states == {"one": "IDLE", "idle": "IDLE"}
        assert [one["status"] for one in history] == ["interrupted", "interrupted"]


async def test_new_work_is_refused_while_the_gateway_stops(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api, Api(gateway.url) as other:
        await other.get("/api/health")
        async with api.stream("one", "print('go'); import time; time.sleep(3); 'whole'") as stream:
            await started(stream)
            gateway.signal(signal.SIGTERM)
            async with asyncio.timeout(3):
                while (ready := await other.http.get("/api/ready")).status_code == 200:
                    await asyncio.sleep(0.02)

            refused = [
                await other.http.post("/api/sessions/two/run", json={"code": "1"}),
                await other.http.post("/api/sessions", json={"id": "three"}),
            ]
            done = await started(stream, "done")

        assert ready.status_code == 503
        assert [(one.status_code, one.json()["code"]) for one in refused] == [(503, "stopping")] * 2
        assert done.data["result"] == "'whole'"
        assert await gateway.ended() == 0


async def test_a_second_sigterm_ends_it_at_once_and_leaves_no_orphan(tmp_path: Path, marker: str) -> None:  # noqa: F811
    settings = {"shutdown_grace_s": 600}
    async with (
        gateway_process(tmp_path / "data", **settings) as gateway,
        Api(gateway.url) as api,
        Api(gateway.url) as other,
    ):
        await other.get("/api/health")
        setup = {"commands": [f"sleep 600; : {marker}"]}
        await api.create(id="setting-up", setup=setup)
        await api.run("idle", "1")
        async with api.stream("one", BUSY.format(marker=marker)) as stream:
            await started(stream)
            kernels, runtime = kernels_of(gateway), runtime_folder(gateway)
            keepers = keepers_of(gateway.data_dir)
            gateway.signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                while (await other.http.get("/api/ready")).status_code == 200:
                    await asyncio.sleep(0.02)

            began = time.perf_counter()
            gateway.signal(signal.SIGTERM)
            code = await gateway.ended()

        assert code != 0
        assert time.perf_counter() - began < 5
        await all_gone([*kernels, *keepers])
        assert marked(marker) == []
        assert not runtime.exists()


async def test_after_a_kill_the_documents_tell_the_truth(tmp_path: Path, marker: str) -> None:  # noqa: F811
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("idle", "open('kept.txt', 'w').write('file')")
        await api.create(id="setting-up", setup={"commands": [f"sleep 600; : {marker}"]})
        async with api.stream("one", BUSY.format(marker=marker)) as stream:
            await started(stream)
            accepted = await api.post("/api/sessions/one/run", {"code": "1", "background": True})
            async with asyncio.timeout(20):
                while len(marked(marker)) < 2:
                    await asyncio.sleep(0.05)
            running = (await api.get("/api/sessions/one/executions"))["executions"]

            await gateway.kill()

        await gateway.start()
        async with Api(gateway.url) as again:
            documents = {one["id"]: one for one in (await again.get("/api/sessions"))["sessions"]}
            executions = (await again.get("/api/sessions/one/executions"))["executions"]
            left = marked(marker)
            idle = await again.run("idle", "open('kept.txt').read()")
            never = await again.get(f"/api/sessions/one/executions/{accepted['execution_id']}")
            await again.post("/api/sessions/one/interrupt")
            stopped = await again.get(f"/api/sessions/one/executions/{executions[1]['execution_id']}")
            after = await again.run("one", "1 + 1")
            await again.call("DELETE", "/api/sessions/setting-up")

    assert len(running) == 2
    assert documents["idle"]["state"] == "READY"
    assert documents["one"]["state"] == "BUSY"
    assert [one["execution_id"] for one in executions] == [one["execution_id"] for one in running]
    assert (never["status"], never["error"]["ename"]) == ("interrupted", "GatewayStopped")
    assert (stopped["status"], stopped["state_kept"]) == ("interrupted", True)
    assert len(left) == 1  # what the run has started
    assert (idle["result"], after["result"]) == ("'file'", "2")
    assert marked(marker) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_sessions_leave_nothing_behind_in_the_gateway(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        process = psutil.Process(gateway.pid)

        async def use(n: int) -> None:
            name = f"session-{n}"
            await api.run(name, "print('x' * 100_000)")
            async with api.stream(name, "print('streamed')") as stream:
                await started(stream, "done")
            await api.call("DELETE", f"/api/sessions/{name}")

        async def used(count: int) -> tuple[int, int, int]:
            for start in range(0, count, 4):
                await asyncio.gather(*(use(n) for n in range(start, start + 4)))
            return process.num_fds(), process.num_threads(), process.memory_info().rss

        await api.run("first", "1")
        runtime = runtime_folder(gateway)
        await api.call("DELETE", "/api/sessions/first")
        before = await used(20)
        after = await used(52)

        assert after[0] <= before[0] + 2
        assert after[1] <= before[1] + 2
        assert after[2] < before[2] + 20 * MEBI
        assert [path.name for path in runtime.iterdir()] == ["keeper"]
        assert list((tmp_path / "data" / "kernels").iterdir()) == []
        assert list((tmp_path / "data" / "journals").iterdir()) == []
        assert [*process.children(recursive=True), *kernels_of(gateway)] == []


async def test_two_gateways_never_share_a_data_folder(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data"):
        second = GatewayProcess(tmp_path / "data", {})

        with pytest.raises(AssertionError, match="Another gateway uses"):
            await second.start()

        assert await second.ended() == 1


async def test_one_busy_client_leaves_the_gateway_free_for_others(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("flood", "1")
        flood = asyncio.ensure_future(api.run("flood", "for _ in range(10): print('x' * 100_000_000)"))
        slowest = 0.0
        while not flood.done():
            began = time.perf_counter()
            await api.get("/api/health")
            slowest = max(slowest, time.perf_counter() - began)
        answer: Any = await flood

        assert answer["truncated"]
        assert slowest < 1
