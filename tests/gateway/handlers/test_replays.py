"""A history is run again in a new session, and what came out otherwise is told run by run."""

from typing import Any

from tests.api import Api, events


def verdicts(replay: dict[str, Any]) -> list[str | None]:
    return [run["verdict"] for run in replay["runs"]]


async def replay(api: Api, source_id: str, expect: int = 200, **fields: Any) -> Any:
    return await api.post(f"/api/sessions/{source_id}/replay", fields, expect)


async def test_a_history_that_comes_out_the_same_is_told_to(api: Api, session_id: str) -> None:
    await api.create(id=session_id, env={"NAME": "value"}, labels={"a": "b"})
    for code in (
        "x = 20",
        "print(object(), __import__('time').time())",
        "x + 22",
        "1 / 0",
        "import os; os.environ['NAME']",
    ):
        await api.run(session_id, code)

    told = await replay(api, session_id, session_id=f"{session_id}-2")

    child = await api.get(f"/api/sessions/{session_id}-2")
    again = (await api.get(f"/api/sessions/{session_id}-2/history"))["history"]
    assert (told["same"], told["status"], verdicts(told)) == (True, "ok", ["same"] * 5)
    assert told["counts"] == {"same": 5, "different": 0, "failed": 0, "skipped": 0}
    assert (told["session_id"], told["source_session_id"]) == (f"{session_id}-2", session_id)
    assert (child["parent_id"], child["labels"]) == (session_id, {"a": "b"})
    assert [run["replayed_execution_id"] for run in told["runs"]] == [run["execution_id"] for run in again[::-1]]
    assert [run["code"] for run in told["runs"]] == [run["code"] for run in again[::-1]]
    assert (again[2]["result"], again[0]["result"]) == ("42", "'value'")
    assert [run["before"] for run in told["runs"]] == [run["after"] for run in told["runs"]]


async def test_what_differs_comes_with_a_diff_and_what_fails_with_its_error(api: Api, session_id: str) -> None:
    await api.run(
        session_id, "print(len(open('n').read()) if __import__('os').path.exists('n') else 'none')\nprint('end')"
    )
    await api.run(session_id, "open('n', 'x').write('abc')")
    await api.run(session_id, "x = 1")

    told = await replay(api, session_id)

    assert (told["same"], told["status"], verdicts(told)) == (False, "error", ["different", "failed", "same"])
    assert told["runs"][0]["diff"].splitlines()[-3:] == ["-none", "+3", " end"]
    assert told["runs"][1]["reason"].startswith("FileExistsError")
    assert (told["runs"][1]["before"], told["runs"][1]["after"]) == ("ok", "error")
    assert told["counts"] == {"same": 1, "different": 1, "failed": 1, "skipped": 0}


async def test_without_the_files_it_begins_with_an_empty_workspace(api: Api, session_id: str) -> None:
    await api.run(session_id, "open('n', 'x').write('abc')")

    told = await replay(api, session_id, files=False)

    assert verdicts(told) == ["same"]


async def test_the_variables_of_the_old_session_are_not_there(api: Api, session_id: str) -> None:
    await api.run(session_id, "y = 1")
    await api.call("PUT", f"/api/sessions/{session_id}/variables/x", {"value": 1})
    await api.run(session_id, "x + y")

    told = await replay(api, session_id)

    assert verdicts(told) == ["same", "failed"]
    assert told["runs"][1]["reason"].startswith("NameError")


async def test_the_first_failure_ends_it_if_it_is_to(api: Api, session_id: str) -> None:
    await api.run(session_id, "open('n', 'x').write('abc')")
    await api.run(session_id, "x = 1")

    told = await replay(api, session_id, stop_on_error=True)

    assert verdicts(told) == ["failed", None]
    assert told["reason"]


async def test_a_run_that_now_succeeds_is_different(api: Api, session_id: str) -> None:
    await api.run(session_id, "open('later').read()")
    await api.run(session_id, "open('later', 'w').write('x')")

    told = await replay(api, session_id)

    assert verdicts(told) == ["different", "same"]
    assert "-FileNotFoundError" in told["runs"][0]["diff"]


async def test_interrupted_and_dead_runs_are_skipped_and_a_timeout_is_run_again(api: Api, session_id: str) -> None:
    await api.run(session_id, "while True: pass", timeout=0.5)
    await api.run(session_id, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    await api.run(session_id, "1 + 1")

    told = await replay(api, session_id)

    assert verdicts(told) == ["same", "skipped", "same"]
    assert [run["before"] for run in told["runs"]] == ["timeout", "died", "ok"]
    assert told["runs"][1]["reason"] == "Its kernel died."
    assert (told["status"], told["same"]) == ("ok", False)


async def test_a_replay_is_streamed(api: Api, session_id: str) -> None:
    await api.run(session_id, "print('a')")
    await api.run(session_id, "1 + 1")

    async with api.http.stream("POST", f"/api/sessions/{session_id}/replay", json={"stream": True}) as answer:
        told = [event async for event in events(answer)]

    assert [event.kind for event in told] == ["cell", "stdout", "run_done", "cell", "result", "run_done", "done"]
    assert [event.data["verdict"] for event in told if event.kind == "run_done"] == ["same", "same"]
    assert told[-1].data["same"] is True


async def test_a_replay_in_the_background_is_asked_after_and_stopped(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 1")
    await api.run(session_id, "import os, time\nif os.path.exists('slow'): time.sleep(60)")
    await api.run(session_id, "open('slow', 'w')")
    url = f"/api/sessions/{session_id}/replay"

    begun = await replay(api, session_id, 202, background=True)
    async with api.events(f"{url}/{begun['replay_id']}/events") as found:
        async for event in found:
            if event.kind == "cell" and event.data["index"] == 1:
                break
        stopped = await api.call("DELETE", f"{url}/{begun['replay_id']}")

    assert begun["status"] == "running"
    assert (stopped["status"], verdicts(stopped)) == ("interrupted", ["same", "skipped", None])
    assert stopped["runs"][1]["reason"] == "It was stopped."
    assert await api.get(f"{url}/{begun['replay_id']}") == stopped


async def test_a_replay_needs_a_session_and_an_id_that_is_free(api: Api, session_id: str) -> None:
    await replay(api, session_id, 404)
    await api.create(id=session_id)

    empty = await replay(api, session_id)
    refusal = await replay(api, session_id, 409, session_id=session_id)

    assert (empty["runs"], empty["same"]) == ([], True)
    assert refusal["code"] == "session_exists"
