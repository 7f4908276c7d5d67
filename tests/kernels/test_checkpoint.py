"""Checkpoints asked of live kernels."""

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest

from kernels import asking, checkpoint
from kernels.checkpoint import Unsaved
from kernels.engine import Launch
from kernels.engines.local import LocalEngine
from kernels.errors import CheckpointFailed, KernelBusy
from kernels.intake import Intake
from kernels.kernel import Kernel, running
from tests.kernels.test_kernel import executing, intake, launch, run  # noqa: F401

# An object that, when it is saved, says who saves it and waits until it is told to go on.
SLOW = """
import os
class Slow:
    def __reduce__(self):
        with open('saver.new', 'w') as file: file.write(str(os.getpid()))
        os.rename('saver.new', 'saver')
        open('go').read()
        return Slow, ()
slow = Slow()
"""
TORCH = """
import sys, types
torch = sys.modules['torch'] = types.ModuleType('torch')
torch.cuda = types.SimpleNamespace(is_initialized=lambda: True)
del torch
"""


class Session:
    """A kernel, its workspace, and a folder for a checkpoint."""

    def __init__(self, kernel: Kernel, workspace: Path, folder: Path) -> None:
        self.kernel = kernel
        self.workspace = workspace
        self.folder = folder
        os.mkfifo(workspace / "go")

    async def run(self, code: str) -> str:
        reply, events = await run(self.kernel, code)
        assert reply["status"] == "ok", reply
        return "".join(event.data["text"] for event in events if event.kind == "stdout")

    async def save(self, *, wait_s: float = 30, timeout_s: float = 60) -> checkpoint.Checkpoint:
        return await checkpoint.save(self.kernel.channels, str(self.folder), wait_s=wait_s, timeout_s=timeout_s)

    async def load(self, **more: Any) -> checkpoint.Restored:
        return await checkpoint.load(self.kernel.channels, str(self.folder), **{"timeout_s": 60, **more})

    @asynccontextmanager
    async def saving(self, **more: Any) -> AsyncIterator[tuple[psutil.Process, "asyncio.Task[checkpoint.Checkpoint]"]]:
        """While a checkpoint is being written: the process that does it, which goes on when the block is left."""
        await self.run(SLOW)
        task = asyncio.create_task(self.save(**more))
        while not (self.workspace / "saver").exists() and not task.done():
            await asyncio.sleep(0.005)
        assert not task.done(), task.result()
        saver = psutil.Process(int((self.workspace / "saver").read_text()))
        try:
            yield saver, task
        finally:
            (self.workspace / "saver").unlink()
            while not task.done():
                with contextlib.suppress(OSError):  # nobody reads it
                    os.close(os.open(self.workspace / "go", os.O_WRONLY | os.O_NONBLOCK))
                await asyncio.sleep(0.005)

    def unfinished(self) -> bool:
        return not (self.folder / "state.json").exists()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[LocalEngine]:
    """Without walls, behind which a kernel would not see the folders that these tests look into."""
    made = LocalEngine(tmp_path, isolation="none")
    async with made.opened():
        yield made


@pytest.fixture
async def session(kernel: Kernel, place: Path, tmp_path: Path) -> Session:
    return Session(kernel, place, tmp_path / "checkpoint")


@pytest.fixture
def launched(engine: LocalEngine) -> Launch:
    return launch(engine)


@pytest.fixture
async def kernel(
    engine: LocalEngine,
    intake: Intake,  # noqa: F811
    launched: Launch,
) -> AsyncIterator[Kernel]:
    async with running(engine, launched, intake, 60) as started:
        yield started


@pytest.fixture
def place(tmp_path: Path, launched: Launch) -> Path:
    return tmp_path / "sessions" / launched.place / "workspace"


@pytest.fixture
async def fresh(
    engine: LocalEngine,
    intake: Intake,  # noqa: F811
    tmp_path: Path,
) -> AsyncIterator[Session]:
    """Another session, for the same checkpoint."""
    other = launch(engine)
    async with running(engine, other, intake, 60) as started:
        yield Session(started, tmp_path / "sessions" / other.place / "workspace", tmp_path / "checkpoint")


