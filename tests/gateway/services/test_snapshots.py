"""Saved state, as a client sees it: snapshots, restore, duplicate, remix, sleep, undelete, export and import."""

import asyncio
import io
import json
import os
import signal
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from tests.api import Api
from tests.gateways import WHICH_PROCESS, GatewayProcess, gateway_process, keepers_of, kernel_pid, kernels_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COUNTER = """
import collections
counter, log = 0, []
def count():
    global counter
    counter += 1
    log.append(counter)
    return counter
alias = log
"""


async def test_a_session_that_slept_carries_on_with_its_variables(api: Api, session_id: str) -> None:
    await api.run(session_id, COUNTER)
    await api.run(session_id, "count(); count()")

    asleep = await api.post(f"/api/sessions/{session_id}/hibernate")
    woken = await api.run(session_id, "count(), alias is log, log")
    then = await api.run(session_id, "1")

    assert asleep["state"] == "IDLE"
    assert asleep["saved_at"] is not None
    assert woken["result"] == "(3, True, [1, 2, 3])"
    assert (woken["resumed"], woken["not_carried"], woken["fresh_start"]) == (True, [], False)
    assert woken["execution_count"] == 3
    assert then["resumed"] is False


async def test_what_can_not_be_carried_is_named_and_costs_nothing_else(api: Api, session_id: str) -> None:
    await api.run(session_id, "import socket\nlink = socket.socket()\ngen = (n for n in range(3))\nx = [1, 2]")

    saved = await api.post(f"/api/sessions/{session_id}/snapshots", {"name": "before"}, 201)
    await api.post(f"/api/sessions/{session_id}/hibernate")
    woken = await api.run(session_id, "x")

    assert {one["name"] for one in saved["unsaved"]} == {"link", "gen"}
    assert all(one["type"] and one["reason"] for one in saved["unsaved"])
    assert woken["result"] == "[1, 2]"
    assert {one["name"] for one in woken["not_carried"]} == {"link", "gen"}


async def test_a_snapshot_brings_files_and_variables_back(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "x = 1; open('a.txt', 'w').write('one'); open('b.txt', 'w').write('b')")
    saved = await api.post(f"{path}/snapshots", {"name": "good"}, 201)
    await api.run(session_id, "x = 2; import os; os.remove('b.txt'); open('a.txt', 'w').write('two'); open('c', 'w')")

    session = await api.post(f"{path}/restore", {"snapshot_id": saved["id"]})
    seen = await api.run(session_id, "import os; x, open('a.txt').read(), sorted(os.listdir())")

    assert seen["result"] == "(1, 'one', ['a.txt', 'b.txt'])"
    assert session["file_count"] == 2
    assert (saved["name"], saved["kind"], saved["file_count"], saved["session_id"]) == ("good", "manual", 2, session_id)
    listed = await api.get(f"{path}/snapshots")
    assert saved["id"] in [one["id"] for one in listed["snapshots"]]
    assert (await api.get(f"{path}/snapshots/{saved['id']}"))["digest"] == saved["digest"]


async def test_a_snapshot_is_deleted_unless_the_session_wakes_with_it(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "x = 1")
    first = await api.post(f"{path}/snapshots", {}, 201)
    await api.run(session_id, "x = 2")
    second = await api.post(f"{path}/snapshots", {}, 201)

    refused = await api.call("DELETE", f"{path}/snapshots/{second['id']}", expect=409)
    await api.call("DELETE", f"{path}/snapshots/{first['id']}", expect=200)

    assert refused["code"] == "snapshot_in_use"
    missing = await api.get(f"{path}/snapshots/{first['id']}", 404)
    assert missing["code"] == "snapshot_not_found"


