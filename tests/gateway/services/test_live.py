"""Sessions and their kernels: how kernels die, start again, are put away, and how sessions come and go."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.api import Api
from tests.gateway.services.test_executions import ended, marked, marker, started  # noqa: F401 - a fixture among them
from tests.gateways import GatewayProcess, gateway_process, kernel_pid


async def until_state(api: Api, session_id: str, *wanted: str) -> Any:
    """The session's document once it is in one of these states."""
    async with asyncio.timeout(60):
        while (found := await api.get(f"/api/sessions/{session_id}"))["state"] not in wanted:
            await asyncio.sleep(0.05)
    return found


async def until_gone(pid: int) -> None:
    async with asyncio.timeout(20):
        while psutil.pid_exists(pid):
            await asyncio.sleep(0.05)


# Death


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os._exit(3)", "code 3"),
        ("import os; os._exit(0)", "code 0"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", "SIGTERM"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os; os.abort()", "SIGABRT"),
    ],
)
async def test_a_kernel_that_dies_in_a_run_is_told_with_its_reason(
    api: Api, session_id: str, code: str, reason: str
) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "x = 1; open('kept.txt', 'w').write('file')")

    answer = await api.run(session_id, f"print('before', flush=True); import time; time.sleep(0.2)\n{code}")
    document = await api.get(path)
    after = await api.run(session_id, "('x' in globals(), open('kept.txt').read())")

    assert (answer["status"], answer["exit_code"], answer["state_kept"]) == ("died", 137, False)
    assert answer["stdout"] == "before\n"
    assert reason in answer["error"]["evalue"]
    assert document["state"] == answer["state"] == "ERROR"
    assert reason in document["state_reason"]
    assert after["result"] == "(False, 'file')"
    moves = [(one["before"], one["after"]) for one in (await api.get(f"{path}/states"))["states"]]
    assert moves[0] == ("BUSY", "READY")
    assert ("BUSY", "ERROR") in moves
    assert ("ERROR", "INIT") in moves


