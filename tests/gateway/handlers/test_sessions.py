"""Sessions over HTTP: create, find, change, delete, bring back, and the same answer to the same key."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.app import running
from gateway.config import Settings
from tests.api import Api
from tests.gateways import gateway_process


@pytest.fixture
async def team(api: Api, session_id: str) -> AsyncIterator[str]:
    """A label value that only this test's sessions carry; they are gone afterwards."""
    yield session_id
    await api.call("DELETE", f"/api/sessions?label_selector=team={session_id}")


async def wait_for_state(api: Api, session_id: str, state: str) -> dict[str, Any]:
    """The document once its kernel is up (or down); events say when to look."""
    async with asyncio.timeout(60), api.events(f"/api/sessions/{session_id}/events") as events:
        while True:
            session: dict[str, Any] = await api.get(f"/api/sessions/{session_id}")
            if session["state"] == state:
                return session
            await anext(events)


async def ids(api: Api, query: str) -> list[str]:
    found = await api.get(f"/api/sessions?{query}")
    assert found["count"] == len(found["sessions"])
    return [session["id"] for session in found["sessions"]]


async def status(api: Api, method: str, path: str, body: Any = None, **keywords: Any) -> int:
    return (await api.http.request(method, path, json=body, **keywords)).status_code


# Create


async def test_a_session_is_created_with_every_field(api: Api, session_id: str) -> None:
    fields = {
        "name": "analysis",
        "language": "python",
        "kernel": "python3",
        "persistent": False,
        "labels": {"team": "a", "x.y/z": "b"},
        "data": {"a": [1, {"b": None}]},
        "metadata": {"source": "test"},
        "starting_prompt": "Hello",
        "template": None,
        "waiting_timeout_seconds": 120,
        "default_timeout": 33,
        "resources": {"cpu": 2, "memory": "4Gi", "pids": 100},
        "workspace": "shared",
        "allowInternetAccess": False,
        "allowPublicAccess": True,
    }

    created = await api.create(session_id=session_id, agent_ids=["agent-1"], env={"COLOUR": "red"}, **fields)

    assert {name: created[name] for name in fields} == fields
    assert created["agents"] == [{"id": "agent-1", "name": None, "model": None}]
    assert created["id"] == session_id
    assert created["state"] == "INIT"
    assert created["created_at"] == created["updated_at"]
    assert created["deleted_at"] is created["parent_id"] is created["last_run_at"] is None
    assert created["resource_url"] == f"{api.url}/api/sessions/{session_id}"
    assert (created["run_count"], created["file_count"], created["total_size_bytes"]) == (0, 0, 0)
    assert (await api.run(session_id, "import os; os.environ['COLOUR']"))["result"] == "'red'"


async def test_a_session_needs_no_field_and_gets_an_id(api: Api) -> None:
    created = await api.post("/api/sessions", None, 201)

    assert re.fullmatch(r"sess_\d{13}_[0-9a-z]{9}", created["id"])
    assert created["language"] == "python"
    assert created["waiting_timeout_seconds"] == 300
    assert created["persistent"] is True


async def test_an_id_that_is_taken_is_a_409_and_the_first_session_stays(api: Api, session_id: str) -> None:
    await api.create(id=session_id, name="first")

    refusal = await api.post("/api/sessions", {"id": session_id, "name": "second"}, 409)

    assert refusal["code"] == "session_exists"
    assert (await api.get(f"/api/sessions/{session_id}"))["name"] == "first"


async def test_of_many_creates_of_one_id_at_once_one_wins(api: Api, session_id: str) -> None:
    statuses = await asyncio.gather(*(status(api, "POST", "/api/sessions", {"id": session_id}) for _ in range(10)))

    assert sorted(statuses) == [201] + [409] * 9


async def test_an_unknown_image_falls_back_and_the_document_says_so(api: Api, session_id: str) -> None:
    created = await api.create(id=session_id, image_id="no-such-image")
    ready = await wait_for_state(api, session_id, "READY")

    assert "no-such-image" in created["state_reason"]
    assert (ready["image_id"], ready["image_found"], ready["kernel"]) == ("no-such-image", False, "python3")


