"""Kernels that are forked: each is its own, however many there are, and whatever becomes of what forked them."""

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from kernels.engine import Exit, Kernelspec, Launch
from kernels.engines.local import LocalEngine
from kernels.engines.overlay import probe
from kernels.errors import KernelGone
from kernels.intake import Intake
from kernels.kernel import Kernel, running
from tests.gateways import WHICH_PROCESS, below_keepers, inits_of, keepers_of, kernels_of, spares_of

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can fork kernels")

IS_FORKED = "print('zygote.py' in open('/proc/self/cmdline').read())"


@pytest.fixture
def intake() -> Intake:
    return Intake()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[LocalEngine]:
    spec = LocalEngine(tmp_path).kernelspecs()["python3"]
    linked_to = map(Path, probe(spec.argv[0]).site_packages)  # by `environment`
    made = LocalEngine(tmp_path / "data", pool_size=2, readable=linked_to)
    async with made.opened():
        yield made


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


class Sessions:
    """Starts kernels, each at a place of its own."""

    def __init__(self, engine: LocalEngine, intake: Intake) -> None:
        self._engine = engine
        self._context = intake
        self.spec = engine.kernelspecs()["python3"]

    @asynccontextmanager
    async def started(self, place: str = "place", **changes: Any) -> AsyncIterator[Kernel]:
        launch = Launch(kernel_id=str(uuid4()), place=place, spec=self.spec, **changes)
        async with running(self._engine, launch, self._context, 90) as kernel:
            yield kernel

    async def lifetime(self, code: str, place: str = "place", **changes: Any) -> str:
        async with self.started(place, **changes) as kernel:
            return await run(kernel, code)


@pytest.fixture
def sessions(engine: LocalEngine, intake: Intake) -> Sessions:
    return Sessions(engine, intake)


async def run(kernel: Kernel, code: str) -> str:
    """What a cell printed."""
    rest: dict[str, Any] = {"on_input": lambda prompt, password: None, "output_limit_bytes": 10_000_000}
    async with kernel.execute(uuid4().hex, code, on_event=lambda event: None, **rest) as cell:
        await kernel.finish(cell)
        outputs = cell.outputs.as_nbformat()
    assert not [output for output in outputs if output["output_type"] == "error"], outputs
    return "".join(output["text"] for output in outputs if output["output_type"] == "stream").strip()


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.02)


def zygotes_of(data_dir: Path) -> list[psutil.Process]:
    return [one for one in spares_of(data_dir) if name_of(one) == "kernel-zygote"]


def ready_of(data_dir: Path) -> list[psutil.Process]:
    return [one for one in spares_of(data_dir) if name_of(one) == "kernel"]


def name_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return process.name()
    return ""


async def one_zygote(data_dir: Path) -> psutil.Process:
    await until(lambda: len(zygotes_of(data_dir)) == 1)
    return zygotes_of(data_dir)[0]


@pytest.fixture
def environment(tmp_path: Path, sessions: Sessions) -> Path:
    """An interpreter of this test's own, with the packages of the kernels' one: where they are."""
    interpreter = probe(sessions.spec.argv[0])
    venv = tmp_path / "venv"
    subprocess.run([interpreter.executable, "-m", "venv", "--without-pip", venv], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    for folder in interpreter.site_packages:
        for entry in Path(folder).iterdir():
            (packages / entry.name).symlink_to(entry)
    sessions.spec = with_python(sessions.spec, venv / "bin" / "python")
    return packages


def with_python(spec: Kernelspec, python: Path) -> Kernelspec:
    return dataclasses.replace(spec, argv=(str(python), *spec.argv[1:]))


# What a forked kernel is


async def test_a_kernel_is_forked_and_has_the_environment_of_its_place(sessions: Sessions, data_dir: Path) -> None:
    code = f"""
import json, os, subprocess, sys
{IS_FORKED}
outside = subprocess.run([sys.executable, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True)
print(json.dumps([sys.prefix, outside.stdout.strip(), os.getcwd(), os.environ["HOME"], os.environ["TOLD"]]))
"""

    forked, found = (await sessions.lifetime(code, env={"TOLD": "yes"})).splitlines()

    place = data_dir / "sessions" / "place"
    assert forked == "True"
    assert json.loads(found) == [
        *[str(place / "overlay")] * 2,
        *(str(place / name) for name in ("workspace", "home")),
        "yes",
    ]


async def test_two_sessions_share_no_randomness_no_name_and_no_secret(sessions: Sessions) -> None:
    look = """
import json, random, tempfile, uuid
names = next(tempfile._get_candidate_names()), str(uuid.uuid4()), str(uuid.uuid1())
print(json.dumps([random.random(), *names]))
"""
    seen = """
import glob, os
texts = [open(f"/proc/self/{name}").read() for name in ("environ", "cmdline", "maps")] + [repr(dict(os.environ))]
history = get_ipython().history_manager.input_hist_raw
print(any("first-secret" in text for text in texts), "x" in globals(), len(history))
"""
    async with sessions.started("first", env={"SECRET": "first-secret"}) as first:
        await run(first, "x = 'first-secret'")
        async with sessions.started("second", env={"SECRET": "second-secret"}) as second:
            assert await run(second, seen) == "False False 2"
            ours, theirs = json.loads(await run(first, look)), json.loads(await run(second, look))

    assert all(one != other for one, other in zip(ours, theirs, strict=True))


async def test_a_forked_kernel_has_no_descriptor_of_anybody_else(sessions: Sessions, data_dir: Path) -> None:
    look = """
import contextlib, os
for fd in os.listdir("/proc/self/fd"):
    with contextlib.suppress(FileNotFoundError):
        print(os.readlink(f"/proc/self/fd/{fd}"))
"""
    async with sessions.started("first"), sessions.started("second") as second:
        opened = await run(second, look)
        fds = psutil.Process((await one_zygote(data_dir)).pid).num_fds()

    assert "first" not in opened
    assert "keeper" not in opened
    assert fds < 10


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import os; os._exit(3)", Exit(code=3)),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", Exit(signal=signal.SIGKILL)),
        ("import ctypes; ctypes.string_at(0)", Exit(signal=signal.SIGSEGV)),
        ("import os; os.abort()", Exit(signal=signal.SIGABRT)),
    ],
    ids=["code", "killed", "segfault", "abort"],
)
async def test_how_a_forked_kernel_ends_is_told_exactly(sessions: Sessions, code: str, expected: Exit) -> None:
    async with sessions.started() as kernel:
        with pytest.raises(KernelGone):
            await run(kernel, code)
        exit_ = await kernel.ended

    assert (exit_.code, exit_.signal) == (expected.code, expected.signal)


