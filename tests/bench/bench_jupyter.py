"""Jupyter's clients: our gateway beside Jupyter Kernel Gateway and Jupyter Server, in one run, each asked the same way.

    python -m tests.bench.bench_jupyter [--rounds N] [--turns N] [--clients N] [--quick]

Prints a table of medians and their ratios. Clients speak `v1.kernel.websocket.jupyter.org`, as JupyterLab does; what
they cost is in every figure. Kernels are those of stock kernelspecs of one environment.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import orjson
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.bench.bench_http import pss, table
from tests.bench.bench_runs import OUTPUT_LIMIT_BYTES, PRINTS
from tests.bench.peers import serving
from tests.gateways import gateway_process

V1 = "v1.kernel.websocket.jupyter.org"
KERNELS = 10  # that the attached clients share
SETTLE_S = 2.0
PRINTED = sum(len(f"{n}\n") for n in range(100_000))
UNLIMITED = [f"--ZMQChannelsWebsocketConnection.iopub_{what}_rate_limit=0" for what in ("data", "msg")]


class Client:
    """A websocket on a kernel."""

    def __init__(self, connection: WebSocketClientConnection, session: str) -> None:
        self._connection = connection
        self._session = session

    async def run(self, code: str) -> int:
        """The length of what was printed, once both the reply and `idle` are here."""
        msg_id = uuid4().hex
        header = {"msg_id": msg_id, "msg_type": "execute_request", "username": "", "session": self._session,
                  "version": "5.4", "date": "2026-01-20T10:00:00Z"}  # fmt: skip
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        await self._connection.write_message(_joined([header, {}, {}, content]), binary=True)
        printed, replied, idle = 0, False, False
        while not (replied and idle):
            frame = await self._connection.read_message()
            assert isinstance(frame, bytes), self._connection.close_reason
            at = struct.unpack_from("<7Q", frame)[1:]
            if orjson.loads(frame[at[2] : at[3]]).get("msg_id") != msg_id:
                continue
            msg_type = orjson.loads(frame[at[1] : at[2]])["msg_type"]
            if msg_type == "execute_reply":
                replied = True
            elif msg_type in ("stream", "status"):
                told = orjson.loads(frame[at[4] : at[5]])
                printed += len(told.get("text", ""))
                idle = idle or told.get("execution_state") == "idle"
        return printed

    def close(self) -> None:
        self._connection.close()


def _joined(parts: list[Any]) -> bytes:
    pieces = [b"shell", *map(orjson.dumps, parts)]
    at = [8 * (len(pieces) + 2)]
    for piece in pieces:
        at.append(at[-1] + len(piece))
    return struct.pack(f"<{len(at) + 1}Q", len(at), *at) + b"".join(pieces)


@dataclass
class Server:
    """One of those that are compared; `url` is where Jupyter's API begins."""

    name: str
    url: str
    pid: int

    @asynccontextmanager
    async def kernel(self) -> AsyncIterator[str]:
        async with httpx2.AsyncClient(base_url=self.url, timeout=120, trust_env=False) as http:
            started = await http.post("/api/kernels", json={"name": "python3"})
            kernel_id = started.raise_for_status().json()["id"]
            try:
                yield kernel_id
            finally:
                await http.delete(f"/api/kernels/{kernel_id}")

    @asynccontextmanager
    async def client(self, kernel_id: str) -> AsyncIterator[Client]:
        session = uuid4().hex
        url = f"{self.url.replace('http', 'ws', 1)}/api/kernels/{kernel_id}/channels?session_id={session}"
        connection = await websocket_connect(url, subprotocols=[V1], max_message_size=1 << 30)
        client = Client(connection, session)
        try:
            yield client
        finally:
            client.close()


@asynccontextmanager
async def ours(folder: Path) -> AsyncIterator[Server]:
    async with gateway_process(folder / "data", output_limit_bytes=OUTPUT_LIMIT_BYTES, autosave=False) as gateway:
        yield Server("session-gateway", f"{gateway.url}/jupyter", gateway.pid)


@asynccontextmanager
async def peer(name: str, folder: Path, *command: str) -> AsyncIterator[Server]:
    """A server that is started by `python -m`; `{port}` in its command is a free one."""
    async with serving(folder, name, *command, *UNLIMITED) as (port, pid):
        yield Server(name, f"http://127.0.0.1:{port}", pid)


async def timed(client: Client, code: str, printed: int) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    assert await client.run(code) == printed
    return (time.perf_counter() - began) * 1000


async def measure(side: Server, rounds: int) -> dict[str, float]:
    """One turn of what takes time."""
    async with side.kernel() as kernel_id, side.client(kernel_id) as client:
        for _ in range(20):
            await client.run("1+1")
        warm = [await timed(client, "1+1", 0) for _ in range(rounds * 40)]
        prints = [await timed(client, PRINTS, PRINTED) for _ in range(rounds)]
    return {
        "1+1 on the websocket, median, ms": statistics.median(warm),
        "1+1 on the websocket, p99, ms": statistics.quantiles(warm, n=100)[-1],
        "100,000 prints, ms": statistics.median(prints),
    }


async def memory(side: Server, count: int) -> dict[str, float]:
    """What the server's own process takes with and without `count` clients, on some kernels, that have run a cell."""
    async with contextlib.AsyncExitStack() as stack:
        kernels = [await stack.enter_async_context(side.kernel()) for _ in range(KERNELS)]
        for kernel_id in kernels:  # all that is imported and made for the first client of a kernel is there
            async with side.client(kernel_id) as client:
                await client.run("1+1")
        await asyncio.sleep(SETTLE_S)
        before = pss(side.pid)
        for number in range(count):
            client = await stack.enter_async_context(side.client(kernels[number % KERNELS]))
            await client.run("1+1")
        await asyncio.sleep(SETTLE_S)
        after = pss(side.pid)
    return {
        f"server with {count} clients on {KERNELS} kernels, PSS, MB": after / 1e6,
        "the same / clients, kB": after / count / 1e3,
        "what one more client adds, kB": (after - before) / count / 1e3,
    }


async def main(rounds: int, turns: int, clients: int) -> None:
    found: dict[str, dict[str, list[float]]] = {}

    def note(side: Server, values: dict[str, float]) -> None:
        for what, value in values.items():
            found.setdefault(what, {}).setdefault(side.name, []).append(value)

    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            sides = [
                await stack.enter_async_context(ours(folder)),
                await stack.enter_async_context(
                    peer("jupyter_kernel_gateway", folder, "kernel_gateway", "--KernelGatewayApp.ip=127.0.0.1",
                         "--KernelGatewayApp.port={port}")
                ),
                await stack.enter_async_context(
                    peer("jupyter_server", folder, "jupyter_server", "--ip=127.0.0.1", "--port={port}", "--no-browser",
                         "--allow-root", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True")
                ),
            ]  # fmt: skip
            for _ in range(turns):
                for side in sides:
                    note(side, await measure(side, rounds))
            for side in sides:
                note(side, await memory(side, clients))
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {turns} turns of {rounds} rounds, medians\n")
    table([side.name for side in sides], found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--clients", type=int, default=100, help="that are attached when memory is measured")
    parser.add_argument("--quick", action="store_true", help="one short turn")
    given = parser.parse_args()
    if given.quick:
        asyncio.run(main(2, 1, 50))
    else:
        asyncio.run(main(given.rounds, given.turns, given.clients))
