"""Running code by the client: results, events, and what happens to a run that nobody waits for any more."""

import asyncio
import os
import signal
import sys
from contextlib import suppress
from typing import Any, assert_type

import pytest

from gateway.client import (
    AsyncGateway,
    AsyncPages,
    AsyncSession,
    Event,
    Gateway,
    Invalid,
    Pages,
    Run,
    RunFailed,
    Session,
    SessionNotFound,
)  # fmt: skip
from gateway.client.errors import Conflict, GatewayError
from gateway.states import State
from tests.gateway.client.proxies import cutting_proxy
from tests.gateways import GatewayProcess

FOREVER = "print('begun')\nimport time\nwhile True: time.sleep(0.02)"


async def test_a_run_tells_all_about_itself(session: AsyncSession) -> None:
    run = await session.run("import sys\nprint('out')\nprint('err', file=sys.stderr)\n6 * 7", env={"A": "b"})

    assert_type(run, Run)
    assert (run.success, run.stdout, run.stderr, run.result, run.error_message) == (True, "out\n", "err\n", "42", None)
    assert run.state is State.READY
    assert str(run) == "out\nerr\n42"
    assert repr(run) == "<Run [1] ok 42>"


def test_the_blocking_client_does_the_same(blocking_session: Session) -> None:
    run = blocking_session.run("x = 20\nx + 22", update_data={"seen": True})

    assert_type(run, Run)
    assert (run.result, run.data) == ("42", {"seen": True})
    assert [event.kind for event in blocking_session.stream("print(x)")] == ["start", "stdout", "done"]
    assert_type(blocking_session.executions(), Pages[Run])
    assert [one.code for one in blocking_session.executions(limit=1)] == ["print(x)", "x = 20\nx + 22"]
    assert blocking_session.start("x").wait().result == "20"


async def test_code_that_fails_is_a_result_unless_it_is_to_be_checked(session: AsyncSession) -> None:
    run = await session.run("1 / 0")
    assert (run.success, run.error_message) == (False, "ZeroDivisionError: division by zero")
    assert repr(run) == "<Run [1] error ZeroDivisionError: division by zero>"

    with pytest.raises(RunFailed, match="division by zero") as failed:
        await session.run("1 / 0", check=True)
    assert failed.value.run.execution_count == 2
    late = await session.run("import time; time.sleep(60)", timeout=0.3)
    assert (late.status, late.exit_code) == ("timeout", 124)


async def test_events_come_while_the_code_runs_and_input_is_answered(session: AsyncSession) -> None:
    kinds: list[str] = []
    async with session.stream("name = input('Who? ')\nprint('Hello', name)\nname") as events:
        async for event in events:
            assert_type(event, Event)
            kinds.append(event.kind)
            if event.kind == "input_request":
                assert event.data["prompt"] == "Who? "
                await session.answer("Ann")

    assert kinds == ["start", "input_request", "stdout", "result", "done"]
    assert events.run is not None
    assert (events.run.stdout, events.run.result) == ("Hello Ann\n", "'Ann'")
    with pytest.raises(Conflict):
        await session.answer("nobody asks")


async def test_leaving_a_stream_early_ends_its_run_and_following_another_does_not(session: AsyncSession) -> None:
    async with session.stream(FOREVER) as events:
        async for event in events:
            if event.text == "begun\n":
                break
    assert (await session.executions().all())[0].status == "interrupted"

    begun = await session.start("import time; time.sleep(0.5); 'done'")
    async with begun.events() as followed:
        async for _ in followed:
            break
    assert (await begun.wait()).result == "'done'"


async def test_a_stream_that_was_left_before_it_had_a_name_ends_its_run(session: AsyncSession) -> None:
    """What is queued behind another run has told nothing yet."""
    first = await session.start(FOREVER)
    async with session.stream("'second'") as events:
        waiting = asyncio.create_task(anext(events))
        while len(await session.executions().all()) < 2:
            await asyncio.sleep(0.02)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting

    second = await session.executions().first()
    assert second is not None
    assert (second.code, second.status) == ("'second'", "interrupted")
    assert (await first.cancel()).status == "interrupted"


async def test_a_task_that_is_cancelled_interrupts_the_run_that_it_waits_for(session: AsyncSession) -> None:
    waiting = asyncio.create_task(session.run(FOREVER))
    while (await session.info()).state is not State.BUSY:
        await asyncio.sleep(0.02)

    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    assert [run.status for run in await session.executions().all()] == ["interrupted"]
    assert (await session.run("1 + 1")).result == "2"


