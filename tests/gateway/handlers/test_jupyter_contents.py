"""Jupyter's contents API: sessions are folders, and what is below them are their files."""

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest

from tests.api import Api
from tests.gateways import GatewayProcess, gateway_process

CONTENTS = "/jupyter/api/contents"
NOTEBOOK = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3"}},
    "cells": [
        {
            "cell_type": "code",
            "id": "one",
            "metadata": {"trusted": True},
            "source": "print(1)",
            "execution_count": 1,
            "outputs": [{"output_type": "stream", "name": "stdout", "text": "1\n"}],
        }
    ],
}


def of(session_id: str, path: str = "") -> str:
    return f"{CONTENTS}/{session_id}/{path}".rstrip("/")


def text(content: str) -> dict[str, Any]:
    return {"type": "file", "format": "text", "content": content}


async def save(api: Api, session_id: str, path: str, model: dict[str, Any], expect: int | None = None) -> Any:
    return await api.call("PUT", of(session_id, path), model, expect)


async def names(api: Api, path: str) -> list[str]:
    return [one["name"] for one in (await api.get(path))["content"]]


# Folders


async def test_the_top_level_lists_the_sessions_as_folders(api: Api, session_id: str) -> None:
    session = await api.create(id=session_id)

    top = await api.get(f"{CONTENTS}?content=1&1764022000123")
    bare = await api.get(f"{CONTENTS}/?content=0")

    (folder,) = top["content"]
    assert (top["type"], top["format"], top["path"]) == ("directory", "json", "")
    assert (folder["name"], folder["path"], folder["type"]) == (session_id, session_id, "directory")
    assert folder["created"] == session["created_at"]
    assert (folder["content"], folder["format"], folder["mimetype"]) == (None, None, None)
    assert (bare["content"], bare["format"]) == (None, None)


async def test_a_folder_lists_what_is_in_it_but_hidden_things(api: Api, session_id: str) -> None:
    await api.run(
        session_id,
        "import os\nos.makedirs('sub'); open('a.txt', 'w').write('x'); open('.hidden', 'w'); open('n.ipynb', 'w')\n"
        "os.symlink('a.txt', 'link.txt'); os.symlink('/etc/passwd', 'out')\n"
        "os.mkfifo('pipe'); os.chmod('a.txt', 0o444)",
    )

    found = {one["name"]: one for one in (await api.get(of(session_id)))["content"]}

    assert {name: one["type"] for name, one in found.items()} == {
        "a.txt": "file",
        "link.txt": "file",
        "n.ipynb": "notebook",
        "sub": "directory",
    }
    assert found["a.txt"]["mimetype"] == "text/plain"
    assert found["a.txt"]["size"] == 1
    assert (found["a.txt"]["writable"], found["n.ipynb"]["writable"]) == (False, True)
    assert found["sub"]["path"] == f"{session_id}/sub"
    assert "content" in found["a.txt"]
    assert found["a.txt"]["content"] is None


@pytest.mark.parametrize("path", ["nothing", "sub/nothing", ".hidden", ".ipynb_checkpoints/a-checkpoint.txt"])
async def test_what_is_not_there_or_hidden_is_not_found_in_jupyters_words(api: Api, session_id: str, path: str) -> None:
    await api.create(id=session_id)

    refusal = await api.get(of(session_id, path), 404)

    assert refusal["message"] == f"No such file or directory: {session_id}/{path}"
    assert refusal["reason"] is None


async def test_an_unknown_session_is_not_found_and_not_made_by_looking(api: Api, session_id: str) -> None:
    refusal = await api.get(of(session_id), 404)

    assert session_id in refusal["message"]
    await api.get(f"/api/sessions/{session_id}", 404)


