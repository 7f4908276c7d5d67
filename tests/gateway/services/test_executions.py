"""Runs: their order, their limits, and all the ways that they end."""

import asyncio
import sqlite3
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.api import Api, Sse
from tests.gateways import WHICH_PROCESS, GatewayProcess, gateway_process, kernels_of

MEBI = 2**20

LOCKED_IN_C = """
import ctypes
libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_lock(mutex)
"""


def marked(marker: str) -> list[psutil.Process]:
    """Processes that carry a marker on their command line."""
    processes = list(psutil.process_iter(["cmdline", "status"]))
    alive = [one for one in processes if one.info["status"] != psutil.STATUS_ZOMBIE]
    return [one for one in alive if any(marker in part for part in one.info["cmdline"] or [])]


@pytest.fixture
def marker() -> str:
    return f"marker-{uuid.uuid4().hex}"


async def collected(stream: AsyncIterator[Sse]) -> list[Sse]:
    return [event async for event in stream]


def text_of(events: list[Sse], kind: str = "stdout") -> str:
    return "".join(event.data["text"] for event in events if event.kind == kind)


async def started(stream: AsyncIterator[Sse], kind: str = "stdout") -> Sse:
    """The first event of a kind."""
    async with asyncio.timeout(60):
        async for event in stream:
            if event.kind == kind:
                return event
    raise AssertionError(f"no {kind} came")


async def peak_growth(gateway: GatewayProcess, work: Any) -> tuple[Any, int]:
    """What the work gives, and by how many bytes the gateway's memory grew at most meanwhile."""
    process = psutil.Process(gateway.pid)
    before = peak = process.memory_info().rss
    task = asyncio.ensure_future(work)
    while not (await asyncio.wait({task}, timeout=0.05))[0]:
        peak = max(peak, process.memory_info().rss)
    return task.result(), max(peak, process.memory_info().rss) - before


# Order


async def test_runs_of_32_clients_on_one_session_queue_and_keep_their_outputs_apart(api: Api, session_id: str) -> None:
    await api.run(session_id, "turn = 0")
    code = "turn += 1\nfor part in range(20): print('{n}', part)\n'{n}'"

    answers = await asyncio.gather(*(api.run(session_id, code.replace("{n}", f"client {n}")) for n in range(32)))

    for n, answer in enumerate(answers):
        assert answer["stdout"] == "".join(f"client {n} {part}\n" for part in range(20))
        assert answer["result"] == f"'client {n}'"
        assert len(answer["outputs"]) == 2
    assert (await api.run(session_id, "turn"))["result"] == "32"
    counts = [answer["execution_count"] for answer in answers]
    assert sorted(counts) == list(range(2, 34))


async def test_runs_of_one_session_go_in_the_order_in_which_they_came(api: Api, session_id: str) -> None:
    await api.run(session_id, "order = []")
    accepted = [
        await api.post(f"/api/sessions/{session_id}/run", {"code": f"order.append({n})", "background": True})
        for n in range(20)
    ]

    answer = await api.run(session_id, "order")

    assert answer["result"] == str(list(range(20)))
    assert len({one["execution_id"] for one in accepted}) == 20


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_32_sessions_run_side_by_side(api: Api) -> None:
    ids = [f"side-{uuid.uuid4().hex[:8]}" for _ in range(32)]
    api.http.timeout = 240

    answers = await asyncio.gather(*(api.run(one, f"name = {one!r}; print(name); {WHICH_PROCESS}") for one in ids))
    began = time.perf_counter()
    await asyncio.gather(*(api.run(one, "import time; time.sleep(2)") for one in ids))
    together_s = time.perf_counter() - began

    assert [answer["stdout"].strip() for answer in answers] == ids
    assert len({answer["result"] for answer in answers}) == 32
    assert together_s < 32
    await asyncio.gather(*(api.call("DELETE", f"/api/sessions/{one}") for one in ids))


# Floods


async def test_a_cell_that_prints_a_gigabyte_is_cut_and_leaves_the_gateway_small(
    gateway: GatewayProcess, api: Api, session_id: str
) -> None:
    await api.run(session_id, "line = 'x' * 1_000_000")

    answer, growth = await peak_growth(gateway, api.run(session_id, "for _ in range(1000): print(line)\n'the end'"))

    assert answer["truncated"]
    assert answer["status"] == "ok"
    assert answer["result"] == "'the end'"
    assert len(answer["stdout"]) <= 10 * MEBI
    assert growth < 150 * MEBI
    again = await api.run(session_id, "print('still here')")
    assert (again["stdout"], again["truncated"]) == ("still here\n", False)


