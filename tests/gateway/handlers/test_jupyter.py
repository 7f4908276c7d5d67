"""Jupyter's kernels, kernelspecs and sessions, as its clients ask for them."""

from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from gateway.models.base import now
from gateway.models.sessions import Session
from gateway.states import State
from gateway.stores.sqlite import SqliteStore
from tests.api import Api
from tests.gateways import gateway_process

J = "/jupyter/api"


async def test_the_server_tells_its_version_and_who_asks(api: Api) -> None:
    assert (await api.get(J))["version"].startswith("2.")
    assert (await api.get(f"{J}/me"))["identity"]["username"] == "local"


async def test_tokens_and_unknown_parameters_are_let_by(api: Api) -> None:
    headers = {"Authorization": "token abc"}

    assert await api.get(f"{J}/kernels?1769000000000&token=abc", 200, headers=headers) == []


async def test_the_status_counts_kernels(api: Api) -> None:
    await api.create(id="counted")

    status = await api.get(f"{J}/status")

    assert (status["kernels"], status["connections"]) == (1, 0)
    assert status["started"] <= status["last_activity"]


async def test_kernelspecs_name_their_logos_which_can_be_had(api: Api) -> None:
    found = await api.get(f"{J}/kernelspecs")

    python = found["kernelspecs"][found["default"]]
    logo = await api.http.get(python["resources"]["logo-64x64"])
    assert python["spec"]["language"] == "python"
    assert (logo.status_code, logo.headers["Content-Type"]) == (200, "image/png")
    assert await api.get(f"{J}/kernelspecs/python3") == python


async def test_no_other_file_of_a_kernelspec_is_given_out(api: Api) -> None:
    for file in ("kernel.json", "..%2Fkernel.json", "nothing.png"):
        refused = await api.get(f"/jupyter/kernelspecs/python3/{file}", 404)
        assert "has no file" in refused["message"]


async def test_terminals_are_not_offered(api: Api) -> None:
    assert "not offered" in (await api.get(f"{J}/terminals", 404))["message"]


async def test_a_kernel_that_jupyter_starts_is_a_session(api: Api) -> None:
    kernel = await api.post(f"{J}/kernels", {"name": "python3", "env": {"KERNEL_USERNAME": "ann", "1": "no name"}}, 201)

    answer = await api.run(kernel["session_id"], "import os; os.environ['KERNEL_USERNAME']")
    session = await api.get(f"/api/sessions/{kernel['session_id']}")
    assert answer["result"] == "'ann'"
    assert session["jupyter"]["kernel_id"] == kernel["id"]
    assert session["jupyter"]["url"] == f"{api.url}{J}/kernels/{kernel['id']}"
    UUID(kernel["id"])


async def test_a_session_is_a_kernel_whose_id_stays_through_restart_and_sleep(api: Api, session_id: str) -> None:
    created = await api.create(id=session_id)
    await api.run(session_id, "x = 1")
    kernel_id = created["jupyter"]["kernel_id"]

    await api.post(f"/api/sessions/{session_id}/restart")
    restarted = await api.get(f"{J}/kernels/{kernel_id}")
    await api.post(f"/api/sessions/{session_id}/hibernate")
    asleep = await api.get(f"{J}/kernels/{kernel_id}")

    assert restarted["session_id"] == asleep["session_id"] == session_id
    assert [one["id"] for one in await api.get(f"{J}/kernels")] == [kernel_id]
    assert (restarted["execution_state"], asleep["execution_state"]) == ("idle", "idle")


async def test_a_kernel_that_jupyter_started_and_ends_is_a_deleted_session_that_can_come_back(api: Api) -> None:
    kernel = await api.post(f"{J}/kernels", expect=201)
    kernel_id, session_id = kernel["id"], kernel["session_id"]
    await api.run(session_id, "x = 41")

    await api.call("DELETE", f"{J}/kernels/{kernel_id}", expect=204)

    assert "does not exist" in (await api.get(f"{J}/kernels/{kernel_id}", 404))["message"]
    await api.get(f"/api/sessions/{session_id}", 404)
    await api.post(f"/api/sessions/{session_id}/undelete")
    assert (await api.run(session_id, "x + 1"))["result"] == "42"
    assert (await api.get(f"{J}/kernels/{kernel_id}"))["session_id"] == session_id