async def test_a_duplicate_carries_on_where_its_source_stands(api: Api, session_id: str) -> None:
    await api.create(id=session_id, data={"a": 1, "b": 1}, labels={"team": "x"}, env={"COLOUR": "red"})
    await api.run(session_id, COUNTER + "\nimport os\nos.makedirs('sub')\nopen('sub/f', 'w').write('deep')\ncount()")

    copy_id = f"{session_id}-copy"
    copy = await api.post(f"/api/sessions/{session_id}/duplicate", {"new_id": copy_id, "data": {"b": 2}}, 201)
    in_copy = await api.run(copy_id, "count(), alias is log, open('sub/f').read(), os.environ['COLOUR']")
    in_source = await api.run(session_id, "counter")

    assert (copy["parent_id"], copy["data"], copy["labels"]) == (session_id, {"a": 1, "b": 2}, {"team": "x"})
    assert in_copy["result"] == "(2, True, 'deep', 'red')"
    assert in_source["result"] == "1"
    children = await api.get(f"/api/sessions/{session_id}/children")
    assert [one["id"] for one in children["sessions"]] == [copy_id]


async def test_a_duplicate_has_what_was_installed(api: Api, session_id: str) -> None:
    setup = {
        "commands": [
            "mkdir -p $VIRTUAL_ENV/lib/extra && echo 'there = 7' > "
            "$($VIRTUAL_ENV/bin/python -c 'import site; print(site.getsitepackages()[0])')/ours.py"
        ]
    }
    await api.create(id=session_id, setup=setup)
    await api.run(session_id, "import ours")

    await api.post(f"/api/sessions/{session_id}/duplicate", {"new_id": f"{session_id}-copy"}, 201)
    in_copy = await api.run(f"{session_id}-copy", "ours.there")

    assert in_copy["result"] == "7"


async def test_a_running_session_is_duplicated_after_its_cell(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "import pathlib, time; x = 1")
    async with api.stream(
        session_id, "print('begun')\nwhile not pathlib.Path('go').exists(): time.sleep(0.01)\nx = 2"
    ) as events:
        async for event in events:
            if event.kind == "stdout":
                break
        refused = await api.post(f"{path}/duplicate", {"new_id": f"{session_id}-no", "wait": False}, 409)
        copying = asyncio.ensure_future(api.post(f"{path}/duplicate", {"new_id": f"{session_id}-copy"}, 201))
        await api.call("PUT", f"{path}/files/go", content=b"", headers={"Content-Type": "application/octet-stream"})
        async for _ in events:
            pass
    await copying

    assert refused["code"] == "session_busy"
    assert (await api.run(f"{session_id}-copy", "x"))["result"] == "2"
    await api.get(f"/api/sessions/{session_id}-no", 404)