async def test_ctrl_c_interrupts_the_run_that_the_blocking_client_waits_for(
    session: AsyncSession, gateway: GatewayProcess
) -> None:
    program = (
        "import sys; from gateway.client import Gateway; Gateway(sys.argv[1]).session(sys.argv[2]).run(sys.argv[3])"
    )
    waiting = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, gateway.url, session.id, FOREVER, stderr=asyncio.subprocess.PIPE
    )
    while (await session.info()).state is not State.BUSY:
        await asyncio.sleep(0.02)

    os.kill(waiting.pid, signal.SIGINT)
    _, words = await waiting.communicate()

    assert words.decode().endswith("KeyboardInterrupt\n")
    assert [run.status for run in await session.executions().all()] == ["interrupted"]


async def test_a_stream_that_is_cut_off_goes_on_after_its_last_event(
    session: AsyncSession, gateway: GatewayProcess
) -> None:
    code = "import time\nfor i in range(40): print(i, flush=True); time.sleep(0.02)"
    passed = {1: 0, 2: 0}

    def cut(connection: int, received: bytes) -> bool:
        passed[connection] = passed.get(connection, 0) + received.count(b"event: stdout")
        return connection <= 2 and passed[connection] >= 5

    async with (
        cutting_proxy(gateway.url, cut) as proxy,
        AsyncGateway(proxy.url) as client,
        client.session(session.id).stream(code) as events,
    ):
        told = [event async for event in events]

    assert "".join(event.text for event in told) == "".join(f"{i}\n" for i in range(40))
    assert [event.kind for event in told if event.kind != "stdout"] == ["start", "done"]
    assert proxy.connections == 3
    assert b"last-event-id: " in proxy.requests[2].lower()


async def test_what_a_run_told_while_nobody_could_follow_it_comes_before_its_end(session: AsyncSession) -> None:
    begun = await session.start("print('a')\n42")
    await begun.wait()

    late = begun.events()
    late._position.last_id = f"{begun.id}:9999"  # as one who comes back when its events are kept no more
    late._position._printed["stdout"] = 1

    assert [(event.kind, event.text) async for event in late] == [("stdout", "\n"), ("result", ""), ("done", "")]


async def test_a_run_that_is_refused_raises_and_is_not_tried_for_ever(client: AsyncGateway, session_id: str) -> None:
    with pytest.raises(Invalid) as refused:
        await client.session(session_id).run("1", env={"not a name": "x"})
    assert (refused.value.status, refused.value.code) == (422, "invalid")
    assert list(refused.value.details) == ["env"]
    assert refused.value.request_id

    with pytest.raises(GatewayError, match="env"):
        async for _ in client.session(session_id).stream("1", env={"not a name": "x"}):
            pass
    with pytest.raises(SessionNotFound):
        await client.session(session_id).info()


async def test_an_answer_that_is_lost_is_asked_for_again_and_the_code_runs_once(
    session: AsyncSession, gateway: GatewayProcess
) -> None:
    def cut(connection: int, received: bytes) -> bool:
        return connection == 1

    async with cutting_proxy(gateway.url, cut) as proxy, AsyncGateway(proxy.url) as client:
        run = await client.session(session.id).run("n = globals().get('n', 0) + 1\nn")

    assert (run.result, run.execution_count) == ("1", 1)
    assert proxy.connections == 2
    keys = [head.split(b"dempotency-Key: ")[1].split(b"\r")[0] for head in proxy.requests]
    assert keys[0] == keys[1]


async def test_a_deletion_whose_answer_is_lost_is_a_deletion(session: AsyncSession, gateway: GatewayProcess) -> None:
    def cut(connection: int, received: bytes) -> bool:
        return connection == 1

    async with cutting_proxy(gateway.url, cut) as proxy, AsyncGateway(proxy.url) as client:
        deleted = await client.delete(session.id)

    assert (deleted.success, deleted.id) == (True, session.id)
    with pytest.raises(SessionNotFound):
        await session.delete()


async def test_code_is_run_once_in_a_session_that_is_gone_afterwards(client: AsyncGateway) -> None:
    run = await client.execute(
        "print(open('t.txt').read(), open('b.bin', 'rb').read(), input())", stdin="line",
        files={"t.txt": "text", "b.bin": b"\x00\xff"},
    )  # fmt: skip

    assert run.stdout == "text b'\\x00\\xff' line\n"
    async with asyncio.timeout(10):
        while await client.list().count():
            await asyncio.sleep(0.02)
    assert_type(client.list(), AsyncPages[AsyncSession])


def test_a_hundred_runs_in_threads_share_one_client(blocking: Gateway) -> None:
    """A client is safe to share: each thread gets its own answers."""
    from concurrent.futures import ThreadPoolExecutor

    sessions = [blocking.create() for _ in range(4)]

    def run(number: int) -> tuple[int, Any]:
        return number, sessions[number % 4].run(f"{number} * 2").result

    with ThreadPoolExecutor(16) as threads:
        assert list(threads.map(run, range(100))) == [(number, str(number * 2)) for number in range(100)]
