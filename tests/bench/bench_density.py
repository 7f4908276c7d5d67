"""Many idle sessions over HTTP: what each costs, and whether each still is itself.

    python -m tests.bench.bench_density [--sessions N …]

All walls up. Memory is that of the gateway, the keeper, what forks kernels, and every kernel: their proportional share
(PSS) by the number of sessions, and what the machine has less available. Nothing of them may be left at the end.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from tests.bench.bench_http import SETTLE_S, STARTERS, pss, tree_pss
from tests.bench.bench_runs import Connections
from tests.gateways import GatewayProcess, below_keepers, gateway_process, keepers_of, kernels_of

LONGEST_S = 30.0  # until what is left behind is gone, and what is kept ready is there again
INIT_BYTES = 2**20  # the first process of a pid namespace takes less
_ROWS = (
    "created and run, s", "created a second", "PSS a session, MB", "of its kernel alone, MB",
    "page tables a session, MB",
    "machine's memory a session, MB", "gateway + keeper, MB", "each answers with its own, s", "deleted, s",
    "left: processes", "left: groups", "left: folders", "left: sockets' folders",
)  # fmt: skip


async def measured(gateway: GatewayProcess, count: int) -> dict[str, float]:
    http, free = Connections(gateway.url), asyncio.Semaphore(STARTERS)
    available_before = psutil.virtual_memory().available
    keeper = keepers_of(gateway.data_dir)[0].pid
    before = things(gateway, keeper)

    async def create(number: int) -> str:
        async with free:
            created = await http.call("POST", "/api/sessions", {})
            await run(created["id"], f"mine = {number}")
            return str(created["id"])

    async def run(session_id: str, code: str) -> Any:
        answer = await http.call("POST", f"/api/sessions/{session_id}/run", {"code": code})
        assert answer["status"] == "ok", answer
        return answer

    async def check(number: int, session_id: str) -> None:
        async with free:
            answer = await run(session_id, "print(mine)")
            assert answer["stdout"] == f"{number}\n", (number, answer)

    async def delete(session_id: str) -> None:
        async with free:
            await http.call("DELETE", f"/api/sessions/{session_id}?purge=true")

    began = time.perf_counter()
    ids = await asyncio.gather(*(create(number) for number in range(count)))
    created_s = time.perf_counter() - began
    await asyncio.sleep(SETTLE_S)
    servers = pss(gateway.pid) + pss(keeper)
    pids = [one.pid for one in kernels_of(gateway.data_dir)]
    found = {
        "created and run, s": created_s,
        "created a second": count / created_s,
        "PSS a session, MB": (tree_pss(gateway.pid) + tree_pss(keeper)) / count / 1e6,
        "of its kernel alone, MB": statistics.median(one for one in map(pss, pids) if one > INIT_BYTES) / 1e6,
        "page tables a session, MB": sum(map(page_tables, pids)) / count / 1e6,
        "machine's memory a session, MB": (available_before - psutil.virtual_memory().available) / count / 1e6,
        "gateway + keeper, MB": servers / 1e6,
    }
    began = time.perf_counter()
    await asyncio.gather(*(check(number, one) for number, one in enumerate(ids)))
    found["each answers with its own, s"] = time.perf_counter() - began
    began = time.perf_counter()
    await asyncio.gather(*map(delete, ids))
    found["deleted, s"] = time.perf_counter() - began
    until = time.perf_counter() + LONGEST_S
    while (after := things(gateway, keeper)) != before and time.perf_counter() < until:
        await asyncio.sleep(SETTLE_S)
    return found | {f"left: {name}": number - before[name] for name, number in after.items()}


def page_tables(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPTE:"))


def things(gateway: GatewayProcess, keeper: int) -> dict[str, int]:
    """All that comes with sessions and must go with them."""
    data_dir = gateway.data_dir
    runtime = Path(json.loads(next((data_dir / "keepers").glob("*.json")).read_text())["runtime"])
    return {
        "processes": len(below_keepers(data_dir)),
        "groups": len(list(Path("/sys/fs/cgroup").glob(f"**/session-gateway/{keeper}-*/*/"))),
        "folders": sum(len(list((data_dir / name).glob("*"))) for name in ("sessions", "journals", "kernels", "logs")),
        "sockets' folders": len([path for path in runtime.iterdir() if path.is_dir()]),
    }


async def main(counts: list[int]) -> None:
    table: dict[int, dict[str, float]] = {}
    for count in counts:
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            settings = {"live_limit": count + STARTERS, "autosave": False}
            async with gateway_process(Path(name) / "data", **settings) as gateway:
                await asyncio.sleep(5 * SETTLE_S)  # until some are kept ready
                table[count] = await measured(gateway, count)
        print(f"{os.cpu_count()} cores, {psutil.virtual_memory().total / 2**30:.1f} GiB; sessions:")
        print(f"{'':34}" + "".join(f"{one:>12,}" for one in table))
        for row in _ROWS:
            print(f"{row:34}" + "".join(f"{found[row]:12,.2f}" for found in table.values()), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--sessions", type=int, nargs="*", default=[50, 200, 500, 1000])
    asyncio.run(main(parser.parse_args().sessions))
