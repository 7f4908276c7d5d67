"""A live session is copied as it stands, where everything can be carried over; else from a snapshot, and told so."""

import asyncio
from uuid import UUID

import psutil
import pytest

from tests.api import Api
from tests.gateways import GatewayProcess, record_at

HARD = """
import itertools
numbers = itertools.count(10)
next(numbers)
squares = (n * n for n in itertools.count(1))
next(squares), next(squares)
double = lambda x: x * factor
factor = 2
class Node: ...
tree = Node(); tree.self = tree
log = []; alias = log
_cache = {}
def seen(key):
    return _cache.setdefault(key, len(_cache))
seen("a")
"""


@pytest.fixture
async def source(api: Api, session_id: str) -> str:
    await api.run(session_id, HARD)
    await api.run(session_id, "import os; os.makedirs('deep', exist_ok=True); open('deep/a.txt', 'w').write('one')")
    return session_id


async def test_a_live_session_is_copied_exactly(api: Api, source: str) -> None:
    made = await api.post(f"/api/sessions/{source}/duplicate", {"new_id": f"{source}-copy", "data": {"b": 2}}, 201)
    copy = made["id"]

    seen = await api.run(copy, "next(numbers), next(squares), double(21), tree.self is tree, alias is log, seen('b')")
    files = await api.run(copy, "open('deep/a.txt').read(), os.getcwd() == os.path.realpath('.')")

    assert (made["method"], made["method_reason"], made["not_carried"]) == ("fork", None, [])
    assert (made["state"], made["parent_id"], made["data"]) == ("READY", source, {"b": 2})
    assert seen["result"] == "(11, 9, 42, True, True, 1)"
    assert files["result"] == "('one', True)"
    assert seen["execution_count"] == 3  # it carries on where the source stood


async def test_neither_sees_what_the_other_one_does_afterwards(api: Api, source: str) -> None:
    copy = (await api.post(f"/api/sessions/{source}/duplicate", None, 201))["id"]

    await api.run(copy, "factor = 100; log.append('copy'); open('deep/a.txt', 'w').write('copy')")
    await api.run(source, "factor = 3; log.append('source'); open('b.txt', 'w').write('source')")

    assert (await api.run(source, "double(1), log, open('deep/a.txt').read()"))["result"] == "(3, ['source'], 'one')"
    found = await api.run(copy, "double(1), log, open('deep/a.txt').read(), os.path.exists('b.txt')")
    assert found["result"] == "(100, ['copy'], 'copy', False)"


async def test_copies_outlive_their_source_and_each_other(api: Api, source: str) -> None:
    first = (await api.post(f"/api/sessions/{source}/duplicate", None, 201))["id"]
    second = (await api.post(f"/api/sessions/{first}/duplicate", None, 201))["id"]

    await api.call("DELETE", f"/api/sessions/{source}", expect=200)
    await api.run(first, "import os; os.kill(os.getpid(), 9)")

    assert (await api.run(second, "next(numbers)"))["result"] == "11"


@pytest.mark.slow
async def test_fifty_copies_live_and_die_by_themselves(api: Api, source: str) -> None:
    made = await asyncio.gather(
        *(api.post(f"/api/sessions/{source}/duplicate", {"new_id": f"{source}-{n}"}, 201) for n in range(50))
    )
    copies = [one["id"] for one in made]
    await asyncio.gather(*(api.run(copy, f"mine = {n}") for n, copy in enumerate(copies)))
    await api.call("DELETE", f"/api/sessions/{source}", expect=200)
    await asyncio.gather(*(api.call("DELETE", f"/api/sessions/{copy}", expect=200) for copy in copies[::2]))

    answers = await asyncio.gather(*(api.run(copy, "mine, next(numbers)") for copy in copies[1::2]))

    assert {one["method"] for one in made} == {"fork"}
    assert [one["result"] for one in answers] == [f"({n}, 11)" for n in range(1, 50, 2)]
    await asyncio.gather(*(api.call("DELETE", f"/api/sessions/{copy}", expect=200) for copy in copies[1::2]))