async def test_a_folder_asked_for_as_a_file_and_the_other_way_round_is_refused(api: Api, session_id: str) -> None:
    await save(api, session_id, "sub/a.txt", text("x"))

    folder = await api.get(of(session_id, "sub?type=file"), 400)
    file = await api.get(of(session_id, "sub/a.txt?type=directory"), 400)
    over_folder = await save(api, session_id, "sub", text("x"), 400)
    over_file = await save(api, session_id, "sub/a.txt", {"type": "directory"}, 400)
    no_notebook = await api.get(of(session_id, "sub/a.txt?type=notebook"), 400)

    assert (folder["message"], folder["reason"]) == (f"{session_id}/sub is a directory, not a file", "bad type")
    assert [one["reason"] for one in (over_folder, over_file)] == ["bad type", "bad type"]
    assert no_notebook["message"].startswith("Unreadable Notebook")
    assert (file["message"], file["reason"]) == (f"{session_id}/sub/a.txt is a file, not a directory", "bad type")


# Files


async def test_a_file_that_is_saved_is_the_sessions_and_comes_back(api: Api, session_id: str) -> None:
    new = await save(api, session_id, "data/ä b.txt", text("häl\n"), 201)
    again = await save(api, session_id, "data/ä b.txt", text("hällo\n"), 200)

    ran = await api.run(session_id, "open('data/ä b.txt').read()")
    got = await api.get(of(session_id, "data/ä b.txt"))

    assert ran["result"] == repr("hällo\n")
    assert (new["path"], new["type"], new["content"], new["format"]) == (
        f"{session_id}/data/ä b.txt",
        "file",
        None,
        None,
    )
    assert again["size"] == 7
    assert (got["content"], got["format"], got["mimetype"]) == ("hällo\n", "text", "text/plain")
    assert (await api.get(f"/api/sessions/{session_id}"))["file_count"] == 1


async def test_bytes_go_in_and_out_as_base64(api: Api, session_id: str) -> None:
    raw = bytes(range(256))
    encoded = base64.encodebytes(raw).decode()
    await save(api, session_id, "x.bin", {"type": "file", "format": "base64", "content": encoded})

    got = await api.get(of(session_id, "x.bin"))
    refused = await api.get(of(session_id, "x.bin?format=text"), 400)
    read = await api.http.get(f"/api/sessions/{session_id}/files/x.bin")

    assert (got["format"], got["mimetype"]) == ("base64", "application/octet-stream")
    assert base64.b64decode(got["content"]) == read.content == raw
    assert refused["reason"] == "bad format"


async def test_a_hash_is_told_when_it_is_asked_for(api: Api, session_id: str) -> None:
    await save(api, session_id, "a.txt", text("hello"))

    with_content = await api.get(of(session_id, "a.txt?hash=1"))
    alone = await api.get(of(session_id, "a.txt?hash=1&content=0"))
    without = await api.get(of(session_id, "a.txt"))

    digest = hashlib.sha256(b"hello").hexdigest()
    assert (with_content["hash"], with_content["hash_algorithm"]) == (digest, "sha256")
    assert (alone["hash"], alone["content"]) == (digest, None)
    assert (without["hash"], without["hash_algorithm"]) == (None, None)


async def test_what_jupyters_clients_send_back_as_they_got_it_is_taken(api: Api, session_id: str) -> None:
    await save(api, session_id, "a.txt", text("hello"))
    model = await api.get(of(session_id, "a.txt"))

    saved = await save(api, session_id, "a.txt", {**model, "content": "changed"}, 200)

    assert saved["size"] == 7


@pytest.mark.parametrize(
    "model",
    [
        {"type": "file", "content": "x"},
        {"type": "file", "format": "json", "content": {}},
        {"type": "file", "format": "base64", "content": "?"},
        {"type": "notebook", "format": "json", "content": "x"},
        {"type": "notebook", "format": "json", "content": {}},
        {"type": "notebook", "content": NOTEBOOK, "chunk": 1},
    ],
)
async def test_content_that_cant_be_read_is_refused_and_nothing_written(
    api: Api, session_id: str, model: dict[str, Any]
) -> None:
    await api.create(id=session_id)

    refusal = await save(api, session_id, "a", model, 400)

    assert refusal["message"]
    assert await names(api, of(session_id)) == []


