"""A keeper that ends itself, the source or the copy, once a live duplicate has come as far as a test has ordered.

    python -m tests.gateway.staged_keeper FOLDER/data VERSION

Orders are those of `tests.gateway.striker`. Stages are each step that it takes for a copy.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import kernels.keeper
import kernels.offers
from tests.gateway.striker import Striker, end_this

pids: dict[str, int] = {}


def end(who: str) -> None:
    with suppress(KeyError, ProcessLookupError):  # it may not be there yet
        os.kill(pids[who], signal.SIGKILL)


def noting_pids() -> None:
    offers: Any = kernels.offers
    arrived, only_child = offers.Offer._arrived, offers._only_child

    async def noted(self: Any) -> tuple[int, int]:
        pid, pidfd = await arrived(self)
        pids.update(source=self._source_pid, copy=pid)
        return pid, pidfd

    def noted_child(pid: int) -> tuple[int, int]:
        child, pidfd = only_child(pid)
        pids["copy"] = child
        return child, pidfd

    offers.Offer._arrived, offers._only_child = noted, noted_child


def main(data_dir: Path, version: str) -> None:
    noting_pids()
    striker = Striker(
        data_dir.parent, {"keeper": end_this, "source": lambda: end("source"), "copy": lambda: end("copy")}
    )
    for name in ("_offer", "_duplicate", "_taken_on", "_withdraw"):
        striker.after(kernels.keeper.Keeper, name)
    for name in ("lodge", "_lodged", "_arrived", "_tell", "_heard", "_taken_in", "accept"):
        striker.after(kernels.offers.Offer, name)
    kernels.keeper.main(data_dir, version)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
