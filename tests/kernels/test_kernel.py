"""A kernel without any gateway: what the library promises to who uses it alone."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import psutil
import pytest

from kernels.engine import Launch
from kernels.engines.local import LocalEngine
from kernels.errors import KernelGone, StartFailed
from kernels.intake import Intake
from kernels.kernel import Kernel, running
from kernels.messages import Message, received
from kernels.outputs import Event
from kernels.zmtp import Inflow
from tests.gateways import kernels_of


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[LocalEngine]:
    made = LocalEngine(tmp_path)
    async with made.opened():
        yield made


@pytest.fixture
def intake() -> Intake:
    return Intake()


@pytest.fixture
async def kernel(engine: LocalEngine, intake: Intake) -> AsyncIterator[Kernel]:
    async with running(engine, launch(engine), intake, 60) as started:
        yield started


def launch(engine: LocalEngine, **changes: Any) -> Launch:
    return Launch(kernel_id=str(uuid4()), place=uuid4().hex, spec=engine.kernelspecs()["python3"], **changes)


def ignore_input(prompt: str, password: bool) -> None:
    pass


@asynccontextmanager
async def executing(kernel: Kernel, code: str, **more: Any) -> AsyncIterator[tuple[Any, list[Event]]]:
    """A cell and the events that it has sent so far."""
    events: list[Event] = []
    keywords: dict[str, Any] = {
        "on_input": ignore_input,
        "output_limit_bytes": 1_000_000,
        "grace_s": 1.0,
        **more,
    }
    async with kernel.execute(uuid4().hex, code, on_event=events.append, **keywords) as cell:
        yield cell, events


async def run(kernel: Kernel, code: str, **more: Any) -> tuple[dict[str, Any], list[Event]]:
    async with executing(kernel, code, **more) as (cell, events):
        return await kernel.finish(cell), events


async def test_a_cell_ends_with_its_reply_and_all_of_its_output(kernel: Kernel) -> None:
    for n in range(50):
        reply, events = await run(kernel, f"print({n}); {n}")

        assert reply["status"] == "ok"
        assert "".join(event.data["text"] for event in events if event.kind == "stdout") == f"{n}\n"
        assert events[-1].data["data"]["text/plain"] == str(n)


async def test_leaving_early_interrupts_the_cell_and_waits_for_its_end(kernel: Kernel) -> None:
    await run(kernel, "x = 41")
    with pytest.raises(RuntimeError, match="away"):
        async with executing(kernel, "import time; time.sleep(600)") as (cell, _):
            raise RuntimeError("away")

    assert cell.ended
    _, events = await run(kernel, "x + 1")
    assert events[0].data["data"]["text/plain"] == "42"


async def test_leaving_a_cell_that_will_not_stop_ends_the_kernel(kernel: Kernel) -> None:
    code = "import time\nwhile True:\n  try: print('begun'), time.sleep(60)\n  except KeyboardInterrupt: pass"
    begun = asyncio.Event()
    async with kernel.execute(
        uuid4().hex, code, on_event=lambda _: begun.set(), on_input=ignore_input, output_limit_bytes=1000, grace_s=1.0
    ):
        await begun.wait()

    exit_ = await kernel.ended
    assert "would not stop" in exit_.reason
    with pytest.raises(KernelGone, match="would not stop"):
        await run(kernel, "1")


async def test_a_kernel_that_can_not_be_heard_any_more_is_ended(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(inflow: Inflow) -> list[bytes]:
        raise MemoryError

    monkeypatch.setattr(Inflow, "next", breaks)
    with pytest.raises(KernelGone, match="connection to it broke"):
        await run(kernel, "1")

    assert "connection to it broke" in (await kernel.ended).reason


async def test_a_cell_is_inspected_while_it_runs(kernel: Kernel) -> None:
    await run(kernel, "some_name = 1")
    async with executing(kernel, "import time; time.sleep(600)") as (cell, _):
        completed, listed = await asyncio.gather(
            kernel.complete("some_na", 7), kernel.namespace("list", offset=0, limit=10)
        )
        assert not cell.ended

    assert "some_name" in completed["matches"]
    assert "some_name" in [one["name"] for one in listed["variables"]]


async def test_a_kernel_that_does_not_come_up_says_why(engine: LocalEngine, intake: Intake, tmp_path: Path) -> None:
    with pytest.raises(StartFailed, match="no-such-codec"):
        async with running(engine, launch(engine, env={"PYTHONIOENCODING": "no-such-codec"}), intake, 60):
            pass

    assert kernels_of(tmp_path) == []


async def test_a_kernel_that_does_not_answer_in_time_is_ended(
    engine: LocalEngine, intake: Intake, tmp_path: Path
) -> None:
    with pytest.raises(StartFailed, match=r"did not answer within 0\.001 s"):
        async with running(engine, launch(engine), intake, 0.001):
            pass

    assert kernels_of(tmp_path) == []


async def test_leaving_the_block_ends_the_kernel_and_all_that_it_started(
    engine: LocalEngine, intake: Intake, tmp_path: Path
) -> None:
    async with running(engine, launch(engine), intake, 60) as kernel:
        await run(kernel, "import subprocess; p = subprocess.Popen(['sleep', '600'], start_new_session=True)")
        assert len(kernels_of(tmp_path)) == 2
        namespace = pid_namespace(kernels_of(tmp_path)[0].pid)

    assert kernels_of(tmp_path) == []
    assert namespace == pid_namespace(os.getpid()) or namespace not in map(pid_namespace, psutil.pids())


def pid_namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


async def test_a_kernel_asked_to_shut_down_runs_its_exit_handlers(
    engine: LocalEngine, intake: Intake, tmp_path: Path
) -> None:
    launched = launch(engine)
    async with running(engine, launched, intake, 60) as kernel:
        await run(kernel, "import atexit, pathlib; atexit.register(pathlib.Path('said').write_text, 'bye')")
        await kernel.shut_down(10)

    assert (tmp_path / "sessions" / launched.place / "workspace" / "said").read_text() == "bye"


@pytest.mark.parametrize("flaw", [{"version": "no version"}, {}])
async def test_a_request_that_the_kernel_drops_is_told_as_never_run(kernel: Kernel, flaw: dict[str, str]) -> None:
    header = {"msg_id": uuid4().hex, "msg_type": "execute_request", "version": "5.4", "session": "s", **flaw}
    content = {"code": "x = 1"} if flaw else {"no code": "x = 1"}
    request = received([orjson.dumps(part) for part in (header, {}, {}, content)])
    replies: list[Message] = []
    events: list[Event] = []

    running_ = kernel.execute_request(
        request, on_event=events.append, on_input=ignore_input, on_reply=replies.append, output_limit_bytes=1000
    )
    async with running_ as cell:
        reply = await kernel.finish(cell)

    assert (reply["status"], reply["ename"], replies) == ("error", "NoReply", [])
    assert (await run(kernel, "'x' in globals()"))[1][0].data["data"]["text/plain"] == "False"
