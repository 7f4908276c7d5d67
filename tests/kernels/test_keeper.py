"""Kernels outlive who started them: what the next one finds, and who commands them."""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from kernels import keeper
from kernels.engine import Kept, Launch, Limits
from kernels.engines.keepers import KEEPER_ENDED
from kernels.engines.local import LocalEngine
from kernels.errors import KernelGone, NeverArrived, Refused, StartFailed
from kernels.intake import Intake
from kernels.journaled import may_follow, past_runs, retold
from kernels.kernel import Execution, Kernel, attached, running
from kernels.messages import Wire
from kernels.outputs import Event
from tests.gateways import inits_of, keepers_of, kernels_of, spares_of

ROOT = Path(__file__).parent.parent.parent
LINES = "".join(f"{n}\n" for n in range(200))
PYTHON = ("python3", "x = 41", "import time\nfor n in range(200): print(n); time.sleep(0.005)\nprint(x + 1)")
BASH = ("bash", "x=41", "for n in $(seq 0 199); do echo $n; sleep 0.005; done; echo $((x + 1))")


@pytest.fixture
def intake() -> Intake:
    return Intake()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[LocalEngine]:
    made = LocalEngine(tmp_path)
    async with made.opened():
        yield made


@asynccontextmanager
async def leaving(data_dir: Path, *arguments: str, events: int = 1) -> AsyncIterator[dict[str, Any]]:
    """A gateway in another process, killed when the block is left; what it has begun, once so much was heard of it."""
    command = [sys.executable, "-m", "tests.kernels.leaving", str(data_dir), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True)
    assert process.stdout is not None
    try:
        begun = json.loads(await asyncio.to_thread(process.stdout.readline))
        for _ in range(events):
            assert await asyncio.to_thread(process.stdout.readline) == "event\n"
        yield begun
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def only_kept(engine: LocalEngine) -> Kept:
    (found,) = await engine.kept()
    return found


def launch(engine: LocalEngine, **changes: Any) -> Launch:
    return Launch(kernel_id=str(uuid4()), place="place", spec=engine.kernelspecs()["python3"], **changes)


def resuming(engine: LocalEngine, kernel: Kernel, begun: dict[str, Any], events: list[Event]) -> Any:
    return kernel.resume(
        begun["run_id"], partial(engine.journal, kernel.id), started_at=begun["started_at"],
        on_event=events.append, on_input=lambda prompt, password: None, output_limit_bytes=10_000_000,
    )  # fmt: skip


async def has_ended(engine: LocalEngine, kernel_id: str, run_id: str) -> bool:
    """Whether the journal has the end of a run."""
    entries = [entry async for entry in engine.journal(kernel_id)]
    return any(may_follow(entry, run_id) and b'"idle"' in entry.frames[-1] for entry in entries)


async def run(kernel: Kernel, code: str) -> str:
    """What a cell printed."""
    rest: dict[str, Any] = {"on_input": lambda prompt, password: None, "output_limit_bytes": 10_000_000}
    async with kernel.execute(uuid4().hex, code, on_event=lambda event: None, **rest) as cell:
        await kernel.finish(cell)
        return text_of(cell)


def text_of(cell: Execution) -> str:
    return "".join(output["text"] for output in cell.outputs.as_nbformat() if output["output_type"] == "stream")


async def gone(processes: list[psutil.Process], timeout_s: float = 15) -> None:
    _, alive = await asyncio.to_thread(psutil.wait_procs, processes, timeout_s)
    assert alive == []


# What the next gateway finds


