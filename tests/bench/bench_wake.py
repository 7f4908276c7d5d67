"""Sleep and wake: how long sessions of three sizes take, and all state cases as a table.

    python -m tests.bench.bench_wake [--rounds N]

Medians over REST, from the request to its answer. A wake is the first run of a session that sleeps: start of a kernel,
variables, `x is not None`. Beside it, in the same run: the first run of a new session, which has nothing to bring back.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from tests.api import Api
from tests.gateways import gateway_process
from tests.kernels.inside.checkpoint_cases import CASES
from tests.kernels.inside.test_checkpoint import Sessions, started_child

SIZES = {
    "empty": "x = 1",
    "50 MB frame": "import numpy, pandas; x = pandas.DataFrame(numpy.random.rand(625_000, 10))",
    "1 GB array": "import numpy; x = numpy.random.rand(125_000_000)",
}


async def timed(work: Awaitable[Any]) -> float:
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def sleep_and_wake(rounds: int) -> None:
    print(f"{'session':14}{'sleep s':>10}{'wake s':>10}{'new s':>10}")
    with tempfile.TemporaryDirectory() as folder:
        async with gateway_process(Path(folder) / "data", autosave=False) as gateway, Api(gateway.url) as api:
            for name, code in SIZES.items():
                sleeps, wakes, news = [], [], []
                for number in range(rounds):
                    session_id = f"{name.replace(' ', '-')}-{number}"
                    news.append(await timed(api.run(session_id, "1")))
                    await api.run(session_id, code)
                    sleeps.append(await timed(api.post(f"/api/sessions/{session_id}/hibernate")))
                    wakes.append(await timed(api.run(session_id, "x is not None")))
                    await api.call("DELETE", f"/api/sessions/{session_id}?purge=true")
                medians = [statistics.median(found) for found in (sleeps, wakes, news)]
                print(f"{name:14}" + "".join(f"{median:10.3f}" for median in medians))


def state_cases() -> None:
    """Each case through a session that is saved and one that is restored."""
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder, started_child() as child:
        for number, case in enumerate(CASES):
            place = Path(folder) / str(number)
            place.mkdir()
            found[verdict(Sessions(child, place), case.setup, case.check)] += 1
    print(f"\n{'state cases':14}" + "".join(f"{kind:>10}" for kind in ("exact", "reported", "wrong", "not run")))
    print(f"{len(CASES):<14}" + "".join(f"{found[kind]:10}" for kind in ("exact", "reported", "wrong", "not run")))


def verdict(sessions: Sessions, setup: str, check: str) -> str:
    saved = sessions.ask("save", setup)
    if saved["error"] is not None:
        return "not run" if "ModuleNotFoundError" in saved["error"] else "wrong"
    restored = sessions.ask("restore", check)
    if restored["error"] is not None:
        return "wrong"
    told = saved["report"]["unsaved"] + saved["report"]["warnings"] + restored["report"]["failed"]
    return "reported" if told else "exact"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds: int = parser.parse_args().rounds
    asyncio.run(sleep_and_wake(rounds))
    state_cases()


if __name__ == "__main__":
    main()