async def test_a_known_image_brings_its_kernel_and_resources(tmp_path: Path) -> None:
    images = json.dumps({"sci": {"kernel": "python3", "resources": {"pids": 200, "cpu": 2}}})
    async with gateway_process(tmp_path / "data", images=images) as gateway, Api(gateway.url) as api:
        created = await api.create(image_id="sci", resources={"cpu": 1})

    assert (created["image_found"], created["state_reason"]) == (True, None)
    assert created["resources"] == {"pids": 200, "cpu": 1}


@pytest.mark.parametrize(
    "body", [{"language": "klingon"}, {"kernel": "klingon"}, {"kernel": "python3", "language": "bash"}]
)
async def test_a_kernel_that_is_not_installed_is_refused_and_named(api: Api, body: dict[str, str]) -> None:
    refusal = await api.post("/api/sessions", body, 422)

    assert set(refusal["details"]) <= {"language", "kernel"}
    assert refusal["details"]


async def test_no_session_is_a_404(api: Api, session_id: str) -> None:
    for method, path, body in [
        ("GET", "", None),
        ("PUT", "", {}),
        ("PATCH", "", {}),
        ("DELETE", "", None),
        ("GET", "/labels", None),
        ("PUT", "/labels", {}),
        ("GET", "/states", None),
        ("GET", "/code", None),
        ("PUT", "/code", {"code": "1"}),
        ("POST", "/undelete", None),
        ("POST", "/restart", None),
        ("POST", "/wake", None),
        ("POST", "/hibernate", None),
        ("GET", "/executions", None),
        ("GET", "/history", None),
        ("GET", "/files", None),
        ("GET", "/archive", None),
        ("GET", "/files/a", None),
        ("DELETE", "/files/a", None),
        ("GET", "/variables", None),
        ("GET", "/logs", None),
        ("GET", "/metrics", None),
        ("POST", "/interrupt", None),
        ("POST", "/input", {"text": "a"}),
        ("GET", "/events", None),
        ("POST", "/complete", {"code": "a"}),
        ("POST", "/files/move", {"source": "a", "target": "b"}),
    ]:
        answer = await api.http.request(method, f"/api/sessions/{session_id}{path}", json=body)

        assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found"), (method, path)


# Change


async def test_put_replaces_the_maps_that_it_names_and_patch_merges_them(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}"
    maps = {"data": {"a": 1, "b": 2}, "metadata": {"a": 1}, "labels": {"a": "1"}}
    created = await api.create(id=session_id, **maps)

    merged = await api.call("PATCH", url, {"data": {"b": None, "c": 3}, "metadata": {"b": 2}, "labels": {"b": "2"}})
    replaced = await api.call("PUT", url, {"data": {"z": 26}, "labels": {}})

    assert merged["data"] == {"a": 1, "c": 3}
    assert merged["metadata"] == {"a": 1, "b": 2}
    assert merged["labels"] == {"a": "1", "b": "2"}
    assert (replaced["data"], replaced["labels"], replaced["metadata"]) == ({"z": 26}, {}, {"a": 1, "b": 2})
    assert created["updated_at"] < merged["updated_at"] < replaced["updated_at"]
    assert (await api.get(url))["data"] == {"z": 26}


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
async def test_plain_fields_are_changed_and_others_stay(api: Api, session_id: str, method: str) -> None:
    await api.create(id=session_id, name="before", default_timeout=5, metadata={"a": 1})

    changed = await api.call(
        method, f"/api/sessions/{session_id}", {"name": "after", "waiting_timeout_seconds": 60, "default_timeout": None}
    )

    assert (changed["name"], changed["waiting_timeout_seconds"], changed["default_timeout"]) == ("after", 60, None)
    assert changed["metadata"] == {"a": 1}


@pytest.mark.parametrize("body", [{"name": None}, {"labels": None}, {"id": "other"}, {"state": "READY"}, {"name": ""}])
async def test_a_change_that_makes_no_sense_changes_nothing(api: Api, session_id: str, body: dict[str, Any]) -> None:
    await api.create(id=session_id, name="kept")

    refusal = await api.call("PATCH", f"/api/sessions/{session_id}", body, 422)

    assert set(refusal["details"]) == set(body)
    assert (await api.get(f"/api/sessions/{session_id}"))["name"] == "kept"


