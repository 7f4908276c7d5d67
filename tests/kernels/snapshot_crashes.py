"""Ends a change of snapshots with kill -9 at each of its stages, and looks at what is left.

    python -m tests.kernels.snapshot_crashes save|delete|copy|take_in|restore FOLDER

Every attempt and every look is a fork of this process, which itself has no threads. Prints how many stages there were.
"""

import asyncio
import os
import shutil
import signal
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from itertools import count
from pathlib import Path
from typing import Any

from tests.kernels.conftest import Vault
from tests.kernels.test_archives import everything

STATE = bytes(range(256)) * (9 << 12)  # 9 MiB: large enough not to be copied


async def prepare(folder: Path) -> None:
    vault = Vault(folder)
    (vault.root() / "sub").mkdir()
    (vault.root() / "sub" / "file").write_text("before")
    await vault.save_state("old", STATE[: 1 << 20])
    (folder / "tarball").write_bytes(b"".join([piece async for piece in vault.snapshots.export("one", "old")]))
    (vault.root() / "sub" / "file").write_text("after")
    (vault.root() / "more").write_text("more")


async def save(vault: Vault) -> None:
    await vault.save_state("new", STATE)


async def delete(vault: Vault) -> None:
    await vault.snapshots.delete("one", "old")


async def copy(vault: Vault) -> None:
    await vault.snapshots.copy("one", "old", "two", "new")


async def take_in(vault: Vault) -> None:
    data = (vault.folder / "tarball").read_bytes()

    async def pieces() -> AsyncIterator[bytes]:
        yield data

    await vault.snapshots.take_in("two", "new", pieces(), limit_bytes=1 << 30, max_files=100)


async def restore(vault: Vault) -> None:
    await vault.snapshots.restore_files("one", "old")


async def restore_some(vault: Vault) -> None:
    await vault.snapshots.restore_files("one", "old", paths=["sub"])


CHANGES: dict[str, Callable[[Vault], Awaitable[None]]] = {
    change.__name__: change for change in (save, delete, copy, take_in, restore, restore_some)
}


async def look(folder: Path, change: str, finished: bool) -> None:
    """Everything is as before, or as after."""
    vault = Vault(folder)
    for place in ("one", "two"):
        await vault.snapshots.usage(place)
        await (await vault.workspace(place)).usage()
        for snapshot_id in await vault.snapshots.ids(place):
            await vault.snapshots.verify(place, snapshot_id)
    there = [*await vault.snapshots.ids("one"), *await vault.snapshots.ids("two")]
    before, after = {
        "save": (["old"], ["new", "old"]),
        "delete": (["old"], []),
        "copy": (["old"], ["old", "new"]),
        "take_in": (["old"], ["old", "new"]),
    }.get(change, (["old"], ["old"]))
    assert there == after or (there == before and not finished), there
    files = {name: found[-1] for name, found in everything(vault.root()).items()}
    old = {"sub": None, "sub/file": b"after", "more": b"more"}
    new = {
        "restore": {"sub": None, "sub/file": b"before"},
        "restore_some": {"sub": None, "sub/file": b"before", "more": b"more"},
    }.get(change, old)
    assert files == new or (files == old and not finished), files
    await vault.save("once-more")
    assert vault.leftovers() == []


async def attempt(folder: Path, change: str, fatal: int) -> None:
    stages = count()

    def on_stage(name: str) -> None:
        if next(stages) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    await CHANGES[change](Vault(folder, on_stage=on_stage))


def forked(work: Coroutine[Any, Any, None]) -> bool:
    """Whether it came to its end; what it raises is printed and ends everything."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            asyncio.run(work)
            code = 0
        finally:
            if code:
                traceback.print_exc()
            os._exit(code)
    work.close()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status > 0:
        sys.exit(status)
    return status == 0


def main(change: str, base: Path) -> None:
    assert forked(prepare(base / "prepared"))
    for fatal in count():
        folder = base / f"attempt-{fatal}"
        shutil.copytree(base / "prepared", folder, symlinks=True)
        finished = forked(attempt(folder, change, fatal))
        assert forked(look(folder, change, finished))
        shutil.rmtree(folder)
        if finished:
            print(fatal)
            return


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
