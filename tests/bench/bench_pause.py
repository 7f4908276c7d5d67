"""What a session feels of a checkpoint: a client runs `1 + 1` every 10 ms while 1 GB of variables is saved.

    python -m tests.bench.bench_pause [--rounds N] [--megabytes N]

Prints a table: the pause itself, round trips without and during a checkpoint, and how long it takes to save the
variables and to have them back in a fresh kernel.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from kernels import checkpoint
from kernels.engine import Launch
from kernels.engines.local import LocalEngine
from kernels.intake import Intake
from kernels.kernel import Kernel, running

EVERY_S = 0.01
BEFORE_S = 2.0


async def run(kernel: Kernel, code: str) -> None:
    async with kernel.execute(
        uuid4().hex, code, on_event=lambda _: None, on_input=lambda *_: None, output_limit_bytes=1_000_000
    ) as execution:
        reply = await kernel.finish(execution)
    assert reply["status"] == "ok", reply


async def round_trips(kernel: Kernel, until: "asyncio.Task[object]") -> list[float]:
    """Milliseconds of each run, until the task is done."""
    taken = []
    while not until.done():
        began = time.perf_counter()
        await run(kernel, "1 + 1")
        taken.append((time.perf_counter() - began) * 1000)
        await asyncio.sleep(max(EVERY_S - (time.perf_counter() - began), 0))
    return taken


async def measure(rounds: int, megabytes: int) -> None:
    intake = Intake()
    with tempfile.TemporaryDirectory() as folder:
        engine = LocalEngine(Path(folder) / "data")
        async with engine.opened():
            await measure_with(engine, intake, Path(folder) / "checkpoint", rounds, megabytes)


async def measure_with(engine: LocalEngine, intake: Intake, folder: Path, rounds: int, megabytes: int) -> None:
    figures: dict[str, list[float]] = {}

    def launch() -> Launch:
        return Launch(kernel_id=str(uuid4()), place=uuid4().hex, spec=engine.kernelspecs()["python3"])

    def note(name: str, *values: float) -> None:
        figures.setdefault(name, []).extend(values)

    async with running(engine, launch(), intake, 60) as kernel:
        await run(kernel, f"import numpy as np; a = np.ones({megabytes} * 1_000_000 // 8)")
        for _ in range(rounds):
            quiet = await round_trips(kernel, asyncio.create_task(asyncio.sleep(BEFORE_S)))
            began = time.perf_counter()
            saving = asyncio.create_task(checkpoint.save(kernel.channels, str(folder), wait_s=60, timeout_s=600))
            busy = await round_trips(kernel, saving)
            note("saved, s", time.perf_counter() - began)
            saved = await saving
            assert saved.method == "fork", saved.method_reason
            note("pause itself, ms", saved.pause_ms)
            note("longest run without, ms", max(quiet))
            note("longest run during, ms", max(busy))
            note("median run without, ms", statistics.median(quiet))
            note("median run during, ms", statistics.median(busy))
    for _ in range(rounds):
        async with running(engine, launch(), intake, 60) as kernel:
            await run(kernel, "import numpy")
            began = time.perf_counter()
            await checkpoint.load(kernel.channels, str(folder), timeout_s=60)
            note("loaded, s", time.perf_counter() - began)
            await run(kernel, f"assert a.size == {megabytes} * 1_000_000 // 8 and a[-1] == 1")
            note("loaded and used, s", time.perf_counter() - began)
            began = time.perf_counter()
            await run(kernel, "a.sum()")
            note("then summed, s", time.perf_counter() - began)
    print(f"\n{megabytes} MB in one array, {rounds} rounds\n\n| | median | least | most |\n|-|-|-|-|")
    for name, values in figures.items():
        digits = 1 if name.endswith("ms") else 2
        shown = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
        print(f"| {name} | {' | '.join(shown)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=1000)
    arguments = parser.parse_args()
    asyncio.run(measure(arguments.rounds, arguments.megabytes))


if __name__ == "__main__":
    main()