async def test_a_patch_may_take_a_label_away_and_may_not_make_too_many(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}"
    await api.create(id=session_id, labels={f"k{number}": "v" for number in range(63)})

    removed = await api.call("PATCH", url, {"labels": {"k0": None}})
    refusal = await api.call("PATCH", url, {"labels": {"a": "1", "b": "2", "c": "3"}}, 422)

    assert "k0" not in removed["labels"]
    assert "labels" in refusal["details"]
    assert len(await api.get(f"{url}/labels")) == 62


async def test_labels_are_read_and_replaced_by_themselves(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}/labels"
    await api.create(id=session_id, labels={"a": "1"})

    before = await api.get(url)
    after = await api.call("PUT", url, {"b": "2"})

    assert (before, after) == ({"a": "1"}, {"b": "2"})
    assert await api.get(url) == (await api.get(f"/api/sessions/{session_id}"))["labels"] == {"b": "2"}


@pytest.mark.parametrize(
    "labels",
    [
        {f"k{number}": "v" for number in range(65)},
        {"": "v"},
        {"k": ""},
        {"k": "v" * 257},
        {"k" * 64: "v"},
        {"-k": "v"},
        {"A/b": "v"},
        {"a/b/c": "v"},
        {"k": 1},
        {"k": None},
    ],
)
async def test_labels_past_the_limits_are_refused_everywhere(api: Api, session_id: str, labels: dict[str, Any]) -> None:
    await api.create(id=session_id, labels={"kept": "yes"})

    created = await api.post("/api/sessions", {"labels": labels}, 422)
    replaced = await api.call("PUT", f"/api/sessions/{session_id}/labels", labels, 422)

    assert created["details"]
    assert replaced["details"]
    assert await api.get(f"/api/sessions/{session_id}/labels") == {"kept": "yes"}


async def test_labels_up_to_the_limits_are_taken(api: Api, session_id: str) -> None:
    labels = {f"example.com/k{number}": "v" * 256 for number in range(63)} | {"K" * 63: "é 🙂"}

    await api.create(id=session_id, labels=labels)

    assert await api.get(f"/api/sessions/{session_id}/labels") == labels


async def test_stored_code_is_what_a_run_without_code_uses(api: Api, session_id: str) -> None:
    await api.create(id=session_id)
    none_yet = await status(api, "GET", f"/api/sessions/{session_id}/code")

    await api.call("PUT", f"/api/sessions/{session_id}/code", {"code": "6 * 7"})

    assert none_yet == 404
    assert await api.get(f"/api/sessions/{session_id}/code") == {"code": "6 * 7"}
    assert (await api.post(f"/api/sessions/{session_id}/run"))["result"] == "42"


async def test_every_state_move_is_told_newest_first(api: Api, session_id: str) -> None:
    await api.run(session_id, "1")

    found = await api.get(f"/api/sessions/{session_id}/states")

    moves = [(move["before"], move["after"]) for move in found["states"]]
    assert moves[:3] == [("BUSY", "READY"), ("READY", "BUSY"), ("INIT", "READY")]
    assert found["count"] == found["total_count"] == len(moves)
    assert found["next_token"] is None


# Find


@pytest.mark.parametrize(
    ("selector", "found"),
    [
        ("tier=web", "ab"),
        ("tier==web", "ab"),
        ("tier!=web", "cd"),
        ("env in (test,prod)", "ab"),
        ("env notin (test)", "bcd"),
        ("env", "abc"),
        ("!env", "d"),
        ("tier=web,env=prod", "b"),
        ("example.com/x=1", "c"),
        ("tier,!env", ""),
        ("tier=nope", ""),
    ],
)
async def test_sessions_are_found_by_the_selector_grammar(api: Api, team: str, selector: str, found: str) -> None:
    for letter, labels in {
        "a": {"tier": "web", "env": "test"},
        "b": {"tier": "web", "env": "prod"},
        "c": {"env": "dev", "example.com/x": "1"},
        "d": {},
    }.items():
        await api.create(id=f"{team}-{letter}", labels={**labels, "team": team})

    answer = await api.get("/api/sessions", params={"label_selector": f"team={team},{selector}"})

    assert [session["id"][-1] for session in answer["sessions"]] == sorted(found, reverse=True)
    assert answer["total_count"] == len(found)


