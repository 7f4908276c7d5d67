"""Clients that say little, slowly, or far too much: on real sockets, while others are served."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
import pytest_asyncio

from tests.api import Api
from tests.gateways import GatewayProcess, gateway_process

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

MEBI = 2**20
MOST = 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    data_dir = tmp_path_factory.mktemp("impatient") / "data"
    async with gateway_process(data_dir, connection_patience_s=1, connections_limit=MOST, pool_size=1) as started:
        yield started


@asynccontextmanager
async def connection(gateway: GatewayProcess) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()


async def drip(writer: asyncio.StreamWriter, text: bytes) -> None:
    """One byte after another, until the other side has had enough."""
    try:
        for at in range(len(text)):
            writer.write(text[at : at + 1])
            await writer.drain()
            await asyncio.sleep(0.05)
    except ConnectionError:
        pass


async def closed(reader: asyncio.StreamReader) -> bytes:
    """What came before the other side closed."""
    async with asyncio.timeout(15):
        try:
            return await reader.read()
        except ConnectionError:
            return b""


def head(gateway: GatewayProcess, first: str, *more: str) -> bytes:
    return "\r\n".join([first, f"Host: {gateway.url.removeprefix('http://')}", *more, "", ""]).encode()


async def test_who_does_not_finish_the_head_of_a_request_is_sent_away(impatient: GatewayProcess) -> None:
    endless = head(impatient, "GET /api/health HTTP/1.1")[:-2] + b"X-More: 1\r\n" * 100
    async with connection(impatient) as (reader, writer), connection(impatient) as (idle, _):
        began = time.monotonic()
        dripping = asyncio.ensure_future(drip(writer, endless))
        told = [await closed(reader), await closed(idle)]
        took_s = time.monotonic() - began
        await dripping

    assert told == [b"", b""]
    assert 0.9 < took_s < 5


async def test_who_does_not_send_its_body_is_sent_away_whether_it_was_let_in_or_not(impatient: GatewayProcess) -> None:
    for path, origin in (("/api/sessions", "X-Nothing: 1"), ("/api/sessions", "Origin: http://evil.example")):
        asked = head(
            impatient, f"POST {path} HTTP/1.1", "Content-Type: application/json", "Content-Length: 100", origin
        )
        async with connection(impatient) as (reader, writer):
            began = time.monotonic()
            writer.write(asked)
            dripping = asyncio.ensure_future(drip(writer, b'{"id": "slow"' + b" " * 80))
            await closed(reader)
            took_s = time.monotonic() - began
            await dripping
        assert 0.9 < took_s < 5


async def test_an_upload_that_goes_on_may_take_longer(impatient: GatewayProcess) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(30):
            yield b"x" * 4000  # ten times as fast as what is too slow
            await asyncio.sleep(0.1)

    async with Api(impatient.url) as api:
        told = await api.call("PUT", "/api/sessions/s/files/slow", content=pieces(), expect=201)
        await api.call("DELETE", "/api/sessions/s")

    assert told["size"] == 120_000


async def test_many_who_say_nothing_keep_nobody_out(impatient: GatewayProcess) -> None:
    silent = []
    async with Api(impatient.url) as first:
        run = asyncio.ensure_future(first.run("s", "import time; time.sleep(2); 'done'"))
        for _ in range(5 * MOST):
            host, port = impatient.url.removeprefix("http://").split(":")
            silent.append(await asyncio.open_connection(host, int(port)))
        async with Api(impatient.url) as api:
            began = time.monotonic()
            health = await api.get("/api/health")
            took_s = time.monotonic() - began
        told = await run
        await first.call("DELETE", "/api/sessions/s")
    open_ = len(psutil.Process(impatient.pid).net_connections("tcp"))
    for _, writer in silent:
        writer.close()

    assert health["status"] == "ok"
    assert told["result"] == "'done'"  # what is under way is not closed for others
    assert took_s < 2
    assert open_ <= MOST + 3


async def test_a_head_that_is_too_large_costs_no_memory_and_its_client_the_connection(
    impatient: GatewayProcess,
) -> None:
    process = psutil.Process(impatient.pid)
    before = process.memory_info().rss
    for asked in (
        head(impatient, "GET /api/health HTTP/1.1", f"X-Large: {'x' * 400_000}"),
        head(impatient, "GET /api/health HTTP/1.1", *(f"X-{n}: y" for n in range(50_000))),
        head(impatient, f"GET /api/health?{'x' * 400_000} HTTP/1.1"),
        b"G" * 20 * MEBI,
    ):
        async with connection(impatient) as (reader, writer):
            writer.write(asked)
            told = await closed(reader)
        assert b" 200 " not in told
    async with Api(impatient.url) as api:
        fine = await api.http.get("/api/health", headers={"X-Large": "x" * 100_000})

    assert fine.status_code == 200
    assert process.memory_info().rss - before < 50 * MEBI


@pytest.mark.parametrize(
    "more",
    [
        ("X-Request-Id: a\r\n\tX-Injected: 1",),
        ("X-Request-Id: a\rX-Injected: 1",),
        ("X-Request-Id: a\x0bX-Injected: 1",),
        ("X-Request-Id: a\x85X-Injected: 1",),
        ("X-Request-Id: a%0d%0aX-Injected: 1",),
        ("Idempotency-Key: a\x00\r\nX-Request-Id: <b>",),
        ("Content-Length: 0", "Transfer-Encoding: chunked"),
        ("Content-Length: 0", "Content-Length: 5"),
        ("Transfer-Encoding: xchunked",),
    ],
)
async def test_nothing_that_is_sent_becomes_a_header_of_an_answer_or_another_request(
    impatient: GatewayProcess, more: tuple[str, ...]
) -> None:
    path = "/api/sessions/none%0d%0aX-Injected:%201/files/a%0d%0aX-Injected:%201"
    for method in ("GET", "DELETE"):
        asked = head(impatient, f"{method} {path}?x=%0d%0aX-Injected:1 HTTP/1.1", "Connection: close", *more)
        async with connection(impatient) as (reader, writer):
            writer.write(asked.replace(b"\xc2", b""))
            answer = await closed(reader)

        answered_head, _, _ = answer.partition(b"\r\n\r\n")
        lines = answered_head.split(b"\r\n")
        assert answer == b"" or lines[0].startswith(b"HTTP/1.1 4")
        assert not [line for line in lines if line.lower().startswith(b"x-injected")]
        assert b"\r" not in b"".join(lines)
        assert answer.count(b"HTTP/1.1") <= 1


async def test_a_file_may_be_called_anything_and_no_header_is_made_of_it(impatient: GatewayProcess) -> None:
    async with Api(impatient.url) as api:
        made = await api.http.put("/api/sessions/s/files/a%0d%0aX-Injected:%201", content=b"x")
        read = await api.http.get("/api/sessions/s/files/a%0d%0aX-Injected:%201")
        await api.call("DELETE", "/api/sessions/s")

    assert made.status_code == 201
    assert "x-injected" not in read.headers
    assert read.headers["Content-Disposition"] == "attachment; filename*=UTF-8''a%0D%0AX-Injected%3A%201"
