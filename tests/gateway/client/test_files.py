"""Files by the client: both ways, on after a cut, and never more of one in memory than a piece."""

import hashlib
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.client import AsyncGateway, AsyncSession, GatewayError, Incomplete, NotFound, Session
from tests.gateway.client.proxies import cutting_proxy
from tests.gateways import GatewayProcess

GIGABYTE = """
import resource, sys
from gateway.client import Gateway
files = Gateway(sys.argv[1]).session(sys.argv[2]).files
files.write_text("warm", "up")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
files.upload(sys.argv[3], "large")
files.download("large", sys.argv[3] + ".back")
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


async def test_files_go_in_and_out(session: AsyncSession, tmp_path: Path) -> None:
    await session.files.write_text("a folder/ä?#%.txt", "text")
    uploaded = await session.files.upload(io.BytesIO(b"0123456789"), "b.bin")
    assert uploaded.size == 10

    assert await session.files.read_text("a folder/ä?#%.txt") == "text"
    assert [one.path for one in await session.files.list(recursive=True)] == ["a folder", "a folder/ä?#%.txt", "b.bin"]
    assert [piece async for piece in session.files.open("b.bin")] == [b"0123456789"]
    assert await session.files.download("b.bin", tmp_path / "b") == 10
    assert (tmp_path / "b").read_bytes() == b"0123456789"
    assert (await session.files.move("b.bin", "c.bin")).path == "c.bin"
    await session.files.delete("a folder")
    assert (await session.run("import os; sorted(os.listdir())")).result == "['c.bin']"
    with pytest.raises(NotFound):
        await session.files.download("nothing", tmp_path / "n")
    assert os.listdir(tmp_path) == ["b"]


async def test_a_path_that_leaves_the_workspace_is_left_for_the_gateway_to_refuse(session: AsyncSession) -> None:
    with pytest.raises(GatewayError) as refused:
        await session.files.read_bytes("../../labels")

    assert refused.value.status in (403, 422)


def test_the_blocking_client_tells_how_far_it_has_got(blocking_session: Session, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"x" * 3_000_000)
    told: list[tuple[int, int | None]] = []

    blocking_session.files.upload(tmp_path / "in", "x", progress=lambda so_far, total: told.append((so_far, total)))
    assert told == [(1 << 20, 3_000_000), (2 << 20, 3_000_000), (3_000_000, 3_000_000)]
    told.clear()
    blocking_session.files.download("x", tmp_path / "out", progress=lambda *now: told.append(now))

    assert told[-1] == (3_000_000, 3_000_000)
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in").read_bytes()


def test_a_bar_shows_how_far_an_upload_has_got(blocking_session: Session, capsys: pytest.CaptureFixture[str]) -> None:
    blocking_session.files.upload(b"x" * 2_000_000, "shown", progress=True)

    assert "shown: 100%" in capsys.readouterr().err


async def test_a_download_that_is_cut_off_goes_on_where_it_was(
    session: AsyncSession, gateway: GatewayProcess, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 40_000
    await session.files.upload(content, "cut")
    passed: dict[int, int] = {}

    def cut(connection: int, received: bytes) -> bool:
        passed[connection] = passed.get(connection, 0) + len(received)
        return connection <= 3 and passed[connection] > 2_000_000

    async with cutting_proxy(gateway.url, cut) as proxy, AsyncGateway(proxy.url) as client:
        assert await client.session(session.id).files.download("cut", tmp_path / "cut") == len(content)

    assert (tmp_path / "cut").read_bytes() == content
    assert proxy.connections == 4
    assert [b"range: bytes=" in one.lower() for one in proxy.requests] == [False, True, True, True]


async def test_a_file_that_changes_while_it_is_downloaded_is_not_put_together_of_two(
    session: AsyncSession, gateway: GatewayProcess, tmp_path: Path
) -> None:
    await session.files.upload(b"a" * 4_000_000, "changing")
    passed: dict[int, int] = {}

    def cut(connection: int, received: bytes) -> bool:
        passed[connection] = passed.get(connection, 0) + len(received)
        return connection == 1 and passed[connection] > 1_000_000

    async with cutting_proxy(gateway.url, cut) as proxy, AsyncGateway(proxy.url) as client:
        reading = client.session(session.id).files.open("changing")
        first = await anext(reading)
        await session.files.upload(b"b" * 4_000_000, "changing")

        with pytest.raises(Incomplete, match="has changed"):
            await rest(reading)
    assert first[:1] == b"a"


async def rest(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def test_an_upload_whose_connection_is_lost_is_sent_again(session: AsyncSession, gateway: GatewayProcess) -> None:
    def cut(connection: int, received: bytes) -> bool:
        return connection == 1

    async with cutting_proxy(gateway.url, cut) as proxy, AsyncGateway(proxy.url) as client:
        await client.session(session.id).files.upload(b"y" * 3_000_000, "again")

    assert await session.files.read_bytes("again") == b"y" * 3_000_000
    assert proxy.connections == 2


async def test_snapshots_are_taken_to_another_session_by_way_of_a_file(client: AsyncGateway, tmp_path: Path) -> None:
    session = await client.create()
    await session.run("x = [1, 2]; open('f', 'w').write('kept')")
    taken = await session.snapshots.create("before")
    await session.run("x = None; open('f', 'w').write('changed')")

    size = await session.snapshots.download(taken, tmp_path / "s.tar.zst")
    brought = await client.snapshots.upload(tmp_path / "s.tar.zst")
    restored = await session.snapshots.restore(taken)
    remixed = await session.remix("child", snapshot_id=brought.id)

    assert size == (tmp_path / "s.tar.zst").stat().st_size
    assert restored.id == session.id
    for one in (session, remixed):
        assert (await one.run("x, open('f').read()")).result == "([1, 2], 'kept')"
    assert [child.id async for child in session.children()] == [remixed.id]
    assert [one.id for one in await session.snapshots.list().all() if one.name == "before"] == [taken.id]


@pytest.mark.slow
def test_a_gigabyte_goes_both_ways_in_flat_memory(
    blocking_session: Session, gateway: GatewayProcess, tmp_path: Path
) -> None:
    source = tmp_path / "large"
    piece = hashlib.sha256(b"x").digest() * 32_768
    with source.open("wb") as file:
        for _ in range(1024):
            file.write(piece)

    done = subprocess.run(
        [sys.executable, "-c", GIGABYTE, gateway.url, blocking_session.id, str(source)],
        capture_output=True, text=True, timeout=100, check=True,
    )  # fmt: skip

    assert int(done.stdout) < 32 * 2**20
    with source.open("rb") as sent, Path(f"{source}.back").open("rb") as back:
        assert hashlib.file_digest(sent, "blake2b").digest() == hashlib.file_digest(back, "blake2b").digest()
    source.unlink()
    Path(f"{source}.back").unlink()