async def test_sessions_are_found_by_a_json_map_of_labels(api: Api, team: str) -> None:
    await api.create(id=f"{team}-a", labels={"team": team, "tier": "web"})
    await api.create(id=f"{team}-b", labels={"team": team, "tier": "db"})

    both = await api.get("/api/sessions", params={"labels": json.dumps({"team": team})})
    one = await api.get("/api/sessions", params={"labels": json.dumps({"team": team, "tier": "db"})})
    with_selector = await api.get(
        "/api/sessions", params={"labels": json.dumps({"team": team}), "label_selector": "tier=web"}
    )

    assert (both["total_count"], one["total_count"], with_selector["total_count"]) == (2, 1, 1)
    assert one["sessions"][0]["id"] == f"{team}-b"


@pytest.mark.parametrize(
    "query",
    [
        "label_selector=a in (",
        "label_selector=,",
        "labels=[]",
        'labels={"a":1}',
        "state=NOPE",
        "limit=0",
        "limit=1001",
        "limit=x",
        "page=0",
        "include_deleted=perhaps",
    ],
)
async def test_a_filter_that_cannot_be_read_is_refused_and_named(api: Api, query: str) -> None:
    refusal = await api.get(f"/api/sessions?{query}", 422)

    assert set(refusal["details"]) == {query.split("=")[0]}


async def test_sessions_are_found_by_state_name_language_and_creator(api: Api, team: str) -> None:
    await api.create(id=f"{team}-a", name=f"{team} one", labels={"team": team})
    await api.create(id=f"{team}-b", name="other", labels={"team": team})
    await wait_for_state(api, f"{team}-a", "READY")
    await wait_for_state(api, f"{team}-b", "READY")
    await api.post(f"/api/sessions/{team}-b/hibernate")
    mine = f"label_selector=team={team}"

    assert await ids(api, f"name={team} one") == [f"{team}-a"]
    assert await ids(api, f"{mine}&state=READY") == [f"{team}-a"]
    assert await ids(api, f"{mine}&state=IDLE") == [f"{team}-b"]
    assert await ids(api, f"{mine}&language=python&created_by=local") == [f"{team}-b", f"{team}-a"]
    assert await ids(api, f"{mine}&language=bash") == []
    assert await ids(api, f"{mine}&created_by=somebody") == []
    assert await ids(api, f"{mine}&parent_id=nobody") == []


async def test_deleted_sessions_are_listed_only_when_asked_for(api: Api, team: str) -> None:
    await api.create(id=f"{team}-a", labels={"team": team})
    await api.call("DELETE", f"/api/sessions/{team}-a")

    without = await ids(api, f"label_selector=team={team}")
    with_deleted = await api.get(f"/api/sessions?label_selector=team={team}&include_deleted=true")

    assert without == []
    assert [session["id"] for session in with_deleted["sessions"]] == [f"{team}-a"]
    assert with_deleted["sessions"][0]["deleted_at"] is not None


async def test_pages_follow_one_another_by_token_whatever_happens_between(api: Api, team: str) -> None:
    for number in range(7):
        await api.create(id=f"{team}-{number}", labels={"team": team})
    url = f"/api/sessions?limit=3&label_selector=team={team}"

    first = await api.get(url)
    await api.create(id=f"{team}-newer", labels={"team": team})
    await api.call("DELETE", f"/api/sessions/{team}-4")
    second = await api.get(f"{url}&page_token={first['next_token']}")
    third = await api.get(f"{url}&page_token={second['next_token']}")

    pages = [[session["id"][-1] for session in page["sessions"]] for page in (first, second, third)]
    assert pages == [["6", "5", "4"], ["3", "2", "1"], ["0"]]
    assert [page["count"] for page in (first, second, third)] == [3, 3, 1]
    assert [page["total_count"] for page in (first, second, third)] == [7, 7, 7]
    assert third["next_token"] is None


async def test_pages_are_reached_by_number(api: Api, team: str) -> None:
    for number in range(5):
        await api.create(id=f"{team}-{number}", labels={"team": team})
    mine = f"label_selector=team={team}"

    assert await ids(api, f"{mine}&limit=2&page=1") == [f"{team}-4", f"{team}-3"]
    assert await ids(api, f"{mine}&limit=2&page=3") == [f"{team}-0"]
    assert await ids(api, f"{mine}&limit=2&page=4") == []


