"""API keys over HTTP: shown once, kept as digests, good until they are revoked, expired or rotated away."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.api import Api
from tests.front_ends import front_end
from tests.gateways import gateway_process
from tests.keyed import Keyed, ask_raw, bearer, first_key, keyed_gateway
from tests.mongod import Mongod, mongod  # noqa: F401 - a fixture

SOON_S = 6  # "within seconds", on a busy machine


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Keyed]:
    async with keyed_gateway(tmp_path_factory.mktemp("keys") / "data") as started:
        yield started


pytestmark = pytest.mark.asyncio(loop_scope="module")


def files_below(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]


async def refused_soon(api: Api, code: str = "key_revoked") -> None:
    async with asyncio.timeout(SOON_S):
        while (answer := await api.http.get("/api/sessions")).status_code != 401:
            assert answer.status_code == 200
            await asyncio.sleep(0.1)
    assert answer.json()["code"] == code


async def test_a_key_is_shown_once_and_never_again(keyed: Keyed) -> None:
    made = await keyed.key("once", role="viewer", expires_in_seconds=3600)

    shown = await keyed.root.get(f"/api/keys/{made['id']}")

    assert {**shown, "key": made["key"]} == made
    assert (shown["role"], shown["created_by"], shown["last_used_at"]) == ("viewer", "root", None)
    listed = await keyed.root.get("/api/keys")
    assert shown in listed["keys"]
    secret = made["key"].rsplit("_", 1)[1]
    assert secret not in str(listed)
    for file in files_below(keyed.gateway.data_dir):
        if file.name.startswith("gateway.sqlite"):
            assert secret.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    "body",
    [{}, {"name": ""}, {"name": "a b"}, {"name": "agent:x"}, {"name": "x\n"}, {"name": "x", "role": "root"},
     {"name": "x", "agent_id": "y"}, {"name": "x", "expires_in_seconds": 0}, {"name": "x", "admin": True},
     {"name": "x", "expires_in_seconds": 1, "expires_at": "2030-01-01T00:00:00Z"}, {"name": "ключ"}],
)  # fmt: skip
async def test_a_key_that_makes_no_sense_is_not_made(keyed: Keyed, body: dict[str, Any]) -> None:
    before = (await keyed.root.get("/api/keys"))["total_count"]

    assert (await keyed.root.post("/api/keys", body, 422))["code"] == "invalid"

    assert (await keyed.root.get("/api/keys"))["total_count"] == before


async def test_a_key_that_is_sent_again_under_its_idempotency_key_is_another(keyed: Keyed) -> None:
    """A kept answer would keep the secret."""
    headers = {"Idempotency-Key": "again"}

    first, second = [await keyed.root.post("/api/keys", {"name": "i"}, 201, headers=headers) for _ in range(2)]

    assert first["key"] != second["key"]


async def test_keys_are_for_admins(keyed: Keyed) -> None:
    for role in ("user", "agent", "viewer"):
        async with keyed.api((await keyed.key("nosy", role=role))["key"]) as api:
            assert (await api.get("/api/keys", 403))["code"] == "denied"
            assert (await api.post("/api/keys", {"name": "x", "role": "admin"}, 403))["code"] == "denied"


async def test_each_way_to_send_a_key_is_taken_where_it_belongs(keyed: Keyed) -> None:
    key = (await keyed.key("ways"))["key"]
    async with Api(keyed.url) as api:
        for header in (f"Bearer {key}", f"bearer {key}", f"token {key}", f"Token   {key}"):
            await api.get("/api/sessions", 200, headers={"Authorization": header})
        await api.get(f"/jupyter/api/kernels?token={key}", 200)
        for path in (f"/api/sessions?token={key}", f"/metrics?token={key}"):
            assert (await api.get(path, 401))["code"] == "unauthenticated"
        for header in (f"Basic {key}", f"Bearer {key}, Bearer {key}", f"Bearer {key} x", f"Bearer{key}", "Bearer"):
            await api.get(f"/jupyter/api/kernels?token={key}", 401, headers={"Authorization": header})
        headers = [("Authorization", f"Bearer {key}"), ("Authorization", f"Bearer {key}")]
        assert (await api.http.get("/api/sessions", headers=headers)).status_code in (400, 401)


async def test_a_revoked_key_is_refused_at_once_and_a_second_time_changes_nothing(keyed: Keyed) -> None:
    made = await keyed.key("leaver")
    async with keyed.api(made["key"]) as api:
        await api.get("/api/sessions", 200)

        first = await keyed.root.call("DELETE", f"/api/keys/{made['id']}", expect=200)

        assert (await api.get("/api/sessions", 401))["code"] == "key_revoked"
        assert await keyed.root.call("DELETE", f"/api/keys/{made['id']}", expect=200) == first
    assert made["id"] not in str(await keyed.root.get("/api/keys"))
    assert made["id"] in str(await keyed.root.get("/api/keys?include_revoked=true"))
    assert (await keyed.root.post(f"/api/keys/{made['id']}/rotate", {}, 404))["code"] == "key_not_found"
    assert (await keyed.root.call("DELETE", "/api/keys/key_none", expect=404))["code"] == "key_not_found"


async def test_a_key_expires_in_the_middle_of_its_use(keyed: Keyed) -> None:
    made = await keyed.key("short", expires_in_seconds=1)
    async with keyed.api(made["key"]) as api:
        await api.get("/api/sessions", 200)
        await refused_soon(api, "key_expired")


async def test_after_a_rotation_both_secrets_are_good_until_the_overlap_ends(keyed: Keyed) -> None:
    made = await keyed.key("turner")
    new = await keyed.root.post(f"/api/keys/{made['id']}/rotate", {"overlap_seconds": 1.5}, 200)
    assert (new["id"], new["name"]) == (made["id"], "turner")
    async with keyed.api(made["key"]) as old, keyed.api(new["key"]) as current:
        await old.get("/api/sessions", 200)
        await current.get("/api/sessions", 200)

        await refused_soon(old, "unauthenticated")

        await current.get("/api/sessions", 200)
    at_once = await keyed.root.post(f"/api/keys/{made['id']}/rotate", {"overlap_seconds": 0}, 200)
    async with keyed.api(new["key"]) as old, keyed.api(at_once["key"]) as current:
        await old.get("/api/sessions", 401)
        await current.get("/api/sessions", 200)


async def test_keys_are_rotated_under_load_without_a_refusal(keyed: Keyed) -> None:
    made = await keyed.key("busy")
    keys, stop, asked = [made["key"]], asyncio.Event(), 0

    async def ask() -> None:
        nonlocal asked
        async with Api(keyed.url) as api:
            while not stop.is_set():
                await api.get("/api/sessions", 200, headers=bearer(keys[-1]))
                asked += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(4):
            group.create_task(ask())
        for _ in range(10):
            new = await keyed.root.post(f"/api/keys/{made['id']}/rotate", {}, 200)
            keys.append(new["key"])
        stop.set()
    assert asked > 10


async def test_of_many_rotations_at_once_those_that_answered_with_a_key_are_one_after_another(keyed: Keyed) -> None:
    made = await keyed.key("contested")

    answers = await asyncio.gather(
        *(keyed.root.http.post(f"/api/keys/{made['id']}/rotate", json={"overlap_seconds": 0}) for _ in range(6))
    )

    assert {answer.status_code for answer in answers} <= {200, 409}
    good = 0
    for answer in answers:
        if answer.status_code == 200:
            async with keyed.api(answer.json()["key"]) as api:
                good += (await api.http.get("/api/sessions")).status_code == 200
    assert good == 1


async def test_when_a_key_was_last_used_is_told(keyed: Keyed) -> None:
    made = await keyed.key("used")
    async with keyed.api(made["key"]) as api:
        for _ in range(3):
            await api.get("/api/sessions", 200)

    async with asyncio.timeout(SOON_S):
        while (used := (await keyed.root.get(f"/api/keys/{made['id']}"))["last_used_at"]) is None:
            await asyncio.sleep(0.05)
    assert used > made["created_at"]


async def test_what_a_key_has_under_way_is_cut_off_when_it_is_revoked(keyed: Keyed) -> None:
    made = await keyed.key("streamer")
    async with keyed.api(made["key"]) as api:
        document = await api.create(session_id="streamed")
        await api.run("streamed", "1")
        kernel_id = document["jupyter"]["kernel_id"]
        async with (
            api.events("/api/sessions/streamed/events") as events,
            front_end(keyed.url, kernel_id, query=f"&token={made['key']}") as client,
        ):
            assert (await client.run("1 + 1"))[0].content["status"] == "ok"
            running = asyncio.create_task(
                api.http.post("/api/sessions/streamed/run", json={"code": "import time; time.sleep(60)"})
            )
            async with asyncio.timeout(SOON_S):
                while (await keyed.root.get("/api/sessions/streamed"))["state"] != "BUSY":
                    await asyncio.sleep(0.05)

            await keyed.root.call("DELETE", f"/api/keys/{made['id']}")

            async with asyncio.timeout(SOON_S):
                with contextlib.suppress(Exception):
                    async for _ in events:
                        pass
                with pytest.raises(Exception):  # noqa: B017, PT011 - the connection is closed, in whatever way
                    await running
                with pytest.raises(EOFError):
                    await client.until(lambda got: False)
    async with asyncio.timeout(SOON_S):
        while (await keyed.root.get("/api/sessions/streamed"))["state"] == "BUSY":
            await asyncio.sleep(0.05)


async def test_a_stream_ends_with_the_grant_that_let_it_in(keyed: Keyed) -> None:
    owner, guest = await keyed.key("owner"), await keyed.key("guest")
    async with keyed.api(owner["key"]) as api, keyed.api(guest["key"]) as other:
        await api.create(session_id="lent")
        await api.call("PUT", "/api/sessions/lent/grants", {"guest": "read"})
        async with other.events("/api/sessions/lent/events") as events:
            await api.call("PUT", "/api/sessions/lent/grants", {})

            async with asyncio.timeout(SOON_S):
                with contextlib.suppress(Exception):
                    async for _ in events:
                        pass
        await other.get("/api/sessions/lent", 404)
        assert (await other.get("/api/sessions"))["total_count"] == 0


async def test_guesses_are_slowed_down_and_good_keys_from_the_same_place_go_on(tmp_path: Path) -> None:
    async with keyed_gateway(tmp_path / "data") as keyed, Api(keyed.url) as guesser:
        statuses = []
        await keyed.root.get("/api/sessions", 200)
        for number in range(60):
            answer = await guesser.http.get("/api/sessions", headers=bearer(f"sgw_{number:016x}_{number:064x}"))
            statuses.append(answer.status_code)

        assert statuses[:10] == [401] * 10
        assert statuses[-10:] == [429] * 10
        assert (answer.json()["code"], int(answer.headers["Retry-After"]) > 0) == ("too_many_guesses", True)
        await keyed.root.get("/api/sessions", 200)  # it was good from here before
        made = await keyed.key("new")
        assert (await guesser.http.get("/api/sessions", headers=bearer(made["key"]))).status_code == 429
        assert (await guesser.http.get("/api/health")).status_code == 200


async def test_a_secret_is_in_no_log_and_no_file(tmp_path: Path) -> None:
    async with keyed_gateway(tmp_path / "data", log_level="DEBUG") as keyed:
        made = await keyed.key("quiet")
        async with Api(keyed.url) as api:
            document = await api.post("/api/sessions", {"session_id": "q"}, 201, headers=bearer(made["key"]))
            kernel_id = document["jupyter"]["kernel_id"]
            async with front_end(keyed.url, kernel_id, query=f"&token={made['key']}") as client:
                await client.run("1")
            for path in ("/jupyter/api/kernels", "/jupyter/api/nothing", f"/jupyter/api/kernels/{kernel_id}/channels"):
                await api.http.get(f"{path}?token={made['key']}")
            await api.http.get(f"/api/sessions?token={made['key']}")
            await api.http.post(f"/jupyter/api/contents/q/x?token={made['key']}", content=b"{")
            await api.http.get("/api/sessions/q", headers={**bearer(made["key"]), "X-Request-Id": f"x {made['key']}"})
        await keyed.gateway.stop()
        secret = made["key"].rsplit("_", 1)[1].encode()
        files = files_below(tmp_path)
        found = [file for file in files if secret in file.read_bytes()]
    assert len(files) > 3
    assert found == []


async def test_the_first_key_closes_the_door_on_loopback_too_and_the_last_one_opens_it(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.get("/api/sessions", 200)
        made = await api.post("/api/keys", {"name": "root", "role": "admin"}, 201)

        assert (await api.get("/api/sessions", 401))["code"] == "unauthenticated"

        await api.call("DELETE", f"/api/keys/{made['id']}", expect=200, headers=bearer(made["key"]))
        await api.get("/api/sessions", 200)


@pytest.mark.external_service
async def test_two_gateways_on_one_mongodb_agree_on_keys_within_seconds(tmp_path: Path, mongod: Mongod) -> None:  # noqa: F811
    with mongod.database() as uri:
        root = (await first_key(tmp_path / "one", "--store", uri))["key"]
        async with (
            gateway_process(tmp_path / "one", store=uri) as one,
            gateway_process(tmp_path / "two", store=uri) as two,
            Api(one.url) as admin, Api(two.url) as api,
        ):  # fmt: skip
            admin.http.headers.update(bearer(root))
            made = await admin.post("/api/keys", {"name": "alice"}, 201)
            api.http.headers.update(bearer(made["key"]))
            await api.get("/api/sessions", 200)
            new = await admin.post(f"/api/keys/{made['id']}/rotate", {}, 200)
            await api.get("/api/sessions", 200, headers=bearer(new["key"]))

            began = time.monotonic()
            await admin.call("DELETE", f"/api/keys/{made['id']}", expect=200)
            await refused_soon(api)

            assert time.monotonic() - began < SOON_S


PATHS = [
    "/api/sessions/secret%2f..%2fsecret", "/api/sessions/..%2fsecret", "/api/sessions/%2e%2e/secret",
    "/api/sessions/..;/secret", "/api/sessions/secret;x=1", "/api/sessions/secret%00", "/api/sessions/secret%0d%0a",
    "/api/sessions/%73ecret", "/api/sessions/%2573ecret", "/api/sessions/SECRET", "/api/sessions/secret/",
    "/api/sessions/secret%20", "/api/sessions/.%2fsecret", "//api/sessions/secret", "/api//sessions/secret",
    "/api/./sessions/secret", "/api/v0/sessions/secret", "/api/v2/sessions/secret", "/API/sessions/secret",
    "/api/health/../sessions/secret", "/api/health%2f..%2fsessions%2fsecret", "/api/sessions/mine/../secret",
    "/api/sessions/mine%2f..%2fsecret", "/api/sessions/mine/files/..%2f..%2fsecret%2ffiles%2fa.txt",
    "/jupyter/api/contents/mine/../secret/a.txt", "/jupyter/api/contents/mine%2f..%2fsecret%2fa.txt",
    "/jupyter/api/contents//secret/a.txt", "/jupyter/api/contents/%2fsecret/a.txt",
    "/jupyter/api/contents/secret%2fa.txt",
    "/jupyter/api/contents/mine/..;/secret/a.txt", "/jupyter/api/contents/secret", "/docs/../api/sessions/secret",
    "/api/sessions/\u017fecret", "/api/sessions/%C5%BFecret", "/api/sessions/s%EF%BD%85cret", "/api/sessions/%ff",
]  # fmt: skip


async def test_no_spelling_of_a_path_leads_to_what_is_anothers(keyed: Keyed) -> None:
    owner, other = await keyed.key("keeper"), await keyed.key("prowler")
    async with keyed.api(owner["key"]) as api:
        await api.create(session_id="secret", name="TREASURE")
        await api.call("PUT", "/api/sessions/secret/files/a.txt", expect=201, content=b"TREASURE")
    async with keyed.api(other["key"]) as api:
        await api.create(session_id="mine")
    host, port = keyed.url.removeprefix("http://").split(":")

    for method in ("GET", "HEAD", "DELETE"):
        for path in PATHS:
            reader, writer = await asyncio.open_connection(host, int(port))
            head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n"
            writer.write(f"{head}Authorization: Bearer {other['key']}\r\n\r\n".encode())
            async with asyncio.timeout(10):
                answer = await reader.read()
            writer.close()
            status = int(answer.split()[1]) if answer else 400
            assert 400 <= status < 500, (method, path, answer)
            assert b"TREASURE" not in answer, (method, path)
    async with keyed.api(owner["key"]) as api:
        assert (await api.get("/api/sessions/secret"))["file_count"] == 1


async def test_ids_that_differ_in_case_alone_are_two_sessions_and_two_callers(keyed: Keyed) -> None:
    low, high = await keyed.key("case"), await keyed.key("CASE")
    async with keyed.api(low["key"]) as one, keyed.api(high["key"]) as other:
        await one.create(session_id="Case-x")
        await other.create(session_id="case-x")

        assert [s["id"] for s in (await one.get("/api/sessions"))["sessions"]] == ["Case-x"]
        assert [s["id"] for s in (await other.get("/api/sessions"))["sessions"]] == ["case-x"]
        await one.get("/api/sessions/case-x", 404)
        await other.get("/api/sessions/Case-x", 404)


async def test_nothing_that_is_sent_makes_a_line_of_the_log(keyed: Keyed) -> None:
    """A forged line would look like one of the gateway's own."""
    host = keyed.url.removeprefix("http://")
    forged = "2026-01-01T00:00:00Z [error    ] FORGED"
    for request in (
        f"GET /api/x%0a{forged.replace(' ', '%20')} HTTP/1.1\r\nHost: {host}\r\n",
        f"GET /api/sessions HTTP/1.1\r\nHost: {host}\r\nX-Request-Id: a\r\n {forged}\r\n",
        f"GET /api/sessions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer \x0b{forged}\r\n",
        f"POST /api/sessions HTTP/1.1\r\nHost: {host}\r\nOrigin: http://x\x0c{forged}\r\nContent-Length: 0\r\n",
    ):
        await ask_raw(keyed.url, f"{request}Connection: close\r\n\r\n".encode())

    assert not any(line.lstrip().startswith("2026-01-01") for line in keyed.gateway.log().splitlines())
