"""Snapshots in an object store are a setting; obstore gives the same store by any address, here a folder's."""

import socket
from contextlib import closing
from pathlib import Path

import pytest

from tests.api import Api
from tests.gateways import gateway_process


async def test_sessions_are_saved_in_an_object_store_and_come_back_from_it(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    blobs = f"file://{tmp_path}/bucket"
    async with gateway_process(tmp_path / "data", blobs=blobs) as gateway, Api(gateway.url) as api:
        await api.run("a", "import numpy; x = numpy.arange(100_000); y = x; open('f', 'w').write('one')")
        saved = await api.post("/api/sessions/a/snapshots", {}, 201)
        await api.run("a", "x = None; open('f', 'w').write('two')")
        await api.post("/api/sessions/a/hibernate")
        woken = await api.run("a", "x is None, int(y.sum()), open('f').read()")
        await api.post("/api/sessions/a/restore", {"snapshot_id": saved["id"]})
        restored = await api.run("a", "x is y, open('f').read()")
        await api.post("/api/sessions/a/duplicate", {"new_id": "copy", "snapshot_id": saved["id"]}, 201)
        copied = await api.run("copy", "x is y, open('f').read()")
        kept = len(list((tmp_path / "bucket").rglob("*.pack")))
        await api.call("DELETE", "/api/sessions/copy?purge=true")
        left = len(list((tmp_path / "bucket").rglob("*.pack")))

    assert woken["result"] == "(True, 4999950000, 'two')"
    assert restored["result"] == copied["result"] == "(True, 'one')"
    assert not list((tmp_path / "data" / "snapshots").rglob("*.pack"))
    assert kept > left > 0


async def test_an_object_store_that_is_away_is_told_and_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.socket()) as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ALLOW_HTTP"):
            monkeypatch.setenv(name, "true")
        async with gateway_process(tmp_path / "data", blobs="s3://bucket") as gateway, Api(gateway.url) as api:
            await api.run("a", "x = 1")

            refused = await api.post("/api/sessions/a/snapshots", {}, 503)
            asleep = await api.post("/api/sessions/a/hibernate", expect=503)
            environment = await api.run("a", "import os; x, [name for name in os.environ if name.startswith('AWS')]")
            document = await api.get("/api/sessions/a")
            stopped = await gateway.stop()

    assert stopped == 0
    assert refused["code"] == asleep["code"] == "object_store_unavailable"
    assert environment["result"] == "(1, [])"
    assert "object store" in document["save_problem"]
