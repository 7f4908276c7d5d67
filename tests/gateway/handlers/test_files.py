"""Files over HTTP: whole or not at all, streamed both ways, and never outside the workspace."""

import asyncio
import hashlib
import io
import json
import os
import tarfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import psutil
import pytest

from tests.api import Api
from tests.gateways import GatewayProcess, gateway_process

MIB = 2**20
OUTSIDE = [
    "..",
    "../a",
    "a/../../b",
    "a/../b",
    "%2e%2e/a",
    "%2e%2e%2fa",
    "..%2f..%2fetc%2fpasswd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
]
ROUGH = ["a//b", "a/", "%00", "a%00b", ".", "./.", "x" * 256, "/".join(["x" * 200] * 30), ".workspace-" + "0" * 32]


async def put(api: Api, session_id: str, path: str, content: bytes) -> None:
    answer = await api.http.put(f"/api/sessions/{session_id}/files/{path}", content=content)
    assert answer.status_code == 201, answer.text


async def get(api: Api, session_id: str, path: str) -> bytes:
    answer = await api.http.get(f"/api/sessions/{session_id}/files/{path}")
    assert answer.status_code == 200, answer.text
    return answer.content


async def paths(api: Api, session_id: str) -> list[str]:
    found = await api.get(f"/api/sessions/{session_id}/files?recursive=true")
    assert found["count"] == len(found["files"])
    return [file["path"] for file in found["files"]]


