"""What the Python client costs: a run by it, beside the same run over plain HTTP, and how long it takes to import.

    python -m tests.bench.bench_client [--runs N] [--turns N]

Medians of turns, all sides on one session of one gateway, in turn.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import uuid4

import httpx2

from gateway.client import AsyncGateway, Gateway
from tests.bench.bench_runs import Connections
from tests.gateways import gateway_process

CODE = "1+1"
PATH = "/api/sessions/bench/run"


def blocking_ms(run: Callable[[], object], runs: int) -> float:
    began = time.perf_counter()
    for _ in range(runs):
        run()
    return (time.perf_counter() - began) * 1000 / runs


async def awaited_ms(run: Callable[[], Awaitable[object]], runs: int) -> float:
    began = time.perf_counter()
    for _ in range(runs):
        await run()
    return (time.perf_counter() - began) * 1000 / runs


def import_ms(module: str) -> float:
    """Of a process of its own, less what an empty one takes."""

    def started(program: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", program], check=True)
        return (time.perf_counter() - began) * 1000

    with_it, without = ([started(program) for _ in range(7)] for program in (f"import {module}", "pass"))
    return statistics.median(with_it) - statistics.median(without)


async def measure(url: str, runs: int) -> dict[str, float]:
    raw, found = Connections(url), {}
    with httpx2.Client(base_url=url, trust_env=False) as plain, Gateway(url) as client:
        session = client.session("bench")

        def post() -> object:
            return plain.post(PATH, json={"code": CODE}).json()

        def post_keyed() -> object:
            return plain.post(PATH, json={"code": CODE}, headers={"Idempotency-Key": uuid4().hex}).json()

        found["a bare socket"] = await awaited_ms(lambda: raw.call("POST", PATH, {"code": CODE}), runs)
        found["httpx2"] = await asyncio.to_thread(blocking_ms, post, runs)
        found["httpx2, under an Idempotency-Key"] = await asyncio.to_thread(blocking_ms, post_keyed, runs)
        found["Gateway"] = await asyncio.to_thread(blocking_ms, lambda: session.run(CODE), runs)
    async with httpx2.AsyncClient(base_url=url, trust_env=False) as plain_async, AsyncGateway(url) as client_async:
        keyed = {"Idempotency-Key": uuid4().hex}

        async def post_async() -> object:
            keyed["Idempotency-Key"] = uuid4().hex
            return (await plain_async.post(PATH, json={"code": CODE}, headers=keyed)).json()

        found["httpx2, asyncio, keyed"] = await awaited_ms(post_async, runs)
        awaited = client_async.session("bench")
        found["AsyncGateway"] = await awaited_ms(lambda: awaited.run(CODE), runs)
    return found


async def main(runs: int, turns: int) -> None:
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        async with gateway_process(Path(folder) / "data") as gateway:
            await measure(gateway.url, 20)
            for _ in range(turns):
                for side, ms in (await measure(gateway.url, runs)).items():
                    found.setdefault(side, []).append(ms)
    medians = {side: statistics.median(values) for side, values in found.items()}
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, ms per `{CODE}`, {turns} turns of {runs} runs\n")
    for side, ms in medians.items():
        print(f"{side:36}{ms:8.2f}")
    blocking = medians["Gateway"] - medians["httpx2, under an Idempotency-Key"]
    print(f"\nof that the client itself, ms       {blocking:8.2f}")
    print(f"the same, asyncio                   {medians['AsyncGateway'] - medians['httpx2, asyncio, keyed']:8.2f}")
    for module in ("httpx2", "pydantic", "gateway.client"):
        print(f"import {module:29}{await asyncio.to_thread(import_ms, module):8.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.runs, arguments.turns))
