"""Every route with every role: what the table of rights says is what happens, and what one may not see is not there."""

import asyncio
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio

from gateway.handlers.rights import table
from gateway.handlers.routes import ROUTES
from gateway.models.access import Need
from tests.api import Api
from tests.keyed import Keyed, keyed_gateway

TABLE = Path(__file__).parent.parent.parent.parent / "deploy" / "access.md"
NOT_A_KEY = "sgw_0123456789abcdef_" + 64 * "0"
READ, RUN, WRITE = "granted `read`", "granted `run`", "granted `write`"

# In the session that alice owns and the one that the agent `maker` has made: role, and what each caller has there.
CALLERS = {
    "alice": ("user", {"own"}, set()),
    "bob": ("user", {READ}, set()),
    "carol": ("user", {READ, RUN}, {READ, RUN, WRITE}),
    "dave": ("user", {READ, RUN, WRITE}, {READ}),
    "eve": ("user", set(), set()),
    "Alice": ("user", set(), set()),
    "bot": ("agent", {"assigned"}, {READ}),
    "maker": ("agent", set(), {"own"}),
    "other": ("agent", set(), set()),
    "vic": ("viewer", {READ, RUN, WRITE}, {READ}),
    "vera": ("viewer", set(), set()),
}  # fmt: skip
ALICES, MAKERS = "alices", "makers"
_DENIED_AS_UNKNOWN = {"session_not_found", "kernel_not_found", "jupyter_session_not_found"}


@dataclass
class World:
    keyed: Keyed
    apis: dict[str, Api]
    bad: dict[str, Api]  # without a key, or with one that is not good
    kernels: dict[str, str]  # session → its kernel's id

    def everybody(self) -> dict[str, Api]:
        return {**self.apis, "root": self.keyed.root}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        keyed = await stack.enter_async_context(
            keyed_gateway(tmp_path_factory.mktemp("keyed") / "data", waiting_timeout_s=3600)
        )
        apis = {}
        for name, (role, *_) in CALLERS.items():
            made = await keyed.key(name, role=role)
            apis[name] = await stack.enter_async_context(keyed.api(made["key"]))
            await apis[name].get("/api/sessions")  # known from here, whatever others guess
        expired = await keyed.key("alice", expires_in_seconds=0.001)
        revoked = await keyed.key("alice")
        await keyed.root.call("DELETE", f"/api/keys/{revoked['id']}")
        bad_keys = {"none": None, "bad": NOT_A_KEY, "expired": expired["key"], "revoked": revoked["key"]}
        bad = {name: await stack.enter_async_context(keyed.api(key)) for name, key in bad_keys.items()}
        grants = {"bob": "read", "carol": "run", "dave": "write", "vic": "write"}
        await apis["alice"].create(session_id=ALICES, agent_ids=["bot"])
        await apis["alice"].call("PUT", f"/api/sessions/{ALICES}/grants", grants)
        await apis["maker"].create(session_id=MAKERS)
        grants = {"carol": "write", "dave": "read", "agent:bot": "read", "vic": "read"}
        await apis["maker"].call("PUT", f"/api/sessions/{MAKERS}/grants", grants)
        kernels = {}
        for session_id in (ALICES, MAKERS):
            await keyed.root.run(session_id, "secret = 42")
            document = await keyed.root.get(f"/api/sessions/{session_id}")
            kernels[session_id] = document["jupyter"]["kernel_id"]
        yield World(keyed, apis, bad, kernels)


def test_the_table_of_rights_is_the_one_that_is_written_down() -> None:
    assert TABLE.read_text() == table(ROUTES), "gateway access > deploy/access.md"


def rows() -> list[tuple[str, str, Need, dict[str, str]]]:
    found = []
    for line in TABLE.read_text().splitlines():
        if "{agent_id}" in line:  # who may do what with agents has tests of its own
            continue
        if match := re.fullmatch(r"\| `(\w+) (\S+)` \| (\w+) \| (.*) \| (.*) \| (.*) \| (.*) \|", line):
            method, path, need, *cells = match.groups()
            found.append(
                (method, path, Need(need), dict(zip(("user", "agent", "viewer", "no key"), cells, strict=True)))
            )
    return found


