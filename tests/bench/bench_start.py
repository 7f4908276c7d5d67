"""How long a Python kernel takes from being asked for to its first result, and to be gone.

    python -m tests.bench.bench_start [--rounds N] [--at-once N]

Medians at library level, from the request to the answer of `1 + 1`, and from leaving it to its end: started the
ordinary way, forked on demand, and from the pool. Beside them, in the same run, jupyter_client as it comes.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from jupyter_client.manager import AsyncKernelManager

from kernels.engine import Launch
from kernels.engines.local import LocalEngine
from kernels.intake import Intake
from kernels.kernel import Kernel, running

Times = tuple[float, float, float]  # until it is attached to, until its first result, from leaving it to its end


async def of_ours(engine: LocalEngine, intake: Intake) -> Times:
    launch = Launch(kernel_id=str(uuid4()), place=uuid4().hex, spec=engine.kernelspecs()["python3"])
    began = time.perf_counter()
    async with running(engine, launch, intake, 60) as kernel:
        attached = time.perf_counter()
        await first_run(kernel)
        ran = time.perf_counter()
    return attached - began, ran - began, time.perf_counter() - ran


async def first_run(kernel: Kernel) -> None:
    rest: dict[str, Any] = {"on_input": lambda prompt, password: None, "output_limit_bytes": 10_000_000}
    async with kernel.execute(uuid4().hex, "1 + 1", on_event=lambda event: None, **rest) as cell:
        await kernel.finish(cell)
        (output,) = cell.outputs.as_nbformat()
        assert output["data"]["text/plain"] == "2"


async def of_jupyter_client(folder: str) -> Times:
    manager = AsyncKernelManager(kernel_name="python3")
    began = time.perf_counter()
    await manager.start_kernel(cwd=folder)
    client = manager.client()
    client.start_channels()
    await client.wait_for_ready(timeout=60)
    attached = time.perf_counter()
    await client.execute_interactive("1 + 1", timeout=60, output_hook=lambda message: None)
    ran = time.perf_counter()
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    return attached - began, ran - began, time.perf_counter() - ran


@asynccontextmanager
async def engine_of(folder: Path, **settings: Any) -> AsyncIterator[Callable[[], Awaitable[Times]]]:
    """Ready: its first kernel has come and gone."""
    engine, intake = LocalEngine(folder, **settings), Intake()
    async with engine.opened():
        await of_ours(engine, intake)
        yield lambda: of_ours(engine, intake)


async def compare(rounds: int, at_once: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        async with (
            engine_of(root / "ordinary", fork_server=False) as ordinary,
            engine_of(root / "on-demand", pool_size=0) as on_demand,
            engine_of(root / "pool", pool_size=2) as pool,
        ):
            ways: dict[str, Callable[[], Awaitable[Times]]] = {
                "jupyter_client": lambda: of_jupyter_client(folder),
                "ordinary": ordinary,
                "on demand": on_demand,
                "pool": pool,
            }
            found: dict[str, list[Times]] = {name: [] for name in ways}
            for _ in range(rounds):
                for name, way in ways.items():
                    found[name].append(await way())
                    await asyncio.sleep(0.2)  # for the pool to be filled again
            tell(found)
            began = time.perf_counter()
            await asyncio.gather(*(on_demand() for _ in range(at_once)))
            print(f"{at_once} at once: {at_once / (time.perf_counter() - began):.1f} a second, each run once and ended")


def tell(found: dict[str, list[Times]]) -> None:
    print(f"{'ms, medians':16}{'attached':>10}{'1 + 1':>10}{'ended':>10}{'ratio':>10}")
    peer = statistics.median(ran for _, ran, _ in found["jupyter_client"])
    for name, times in found.items():
        attached, ran, ended = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"{name:16}{attached * 1e3:10.1f}{ran * 1e3:10.1f}{ended * 1e3:10.1f}{peer / ran:10.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=40)
    arguments = parser.parse_args()
    asyncio.run(compare(arguments.rounds, arguments.at_once))


if __name__ == "__main__":
    main()