async def test_a_token_of_another_filter_or_from_nowhere_is_a_400(api: Api, team: str) -> None:
    for number in range(3):
        await api.create(id=f"{team}-{number}", labels={"team": team})
    token = (await api.get(f"/api/sessions?limit=1&label_selector=team={team}"))["next_token"]

    foreign = await api.get(f"/api/sessions?limit=1&page_token={token}", 400)
    broken = await api.get(f"/api/sessions?page_token={token[:-4]}", 400)
    invented = await api.get("/api/sessions?page_token=abc", 400)

    assert {foreign["code"], broken["code"], invented["code"]} == {"bad_page_token"}


# Delete


async def test_a_deleted_session_is_gone_and_its_id_is_free(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}"
    await api.create(id=session_id, name="first")

    deleted = await api.call("DELETE", url)
    gone = await status(api, "GET", url)
    again = await status(api, "DELETE", url)
    second = await api.create(id=session_id, name="second")

    assert deleted == {"success": True, "id": session_id, "deleted_at": deleted["deleted_at"]}
    assert (gone, again) == (404, 404)
    assert second["run_count"] == 0
    assert (await api.get(url))["name"] == "second"


async def test_undelete_brings_a_session_back_with_its_files(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}"
    await api.run(session_id, "open('kept.txt', 'w').write('kept')")
    await api.call("DELETE", url)

    back = await api.post(f"{url}/undelete")

    assert back["deleted_at"] is None
    assert (back["id"], back["run_count"]) == (session_id, 1)
    assert (await api.http.get(f"{url}/files/kept.txt")).text == "kept"
    assert (await api.run(session_id, "open('kept.txt').read()"))["result"] == "'kept'"


async def test_undelete_is_refused_when_the_id_is_taken_purged_or_never_was(api: Api, session_id: str) -> None:
    taken, purged = f"{session_id}-taken", f"{session_id}-purged"
    await api.create(id=taken)
    await api.call("DELETE", f"/api/sessions/{taken}")
    await api.create(id=taken)
    await api.create(id=purged)
    await api.call("DELETE", f"/api/sessions/{purged}?purge=true")

    assert (await api.post(f"/api/sessions/{taken}/undelete", expect=409))["code"] == "session_exists"
    assert (await api.post(f"/api/sessions/{purged}/undelete", expect=410))["code"] == "session_purged"
    assert (await api.post(f"/api/sessions/{session_id}-never/undelete", expect=404))["code"] == "session_not_found"


async def test_purge_removes_the_files_and_the_document(tmp_path: Path, session_id: str) -> None:
    secret = b"a secret that must be gone"
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.http.put(f"/api/sessions/{session_id}/files/secret.txt", content=secret)
        files = [path for path in (tmp_path / "data").rglob("secret.txt") if path.read_bytes() == secret]

        await api.call("DELETE", f"/api/sessions/{session_id}?purge=true")

        listed = await ids(api, "include_deleted=true")
        assert len(files) == 1
        assert not list((tmp_path / "data").rglob("secret.txt"))
        assert session_id not in listed


async def test_a_session_that_is_undeleted_before_its_purge_lives_on(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}"
    await api.run(session_id, "open('kept.txt', 'w').write('kept')")

    purging = asyncio.create_task(api.http.delete(f"{url}?purge=true"))
    async with asyncio.timeout(30):
        while (undeleted := await status(api, "POST", f"{url}/undelete")) in (404, 409):
            pass
    purged = await purging

    assert undeleted == 200
    assert (purged.status_code, purged.json()["code"]) == (409, "brought_back")
    assert (await api.http.get(f"{url}/files/kept.txt")).text == "kept"
    assert (await api.run(session_id, "open('kept.txt').read()"))["result"] == "'kept'"