async def test_the_runs_behind_a_dead_kernel_get_a_new_one(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 1")
    codes = ["import os, time; time.sleep(0.3); os._exit(1)", "'x' in globals()", "y = 2", "y"]

    path = f"/api/sessions/{session_id}"
    sent = [await api.post(f"{path}/run", {"code": code, "background": True}, 202) for code in codes]
    await api.run(session_id, "1")
    answers = [await api.get(f"{path}/executions/{one['execution_id']}") for one in sent]

    assert [answer["status"] for answer in answers] == ["died", "ok", "ok", "ok"]
    assert [answer["result"] for answer in answers] == [None, "False", None, "2"]


async def test_a_kernel_that_is_killed_while_idle_is_told(gateway: GatewayProcess, api: Api, session_id: str) -> None:
    await api.run(session_id, "1")

    os.kill(await kernel_pid(gateway, api, session_id), signal.SIGKILL)
    document = await until_state(api, session_id, "ERROR")

    assert "SIGKILL" in document["state_reason"]
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"
    assert (await api.get(f"/api/sessions/{session_id}"))["state"] == "READY"


async def test_out_of_memory_is_seen_by_everybody(api: Api, session_id: str) -> None:
    await api.create(session_id=session_id, resources={"memory": "256M"})
    hog = "hoard = []\nwhile True:\n    hoard.append(bytearray(4_000_000)); import time; time.sleep(0.01)"

    answer = await api.run(session_id, hog, timeout=60)
    document = await api.get(f"/api/sessions/{session_id}")

    assert answer["status"] == "died"
    assert "memory" in answer["error"]["evalue"]
    assert "256,000,000" in answer["error"]["evalue"]
    assert document["state"] == "ERROR"
    assert "memory" in document["state_reason"]
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"


HOG = "import subprocess, sys; hog = [sys.executable, '-c', 'x = b\"x\" * 400_000_000; import time; time.sleep(30)']"


async def test_memory_of_children_counts(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.create(session_id=session_id, resources={"memory": "256M"})
    await api.run(session_id, f"x = 41; {HOG}")
    if "cgroup" not in (await api.get(path))["isolation"]["walls"]:
        pytest.skip("this host gives sessions no groups")

    answer = await api.run(session_id, "subprocess.run(hog).returncode", timeout=60)
    async with asyncio.timeout(20):
        while "memory" not in (told := (await api.get(f"{path}/logs"))["text"]):
            await asyncio.sleep(0.05)

    assert (answer["status"], answer["result"]) == ("ok", "-9")
    assert (await api.run(session_id, "x + 1"))["result"] == "42"
    assert "Out of memory: the system ended a process of the session; its limit is 256,000,000 bytes." in told


async def test_memory_that_forked_workers_share_counts_once(api: Api, session_id: str) -> None:
    await api.create(session_id=session_id, resources={"memory": "400M"})
    code = """
import os, time
hoard = bytearray(b'x' * 150_000_000)
workers = []
for _ in range(4):
    pid = os.fork()
    if pid == 0:
        time.sleep(3); os._exit(0)
    workers.append(pid)
for pid in workers:
    os.waitpid(pid, 0)
'all done'
"""
    answer = await api.run(session_id, code, timeout=60)

    assert answer["result"] == "'all done'"


async def test_a_memory_error_is_an_exception_like_any_other(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 1")

    answer = await api.run(session_id, "hoard = bytearray(10**15)")

    assert (answer["status"], answer["error"]["ename"], answer["state_kept"]) == ("error", "MemoryError", True)
    assert (await api.run(session_id, "x"))["result"] == "1"


async def test_children_of_a_dead_kernel_die_too(api: Api, session_id: str, marker: str) -> None:  # noqa: F811
    code = f"""
import os, subprocess, sys
for far in (False, True):
    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', {marker!r}], start_new_session=far)
os._exit(1)
"""
    answer = await api.run(session_id, code)

    assert answer["status"] == "died"
    assert marked(marker) == []


# Restart, sleep


async def test_a_restart_during_a_run_ends_it_and_starts_afresh(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "x = 1")
    async with api.stream(session_id, "print('go'); import time; time.sleep(600)") as stream:
        await started(stream)
        queued = asyncio.ensure_future(api.run(session_id, "'x' in globals()"))

        document = await api.post(f"{path}/restart", {})
        done = await started(stream, "done")

    assert document["state"] in ("READY", "BUSY")
    assert done.data["status"] == "died"
    assert "restarted" in done.data["error"]["evalue"]
    assert not done.data["state_kept"]
    assert (await queued)["result"] == "False"


async def test_runs_at_the_moment_of_a_restart_get_one_kernel_or_the_other(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "x = 1")

    for _ in range(6):
        calls: list[Any] = [api.run(session_id, f"{n}") for n in range(4)]
        calls.insert(2, api.post(f"{path}/restart", {}))
        answers = await asyncio.gather(*calls)
        del answers[2]

        assert {answer["status"] for answer in answers} <= {"ok", "died"}
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"


async def test_a_run_that_meets_hibernation_starts_afresh(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    for _ in range(3):
        await api.run(session_id, "1")

        sleeping = asyncio.ensure_future(api.http.post(f"{path}/hibernate"))
        answer = await api.run(session_id, "2")

        assert (await sleeping).status_code in (200, 409)
        assert (answer["status"], answer["result"]) == ("ok", "2")


async def test_an_idle_session_goes_to_sleep_and_the_next_run_wakes_it(
    gateway: GatewayProcess, api: Api, session_id: str
) -> None:
    await api.create(session_id=session_id, waiting_timeout_seconds=1)
    await api.run(session_id, "x = 1; open('kept.txt', 'w').write('file')")
    pid = await kernel_pid(gateway, api, session_id)

    document = await until_state(api, session_id, "IDLE")
    await until_gone(pid)
    answer = await api.run(session_id, "('x' in globals(), open('kept.txt').read())")

    assert "idle" in document["state_reason"]
    assert answer["result"] == "(True, 'file')"


async def test_a_session_that_runs_for_long_is_not_idle(api: Api, session_id: str) -> None:
    await api.create(session_id=session_id, waiting_timeout_seconds=1)

    answer = await api.run(session_id, "import time; time.sleep(4); 'whole'")

    assert answer["result"] == "'whole'"


async def test_an_idle_session_that_is_not_persistent_is_deleted(api: Api, session_id: str) -> None:
    await api.create(session_id=session_id, waiting_timeout_seconds=1, persistent=False)
    await until_state(api, session_id, "READY")

    async with asyncio.timeout(30):
        while (await api.http.get(f"/api/sessions/{session_id}")).status_code != 404:
            await asyncio.sleep(0.1)


async def test_the_kernel_knows_its_session(gateway: GatewayProcess, api: Api, session_id: str) -> None:
    await api.create(session_id=session_id, env={"MINE": "yes"})
    names = ("ERA_SESSION", "ERA_SESSION_ID", "ERA_LANGUAGE", "ERA_BASE_URL", "MINE")

    answer = await api.run(session_id, f"import os; print([os.environ[name] for name in {names!r}])")

    assert answer["stdout"].strip() == str(["true", session_id, "python", gateway.url, "yes"])


async def test_a_kernel_inherits_no_secret_of_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_SECRET", "do-not-tell")
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        answer = await api.run(
            "one", "import os; [name for name in os.environ if 'SECRET' in name or 'GATEWAY_' in name]"
        )

    assert "CLOUD_SECRET" not in answer["result"]


# Coming and going


async def test_a_delete_during_a_run_ends_both(api: Api, session_id: str, marker: str) -> None:  # noqa: F811
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "1")
    sleeper = f"[sys.executable, '-c', 'import time; time.sleep(600)', {marker!r}]"
    code = f"import subprocess, sys; print('go', flush=True); subprocess.run({sleeper})"
    async with api.stream(session_id, code) as stream:
        await started(stream)
        queued = asyncio.ensure_future(api.http.post(f"{path}/run", json={"code": "1"}))
        await asyncio.wait({queued}, timeout=0.2)

        deleted = await api.call("DELETE", path)
        done = await started(stream, "done")

    assert deleted["success"]
    assert done.data["status"] == "died"
    assert "deleted" in done.data["error"]["evalue"]
    assert (await queued).json()["status"] == "interrupted"
    await api.get(path, 404)
    assert marked(marker) == []


@pytest.mark.parametrize("_", range(3))
async def test_of_two_creates_of_one_id_one_wins(api: Api, session_id: str, _: int) -> None:
    answers = await asyncio.gather(*(api.http.post("/api/sessions", json={"id": session_id}) for _ in range(8)))

    assert sorted(answer.status_code for answer in answers) == [201] + [409] * 7
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"


async def test_a_new_session_under_a_deleted_id_starts_empty(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    for turn in range(5):
        await api.create(session_id=session_id, data={"turn": turn})
        before = await api.run(
            session_id, "found = 'x' in globals(); x = 1; open('f', 'a').write('.'); found", update_data={}
        )

        deleting = asyncio.ensure_future(api.call("DELETE", path))
        await asyncio.wait({deleting}, timeout=0.01 * turn)
        await deleting

        assert before["result"] == "False"
        assert before["data"] == {"turn": turn}


@pytest.mark.slow
async def test_storms_of_creates_runs_and_deletes_leave_no_half_state(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"

    async def creator() -> list[int]:
        return [(await api.http.post("/api/sessions", json={"id": session_id})).status_code for _ in range(12)]

    async def runner(n: int) -> list[int]:
        answers = [await api.http.post(f"{path}/run", json={"code": f"print({n})"}) for _ in range(8)]
        for answer in answers:
            if answer.status_code == 200 and answer.json()["status"] == "ok":
                assert answer.json()["stdout"] == f"{n}\n"
        return [answer.status_code for answer in answers]

    async def deleter() -> list[int]:
        codes = []
        for _ in range(12):
            codes.append((await api.http.delete(path)).status_code)
            await asyncio.sleep(0.1)
        return codes

    found = await asyncio.gather(creator(), deleter(), *(runner(n) for n in range(4)), deleter())

    assert {code for codes in found for code in codes} <= {200, 201, 404, 409}
    await api.http.delete(path)
    await api.get(path, 404)
    await api.create(session_id=session_id)
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"
    await api.call("DELETE", path)


async def test_a_delete_whose_client_leaves_is_carried_out(gateway: GatewayProcess, api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "import atexit, time; atexit.register(time.sleep, 1)")
    async with asyncio.timeout(20):
        while (await api.http.get(path)).status_code != 404:
            async with httpx2.AsyncClient(base_url=gateway.url, trust_env=False) as other:
                deleting = asyncio.ensure_future(other.delete(path))
                await asyncio.wait({deleting}, timeout=0.02)
                deleting.cancel()
    await api.create(session_id=session_id)
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"


async def test_an_undeleted_session_runs_again(api: Api, session_id: str) -> None:
    path = f"/api/sessions/{session_id}"
    await api.run(session_id, "open('kept.txt', 'w').write('file')")

    for _ in range(3):
        await api.call("DELETE", path)
        await api.post(f"{path}/undelete", {})
        answer = await api.run(session_id, "open('kept.txt').read()")

        assert answer["result"] == "'file'"


# Limits


async def test_a_full_queue_is_refused_and_a_full_house_too(tmp_path: Path) -> None:
    settings = {"queue_limit": 2, "live_limit": 1}
    async with gateway_process(tmp_path / "data", **settings) as gateway, Api(gateway.url) as api:
        async with api.stream("one", "print('go'); import time; time.sleep(600)") as stream:
            await started(stream)
            for _ in range(2):
                await api.post("/api/sessions/one/run", {"code": "1", "background": True}, 202)

            refused = await api.http.post("/api/sessions/one/run", json={"code": "1"})
            full = await api.http.post("/api/sessions/two/run", json={"code": "1"})

        assert (refused.status_code, refused.json()["code"]) == (429, "exhausted")
        assert (full.status_code, full.json()["code"]) == (503, "no_room")
        for answer in (refused, full):
            assert int(answer.headers["Retry-After"]) >= 1
        await api.call("DELETE", "/api/sessions/one")
        assert (await api.run("two", "1 + 1"))["result"] == "2"


async def test_a_background_run_that_finds_no_room_is_told_in_its_record(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data", live_limit=1) as gateway, Api(gateway.url) as api:
        await api.run("one", "1")

        accepted = await api.post("/api/sessions/two/run", {"code": "1", "background": True}, 202)
        async with asyncio.timeout(20):
            path = f"/api/sessions/two/executions/{accepted['execution_id']}"
            while (found := await api.get(path))["finished_at"] is None:
                await asyncio.sleep(0.05)

        assert found["status"] == "died"
        assert found["error"]["ename"] == "NoRoom"


# Setup


async def test_a_setup_installs_into_the_session_and_nowhere_else(api: Api, session_id: str) -> None:
    make = r"""
mkdir -p package/tiny_of_this_test &&
printf '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n' > package/pyproject.toml &&
printf 'answer = 42\n' > package/tiny_of_this_test/__init__.py &&
printf '%s\n' 'import zipfile' 'def build_wheel(folder, *_):' '    name = "tiny_of_this_test-1.0-py3-none-any.whl"' \
  '    info = "tiny_of_this_test-1.0.dist-info/"' '    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:' \
  '        wheel.writestr("tiny_of_this_test/__init__.py", "answer = 42")' \
  '        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: tiny-of-this-test\nVersion: 1.0\n")' \
  '        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")' \
  '        wheel.writestr(info + "RECORD", "")' '    return name' > package/backend.py &&
pip install --no-index --no-build-isolation ./package && echo made
"""
    before = await api.run(
        f"{session_id}-other", "import importlib.util as u; u.find_spec('tiny_of_this_test') is None"
    )
    await api.create(session_id=session_id, setup={"commands": [make, "echo done > ran.txt"]})

    answer = await api.run(
        session_id, "import tiny_of_this_test as t; (t.answer, t.__file__, open('ran.txt').read())", timeout=60
    )
    document = await api.get(f"/api/sessions/{session_id}")
    log = (await api.get(f"/api/sessions/{session_id}/logs", params={"source": "setup"}))["text"]
    after = await api.run(f"{session_id}-other", "u.find_spec('tiny_of_this_test') is None")

    assert answer["status"] == "ok", (answer, log)
    assert "overlay" in answer["result"]
    assert sys.prefix not in answer["result"]
    assert document["setup_status"] == "done"
    assert "made" in log
    assert before["result"] == after["result"] == "True"


@pytest.mark.external_service
async def test_a_setup_installs_from_the_package_index(api: Api, session_id: str) -> None:
    await api.create(session_id=session_id, setup={"pip": ["iniconfig==2.0.0"]})

    answer = await api.run(session_id, "import iniconfig; iniconfig.__file__", timeout=90)

    assert "overlay" in answer["result"]


async def test_a_setup_that_fails_is_told_and_the_session_works(api: Api, session_id: str) -> None:
    await api.create(
        session_id=session_id, setup={"commands": ["echo so far", "echo bad luck >&2; exit 7", "echo never"]}
    )

    answer = await api.run(session_id, "1 + 1")
    document = await api.get(f"/api/sessions/{session_id}")
    log = (await api.get(f"/api/sessions/{session_id}/logs", params={"source": "setup"}))["text"]

    assert answer["result"] == "2"
    assert document["setup_status"] == "failed"
    assert "so far" in log
    assert "bad luck" in log
    assert "$ command echo never" not in log


async def test_a_setup_under_way_does_not_hold_up_a_delete(api: Api, session_id: str, marker: str) -> None:  # noqa: F811
    await api.create(session_id=session_id, setup={"commands": [f"sleep 600; : {marker}"]})
    async with asyncio.timeout(20):
        while not marked(marker):
            await asyncio.sleep(0.05)

    async with asyncio.timeout(10):
        await api.call("DELETE", f"/api/sessions/{session_id}")

    assert marked(marker) == []


async def test_output_of_threads_after_their_cell_is_told_in_the_events_alone(api: Api, session_id: str) -> None:
    code = """
import threading
def later():
    go.wait(); print('from the thread'); said.set()
go, said = threading.Event(), threading.Event()
threading.Thread(target=later).start()
"""
    first = await api.run(
        session_id,
        f"{code}\nimport concurrent.futures as f; pool = f.ThreadPoolExecutor(1)\npool.submit(print, 'a').result()",
    )
    second = await api.run(session_id, "print('mine'); go.set(); said.wait(); pool.submit(print, 'mine too').result()")
    found = []
    async with asyncio.timeout(20), api.events(f"/api/sessions/{session_id}/events") as stream:
        async for event in stream:
            if event.kind == "stdout" and event.data["execution_id"] == first["execution_id"]:
                found.append(event.data["text"])
                if len(found) == 2:
                    break

    assert first["stdout"] == "a\n"
    assert second["stdout"] == "mine\nmine too\n"
    assert found == ["a\n", "from the thread\n"]


# Changes from outside


async def test_changes_of_a_busy_session_are_the_same_in_memory_and_in_the_store(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway:
        async with Api(gateway.url) as api:

            async def change(n: int) -> None:
                await api.call("PATCH", "/api/sessions/demo", {"data": {"last": n, f"k{n}": n}})

            await api.run("demo", "1")
            await asyncio.gather(
                *(change(n) for n in range(20)),
                *(api.run("demo", "1", update_data={"last": f"run {n}"}) for n in range(20)),
            )
            before = (await api.get("/api/sessions/demo"))["data"]
            await api.get("/api/sessions/demo/states")  # which waits for what is written behind the answers
        await gateway.kill()
        await gateway.start()

        async with Api(gateway.url) as api:
            assert (await api.get("/api/sessions/demo"))["data"] == before
        assert {f"k{n}" for n in range(20)} <= set(before)


async def test_data_that_no_store_could_hold_is_refused(api: Api, session_id: str) -> None:
    path, half = f"/api/sessions/{session_id}", "x" * 600_000
    await api.run(session_id, "x = 1", update_data={"one": half})

    by_run = await api.http.post(f"{path}/run", json={"code": "x = 2", "update_data": {"two": half}})
    by_patch = await api.http.patch(path, json={"data": {"two": half}})
    by_put = await api.http.put(path, json={"metadata": {"two": half + half}})

    for answer in (by_run, by_patch, by_put):
        assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert (await api.run(session_id, "x"))["result"] == "1"