async def test_a_session_goes_on_in_a_fresh_kernel(session: Session, fresh: Session) -> None:
    await session.run(
        "import sys, random, numpy as np\ncounter = 1\ndef bump():\n    global counter\n    counter += 1\n"
        "shared = [1]; both = {'a': shared, 'b': shared}; big = np.ones(50_000_000 // 8); part = big[10:]\n"
        "g = (i for i in []); out = sys.stdout; kind = type(get_ipython().kernel); random.seed(5)"
    )
    expected = await session.run("state = random.getstate(); print(random.random()); random.setstate(state); del state")

    saved = await session.save()
    restored = await fresh.load()

    assert (saved.method, saved.method_reason, saved.warnings) == ("fork", "", [])
    assert 0 < saved.pause_ms < 1000
    names = {it.name for it in saved.variables}
    assert names == {"sys", "random", "np", "counter", "bump", "shared", "both", "big", "part", "out", "kind"}
    assert next(it for it in saved.variables if it.name == "big").size > 49_000_000
    assert saved.unsaved == [Unsaved("g", "generator", "Python can't save a generator where it stands", False)]
    assert restored.variables == saved.variables
    assert (restored.unsaved, restored.failed, restored.warnings) == (saved.unsaved, [], [])
    checks = "both['a'] is shared, both['b'] is shared, out is sys.stdout, kind is type(get_ipython().kernel)"
    assert await fresh.run(f"bump(); print(counter, {checks})") == "2 True True True True\n"
    assert await fresh.run("part[0] = 7; print(big[10], int(big.sum()))") == "7.0 6250006\n"
    assert await fresh.run("print(random.random())") == expected
    assert "bump" in await fresh.run("print(In[1])")


async def test_behind_walls_checkpoints_leave_and_come_through_folders_lent_to_the_session(
    intake: Intake,  # noqa: F811
    tmp_path: Path,
) -> None:
    engine = LocalEngine(tmp_path)
    first, second = launch(engine), launch(engine)
    workspace = tmp_path / "sessions" / first.place / "workspace"
    async with engine.opened():
        async with (
            running(engine, first, intake, 60) as kernel,
            engine.snapshots.state_folder(first.place) as killed,
            engine.snapshots.state_folder(first.place) as whole,
        ):
            session = Session(kernel, workspace, Path(killed))
            await session.run(SLOW)
            saving = asyncio.create_task(session.save())
            while not (workspace / "saver").exists():
                await asyncio.sleep(0.005)
            await session.run("os.kill(int(open('saver').read()), 9)")
            with pytest.raises(CheckpointFailed, match="was killed before it had finished"):
                await saving
            assert session.unfinished()
            session.folder = Path(whole)
            await session.run("slow = None; shared = [1]; both = shared, shared")
            await session.save()
            await engine.snapshots.save(first.place, "saved", state=whole, files=False, facts={})
        await engine.snapshots.copy(first.place, "saved", second.place, "copied")
        async with running(engine, second, intake, 60) as kernel:
            async with engine.snapshots.state(second.place, "copied") as lent:
                assert lent is not None
                restored = await checkpoint.load(kernel.channels, lent, timeout_s=60)
            _, events = await run(kernel, "both[0] is both[1] is shared")

    assert restored.failed == []
    assert events[0].data["data"]["text/plain"] == "True"


async def test_the_session_goes_on_while_it_is_saved(session: Session) -> None:
    await session.run("x = 'before'")

    async with session.saving() as (_, saving):
        assert await session.run("x = 'after'; print(1 + 1)") == "2\n"
        listed = await session.kernel.namespace("list", offset=0, limit=100)
        assert "slow" in [one["name"] for one in listed["variables"]]
        assert not saving.done()
    after = await session.run("print(x)")
    saved = saving.result()
    await session.load()

    assert saved.unsaved == []
    assert after == "after\n"
    assert await session.run("print(x)") == "before\n"


async def test_a_cell_that_awaits_is_saved_when_it_has_ended(session: Session) -> None:
    code = (
        "import asyncio, os\nhalf = True; print('begun', flush=True)\n"
        "while not os.path.exists('now'): await asyncio.sleep(0.001)\nhalf = False"
    )
    async with executing(session.kernel, code) as (cell, events):
        while not events:
            await asyncio.sleep(0.005)
        saving = asyncio.create_task(session.save())
        for _ in range(20):  # the channel on which it was asked for answers, and the loop turns
            await session.kernel.namespace("list", offset=0, limit=10)
        assert not saving.done()
        assert not session.folder.exists()
        (session.workspace / "now").touch()
        await session.kernel.finish(cell)
    await saving
    await session.run("del half")
    await session.load()

    assert await session.run("print(half)") == "False\n"