async def test_files_are_counted_also_when_nobody_holds_the_session(tmp_path: Path, session_id: str) -> None:
    async with gateway_process(tmp_path / "data") as gateway:
        async with Api(gateway.url) as api:
            await api.run(session_id, "open('file', 'w').write('12345')")
        await gateway.stop()
        await gateway.start()
        async with Api(gateway.url) as api:
            found = await api.get(f"/api/sessions/{session_id}")
            listed = (await api.get("/api/sessions"))["sessions"][0]

    assert (found["file_count"], found["total_size_bytes"]) == (1, 5)
    assert (listed["file_count"], listed["total_size_bytes"]) == (1, 5)


async def test_files_that_a_purge_could_not_remove_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stays(folder: Path, target: Path) -> None:
        raise OSError("it stays")

    async with running(Settings(data_dir=tmp_path, port=0)) as gateway, Api(gateway.url) as api:
        await api.http.put("/api/sessions/a/files/file", content=b"x")
        monkeypatch.setattr("kernels.trash.put_away", stays)

        told = await api.call("DELETE", "/api/sessions/a?purge=true", expect=500)

        assert told["code"] == "files_stay"
        assert (await api.post("/api/sessions/a/undelete", expect=410))["code"] == "session_purged"


async def test_bulk_delete_leaves_out_what_another_gateway_holds(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'shared.sqlite'}"
    async with (
        gateway_process(tmp_path / "one", store=store) as one,
        gateway_process(tmp_path / "other", store=store) as other,
        Api(one.url) as first,
        Api(other.url) as second,
    ):
        await second.create(id="ours-too")
        await first.run("theirs", "1")
        await second.create(id="ours")

        deleted = await second.call("DELETE", "/api/sessions")

        assert sorted(deleted["deleted_sessions"]) == ["ours", "ours-too"]
        assert await ids(second, "") == ["theirs"]


async def test_a_session_that_plants_a_pipe_as_its_log_stops_only_itself(tmp_path: Path) -> None:
    plant = """
import os
log = f"../../../logs/{os.path.basename(os.path.dirname(os.getcwd()))}/kernel.log"
os.remove(log)
os.mkfifo(log)
"""
    async with gateway_process(tmp_path / "data", isolation="none") as gateway, Api(gateway.url) as api:
        assert (await api.run("a", plant))["status"] == "ok"
        await api.post("/api/sessions/a/hibernate")

        async with asyncio.timeout(20):
            ran = await api.run("a", "1")
            told = await api.http.get("/api/sessions/a/logs")
            health = await api.get("/api/health")

    assert (ran["status"], ran["error"]["evalue"]) == ("died", "The session's log can't be written: not a regular file")
    assert told.is_success
    assert health["status"] == "ok"


async def test_a_language_is_stored_and_told_by_its_own_name(api: Api, session_id: str) -> None:
    created = await api.create(id=session_id, language="Py")

    told = await api.run(session_id, "import os; os.environ['ERA_LANGUAGE']")

    assert created["language"] == "python"
    assert told["result"] == "'python'"


@pytest.mark.parametrize("name", ["memory", "disk"])
@pytest.mark.parametrize("size", [10**30, 2**63, "999999999999Ti", 0, "0M"])
async def test_a_size_that_is_none_is_refused_and_named(api: Api, name: str, size: Any) -> None:
    refused = await api.post("/api/sessions", {"resources": {name: size}}, 422)

    assert name in refused["error"]


async def test_bulk_delete_takes_all_that_match_and_nothing_else(api: Api, team: str) -> None:
    for number in range(5):
        await api.create(id=f"{team}-{number}", labels={"team": team, "odd": str(number % 2)})

    deleted = await api.call("DELETE", f"/api/sessions?label_selector=team={team},odd=1")

    assert deleted["success"] is True
    assert (deleted["deleted_count"], sorted(deleted["deleted_sessions"])) == (2, [f"{team}-1", f"{team}-3"])
    assert await ids(api, f"label_selector=team={team}") == [f"{team}-4", f"{team}-2", f"{team}-0"]


async def test_bulk_delete_by_a_selector_that_cannot_be_read_deletes_nothing(api: Api, team: str) -> None:
    await api.create(id=f"{team}-a", labels={"team": team})

    await api.call("DELETE", "/api/sessions?label_selector=team in (", expect=422)
    await api.call("DELETE", f"/api/sessions?selector=team={team}", expect=422)

    assert await ids(api, f"label_selector=team={team}") == [f"{team}-a"]