async def test_no_path_reaches_out_of_a_workspace(api: Api, session_id: str) -> None:
    await api.run(session_id, "import os\nos.symlink('/etc', 'etc')")

    await api.get(of(session_id, "etc/passwd"), 403)
    await save(api, session_id, "etc/x", text("x"), 403)
    await save(api, session_id, "a%00b", text("x"), 422)


@pytest.mark.parametrize(
    "path",
    ["%2e%2e/%2e%2e/x", "..%2f..%2fx", "%2fetc/passwd", "out/x", "out", "loop/x", "sub/up/out/x", "n" * 300, "%00",
     "/".join(["d" * 200] * 30), "%ff", ".ssh/x", "a.txt/x"],
)  # fmt: skip
async def test_a_path_that_leads_astray_is_refused_by_every_call_and_nothing_is_logged(
    gateway: GatewayProcess, api: Api, session_id: str, path: str, tmp_path: Path
) -> None:
    await api.run(
        session_id,
        f"import os\nos.symlink({str(tmp_path)!r}, 'out'); os.symlink('loop', 'loop'); os.mkdir('sub')\n"
        "os.symlink('..', 'sub/up'); open('a.txt', 'w').close()",
    )
    before = len(gateway.log())

    refused = [
        await api.http.request(method, of(session_id, path) + more, json=body)
        for method, more, body in [
            ("GET", "", None), ("PUT", "", text("evil")), ("PUT", "", {**text("evil"), "chunk": 1}),
            ("POST", "", {"type": "file"}), ("PATCH", "", {"path": f"{session_id}/b.txt"}),
            ("GET", "/checkpoints", None), ("POST", "/checkpoints", None),
            ("POST", "/checkpoints/checkpoint", None), ("DELETE", "/checkpoints/checkpoint", None),
        ]
    ]  # fmt: skip

    assert {answer.status_code for answer in refused} <= {400, 403, 404, 409, 422}
    assert all(answer.json()["message"] for answer in refused)
    assert not os.listdir(tmp_path)
    assert "Traceback" not in gateway.log()[before:]


@pytest.mark.slow
async def test_an_upload_in_chunks_that_a_kill_cuts_off_leaves_the_old_file(tmp_path: Path) -> None:
    chunk = {**text("new" * 100_000), "chunk": 1}
    async with gateway_process(tmp_path / "data") as own:
        async with Api(own.url) as api:
            await save(api, "s", "a.txt", text("old"))
            await save(api, "s", "a.txt", chunk, 200)
            await own.kill()
        await own.start()
        async with Api(own.url) as api:
            refused = await save(api, "s", "a.txt", {**chunk, "chunk": 2}, 409)
            assert "begin with chunk 1" in refused["message"]
            assert (await api.get(of("s", "a.txt")))["content"] == "old"
            await save(api, "s", "a.txt", chunk, 200)
            await save(api, "s", "a.txt", {**text("!"), "chunk": -1}, 200)
            assert (await api.get(of("s", "a.txt")))["content"] == "new" * 100_000 + "!"


# Notebooks


async def test_a_notebook_is_saved_as_a_valid_file_and_nobody_vouches_for_its_outputs(
    api: Api, session_id: str
) -> None:
    saved = await save(api, session_id, "n.ipynb", {"type": "notebook", "format": "json", "content": NOTEBOOK}, 201)

    got = await api.get(of(session_id, "n.ipynb"))
    as_file = await api.get(of(session_id, "n.ipynb?type=file"))
    written = json.loads(as_file["content"])
    assert (saved["type"], saved["message"]) == ("notebook", None)
    assert (got["type"], got["format"], got["mimetype"]) == ("notebook", "json", None)
    assert got["content"]["cells"][0]["source"] == "print(1)"
    assert got["content"]["cells"][0]["metadata"] == {"trusted": False}
    assert (as_file["type"], as_file["format"]) == ("file", "text")
    assert written["cells"][0]["metadata"] == {}
    nbformat.validate(written)