async def test_a_thread_that_exits_does_not_end_its_kernel(sessions: Sessions) -> None:
    async with sessions.started() as kernel:
        await run(
            kernel, "import sys, threading; t = threading.Thread(target=sys.exit, args=(3,)); t.start(); t.join()"
        )
        assert await run(kernel, "print(1 + 1)") == "2"


async def test_what_a_kernel_leaves_behind_is_found_and_orphans_are_reaped(sessions: Sessions, data_dir: Path) -> None:
    orphan = """
import os, time
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        time.sleep({})
    os._exit(0)
os.wait()
"""
    async with sessions.started() as kernel:
        await run(kernel, orphan.format(0))
        await run(kernel, orphan.format(600))
        (keeper,) = keepers_of(data_dir)
        await until(lambda: all(one.status() != psutil.STATUS_ZOMBIE for one in keeper.children()))
        assert len(kernels_of(data_dir)) == 2

    assert kernels_of(data_dir) == []


# What it is forked from


async def test_a_kernel_ready_in_the_pool_that_is_killed_is_replaced(sessions: Sessions, data_dir: Path) -> None:
    await sessions.lifetime("1")
    await until(lambda: len(ready_of(data_dir)) == 2)
    before = ready_of(data_dir)

    for process in before:
        process.kill()
    await until(lambda: not set(before) & set(below_keepers(data_dir)))
    async with sessions.started() as kernel:
        forked = await run(kernel, IS_FORKED)
        await until(lambda: len(ready_of(data_dir)) == 2)

    assert forked == "True"
    assert not set(before) & set(below_keepers(data_dir))


async def test_kernels_live_on_when_what_forked_them_is_killed_and_it_is_replaced(
    sessions: Sessions, data_dir: Path
) -> None:
    async with sessions.started("first") as first:
        await run(first, "x = 41")
        zygote = await one_zygote(data_dir)
        zygote.kill()
        async with sessions.started("second") as second:
            assert await run(second, "print(1 + 1)") == "2"
        await until(lambda: len(zygotes_of(data_dir)) == 1 and zygotes_of(data_dir)[0] != zygote)
        assert await run(first, "print(x + 1)") == "42"

        await until(lambda: len(ready_of(data_dir)) == 2)
        assert await sessions.lifetime(IS_FORKED, "third") == "True"


async def test_no_kernel_fails_that_was_ready_when_what_forked_it_was_killed(
    sessions: Sessions, data_dir: Path
) -> None:
    await sessions.lifetime("1")
    await until(lambda: len(ready_of(data_dir)) == 2)

    (await one_zygote(data_dir)).kill()
    answers = [await sessions.lifetime("print(6 * 7)", f"{number}") for number in range(4)]

    assert answers == ["42"] * 4


@pytest.mark.slow
async def test_no_kernel_fails_because_what_forks_them_is_killed_at_odd_moments(
    sessions: Sessions, data_dir: Path
) -> None:
    async def killing() -> None:
        while True:
            for zygote in zygotes_of(data_dir):
                zygote.kill()
            await asyncio.sleep(0.4)

    await sessions.lifetime("1")
    killer = asyncio.create_task(killing())
    answers = []
    for number in range(12):
        answers += await asyncio.gather(*(sessions.lifetime("print(6 * 7)", f"{number}-{one}") for one in range(2)))
    killer.cancel()

    assert answers == ["42"] * 24
    assert kernels_of(data_dir) == []