async def test_one_print_of_676_megabytes_is_cut(gateway: GatewayProcess, api: Api, session_id: str) -> None:
    answer, growth = await peak_growth(gateway, api.run(session_id, "print('y' * 676_000_000)"))

    assert answer["truncated"]
    assert growth < 150 * MEBI
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"


async def test_a_gigabyte_from_another_program_is_cut(gateway: GatewayProcess, api: Api, session_id: str) -> None:
    code = "import os; os.system('head -c 1000000000 /dev/zero | tr \"\\\\0\" z')"

    answer, growth = await peak_growth(gateway, api.run(session_id, code))

    assert answer["truncated"]
    assert answer["result"] == "0"
    assert growth < 150 * MEBI
    log = await api.http.get(f"/api/sessions/{session_id}/logs")
    assert len(log.content) < 5 * MEBI
    assert (await api.run(session_id, "print('after')"))["stdout"] == "after\n"


async def test_a_display_of_200_megabytes_is_left_out_and_said_so(
    gateway: GatewayProcess, api: Api, session_id: str
) -> None:
    code = "from IPython.display import HTML, display; display(HTML('<p>' * 70_000_000)); print('next')"

    answer, growth = await peak_growth(gateway, api.run(session_id, code))

    assert answer["truncated"]
    assert "past the limit" in str(answer["outputs"][0])
    assert answer["stdout"] == "next\n"
    assert growth < 150 * MEBI
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"


async def test_displays_without_end_are_cut(gateway: GatewayProcess, api: Api, session_id: str) -> None:
    code = "from IPython.display import HTML, display\nfor _ in range(3000): display(HTML('x' * 90_000))\n'end'"

    answer, growth = await peak_growth(gateway, api.run(session_id, code))

    assert answer["truncated"]
    assert answer["result"] == "'end'"
    assert growth < 150 * MEBI


async def test_an_exception_with_a_message_of_200_megabytes_is_cut(
    gateway: GatewayProcess, api: Api, session_id: str
) -> None:
    answer, growth = await peak_growth(gateway, api.run(session_id, "raise ValueError('v' * 200_000_000)"))

    assert answer["status"] == "error"
    assert answer["error"]["ename"] == "ValueError"
    assert growth < 150 * MEBI
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"


RAW = """
from jupyter_client.session import Session
kernel = get_ipython().kernel
raw = Session(key=kernel.session.key, signature_scheme=kernel.session.signature_scheme)
def publish(kind, content):
    raw.send(kernel.iopub_socket, kind, content, parent=kernel.get_parent())
"""


async def test_errors_that_are_sent_past_our_kernels_limit_are_cut(
    gateway: GatewayProcess, api: Api, session_id: str
) -> None:
    await api.run(session_id, RAW)
    flood = "for _ in range(400): publish('error', {'ename': 'E', 'evalue': '', 'traceback': ['t' * 90_000] * 11})"

    answer, growth = await peak_growth(gateway, api.run(session_id, flood))

    assert answer["truncated"]
    assert sum(len(line) for one in answer["outputs"] for line in one["traceback"]) < 11 * MEBI
    assert growth < 400 * MEBI  # what is on its way counts too
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"


async def test_a_stream_by_another_name_can_not_make_up_events(api: Api, session_id: str) -> None:
    await api.run(session_id, RAW)
    injected = "publish('stream', {'name': 'x\\ndata: 1\\n\\nevent: done', 'text': 'boo'}); print('end')"

    async with api.stream(session_id, injected) as stream:
        events = await collected(stream)

    assert [event.kind for event in events] == ["start", "stdout", "done"]
    assert events[-1].data["truncated"]


async def test_a_thread_keeps_the_limit_of_a_run_of_long_ago(api: Api, session_id: str) -> None:
    code = """
import threading
go = threading.Event()
def talk():
    go.wait()
    for _ in range(20): print('x' * 1_000_000, flush=True)
thread = threading.Thread(target=talk)
thread.start()
"""
    first = await api.run(session_id, code)
    for _ in range(300):
        await api.run(session_id, "pass")

    late = 0
    async with api.events(f"/api/sessions/{session_id}/events") as stream:
        await api.run(session_id, "go.set(); thread.join(); print('over')")
        async for event in stream:
            if event.kind == "stdout" and event.data["execution_id"] == first["execution_id"]:
                late += len(event.data["text"])
            elif event.kind == "stdout":
                break

    assert MEBI < late <= 10 * MEBI + 1