async def test_an_id_that_is_taken_is_not_duplicated_to(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 1")
    taken = await api.post(f"/api/sessions/{session_id}/duplicate", {"new_id": session_id}, 409)
    assert taken["code"] == "session_exists"


@pytest.mark.slow
async def test_a_hundred_duplicates_at_once(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data", live_limit=4) as gateway, Api(gateway.url) as api:
        await api.run("source", "x = list(range(1000)); open('f', 'w').write('here')")

        answers = await asyncio.gather(
            *(api.http.post("/api/sessions/source/duplicate", json={"new_id": f"copy-{n}"}) for n in range(100))
        )

        assert [answer.status_code for answer in answers] == [201] * 100
        listed = await api.get("/api/sessions/source/children?limit=1000")
        assert listed["total_count"] == 100
        for n in (0, 50, 99):
            await api.post("/api/sessions/source/hibernate")
            seen = await api.run(f"copy-{n}", "sum(x), open('f').read()")
            assert seen["result"] == "(499500, 'here')"
            await api.post(f"/api/sessions/copy-{n}/hibernate")


async def test_a_remix_takes_what_it_is_asked_for(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.create(id=session_id, metadata={"a": 1}, starting_prompt="first")
    await api.run(session_id, "x, y = 1, 2; open('a', 'w').write('a'); open('b', 'w').write('b')")
    saved = await api.post(f"{path}/snapshots", {}, 201)
    await api.run(session_id, "x = 10")

    remixed = await api.post(
        f"{path}/remix",
        {"name": "next", "starting_prompt": "second", "agent_ids": ["viz"], "waiting_timeout_seconds": 600,
         "metadata": {"phase": 2}},
        201,
    )  # fmt: skip
    only = await api.post(f"{path}/remix", {"name": "only x", "state": ["x"], "files": ["a"]}, 201)
    early = await api.post(f"{path}/remix", {"name": "early", "snapshot_id": saved["id"], "files": False}, 201)
    bare = await api.post(f"{path}/remix", {"name": "bare", "state": False}, 201)

    code = "import os; {n: v for n, v in globals().items() if n in 'xy'}, sorted(os.listdir())"
    assert (await api.run(remixed["id"], code))["result"] == "({'x': 10, 'y': 2}, ['a', 'b'])"
    assert (await api.run(only["id"], code))["result"] == "({'x': 10}, ['a'])"
    assert (await api.run(early["id"], code))["result"] == "({'x': 1, 'y': 2}, [])"
    assert (await api.run(bare["id"], code))["result"] == "({}, ['a', 'b'])"
    assert (remixed["name"], remixed["starting_prompt"], remixed["parent_id"]) == ("next", "second", session_id)
    assert (remixed["metadata"], remixed["waiting_timeout_seconds"]) == ({"a": 1, "phase": 2}, 600)
    assert [agent["id"] for agent in remixed["agents"]] == ["viz"]


async def test_a_deleted_session_comes_back_with_its_variables(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = {'kept': True}; open('f', 'w').write('f')")

    await api.call("DELETE", f"/api/sessions/{session_id}")
    await api.post(f"/api/sessions/{session_id}/undelete")

    assert (await api.run(session_id, "x, open('f').read()"))["result"] == "({'kept': True}, 'f')"


async def test_restart_keeps_what_was_saved_or_starts_fresh(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 1")

    await api.post(f"/api/sessions/{session_id}/restart")
    kept = await api.run(session_id, "x")
    await api.post(f"/api/sessions/{session_id}/restart", {"state": "fresh"})
    fresh = await api.run(session_id, "x")

    assert (kept["result"], kept["resumed"]) == ("1", True)
    assert (fresh["error"]["ename"], fresh["fresh_start"], fresh["resumed"]) == ("NameError", True, False)


async def test_a_kernel_that_died_comes_back_from_its_last_save_and_says_what_is_lost(
    api: Api, session_id: str
) -> None:
    await api.run(session_id, "x = 1")
    await api.post(f"/api/sessions/{session_id}/snapshots", {}, 201)
    await api.run(session_id, "x = 2")

    died = await api.run(session_id, "import os; os.kill(os.getpid(), 9)")
    back = await api.run(session_id, "x")

    assert (died["status"], died["state_kept"]) == ("died", False)
    assert (back["result"], back["resumed"]) == ("1", True)
    assert [one["name"] for one in back["not_carried"]] == ["*"]
    assert "had not been saved" in back["not_carried"][0]["reason"]


async def test_a_quiet_session_is_saved_by_itself(tmp_path: Path) -> None:
    settings = {"autosave_quiet_s": 0.1, "autosave_interval_s": 0.1, "reaper_interval_s": 0.05}
    async with gateway_process(tmp_path / "data", **settings) as gateway, Api(gateway.url) as api:
        await api.run("a", "x = 41")
        await until(api, "/api/sessions/a", lambda session: session["saved_at"] is not None)
        await api.run("a", "import os; os._exit(3)")

        assert (await api.run("a", "x + 1"))["result"] == "42"


async def test_an_idle_session_sleeps_and_wakes_as_it_was(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data", reaper_interval_s=0.05) as gateway, Api(gateway.url) as api:
        await api.create(id="a", waiting_timeout_seconds=0.5)
        await api.run("a", f"x, process = 41, {WHICH_PROCESS}")
        asleep = await until(api, "/api/sessions/a", lambda session: session["state"] == "IDLE")
        woken = await api.run("a", f"x + 1, process == {WHICH_PROCESS}")

    assert "kept" in asleep["state_reason"]
    assert woken["result"] == "(42, False)"


async def test_a_session_whose_save_fails_stays_awake_and_says_why(tmp_path: Path) -> None:
    slow = "class Slow:\n    def __reduce__(self):\n        import time; time.sleep(60)\nx = Slow()"
    settings = {"reaper_interval_s": 0.05, "checkpoint_timeout_s": 1}
    async with gateway_process(tmp_path / "data", **settings) as gateway, Api(gateway.url) as api:
        await api.create(id="a", waiting_timeout_seconds=0.3)
        await api.run("a", slow)
        told = await until(api, "/api/sessions/a", lambda session: session["save_problem"] is not None)
        alive = await api.run("a", "type(x).__name__")

    assert told["state"] in ("READY", "BUSY")
    assert alive["result"] == "'Slow'"


async def test_a_gateway_that_stops_saves_every_session(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway:
        async with Api(gateway.url) as api:
            await asyncio.gather(*(api.run(f"s{n}", f"x = {n}; open('f', 'w').write('f')") for n in range(3)))
        assert await gateway.stop() == 0
        await gateway.start()
        async with Api(gateway.url) as api:
            results = [(await api.run(f"s{n}", "x, open('f').read()"))["result"] for n in range(3)]

    assert results == [f"({n}, 'f')" for n in range(3)]


async def test_a_snapshot_travels_to_another_gateway(api: Api, session_id: str, tmp_path: Path) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, COUNTER + "\ncount()\nopen('f', 'w').write('far')")
    saved = await api.post(f"{path}/snapshots", {"name": "travels"}, 201)
    tarball = (await api.http.get(f"{path}/snapshots/{saved['id']}/archive")).content

    async with gateway_process(tmp_path / "data") as other, Api(other.url) as there:
        brought = await put_snapshot(there, tarball, 201)
        await there.create(id="new")
        await there.post("/api/sessions/new/restore", {"snapshot_id": brought["id"]})
        seen = await there.run("new", "count(), open('f').read()")
        remixed = await there.post("/api/sessions/new/remix", {"name": "r", "snapshot_id": brought["id"]}, 201)
        again = await there.run(remixed["id"], "count()")
        listed = await there.get("/api/snapshots")
        await there.call("DELETE", f"/api/snapshots/{brought['id']}")
        await there.get(f"/api/snapshots/{brought['id']}", 404)

    assert (brought["name"], brought["kind"], brought["session_id"]) == ("travels", "import", None)
    assert brought["variable_count"] == saved["variable_count"]
    assert seen["result"] == "(2, 'far')"
    assert again["result"] == "2"
    assert [one["id"] for one in listed["snapshots"]] == [brought["id"]]


async def test_a_tarball_that_is_damaged_is_refused_and_nothing_kept(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "x = 1; open('f', 'w').write('f' * 10_000)")
    saved = await api.post(f"{path}/snapshots", {}, 201)
    tarball = bytearray((await api.http.get(f"{path}/snapshots/{saved['id']}/archive")).content)
    before = await api.get("/api/snapshots")

    for at in (len(tarball) // 3, len(tarball) // 2, len(tarball) - 20):
        flipped = bytearray(tarball)
        flipped[at] ^= 1
        refused = await put_snapshot(api, bytes(flipped), 422)
        assert refused["code"]
    for garbage in (b"", b"not a tarball", bytes(tarball[: len(tarball) // 2])):
        await put_snapshot(api, garbage, 422)

    assert await api.get("/api/snapshots") == before


async def test_another_kernel_keeps_its_files_and_says_that_variables_are_not(api: Api, session_id: str) -> None:
    await api.create(id=session_id, language="bash")
    await api.run(session_id, "X=1; echo here > f")

    saved = await api.post(f"/api/sessions/{session_id}/snapshots", {}, 201)
    copy = await api.post(f"/api/sessions/{session_id}/duplicate", {"new_id": f"{session_id}-copy"}, 201)
    seen = await api.run(copy["id"], "cat f; echo [$X]")

    assert (saved["has_state"], saved["variable_count"], saved["file_count"]) == (False, 0, 1)
    assert "can't save its variables" in saved["state_note"]
    assert seen["stdout"] == "here\n[]\n"


async def test_after_a_reboot_sessions_come_back_from_what_was_saved(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("a", "x = 1")
        await api.post("/api/sessions/a/snapshots", {}, 201)
        await api.run("a", "x = 2")
        await api.get("/api/sessions/a/states")  # which waits for what is written behind the answers
        everything = [*keepers_of(tmp_path / "data"), *kernels_of(tmp_path / "data")]
        await gateway.kill()
        for process in everything:
            process.kill()
        await gateway.start()

        document = await api.get("/api/sessions/a")
        woken = await api.run("a", "x")

    assert len(everything) == 2
    assert document["state"] == "IDLE"
    assert (woken["result"], woken["resumed"]) == ("1", True)
    assert "had not been saved" in woken["not_carried"][0]["reason"]


async def test_how_a_session_woke_is_told_by_its_first_run_also_after_the_gateway_was_killed(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("a", "import socket; x, link = 41, socket.socket()")
        await api.post("/api/sessions/a/hibernate")
        await api.post("/api/sessions/a/wake")
        await gateway.kill()
        await gateway.start()

        first = await api.run("a", "x + 1")
        await api.get("/api/sessions/a/states")  # which waits for what is written behind the answers
        await gateway.kill()
        await gateway.start()
        second = await api.run("a", "x + 2")

    assert (first["result"], first["resumed"], first["fresh_start"]) == ("42", True, False)
    assert [one["name"] for one in first["not_carried"]] == ["link"]
    assert (second["result"], second["resumed"], second["not_carried"]) == ("43", False, [])


async def test_that_a_kernel_began_without_variables_is_told_also_after_the_gateway_was_killed(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("a", "x = 1")
        await api.post("/api/sessions/a/restart", {"state": "fresh"})
        await gateway.kill()
        await gateway.start()

        first = await api.run("a", "'x' in globals()")

    assert (first["result"], first["fresh_start"], first["resumed"]) == ("False", True, False)


async def test_the_run_that_was_under_way_when_the_gateway_was_killed_tells_how_its_session_woke(
    tmp_path: Path,
) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.run("a", "import socket; x, link = 41, socket.socket()")
        await api.post("/api/sessions/a/hibernate")
        code = "import time; print('begun'); time.sleep(1); x + 1"
        begun = await api.post("/api/sessions/a/run", {"code": code, "background": True}, 202)
        async with api.events(f"/api/sessions/a/executions/{begun['execution_id']}/events") as events:
            async for event in events:
                if event.kind == "stdout":
                    break
        await gateway.kill()
        await gateway.start()

        second = await api.run("a", "x + 2")
        first = await api.get(f"/api/sessions/a/executions/{begun['execution_id']}")

    assert (first["result"], first["resumed"]) == ("42", True)
    assert [one["name"] for one in first["not_carried"]] == ["link"]
    assert (second["result"], second["resumed"], second["not_carried"]) == ("43", False, [])


async def test_what_was_lost_is_told_though_the_session_was_saved_again_and_slept_before_any_run(
    api: Api, session_id: str
) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "import socket; x, link = 41, socket.socket()")
    await api.post(f"{path}/hibernate")
    await api.post(f"{path}/wake")
    await api.post(f"{path}/snapshots", {}, 201)
    await api.post(f"{path}/hibernate")

    woken = await api.run(session_id, "x")

    assert (woken["result"], woken["resumed"]) == ("41", True)
    assert [one["name"] for one in woken["not_carried"]] == ["link"]


async def test_a_snapshot_that_waited_for_a_cell_holds_it_and_says_so(
    gateway: GatewayProcess, api: Api, session_id: str
) -> None:
    path, code = f"/api/sessions/{session_id}", "input(); import time; time.sleep(0.3); x = 2"
    await api.run(session_id, "x = 1")
    async with api.stream(session_id, code) as events:
        async for event in events:
            if event.kind == "input_request":
                break
        saving = asyncio.ensure_future(api.post(f"{path}/snapshots", {}, 201))
        await api.get(path)  # by then it waits
        await api.post(f"{path}/input", {"text": ""})
        done = [event async for event in events][-1].data
    saved = await saving
    document = await api.get(path)
    os.kill(await kernel_pid(gateway, api, session_id), signal.SIGKILL)
    await until(api, path, lambda session: session["state"] == "ERROR")

    back = await api.run(session_id, "x")

    assert document["saved_snapshot_id"] == saved["id"]
    assert document["saved_at"] > done["started_at"]
    assert (back["result"], back["resumed"], back["not_carried"]) == ("2", True, [])


async def test_what_began_after_a_snapshot_was_taken_is_told_as_not_saved(
    gateway: GatewayProcess, api: Api, session_id: str
) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "x = 1; big = [str(n) for n in range(1_000_000)]")
    saving = asyncio.ensure_future(api.post(f"{path}/snapshots", {}, 201))
    while not saving.done():
        await api.run(session_id, "x += 1")
    last = await api.run(session_id, "x += 1; x")
    os.kill(await kernel_pid(gateway, api, session_id), signal.SIGKILL)
    await until(api, path, lambda session: session["state"] == "ERROR")

    back = await api.run(session_id, "x")

    assert int(back["result"]) < int(last["result"])
    assert "had not been saved" in back["not_carried"][0]["reason"]


async def test_a_package_that_is_another_one_now_is_told(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "open('ours.py', 'w').write('__version__ = \"1.0\"'); import ours; x = 1")
    await api.post(f"{path}/hibernate")
    await api.call("PUT", f"{path}/files/ours.py", content=b"__version__ = '2.0'")

    woken = await api.run(session_id, "x, ours.__version__")

    assert woken["result"] == "(1, '2.0')" or woken["result"] == "(1, '1.0')"
    told = [one["reason"] for one in woken["not_carried"] if one["name"] == "*"]
    assert told == [] or "ours 1.0" in told[0]


async def test_who_looks_while_a_session_goes_back_does_not_have_it_go_back_twice(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "x = 1\nfor n in range(2000): open(f'f{n}', 'w').write('x')")
    saved = await api.post(f"{path}/snapshots", {}, 201)
    looking = True

    async def look() -> None:
        while looking:
            await api.get(path)
            await api.get(f"{path}/files")

    lookers = [asyncio.ensure_future(look()) for _ in range(4)]
    await api.post(f"{path}/restore", {"snapshot_id": saved["id"]})
    await api.run(session_id, "open('new', 'w').write('new')")
    looking = False
    await asyncio.gather(*lookers)

    assert (await api.run(session_id, "import os; x, os.path.exists('new'), len(os.getcwd()) > 0"))["result"] == (
        "(1, True, True)"
    )


async def test_variables_that_can_not_be_read_any_more_are_told_and_kept(tmp_path: Path) -> None:
    settings = {"autosaves_kept": 1}
    async with gateway_process(tmp_path / "data", **settings) as gateway, Api(gateway.url) as api:
        await api.run("a", "x = list(range(10_000))")
        asleep = await api.post("/api/sessions/a/hibernate")
        for pack in (tmp_path / "data" / "snapshots").rglob("*.pack"):
            content = bytearray(pack.read_bytes())
            content[len(content) // 2] ^= 1
            pack.write_bytes(content)

        first = await api.run("a", "'x' in globals()")
        second = await api.run("a", "y = 1")
        for _ in range(3):
            await api.run("a", "y += 1")
            await api.post("/api/sessions/a/hibernate")
        listed = (await api.get("/api/sessions/a/snapshots"))["snapshots"]

    assert (first["result"], first["resumed"], first["fresh_start"]) == ("False", False, True)
    assert "could not be brought back" in first["not_carried"][0]["reason"]
    assert second["not_carried"] == []
    assert asleep["saved_snapshot_id"] in [one["id"] for one in listed]
    assert len(listed) <= 3


async def test_bytes_that_are_missing_cost_no_later_save(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data", autosaves_kept=1) as gateway, Api(gateway.url) as api:
        for number in range(3):
            await api.run("a", f"x = {number}")
            asleep = await api.post("/api/sessions/a/hibernate", expect=200)
            for manifest in (tmp_path / "data" / "snapshots").rglob("*.snapshot"):
                if number == 0:
                    manifest.unlink()
        seen = await api.run("a", "x")

    assert asleep["state"] == "IDLE"
    assert seen["result"] == "2"


async def test_a_copy_of_a_part_has_no_more_than_that_part(api: Api, session_id: str) -> None:
    await api.run(session_id, "x, y = 1, 2")
    part = await api.post(f"/api/sessions/{session_id}/remix", {"name": "part", "state": ["x"]}, 201)
    await api.run(part["id"], "1")
    await api.post(f"/api/sessions/{part['id']}/hibernate")

    copy = await api.post(f"/api/sessions/{part['id']}/duplicate", {}, 201)

    assert (await api.run(copy["id"], "'x' in globals(), 'y' in globals()"))["result"] == "(True, False)"


async def test_a_variable_that_was_set_and_lost_is_told(gateway: GatewayProcess, api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "x = 1")
    await api.post(f"{path}/snapshots", {}, 201)
    await api.call("PUT", f"{path}/variables/x", {"value": 2})
    os.kill(await kernel_pid(gateway, api, session_id), signal.SIGKILL)
    await until(api, path, lambda session: session["state"] == "ERROR")

    back = await api.run(session_id, "x")

    assert back["result"] == "1"
    assert "had not been saved" in back["not_carried"][0]["reason"]


async def test_a_snapshot_of_the_variables_alone_never_takes_files_away(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "x = 1")
    asleep = await api.post(f"{path}/hibernate")
    await api.run(session_id, "x = 2; open('precious', 'w').write('p')")
    kept = asleep["saved_snapshot_id"]
    tarball = (await api.http.get(f"{path}/snapshots/{kept}/archive")).content
    brought = await put_snapshot(api, tarball, 201)

    await api.post(f"{path}/restore", {"snapshot_id": brought["id"]})
    restored = await api.run(session_id, "x, open('precious').read()")
    refused = await api.post(f"{path}/duplicate", {"new_id": f"{session_id}-c", "snapshot_id": kept}, 422)
    copy = await api.post(f"{path}/duplicate", {"snapshot_id": kept, "files": False}, 201)
    await api.run(copy["id"], "open('own', 'w').write('o')")
    (of_copy,) = (await api.get(f"/api/sessions/{copy['id']}/snapshots"))["snapshots"]
    await api.post(f"/api/sessions/{copy['id']}/restore", {"snapshot_id": of_copy["id"]})

    assert restored["result"] == "(1, 'p')"
    assert "variables alone" in refused["error"]
    assert (await api.run(copy["id"], "x, open('own').read()"))["result"] == "(1, 'o')"


async def test_a_tarball_that_lies_about_itself_is_refused(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 1")
    saved = await api.post(f"/api/sessions/{session_id}/snapshots", {}, 201)
    tarball = (await api.http.get(f"/api/sessions/{session_id}/snapshots/{saved['id']}/archive")).content

    for facts in ({"variables": 7}, {"unsaved": 5}, {"packages": ["numpy"]}, {"variables": [{"name": 1}]}):
        refused = await put_snapshot(api, with_facts(tarball, facts), 422)
        assert "facts." in refused["error"]


def with_facts(tarball: bytes, changes: dict[str, Any]) -> bytes:
    """The same snapshot, with other facts and, as a liar would have it, the digest that goes with them."""
    members: list[tuple[tarfile.TarInfo, bytes]] = []
    with tarfile.open(fileobj=io.BytesIO(zstd.decompress(tarball))) as tar:
        for member in tar:
            content = tar.extractfile(member)
            members.append((member, content.read() if content is not None else b""))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member, content_ in members:
            if member.name == "manifest.json":
                told = json.loads(content_)["content"]
                told["facts"] = {**told["facts"], **changes}
                body = json.dumps(told, sort_keys=True, separators=(",", ":"))
                digest = blake3(body.encode()).hexdigest()
                content_ = f'{{"format":1,"digest":"{digest}","content":{body}}}\n'.encode()
                member.size = len(content_)
            tar.addfile(member, io.BytesIO(content_))
    return zstd.compress(packed.getvalue())


async def put_snapshot(api: Api, tarball: bytes, status: int) -> Any:
    return await api.call(
        "PUT", "/api/snapshots", content=tarball, headers={"Content-Type": "application/zstd"}, expect=status
    )


async def until(api: Api, path: str, wanted: Any) -> Any:
    async with asyncio.timeout(30):
        while not wanted(found := await api.get(path)):
            await asyncio.sleep(0.02)
    return found