async def test_nothing_is_left_of_those_ready_when_their_keeper_is_killed(sessions: Sessions, data_dir: Path) -> None:
    await sessions.lifetime("1")
    await until(lambda: len(ready_of(data_dir)) == 2)
    spares = below_keepers(data_dir)
    (keeper,) = keepers_of(data_dir)

    keeper.kill()

    _, alive = await asyncio.to_thread(psutil.wait_procs, spares, 15)
    assert alive == []


async def test_a_module_that_ends_the_interpreter_keeps_kernels_from_being_forked_not_from_starting(
    sessions: Sessions, data_dir: Path, environment: Path
) -> None:
    (environment / "deadly.py").write_text("import os; os._exit(7)")

    assert await sessions.lifetime(IS_FORKED, preloads=("deadly",)) == "False"
    assert "No kernels of" in (data_dir / "keeper.log").read_text()


async def test_kernels_are_forked_anew_when_their_environment_has_changed(
    sessions: Sessions, data_dir: Path, environment: Path
) -> None:
    (environment / "sample.py").write_text("version = 1")
    look = f"{IS_FORKED}; import sys; print('sample' in sys.modules); import sample; print(sample.version)"
    before = await sessions.lifetime(look, preloads=("sample",))
    await until(lambda: len(ready_of(data_dir)) == 2)

    (environment / "sample.py").write_text("version = 22")
    (environment / "another.py").touch()

    assert before.split() == ["True", "True", "1"]
    assert (await sessions.lifetime(look, preloads=("sample",))).split() == ["True", "True", "22"]


async def test_a_session_sees_its_own_version_of_what_others_have_imported_already(
    sessions: Sessions, data_dir: Path, environment: Path
) -> None:
    (environment / "sample.py").write_text("version = 1")
    await sessions.lifetime("1", preloads=("sample",))
    (own,) = (data_dir / "sessions" / "place" / "overlay").glob("lib/python*/site-packages")
    (own / "sample.py").write_text("version = 2")

    look = "import sample; print(sample.version)"

    assert await sessions.lifetime(look, preloads=("sample",)) == "2"
    assert await sessions.lifetime(look, "elsewhere", preloads=("sample",)) == "1"


async def test_what_only_a_start_takes_notice_of_is_honoured(sessions: Sessions) -> None:
    look = "import sys; print(sys.flags.utf8_mode, hash('a'))"

    found = {await sessions.lifetime(look, env={"PYTHONHASHSEED": "7", "PYTHONUTF8": "1"}) for _ in range(2)}

    assert len(found) == 1
    assert found.pop().startswith("1 ")


async def test_without_a_fork_server_kernels_start_one_by_one(tmp_path: Path, intake: Intake) -> None:
    engine = LocalEngine(tmp_path / "data", fork_server=False)
    async with engine.opened():
        assert await Sessions(engine, intake).lifetime(IS_FORKED) == "False"
        assert spares_of(tmp_path / "data") == []


# Many


@pytest.mark.slow
async def test_a_hundred_at_once_are_each_their_own(sessions: Sessions, data_dir: Path) -> None:
    async def one(number: int) -> tuple[str, str]:
        async with sessions.started(f"place-{number}") as kernel:
            await run(kernel, f"x = {number}")
            await all_are_there.wait()
            return await run(kernel, "print(x)"), await run(kernel, f"print({WHICH_PROCESS})")

    all_are_there = asyncio.Barrier(100)
    found = await asyncio.gather(*(one(number) for number in range(100)))

    assert [x for x, _ in found] == [str(number) for number in range(100)]
    assert len({process for _, process in found}) == 100
    assert kernels_of(data_dir) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_five_hundred_sessions_leave_nothing_behind(sessions: Sessions, data_dir: Path) -> None:
    async def some(worker: int, count: int) -> None:
        for number in range(count):
            assert await sessions.lifetime(f"print({number})", f"{worker}-{number}") == str(number)

    await some(0, 8)
    (keeper,) = keepers_of(data_dir)
    zygote = await one_zygote(data_dir)
    await until(lambda: len(ready_of(data_dir)) == 2)
    before = keeper.num_fds(), zygote.num_fds(), os.listdir("/proc/self/fd")

    await asyncio.gather(*(some(worker, 125) for worker in range(1, 5)))

    await until(lambda: len(ready_of(data_dir)) == 2)
    await until(lambda: keeper.num_fds() <= before[0])
    assert zygote.num_fds() <= before[1]
    assert len(os.listdir("/proc/self/fd")) <= len(before[2]) + 8  # of threads that read logs and the like
    inits = inits_of(data_dir)
    assert {*below_keepers(data_dir)} == {zygote, *ready_of(data_dir), *inits}
    assert len(inits) in (0, 2)  # each of those ready has one, where there are walls
    announced = json.loads(next((data_dir / "keepers").glob("*.json")).read_text())
    assert sorted(os.listdir(announced["runtime"])) == ["keeper"]
    assert os.listdir(data_dir / "kernels") == os.listdir(data_dir / "journals") == []