@pytest.mark.parametrize("language", [PYTHON, BASH], ids=["python", "bash"])
async def test_a_run_that_was_under_way_goes_on_and_all_of_its_output_is_there_once(
    tmp_path: Path, intake: Intake, language: tuple[str, str, str]
) -> None:
    async with leaving(tmp_path, *language) as begun:
        pass

    engine, events = LocalEngine(tmp_path), list[Event]()
    async with engine.opened():
        kept = await only_kept(engine)
        async with attached(engine, kept, intake, 60) as kernel:
            async with resuming(engine, kernel, begun, events) as cell:
                under_way = not cell.ended
                reply = await kernel.finish(cell)
            after = await run(kernel, "print(x)" if language is PYTHON else "echo $x")

    assert (kept.kernel_id, kept.place, kept.exit) == (begun["kernel_id"], "place", None)
    assert under_way
    assert text_of(cell) == LINES + "42\n"
    assert "".join(event.data["text"] for event in events) == LINES + "42\n"
    assert (reply["status"], cell.outputs.truncated) == ("ok", False)
    assert after == "41\n"
    assert kernels_of(tmp_path) == keepers_of(tmp_path) == []


@pytest.mark.parametrize(("ending", "status"), [("x + 1", "ok"), ("1 / 0", "error")])
async def test_a_run_that_ended_while_nobody_was_there_is_told_whole(
    tmp_path: Path, intake: Intake, ending: str, status: str
) -> None:
    code = f"import time\nfor n in range(200): print(n); time.sleep(0.003)\n{ending}"
    async with leaving(tmp_path, "python3", "x = 41", code) as begun:
        pass
    engine, events = LocalEngine(tmp_path), list[Event]()

    async with engine.opened():
        kept = await only_kept(engine)
        async with asyncio.timeout(20):
            while not await has_ended(engine, kept.kernel_id, begun["run_id"]):
                await asyncio.sleep(0.05)
        async with attached(engine, kept, intake, 60) as kernel:
            async with resuming(engine, kernel, begun, events) as cell:
                reply = await kernel.finish(cell)
            runs = await past_runs(engine.journal(kernel.id), kernel.channels.wire)
            again = await run(kernel, "print(x)")

    assert text_of(cell) == LINES
    assert (reply["status"], reply["execution_count"], cell.execution_count) == (status, 2, 2)
    if status == "ok":
        assert events[-1].data["data"]["text/plain"] == "42"
    else:
        assert reply["ename"] == "ZeroDivisionError"
    assert [(one.code, one.ended) for one in runs] == [("x = 41", True), (code, True)]
    assert runs[1].run_id == begun["run_id"]
    assert runs[1].started_at == pytest.approx(begun["started_at"], abs=5)
    assert again == "41\n"


@pytest.mark.slow
async def test_of_a_flood_that_was_under_way_nothing_is_missing_and_nothing_comes_twice(
    tmp_path: Path, intake: Intake
) -> None:
    code = "for n in range(20_000): print(n, flush=True)"
    async with leaving(tmp_path, "python3", "x = 41", code, events=500) as begun:
        pass

    engine = LocalEngine(tmp_path)
    async with (
        engine.opened(),
        attached(engine, await only_kept(engine), intake, 60) as kernel,
        resuming(engine, kernel, begun, []) as cell,
    ):
        under_way = not cell.ended
        await kernel.finish(cell)

    assert under_way
    assert text_of(cell) == "".join(f"{n}\n" for n in range(20_000))
    assert not cell.outputs.truncated


async def test_a_run_that_was_taken_over_can_be_interrupted(tmp_path: Path, intake: Intake) -> None:
    async with leaving(tmp_path, "python3", "x = 41", "import time; print('go', flush=True); time.sleep(600)") as begun:
        pass

    engine = LocalEngine(tmp_path)
    async with engine.opened(), attached(engine, await only_kept(engine), intake, 60) as kernel:
        async with resuming(engine, kernel, begun, []) as cell:
            await kernel.interrupt()
            reply = await kernel.finish(cell)
        after = await run(kernel, "print(x)")

    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    assert (text_of(cell), after) == ("go\n", "41\n")


async def test_a_run_that_never_arrived_is_told_so(tmp_path: Path, intake: Intake) -> None:
    async with leaving(tmp_path, "python3", "x = 41", "print('go', flush=True)") as begun:
        pass

    engine = LocalEngine(tmp_path)
    async with engine.opened(), attached(engine, await only_kept(engine), intake, 60) as kernel:
        async with resuming(engine, kernel, {**begun, "run_id": "another"}, []) as cell:
            with pytest.raises(NeverArrived):
                await kernel.finish(cell)
        after = await run(kernel, "print(x)")

    assert after == "41\n"