async def test_a_copy_that_would_lack_something_is_made_from_a_snapshot(api: Api, session_id: str) -> None:
    await api.run(session_id, "import threading; stop = threading.Event(); kept = 5")
    await api.run(session_id, "worker = threading.Thread(target=stop.wait, name='worker'); worker.start()")

    made = await api.post(f"/api/sessions/{session_id}/duplicate", None, 201)

    assert made["method"] == "snapshot"
    assert "worker" in made["method_reason"]
    assert "worker" in [one["name"] for one in made["not_carried"]]
    assert (await api.run(made["id"], "kept"))["result"] == "5"
    assert (await api.run(session_id, "stop.set(); worker.join(5); kept"))["result"] == "5"


async def test_what_sleeps_or_is_chosen_is_made_from_a_snapshot(api: Api, source: str) -> None:
    chosen = await api.post(f"/api/sessions/{source}/remix", {"name": "some", "state": ["factor"]}, 201)
    await api.post(f"/api/sessions/{source}/hibernate")
    asleep = await api.post(f"/api/sessions/{source}/duplicate", None, 201)

    assert (chosen["method"], asleep["method"]) == ("snapshot", "snapshot")
    assert "asleep" in asleep["method_reason"]
    assert (await api.run(chosen["id"], "factor, 'log' in dir()"))["result"] == "(2, False)"
    assert (await api.run(asleep["id"], "double(4)"))["result"] == "8"


async def test_a_remix_with_state_is_a_copy_too(api: Api, source: str) -> None:
    made = await api.post(f"/api/sessions/{source}/remix", {"name": "next", "files": False}, 201)

    assert made["method"] == "fork"
    assert (await api.run(made["id"], "next(numbers), os.path.exists('deep')"))["result"] == "(11, False)"


async def test_a_copy_waits_for_the_cell_or_says_that_it_does_not(api: Api, source: str) -> None:
    running = asyncio.create_task(api.run(source, "import time; open('began', 'w').close(); time.sleep(2); late = 1"))
    while "began" not in [one["path"] for one in (await api.get(f"/api/sessions/{source}/files"))["files"]]:
        await asyncio.sleep(0.02)

    await api.post(f"/api/sessions/{source}/duplicate", {"wait": False}, 409)
    made = await api.post(f"/api/sessions/{source}/duplicate", None, 201)

    assert (await running)["status"] == "ok"
    assert (await api.run(made["id"], "late"))["result"] == "1"


async def test_a_copy_is_another_process_with_names_and_secrets_of_its_own(api: Api, source: str) -> None:
    await api.run(source, "import random; random.seed(7); random.random()")
    made = await api.post(f"/api/sessions/{source}/duplicate", None, 201)

    look = "print(os.environ['ERA_SESSION_ID'], os.environ['HOME'], uuid.uuid4(), random.random())"
    one, other = [(await api.run(it, f"import uuid; {look}"))["stdout"].split() for it in (source, made["id"])]

    assert (one[0], other[0]) == (source, made["id"])
    assert (one[1] != other[1], one[2] != other[2]) == (True, True)
    assert one[3] == other[3]  # a state that was seeded is carried over like any other


async def test_a_copy_sleeps_wakes_and_is_copied_live_like_any_session(api: Api, source: str) -> None:
    copy = (await api.post(f"/api/sessions/{source}/duplicate", None, 201))["id"]
    await api.run(copy, "factor = 9")

    await api.post(f"/api/sessions/{copy}/hibernate")
    woken = await api.run(copy, "double(2)")

    again = await api.post(f"/api/sessions/{copy}/duplicate", None, 201)

    assert (woken["result"], woken["resumed"]) == ("18", True)
    assert (again["method"], again["method_reason"]) == ("fork", None)
    assert (await api.run(again["id"], "double(2)"))["result"] == "18"


async def test_deleted_copies_leave_no_process(api: Api, gateway: GatewayProcess, source: str) -> None:
    made = await asyncio.gather(*(api.post(f"/api/sessions/{source}/duplicate", None, 201) for _ in range(10)))
    places = [UUID(one["jupyter"]["kernel_id"]).hex for one in made]
    records = [record_at(gateway.data_dir, place) for place in places]
    files = [gateway.data_dir / "kernels" / f"{record['mark']}.json" for record in records]
    processes = [psutil.Process(record["pid"]) for record in records]

    await asyncio.gather(*(api.call("DELETE", f"/api/sessions/{one['id']}", expect=200) for one in made))

    assert not any(file.exists() for file in files)
    assert not any(process.is_running() for process in processes)