async def raw(api: Api, method: str, path: str, *headers: str, body: bytes = b"") -> tuple[int, bytes]:
    """Status and answer of a request whose path no client has tidied up."""
    address = urlsplit(api.url)
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address.netloc}", "Connection: close", *headers]
    writer.write("\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1]), answer


def tar(*entries: tuple[str, bytes | str | None]) -> bytes:
    """A tar of files (bytes), links (where to) and folders (None)."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        for name, content in entries:
            header = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                header.size = len(content)
            elif content is None:
                header.type, header.mode = tarfile.DIRTYPE, 0o755
            else:
                header.type, header.linkname = tarfile.SYMTYPE, content
            archive.addfile(header, io.BytesIO(content) if isinstance(content, bytes) else None)
    return written.getvalue()


def names(folder: Path | str) -> list[str]:
    return sorted(os.listdir(folder))


def special(kind: bytes) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as archive:
        header = tarfile.TarInfo("special")
        header.type, header.linkname = kind, "/etc/passwd"
        archive.addfile(header)
    return written.getvalue()


# One by one


async def test_a_file_is_written_listed_read_moved_and_deleted(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}"
    await api.create(id=session_id)

    written = await api.http.put(f"{url}/files/folder/a.txt", content=b"hello")
    listed = await api.get(f"{url}/files?recursive=true")
    moved = await api.post(f"{url}/files/move", {"source": "folder/a.txt", "target": "b.txt"})
    read = await api.http.get(f"{url}/files/b.txt")
    deleted = await api.call("DELETE", f"{url}/files/b.txt")
    gone = await api.http.get(f"{url}/files/b.txt")

    assert written.status_code == 201
    assert (written.json()["path"], written.json()["size"], written.json()["type"]) == ("folder/a.txt", 5, "file")
    assert written.headers["ETag"]
    assert [(file["path"], file["type"]) for file in listed["files"]] == [
        ("folder", "directory"),
        ("folder/a.txt", "file"),
    ]
    assert set(listed["files"][0]) == {"path", "size", "modified_at", "type", "mode"}
    assert moved["path"] == "b.txt"
    assert read.content == b"hello"
    assert read.headers["Content-Type"] == "text/plain"
    assert deleted == {"success": True, "path": "b.txt"}
    assert (gone.status_code, gone.json()["code"]) == (404, "not_found")


async def test_a_folder_is_listed_by_its_path_and_deleted_with_all_in_it(api: Api, session_id: str) -> None:
    for path in ("a/1", "a/b/2", "c"):
        await put(api, session_id, path, b"x")

    top = await api.get(f"/api/sessions/{session_id}/files")
    inside = await api.get(f"/api/sessions/{session_id}/files?path=a")
    await api.call("DELETE", f"/api/sessions/{session_id}/files/a")

    assert [file["path"] for file in top["files"]] == ["a", "c"]
    assert [file["path"] for file in inside["files"]] == ["a/1", "a/b"]
    assert await paths(api, session_id) == ["c"]


async def test_a_move_never_writes_over_what_is_there_unless_told_to(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}/files/move"
    await put(api, session_id, "a", b"a")
    await put(api, session_id, "b", b"b")

    await api.post(url, {"source": "a", "target": "b"}, 409)
    kept = await get(api, session_id, "b")
    await api.post(url, {"source": "a", "target": "b", "overwrite": True}, 200)
    await api.post(url, {"source": "nothing", "target": "c"}, 404)

    assert kept == b"b"
    assert await get(api, session_id, "b") == b"a"


@pytest.mark.parametrize(
    "name", ["a b", "é.txt", "日本/🙂", "a%b", "a?b", "a#b", "a&b=c", "a+b", "a\\b", "'\"", "-rf", "~", "a:b"]
)
async def test_a_file_may_be_called_anything_that_is_a_name(api: Api, session_id: str, name: str) -> None:
    await put(api, session_id, quote(name), b"content")

    listed = await api.get(f"/api/sessions/{session_id}/files?recursive=true")
    shown = [file["path"] for file in listed["files"] if file["type"] == "file"]
    read = await api.http.get(f"/api/sessions/{session_id}/files/{quote(shown[0])}")

    assert read.content == b"content"
    assert (await api.run(session_id, f"import os; os.path.exists({name!r})"))["result"] == "True"


@pytest.mark.parametrize(
    ("wanted", "part", "span"),
    [
        ("bytes=0-3", b"0123", "bytes 0-3/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-2", b"89", "bytes 8-9/10"),
        ("bytes=5-100", b"56789", "bytes 5-9/10"),
        ("bytes=-100", b"0123456789", "bytes 0-9/10"),
        ("bytes=9-9", b"9", "bytes 9-9/10"),
    ],
)
async def test_a_part_of_a_file_is_sent(api: Api, session_id: str, wanted: str, part: bytes, span: str) -> None:
    await put(api, session_id, "digits", b"0123456789")

    answer = await api.http.get(f"/api/sessions/{session_id}/files/digits", headers={"Range": wanted})

    assert (answer.status_code, answer.content, answer.headers["Content-Range"]) == (206, part, span)


async def test_a_part_that_is_not_there_is_a_416_and_an_unknown_kind_of_range_is_ignored(
    api: Api, session_id: str
) -> None:
    url = f"/api/sessions/{session_id}/files/digits"
    await put(api, session_id, "digits", b"0123456789")

    beyond = await api.http.get(url, headers={"Range": "bytes=10-"})
    other_unit = await api.http.get(url, headers={"Range": "lines=0-1"})
    changed_since = await api.http.get(url, headers={"Range": "bytes=0-1", "If-Range": '"other"'})

    assert (beyond.status_code, beyond.headers["Content-Range"], beyond.json()["code"]) == (
        416,
        "bytes */10",
        "no_such_part",
    )
    assert (other_unit.status_code, changed_since.status_code) == (200, 200)
    assert changed_since.content == b"0123456789"


async def test_a_folder_is_no_file_for_head_either(api: Api, session_id: str) -> None:
    await put(api, session_id, "folder/file", b"x")
    url = f"/api/sessions/{session_id}/files/folder"

    assert (await api.http.get(url)).status_code == (await api.http.head(url)).status_code == 409


async def test_files_of_one_size_and_time_are_told_apart(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}/files"
    await put(api, session_id, "a", b"one")
    await put(api, session_id, "b", b"two")
    await api.run(session_id, "import os; [os.utime(name, ns=(10**18, 10**18)) for name in 'ab']")
    first = (await api.http.get(f"{url}/a")).headers["ETag"]

    await api.post(f"{url}/move", {"source": "b", "target": "a", "overwrite": True})

    changed = await api.http.get(f"{url}/a", headers={"If-None-Match": first})
    assert (changed.status_code, changed.content) == (200, b"two")


async def test_files_are_counted_after_a_move(api: Api, session_id: str) -> None:
    for name in ("a", "b"):
        await put(api, session_id, name, b"12345")
    await api.post(f"/api/sessions/{session_id}/files/move", {"source": "a", "target": "b", "overwrite": True})

    listed = (await api.get("/api/sessions?name=" + session_id))["sessions"]

    assert [(one["file_count"], one["total_size_bytes"]) for one in listed if one["id"] == session_id] == [(1, 5)]


async def test_a_file_that_the_client_has_already_is_not_sent_again(api: Api, session_id: str) -> None:
    url = f"/api/sessions/{session_id}/files/a"
    etag = (await api.http.put(url, content=b"one")).headers["ETag"]

    for known in (etag, f"W/{etag}", f'"x", {etag}', "*"):
        same = await api.http.get(url, headers={"If-None-Match": known})
        assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", etag)
    await api.http.put(url, content=b"three")
    changed = await api.http.get(url, headers={"If-None-Match": etag})

    assert (changed.status_code, changed.content) == (200, b"three")
    assert changed.headers["ETag"] != etag


@pytest.mark.parametrize("content", [b"hello", b""])
async def test_head_tells_what_get_would(api: Api, session_id: str, content: bytes) -> None:
    url = f"/api/sessions/{session_id}/files/a.txt"
    await put(api, session_id, "a.txt", content)

    head, whole = await api.http.head(url), await api.http.get(url)

    assert (head.status_code, head.content, whole.content) == (200, b"", content)
    for name in ("Content-Length", "Content-Type", "ETag", "Last-Modified", "Accept-Ranges"):
        assert head.headers[name] == whole.headers[name], name
    assert (await api.http.head(f"{url}.nothing")).status_code == 404


async def test_what_a_session_wrote_never_runs_as_a_page_of_the_gateway(api: Api, session_id: str) -> None:
    await put(api, session_id, "page.html", b"<script>alert(1)</script>")

    answer = await api.http.get(f"/api/sessions/{session_id}/files/page.html")

    assert answer.headers["Content-Disposition"].startswith("attachment")
    assert answer.headers["Content-Security-Policy"] == "sandbox"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


# Large


@pytest.mark.timeout(180)
async def test_100_mb_go_up_and_down_in_bounded_memory(api: Api, gateway: GatewayProcess, session_id: str) -> None:
    process, piece = psutil.Process(gateway.pid), os.urandom(MIB)
    sent, received = hashlib.sha256(), hashlib.sha256()
    await put(api, session_id, "small", b"x")
    before = peak = process.memory_info().rss

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal peak
        for _ in range(100):
            sent.update(piece)
            yield piece
            peak = max(peak, process.memory_info().rss)

    written = await api.http.put(f"/api/sessions/{session_id}/files/large", content=pieces())
    async with api.http.stream("GET", f"/api/sessions/{session_id}/files/large") as answer:
        async for part in answer.aiter_bytes(MIB):
            received.update(part)
            peak = max(peak, process.memory_info().rss)

    assert written.json()["size"] == 100 * MIB
    assert sent.digest() == received.digest()
    assert peak - before < 48 * MIB


async def test_a_file_past_the_limits_is_refused_and_the_old_one_stays(tmp_path: Path, session_id: str) -> None:
    limits = {"upload_limit_bytes": 2 * MIB, "disk_limit_bytes": MIB}
    async with gateway_process(tmp_path / "data", **limits) as gateway, Api(gateway.url) as api:
        url = f"/api/sessions/{session_id}/files/a"
        await put(api, session_id, "a", b"old")

        async def pieces(count: int) -> AsyncIterator[bytes]:
            for _ in range(count):
                yield bytes(MIB // 4)

        past_disk = await api.http.put(url, content=bytes(MIB + 1))
        past_disk_chunked = await api.http.put(url, content=pieces(5))
        past_upload = await api.http.put(url, content=bytes(2 * MIB + 1))
        past_upload_chunked = await api.http.put(url, content=pieces(12))

        for refused in (past_disk, past_disk_chunked, past_upload, past_upload_chunked):
            assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
        assert await get(api, session_id, "a") == b"old"
        assert await paths(api, session_id) == ["a"]


async def test_a_client_that_goes_away_in_mid_upload_leaves_the_old_file(api: Api, session_id: str) -> None:
    url, address = f"/api/sessions/{session_id}/files/a", urlsplit(api.url)
    await put(api, session_id, "a", b"old")

    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    writer.write(f"PUT {url} HTTP/1.1\r\nHost: {address.netloc}\r\nContent-Length: {10 * MIB}\r\n\r\n".encode())
    writer.write(bytes(5 * MIB))
    await writer.drain()
    writer.transport.abort()

    assert await get(api, session_id, "a") == b"old"
    assert await paths(api, session_id) == ["a"]
    del reader


async def test_of_uploads_at_the_same_time_one_is_there_whole(api: Api, session_id: str) -> None:
    await api.create(id=session_id)
    contents = [bytes([number]) * MIB for number in range(8)]

    await asyncio.gather(*(put(api, session_id, "a", content) for content in contents))

    assert await get(api, session_id, "a") in contents
    assert await paths(api, session_id) == ["a"]


# Any session


async def test_a_file_for_an_unknown_id_creates_the_session(api: Api, session_id: str) -> None:
    await put(api, session_id, "a.txt", b"hello")

    session = await api.get(f"/api/sessions/{session_id}")

    assert (session["file_count"], session["total_size_bytes"]) == (1, 5)
    assert (await api.run(session_id, "open('a.txt').read()"))["result"] == "'hello'"


async def test_a_setting_turns_that_off(tmp_path: Path, session_id: str) -> None:
    async with gateway_process(tmp_path / "data", auto_create="false") as gateway, Api(gateway.url) as api:
        answer = await api.http.put(f"/api/sessions/{session_id}/files/a.txt", content=b"hello")
        found = await api.get("/api/sessions")

    assert (answer.status_code, answer.json()["code"]) == (404, "session_not_found")
    assert found["total_count"] == 0


async def test_files_are_there_whatever_state_the_session_is_in(api: Api, session_id: str) -> None:
    async def works(state: str) -> None:
        await put(api, session_id, state, state.encode())
        assert await get(api, session_id, state) == state.encode()
        assert state in await paths(api, session_id)
        assert (await api.get(f"/api/sessions/{session_id}"))["state"] == state

    await api.run(session_id, "1")
    await works("READY")
    async with api.stream(session_id, "import time; print('on', flush=True); time.sleep(60)") as events:
        async for event in events:
            if event.kind == "stdout":
                break
        await works("BUSY")
        await api.post(f"/api/sessions/{session_id}/interrupt")
    await api.post(f"/api/sessions/{session_id}/hibernate")
    await works("IDLE")
    await api.run(session_id, "import os; os._exit(3)")
    await works("ERROR")


# Nothing gets outside


@pytest.mark.parametrize("path", OUTSIDE)
async def test_a_path_never_leads_outside(api: Api, session_id: str, path: str) -> None:
    url = f"/api/sessions/{session_id}/files"
    await put(api, session_id, "a/kept", b"kept")

    for method in ("GET", "PUT", "DELETE", "HEAD"):
        status, answer = await raw(api, method, f"{url}/{path}", body=b"x" if method == "PUT" else b"")
        assert status in (403, 422), (method, answer)
    listed = await raw(api, "GET", f"{url}?path={path}")
    for source, target in [(path, "b"), ("a/kept", path)]:
        body = json.dumps({"source": unquote(source), "target": unquote(target)})
        moved = await raw(api, "POST", f"{url}/move", "Content-Type: application/json", body=body.encode())
        assert moved[0] in (403, 422), moved

    assert listed[0] in (403, 422)
    assert await paths(api, session_id) == ["a", "a/kept"]


@pytest.mark.parametrize("path", ROUGH)
async def test_a_path_that_is_no_name_is_refused_and_nothing_is_written(api: Api, session_id: str, path: str) -> None:
    url = f"/api/sessions/{session_id}"

    status, answer = await raw(api, "PUT", f"{url}/files/{path}", body=b"x")

    assert status == 422, answer
    assert (await api.http.get(url)).status_code == 404


async def test_a_link_leads_to_what_is_inside_and_to_nothing_else(api: Api, session_id: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    url = f"/api/sessions/{session_id}/files"
    await put(api, session_id, "real", b"inside")
    await api.run(
        session_id,
        "import os\n"
        f"os.symlink('real', 'inside'); os.symlink({str(secret)!r}, 'out'); os.symlink({str(tmp_path)!r}, 'folder')\n"
        "os.symlink('../../..', 'up'); os.symlink('loop', 'loop')",
    )

    assert await get(api, session_id, "inside") == b"inside"
    for path in ("out", "folder/secret", "folder/new", "up/x"):
        for method in ("GET", "PUT"):
            answer = await api.http.request(method, f"{url}/{path}", content=b"x" if method == "PUT" else None)
            assert answer.status_code in (403, 422), (method, path, answer.text)
            assert "secret" not in answer.json()["error"].replace(path, "")
    assert (await api.http.get(f"{url}/loop")).status_code in (403, 409, 422)
    assert (await api.http.delete(f"{url}/folder/secret")).status_code in (403, 422)
    assert (await api.http.delete(f"{url}/out")).status_code == 200
    assert secret.read_text() == "secret"
    assert names(tmp_path) == ["secret"]


# Archives


async def test_an_archive_goes_down_and_up_into_another_session(api: Api, session_id: str) -> None:
    for path, content in {"a.txt": b"a", "folder/b.bin": bytes(3 * MIB), "empty": b""}.items():
        await put(api, session_id, path, content)
    await api.run(session_id, "import os; os.symlink('a.txt', 'link'); os.chmod('a.txt', 0o755); os.mkdir('nothing')")

    archive = await api.http.get(f"/api/sessions/{session_id}/archive")
    unpacked = await api.http.put(f"/api/sessions/{session_id}-2/archive", content=archive.content)

    assert archive.headers["Content-Type"] == "application/zstd"
    assert archive.content.startswith(b"\x28\xb5\x2f\xfd")
    assert (unpacked.status_code, unpacked.json()["success"]) == (200, True)
    before = (await api.get(f"/api/sessions/{session_id}/files?recursive=true"))["files"]
    after = (await api.get(f"/api/sessions/{session_id}-2/files?recursive=true"))["files"]
    assert [one["path"] for one in before] == ["a.txt", "empty", "folder", "folder/b.bin", "link", "nothing"]
    for name in ("path", "size", "mode", "type"):
        assert [one[name] for one in before] == [one[name] for one in after]
    assert await get(api, f"{session_id}-2", "link") == b"a"


HOSTILE: dict[str, Callable[[], bytes]] = {
    "climbs": lambda: tar(("good", b"x"), ("../evil", b"x")),
    "climbs in the middle": lambda: tar(("good", b"x"), ("a/../../evil", b"x")),
    "absolute": lambda: tar(("good", b"x"), ("/evil", b"x")),
    "a link out": lambda: tar(("good", b"x"), ("link", "/etc/passwd")),
    "a relative link out": lambda: tar(("good", b"x"), ("a/link", "../../../etc")),
    "through a link of its own": lambda: tar(("good", b"x"), ("link", "/"), ("link/evil", b"x")),
    "a hard link out": lambda: special(tarfile.LNKTYPE),
    "a device": lambda: special(tarfile.CHRTYPE),
    "a pipe": lambda: special(tarfile.FIFOTYPE),
    "not an archive": lambda: b"nothing that can be unpacked" * 100,
    "half an archive": lambda: tar(("good", bytes(MIB)))[: MIB // 2],
    "a name of our own": lambda: tar(("good", b"x"), (".workspace-" + "0" * 32, b"x")),
    "the same file twice": lambda: tar(("good", b"x"), ("good", b"y")),
}


@pytest.mark.parametrize("archive", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_hostile_archive_is_refused_and_nothing_is_written(
    api: Api, session_id: str, archive: Callable[[], bytes]
) -> None:
    await put(api, session_id, "kept", b"kept")

    answer = await api.http.put(f"/api/sessions/{session_id}/archive", content=archive())

    assert answer.status_code in (403, 422), answer.text
    assert await paths(api, session_id) == ["kept"]
    assert await get(api, session_id, "kept") == b"kept"
    assert "evil" not in names("/")
