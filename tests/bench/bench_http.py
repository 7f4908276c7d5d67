"""Sessions over HTTP: our gateway beside Jupyter Kernel Gateway and raw jupyter_client, in one run.

    python -m tests.bench.bench_http [--rounds N] [--sessions N …] [--quick]

Prints a table of medians and their ratios. All sides run stock kernelspecs of the same environment on one machine,
in turn. Memory is the proportional share of every process that a side has started, itself included.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.bench.bench_runs import KernelGateway, Ours, Raw, Session, Side, runs_per_second, timed
from tests.gateways import gateway_process, keepers_of

STARTERS = 8  # clients that create sessions at the same time
SETTLE_S = 2.0  # what a start left to be done is done


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    rounds: int
    runs: int
    seconds: float
    session_counts: list[int]


class Gateway(Ours):
    """With all that works for it counted as its memory."""

    def __init__(self, url: str, pid: int, data_dir: Path) -> None:
        super().__init__(url, pid)
        self._data_dir = data_dir

    def memory_bytes(self) -> int:
        return sum(map(tree_pss, [self._pid, *(keeper.pid for keeper in keepers_of(self._data_dir))]))

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path, **settings: Any) -> AsyncIterator["Gateway"]:
        async with gateway_process(folder / "data", autosave=False, **settings) as gateway:
            yield cls(gateway.url, gateway.pid, folder / "data")


class Peer(KernelGateway):
    def memory_bytes(self) -> int:
        return tree_pss(self._pid)


def tree_pss(pid: int) -> int:
    """Of a process and all below it, bytes; what they share is counted once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        root = psutil.Process(pid)
        return sum(pss(one.pid) for one in [root, *root.children(recursive=True)])
    return 0


def pss(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


async def create_run_delete(side: Side) -> tuple[float, float]:
    """Milliseconds from the wish for a session to its first result, and those that its deletion takes."""
    entered = side.session()
    began = time.perf_counter()
    session = await entered.__aenter__()
    await session.run("1+1")
    first = time.perf_counter()
    await asyncio.sleep(0.2)  # what was put off until after the answer is not part of a deletion
    left = time.perf_counter()
    await entered.__aexit__(None, None, None)
    return (first - began) * 1000, (time.perf_counter() - left) * 1000


async def creations_per_second(side: Side, seconds: float) -> float:
    """Created, run once and deleted again, by several clients; none begins anew after `seconds`."""
    count, began = 0, time.perf_counter()

    async def client() -> None:
        nonlocal count
        while time.perf_counter() < began + seconds:
            async with side.session() as session:
                await session.run("1+1")
            count += 1

    await asyncio.gather(*(client() for _ in range(STARTERS)))
    return count / (time.perf_counter() - began)


async def memory_per_session(side: Side, count: int) -> float:
    """MB, once each of `count` sessions has run something; what the server takes by itself is shared out among them."""
    async with contextlib.AsyncExitStack() as stack:
        free = asyncio.Semaphore(STARTERS)

        async def create() -> Session:
            async with free:
                session = await stack.enter_async_context(side.session())
                await session.run("x = 1")
                return session

        await asyncio.gather(*(create() for _ in range(count)))
        await asyncio.sleep(SETTLE_S)
        return side.memory_bytes() / count / 1e6


async def measure(side: Side, plan: Plan, note: Callable[[str, float], None]) -> None:
    """One turn of every measurement."""
    for _ in range(plan.rounds):
        first, deleted = await create_run_delete(side)
        note("create → first result, ms", first)
        note("delete, ms", deleted)
    async with side.session() as session:
        for _ in range(20):
            await session.run("1+1")
        for _ in range(plan.runs):
            note("warm 1+1, ms", await timed(lambda: session.run("1+1")))
    for clients in (1, 8, 32):
        note(f"runs/s, {clients} clients on 8 sessions", await runs_per_second(side, clients, plan.seconds))
    note("creations/s, with run and deletion", await creations_per_second(side, plan.seconds))


def table(names: list[str], found: dict[str, dict[str, list[float]]]) -> None:
    ours, *others = names
    print(f"{'':40}" + "".join(f"{name:>24}" for name in names) + "".join(f"{'/ ' + o:>26}" for o in others))
    for what, by_side in found.items():
        medians = {name: statistics.median(values) for name, values in by_side.items()}
        shown = "".join(f"{medians[name]:24,.1f}" if name in medians else f"{'-':>24}" for name in names)
        ratios = "".join(
            f"{medians[ours] / medians[other]:26.3f}" if other in medians else f"{'-':>26}" for other in others
        )
        print(f"{what:40}{shown}{ratios}")


async def main(plan: Plan, turns: int) -> None:
    found: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        async with contextlib.AsyncExitStack() as stack:
            most = max(plan.session_counts, default=0) + STARTERS
            ours: Side = await stack.enter_async_context(Gateway.started(folder, live_limit=max(200, most)))
            peer: Side = await stack.enter_async_context(Peer.started(folder))
            raw: Side = await stack.enter_async_context(Raw.started(folder))
            for _ in range(turns):
                for side in (ours, peer, raw):

                    def note(what: str, value: float, side: Side = side) -> None:
                        found.setdefault(what, {}).setdefault(side.name, []).append(value)

                    await measure(side, plan, note)
            for count in plan.session_counts:
                for side in (ours, peer):
                    value = await memory_per_session(side, count)
                    found.setdefault(f"PSS per idle session at {count}, MB", {})[side.name] = [value]
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {turns} turns of {plan.rounds} rounds, medians\n")
    table([ours.name, peer.name, raw.name], found)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=10, help="sessions created in each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--sessions", type=int, nargs="*", default=[50], help="how many idle ones memory is shared by")
    parser.add_argument("--seconds", type=float, default=10, help="of each throughput")
    parser.add_argument("--quick", action="store_true", help="one short turn")
    given = parser.parse_args()
    if given.quick:
        asyncio.run(main(Plan(3, 50, 2.0, [5]), turns=1))
    else:
        asyncio.run(main(Plan(given.rounds, 20 * given.rounds, given.seconds, given.sessions), given.turns))