async def test_a_kernel_that_died_while_nobody_was_there_is_reported_with_its_end(tmp_path: Path) -> None:
    code = "import os, time\nprint('last words', flush=True); time.sleep(0.5); os._exit(7)"
    async with leaving(tmp_path, "python3", "x = 41", code) as begun:
        pass
    engine = LocalEngine(tmp_path)

    async with engine.opened():
        async with asyncio.timeout(20):
            while (kept := await only_kept(engine)).exit is None:
                await asyncio.sleep(0.05)
        async with engine.adopt(kept.kernel_id) as process:
            exit_ = await process.ended()
            wire = Wire.of(process.connection)
            told = await retold(engine.journal(kept.kernel_id), wire, begun["run_id"], output_limit_bytes=1000)
        left = await engine.kept()

    assert exit_ == kept.exit
    assert exit_.code == 7
    assert told.outputs.as_nbformat() == [{"output_type": "stream", "name": "stdout", "text": "last words\n"}]
    assert told.reply is None
    assert left == []
    assert list((tmp_path / "journals").iterdir()) == list((tmp_path / "kernels").iterdir()) == []


async def test_the_limit_on_memory_holds_while_nobody_is_there(tmp_path: Path) -> None:
    engine = LocalEngine(tmp_path)
    code = "import time; print('go', flush=True); time.sleep(0.5); hoard = b'x' * 10**9; time.sleep(600)"
    async with leaving(tmp_path, "python3", "x = 41", code, str(300 * 2**20)):
        pass

    async with engine.opened():
        async with asyncio.timeout(30):
            while (kept := await only_kept(engine)).exit is None:
                await asyncio.sleep(0.05)
        async with engine.adopt(kept.kernel_id):
            pass

    assert kept.limits == Limits(memory_bytes=300 * 2**20)
    assert kept.exit.out_of_memory


# The keeper's own end


async def test_kernels_of_a_keeper_that_was_killed_are_ended_and_reported(
    engine: LocalEngine, tmp_path: Path, intake: Intake
) -> None:
    async with running(engine, launch(engine), intake, 60) as kernel:
        await run(kernel, "import subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True)")
        processes = kernels_of(tmp_path)

        keepers_of(tmp_path)[0].kill()

        async with asyncio.timeout(10):
            exit_ = await kernel.process.ended()
        await gone(processes)
    async with running(engine, launch(engine), intake, 60) as kernel:
        assert await run(kernel, "print(1)") == "1\n"

    assert exit_.reason == KEEPER_ENDED
    assert len(processes) == 2
    assert list((tmp_path / "kernels").iterdir()) == []


async def test_kernels_of_a_keeper_that_died_with_its_gateway_are_ended_by_the_next(
    tmp_path: Path, intake: Intake
) -> None:
    code = "import subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True); print('go')"
    async with leaving(tmp_path, "python3", "x = 41", code) as begun:
        processes, keepers = kernels_of(tmp_path), keepers_of(tmp_path)
        keepers[0].suspend()
    keepers[0].kill()

    engine = LocalEngine(tmp_path)
    async with engine.opened():
        ended = await engine.end_orphans()
        kept = await only_kept(engine)
        async with engine.adopt(kept.kernel_id) as process:
            exit_ = await process.ended()
        with pytest.raises(KernelGone):
            async with engine.adopt(kept.kernel_id):
                pass

    await gone(processes)
    assert ended <= 1  # behind walls it has ended with its keeper already
    assert kept.kernel_id == begun["kernel_id"]
    assert kept.exit is not None
    assert kept.exit == exit_
    assert exit_.reason == KEEPER_ENDED


async def test_a_keeper_without_kernels_and_gateways_ends_by_itself(tmp_path: Path) -> None:
    async with leaving(tmp_path, "", "", "", events=0):
        keepers = keepers_of(tmp_path)
        assert len(keepers) == 1

    await gone(keepers)

    assert list((tmp_path / "keepers").glob("*.json")) == []