async def test_an_agents_session_whose_kernel_jupyter_ends_sleeps_and_is_no_kernel_until_it_is_used(
    api: Api, session_id: str
) -> None:
    kernel_id = (await api.create(id=session_id))["jupyter"]["kernel_id"]
    await api.run(session_id, "x = 41")

    await api.call("DELETE", f"{J}/kernels/{kernel_id}", expect=204)

    assert "does not exist" in (await api.get(f"{J}/kernels/{kernel_id}", 404))["message"]
    await api.call("DELETE", f"{J}/kernels/{kernel_id}", expect=404)
    assert (await api.get(f"{J}/kernels"), await api.get(f"{J}/sessions")) == ([], [])
    asleep = await api.get(f"/api/sessions/{session_id}")
    assert (asleep["state"], asleep["source"]) == ("IDLE", "api")
    assert "Jupyter" in asleep["state_reason"]
    answer = await api.run(session_id, "x + 1")
    assert (answer["result"], answer["resumed"]) == ("42", True)
    assert (await api.get(f"{J}/kernels/{kernel_id}"))["session_id"] == session_id


@pytest.mark.parametrize("by", ["kernel", "folder"])
async def test_a_session_whose_kernel_jupyter_has_ended_can_be_opened_again(api: Api, session_id: str, by: str) -> None:
    kernel_id = (await api.create(id=session_id))["jupyter"]["kernel_id"]
    await api.run(session_id, "x = 41")
    first = await api.post(f"{J}/sessions", {"path": "a.ipynb", "kernel": {"id": kernel_id}}, 201)
    await api.call("DELETE", f"{J}/sessions/{first['id']}", expect=204)
    await api.get(f"{J}/kernels/{kernel_id}", 404)

    kernel = {"id": kernel_id} if by == "kernel" else {"name": "python3"}
    opened = await api.post(f"{J}/sessions", {"path": f"{session_id}/b.ipynb", "kernel": kernel}, 201)

    assert opened["kernel"]["id"] == kernel_id
    assert _of(await api.get(f"{J}/sessions"), kernel_id) == [f"{session_id}/b.ipynb"]
    assert (await api.run(session_id, "x + 1"))["result"] == "42"


async def test_what_an_agent_runs_goes_on_when_jupyter_ends_the_kernel(api: Api, session_id: str) -> None:
    kernel_id = (await api.create(id=session_id))["jupyter"]["kernel_id"]
    async with api.stream(session_id, "print('began', flush=True)\ninput(); x = 41") as events:
        async for event in events:
            if event.kind == "input_request":
                await api.call("DELETE", f"{J}/kernels/{kernel_id}", expect=204)
                await api.get(f"{J}/kernels/{kernel_id}", 404)
                await api.post(f"/api/sessions/{session_id}/input", {"text": ""})

    assert event.data["status"] == "ok"
    assert (await api.run(session_id, "x + 1"))["result"] == "42"
    await api.get(f"{J}/kernels/{kernel_id}", 200)


async def test_a_restart_by_jupyter_leaves_files_and_no_variables(api: Api, session_id: str) -> None:
    kernel_id = (await api.create(id=session_id))["jupyter"]["kernel_id"]
    await api.run(session_id, "x = 1; open('kept', 'w').close()")

    await api.post(f"{J}/kernels/{kernel_id}/restart", expect=200)

    answer = await api.run(session_id, "import os; 'x' in globals(), os.path.exists('kept')")
    assert answer["result"] == "(False, True)"