async def test_a_notebook_that_is_not_valid_is_kept_and_told_of(api: Api, session_id: str) -> None:
    cell = {"cell_type": "code", "id": "x", "metadata": {}, "source": "1", "outputs": [{"output_type": "odd"}]}
    model = {"type": "notebook", "format": "json", "content": {**NOTEBOOK, "cells": [cell]}}

    saved = await save(api, session_id, "n.ipynb", model, 201)
    got = await api.get(of(session_id, "n.ipynb"))

    assert "validation failed" in saved["message"]
    assert "validation failed" in got["message"]
    assert got["content"]["cells"][0]["source"] == "1"


@pytest.mark.parametrize(
    "content",
    ["[]", "1", '{"a": 1}', '{"nbformat": 4, "cells": 5}', json.dumps({**NOTEBOOK, "metadata": {"a": "\ud800"}}),
     '{"nbformat": 4, "nbformat_minor": 5, "cells": [], "metadata": ' + '{"a":' * 900 + "1" + "}" * 901],
    ids=["list", "number", "object", "no cells", "surrogate", "deep"],
)  # fmt: skip
async def test_whatever_a_file_holds_it_is_read_or_refused(api: Api, session_id: str, content: str) -> None:
    await save(api, session_id, "n.ipynb", text(content))

    refusal = await api.get(of(session_id, "n.ipynb"), 400)

    assert refusal["message"].startswith("Unreadable Notebook")


async def test_a_path_that_nothing_can_be_called_makes_no_session(api: Api, session_id: str) -> None:
    await save(api, session_id, "a%00b", text("x"), 422)

    await api.get(f"/api/sessions/{session_id}", 404)


async def test_a_file_that_is_no_notebook_is_not_read_as_one(api: Api, session_id: str) -> None:
    await save(api, session_id, "n.ipynb", text("not json"))

    refusal = await api.get(of(session_id, "n.ipynb"), 400)
    as_file = await api.get(of(session_id, "n.ipynb?type=file&format=text"))

    assert refusal["message"].startswith(f"Unreadable Notebook: {session_id}/n.ipynb")
    assert as_file["content"] == "not json"


# Chunks


async def test_a_file_comes_in_chunks_and_the_old_one_stays_until_the_last(api: Api, session_id: str) -> None:
    await save(api, session_id, "big.bin", text("old"))
    chunks = [bytes([n]) * 700_001 for n in range(4)]

    for number, chunk in zip((1, 2, 3), chunks, strict=False):
        model = {"type": "file", "format": "base64", "content": base64.b64encode(chunk).decode(), "chunk": number}
        await save(api, session_id, "big.bin", model)
    meanwhile = await api.get(of(session_id, "big.bin"))
    last = {"type": "file", "format": "base64", "content": base64.b64encode(chunks[3]).decode(), "chunk": -1}
    saved = await save(api, session_id, "big.bin", last)

    read = await api.http.get(f"/api/sessions/{session_id}/files/big.bin")
    assert meanwhile["content"] == "old"
    assert saved["size"] == 4 * 700_001
    assert read.content == b"".join(chunks)


async def test_a_chunk_out_of_place_is_refused_and_a_new_first_one_begins_again(api: Api, session_id: str) -> None:
    await api.create(id=session_id)

    lost = await save(api, session_id, "a", {**text("x"), "chunk": 2}, 409)
    await save(api, session_id, "a", {**text("wrong"), "chunk": 1})
    skipped = await save(api, session_id, "a", {**text("x"), "chunk": 3}, 409)
    await save(api, session_id, "a", {**text("ri"), "chunk": 1})
    await save(api, session_id, "a", {**text("ght"), "chunk": -1})

    assert "begin with chunk 1" in lost["message"]
    assert "2 was to come" in skipped["message"]
    assert (await api.get(of(session_id, "a")))["content"] == "right"


async def test_a_chunk_beyond_the_disk_limit_is_refused_and_the_old_file_stays(api: Api, session_id: str) -> None:
    await api.create(id=session_id, resources={"disk": "1Mi"})
    await save(api, session_id, "a", text("old"))
    piece = "x" * 600_000

    await save(api, session_id, "a", {**text(piece), "chunk": 1})
    await save(api, session_id, "a", {**text(piece), "chunk": -1}, 413)

    assert (await api.get(of(session_id, "a")))["content"] == "old"


