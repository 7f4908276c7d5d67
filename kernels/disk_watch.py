"""Sees to it that what kernels write stays within bounds: past its limit, no file of a session can grow.

Nothing is ended for that: its variables are there, and as soon as enough is deleted it may write again. Only what
fills the disk in another way (folders, empty files without end) is ended. Files that are deleted but still open count.
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
        self._free: dict[str, int] = {}  # bytes of the disk, when it was last looked at
        self._worked: set[str] = set()  # since then
        self._refused: set[str] = set()

    async def watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            for child in list(self._children.values()):
                if not child.running:
                    continue
                try:
                    if self._works(child):
                        await child.shorten_log()
                    if child.order.disk_bytes is not None and self._is_due(child, child.order.disk_bytes):
                        await self._look(child, child.order.disk_bytes)
                except Exception:
                    log.exception("The files of kernel %s could not be looked at", child.id)
            for known in (self._seen, self._next, self._free):
                for gone in known.keys() - self._children.keys():
                    del known[gone]
            self._worked &= self._children.keys()
            self._refused &= self._children.keys()

    def _works(self, child: Child) -> bool:
        used = child.cpu_seconds()
        if self._seen.get(child.id) == used:
            return False
        self._seen[child.id] = used
        self._worked.add(child.id)
        return True

    def _is_due(self, child: Child, limit_bytes: int) -> bool:
        if child.id not in self._worked and child.id not in self._refused:
            return False
        if time.monotonic() >= self._next.get(child.id, 0):
            return True
        # Many files take long to look at, and so are looked at seldom: not while it may be them that fill the disk.
        return self._free.get(child.id, 0) - _free_bytes(child.order.disk_paths) > limit_bytes

    async def _look(self, child: Child, limit_bytes: int) -> None:
        began = time.monotonic()
        self._worked.discard(child.id)
        self._free[child.id] = _free_bytes(child.order.disk_paths)
        used_bytes, count = await asyncio.to_thread(_measured, child, child.family())
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


def _free_bytes(paths: Iterable[str]) -> int:
    """Of the disk that these folders are on; 0 if they are gone."""
    for path in paths:
        with contextlib.suppress(OSError):
            about = os.statvfs(path)
            return about.f_bavail * about.f_frsize
    return 0


def _measured(child: Child, pids: Iterable[int]) -> tuple[int, int]:
    """All that counts. Where its variables pass through, as much as it may have of them does not."""
    paths = [*child.order.disk_paths, str(child.folder)]
    used_bytes, count = measured(paths)
    passing_bytes, passing = measured(child.order.state_paths)
    used_bytes += max(0, passing_bytes - (child.order.memory_bytes or 0))
    return used_bytes + deleted_bytes([*paths, *child.order.state_paths], pids), count + passing


def deleted_bytes(paths: Iterable[str], pids: Iterable[int]) -> int:
    """Bytes on the disk of these folders in files that have no name any more, and that these processes have open."""
    devices: set[int] = set()
    for path in paths:
        with contextlib.suppress(OSError):
            devices.add(os.stat(path).st_dev)
    found: dict[tuple[int, int], int] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    status = os.stat(f"/proc/{pid}/fd/{name}")
                    if status.st_nlink == 0 and stat.S_ISREG(status.st_mode) and status.st_dev in devices:
                        found[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(found.values())


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
