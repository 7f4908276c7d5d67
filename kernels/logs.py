"""What kernels and setups print: a folder of logs for each place, beside the places and never in them.

Session processes run as the same user as we do, so whatever lies there may be theirs. A log that is a link,
a pipe or a device is refused, and finding that out never waits for anybody.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

LIMIT_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class Log:
    """One log. Methods raise `OSError` when something else is in its place."""

    path: Path

    @contextmanager
    def opened(self, *, anew: bool = False) -> Iterator[TextIO]:
        """The log to append to; one that has grown too long keeps its end, with `anew` nothing."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with open(
            self._open(os.O_RDWR | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8", errors="backslashreplace"
        ) as output:
            size = os.fstat(output.fileno()).st_size
            if anew or size > LIMIT_BYTES:
                end = b"" if anew else os.pread(output.fileno(), LIMIT_BYTES // 4, size - LIMIT_BYTES // 4)
                os.ftruncate(output.fileno(), 0)
                os.write(output.fileno(), end)
            yield output

    def is_too_long(self) -> bool:
        return self.path.stat(follow_symlinks=False).st_size > LIMIT_BYTES

    def shorten(self) -> None:
        """To its end, if it is too long."""
        with self.opened():
            pass

    def tail(self, limit_bytes: int, start: int = 0) -> str:
        """Its end, of what lies after `start`; all of its end if it was shortened since."""
        try:
            fd = self._open(os.O_RDONLY)
        except FileNotFoundError:
            return ""
        with open(fd, "rb") as text:
            size = os.fstat(fd).st_size
            text.seek(max(start if start <= size else 0, size - limit_bytes))
            return text.read(limit_bytes).decode(errors="replace")

    def _open(self, flags: int) -> int:
        folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return open_regular(self.path.name, flags, folder)
        finally:
            os.close(folder)


def open_regular(name: str, flags: int, folder: int) -> int:
    """Open a regular file in an open folder, without waiting. Raises `OSError` for a link or anything else."""
    fd = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600, dir_fd=folder)
    with contextlib.ExitStack() as closing:
        closing.callback(os.close, fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", name)
        os.set_blocking(fd, True)  # a process that gets it as its output must not find out how we opened it
        closing.pop_all()
    return fd