async def test_whoever_does_not_wait_for_a_cell_gets_no_checkpoint_later(session: Session) -> None:
    code = "import time; print('begun', flush=True); time.sleep(600)"
    async with executing(session.kernel, code, grace_s=30) as (_, events):
        while not events:
            await asyncio.sleep(0.005)
        with pytest.raises(KernelBusy, match="A cell was running"):
            await session.save(wait_s=0.3)

    await session.run("1")
    assert not session.folder.exists()
    assert (await session.save(wait_s=0)).method == "fork"


async def test_two_checkpoints_are_taken_one_after_the_other(session: Session) -> None:
    async with session.saving() as (saver, first):
        with pytest.raises(KernelBusy, match="Another checkpoint was under way"):
            await session.save(wait_s=0)
        await session.run("del slow")
        second = asyncio.create_task(session.save())
        await session.kernel.namespace("list", offset=0, limit=10)
        assert saver.is_running()

    assert "slow" in [it.name for it in first.result().variables]
    assert "slow" not in [it.name for it in (await second).variables]


async def test_a_saver_that_is_killed_is_an_error_and_the_next_one_works(session: Session) -> None:
    async with session.saving() as (saver, saving):
        saver.kill()
        with pytest.raises(CheckpointFailed, match="was killed before it had finished"):
            await saving

    assert session.unfinished()
    await session.run("slow = 1")
    await session.save()
    assert not session.unfinished()


async def test_a_saver_that_crashes_says_of_what(session: Session) -> None:
    await session.run("import ctypes\nclass Bad:\n    def __reduce__(self): ctypes.string_at(0)\nbad = Bad()")

    with pytest.raises(CheckpointFailed, match=r"crashed \(Segmentation fault\)"):
        await session.save()

    assert session.unfinished()
    assert await session.run("print('alive')") == "alive\n"


async def test_a_lock_that_another_thread_holds_ends_in_an_error(session: Session) -> None:
    await session.run(
        "import threading, os, subprocess\nlock = threading.Lock()\n"
        "taken, release = threading.Event(), threading.Event()\n"
        "def hold():\n    with lock: taken.set(); release.wait()\n"
        "threading.Thread(target=hold, daemon=True).start(); taken.wait()\n"
        "class Locked:\n    def __getstate__(self):\n"
        "        open('saver', 'w').write(str(os.getpid())); subprocess.Popen(['sleep', '600'])\n"
        "        with lock: return {}\nlocked = Locked()"
    )

    with pytest.raises(CheckpointFailed, match=r"took longer than 1 s and was ended"):
        await session.save(timeout_s=1)

    assert session.unfinished()
    pid = int((session.workspace / "saver").read_text())
    assert not [it for it in psutil.pids() if group_of(it) == pid]
    assert await session.run("release.set(); print('alive')") == "alive\n"
    await session.run("locked = None")
    await session.save()


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid) if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else None
    except (ProcessLookupError, psutil.NoSuchProcess):
        return None


async def test_the_session_has_no_child_of_ours(session: Session) -> None:
    wait = "import os\ntry: print(os.wait())\nexcept ChildProcessError: print('none')"
    async with session.saving() as (saver, saving):
        assert await session.run(wait) == "none\n"
        assert saver.ppid() != session.kernel.process.pid  # type: ignore[attr-defined]
    await saving

    assert await session.run(wait) == "none\n"


async def test_an_interrupt_of_the_session_does_not_end_the_saver(session: Session) -> None:
    async with session.saving() as (_, saving):
        os.killpg(session.kernel.process.pid, signal.SIGINT)  # type: ignore[attr-defined]
        code = "import time; print('begun', flush=True); time.sleep(600)"
        async with executing(session.kernel, code, grace_s=30) as (_, events):
            while not events:
                await asyncio.sleep(0.005)

    assert "slow" in [it.name for it in (await saving).variables]


async def test_the_saver_holds_no_pipe_of_the_session(session: Session) -> None:
    await session.run("import subprocess; cat = subprocess.Popen(['cat'], stdin=subprocess.PIPE)")

    async with session.saving() as (_, saving):
        assert await session.run("cat.stdin.close(); print(cat.wait(timeout=10))") == "0\n"
    await saving


