"""A folder of files copied beside itself: shared blocks where the file system has them, else as fast as it can copy.

Whatever a session's processes do to it meanwhile, nothing outside of it is read, and what could not be copied is named.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import closing, suppress

from kernels.engine import Skipped
from kernels.paths import Folders, Parts, is_hidden, open_anyway, show, walk

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FICLONE = 0x40049409
_AT_ONCE = 1 << 30
_SEEK_DATA, _SEEK_HOLE = getattr(os, "SEEK_DATA", None), getattr(os, "SEEK_HOLE", None)
_NOT_SHARED = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS)
_GONE = (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.ENOTDIR)


def copy_tree(source: int, target: int) -> list[Skipped]:
    """Copy all that is below one open folder into another one, which is empty and nobody else sees.

    Modes, times, links, hard links and holes are kept; sockets, devices and what vanished meanwhile are named.
    """
    copier = _Copier(source, target)
    copier.copy()
    return copier.skipped


class _Copier:
    def __init__(self, source: int, target: int) -> None:
        self.skipped: list[Skipped] = []
        self._source = source
        self._target = target
        self._linked: dict[tuple[int, int], Parts] = {}
        self._made: list[tuple[Parts, os.stat_result]] = []
        self._shares_blocks = True

    def copy(self) -> None:
        with closing(Folders(self._target)) as folders:
            for parts, folder, entries in walk(self._source, skip=is_hidden, on_error=self._skip):
                there = folders.open(parts)
                for name, status in entries:
                    try:
                        self._copy((*parts, name), status, folder, there)
                    except OSError as error:
                        if error.errno not in (*_GONE, errno.EACCES, errno.EPERM):
                            raise
                        self._skip((*parts, name), error)
            for parts, status in reversed(self._made):
                os.utime(folders.open(parts), ns=(status.st_atime_ns, status.st_mtime_ns))
                os.chmod(parts[-1], stat.S_IMODE(status.st_mode), dir_fd=folders.open(parts[:-1]))

    def _skip(self, parts: Parts, error: OSError) -> None:
        reason = "it vanished while it was copied" if error.errno in _GONE else f"it can't be read: {error.strerror}"
        self.skipped.append(Skipped(show(parts), reason))

    def _copy(self, parts: Parts, status: os.stat_result, folder: int, there: int) -> None:
        name = parts[-1]
        if stat.S_ISDIR(status.st_mode):
            os.mkdir(name, 0o700, dir_fd=there)
            self._made.append((parts, status))
        elif stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=folder), name, dir_fd=there)
            os.utime(name, ns=(status.st_atime_ns, status.st_mtime_ns), dir_fd=there, follow_symlinks=False)
        elif not stat.S_ISREG(status.st_mode):
            self.skipped.append(Skipped(show(parts), "it is no file, link or folder"))
        elif (first := self._linked.get((status.st_dev, status.st_ino))) is not None:
            with closing(Folders(self._target)) as originals:
                os.link(first[-1], name, src_dir_fd=originals.open(first[:-1]), dst_dir_fd=there, follow_symlinks=False)
        else:
            if status.st_nlink > 1:
                self._linked[status.st_dev, status.st_ino] = parts
            self._copy_file(name, folder, there)

    def _copy_file(self, name: bytes, folder: int, there: int) -> None:
        source = open_anyway(name, _READ, folder)
        try:
            status = os.fstat(source)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
            target = os.open(name, _WRITE, 0o600, dir_fd=there)
            try:
                if not self._shared(source, target):
                    _copy_data(source, target, status)
                os.fchmod(target, stat.S_IMODE(status.st_mode))
                os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _shared(self, source: int, target: int) -> bool:
        """Whether the new file has the blocks of the old one, of which either is copied when it is written to."""
        if self._shares_blocks:
            try:
                fcntl.ioctl(target, _FICLONE, source)
            except OSError as error:
                if error.errno not in _NOT_SHARED:
                    raise
                self._shares_blocks = False
        return self._shares_blocks


def _copy_data(source: int, target: int, status: os.stat_result) -> None:
    """All data there is, between the holes."""
    os.ftruncate(target, status.st_size)
    for start, end in extents(source, status):
        at = start
        while at < end:
            if not (count := _copy_some(source, target, at, min(end - at, _AT_ONCE))):
                return  # it became shorter
            at += count


def extents(fd: int, status: os.stat_result) -> Iterator[tuple[int, int]]:
    """Where the file has data: all of it, if it has no holes."""
    if _SEEK_DATA is None or _SEEK_HOLE is None or status.st_blocks * 512 >= status.st_size:
        if status.st_size:
            yield 0, status.st_size
        return
    end = 0
    while end < status.st_size:
        try:
            start = os.lseek(fd, end, _SEEK_DATA)
            end = min(os.lseek(fd, start, _SEEK_HOLE), status.st_size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here to the end
                return
            raise
        if start < end:
            yield start, end


def _copy_some(source: int, target: int, at: int, count: int) -> int:
    if hasattr(os, "copy_file_range"):
        with suppress(OSError):
            return os.copy_file_range(source, target, count, at, at)
    data = os.pread(source, min(count, 1 << 20), at)
    return os.pwrite(target, data, at)
