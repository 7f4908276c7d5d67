"""The kernel itself, without a gateway: stock ipykernel beside ours, started ordinarily and forked from a built one.

    python -m tests.bench.bench_kernel [--rounds N] [--kernels N]

Prints medians; all sides are run in turn, by the same plain ZMQ client, in the same environment. Memory is each
process's proportional share (Pss), that of the process they are forked from included.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import zmq

from tests.kernels.inside.kernels import Client, Forked, forked, identity_at, ordinary

Start = Callable[[ExitStack, dict[str, Any]], int]


def pss_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no Pss")


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def timed(work: Callable[[], Any]) -> float:
    """Milliseconds."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def measure(folder: Path, start: Start, rounds: int, kernels: int, extra: list[int]) -> dict[str, float]:
    context: zmq.Context[Any] = zmq.Context()
    found: dict[str, list[float]] = {}
    with ExitStack() as stack:
        stack.callback(context.destroy, linger=0)
        clients: list[Client] = []
        for number in range(kernels):
            identity = identity_at(folder / str(number))
            began = time.perf_counter()
            client = Client(context, identity, start(stack, identity))
            assert client.run("1 + 1") == "2"
            found.setdefault("start → first result, ms", []).append((time.perf_counter() - began) * 1000)
            stack.callback(client.kill)
            clients.append(client)
        for _ in range(50):
            clients[0].run("1 + 1")
        for what, code, times in (("warm 1 + 1, ms", "1 + 1", 60), ("100,000 prints, ms", PRINTS, 1)):
            found[what] = [timed(lambda: clients[0].run(code)) for _ in range(rounds * times)]  # noqa: B023
        pids = [client.pid for client in clients]
        memory = sum(pss_bytes(pid) for pid in [*pids[1:], *extra]) / (len(pids) - 1)
        found["memory of an idle kernel, MB"] = [memory / 1e6]
        found["threads"] = [threads(pids[-1])]
    return {what: statistics.median(values) for what, values in found.items()}


PRINTS = "for i in range(100_000): print(i)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kernels", type=int, default=10)
    arguments = parser.parse_args()

    def stock(stack: ExitStack, identity: dict[str, Any]) -> int:
        return stack.enter_context(ordinary(identity, "-m", "ipykernel_launcher"))

    def ours(stack: ExitStack, identity: dict[str, Any]) -> int:
        return stack.enter_context(ordinary(identity))

    def from_fork(zygote: Forked) -> Start:
        return lambda stack, identity: zygote.start(identity)

    table: dict[str, dict[str, float]] = {}
    with forked() as zygote:
        sides: list[tuple[str, Start, list[int]]] = [
            ("stock ipykernel", stock, []),
            ("ours, ordinary", ours, []),
            ("ours, forked", from_fork(zygote), [zygote.pid]),
        ]
        for name, start, extra in sides:
            with tempfile.TemporaryDirectory(prefix="k-") as folder:
                for what, value in measure(Path(folder), start, arguments.rounds, arguments.kernels, extra).items():
                    table.setdefault(what, {})[name] = value
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {arguments.kernels} kernels a side\n")
    print(f"{'':32}" + "".join(f"{name:>18}" for name, _, _ in sides))
    for what, by_side in table.items():
        print(f"{what:32}" + "".join(f"{value:18,.1f}" for value in by_side.values()))


if __name__ == "__main__":
    main()
