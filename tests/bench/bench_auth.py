"""What a key costs each request: a gateway that asks for one beside a gateway that does not, in turn, in one run.

    python -m tests.bench.bench_auth [--rounds N]

Prints medians of a warm run of `1 + 1`, by the clock and in CPU time of the gateway, and what deciding alone costs.
"""

import argparse
import asyncio
import json
import socket
import statistics
import tempfile
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from gateway.config import Settings
from gateway.errors import SessionNotFound
from gateway.models.access import CreateKey, Need
from gateway.models.base import now
from gateway.models.sessions import Session
from gateway.services.access import Access
from gateway.services.guardrails import Guardrails
from gateway.services.keys import KeyService
from gateway.services.live import Live
from gateway.stores.sqlite import SqliteStore
from tests.gateways import GatewayProcess, gateway_process
from tests.keyed import command

_EACH = 100  # runs of one side before the other's turn
_DECISIONS = 20_000


@dataclass
class Side:
    """One gateway, and a connection that asks it for runs."""

    name: str
    gateway: GatewayProcess
    key: str | None
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        host, _, port = self.gateway.url.removeprefix("http://").partition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        body = json.dumps({"code": "1 + 1"})
        head = f"POST /api/sessions/bench/run HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
        shown = f"Authorization: Bearer {self.key}\r\n" if self.key else ""
        self._request = f"{head}{shown}Content-Length: {len(body)}\r\n\r\n{body}".encode()

    def run(self) -> None:
        began = time.perf_counter()
        self._socket.sendall(self._request)
        received = b""
        while b"\r\n\r\n" not in received:
            received += self._socket.recv(65536)
        head, _, body = received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < length:
            body += self._socket.recv(65536)
        self.seconds.append(time.perf_counter() - began)
        assert b" 200 " in head, (head, body)

    def turn(self) -> None:
        process = psutil.Process(self.gateway.pid)
        before = process.cpu_times()
        for _ in range(_EACH):
            self.run()
        after = process.cpu_times()
        self.cpu_seconds.append((after.user + after.system - before.user - before.system) / _EACH)


async def gateways(rounds: int) -> None:
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        code, key, told = await command("key", "create", "alice", "--data-dir", str(folder / "keyed"))
        assert code == 0, told
        plain = await stack.enter_async_context(gateway_process(folder / "plain", autosave="false"))
        keyed = await stack.enter_async_context(gateway_process(folder / "keyed", autosave="false"))
        sides = [Side("no keys", plain, None), Side("a user's key", keyed, key.strip())]
        for side in sides:
            side.turn()
            side.seconds.clear()
            side.cpu_seconds.clear()
        for number in range(rounds):
            for side in sides if number % 2 else sides[::-1]:
                side.turn()
    print(f"{'a warm run, ' + str(rounds * _EACH) + ' times':30} {'median':>10} {'CPU':>10}")
    for side in sides:
        cpu = statistics.median(side.cpu_seconds)
        print(f"{side.name:30} {statistics.median(side.seconds) * 1e3:7.3f} ms {cpu * 1e3:7.3f} ms")
    first, second = sides
    ratio = statistics.median(second.seconds) / statistics.median(first.seconds) - 1
    cpu_ratio = statistics.median(second.cpu_seconds) / statistics.median(first.cpu_seconds) - 1
    print(f"{'what the key costs':30} {ratio:9.1%} {cpu_ratio:12.1%}")


async def decisions() -> None:
    """The decision alone: a key that is known, for a session that is its holder's."""
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteStore(Path(folder) / "keys.sqlite")
        async with store.opened():
            keys = KeyService(store, lambda work: work.close())
            nothing: Any = Live.__new__(Live)
            access = Access(Settings(), store, nothing, keys, Guardrails(Settings(), print))
            key = (await keys.create(CreateKey(name="alice"), "root")).key
            session = Session(uid="u", id="x", name="x", created_by="alice", created_at=now(), updated_at=now())
            missing = SessionNotFound("x")
            began = time.process_time()
            for _ in range(_DECISIONS):
                who = await access.enter(key, "127.0.0.1")
                access.check(who, Need.RUN_OR_MAKE, session, missing)
            each = (time.process_time() - began) / _DECISIONS
    print(f"{'the decision alone':30} {each * 1e6:7.1f} us")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    asyncio.run(decisions())
    asyncio.run(gateways(rounds))


if __name__ == "__main__":
    main()