async def test_an_interrupt_by_jupyter_ends_a_run(api: Api, session_id: str) -> None:
    kernel_id = (await api.create(id=session_id))["jupyter"]["kernel_id"]
    async with api.stream(session_id, "print('began', flush=True)\nimport time; time.sleep(60)") as events:
        async for event in events:
            if event.kind == "stdout":
                await api.post(f"{J}/kernels/{kernel_id}/interrupt", expect=204)
        assert event.data["status"] == "interrupted"


async def test_unknown_kernels_and_sessions_are_refused_as_jupyter_does(api: Api) -> None:
    unknown = "1b4e28ba-2fa1-11d2-883f-0016d3cca427"

    for path in (f"kernels/{unknown}", "kernels/none", f"sessions/{unknown}"):
        refused = await api.get(f"{J}/{path}", 404)
        assert set(refused) == {"message", "reason", "code", "request_id"}
    assert "kernel" in (await api.post(f"{J}/kernels", {"name": "none"}, 422))["message"]


def _of(sessions: list[dict[str, Any]], kernel_id: str) -> list[str]:
    return [one["path"] for one in sessions if one["kernel"]["id"] == kernel_id]


async def test_a_session_that_nobody_has_opened_stands_for_itself(api: Api, session_id: str) -> None:
    kernel_id = (await api.create(id=session_id))["jupyter"]["kernel_id"]
    await api.run(session_id, "1")  # it has started, and nothing of it changes from now on

    (found,) = await api.get(f"{J}/sessions")

    assert (found["path"], found["kernel"]["id"], found["type"]) == (session_id, kernel_id, "console")
    again = await api.get(f"{J}/sessions/{found['id']}")
    for one in (found, again):
        del one["kernel"]["last_activity"]  # reckoned anew each time, to the microsecond
    assert again == found


async def test_a_notebook_is_opened_on_a_kernel_of_its_own(api: Api) -> None:
    request = {"path": "work/a.ipynb", "name": "a.ipynb", "type": "notebook", "kernel": {"name": "python3"}}

    opened = await api.post(f"{J}/sessions", request, 201)
    again = await api.post(f"{J}/sessions", request, 201)

    assert again["id"] == opened["id"]
    assert opened["notebook"] == {"path": "work/a.ipynb", "name": "a.ipynb"}
    assert [one["id"] for one in await api.get(f"{J}/sessions")] == [opened["id"]]
    assert (await api.run(opened["kernel"]["session_id"], "1 + 1"))["result"] == "2"


async def test_a_notebook_in_the_files_of_a_session_is_opened_on_its_kernel(api: Api, session_id: str) -> None:
    kernel_id = (await api.create(id=session_id))["jupyter"]["kernel_id"]

    opened = await api.post(f"{J}/sessions", {"path": f"{session_id}/a.ipynb", "kernel": {"name": "python3"}}, 201)

    assert opened["kernel"]["id"] == kernel_id


async def test_two_notebooks_may_share_a_kernel(api: Api, session_id: str) -> None:
    kernel_id = (await api.create(id=session_id))["jupyter"]["kernel_id"]

    for path in ("one.ipynb", "two.ipynb"):
        await api.post(f"{J}/sessions", {"path": path, "type": "notebook", "kernel": {"id": kernel_id}}, 201)

    assert _of(await api.get(f"{J}/sessions"), kernel_id) == ["one.ipynb", "two.ipynb"]


async def test_a_notebook_is_renamed_and_moved_to_another_kernel_under_its_id(api: Api) -> None:
    first, second = [(await api.create(id=f"kernel-{n}"))["jupyter"]["kernel_id"] for n in "ab"]
    opened = await api.post(f"{J}/sessions", {"path": "a.ipynb", "kernel": {"id": first}}, 201)
    path = f"{J}/sessions/{opened['id']}"

    renamed = await api.call("PATCH", path, {"path": "b.ipynb", "name": "b.ipynb", "type": "notebook"}, 200)
    moved = await api.call("PATCH", path, {"kernel": {"id": second}}, 200)

    assert (renamed["path"], renamed["kernel"]["id"]) == ("b.ipynb", first)
    assert (moved["id"], moved["path"], moved["kernel"]["id"]) == (opened["id"], "b.ipynb", second)
    assert _of(await api.get(f"{J}/sessions"), second) == ["b.ipynb"]
    assert _of(await api.get(f"{J}/sessions"), first) == ["kernel-a"]


