"""Sees to it that what kernels write stays within bounds: past its limit, no file of a session can grow.

Nothing is ended for that: its variables are there, and as soon as enough is deleted it may write again. Only what
fills the disk in another way (folders, empty files without end) is ended.
"""

import asyncio
import contextlib
import logging
import os
import stat
import time
from collections.abc import Iterable, Mapping

from kernels.children import Child
from kernels.paths import walk

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_SHARE = 20  # of the time goes to looking, one part in so many
_MOST_FILES = 1_000_000
_TOO_MUCH = 2  # times the limit


class DiskWatch:
    """Looks at kernels that have used the processor since, and at those that may not write."""

    def __init__(self, children: Mapping[str, Child]) -> None:
        self._children = children
        self._seen: dict[str, float] = {}
        self._next: dict[str, float] = {}
        self._refused: set[str] = set()

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for child in list(self._children.values()):
                if child.order.disk_bytes is not None and child.running and self._is_due(child):
                    try:
                        await self._look(child, child.order.disk_bytes)
                    except Exception:
                        log.exception("The files of kernel %s could not be looked at", child.id)
            for known in (self._seen, self._next):
                for gone in known.keys() - self._children.keys():
                    del known[gone]
            self._refused &= self._children.keys()

    def _is_due(self, child: Child) -> bool:
        if time.monotonic() < self._next.get(child.id, 0):
            return False
        used = child.cpu_seconds()
        idle, self._seen[child.id] = self._seen.get(child.id) == used, used
        return not idle or child.id in self._refused

    async def _look(self, child: Child, limit_bytes: int) -> None:
        began = time.monotonic()
        used_bytes, count = await asyncio.to_thread(measured, child.order.disk_paths)
        now = time.monotonic()
        self._next[child.id] = now + _SHARE * (now - began)
        if used_bytes > _TOO_MUCH * limit_bytes or count > _MOST_FILES:
            await child.kill(
                f"Out of disk: the session used {used_bytes:,} bytes in {count:,} files; its limit is {limit_bytes:,}."
            )
        elif used_bytes > limit_bytes:
            if child.id not in self._refused:
                self._refused.add(child.id)
                child.note(
                    f"The session's files take {used_bytes:,} bytes, its limit is {limit_bytes:,}: "
                    "none can grow until some are deleted."
                )
            child.let_files_grow(False)  # again, for what was started since
        elif child.id in self._refused:
            self._refused.discard(child.id)
            child.let_files_grow(True)


def measured(paths: Iterable[str]) -> tuple[int, int]:
    """Bytes on disk below these folders, hard links once, and how many files and folders that are."""
    used_bytes = count = 0
    linked: set[tuple[int, int]] = set()
    for path in paths:
        with contextlib.suppress(OSError):
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                for _, _, entries in walk(folder, skip=lambda name: False, on_error=lambda parts, error: None):
                    for _, status in entries:
                        count += 1
                        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                            if (status.st_dev, status.st_ino) in linked:
                                continue
                            linked.add((status.st_dev, status.st_ino))
                        used_bytes += status.st_blocks * 512
                    if count > _MOST_FILES:
                        return used_bytes, count
            finally:
                os.close(folder)
    return used_bytes, count
