"""What a kernel has published, numbered, in a folder on disk that never grows past its bound.

One process writes, without waiting for the disk; any other of this machine reads meanwhile. At least the newest
half of the bound is there. What was lost shows in the numbers.
"""

import logging
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

log = logging.getLogger(__name__)

DEFAULT_BYTES = 64 * 2**20

_HEAD = struct.Struct("<4sQQI")  # mark, number, bytes that follow, count of frames
_MARK = b"\xf0jnl"
_LENGTH = struct.Struct("<I")
_LARGE_BYTES = 2**18


@dataclass(frozen=True, slots=True)
class Entry:
    """One message as it came. `lost` is how many just before it are not there any more.

    No frames: it was larger than the journal holds.
    """

    number: int
    frames: tuple[bytes, ...]
    lost: int = 0


class JournalWriter:
    """Appends messages. Never raises for want of disk: what can't be written is lost, as its number tells."""

    def __init__(self, folder: Path, limit_bytes: int = DEFAULT_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.number = 0
        self._folder = folder
        self._segment_bytes = limit_bytes // 2
        self._fd: int | None = None
        self._size_bytes = 0
        self._failing = False

    @property
    def most_bytes(self) -> int:
        """Of one message; no larger one is kept."""
        return self._segment_bytes - 2**16

    def add(self, messages: Iterable[Sequence[bytes]]) -> None:
        pieces: list[bytes] = []
        waiting_bytes, first = 0, self.number + 1
        for frames in messages:
            self.number += 1
            body_bytes = sum(map(len, frames)) + _LENGTH.size * len(frames)
            if _HEAD.size + body_bytes > self._segment_bytes:
                frames, body_bytes = (), 0
            if self._size_bytes + waiting_bytes + _HEAD.size + body_bytes > self._segment_bytes:
                self._write(pieces, first)
                self._close_segment()
                pieces, waiting_bytes, first = [], 0, self.number
            pieces.append(_HEAD.pack(_MARK, self.number, body_bytes, len(frames)))
            pieces.extend([_LENGTH.pack(len(frame)) for frame in frames])
            pieces.extend(frames)
            waiting_bytes += _HEAD.size + body_bytes
        self._write(pieces, first)

    def _write(self, pieces: list[bytes], first: int) -> None:
        if not pieces:
            return
        try:
            if self._fd is None:
                self._open_segment(first)
            assert self._fd is not None
            for whole in _joined(pieces):
                rest = memoryview(whole)
                while rest:
                    rest = rest[os.write(self._fd, rest) :]
            self._size_bytes = os.lseek(self._fd, 0, os.SEEK_CUR)
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.warning("The journal %s can't be written, messages are lost: %s", self._folder.name, error)
            self._failing = True
            if self._fd is not None:  # no half of a message stays
                os.ftruncate(self._fd, self._size_bytes)
                os.lseek(self._fd, self._size_bytes, os.SEEK_SET)

    def _open_segment(self, first: int) -> None:
        for old in _segments(self._folder)[:-1]:
            old.unlink(missing_ok=True)
        path = self._folder / f"{first:020d}"
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._size_bytes = 0

    def _close_segment(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
        self._fd, self._size_bytes = None, 0

    def close(self) -> None:
        self._close_segment()


class JournalReader:
    """Reads on from where it has come to, also while more is written."""

    def __init__(self, folder: Path, after: int = 0) -> None:
        self._folder = folder
        self._after = after
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    def read(self, most_bytes: int = 2**20) -> list[Entry]:
        """The next messages, about as many bytes as asked for; none at the end, for now."""
        found: list[Entry] = []
        size_bytes = 0
        while size_bytes < most_bytes:
            entry = self._next()
            if entry is None:
                newer = self._newer()
                if newer is None:
                    break
                if (entry := self._next()) is None:  # nothing was added to the older one before the newer was begun
                    self._open(newer)
                    continue
            if entry.number > self._after:
                found.append(Entry(entry.number, entry.frames, entry.number - self._after - 1))
                size_bytes += sum(map(len, entry.frames))
                self._after = entry.number
        return found

    def _newer(self) -> Path | None:
        """The segment to read after this one, at first the one that holds what is wanted."""
        segments = _segments(self._folder)
        if self._path is not None:
            return next((path for path in segments if path.name > self._path.name), None)
        wanted = f"{self._after + 1:020d}"
        return next((path for path in reversed(segments) if path.name <= wanted), segments[0] if segments else None)

    def _open(self, path: Path) -> None:
        self.close()
        self._path = path
        try:
            self._file = open(path, "rb")  # noqa: SIM115 - closed by `close`
        except FileNotFoundError:
            self._file = None

    def _next(self) -> Entry | None:
        """One more message of this segment; None if there is no whole one."""
        if self._file is None:
            return None
        start = self._file.tell()
        head = self._file.read(_HEAD.size)
        if len(head) == _HEAD.size:
            mark, number, body_bytes, count = _HEAD.unpack(head)
            if mark == _MARK and number <= self._after and self._holds(body_bytes):
                self._file.seek(body_bytes, os.SEEK_CUR)
                return Entry(number, ())
            if mark == _MARK:
                body = self._file.read(body_bytes)
                if len(body) == body_bytes:
                    return Entry(number, _frames(body, count))
        self._file.seek(start)
        return None

    def _holds(self, more_bytes: int) -> bool:
        assert self._file is not None
        return self._file.tell() + more_bytes <= os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _joined(pieces: list[bytes]) -> Iterator[bytes]:
    """The same bytes in few pieces; what is large is not copied."""
    small: list[bytes] = []
    for piece in pieces:
        if len(piece) < _LARGE_BYTES:
            small.append(piece)
        else:
            yield b"".join(small)
            yield piece
            small = []
    yield b"".join(small)


def _segments(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name.isdigit())
    except FileNotFoundError:
        return []


def _frames(body: bytes, count: int) -> tuple[bytes, ...]:
    lengths = struct.unpack_from(f"<{count}I", body)
    frames, at = [], _LENGTH.size * count
    for length in lengths:
        frames.append(body[at : at + length])
        at += length
    return tuple(frames)
