"""Gateways that end themselves, their kernels, or both, once they have come as far as a test has ordered.

    python -m tests.gateway.staged FOLDER

For every line on stdin one gateway serves `FOLDER/data`, a fork of this process, which itself has no threads, and its
address is printed; the next one when it has ended. An order is a file `FOLDER/order`: `ATTEMPT STAGE VICTIM`, stages
counted from when it was written; what was struck is told in `FOLDER/struck`. Stages are those that snapshots tell of,
every write of a session or snapshot to the store, every checkpoint that was written or loaded, every start, fork and
end of a kernel, and every copy of files.
"""

import asyncio
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import psutil

import gateway.app
import kernels.checkpoint
import kernels.duplicates
import kernels.engines.local
from gateway.config import Settings
from gateway.stores.sqlite import SqliteStore
from kernels.kernel import Kernel
from tests.gateways import kernels_of


class Striker:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._attempt = ""
        self._stages = 0

    def on_stage(self, name: str) -> None:
        """Come to a stage, on whatever thread; does not return if it is the one at which the gateway is to end."""
        with self._lock:
            try:
                attempt, stage, victim = (self._folder / "order").read_text().split()
            except FileNotFoundError:
                return
            if attempt != self._attempt:
                self._attempt, self._stages = attempt, 0
            self._stages += 1
            if self._stages == int(stage):
                (self._folder / "struck").write_text(name)
                if victim != "gateway":
                    for kernel in kernels_of(self._folder / "data"):
                        with contextlib.suppress(psutil.NoSuchProcess):
                            kernel.kill()
                if victim != "kernel":
                    os.kill(os.getpid(), signal.SIGKILL)

    def after(self, place: Any, name: str) -> None:
        """Make the end of `place.name` a stage."""
        work: Callable[..., Awaitable[Any]] = getattr(place, name)

        @wraps(work)
        async def worked(*args: Any, **kwargs: Any) -> Any:
            result = await work(*args, **kwargs)
            self.on_stage(name)
            return result

        setattr(place, name, worked)


def make_staged(striker: Striker) -> None:
    local: Any = kernels.engines.local
    local.LocalSnapshots = partial(local.LocalSnapshots, on_stage=striker.on_stage)
    for name in ("create_session", "update_session", "move_session", "put_snapshot", "delete_snapshot"):
        striker.after(SqliteStore, name)
    for name in ("save", "load"):
        striker.after(kernels.checkpoint, name)
    for name in ("attach", "shut_down"):
        striker.after(Kernel, name)
    for name in ("copy_files", "copy_environment"):
        striker.after(local.LocalEngine, name)
    striker.after(kernels.duplicates, "fork")


def serve(folder: Path) -> None:
    settings = Settings(port=0, data_dir=folder / "data", autosave=False)
    asyncio.run(gateway.app.serve(settings, lambda line: print(line, flush=True)))


def main(folder: Path) -> None:
    make_staged(Striker(folder))
    for _ in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                serve(folder)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
