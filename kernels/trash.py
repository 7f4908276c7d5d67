"""Folders that are gone for everybody, and that are deleted one after the other while nobody waits for it.

What a process that has ended left in here is deleted by the next one.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from secrets import token_hex

from kernels.paths import delete_tree
from kernels.threads import in_thread

log = logging.getLogger(__name__)


class Trash:
    """One folder, on the same file system as what is put into it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._wake = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Deletes what is in it; all of it is gone when this is left, unless that fails."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._loop = asyncio.get_running_loop()
        emptying = asyncio.create_task(self._keep_empty())
        try:
            yield
        finally:
            self._loop = None
            emptying.cancel()
            with suppress(asyncio.CancelledError):
                await emptying
            await in_thread(self._empty)

    def take(self, folder: Path) -> None:
        """Blocks, but not for long. Raises `OSError` if it stays; one that is not there is no error."""
        try:
            put_away(folder, self._folder / token_hex(8))
        except FileNotFoundError:
            if os.path.lexists(folder):  # there is no trash yet
                _delete(folder)
            return
        if self._loop is None:
            self._empty()
        else:
            self._loop.call_soon_threadsafe(self._wake.set)

    async def _keep_empty(self) -> None:
        while True:
            self._wake.clear()
            await in_thread(self._empty)
            await self._wake.wait()

    def _empty(self) -> None:
        for path in self._folder.iterdir():
            try:
                _delete(path)
            except OSError as error:
                log.warning("A folder in the trash can't be deleted: %s", error)


def put_away(folder: Path, target: Path) -> None:
    os.rename(folder, target)


def _delete(path: Path) -> None:
    """Raises `OSError` if something of it stays."""
    with suppress(FileNotFoundError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            delete_tree(os.fsencode(path.name), folder)
        finally:
            os.close(folder)