async def test_of_two_keepers_that_start_at_once_one_serves(tmp_path: Path) -> None:
    one, other = LocalEngine(tmp_path), LocalEngine(tmp_path)
    openings = [one.opened(), other.opened()]

    await asyncio.gather(*(opening.__aenter__() for opening in openings))
    keepers = keepers_of(tmp_path)
    await asyncio.gather(*(opening.__aexit__(None, None, None) for opening in openings))

    assert len(keepers) == 1
    await gone(keepers)


# Who commands


async def test_a_kernel_obeys_only_who_adopted_it_last(engine: LocalEngine, tmp_path: Path, intake: Intake) -> None:
    later = LocalEngine(tmp_path)
    async with later.opened(), running(engine, launch(engine), intake, 60) as kernel:
        await run(kernel, "x = 41")
        async with attached(later, await only_kept(later), intake, 60) as taken:
            exit_ = await kernel.process.ended()
            await kernel.process.kill("It is no longer ours to end.")
            with pytest.raises(Refused):
                async with engine.adopt(kernel.id):
                    pass

            assert "Another gateway" in exit_.reason
            assert await run(taken, "print(x)") == "41\n"


def test_the_version_is_of_every_module_that_a_keeper_runs() -> None:
    listed = subprocess.run(
        [sys.executable, "-c", "import sys, kernels.keeper; print(*(one.__file__ for one in sys.modules.values()"
         " if one.__name__.startswith('kernels.') and not one.__file__.endswith('__init__.py')))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = {Path(path) for path in listed.stdout.split()}

    assert Path(keeper.__file__).with_name("sockets.py") in loaded
    assert loaded - keeper._run_by_keepers() == set()


@pytest.mark.parametrize("changed", ["sockets.py", "errors.py", "inside/walls.py", "kernel.py"])
def test_another_version_is_what_keepers_run_otherwise_and_nothing_else(tmp_path: Path, changed: str) -> None:
    shutil.copytree(Path(keeper.__file__).parent, tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    tell = [sys.executable, "-c", "import kernels.keeper; print(kernels.keeper.version())"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}

    before = subprocess.run(tell, env=env, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    with open(tmp_path / "kernels" / changed, "a") as file:
        file.write("# changed\n")
    after = subprocess.run(tell, env=env, capture_output=True, text=True, check=True, cwd=tmp_path).stdout

    assert (before != after) is (changed != "kernel.py")  # which gateways alone run


@pytest.mark.skipif(sys.platform != "linux", reason="only there are kernels forked")
@pytest.mark.slow
async def test_what_was_forking_a_kernel_when_it_was_killed_leaves_nothing(tmp_path: Path, intake: Intake) -> None:
    """Killed again and again, at whatever it is at: what replaces it forks ahead at once."""
    engine = LocalEngine(tmp_path, pool_size=4)
    async with engine.opened(), running(engine, launch(engine), intake, 60) as kernel:
        for number in range(8):
            with contextlib.suppress(TimeoutError):  # one that fails time after time is not started at once again
                async with asyncio.timeout(5):
                    while not (zygotes := [one for one in spares_of(tmp_path) if _forks(one)]):
                        await asyncio.sleep(0.005)
                await asyncio.sleep(number * 0.004)
                for zygote in zygotes:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        zygote.kill()

        async with asyncio.timeout(30):
            while any(_alone(init) for init in inits_of(tmp_path)):
                await asyncio.sleep(0.1)
        await kernel.channels.ask("control", "kernel_info_request", {})


def _forks(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.name() == "kernel-zygote"
    return False


def _pid_namespace(pid: int) -> str:
    with contextlib.suppress(OSError):
        return os.readlink(f"/proc/{pid}/ns/pid")
    return ""


def _alone(init: psutil.Process) -> bool:
    """Whether nothing is in its namespace but itself."""
    namespace = _pid_namespace(init.pid)
    return namespace != "" and not any(_pid_namespace(pid) == namespace for pid in psutil.pids() if pid != init.pid)


async def test_a_newer_version_takes_over_without_ending_kernels(tmp_path: Path, intake: Intake) -> None:
    old, new = LocalEngine(tmp_path, keeper_version="old"), LocalEngine(tmp_path, keeper_version="new")
    async with old.opened():
        former = keepers_of(tmp_path)
        async with running(old, launch(old), intake, 60) as kernel, new.opened():
            await run(kernel, "x = 41")
            async with running(new, launch(new), intake, 60) as newer:
                assert len(keepers_of(tmp_path)) == 2
                assert await run(newer, "print(1)") == "1\n"
                async with attached(new, await only_kept(new), intake, 60) as adopted:
                    assert await run(adopted, "print(x)") == "41\n"
        await gone(former)

        async with running(old, launch(old), intake, 60) as kernel:  # it finds another one of its version
            assert await run(kernel, "print(2)") == "2\n"


# Strangers


def address_of(data_dir: Path) -> str:
    (file,) = (data_dir / "keepers").glob("*.json")
    return str(Path(json.loads(file.read_text())["runtime"]) / "keeper")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\x00garbage\n",
        b"[1]\n",
        b"{" * 20_000_000,
        b"[" * 100_000 + b"\n",
        b'{"do": "start", "order": {}}\n',
        b'{"do": ["kill"], "id": {}}\n',
        b'{"do": "forget", "kernel_id": "../../x"}\n',
        b'{"do": "adopt", "kernel_id": 1}\n',
        b'{"do": "kill", "kernel_id": []}\n',
        b'{"do": "hello", "what": 1}\n' * 1000,
    ],
    ids=range(10),
)
async def test_garbage_on_the_socket_harms_nobody(
    engine: LocalEngine, tmp_path: Path, intake: Intake, garbage: bytes
) -> None:
    def send() -> None:
        with socket.socket(socket.AF_UNIX) as stranger:
            stranger.connect(address_of(tmp_path))
            try:
                stranger.sendall(garbage)
                stranger.shutdown(socket.SHUT_WR)
                while stranger.recv(65536):
                    pass
            except OSError:  # it hung up on us
                pass

    async with engine.start(launch(engine)) as process:
        await asyncio.to_thread(send)

        assert process.running
        assert (await process.usage()).process_count == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
async def test_nobody_else_is_listened_to(engine: LocalEngine, tmp_path: Path) -> None:
    address = address_of(tmp_path)
    os.chmod(os.path.dirname(address), 0o711)  # noqa: S103 - made so by mistake
    os.chmod(address, 0o777)  # noqa: S103

    assert "answer" in await asyncio.to_thread(said_to, 0, address)
    assert await asyncio.to_thread(said_to, 65534, address) == ""


def said_to(user: int, address: str) -> str:
    """What the keeper answers to a user."""
    code = """
import socket, sys
with socket.socket(socket.AF_UNIX) as stranger:
    stranger.connect(sys.argv[1])
    try:
        stranger.sendall(b'{"do": "hello"}\\n')
        print(stranger.recv(1000).decode(), end='')
    except OSError:
        pass
"""
    command = ["/usr/bin/python3", "-c", code, address]
    return subprocess.run(command, user=user, capture_output=True, text=True, cwd="/", check=True).stdout


async def test_a_start_that_fails_leaves_nothing(engine: LocalEngine, tmp_path: Path) -> None:
    wanted = launch(engine)
    spec = {**{name: getattr(wanted.spec, name) for name in wanted.spec.__slots__}, "argv": ("/no/such/program",)}
    spec["language"] = "none"

    with pytest.raises(StartFailed, match="does not start"):
        async with engine.start(Launch(kernel_id=wanted.kernel_id, place="place", spec=type(wanted.spec)(**spec))):
            pass

    assert list((tmp_path / "journals").iterdir()) == list((tmp_path / "kernels").iterdir()) == []
    assert await engine.kept() == []
