"""Live duplicates beside those made from a snapshot, of sessions of three sizes.

    python -m tests.bench.bench_duplicates [--rounds N]

Medians over REST in ms: until the duplicate is answered, and from then until its first run is answered too. Both ways
take turns in one run, on the same source.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

from tests.api import Api
from tests.gateways import gateway_process

SIZES = {
    "empty": "x = 1",
    "100 MB": "import numpy; x = numpy.random.rand(12_500_000)",
    "1 GB": "import numpy; x = numpy.random.rand(125_000_000)",
}


async def copied(api: Api, source: str, method: str) -> tuple[float, float]:
    """How long until it was answered, and until its first run was, in ms."""
    body = None if method == "fork" else {"snapshot_id": (await api.post(f"/api/sessions/{source}/snapshots"))["id"]}
    began = time.perf_counter()
    made = await api.post(f"/api/sessions/{source}/duplicate", body, 201)
    answered = time.perf_counter()
    assert made["method"] == method, made["method_reason"]
    run = await api.run(made["id"], "x is not None")
    ended = time.perf_counter()
    assert run["result"] == "True", run
    await api.call("DELETE", f"/api/sessions/{made['id']}?purge=true")
    return (answered - began) * 1000, (ended - began) * 1000


async def measure(rounds: int) -> None:
    columns = ("fork: answer", "first run", "snapshot: answer", "first run")
    print(f"{'session':10}" + "".join(f"{name:>18}" for name in columns))
    with tempfile.TemporaryDirectory() as folder:
        async with gateway_process(Path(folder) / "data", autosave=False) as gateway, Api(gateway.url) as api:
            for name, code in SIZES.items():
                source = name.replace(" ", "-")
                await api.run(source, code)
                await copied(api, source, "fork")
                taken = [
                    [*await copied(api, source, "fork"), *await copied(api, source, "snapshot")] for _ in range(rounds)
                ]
                medians = [statistics.median(column) for column in zip(*taken, strict=True)]
                print(f"{name:10}" + "".join(f"{median:18.1f}" for median in medians), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds: int = parser.parse_args().rounds
    asyncio.run(measure(rounds))


if __name__ == "__main__":
    main()