async def test_what_is_cut_after_clear_output_is_told_too(api: Api, session_id: str) -> None:
    code = """
from IPython.display import clear_output
for n in range(30):
    print('x' * 500_000)
    clear_output()
print('last')
"""
    answer = await api.run(session_id, code)

    assert answer["truncated"]


async def test_100_000_prints_are_complete_and_in_order(api: Api, session_id: str) -> None:
    expected = "".join(f"{n}\n" for n in range(100_000))

    answer = await api.run(session_id, "for n in range(100_000): print(n)")
    async with api.stream(session_id, "for n in range(100_000): print(n)") as stream:
        streamed = await collected(stream)

    assert answer["stdout"] == expected
    assert text_of(streamed) == expected
    assert streamed[-1].data["stdout"] == expected


async def test_10_000_flushed_prints_are_complete_and_in_order(api: Api, session_id: str) -> None:
    expected = "".join(f"{n}\n" for n in range(10_000))
    code = "for n in range(10_000): print(n, flush=True)"

    answer = await api.run(session_id, code)
    async with api.stream(session_id, code) as stream:
        streamed = await collected(stream)

    assert answer["stdout"] == expected
    assert text_of(streamed) == expected


async def test_threads_that_print_at_once_lose_nothing(api: Api, session_id: str) -> None:
    code = """
import sys, threading
def talk(name):
    for n in range(5000):
        sys.stdout.write(f'{name}{n}\\n')
        if n % 50 == 0: sys.stderr.write('.')
threads = [threading.Thread(target=talk, args=(name,)) for name in 'abcdefgh']
for one in threads: one.start()
for one in threads: one.join()
"""
    answer = await api.run(session_id, code)

    assert sorted(answer["stdout"].split()) == sorted(f"{name}{n}" for name in "abcdefgh" for n in range(5000))
    assert answer["stderr"] == "." * 800


# Timeouts


@pytest.mark.parametrize(
    ("what", "code", "kept"),
    [
        ("python", "while True: pass", True),
        ("sleep", "import time; time.sleep(600)", True),
        ("await", "import asyncio; await asyncio.sleep(600)", True),
        ("await, then block", "import asyncio, time; await asyncio.sleep(0); time.sleep(600)", True),
        ("input", "input('never')", True),
        ("stubborn", "import time\nwhile True:\n  try: time.sleep(60)\n  except KeyboardInterrupt: pass", False),
        ("locked in C", LOCKED_IN_C, False),
    ],
)
async def test_a_timeout_ends_the_cell_and_tells_the_truth(
    api: Api, session_id: str, what: str, code: str, kept: bool
) -> None:
    await api.run(session_id, "x = 41")
    path = f"/api/sessions/{session_id}"

    run = await api.post(f"{path}/run", {"code": code, "timeout": 1, "background": what == "input"})
    answer = run if what != "input" else await ended(api, session_id, run["execution_id"])

    assert (answer["status"], answer["exit_code"]) == ("timeout", 124)
    assert answer["error"]["ename"] == "TimeoutError"
    assert answer["state_kept"] is kept
    state = await api.get(path)
    assert state["state"] == ("READY" if kept else "ERROR")
    after = await api.run(session_id, "x + 1")
    assert after["result"] == ("42" if kept else None)
    assert after["status"] == ("ok" if kept else "error")


async def ended(api: Api, session_id: str, execution_id: str) -> Any:
    """A run's document once it is over."""
    async with api.events(f"/api/sessions/{session_id}/executions/{execution_id}/events") as stream:
        return (await started(stream, "done")).data


CHILDREN = """
import os, signal, subprocess, sys
def child(*how, **more):
    code = 'import signal, time; ' + ''.join(how) + 'time.sleep(600)'
    return subprocess.Popen([sys.executable, '-c', code, MARKER], **more)
plain = child()
far = child(start_new_session=True)
stubborn = child('signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN); ')
print(plain.pid, flush=True)
"""


