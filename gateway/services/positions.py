"""How far each front end of a session has come, in a file that outlives this process.

It is mapped into memory, so that a note costs no system call and is there after a kill. It is no longer needed when
the machine goes down, as the kernels do with it.
"""

import json
import logging
import mmap
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)

_SLOT = 1024  # bytes: who it is, and twice what it has, of which one half counts
_WHO = slice(0, 448)
_NOTE = 448
_HALF = 284
_LONGEST_ID = _HALF // 2 - 1
_FIRST_SLOTS = 4


class Note(NamedTuple):
    """What a front end has: the last message that the kernel published, the last cell whose reply came (their ids)."""

    heard: str
    replied: str


class Position:
    """What one front end was sent last."""

    def __init__(self, positions: "Positions", slot: int) -> None:
        self._positions = positions
        self._at = slot * _SLOT
        self._map = positions.map

    @property
    def noted(self) -> Note:
        at = self._at + _NOTE
        start = at + 1 + _HALF * self._positions.map[at]
        ids = []
        for _ in Note._fields:
            end = start + 1 + self._positions.map[start]
            ids.append(self._positions.map[start + 1 : end].decode(errors="replace"))
            start = end
        return Note(*ids)

    def noting(self, note: Note) -> Callable[[], None]:
        """What notes this, fast, when it is called."""
        ids = [one.encode(errors="replace")[:_LONGEST_ID] for one in note]
        return partial(self._note, b"".join(bytes([len(one)]) + one for one in ids))

    def _note(self, text: bytes) -> None:
        """A kill at any moment leaves this note or the one before."""
        if not self._positions.holds(self._map):
            return
        map_, at = self._map, self._at + _NOTE
        half = 1 - map_[at]
        start = at + 1 + _HALF * half
        map_[start : start + len(text)] = text
        map_[at] = half

    def forget(self) -> None:
        self._positions.free(self._at // _SLOT)


class Positions:
    """Those of one session. Without room on disk none are kept, and a front end begins anew after a kill."""

    def __init__(self, path: Path) -> None:
        self.map: mmap.mmap
        self._path = path
        self._free: list[int] = []
        self._count = 0

    def of(self, session_id: str, caller: str) -> Position | None:
        """A place for the notes on a front end."""
        who = json.dumps([session_id, caller]).encode()
        if len(who) > _WHO.stop - 2:
            return None
        try:
            if not self._count:
                self._open(_FIRST_SLOTS)
            if not self._free:
                self._grow()
        except OSError as error:
            log.warning("The positions of front ends can't be kept: %s", error)
            return None
        slot = self._free.pop()
        at = slot * _SLOT
        self.map[at + 2 : at + 2 + len(who)] = who
        self.map[at : at + 2] = len(who).to_bytes(2, "little")
        return Position(self, slot)

    def holds(self, map_: mmap.mmap) -> bool:
        """Whether this is still where notes are kept."""
        return self._count > 0 and map_ is self.map

    def left(self) -> list[tuple[str, str, Position]]:
        """Session id, caller and position of the front ends that an earlier gateway had."""
        try:
            size = self._path.stat().st_size
            if size < _SLOT or size % _SLOT:
                return []
            self._open(size // _SLOT)
        except OSError:
            return []
        found, self._free = [], []
        for slot in range(self._count):
            at = slot * _SLOT
            length = int.from_bytes(self.map[at : at + 2], "little")
            if length:
                session_id, caller = json.loads(self.map[at + 2 : at + 2 + length])
                found.append((session_id, caller, Position(self, slot)))
            else:
                self._free.append(slot)
        return found

    def free(self, slot: int) -> None:
        if slot < self._count:
            self.map[slot * _SLOT : (slot + 1) * _SLOT] = bytes(_SLOT)
            self._free.append(slot)

    def remove(self) -> None:
        """None is needed any more, nor what an earlier gateway left."""
        if self._count:
            self.map.close()
            self._count, self._free = 0, []
        self._path.unlink(missing_ok=True)

    def _open(self, count: int) -> None:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, count * _SLOT)  # a page that the disk has no room for would end this process
            self.map = mmap.mmap(fd, count * _SLOT)
        finally:
            os.close(fd)
        self._free, self._count = list(range(count)), count

    def _grow(self) -> None:
        count = 2 * self._count
        with open(self._path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, count * _SLOT)
        self.map.resize(count * _SLOT)
        self._free, self._count = list(range(self._count, count)), count
