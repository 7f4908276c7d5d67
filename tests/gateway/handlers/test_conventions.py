"""What holds for every call: prefixes, error envelope, request ids, strict input; a refusal changes nothing."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from gateway.handlers.routes import ROUTES
from tests.api import Api
from tests.gateways import GatewayProcess

MIB = 2**20
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
BAD_IDS = (
    "-a",
    ".a",
    "_a",
    ":a",
    "a b",
    "a%00",
    "a%0A",
    "%20",
    "a%2Fb",
    "%2e%2e",
    "%2e%2e%2fa",
    "a" * 129,
    "%C3%A9",
    "a%5Cb",
    "%F0%9F%99%82",
    "a%3Fb",
    "a*",
    "a%25",
)


@asynccontextmanager
async def nothing_changes(api: Api) -> AsyncIterator[None]:
    """Sessions, with all that a caller can set on them, are the same after the block as before it."""

    async def everything() -> list[Any]:
        found = await api.get("/api/sessions?include_deleted=true&limit=1000")
        kept = ("id", "name", "labels", "data", "metadata", "deleted_at", "run_count", "file_count")
        return [{name: session[name] for name in kept} for session in found["sessions"]]

    before = await everything()
    yield
    assert await everything() == before


def assert_refused(answer: httpx2.Response, *statuses: int) -> dict[str, Any]:
    """The envelope of a refusal, which is whole."""
    assert answer.status_code in statuses, f"{answer.status_code} {answer.text[:1000]}"
    assert answer.headers["Content-Type"] == "application/json"
    envelope: dict[str, Any] = answer.json()
    assert set(envelope) == {"error", "code", "details", "request_id"}
    assert isinstance(envelope["error"], str)
    assert envelope["request_id"] == answer.headers["X-Request-Id"]
    assert "Traceback" not in answer.text
    return envelope


async def test_v0_and_v2_are_other_names_of_the_same_routes(api: Api, session_id: str) -> None:
    await api.post("/api/v0/sessions", {"id": session_id}, 201)

    assert (await api.get(f"/api/v2/sessions/{session_id}"))["id"] == session_id
    assert (await api.get(f"/api/sessions/{session_id}"))["id"] == session_id


@pytest.mark.parametrize("path", ["/nope", "/api", "/api/", "/api/v1/sessions", "/api/sessions/", "/api/v0/v2/health"])
async def test_a_path_that_is_no_route_is_a_404_with_the_envelope(api: Api, path: str) -> None:
    answer = await api.http.get(path)

    assert assert_refused(answer, 404)["code"] == "not_found"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.path)
async def test_a_method_that_a_route_does_not_take_is_a_405_that_names_those_it_takes(api: Api, route: Any) -> None:
    path = route.path.replace("{session_id}", "nobody").replace("{", "").replace("}", "")
    takes = set(route.handler.operations)

    for method in METHODS:
        if method in takes:
            continue
        answer = await api.http.request(method, path)

        envelope = answer.json() if path.startswith("/jupyter/") else assert_refused(answer, 405)
        assert answer.status_code == 405
        assert envelope["code"] == "method_not_allowed"
        assert set(answer.headers["Allow"].split(", ")) - {"HEAD"} == takes


@pytest.mark.parametrize("path", ["/api/health", "/api/sessions", "/docs", "/metrics", "/nope", "/api/sessions/nobody"])
async def test_a_request_id_comes_back_or_is_made(api: Api, path: str) -> None:
    echoed = await api.http.get(path, headers={"X-Request-Id": "my-id.1:2"})
    made = await api.http.get(path)
    refused = await api.http.get(path, headers={"X-Request-Id": "not an id"})

    assert echoed.headers["X-Request-Id"] == "my-id.1:2"
    assert len(made.headers["X-Request-Id"]) == 32
    assert refused.headers["X-Request-Id"] not in ("not an id", made.headers["X-Request-Id"])


@pytest.mark.parametrize(
    ("body", "line", "column"),
    [
        (b"{", 1, 1),
        (b'{"name": }', 1, 10),
        (b'{\n  "name": "a",\n  oops\n}', 3, 3),
        (b"[1, 2", 1, 5),
        (b"nope", 1, 2),
        (b'{"name": "a"} {}', 1, 15),
        (b'{"name": "\xff"}', 1, None),
        (b'{"name": NaN,}', 1, None),
        (b"\xef\xbb\xbf{}", 1, 1),
    ],
)
async def test_broken_json_is_a_400_with_line_and_column(api: Api, body: bytes, line: int, column: int | None) -> None:
    async with nothing_changes(api):
        answer = await api.http.post("/api/sessions", content=body, headers={"Content-Type": "application/json"})

    envelope = assert_refused(answer, 400)
    assert envelope["code"] == "malformed"
    assert envelope["details"]["line"] == line
    assert f"line {line} column {envelope['details']['column']}" in envelope["error"]
    assert column is None or envelope["details"]["column"] == column


@pytest.mark.parametrize("text", ['{"data": ' + '{"a":' * 100_000 + "1" + "}" * 100_001, "[" * 100_000])
async def test_json_100000_levels_deep_is_refused(api: Api, text: str) -> None:
    async with nothing_changes(api):
        answer = await api.http.post("/api/sessions", content=text, headers={"Content-Type": "application/json"})

    assert_refused(answer, 400)


async def test_json_deeper_than_64_levels_is_refused_by_field(api: Api, session_id: str) -> None:
    deep: Any = 1
    for _ in range(65):
        deep = {"a": deep}

    async with nothing_changes(api):
        answer = await api.http.post("/api/sessions", json={"id": session_id, "metadata": deep, "data": deep})

    assert set(assert_refused(answer, 422)["details"]) == {"data", "metadata"}


async def test_deep_json_in_a_query_is_refused(api: Api) -> None:
    answer = await api.http.get("/api/sessions", params={"labels": "[" * 5000})

    assert "labels" in assert_refused(answer, 422)["details"]


BODIES: list[tuple[str, str, dict[str, Any]]] = [
    (
        "POST",
        "/api/sessions",
        {
            "session_id": "a",
            "name": "a",
            "language": "python",
            "kernel": "python3",
            "image_id": "a",
            "labels": {"a": "b"},
            "data": {"a": ["b", {"c": "d"}]},
            "metadata": {"a": "b"},
            "starting_prompt": "a",
            "agent_ids": ["a"],
            "env": {"A": "b"},
            "setup": {"pip": ["a"], "npm": ["b"], "commands": ["c"]},
            "template": "a",
            "workspace": "a",
        },
    ),
    ("PUT", "/api/sessions/SESSION", {"name": "a", "labels": {"a": "b"}, "data": {"a": "b"}, "metadata": {"a": "b"}}),
    ("PATCH", "/api/sessions/SESSION", {"name": "a", "labels": {"a": "b"}, "data": {"a": "b"}, "metadata": {"a": "b"}}),
    ("PUT", "/api/sessions/SESSION/labels", {"a": "b"}),
    ("PUT", "/api/sessions/SESSION/code", {"code": "a"}),
    ("POST", "/api/sessions/SESSION/run", {"code": "1", "stdin": "a", "env": {"A": "b"}, "update_data": {"a": "b"}}),
    ("POST", "/api/sessions/SESSION/stream", {"code": "1", "stdin": "a", "env": {"A": "b"}, "update_data": {"a": "b"}}),
    ("POST", "/api/sessions/SESSION/input", {"text": "a"}),
    ("POST", "/api/sessions/SESSION/files/move", {"source": "a", "target": "b"}),
    ("PUT", "/api/sessions/SESSION/variables/x", {"value": {"a": ["b"]}}),
    ("POST", "/api/sessions/SESSION/complete", {"code": "a"}),
    ("POST", "/api/sessions/SESSION/inspect", {"code": "a"}),
    ("POST", "/api/sessions/SESSION/is_complete", {"code": "a"}),
    (
        "POST",
        "/api/execute",
        {
            "code": "1",
            "language": "python",
            "kernel": "python3",
            "stdin": "a",
            "env": {"A": "b"},
            "files": {"a": "b", "c": {"content": "d"}},
        },
    ),
]


def poisoned(value: Any, poison: str) -> Iterator[Any]:
    """The value again and again, with one string of it, or one key that a caller may choose, poisoned each time."""
    if isinstance(value, str):
        yield value + poison
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from ([*value[:at], changed, *value[at + 1 :]] for changed in poisoned(item, poison))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from ({**value, key: changed} for changed in poisoned(item, poison))
            if len(key) == 1:
                yield {(key + poison if name == key else name): kept for name, kept in value.items()}


@pytest.mark.parametrize("poison", ["\0", "\ud800"], ids=["NUL", "lone surrogate"])
@pytest.mark.parametrize(("method", "path", "body"), BODIES, ids=[f"{method} {path}" for method, path, _ in BODIES])
async def test_text_that_cannot_be_stored_is_refused_in_every_field(
    api: Api, session_id: str, method: str, path: str, body: dict[str, Any], poison: str
) -> None:
    await api.create(id=session_id, name="kept")

    async with nothing_changes(api):
        for bad in poisoned(body, poison):
            answer = await api.http.request(
                method,
                path.replace("SESSION", session_id),
                content=json.dumps(bad),
                headers={"Content-Type": "application/json"},
            )

            envelope = assert_refused(answer, 400 if poison != "\0" else 422)
            assert envelope["details"], bad
            assert "surrogate" in envelope["error"] or poison == "\0"


@pytest.mark.parametrize("name", ["label_selector", "labels", "state", "language", "created_by", "parent_id", "name"])
async def test_text_that_cannot_be_stored_is_refused_in_every_query_parameter(api: Api, name: str) -> None:
    nul = await api.http.get(f"/api/sessions?{name}=a%00b")
    surrogate = await api.http.get(f"/api/sessions?{name}=a%ED%A0%80b")
    latin = await api.http.get(f"/api/sessions?{name}=%FF")

    assert name in assert_refused(nul, 422)["details"]
    assert name in assert_refused(surrogate, 400)["details"]
    assert name in assert_refused(latin, 400)["details"]


@pytest.mark.parametrize("bad", ["a%00b", "a%ED%A0%80b", "%FF"])
@pytest.mark.parametrize(
    "path",
    ["/api/sessions/{}", "/api/sessions/x/executions/{}", "/api/sessions/x/variables/{}", "/api/sessions/x/files/{}"],
)
async def test_text_that_cannot_be_stored_is_refused_in_a_path(api: Api, path: str, bad: str) -> None:
    async with nothing_changes(api):
        for method in ("GET", "PUT", "DELETE"):
            answer = await api.http.request(method, path.format(bad), content=b"" if method == "PUT" else None)

            assert_refused(answer, 400, 404, 405, 422)


async def test_filters_as_long_as_they_may_be_are_read_in_whatever_script(api: Api) -> None:
    longest = "é" * 5000

    answer = await api.http.get("/api/sessions", params={"label_selector": longest, "labels": longest})

    assert_refused(answer, 422)


async def test_unknown_fields_are_refused_and_named(api: Api, session_id: str) -> None:
    async with nothing_changes(api):
        body = await api.http.post("/api/sessions", json={"id": session_id, "colour": 1, "setup": {"apt": []}})
        query = await api.http.get("/api/sessions?colour=1")
        query_of_a_post = await api.http.post("/api/sessions?colour=1", json={"id": session_id})

    assert set(assert_refused(body, 422)["details"]) == {"colour", "setup.apt"}
    assert set(assert_refused(query, 422)["details"]) == {"colour"}
    assert set(assert_refused(query_of_a_post, 422)["details"]) == {"colour"}


async def test_each_field_of_a_wrong_type_is_named(api: Api, session_id: str) -> None:
    wrong = {
        "session_id": 1,
        "name": [],
        "language": 1,
        "kernel": "no such/kernel",
        "persistent": "perhaps",
        "labels": {"a": 1},
        "data": [],
        "metadata": "x",
        "agent_ids": "x",
        "waiting_timeout_seconds": -1,
        "default_timeout": "soon",
        "env": {"A": None},
        "setup": [],
        "resources": {"cpu": 0, "memory": "much", "network": "some"},
    }

    async with nothing_changes(api):
        answer = await api.http.post("/api/sessions", json=wrong)

    details = assert_refused(answer, 422)["details"]
    named = {name.split(".")[0] for name in details}
    assert named == set(wrong)
    assert {"resources.cpu", "resources.network", "labels.a", "env.A"} <= set(details)


@pytest.mark.parametrize("content", ["é", "a", "a===", "\U0001f642", "not base64!"])
async def test_a_file_that_is_not_base64_though_it_says_so_is_refused(api: Api, content: str) -> None:
    files = {"a.bin": {"content": content, "encoding": "base64"}}

    async with nothing_changes(api):
        answer = await api.http.post("/api/execute", json={"code": "1", "files": files})

    assert any("content" in name for name in assert_refused(answer, 422)["details"])


@pytest.mark.parametrize("body", [[], "text", 1, None, True])
async def test_a_body_that_is_no_object_is_refused(api: Api, body: Any) -> None:
    async with nothing_changes(api):
        answer = await api.http.post(
            "/api/sessions", content=json.dumps(body), headers={"Content-Type": "application/json"}
        )

    assert_refused(answer, 422)


@pytest.mark.parametrize("spelling", ["session_id", "id", "new_id"])
async def test_a_session_is_named_in_either_spelling(api: Api, session_id: str, spelling: str) -> None:
    created = await api.create(**{spelling: session_id})

    assert created["id"] == created["session_id"] == session_id


async def test_a_timeout_and_an_environment_are_given_in_either_spelling(api: Api, session_id: str) -> None:
    code = "import os; print(os.environ['COLOUR'])"
    seconds = await api.run(session_id, code, timeout=20, env={"COLOUR": "red"})
    milliseconds = await api.run(session_id, code, timeout_ms=20_000, envs={"COLOUR": "blue"})
    too_short = await api.run(session_id, "import time; time.sleep(20)", timeout_ms=100)

    assert [seconds["stdout"], milliseconds["stdout"]] == ["red\n", "blue\n"]
    assert too_short["exit_code"] == 124


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/api/sessions", {"id": "a", "session_id": "b"}, "id"),
        ("/api/sessions", {"env": {}, "envs": {}}, "envs"),
        ("/api/sessions/x/run", {"code": "1", "timeout": 1, "timeout_ms": 1000}, "timeout_ms"),
    ],
)
async def test_two_spellings_at_once_are_refused(api: Api, path: str, body: dict[str, Any], named: str) -> None:
    async with nothing_changes(api):
        answer = await api.http.post(path, json=body)

    assert set(assert_refused(answer, 422)["details"]) == {named}


@pytest.mark.parametrize("bad", BAD_IDS)
async def test_an_id_of_a_bad_shape_is_refused_wherever_it_is_in_a_path(api: Api, bad: str) -> None:
    async with nothing_changes(api):
        for method, path, body in [
            ("GET", "", None),
            ("PUT", "", {"name": "x"}),
            ("DELETE", "", None),
            ("POST", "/run", {"code": "1"}),
            ("POST", "/stream", {"code": "1"}),
            ("GET", "/files", None),
            ("POST", "/undelete", None),
            ("GET", "/events", None),
        ]:
            answer = await api.http.request(method, f"/api/sessions/{bad}{path}", json=body)

            assert "session_id" in assert_refused(answer, 422)["details"]
        answer = await api.http.put(f"/api/sessions/{bad}/files/a.txt", content=b"x")

        assert_refused(answer, 422)


@pytest.mark.parametrize("bad", ["", "-a", "a b", "a\n", "a/b", "..", "é", "a" * 129, 1, 1.5, True, [], {}])
async def test_an_id_of_a_bad_shape_is_refused_in_a_body(api: Api, bad: Any) -> None:
    async with nothing_changes(api):
        answer = await api.http.post("/api/sessions", json={"id": bad})

    assert "id" in str(assert_refused(answer, 422)["details"])


@pytest.mark.parametrize("good", ["a", "0", "A" * 128, "prod:user:123:analysis", "a.b-c_d:e"])
async def test_an_id_of_a_good_shape_is_taken(api: Api, good: str) -> None:
    created = await api.create(id=good)

    assert created["id"] == good
    await api.call("DELETE", f"/api/sessions/{good}?purge=true")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
async def test_a_body_of_200_mb_is_refused_in_bounded_memory(api: Api, gateway: GatewayProcess, chunked: bool) -> None:
    process = psutil.Process(gateway.pid)
    before = process.memory_info().rss
    peak = before

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal peak
        for number in range(200):
            yield b'{"name": "' + b"x" * MIB if number == 0 else b"x" * MIB
            peak = max(peak, process.memory_info().rss)

    headers = {"Content-Type": "application/json"}
    if not chunked:
        headers["Content-Length"] = str(200 * MIB + len(b'{"name": "'))
    async with nothing_changes(api):
        answer = await api.http.post("/api/sessions", content=pieces(), headers=headers)

    assert assert_refused(answer, 413)["details"]["limit_bytes"] == 32 * MIB
    assert peak - before < 80 * MIB
    assert (await api.get("/api/health"))["status"] == "ok"


@pytest.mark.parametrize(
    "headers", [f"Content-Length: {10**13}", "Content-Length: 99999999\r\nExpect: 100-continue"], ids=["huge", "waits"]
)
async def test_a_body_that_need_not_be_sent_is_refused_before_it_is(api: Api, headers: str) -> None:
    address = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    named = f"Host: {address.netloc}\r\nContent-Type: application/json"

    writer.write(f"POST /api/sessions HTTP/1.1\r\n{named}\r\n{headers}\r\n\r\n".encode())
    async with asyncio.timeout(10):
        answer = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()

    assert answer.startswith("HTTP/1.1 413")
    assert "\r\nConnection: close\r\n" in answer
    assert json.loads(answer.partition("\r\n\r\n")[2])["code"] == "too_large"


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx", ""],
)
async def test_a_body_that_is_not_json_is_a_415(api: Api, kind: str) -> None:
    async with nothing_changes(api):
        answer = await api.http.post("/api/sessions", content=b"{}", headers={"Content-Type": kind} if kind else {})

    assert_refused(answer, 415)


@pytest.mark.parametrize(
    "kind", ["application/json", "Application/JSON; charset=utf-8", "application/merge-patch+json"]
)
async def test_json_is_taken_under_its_names(api: Api, session_id: str, kind: str) -> None:
    answer = await api.http.post(
        "/api/sessions", content=json.dumps({"id": session_id}), headers={"Content-Type": kind}
    )

    assert answer.status_code == 201


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "10.0.0.1", "[::2]", "["])
async def test_a_host_that_is_not_loopback_is_refused(api: Api, host: str) -> None:
    async with nothing_changes(api):
        for method in ("GET", "POST"):
            answer = await api.http.request(method, "/api/sessions", headers={"Host": host})

            assert assert_refused(answer, 403)["code"] == "host_refused"


@pytest.mark.parametrize("host", ["localhost", "localhost:8888", "127.0.0.1", "127.8.8.8:1", "[::1]:80"])
async def test_a_host_that_is_loopback_is_answered(api: Api, host: str) -> None:
    assert await api.get("/api/sessions?limit=1", 200, headers={"Host": host})


@pytest.mark.parametrize("origin", ["http://evil.example", "https://127.0.0.1", "null", "http://[", "file://"])
async def test_a_page_from_elsewhere_cannot_change_anything(api: Api, session_id: str, origin: str) -> None:
    await api.create(id=session_id)

    async with nothing_changes(api):
        for method, path in [
            ("POST", "/api/sessions"),
            ("DELETE", f"/api/sessions/{session_id}"),
            ("PUT", f"/api/sessions/{session_id}/files/a"),
            ("PATCH", f"/api/sessions/{session_id}"),
        ]:
            answer = await api.http.request(method, path, headers={"Origin": origin}, json={"name": "x"})

            assert assert_refused(answer, 403)["code"] == "origin_refused"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_form_of_a_page_elsewhere_posts_nothing(api: Api, site: str, session_id: str) -> None:
    """Without keys: such a request carries all that a browser would send by itself."""
    form = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": site}

    for headers in (form, form | {"Origin": "null"}, form | {"Origin": "https://evil.example"}):
        answer = await api.http.post(f"/api/sessions/{session_id}/wake", content=b"", headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (403, "origin_refused")
    typed = await api.http.post("/api/sessions", content=b"name=x", headers={"Content-Type": "text/plain"})
    assert typed.status_code == 415


async def test_a_page_of_the_gateway_itself_may_change_things(api: Api, session_id: str) -> None:
    await api.post("/api/sessions", {"id": session_id}, 201, headers={"Origin": api.url})


async def test_what_nobody_foresaw_in_a_header_is_no_500(api: Api, session_id: str) -> None:
    await api.create(id=session_id)

    for event_id in (b"a:" + b"9" * 5000, b"a:\xb2", b":", b"a", b"a:-1"):
        answer = await api.http.post(f"/api/sessions/{session_id}/stream", headers=[(b"Last-Event-ID", event_id)])

        assert_refused(answer, 400, 404)


async def test_times_are_utc_with_microseconds(api: Api, session_id: str) -> None:
    created = await api.create(id=session_id)

    date, _, time = created["created_at"].partition("T")
    assert len(date) == 10
    assert len(time) == len("10:00:00.123456Z")
    assert time.endswith("Z")
