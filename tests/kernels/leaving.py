"""A gateway in short, to be killed: starts a kernel, runs a cell, begins another one, and waits.

Prints what it has begun, then a line for each event.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

from kernels.engine import Launch, Limits
from kernels.engines.local import LocalEngine
from kernels.intake import Intake
from kernels.kernel import running


async def main(data_dir: str, kernel_name: str, first: str, second: str, memory_bytes: str = "") -> None:
    engine = LocalEngine(Path(data_dir))
    rest: dict[str, Any] = {"on_input": lambda prompt, password: None, "output_limit_bytes": 10_000_000}
    async with engine.opened():
        if not kernel_name:
            print(json.dumps({}), flush=True)
            await asyncio.Event().wait()
        launch = Launch(
            kernel_id=str(uuid4()),
            place="place",
            spec=engine.kernelspecs()[kernel_name],
            limits=Limits(memory_bytes=int(memory_bytes) if memory_bytes else None),
        )
        async with running(engine, launch, Intake(), 60) as kernel:
            async with kernel.execute(uuid4().hex, first, on_event=lambda event: None, **rest) as cell:
                await kernel.finish(cell)
            run_id = uuid4().hex
            async with kernel.execute(
                run_id, second, on_event=lambda event: print("event", flush=True), **rest
            ) as cell:
                begun = {"kernel_id": launch.kernel_id, "run_id": run_id, "started_at": cell.started_at}
                print(json.dumps(begun), flush=True)
                await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
