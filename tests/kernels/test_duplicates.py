"""Copies of live kernels: behind walls of their own, ended exactly, and nothing left of those that were never made."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from kernels.engine import Launch, Limits
from kernels.engines.local import LocalEngine
from kernels.errors import KernelGone, KernelsError, StartFailed
from kernels.intake import Intake
from kernels.kernel import Kernel, duplicated, running
from tests.gateways import keepers_of
from tests.kernels.test_kernel import intake, run  # noqa: F401

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="live duplicates need Linux")

SETUP = "import itertools, os; n = itertools.count(1); next(n); open('own.txt', 'w').write('source')"


@pytest.fixture(params=["best-effort", "none"])
async def engine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[LocalEngine]:
    made = LocalEngine(tmp_path, isolation=request.param, pool_size=0)
    async with made.opened():
        yield made


@pytest.fixture
async def walled(tmp_path: Path) -> AsyncIterator[LocalEngine]:
    made = LocalEngine(tmp_path, isolation="best-effort", pool_size=0)
    async with made.opened():
        if not made._confinement.confines:
            pytest.skip("This host gives no walls")
        yield made


def launch(engine: LocalEngine, place: str, **changes: Any) -> Launch:
    spec = engine.kernelspecs()["python3"]
    return Launch(kernel_id=str(uuid4()), place=place, spec=spec, network="none", **changes)


@asynccontextmanager
async def started(engine: LocalEngine, room: Intake, **changes: Any) -> AsyncIterator[Kernel]:
    async with running(engine, launch(engine, "source", **changes), room, 60) as kernel:
        await run(kernel, SETUP)
        yield kernel


@asynccontextmanager
async def copied(
    engine: LocalEngine, source: Kernel, room: Intake, place: str = "copy",
    meanwhile: Callable[[], None] = lambda: None, of: str = "source", **changes: Any,
) -> AsyncIterator[Kernel]:  # fmt: skip
    async def fill() -> None:
        meanwhile()
        await engine.copy_files(of, place)
        await engine.copy_environment(of, place)

    wanted = launch(engine, place, **changes)
    async with duplicated(engine, source, wanted, fill, room, wait_s=5, timeout_s=30) as kernel:
        yield kernel


async def said(kernel: Kernel, code: str) -> str:
    """The value of an expression."""
    reply, events = await run(kernel, code)
    assert reply["status"] == "ok", reply
    text: str = events[-1].data["data"]["text/plain"]
    return text


def of_sessions(data_dir: Path) -> set[int]:
    """All processes below the keeper, but the one that forks kernels."""
    below: set[int] = set()
    for keeper in keepers_of(data_dir):
        for one in keeper.children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if one.status() != psutil.STATUS_ZOMBIE and (one.name(), one.ppid()) != ("kernel-zygote", keeper.pid):
                    below.add(one.pid)
    return below


def _command(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []


async def test_a_copy_carries_on_with_files_of_its_own(engine: LocalEngine, intake: Any) -> None:  # noqa: F811
    async with started(engine, intake) as source, copied(engine, source, intake) as copy:
        await run(copy, "open('own.txt', 'w').write('copy')")

        assert await said(copy, "next(n), open('own.txt').read(), os.path.basename(os.path.dirname(os.getcwd()))") == (
            "(2, 'copy', 'copy')"
        )
        assert await said(source, "next(n), open('own.txt').read()") == "(2, 'source')"


async def test_copies_of_copies_outlive_all_they_come_from(engine: LocalEngine, intake: Any) -> None:  # noqa: F811
    async with contextlib.AsyncExitStack() as stack:
        source = contextlib.AsyncExitStack()
        first = contextlib.AsyncExitStack()
        stack.push_async_exit(source)
        stack.push_async_exit(first)
        kernel = await source.enter_async_context(started(engine, intake))
        one = await first.enter_async_context(copied(engine, kernel, intake, "one"))
        two = await stack.enter_async_context(copied(engine, one, intake, "two", of="one"))

        await source.aclose()
        await first.aclose()

        assert await said(two, "next(n), open('own.txt').read()") == "(2, 'source')"
        three = await stack.enter_async_context(copied(engine, two, intake, "three", of="two"))
        assert await said(three, "next(n)") == "3"


@pytest.mark.parametrize(("ending", "code", "number"), [("os._exit(7)", 7, None), ("os.kill(os.getpid(), 9)", None, 9)])
async def test_how_a_copy_ends_is_told_exactly(
    engine: LocalEngine, intake: Any, ending: str, code: int | None, number: int | None  # noqa: F811
) -> None:  # fmt: skip
    async with started(engine, intake) as source, copied(engine, source, intake) as copy:
        with contextlib.suppress(KernelGone):
            await run(copy, ending)
        exit_ = await copy.process.ended()

        assert (exit_.code, exit_.signal) == (code, number)
        assert await said(source, "next(n)") == "2"


async def test_nothing_stays_of_copies_and_their_source(engine: LocalEngine, tmp_path: Path, intake: Any) -> None:  # noqa: F811
    async with contextlib.AsyncExitStack() as stack:
        source = await stack.enter_async_context(started(engine, intake))
        for number in range(3):
            copy = await stack.enter_async_context(copied(engine, source, intake, f"copy{number}"))
            await run(copy, "import subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True)")
        assert len(of_sessions(tmp_path)) >= 7

    assert of_sessions(tmp_path) == set()
    assert [*(tmp_path / "kernels").glob("*.json"), *(tmp_path / "journals").iterdir()] == []


async def test_a_source_ends_with_all_that_it_started_while_its_copies_live(walled: LocalEngine, intake: Any) -> None:  # noqa: F811
    async with contextlib.AsyncExitStack() as stack:
        source = contextlib.AsyncExitStack()
        kernel = await source.enter_async_context(started(walled, intake))
        copy = await stack.enter_async_context(copied(walled, kernel, intake))
        await run(kernel, "import subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True)")
        left = [one for one in psutil.Process(kernel.process.pid).children() if "sleep" in _command(one)]  # type: ignore[attr-defined]

        await source.aclose()

        assert len(left) == 1
        assert not left[0].is_running()
        assert await said(copy, "next(n)") == "2"


async def test_memory_and_files_of_a_copy_are_not_its_sources(walled: LocalEngine, intake: Any) -> None:  # noqa: F811
    look = """
