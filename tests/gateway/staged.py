"""Gateways that end themselves, their kernels, or both, once they have come as far as a test has ordered.

    python -m tests.gateway.staged FOLDER

For every line on stdin one gateway serves `FOLDER/data`, a fork of this process, which itself has no threads, and its
address is printed; the next one when it has ended. Orders are those of `tests.gateway.striker`. Stages are those that
snapshots tell of, every write of a session or snapshot to the store, every checkpoint that was written or loaded, every
start, fork and end of a kernel, and every copy of files; those of their keeper are in `tests.gateway.staged_keeper`.
"""

import asyncio
import contextlib
import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import gateway.app
import kernels.checkpoint
import kernels.duplicates
import kernels.engines.keepers
import kernels.engines.local
from gateway.config import Settings
from gateway.stores.sqlite import SqliteStore
from kernels.kernel import Kernel
from tests.gateway.striker import Striker, end_this
from tests.gateways import kernels_of


def end_kernels(folder: Path) -> None:
    for kernel in kernels_of(folder / "data"):
        with contextlib.suppress(psutil.NoSuchProcess):
            kernel.kill()


def end_both(folder: Path) -> None:
    end_kernels(folder)
    end_this()


def make_staged(folder: Path) -> None:
    end: dict[str, Callable[[], object]] = {
        "gateway": end_this,
        "kernel": partial(end_kernels, folder),
        "both": partial(end_both, folder),
    }
    striker = Striker(folder, end)
    kernels.engines.keepers.PROGRAM = "tests.gateway.staged_keeper"
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
    make_staged(folder)
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