def allowed(cell: str, has: set[str]) -> bool:
    return cell == "yes" or any(one.strip() in has for one in cell.split(","))


def address(path: str, session_id: str, kernel_id: str) -> str:
    """A path of a route, filled; with a query that is refused where the caller was let in, so that nothing happens."""
    path = path.replace("/contents/{path}", f"/contents/{session_id}/none")
    for name, value in {"session_id": session_id, "kernel_id": kernel_id, "opened_id": kernel_id}.items():
        path = path.replace(f"{{{name}}}", value)
    return re.sub(r"\{\w+\}", "none", path) + ("" if path.startswith("/jupyter") else "?nonsense=1")


async def asked(api: Api, method: str, path: str) -> httpx2.Response:
    body: dict[str, Any] = (
        {} if method in ("GET", "DELETE") else {"content": b"[", "headers": {"Content-Type": "a/json"}}
    )
    return await api.http.request(method, path, **body)


def is_destructive(method: str, path: str) -> bool:
    """What is done where it is allowed, however wrong the request: its owner has it done in a test of its own."""
    return method == "DELETE" and path in ("/jupyter/api/kernels/{kernel_id}", "/jupyter/api/sessions/{opened_id}")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("session_id", [ALICES, MAKERS])
async def test_each_route_lets_in_whom_the_table_names_and_nobody_else(world: World, session_id: str) -> None:
    wrong: list[str] = []
    for method, path, need, cells in rows():
        url = address(path, session_id, world.kernels[session_id])
        for name, (role, *relations) in CALLERS.items():
            has = relations[session_id == MAKERS]
            may = allowed(cells[role], has)
            if need is Need.UNDELETE or (may and is_destructive(method, path)):
                continue
            answer = await asked(world.apis[name], method, url)
            told = answer.json() if "json" in answer.headers.get("Content-Type", "") and answer.content else {}
            code = told.get("code") if isinstance(told, dict) else None
            if answer.status_code >= 500:
                verdict = "failed"
            elif code == "denied":
                verdict = "denied"
            elif code in _DENIED_AS_UNKNOWN:
                verdict = "hidden"
            else:
                verdict = "let in"
            expected = "let in" if may else "hidden" if need.level and not has else "denied"
            if verdict != expected:
                wrong.append(f"{name} {method} {url}: {answer.status_code} {code}, {verdict} instead of {expected}")
    assert not wrong, "\n".join(wrong)
    assert len(rows()) > 100