async def test_a_notebook_may_ask_for_a_new_kernel(api: Api, session_id: str) -> None:
    first = (await api.create(id=session_id))["jupyter"]["kernel_id"]
    opened = await api.post(f"{J}/sessions", {"path": "a.ipynb", "kernel": {"id": first}}, 201)

    moved = await api.call("PATCH", f"{J}/sessions/{opened['id']}", {"kernel": {"name": "python3"}}, 200)

    assert moved["kernel"]["id"] != first
    assert len(await api.get(f"{J}/kernels")) == 2


async def test_closing_a_notebook_deletes_its_session(api: Api) -> None:
    opened = await api.post(f"{J}/sessions", {"path": "a.ipynb"}, 201)

    await api.call("DELETE", f"{J}/sessions/{opened['id']}", expect=204)

    await api.get(f"/api/sessions/{opened['kernel']['session_id']}", 404)
    assert await api.get(f"{J}/sessions") == []


async def test_a_kernelspec_stands_for_each_session_and_who_starts_it_comes_to_the_session(
    api: Api, session_id: str
) -> None:
    created = await api.create(id=session_id, name="sales")
    listed = (await api.get("/jupyter/api/kernelspecs"))["kernelspecs"]
    name = f"session.{session_id}"
    spec = await api.get(f"/jupyter/api/kernelspecs/{name}")
    started = await api.post("/jupyter/api/kernels", {"name": name}, 201)
    await api.post("/jupyter/api/kernels", {"name": "session.none"}, 404)

    assert (spec["name"], spec["spec"]["display_name"]) == (name, f"Session sales ({session_id})")
    assert (listed[name], listed["python3"]["resources"]) == (spec, spec["resources"])
    assert started["id"] == created["jupyter"]["kernel_id"]
    assert len(await api.get("/jupyter/api/kernels")) == 1


async def test_who_starts_the_kernelspec_of_a_session_whose_kernel_was_ended_sees_the_kernel_again(
    api: Api, session_id: str
) -> None:
    kernel_id = (await api.create(id=session_id))["jupyter"]["kernel_id"]
    await api.run(session_id, "x = 41")
    await api.call("DELETE", f"/jupyter/api/kernels/{kernel_id}")
    assert await api.get("/jupyter/api/kernels") == []

    assert f"session.{session_id}" in (await api.get("/jupyter/api/kernelspecs"))["kernelspecs"]
    started = await api.post("/jupyter/api/kernels", {"name": f"session.{session_id}"}, 201)

    assert (started["id"], [one["id"] for one in await api.get("/jupyter/api/kernels")]) == (kernel_id, [kernel_id])
    assert (await api.run(session_id, "x + 1"))["result"] == "42"


@pytest.mark.slow
async def test_all_kernels_are_listed_however_many_sleep(tmp_path: Path) -> None:
    store, at = SqliteStore(tmp_path / "data" / "gateway.sqlite"), now()
    async with store.opened():
        for n in range(1500):
            asleep = Session(uid=uuid4().hex, id=f"s{n}", name="s", state=State.IDLE, created_at=at, updated_at=at)
            await store.create_session(asleep)
    async with gateway_process(tmp_path / "data") as own, Api(own.url) as api:
        kernels, opened = await api.get(f"{J}/kernels"), await api.get(f"{J}/sessions")
        status = await api.get(f"{J}/status")

    assert {one["session_id"] for one in kernels} == {one["path"] for one in opened} == {f"s{n}" for n in range(1500)}
    assert (len(kernels), status["kernels"]) == (1500, 1500)
