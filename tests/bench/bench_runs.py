"""Running code: our gateway beside Jupyter Kernel Gateway and raw jupyter_client, in one run.

    python -m tests.bench.bench_runs [--rounds N]

Prints a table of medians. All sides run stock kernelspecs of the same environment, on the same machine, in turn.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import httpx2
import psutil
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from pydantic_core import from_json
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.bench.peers import serving
from tests.gateways import gateway_process

PRINTS = "for i in range(100_000): print(i)"
BIG_PRINT = "print('x' * 50_000_000)"
OUTPUT_LIMIT_BYTES = 200_000_000


class Session(Protocol):
    """One side's session: `run` returns the length of what was printed."""

    async def run(self, code: str) -> int: ...


class Side(Protocol):
    """One of those that are compared."""

    name: str

    def session(self) -> AbstractAsyncContextManager[Session]: ...

    def memory_bytes(self) -> int: ...


class Connections:
    """Keep-alive HTTP without the cost of a full client, which would be measured along."""

    def __init__(self, url: str) -> None:
        self._host, _, port = url.removeprefix("http://").partition(":")
        self._port = int(port)
        self._free: list[socket.socket] = []

    async def call(self, method: str, path: str, body: Any = None) -> Any:
        loop = asyncio.get_running_loop()
        connection = self._free.pop() if self._free else await self._connect(loop)
        sent = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nContent-Type: application/json\r\n"
        await loop.sock_sendall(connection, f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        received = b""
        while b"\r\n\r\n" not in received:
            received += await loop.sock_recv(connection, 65536)
        answer_head, _, start = received.partition(b"\r\n\r\n")
        length = int(answer_head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        answer = bytearray(length)
        answer[: len(start)] = start
        at = len(start)
        while at < length:
            at += await loop.sock_recv_into(connection, memoryview(answer)[at:])
        self._free.append(connection)
        return from_json(answer)

    async def _connect(self, loop: asyncio.AbstractEventLoop) -> socket.socket:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await loop.sock_connect(connection, (self._host, self._port))
        return connection


class OurSession:
    def __init__(self, http: Connections, session_id: str) -> None:
        self._http = http
        self._path = f"/api/sessions/{session_id}/run"

    async def run(self, code: str) -> int:
        answer = await self._http.call("POST", self._path, {"code": code})
        assert answer["status"] == "ok", answer
        return len(answer["stdout"])


class Ours:
    name = "session-gateway"
    with_default_limit: "Ours | None" = None  # the same, but it cuts output at 10 MiB, as it does unless told otherwise

    def __init__(self, url: str, pid: int) -> None:
        self._http = Connections(url)
        self._pid = pid

    @asynccontextmanager
    async def session(self) -> AsyncIterator[OurSession]:
        created = await self._http.call("POST", "/api/sessions", {})
        try:
            yield OurSession(self._http, created["id"])
        finally:
            await self._http.call("DELETE", f"/api/sessions/{created['id']}?purge=true")

    def memory_bytes(self) -> int:
        return int(psutil.Process(self._pid).memory_info().rss)

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path) -> AsyncIterator["Ours"]:
        async with (
            gateway_process(folder / "data", output_limit_bytes=OUTPUT_LIMIT_BYTES) as gateway,
            gateway_process(folder / "default") as default,
        ):
            side = cls(gateway.url, gateway.pid)
            side.with_default_limit = cls(default.url, default.pid)
            yield side


class WebsocketSession:
    """A kernel over the websocket of a Jupyter server."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self._connection = connection

    async def run(self, code: str) -> int:
        msg_id = uuid4().hex
        header = {"msg_id": msg_id, "msg_type": "execute_request", "username": "", "session": "bench", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        await self._connection.write_message(json.dumps(message))
        printed, replied, idle = 0, False, False
        while not (replied and idle):
            received = await self._connection.read_message()
            assert received is not None
            answer = from_json(received)
            if answer["parent_header"].get("msg_id") != msg_id:
                continue
            if answer["msg_type"] == "stream":
                printed += len(answer["content"]["text"])
            replied = replied or answer["msg_type"] == "execute_reply"
            idle = idle or answer["content"].get("execution_state") == "idle"
        return printed


class KernelGateway:
    name = "jupyter_kernel_gateway"

    def __init__(self, port: int, pid: int) -> None:
        self._url = f"127.0.0.1:{port}"
        self._http = httpx2.AsyncClient(base_url=f"http://{self._url}", timeout=120, trust_env=False)
        self._pid = pid

    @asynccontextmanager
    async def session(self) -> AsyncIterator[WebsocketSession]:
        kernel_id = (await self._http.post("/api/kernels", json={})).json()["id"]
        try:
            url = f"ws://{self._url}/api/kernels/{kernel_id}/channels"
            connection = await websocket_connect(url, max_message_size=1 << 30)
            yield WebsocketSession(connection)
            connection.close()
        finally:
            await self._http.delete(f"/api/kernels/{kernel_id}")

    def memory_bytes(self) -> int:
        return int(psutil.Process(self._pid).memory_info().rss)

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path) -> AsyncIterator["KernelGateway"]:
        limits = ("iopub_data_rate_limit", "iopub_msg_rate_limit")
        command = [
            "kernel_gateway", "--KernelGatewayApp.ip=127.0.0.1", "--KernelGatewayApp.port={port}",
            *(f"--ZMQChannelsWebsocketConnection.{limit}=0" for limit in limits),
        ]  # fmt: skip
        async with serving(folder, "jkg", *command) as (port, pid):
            yield cls(port, pid)


class RawSession:
    def __init__(self, client: AsyncKernelClient) -> None:
        self._client = client

    async def run(self, code: str) -> int:
        printed = 0

        def on_output(message: dict[str, Any]) -> None:
            nonlocal printed
            if message["msg_type"] == "stream":
                printed += len(message["content"]["text"])

        await self._client.execute_interactive(code, output_hook=on_output, timeout=120)
        return printed


class Raw:
    name = "raw jupyter_client"

    @asynccontextmanager
    async def session(self) -> AsyncIterator[RawSession]:
        manager = AsyncKernelManager(kernel_name="python3")
        await manager.start_kernel()
        client = manager.client()
        client.start_channels()
        try:
            await client.wait_for_ready(timeout=60)
            yield RawSession(client)
        finally:
            client.stop_channels()
            await manager.shutdown_kernel(now=True)

    def memory_bytes(self) -> int:
        return int(psutil.Process().memory_info().rss)

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path) -> AsyncIterator["Raw"]:
        yield cls()


async def timed(work: Callable[[], Awaitable[Any]]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    await work()
    return (time.perf_counter() - began) * 1000


async def create_to_first(side: Side) -> float:
    async with contextlib.AsyncExitStack() as stack:

        async def create() -> None:
            session = await stack.enter_async_context(side.session())
            await session.run("1+1")

        return await timed(create)


async def runs_per_second(side: Side, clients: int, seconds: float) -> float:
    """Of `clients` over 8 sessions."""
    async with contextlib.AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(side.session()) for _ in range(8)]
        locks = [asyncio.Lock() for _ in sessions]
        await asyncio.gather(*(session.run("1+1") for session in sessions))
        count, end = 0, time.perf_counter() + seconds

        async def client(number: int) -> None:
            nonlocal count
            at = number % len(sessions)
            while time.perf_counter() < end:
                async with contextlib.nullcontext() if isinstance(side, Ours) else locks[at]:
                    await sessions[at].run("1+1")
                count += 1

        began = time.perf_counter()
        await asyncio.gather(*(client(number) for number in range(clients)))
        return count / (time.perf_counter() - began)


async def measure(side: Side, rounds: int) -> dict[str, float]:
    """One turn of every measurement."""
    found: dict[str, float] = {}
    found["create → first result, ms"] = statistics.median([await create_to_first(side) for _ in range(rounds)])
    async with side.session() as session:
        for _ in range(20):
            await session.run("1+1")
        found["warm 1+1, ms"] = statistics.median([await timed(lambda: session.run("1+1")) for _ in range(rounds * 40)])
        found["100,000 prints, ms"] = statistics.median(
            [await timed(lambda: session.run(PRINTS)) for _ in range(rounds)]
        )
        found["one 50 MB print, ms"] = statistics.median(
            [await timed(lambda: session.run(BIG_PRINT)) for _ in range(rounds)]
        )
    at_default = getattr(side, "with_default_limit", None) or side
    async with at_default.session() as session:
        await session.run("1+1")
        cut = [await timed(lambda: session.run(BIG_PRINT)) for _ in range(rounds)]
        found["the same, ours at its default limit, ms"] = statistics.median(cut)
    for clients in (1, 8, 32):
        found[f"runs/s, {clients} clients on 8 sessions"] = await runs_per_second(side, clients, 1.5 * rounds)
    found["server memory, MB"] = side.memory_bytes() / 1e6
    return found


async def main(rounds: int, turns: int) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        async with contextlib.AsyncExitStack() as stack:
            sides: list[Side] = [
                await stack.enter_async_context(Ours.started(Path(folder))),
                await stack.enter_async_context(KernelGateway.started(Path(folder))),
                await stack.enter_async_context(Raw.started(Path(folder))),
            ]
            for _ in range(turns):
                for side in sides:
                    for what, value in (await measure(side, rounds)).items():
                        found.setdefault(what, {}).setdefault(side.name, []).append(value)
    names = [side.name for side in sides]
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, medians of {turns} turns of {rounds} rounds\n")
    print(f"{'':42}" + "".join(f"{name:>24}" for name in names) + f"{'ours / raw':>12}{'ours / JKG':>12}")
    for what, by_side in found.items():
        values = [statistics.median(by_side[name]) for name in names]
        print(
            f"{what:42}" + "".join(f"{value:24,.1f}" for value in values)
            + f"{values[0] / values[2]:12.2f}{values[0] / values[1]:12.2f}"
        )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rounds, arguments.turns))
