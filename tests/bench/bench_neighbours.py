"""What a neighbour has left of its throughput while one session spins on every processor.

    python -m tests.bench.bench_neighbours [--rounds 5]

Two clients of one gateway by turns, alone and beside sixteen processes of another session: warm runs of `1 + 1`, and
a cell that computes.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from tests.api import Api
from tests.gateways import gateway_process

ROUND_S = 3.0
HOG = """
import os, signal
kids = []
for _ in range(16):
    kids.append(os.fork())
    while kids[-1] == 0: pass
"""
END = "for pid in kids: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)"
WORK = {"warm runs a second": "1 + 1", "computations a second": "sum(i * i for i in range(200_000))"}


async def a_second(api: Api, code: str) -> float:
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < ROUND_S:
        await api.run("neighbour", code)
        count += 1
    return count / (time.perf_counter() - began)


async def measure(rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with gateway_process(Path(folder) / "data") as gateway, Api(gateway.url) as api:
            await api.run("hog", "1")
            for what, code in WORK.items():
                alone, beside = [], []
                await a_second(api, code)
                for _ in range(rounds):
                    alone.append(await a_second(api, code))
                    await api.run("hog", HOG)
                    beside.append(await a_second(api, code))
                    await api.run("hog", END)
                kept = statistics.median(two / one for one, two in zip(alone, beside, strict=True))
                print(
                    f"{what}: {statistics.median(alone):.1f} alone, {statistics.median(beside):.1f} beside: {kept:.0%}"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(measure(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