@pytest.mark.asyncio(loop_scope="module")
async def test_without_a_good_key_only_what_is_open_answers(world: World) -> None:
    wrong: list[str] = []
    for method, path, need, cells in rows():
        for session_id in (ALICES, "nobodys"):
            for name, api in world.bad.items():
                if name == "bad" and session_id != ALICES:
                    continue  # guesses are counted
                answer = await asked(api, method, address(path, session_id, world.kernels[ALICES]))
                is_open = answer.status_code not in (401, 429)
                if is_open != (cells["no key"] == "yes") or is_open != (need is Need.OPEN):
                    wrong.append(f"{name} {method} {path}: {answer.status_code}")
                if answer.status_code == 401 and answer.headers["WWW-Authenticate"] != 'Bearer realm="session-gateway"':
                    wrong.append(f"{name} {method} {path}: {answer.headers}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_one_may_not_see_answers_as_what_is_not_there(world: World) -> None:
    """Status, headers and body are the same but for the name that was asked for."""
    unknown = uuid.uuid4()

    def told(answer: httpx2.Response, *names: str) -> tuple[Any, ...]:
        text = answer.text.replace(answer.headers["X-Request-Id"], "REQUEST")
        for name in names:
            text = text.replace(name, "NAME")
        headers = {k: v for k, v in answer.headers.items() if k not in ("date", "x-request-id", "content-length")}
        return answer.status_code, headers, text

    wrong: list[str] = []
    for method, path, need, _ in rows():
        if not need.level or need in (Need.RUN_OR_MAKE, Need.COPY):
            continue
        for name in ("eve", "other", "vera"):
            api = world.apis[name]
            foreign = await asked(api, method, address(path, ALICES, world.kernels[ALICES]))
            missing = await asked(api, method, address(path, "nobodys", str(unknown)))
            if told(foreign, ALICES, world.kernels[ALICES]) != told(missing, "nobodys", str(unknown)):
                wrong.append(f"{name} {method} {path}: {foreign.text} {missing.text}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_deleted_session_is_there_for_nobody_and_comes_back_for_its_owner_alone(world: World) -> None:
    alice, gone = world.apis["alice"], f"gone-{uuid.uuid4().hex[:8]}"
    document = await alice.create(session_id=gone)
    await alice.call("PUT", f"/api/sessions/{gone}/grants", {"dave": "write", "vic": "read"})
    await alice.call("DELETE", f"/api/sessions/{gone}")

    wrong: list[str] = []
    for method, path, need, _ in rows():
        if not need.level or need is Need.RUN_OR_MAKE:
            continue
        for name, api in world.apis.items():
            answer = await asked(api, method, address(path, gone, document["jupyter"]["kernel_id"]))
            if answer.status_code != 404 or answer.json()["code"] not in _DENIED_AS_UNKNOWN:
                wrong.append(f"{name} {method} {path}: {answer.status_code} {answer.text}")
    assert not wrong, "\n".join(wrong)
    for name in ("dave", "eve", "bot", "other"):
        assert (await world.apis[name].post(f"/api/sessions/{gone}/undelete", expect=404))[
            "code"
        ] == "session_not_found"
    for name in ("vic", "vera"):
        await world.apis[name].post(f"/api/sessions/{gone}/undelete", expect=403)
    assert (await alice.post(f"/api/sessions/{gone}/undelete"))["id"] == gone
    await world.apis["dave"].get(f"/api/sessions/{gone}", 200)
    await alice.post(f"/api/sessions/{gone}/undelete", expect=409)
    await world.apis["eve"].post(f"/api/sessions/{gone}/undelete", expect=404)
    await alice.call("DELETE", f"/api/sessions/{gone}?purge=true")
    await alice.post(f"/api/sessions/{gone}/undelete", expect=410)
    await world.apis["eve"].post(f"/api/sessions/{gone}/undelete", expect=404)


@pytest.mark.asyncio(loop_scope="module")
async def test_lists_hold_what_one_may_see_and_count_that(world: World) -> None:
    sees = {
        name: [s for s, has in zip((ALICES, MAKERS), has_, strict=True) if has] for name, (_, *has_) in CALLERS.items()
    }

    for name, api in world.apis.items():
        expected = sorted(sees[name])
        listed = await api.get("/api/sessions")
        assert sorted(one["id"] for one in listed["sessions"]) == expected, name
        assert (listed["count"], listed["total_count"]) == (len(expected), len(expected)), name
        kernels = await api.get("/jupyter/api/kernels")
        assert sorted(one["session_id"] for one in kernels) == expected, name
        assert sorted(one["path"] for one in await api.get("/jupyter/api/sessions")) == expected, name
        contents = await api.get("/jupyter/api/contents")
        assert sorted(one["name"] for one in contents["content"]) == expected, name
        assert (await api.get("/jupyter/api/status"))["kernels"] == len(expected), name
        assert (await api.get("/jupyter/api/me"))["identity"]["name"].removeprefix("agent:") == name
    assert (await world.keyed.root.get("/api/sessions"))["total_count"] == 2
    assert (await world.apis["bob"].get("/api/sessions?created_by=agent:maker"))["total_count"] == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_page_token_is_good_for_who_got_it(world: World) -> None:
    alice, dave = world.apis["alice"], world.apis["dave"]
    token = (await dave.get("/api/sessions?limit=1"))["next_token"]

    rest = await dave.get(f"/api/sessions?limit=1&page_token={token}")
    assert (rest["count"], rest["total_count"], rest["next_token"]) == (1, 2, None)
    for other in (alice, world.keyed.root, world.apis["eve"]):
        assert (await other.get(f"/api/sessions?limit=1&page_token={token}", 400))["code"] == "bad_page_token"


@pytest.mark.asyncio(loop_scope="module")
async def test_an_id_of_another_is_neither_run_in_nor_made(world: World) -> None:
    eve = world.apis["eve"]
    before = await world.keyed.root.get(f"/api/sessions/{ALICES}/history")

    calls: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", f"/api/sessions/{ALICES}/run", {"json": {"code": "1"}}),
        ("POST", f"/api/sessions/{ALICES}/stream", {"json": {"code": "1"}}),
        ("PUT", f"/api/sessions/{ALICES}/files/a", {"content": b"x"}),
        ("PUT", f"/api/sessions/{ALICES}/archive", {"content": b"x"}),
        ("POST", f"/api/sessions/{ALICES}/notebook", {"json": {"cells": []}}),
        ("PUT", f"/jupyter/api/contents/{ALICES}/a", {"json": {"type": "file", "format": "text", "content": "x"}}),
    ]
    for method, path, body in calls:
        refused = await eve.call(method, path, expect=404, **body)
        assert refused["code"] == "session_not_found", (path, refused)
    await eve.post("/api/sessions", {"session_id": ALICES}, 409)
    assert await world.keyed.root.get(f"/api/sessions/{ALICES}/history") == before
    assert (await world.keyed.root.get(f"/api/sessions/{ALICES}/files"))["count"] == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_of_many_who_run_under_one_new_id_only_its_maker_gets_in(world: World) -> None:
    """Between the look and the making another may be faster."""
    for number in range(5):
        new = f"race-{number}-{uuid.uuid4().hex[:6]}"
        answers = await asyncio.gather(
            *(
                world.apis[name].http.post(f"/api/sessions/{new}/run", json={"code": f"{name!r}"})
                for name in ("eve", "carol", "Alice", "other")
                for _ in range(3)
            )
        )
        made_by = {answer.json()["created_by"] for answer in answers if answer.status_code == 200}
        assert len(made_by) == 1
        assert {answer.status_code for answer in answers} == {200, 404}
        await world.keyed.root.call("DELETE", f"/api/sessions/{new}?purge=true")


@pytest.mark.asyncio(loop_scope="module")
async def test_what_a_body_names_is_looked_at_too(world: World) -> None:
    alice, eve = world.apis["alice"], world.apis["eve"]
    snapshot = await alice.post(f"/api/sessions/{ALICES}/snapshots", {}, 201)
    mine = f"eves-{uuid.uuid4().hex[:8]}"
    await eve.create(session_id=mine)

    for path, body in [
        (f"/api/sessions/{mine}/restore", {"snapshot_id": snapshot["id"]}),
        (f"/api/sessions/{mine}/remix", {"name": "n", "snapshot_id": snapshot["id"]}),
        (f"/api/sessions/{mine}/duplicate", {"snapshot_id": snapshot["id"]}),
    ]:
        missing = await eve.post(path, {**body, "snapshot_id": "snap_none"}, 404)
        refused = await eve.post(path, body, 404)
        assert refused["code"] == missing["code"] == "snapshot_not_found"
        assert refused["error"].replace(snapshot["id"], "snap_none") == missing["error"]
    for method, path, body in [
        ("POST", f"/jupyter/api/contents/{mine}", {"copy_from": f"{ALICES}/a"}),
        ("PATCH", f"/jupyter/api/contents/{mine}/a", {"path": f"{ALICES}/b"}),
    ]:
        assert (await eve.call(method, path, body, 404))["code"] == "session_not_found"
    kernel = {"path": "x.ipynb", "type": "notebook", "kernel": {"id": world.kernels[ALICES]}}
    assert (await eve.post("/jupyter/api/sessions", kernel, 404))["code"] == "kernel_not_found"
    opened = await eve.post("/jupyter/api/sessions", {"path": f"{ALICES}/x.ipynb", "kernel": {}}, 201)
    assert opened["kernel"]["session_id"] not in (ALICES, mine)  # a session of her own, whatever the path says
    change = {"kernel": {"id": world.kernels[ALICES]}}
    await eve.call("PATCH", f"/jupyter/api/sessions/{opened['id']}", change, 404)
    await eve.call("DELETE", "/api/sessions", expect=200)
    assert (await eve.get("/api/sessions"))["total_count"] == 0
    assert (await alice.get("/api/sessions"))["total_count"] == 1


@pytest.mark.asyncio(loop_scope="module")
async def test_a_copy_is_of_who_made_it_and_needs_the_right_to_run(world: World) -> None:
    carol, bob, copy = world.apis["carol"], world.apis["bob"], f"copy-{uuid.uuid4().hex[:8]}"

    for way in ("duplicate", "remix", "replay"):
        body = {"name": "n"} if way == "remix" else {}
        assert (await bob.post(f"/api/sessions/{ALICES}/{way}", body, 403))["code"] == "denied"
        assert (await world.apis["vic"].post(f"/api/sessions/{ALICES}/{way}", body, 403))["code"] == "denied"
    await carol.run(ALICES, "secret = 42")
    made = await carol.post(f"/api/sessions/{ALICES}/duplicate", {"new_id": copy}, 201)

    assert (made["created_by"], made["parent_id"], made["agents"]) == ("carol", ALICES, [])
    assert (await carol.run(copy, "secret"))["result"] == "42"
    for name in ("alice", "bob", "bot"):
        await world.apis[name].get(f"/api/sessions/{copy}", 404)
    children = await world.apis["alice"].get(f"/api/sessions/{ALICES}/children")
    assert (children["sessions"], children["total_count"]) == ([], 0)
    assert (await carol.get(f"/api/sessions/{ALICES}/children"))["total_count"] == 1
    await carol.call("DELETE", f"/api/sessions/{copy}?purge=true")


@pytest.mark.asyncio(loop_scope="module")
async def test_a_snapshot_from_elsewhere_is_of_who_brought_it(world: World) -> None:
    alice, eve = world.apis["alice"], world.apis["eve"]
    snapshot = await alice.post(f"/api/sessions/{ALICES}/snapshots", {}, 201)
    archive = await alice.http.get(f"/api/sessions/{ALICES}/snapshots/{snapshot['id']}/archive")
    brought = await alice.call("PUT", "/api/snapshots", expect=201, content=archive.content)

    assert (await eve.get("/api/snapshots"))["total_count"] == 0
    assert (await alice.get("/api/snapshots"))["total_count"] == 1
    assert (await world.keyed.root.get("/api/snapshots"))["total_count"] == 1
    for method in ("GET", "DELETE"):
        missing = await eve.call(method, "/api/snapshots/snap_none", expect=404)
        refused = await eve.call(method, f"/api/snapshots/{brought['id']}", expect=404)
        assert refused["error"].replace(brought["id"], "snap_none") == missing["error"]
    await alice.call("DELETE", f"/api/snapshots/{brought['id']}", expect=200)


@pytest.mark.asyncio(loop_scope="module")
async def test_an_owner_ends_a_kernel_over_jupyter_and_nobody_else(world: World) -> None:
    alice = world.apis["alice"]
    for path in ("/jupyter/api/kernels", "/jupyter/api/sessions"):
        document = await alice.create(session_id=f"ends-{uuid.uuid4().hex[:8]}")
        kernel_id = document["jupyter"]["kernel_id"]
        await alice.call("PUT", f"/api/sessions/{document['id']}/grants", {"dave": "write"})
        await world.apis["dave"].call("DELETE", f"{path}/{kernel_id}", expect=403)
        await world.apis["eve"].call("DELETE", f"{path}/{kernel_id}", expect=404)

        await alice.call("DELETE", f"{path}/{kernel_id}", expect=204)

        await alice.call("GET", f"/jupyter/api/kernels/{kernel_id}", expect=404)
        await alice.get(f"/api/sessions/{document['id']}")  # only what Jupyter has started is deleted


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("grants", "field"),
    [({"bob": "own"}, "bob"), ({"b b": "read"}, "b b"), ({"agent:": "read"}, "agent:"), ({"x\n": "read"}, "x\n"),
     ({"": "read"}, ""), ({"bob": None}, "bob"), ({f"n{n}": "read" for n in range(257)}, "body"), (["bob"], "body")],
)  # fmt: skip
async def test_grants_that_make_no_sense_are_refused(world: World, grants: Any, field: str) -> None:
    before = await world.apis["alice"].get(f"/api/sessions/{ALICES}/grants")

    refused = await world.apis["alice"].call("PUT", f"/api/sessions/{ALICES}/grants", grants, 422)

    assert any(name.startswith(field) for name in refused["details"]), refused
    assert await world.apis["alice"].get(f"/api/sessions/{ALICES}/grants") == before