async def test_a_process_that_outlives_the_saver_is_not_waited_for(session: Session) -> None:
    await session.run(
        "import os, signal\nclass Forks:\n    def __reduce__(self):\n"
        "        if (pid := os.fork()) == 0: signal.pause()\n"
        "        open('forked', 'w').write(str(pid)); return Forks, ()\nforks = Forks()"
    )

    saved = await session.save(timeout_s=10)

    assert (saved.unsaved, session.unfinished()) == ([], False)
    os.kill(int((session.workspace / "forked").read_text()), signal.SIGKILL)


async def test_what_is_printed_while_saving_reaches_nobody(session: Session) -> None:
    heard: list[str] = []
    await session.run(
        "import os\nclass Loud:\n    def __reduce__(self):\n        print('said', flush=True); os.system('echo said')\n"
        "        os.write(1, b'said'); display('said'); get_ipython().run_cell('1/0'); return Loud, ()\nloud = Loud()"
    )
    stop = session.kernel.channels.listen(lambda message: heard.append(message.content_bytes.decode()))

    await session.save()
    await session.run("1")

    stop()
    assert not [text for text in heard if "said" in text or "ZeroDivision" in text]


async def test_a_disk_that_is_full_is_a_clear_error(session: Session) -> None:
    await session.run(
        "import resource; x = b'x' * 1_000_000; y = bytearray(1_000_000)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))"
    )

    with pytest.raises(CheckpointFailed, match=r"can't be written: File too large\."):
        await session.save()

    assert session.unfinished()
    await session.run("limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]")
    await session.run("resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))")
    assert (await session.save()).unsaved == []


async def test_a_folder_that_can_not_be_made_is_a_clear_error(session: Session) -> None:
    session.folder = session.workspace / "go" / "checkpoint"

    with pytest.raises(CheckpointFailed, match=r"can't be written: Not a directory\."):
        await session.save()


async def test_a_gpu_in_use_is_not_forked(session: Session) -> None:
    await session.run(f"{TORCH}\nx = [1]; y = x")

    saved = await session.save()
    await session.run("x = y = None")
    await session.load()

    assert saved.method == "in-process"
    assert saved.method_reason == "PyTorch is using a GPU, whose state can't be copied."
    assert await session.run("print(x is y)") == "True\n"


async def test_a_process_that_can_not_be_copied_is_saved_in_place(session: Session) -> None:
    await session.run(
        "import os\nstock_fork = os.fork\ndef full(): raise BlockingIOError(11, 'No room')\nos.fork = full"
    )

    saved = await session.save()

    assert (saved.method, saved.method_reason) == ("in-process", "The kernel can't be copied: No room.")


@pytest.mark.parametrize("how", ["the time is over", "interrupted"])
async def test_saving_in_place_can_be_stopped(session: Session, how: str) -> None:
    await session.run(TORCH)
    if how == "the time is over":
        await session.run("import time\nclass Slow:\n    def __reduce__(self): time.sleep(600)\nslow = Slow()")
        with pytest.raises(CheckpointFailed, match=r"took longer than 0\.5 s"):
            await session.save(timeout_s=0.5)
    else:
        async with session.saving() as (saver, saving):
            assert saver.pid == session.kernel.process.pid  # type: ignore[attr-defined]
            await session.kernel.interrupt()
            with pytest.raises(CheckpointFailed, match="It was interrupted"):
                await saving
            (session.workspace / "go").unlink()
            (session.workspace / "go").touch()

    assert session.unfinished()
    assert await session.run("slow = 1; print('alive')") == "alive\n"
    await session.save()


async def test_only_the_chosen_variables_come_back(session: Session) -> None:
    await session.run("a = 1; b = 2")
    await session.save()
    await session.run("b = 'mine'; del a")

    restored = await session.load(names=["a"])

    assert [it.name for it in restored.variables] == ["a"]
    assert await session.run("print(a, b)") == "1 mine\n"


async def test_a_damaged_checkpoint_leaves_the_variables_as_they_were(session: Session) -> None:
    await session.run("x = 'saved'")
    await session.save()
    await session.run("x = 'now'")
    path = session.folder / "segments.bin"
    path.write_bytes(path.read_bytes()[:-5])

    with pytest.raises(CheckpointFailed, match=r"`segments\.bin` has"):
        await session.load()

    assert await session.run("print(x)") == "now\n"


