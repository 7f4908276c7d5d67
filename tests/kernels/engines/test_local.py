"""Kernels of this machine: other languages, and what is left of them when they end."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from kernels.engines import processes
from tests.api import Api
from tests.gateway.services.test_executions import collected, marked, marker, peak_growth, started, text_of  # noqa: F401
from tests.gateways import GatewayProcess, gateway_process

MEBI = 2**20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def polyglot(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """A gateway that finds a kernelspec for bash."""
    prefix = tmp_path_factory.mktemp("prefix")
    install = [sys.executable, "-m", "bash_kernel.install", "--prefix", str(prefix)]
    await asyncio.to_thread(subprocess.run, install, check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"))
        async with gateway_process(tmp_path_factory.mktemp("polyglot") / "data") as started_:
            yield started_


@pytest.fixture
async def bash(polyglot: GatewayProcess, session_id: str) -> AsyncIterator[Api]:
    """A client of a gateway on which the session speaks bash."""
    async with Api(polyglot.url) as api:
        await api.create(session_id=session_id, language="bash")
        yield api


async def test_a_bash_session_keeps_its_state(bash: Api, session_id: str) -> None:
    first = await bash.run(session_id, "name=Ada; cd /tmp; echo hello $name")
    second = await bash.run(session_id, "echo $name; pwd")
    document = await bash.get(f"/api/sessions/{session_id}")

    assert (first["status"], first["stdout"]) == ("ok", "hello Ada\n")
    assert second["stdout"] == "Ada\n/tmp\n"
    assert (document["language"], document["kernel"]) == ("bash", "bash")


async def test_a_kernel_is_chosen_by_its_name_too(polyglot: GatewayProcess) -> None:
    async with Api(polyglot.url) as api:
        created = await api.create(kernel="bash")
        answer = await api.post("/api/execute", {"language": "bash", "code": "echo $ERA_LANGUAGE"})

    assert created["language"] == "bash"
    assert answer["stdout"] == "bash\n"


async def test_a_failing_command_is_an_error(bash: Api, session_id: str) -> None:
    answer = await bash.run(session_id, "ls /nowhere/at/all")

    assert (answer["status"], answer["exit_code"]) == ("error", 1)
    assert "nowhere" in answer["stdout"] + answer["stderr"]


async def test_a_timeout_of_bash_keeps_its_variables(bash: Api, session_id: str, marker: str) -> None:  # noqa: F811
    await bash.run(session_id, "x=41")

    answer = await bash.run(session_id, f"sh -c 'sleep 600; : {marker}'", timeout=2)
    after = await bash.run(session_id, "echo $((x + 1))")

    assert (answer["status"], answer["exit_code"]) == ("timeout", 124)
    assert marked(marker) == []
    assert answer["state_kept"] is (after["stdout"] == "42\n"), (answer, after)


async def test_bash_can_be_interrupted(bash: Api, session_id: str) -> None:
    await bash.run(session_id, "x=41")
    async with bash.stream(session_id, "echo go; sleep 600") as stream:
        await started(stream)

        ended = False
        while not ended:  # bash loses an interrupt that comes just before it waits for its command
            ended = (await bash.post(f"/api/sessions/{session_id}/interrupt", {}))["ended"]
        events = await collected(stream)

    assert events[-1].kind == "done"
    assert events[-1].data["duration_ms"] < 30_000
    assert (await bash.run(session_id, "echo $((x + 1))"))["stdout"] == "42\n"


async def test_an_environment_for_one_run_is_refused_where_it_is_not_offered(bash: Api, session_id: str) -> None:
    refused = await bash.post(f"/api/sessions/{session_id}/run", {"code": "echo $A", "env": {"A": "b"}}, 422)

    assert "environment" in refused["error"]
    assert (await bash.run(session_id, "echo fine"))["stdout"] == "fine\n"


async def test_a_flood_from_bash_is_cut(polyglot: GatewayProcess, bash: Api, session_id: str) -> None:
    answer, growth = await peak_growth(
        polyglot, bash.run(session_id, "head -c 60000000 /dev/zero | tr '\\0' x | fold -w 1000")
    )

    assert answer["truncated"]
    assert growth < 150 * MEBI
    assert (await bash.run(session_id, "echo after"))["stdout"] == "after\n"


# Processes


async def test_a_process_is_dated_by_the_clock_that_stamps_it() -> None:
    before = time.time()
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert processes.started_since(process.pid, before)
        assert not processes.started_since(process.pid, time.time() + 0.1)
    finally:
        process.kill()
        process.wait()
    assert not processes.started_since(process.pid, before)


async def test_a_family_is_found_by_its_mark_even_far_from_home(tmp_path: Path) -> None:
    env = {**os.environ, "MARK_OF_THIS_TEST": "abc"}
    far = subprocess.Popen(["setsid", "sh", "-c", "sleep 60 & wait"], env=env)
    try:
        async with asyncio.timeout(10):
            while len(processes.family(None, "MARK_OF_THIS_TEST=abc")) < 2:
                await asyncio.sleep(0.01)
        assert processes.end_family(None, "MARK_OF_THIS_TEST=abc") >= 2
        assert processes.family(None, "MARK_OF_THIS_TEST=abcd") == []
    finally:
        far.kill()
        far.wait()


async def test_exits_are_told_without_polling() -> None:
    process = subprocess.Popen(["sh", "-c", "exit 7"])

    assert await processes.exited(process) == 7


async def test_use_of_memory_counts_shared_pages_once() -> None:
    code = """
import os, time
hoard = bytearray(b'x' * 50_000_000)
for _ in range(2):
    os.fork() or time.sleep(60)
print('ready', flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        summed = processes.usage(process.pid)[1]
        assert 50_000_000 < processes.shared_memory_bytes(process.pid) <= summed
    finally:
        processes.end(psutil.Process(process.pid).children(recursive=True))
        process.kill()
        process.wait()
        process.communicate()