# The same key, the same answer


async def test_the_same_key_gets_the_same_answer(api: Api, session_id: str) -> None:
    headers, body = {"Idempotency-Key": session_id}, {"name": "once"}

    first = await api.http.post("/api/sessions", json=body, headers=headers)
    second = await api.http.post("/api/sessions", json=body, headers=headers)
    without = await api.post("/api/sessions", body)

    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    assert second.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert without["id"] != first.json()["id"]


async def test_a_run_is_done_once_however_many_ask_at_once_under_one_key(api: Api, session_id: str) -> None:
    headers = {"Idempotency-Key": session_id}
    await api.run(session_id, "count = 0")

    body, path = {"code": "count += 1; count"}, f"/api/sessions/{session_id}/run"
    answers = await asyncio.gather(*(api.post(path, body, 200, headers=headers) for _ in range(8)))

    assert {answer["result"] for answer in answers} == {"1"}
    assert len({answer["execution_id"] for answer in answers}) == 1


async def test_the_same_key_with_another_body_is_refused(api: Api, session_id: str) -> None:
    headers = {"Idempotency-Key": session_id}
    await api.post("/api/sessions", {"name": "a"}, 201, headers=headers)

    refusal = await api.post("/api/sessions", {"name": "b"}, 422, headers=headers)

    assert refusal["code"] == "idempotency_key_reused"
    assert set(refusal["details"]) == {"Idempotency-Key"}


async def test_the_same_key_on_another_path_is_another_key(api: Api, session_id: str) -> None:
    headers = {"Idempotency-Key": session_id}

    one = await api.post(f"/api/sessions/{session_id}-1/run", {"code": "1"}, 200, headers=headers)
    two = await api.post(f"/api/sessions/{session_id}-2/run", {"code": "1"}, 200, headers=headers)

    assert one["execution_id"] != two["execution_id"]


async def test_a_refusal_is_not_kept_so_a_retry_may_succeed(api: Api, session_id: str) -> None:
    headers = {"Idempotency-Key": session_id}
    await api.create(id=session_id)
    await api.post("/api/sessions", {"id": session_id}, 409, headers=headers)
    await api.call("DELETE", f"/api/sessions/{session_id}")

    await api.post("/api/sessions", {"id": session_id}, 201, headers=headers)


@pytest.mark.parametrize("key", ["", "a" * 256])
async def test_a_key_that_is_none_is_refused(api: Api, key: str) -> None:
    refusal = await api.post("/api/sessions", {}, 422, headers={"Idempotency-Key": key})

    assert set(refusal["details"]) == {"Idempotency-Key"}


async def test_an_answer_is_kept_over_a_restart(tmp_path: Path) -> None:
    headers = {"Idempotency-Key": "the-key"}
    async with gateway_process(tmp_path / "data") as gateway:
        async with Api(gateway.url) as api:
            first = await api.post("/api/sessions", {"name": "a"}, 201, headers=headers)
        await gateway.stop()
        await gateway.start()
        async with Api(gateway.url) as api:
            second = await api.post("/api/sessions", {"name": "a"}, 201, headers=headers)

    assert first == second


async def test_a_stream_under_a_key_is_followed_again_instead_of_run_again(api: Api, session_id: str) -> None:
    headers, code = {"Idempotency-Key": session_id}, "print('once'); count = globals().get('count', 0) + 1; count"

    streams = []
    for _ in range(2):
        async with api.stream(session_id, code, headers) as events:
            streams.append([(event.kind, event.id, event.data) async for event in events])

    assert streams[0] == streams[1]
    assert [kind for kind, _, _ in streams[0]] == ["start", "stdout", "result", "done"]
    assert (await api.run(session_id, "count"))["result"] == "1"


async def test_a_stream_under_a_key_goes_on_when_its_client_leaves(api: Api, session_id: str) -> None:
    headers, code = {"Idempotency-Key": session_id}, "import time\nfor n in range(20):\n    print(n); time.sleep(0.1)"
    async with api.stream(session_id, code, headers) as events:
        await anext(events)

    async with api.stream(session_id, code, headers) as events:
        done = [event async for event in events][-1]

    assert done.kind == "done"
    assert done.data["stdout"].split() == [str(number) for number in range(20)]