# New things, copies, moves


async def test_new_things_get_names_that_are_free(api: Api, session_id: str) -> None:
    await api.create(id=session_id)
    made = [
        (await api.post(of(session_id), {"type": kind, **more}, 201))["name"]
        for kind, more in [
            ("notebook", {}),
            ("notebook", {}),
            ("file", {"ext": ".py"}),
            ("file", {"ext": ".py"}),
            ("directory", {}),
            ("directory", {}),
        ]
    ]

    notebook = await api.get(of(session_id, "Untitled.ipynb"))
    folder = await api.get(of(session_id, "Untitled Folder 1"))

    assert made == [
        *("Untitled.ipynb", "Untitled1.ipynb", "untitled.py", "untitled1.py", "Untitled Folder", "Untitled Folder 1")
    ]
    assert notebook["content"]["cells"] == []
    assert notebook["message"] is None
    assert (folder["type"], folder["content"]) == ("directory", [])


async def test_something_new_at_the_top_level_makes_a_session(api: Api) -> None:
    folder = await api.post(CONTENTS, {"type": "directory"}, 201)
    notebook = await api.post(CONTENTS, {"type": "notebook"}, 201)

    session_id, name = notebook["path"].split("/")
    assert name == "Untitled.ipynb"
    for one in (folder["name"], session_id):
        assert (await api.get(f"/api/sessions/{one}"))["id"] == one


async def test_a_folder_that_is_saved_at_the_top_level_is_a_session(api: Api, session_id: str) -> None:
    await api.call("PUT", of(session_id), {"type": "directory"}, 201)
    await api.call("PUT", of(session_id), {"type": "directory"}, 200)
    refusal = await api.call("PUT", f"{CONTENTS}/a.txt", text("x"), 400)

    assert (await api.get(f"/api/sessions/{session_id}"))["id"] == session_id
    assert "top level" in refusal["message"]


async def test_files_are_copied_also_from_another_session(api: Api, session_id: str) -> None:
    await save(api, session_id, "a.tar.gz", text("x"))
    await save(api, f"{session_id}-2", "sub/b", text("y"))
    url = of(session_id)

    first = await api.post(url, {"copy_from": f"{session_id}/a.tar.gz"}, 201)
    second = await api.post(url, {"copy_from": f"/{session_id}/{first['name']}"}, 201)
    other = await api.post(of(f"{session_id}-2", "sub"), {"copy_from": f"{session_id}/a.tar.gz"}, 201)
    await api.post(url, {"copy_from": f"{session_id}-2/sub"}, 400)
    await api.post(url, {"copy_from": f"{session_id}/nothing"}, 404)

    assert [first["name"], second["name"]] == ["a-Copy1.tar.gz", "a-Copy2.tar.gz"]
    assert other["path"] == f"{session_id}-2/sub/a.tar.gz"
    assert (await api.get(f"{CONTENTS}/{other['path']}"))["content"] == "x"


async def test_a_post_to_a_file_is_refused(api: Api, session_id: str) -> None:
    await save(api, session_id, "a", text("x"))

    refusal = await api.post(of(session_id, "a"), {"type": "file"}, 400)

    assert refusal["message"] == "Cannot POST to files, use PUT instead."