reached = []
for pid in [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in (os.getpid(), 1)]:
    for name in ('environ', 'mem', 'maps', 'root', 'cwd', 'fd', 'ns/user', 'ns/mnt', 'exe', 'io'):
        try:
            path = f'/proc/{pid}/{name}'
            os.readlink(path) if name in ('root', 'cwd', 'exe') or '/' in name else os.listdir(path) if name == 'fd' \\
                else open(path, 'rb').read(1)
            reached.append((pid, name))
        except OSError:
            pass
"""
    async with started(walled, intake) as source, copied(walled, source, intake) as copy:
        await run(source, look)
        await run(copy, look)

        seen = await said(source, "len([p for p in os.listdir('/proc') if p.isdigit()])")
        assert int(seen) > 2  # the source does see them
        assert await said(source, "reached") == "[]"
        assert await said(copy, "reached, len([p for p in os.listdir('/proc') if p.isdigit()])") == "([], 2)"
        assert "source" in copy.process.walls.missing
        assert "source" not in source.process.walls.missing


async def test_no_copy_can_make_namespaces(walled: LocalEngine, intake: Any) -> None:  # noqa: F811
    unshare = "import ctypes; [ctypes.CDLL(None).unshare(flag) for flag in (0x10000000, 0x20000, 0x20000000)]"
    async with started(walled, intake) as source, copied(walled, source, intake) as copy:
        for kernel in (source, copy):
            assert await said(kernel, unshare) == "[-1, -1, -1]"
            assert await said(kernel, "open('/proc/sys/user/max_user_namespaces').read()") == "'0\\n'"
            status = await said(kernel, "{l.split()[1] for l in open('/proc/self/status') if l.startswith('Cap')}")
            assert status == str({"0" * 16})


async def test_a_copy_has_a_memory_limit_of_its_own(walled: LocalEngine, intake: Any) -> None:  # noqa: F811
    if walled._confinement.host.cgroups is None:
        pytest.skip("This host gives no groups")
    limits = Limits(memory_bytes=200_000_000)
    async with (
        started(walled, intake, limits=limits) as source,
        copied(walled, source, intake, limits=limits) as copy,
    ):
        with contextlib.suppress(KernelGone):
            await run(copy, "x = bytearray(400_000_000)")
        exit_ = await copy.process.ended()

        assert exit_.out_of_memory
        assert await said(source, "next(n)") == "2"


@pytest.mark.parametrize("victim", ["source", "copy"])
async def test_what_is_killed_half_way_leaves_nothing(
    engine: LocalEngine, tmp_path: Path, intake: Any, victim: str  # noqa: F811
) -> None:  # fmt: skip
    async with started(engine, intake) as source:
        before = of_sessions(tmp_path)
        pid = source.process.pid  # type: ignore[attr-defined]

        def kill() -> None:
            """Once the copy is there, before it is anybody."""
            others = {one for one in of_sessions(tmp_path) - before if "kernel" in psutil.Process(one).name()}
            for one in {pid} if victim == "source" else others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)

        try:
            async with copied(engine, source, intake, meanwhile=kill) as copy:
                assert victim == "source"
                assert await said(copy, "next(n)") == "2"
        except KernelsError as error:
            assert isinstance(error, StartFailed | KernelGone), error  # noqa: PT017 - or there is none

        if victim == "copy":
            assert await said(source, "next(n)") == "2"
    assert of_sessions(tmp_path) == set()
    assert [*(tmp_path / "kernels").glob("*.json"), *(tmp_path / "journals").iterdir()] == []


async def test_who_gives_up_leaves_nothing(engine: LocalEngine, tmp_path: Path, intake: Any) -> None:  # noqa: F811
    class GaveUpError(Exception):
        pass

    def give_up() -> None:
        raise GaveUpError

    async with started(engine, intake) as source:
        before = of_sessions(tmp_path)
        with pytest.raises(GaveUpError):
            async with copied(engine, source, intake, meanwhile=give_up):
                pass
        async with asyncio.timeout(5):
            while of_sessions(tmp_path) - before:  # it sees that nobody waits for it
                await asyncio.sleep(0.02)
        assert await said(source, "next(n)") == "2"


async def test_with_strict_isolation_there_is_no_live_copy(tmp_path: Path, intake: Any) -> None:  # noqa: F811
    engine = LocalEngine(tmp_path, isolation="best-effort", pool_size=0)
    async with engine.opened(), started(engine, intake) as source:
        engine._confinement._isolation = "strict"
        with pytest.raises(StartFailed, match="strict"):
            async with copied(engine, source, intake):
                pass


async def test_copies_end_with_their_keeper(engine: LocalEngine, tmp_path: Path, intake: Any) -> None:  # noqa: F811
    async with started(engine, intake) as source, copied(engine, source, intake) as copy:
        processes = [
            psutil.Process(one) for one in of_sessions(tmp_path) if "init" not in _command(psutil.Process(one))
        ]
        keepers_of(tmp_path)[0].kill()
        exit_ = await copy.process.ended()

        assert "keeper" in exit_.reason
        until = time.monotonic() + 5
        while any(_runs(one) for one in processes) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        assert [one for one in processes if _runs(one)] == []


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def test_a_record_tells_who_comes_later_of_a_copy(engine: LocalEngine, tmp_path: Path, intake: Any) -> None:  # noqa: F811
    async with started(engine, intake) as source, copied(engine, source, intake) as copy:
        record = json.loads((tmp_path / "kernels" / f"{copy.id}.json").read_text())

        assert record["about"]["place"] == "copy"
        assert _runs(psutil.Process(record["pid"]))