async def test_loading_that_takes_too_long_leaves_the_variables_as_they_were(session: Session) -> None:
    code = "import time\nclass Slow:\n    def __setstate__(self, state): time.sleep(600)\nx = 1; z = Slow(); z.a = 1"
    await session.run(code)
    await session.save()
    await session.run("x = 'mine'; del z")

    with pytest.raises(CheckpointFailed, match=r"took longer than 0\.5 s"):
        await session.load(timeout_s=0.5)

    assert await session.run("print(x, 'z' in globals())") == "mine False\n"


async def test_a_checkpoint_comes_back_from_extents_of_packs(session: Session) -> None:
    await session.run("import numpy as np; a = np.arange(1_000_000); b = np.arange(70_000); c = ['x' * 100_000]")
    await session.save()
    extents: dict[str, list[Any]] = {}
    packs = [(session.folder / f"pack-{name}").open("wb") for name in "ab"]
    for name in ("segments.bin", "buffers.bin"):
        path = session.folder / name
        data, extents[name] = path.read_bytes(), []
        path.unlink()
        for number, at in enumerate(range(0, len(data), 65536)):
            pack = packs[number % 3 % 2]
            pack.seek(-pack.tell() % 4096, os.SEEK_CUR)
            extents[name].append([os.path.basename(pack.name), pack.tell(), len(data[at : at + 65536])])
            pack.write(data[at : at + 65536])
    for pack in packs:
        pack.close()
    (session.folder / "extents.json").write_text(json.dumps(extents))

    await session.run("del a, b, c")
    restored = await session.load()

    assert restored.failed == []
    assert (
        await session.run("a[5] = 0; print(int(a.sum()), int(b.sum()), len(c[0]))")
        == "499999499995 2449965000 100000\n"
    )


async def test_a_kernel_that_is_not_ours_does_not_answer(
    engine: LocalEngine,
    intake: Intake,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(asking, "_ANSWER_S", 0.5)
    stock = launch(engine)
    code = "from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
    spec = replace(stock.spec, argv=(stock.spec.argv[0], "-c", code, "-f", "{connection_file}"))
    async with running(engine, replace(stock, spec=spec, kernel_id=str(uuid4())), intake, 60) as other:
        assert not other.is_ours
        with pytest.raises(CheckpointFailed, match="did not answer"):
            await checkpoint.save(other.channels, str(tmp_path / "checkpoint"), wait_s=0, timeout_s=0)


HOSTILE = [
    "{}",
    "{**good, 'variables': 5}",
    "{**good, 'variables': [5]}",
    "{**good, 'variables': [{'name': 'x', 'type': 'int', 'size': -1}]}",
    "{**good, 'unsaved': [{'name': 1, 'type': 'int', 'reason': 'x', 'part': False}]}",
    "{**good, 'pause_ms': 'long'}",
    "{**good, 'warnings': [{}]}",
    "{**good, 'packages': ['numpy']}",
    "{'status': 'error', 'ename': 5, 'evalue': {}}",
]


async def test_a_kernel_that_answers_with_anything_else_is_an_error(session: Session) -> None:
    await session.run(
        "answer = None\nasync def lie(stream, ident, parent):\n"
        "    k = get_ipython().kernel; k.session.send(stream, 'session_gateway_reply', answer, parent, ident=ident)\n"
        "get_ipython().kernel.control_handlers['session_gateway_request'] = lie\n"
        "good = {'status': 'ok', 'method': 'fork', 'method_reason': '', 'pause_ms': 1, 'variables': [], 'unsaved': [], "
        "'failed': [], 'warnings': [], 'packages': {}}"
    )
    for answer in HOSTILE:
        await session.run(f"answer = {answer}")
        with pytest.raises(CheckpointFailed, match=re.escape("The kernel")):
            await session.save()

    await session.run(
        "answer = {**good, 'method_reason': 'x' * 9999, 'method': 'magic', "
        "'variables': [{'name': 'x' * 1100, 'type': 'int', 'size': 1}] * 20_000}"
    )
    saved = await session.save()
    assert (len(saved.method_reason), saved.method) == (1000, "in-process")
    assert (len(saved.variables), len(saved.variables[0].name)) == (10_000, 1000)
    assert saved.warnings == ["Of 20000 variables, 10000 are listed."]