@pytest.mark.parametrize("stubborn", [False, True])
async def test_a_timeout_ends_the_children_of_its_cell(api: Api, session_id: str, marker: str, stubborn: bool) -> None:
    await api.run(session_id, "x = 41")
    wait = (
        "import time\nwhile True:\n  try: time.sleep(60)\n  except KeyboardInterrupt: pass"
        if stubborn
        else "plain.wait()"
    )

    answer = await api.run(session_id, CHILDREN.replace("MARKER", repr(marker)) + wait, timeout=3)

    assert (answer["status"], answer["exit_code"]) == ("timeout", 124)
    assert answer["stdout"].strip().isdigit()
    assert marked(marker) == []
    assert answer["state_kept"] is not stubborn
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"


async def test_a_timeout_spares_what_earlier_cells_started(api: Api, session_id: str, marker: str) -> None:
    sleeper = f"[sys.executable, '-c', 'import time; time.sleep(600)', {marker!r}]"
    await api.run(session_id, f"import subprocess, sys\nsubprocess.Popen({sleeper})\n1")
    [server] = marked(marker)

    answer = await api.run(session_id, "import time; time.sleep(600)", timeout=1)
    await api.post(f"/api/sessions/{session_id}/interrupt", {})

    assert answer["state_kept"]
    assert marked(marker) == [server]
    await api.call("DELETE", f"/api/sessions/{session_id}")
    assert marked(marker) == []


async def test_a_timeout_ends_a_shell_command(api: Api, session_id: str, marker: str) -> None:
    for code in (f"import os; os.system('sleep 600; : {marker}')", f"!sleep 600; : {marker}"):
        answer = await api.run(session_id, code, timeout=1)

        assert (answer["status"], answer["state_kept"]) == ("timeout", True), answer
        assert marked(marker) == []


async def test_the_default_timeout_of_a_session_counts(api: Api, session_id: str) -> None:
    await api.create(session_id=session_id, default_timeout=0.5)

    answer = await api.run(session_id, "import time; time.sleep(60)")

    assert answer["status"] == "timeout"


# Interrupt, cancel


