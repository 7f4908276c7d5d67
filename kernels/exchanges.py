"""Folders in which we and the kernel of a place hand each other files: it sees nothing else of ours.

`out/` it may write to, `in/` it can only read where it stands behind walls. What a process that is gone has left in
them is deleted when they are used next.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Literal

from kernels.paths import delete_tree
from kernels.swaps import is_free

Side = Literal["in", "out"]
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LEFT = 1000


class Exchanges:
    """Of all places, under one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def at(self, place: str, side: Side) -> Path:
        return self._folder / place / side

    def make(self, place: str) -> None:
        for side in ("in", "out"):
            self.at(place, side).mkdir(parents=True, exist_ok=True, mode=0o700)

    @contextmanager
    def lent(self, place: str, side: Side) -> Iterator[tuple[Path, int]]:
        """An empty folder on that side and its descriptor, gone after the block.

        The kernel may put anything in its place, so what is read from it is opened through the descriptor.
        """
        self.make(place)
        name = token_hex(8)
        parent = os.open(self._folder / place, _FOLDER)
        try:
            fcntl.flock(parent, fcntl.LOCK_EX)
            there = os.open(side, _FOLDER, dir_fd=parent)
            try:
                _clear(there)
                os.mkdir(name, 0o700, dir_fd=parent)  # where the kernel can't lock it before us
                fd = os.open(name, _FOLDER, dir_fd=parent)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(name, name, src_dir_fd=parent, dst_dir_fd=there)
            finally:
                fcntl.flock(parent, fcntl.LOCK_UN)
            try:
                yield self.at(place, side) / name, fd
            finally:
                os.close(fd)
                with suppress(OSError):
                    delete_tree(os.fsencode(name), there)
                os.close(there)
        finally:
            os.close(parent)

    def remove(self, place: str) -> None:
        with suppress(FileNotFoundError):
            folder = os.open(self._folder, _FOLDER)
            try:
                delete_tree(os.fsencode(place), folder)
            finally:
                os.close(folder)


def _clear(side: int) -> None:
    with os.scandir(side) as found:
        left = [os.fsencode(entry.name) for entry, _ in zip(found, range(_MOST_LEFT), strict=False)]
    for name in left:
        with suppress(OSError):
            if is_free(name, side):
                delete_tree(name, side)