async def test_things_are_renamed_and_nothing_is_written_over(api: Api, session_id: str) -> None:
    await save(api, session_id, "a", text("a"))
    await save(api, session_id, "sub/b", text("b"))

    moved = await api.call("PATCH", of(session_id, "a"), {"path": f"{session_id}/sub/c"}, 200)
    taken = await api.call("PATCH", of(session_id, "sub/c"), {"path": f"{session_id}/sub/b"}, 409)
    await api.call("PATCH", of(session_id, "sub/b"), {"path": f"{session_id}/sub/b"}, 200)
    folder = await api.call("PATCH", of(session_id, "sub"), {"path": f"{session_id}/tree"}, 200)
    over = await api.call("PATCH", of(session_id, "tree/c"), {"path": f"{session_id}-2/c"}, 404)
    await api.create(id=f"{session_id}-2")
    await api.call("PATCH", of(session_id, "tree/c"), {"path": f"{session_id}-2/c"}, 200)
    await api.call("PATCH", of(session_id), {"path": "other"}, 403)

    assert (moved["path"], moved["name"], moved["type"]) == (f"{session_id}/sub/c", "c", "file")
    assert "there already" in taken["message"]
    assert folder["type"] == "directory"
    assert f"{session_id}-2" in over["message"]
    assert await names(api, of(session_id, "tree")) == ["b"]
    assert (await api.get(of(f"{session_id}-2", "c")))["content"] == "a"


async def test_files_and_folders_are_deleted_but_not_sessions(api: Api, session_id: str) -> None:
    await save(api, session_id, "a", text("a"))
    await save(api, session_id, "sub/b", text("b"))

    for path in ("a", "sub"):
        assert (await api.http.delete(of(session_id, path))).status_code == 204
    await api.call("DELETE", of(session_id, "a"), expect=404)
    await api.call("DELETE", of(session_id), expect=403)

    assert await names(api, of(session_id)) == []
    assert (await api.get(f"/api/sessions/{session_id}"))["file_count"] == 0


# Checkpoints


async def test_a_checkpoint_is_made_restored_and_deleted(api: Api, session_id: str) -> None:
    url = of(session_id, "sub/n.ipynb/checkpoints")
    await save(api, session_id, "sub/n.ipynb", text("first"))
    none = await api.get(url)

    made = await api.post(url, expect=201)
    await save(api, session_id, "sub/n.ipynb", text("second"))
    listed = await api.get(url)
    restored = await api.http.post(f"{url}/{made['id']}")
    got = await api.get(of(session_id, "sub/n.ipynb?type=file"))
    deleted = await api.http.delete(f"{url}/{made['id']}")

    assert none == []
    assert listed == [made]
    assert (restored.status_code, deleted.status_code) == (204, 204)
    assert got["content"] == "first"
    assert await api.get(url) == []
    refusal = await api.post(f"{url}/{made['id']}", expect=404)
    assert refusal["message"] == f"Checkpoint does not exist: {session_id}/sub/n.ipynb@checkpoint"
    assert await names(api, of(session_id, "sub")) == ["n.ipynb"]


async def test_a_checkpoint_goes_where_its_file_goes(api: Api, session_id: str) -> None:
    await save(api, session_id, "a.txt", text("first"))
    await api.post(of(session_id, "a.txt/checkpoints"))

    await api.call("PATCH", of(session_id, "a.txt"), {"path": f"{session_id}/sub/b.txt"})
    await api.post(f"/api/sessions/{session_id}/duplicate", {"new_id": f"{session_id}-2"}, 201)
    moved = await api.get(of(f"{session_id}-2", "sub/b.txt/checkpoints"))
    await api.http.delete(of(session_id, "sub/b.txt"))
    await save(api, session_id, "sub/b.txt", text("another"))

    assert [one["id"] for one in moved] == ["checkpoint"]
    assert await api.get(of(session_id, "sub/b.txt/checkpoints")) == []


async def test_a_folder_has_no_checkpoints(api: Api, session_id: str) -> None:
    await api.create(id=session_id)

    refusal = await api.post(of(session_id, "checkpoints"), expect=400)

    assert refusal["reason"] == "bad type"


# Whatever state the session is in


async def test_files_of_a_session_that_sleeps_are_there(api: Api, session_id: str) -> None:
    await api.run(session_id, "open('a.txt', 'w').write('x')")
    await api.post(f"/api/sessions/{session_id}/hibernate")

    got = await api.get(of(session_id, "a.txt"))
    await save(api, session_id, "b.txt", text("y"))

    assert got["content"] == "x"
    assert (await api.get(f"/api/sessions/{session_id}"))["state"] == "IDLE"