async def test_an_interrupt_ends_the_cell_and_keeps_the_variables(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 41")
    async with api.stream(session_id, "print('go'); import time; time.sleep(60)") as stream:
        await started(stream)

        told = await api.post(f"/api/sessions/{session_id}/interrupt", {})
        done = await started(stream, "done")

    assert (told["interrupted"], told["ended"], told["state"]) == (True, True, "READY")
    assert (done.data["status"], done.data["exit_code"]) == ("interrupted", 130)
    assert done.data["state_kept"]
    assert (await api.run(session_id, "x + 1"))["result"] == "42"


async def test_a_cell_that_handles_its_interrupt_ends_well(api: Api, session_id: str) -> None:
    code = "import time\nprint('go')\ntry: time.sleep(60)\nexcept KeyboardInterrupt: print('handled')"
    async with api.stream(session_id, code) as stream:
        await started(stream)

        await api.post(f"/api/sessions/{session_id}/interrupt", {})
        done = await started(stream, "done")

    assert done.data["status"] == "ok"
    assert done.data["stdout"] == "go\nhandled\n"


async def test_a_cell_that_ignores_its_interrupt_runs_on_and_says_so(api: Api, session_id: str) -> None:
    code = "import time, os\nprint('go')\ntry: time.sleep(60)\nexcept KeyboardInterrupt: time.sleep(5)\nos._exit(4)"
    async with api.stream(session_id, code) as stream:
        await started(stream)

        told = await api.post(f"/api/sessions/{session_id}/interrupt", {})
        done = await started(stream, "done")

    assert (told["interrupted"], told["ended"], told["state"]) == (True, False, "BUSY")
    assert done.data["status"] == "died"
    assert "code 4" in done.data["error"]["evalue"]


async def test_an_interrupt_of_nothing_is_no_error(api: Api, session_id: str) -> None:
    await api.run(session_id, "1")

    told = await api.post(f"/api/sessions/{session_id}/interrupt", {})

    assert (told["interrupted"], told["execution_id"]) == (False, None)


async def test_the_run_after_an_interrupt_is_not_aborted(api: Api, session_id: str) -> None:
    for _ in range(5):
        async with api.stream(session_id, "print('go'); import time; time.sleep(60)") as stream:
            await started(stream)
            waiting = [asyncio.ensure_future(api.run(session_id, f"{n} + 1")) for n in range(3)]
            await api.post(f"/api/sessions/{session_id}/interrupt", {})
            answers = await asyncio.gather(*waiting)

        assert [answer["result"] for answer in answers] == ["1", "2", "3"]


async def test_a_queued_run_that_is_cancelled_never_begins(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    first = await api.post(f"{path}/run", {"code": "import time; time.sleep(60)", "background": True})
    second = await api.post(f"{path}/run", {"code": "touched = True", "background": True})
    queued = await api.get(f"{path}/executions/{second['execution_id']}")

    cancelled = await api.call("DELETE", f"{path}/executions/{second['execution_id']}")
    stopped = await api.call("DELETE", f"{path}/executions/{first['execution_id']}")

    assert queued["status"] == "queued"
    assert (cancelled["status"], cancelled["started_at"]) == ("interrupted", None)
    assert (stopped["status"], stopped["exit_code"]) == ("interrupted", 130)
    assert (await api.run(session_id, "'touched' in globals()"))["result"] == "False"
    history = (await api.get(f"{path}/history"))["history"]
    assert [one["status"] for one in history] == ["ok", "interrupted", "interrupted"]


async def test_a_background_run_is_accepted_at_once_and_found_afterwards(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "1")

    accepted = await api.post(
        f"{path}/run", {"code": "import time; time.sleep(0.5); print('done')", "background": True}, 202
    )
    early = await api.get(f"{path}/executions/{accepted['execution_id']}")
    late = await ended(api, session_id, accepted["execution_id"])

    assert early["status"] in ("queued", "running")
    assert late["stdout"] == "done\n"
    assert (await api.get(f"{path}/executions/{accepted['execution_id']}"))["status"] == "ok"


# Clients that go away


async def test_a_client_that_goes_away_interrupts_its_run(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 41")
    leaving = asyncio.ensure_future(api.run(session_id, "import time; time.sleep(600)"))
    await busy(api, session_id)

    leaving.cancel()

    async with asyncio.timeout(10):
        answer = await api.run(session_id, "x + 1")
    assert answer["result"] == "42"
    history = (await api.get(f"/api/sessions/{session_id}/history"))["history"]
    assert [one["status"] for one in history] == ["ok", "interrupted", "ok"]


async def test_a_client_that_leaves_the_queue_takes_its_run_along(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 41")
    first = asyncio.ensure_future(api.run(session_id, "import time; time.sleep(2)"))
    await busy(api, session_id)
    second = asyncio.ensure_future(api.run(session_id, "x = 0"))
    await unfinished(api, session_id, 2)

    second.cancel()
    await first

    assert (await api.run(session_id, "x"))["result"] == "41"


async def test_a_stream_that_nobody_resumes_is_interrupted(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 41")
    async with api.stream(session_id, "print('go'); import time; time.sleep(600)") as stream:
        await started(stream)

    async with asyncio.timeout(20):
        answer = await api.run(session_id, "x + 1")

    assert answer["result"] == "42"


async def test_an_onlooker_that_leaves_harms_no_run(api: Api, session_id: str) -> None:
    await api.run(session_id, "1")
    run = asyncio.ensure_future(api.run(session_id, "import time; print('go', flush=True); time.sleep(2); 'whole'"))
    await busy(api, session_id)
    [found] = await unfinished(api, session_id, 1)
    async with api.events(f"/api/sessions/{session_id}/executions/{found['execution_id']}/events") as stream:
        await started(stream)

    answer = await run

    assert (answer["status"], answer["result"]) == ("ok", "'whole'")


async def busy(api: Api, session_id: str) -> None:
    """Returns once a run of the session is under way."""
    async with asyncio.timeout(30), api.events(f"/api/sessions/{session_id}/events") as stream:
        if (await api.get(f"/api/sessions/{session_id}"))["state"] == "BUSY":
            return
        async for event in stream:
            if event.kind == "state" and (await api.get(f"/api/sessions/{session_id}"))["state"] == "BUSY":
                return


async def unfinished(api: Api, session_id: str, count: int) -> list[Any]:
    """The runs that are queued or under way, once there are so many."""
    async with asyncio.timeout(30):
        while True:
            found = (await api.get(f"/api/sessions/{session_id}/executions"))["executions"]
            running = [one for one in found if one["status"] in ("queued", "running")]
            if len(running) >= count:
                return running


# Environment, standard input


async def test_the_environment_of_a_run_lasts_as_long_as_the_run(api: Api, session_id: str) -> None:
    inside = await api.run(session_id, "import os; os.environ['ONLY_NOW']", env={"ONLY_NOW": "yes"})
    after = await api.run(session_id, "import os; os.environ.get('ONLY_NOW')")

    assert inside["result"] == "'yes'"
    assert after["result"] is None


async def test_input_reads_the_lines_of_stdin_and_says_when_they_are_used_up(api: Api, session_id: str) -> None:
    answer = await api.run(session_id, "print([input('? '), input(), input()])", stdin="one\n\nthree")
    short = await api.run(session_id, "a = input()\nb = input()", stdin="one")
    none = await api.run(session_id, "input()")

    assert answer["stdout"].endswith("['one', '', 'three']\n")
    for used_up in (short, none):
        assert used_up["status"] == "error"
        assert used_up["error"]["ename"] == "EOFError"
        assert "used up" in used_up["error"]["evalue"]
    assert (await api.run(session_id, "a"))["result"] == "'one'"


@pytest.mark.parametrize("background", [False, True])
async def test_a_cell_that_waits_for_input_is_answered(api: Api, session_id: str, background: bool) -> None:
    path, code = f"/api/sessions/{session_id}", "name = input('Who? '); print('Hello', name)"
    if background:
        accepted = await api.post(f"{path}/run", {"code": code, "background": True})
        following = api.events(f"{path}/executions/{accepted['execution_id']}/events")
    else:
        following = api.stream(session_id, code)
    async with following as stream:
        asked = await started(stream, "input_request")

        await api.post(f"{path}/input", {"text": "Ada"})
        done = await started(stream, "done")

    assert asked.data == {"prompt": "Who? ", "password": False}
    assert done.data["stdout"].endswith("Hello Ada\n")
    refused = await api.post(f"{path}/input", {"text": "again"}, 409)
    assert "waits" in refused["error"]


async def test_cancelling_a_queued_run_leaves_the_one_under_way_alone(api: Api, session_id: str) -> None:
    async with api.stream(session_id, "input()") as stream:
        async for event in stream:
            if event.kind == "input_request":
                break
        queued = await api.post(f"/api/sessions/{session_id}/run", {"code": "1", "background": True})

        cancelled = await api.call("DELETE", f"/api/sessions/{session_id}/executions/{queued['execution_id']}")
        document = await api.get(f"/api/sessions/{session_id}")
        await api.post(f"/api/sessions/{session_id}/input", {"text": "go on"})
        done = [event async for event in stream][-1]

    assert (cancelled["status"], cancelled["exit_code"], cancelled["started_at"]) == ("interrupted", 130, None)
    assert document["state"] == "BUSY"
    assert (done.kind, done.data["result"]) == ("done", "'go on'")
    assert (await api.get(f"/api/sessions/{session_id}"))["run_count"] == 1


async def test_a_run_that_waits_for_a_long_setup_can_be_cancelled_at_once(api: Api, session_id: str) -> None:
    await api.create(id=session_id, setup={"commands": ["sleep 60"]})
    waiting = await api.post(f"/api/sessions/{session_id}/run", {"code": "1", "background": True})

    async with asyncio.timeout(5):
        cancelled = await api.call("DELETE", f"/api/sessions/{session_id}/executions/{waiting['execution_id']}")
        await api.call("DELETE", f"/api/sessions/{session_id}")

    assert cancelled["status"] == "interrupted"


async def test_the_data_of_a_run_that_never_began_is_not_kept(api: Api, session_id: str) -> None:
    await api.create(id=session_id, data={"kept": 1}, setup={"commands": ["sleep 60"]})
    waiting = await api.post(
        f"/api/sessions/{session_id}/run", {"code": "1", "background": True, "update_data": {"lost": 2}}
    )

    await api.call("DELETE", f"/api/sessions/{session_id}/executions/{waiting['execution_id']}")

    assert (await api.get(f"/api/sessions/{session_id}"))["data"] == {"kept": 1}


# A gateway that is killed leaves its kernels to the next one


async def test_sessions_of_a_killed_gateway_answer_as_if_nothing_had_happened(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("a", f"import socket; x, process, link = 41, {WHICH_PROCESS}, socket.socket()")
        await gateway.kill()
        await gateway.start()

        after = await api.run("a", f"x + 1, process == {WHICH_PROCESS}, link.fileno() > 0")
        states = await api.get("/api/sessions/a/states")

    assert after["result"] == "(42, True, True)"
    assert (after["resumed"], after["fresh_start"]) == (False, False)
    assert {one["after"] for one in states["states"]} <= {"INIT", "READY", "BUSY"}


async def test_a_run_that_a_killed_gateway_had_begun_completes_with_all_of_its_output(tmp_path: Path) -> None:
    code = "import time\nfor n in range(300): print(n); time.sleep(0.01)\n'over'"
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("a", "x = 1")
        begun = await api.post("/api/sessions/a/run", {"code": code, "background": True}, 202)
        async with api.events(f"/api/sessions/a/executions/{begun['execution_id']}/events") as events:
            async for event in events:
                if event.kind == "stdout":
                    break
        await gateway.kill()
        await gateway.start()

        queued = await api.run("a", "x + 1")
        told = await api.get(f"/api/sessions/a/executions/{begun['execution_id']}")

    assert told["stdout"] == "".join(f"{n}\n" for n in range(300))
    assert (told["status"], told["result"], told["execution_count"]) == ("ok", "'over'", 2)
    assert queued["result"] == "2"


@pytest.mark.parametrize("pause_s", [0.0, 1.5], ids=["under way", "ended meanwhile"])
async def test_the_same_run_sent_again_to_the_next_gateway_gets_its_result_and_ran_once(
    pause_s: float, tmp_path: Path
) -> None:
    code = "import time\nopen('runs', 'a').write('r')\nprint('begun')\ntime.sleep(0.7)\nlen(open('runs').read())"
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("a", "x = 1")
        headers = {"Idempotency-Key": "once"}
        first = asyncio.ensure_future(api.http.post("/api/sessions/a/run", json={"code": code}, headers=headers))
        async with asyncio.timeout(20):
            while not (await api.http.get("/api/sessions/a/files/runs")).is_success:
                await asyncio.sleep(0.01)
        await gateway.kill()
        await asyncio.gather(first, return_exceptions=True)
        await asyncio.sleep(pause_s)
        await gateway.start()

        again = await api.post("/api/sessions/a/run", {"code": code}, 200, headers=headers)
        third = await api.post("/api/sessions/a/run", {"code": code}, 200, headers=headers)
        runs = await api.run("a", "open('runs').read()")

    assert (again["status"], again["stdout"], again["result"]) == ("ok", "begun\n", "1")
    assert third["execution_id"] == again["execution_id"]
    assert runs["result"] == "'r'"


async def test_a_run_that_could_not_begin_at_first_runs_once_when_it_is_sent_again_and_again(tmp_path: Path) -> None:
    code = "import time\nopen('runs', 'a').write('r')\nprint('begun')\ntime.sleep(1)\nlen(open('runs').read())"
    headers = {"Idempotency-Key": "once"}
    async with gateway_process(tmp_path / "data", live_limit=1) as gateway, Api(gateway.url) as api:
        await api.create(id="other")
        await api.run("other", "1")
        await api.create(id="a")
        await api.post("/api/sessions/a/run", {"code": code}, 503, headers=headers)
        await api.post("/api/sessions/other/hibernate")
        second = asyncio.ensure_future(api.http.post("/api/sessions/a/run", json={"code": code}, headers=headers))
        async with asyncio.timeout(20):
            while not (await api.http.get("/api/sessions/a/files/runs")).is_success:
                await asyncio.sleep(0.01)
        await api.get("/api/sessions/a/states")
        await gateway.kill()
        await asyncio.gather(second, return_exceptions=True)
        await gateway.start()

        third = await api.post("/api/sessions/a/run", {"code": code}, 200, headers=headers)

    assert (third["status"], third["stdout"], third["result"]) == ("ok", "begun\n", "1")


async def test_a_run_that_was_taken_over_keeps_its_own_time_limit(tmp_path: Path) -> None:
    code = "import time\nprint('begun')\ntime.sleep(3)\n'over'"
    async with gateway_process(tmp_path / "data", run_timeout_s=1.5) as gateway, Api(gateway.url) as api:
        begun = await api.post("/api/sessions/a/run", {"code": code, "timeout": 60, "background": True}, 202)
        events_path = f"/api/sessions/a/executions/{begun['execution_id']}/events"
        async with api.events(events_path) as events:
            async for event in events:
                if event.kind == "stdout":
                    break
        await gateway.kill()
        await gateway.start()
        async with api.events(events_path) as events:
            told = [event async for event in events][-1].data

    assert (told["status"], told["result"]) == ("ok", "'over'")


@pytest.mark.parametrize("wait_s", [0, 1], ids=["asked before", "asked meanwhile"])
async def test_a_cell_that_waits_for_input_when_its_gateway_is_killed_asks_the_next_one(
    wait_s: int, tmp_path: Path
) -> None:
    code = f"import time\nprint('begun')\ntime.sleep({wait_s})\nname = input('Who? ')\nprint('Hello', name)\nname"
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        begun = await api.post("/api/sessions/a/run", {"code": code, "background": True}, 202)
        events_path = f"/api/sessions/a/executions/{begun['execution_id']}/events"
        async with api.events(events_path) as events:
            await started(events, "stdout" if wait_s else "input_request")
        await gateway.kill()
        await gateway.start()

        async with api.events(events_path) as events:
            asked = await started(events, "input_request")
            waiting = await api.get(f"/api/sessions/a/executions/{begun['execution_id']}")
            document = await api.get("/api/sessions/a")
            await api.post("/api/sessions/a/input", {"text": "Ada"})
            rest = [event async for event in events]
        after = await api.run("a", "name")

    assert asked.data == {"prompt": "Who? ", "password": False}
    assert (waiting["status"], document["state"]) == ("running", "BUSY")
    assert "input_request" not in [event.kind for event in rest]
    done = rest[-1].data
    assert (done["status"], done["stdout"], done["result"]) == ("ok", "begun\nHello Ada\n", "'Ada'")
    assert after["result"] == "'Ada'"


async def test_a_run_that_brought_its_input_finds_it_also_after_its_gateway_was_killed(tmp_path: Path) -> None:
    code = "import time\nfirst = input()\nprint('begun')\ntime.sleep(1)\nprint(first, input())\ninput()"
    body = {"code": code, "stdin": "one\ntwo", "background": True}
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        begun = await api.post("/api/sessions/a/run", body, 202)
        events_path = f"/api/sessions/a/executions/{begun['execution_id']}/events"
        async with api.events(events_path) as events:
            await started(events, "stdout")
        await gateway.kill()
        await gateway.start()

        async with api.events(events_path) as events:
            done = [event async for event in events][-1].data

    assert (done["stdout"], done["error"]["ename"]) == ("begun\none two\n", "EOFError")
    assert "used up" in done["error"]["evalue"]


async def test_a_run_that_its_kernel_never_got_leaves_the_session_as_good_as_before(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("a", "x = 1")
        begun = await api.post("/api/sessions/a/run", {"code": "import time; time.sleep(0.5)", "background": True}, 202)
        async with asyncio.timeout(20):
            while (await api.get("/api/sessions/a"))["state"] != "BUSY":
                await asyncio.sleep(0.01)
        await api.get("/api/sessions/a/states")  # which waits for what is written behind the answers
        await gateway.kill()
        with closing(sqlite3.connect(tmp_path / "data" / "gateway.sqlite")) as store:  # as if it had been another one
            store.execute("UPDATE executions SET id = 'lost' WHERE id = ?", (begun["execution_id"],))
            store.commit()
        for journal in (tmp_path / "data" / "journals").rglob("*"):
            if journal.is_file():
                journal.write_bytes(b"")
        await gateway.start()

        after = await api.run("a", "x + 1")
        document = await api.get("/api/sessions/a")

    assert (after["status"], after["result"]) == ("ok", "2")
    assert document["state"] == "READY"


async def test_kernels_whose_session_is_gone_are_ended(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("a", "x = 1")
        await gateway.kill()
        (kernel,) = kernels_of(tmp_path / "data")
        (tmp_path / "data" / "gateway.sqlite").unlink()
        await gateway.start()

        await asyncio.to_thread(psutil.wait_procs, [kernel], 20)

    assert not kernel.is_running()


async def test_what_a_kernel_that_died_with_its_gateway_had_is_told(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("a", "x = 1")
        await api.post("/api/sessions/a/snapshots", {}, 201)
        begun = await api.post(
            "/api/sessions/a/run", {"code": "print('said'); import time; time.sleep(60)", "background": True}, 202
        )
        async with api.events(f"/api/sessions/a/executions/{begun['execution_id']}/events") as events:
            async for event in events:
                if event.kind == "stdout":
                    break
        await api.get("/api/sessions/a/states")
        (kernel,) = kernels_of(tmp_path / "data")
        await gateway.kill()
        kernel.kill()
        await gateway.start()

        told = await api.get(f"/api/sessions/a/executions/{begun['execution_id']}")
        session = await api.get("/api/sessions/a")
        after = await api.run("a", "x")

    assert (told["status"], told["state_kept"], told["stdout"]) == ("died", False, "said\n")
    assert "SIGKILL" in told["error"]["evalue"]
    assert session["state"] == "ERROR"
    assert (after["result"], after["resumed"]) == ("1", True)
