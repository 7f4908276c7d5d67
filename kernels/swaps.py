"""Two folders trade places at once, so that a crash leaves either as it was before or as it is after.

What a new folder is built in is locked by its builder; one that nobody has locked is left over from a crash.
"""

import ctypes
import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

from kernels.paths import delete_tree, hidden_name, is_hidden, open_anyway

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_EXCHANGE = 2
_READY = b".ready"

_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = getattr(_libc, "renameat2", None) if sys.platform == "linux" else None
_syncfs = getattr(_libc, "syncfs", None) if sys.platform == "linux" else None


@contextmanager
def building(parent: int) -> Iterator[tuple[bytes, int]]:
    """A new folder and its descriptor; if it still has its name after the block, it is deleted."""
    name = hidden_name()
    try:
        with _alone(parent):  # who looks for what is left finds it locked, or not at all
            os.mkdir(name, 0o700, dir_fd=parent)
            fd = os.open(name, _FOLDER, dir_fd=parent)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            yield name, fd
        finally:
            os.close(fd)
    finally:
        with suppress(OSError):  # a process that keeps adding files to it may win for now
            delete_tree(name, parent)


@contextmanager
def _alone(folder: int) -> Iterator[None]:
    """A block that nobody else is in who has opened the same folder."""
    fcntl.flock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(folder, fcntl.LOCK_UN)


def replace(parent: int, new: bytes, lock: int, old: bytes) -> Callable[[], None]:
    """Afterwards the folder `new`, locked by `lock`, has the name `old`, and that is on disk.

    What is returned deletes the old folder, and must be called; if it never is, that one is left over from a crash.
    """
    trash = hidden_name()
    with ExitStack() as undo:
        fd = open_anyway(old, _FOLDER, parent)
        undo.callback(os.close, fd)
        kept = os.dup(parent)
        undo.callback(os.close, kept)
        with _alone(parent):
            with suppress(BlockingIOError):  # a process of the session has locked it; two may delete it then
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _swap(parent, new, old)
            os.rename(new, trash, src_dir_fd=parent, dst_dir_fd=parent)
            os.fsync(parent)
            fcntl.flock(lock, fcntl.LOCK_UN)  # the next one to replace it locks it
        opened = undo.pop_all()

    def delete() -> None:
        with opened, suppress(OSError):  # a process that keeps adding files to it may win for now
            delete_tree(trash, kept)

    return delete


def _swap(parent: int, new: bytes, old: bytes) -> None:
    if not _exchanged(parent, new, old):
        ready, kept = new + _READY, hidden_name()
        os.rename(new, ready, src_dir_fd=parent, dst_dir_fd=parent)
        os.rename(old, kept, src_dir_fd=parent, dst_dir_fd=parent)
        os.rename(ready, old, src_dir_fd=parent, dst_dir_fd=parent)
        os.rename(kept, new, src_dir_fd=parent, dst_dir_fd=parent)


def _exchanged(parent: int, new: bytes, old: bytes) -> bool:
    """Whether this file system can do it at once."""
    if _renameat2 is None:
        return False
    flag = ctypes.c_uint(_RENAME_EXCHANGE)
    return bool(_renameat2(ctypes.c_int(parent), new, ctypes.c_int(parent), old, flag) == 0)


def finish(parent: int, old: bytes) -> None:
    """Finish a swap that took more than one step and was cut off; an empty folder may have been made meanwhile."""
    for name in _names(parent):
        if name.endswith(_READY) and is_hidden(name.removesuffix(_READY)):
            with suppress(OSError):  # not empty: the old folder was still there
                os.rename(name, old, src_dir_fd=parent, dst_dir_fd=parent)
                os.fsync(parent)


def clean(parent: int) -> None:
    """Delete what a crash left behind."""
    for name in _names(parent):
        if not is_hidden(name.removesuffix(_READY)):
            continue
        with suppress(OSError):
            with _alone(parent):
                left = is_free(name, parent)
            if left:
                delete_tree(name, parent)


def is_free(name: bytes, parent: int) -> bool:
    """Whether the process that had locked this folder is gone."""
    fd = os.open(name, _FOLDER, dir_fd=parent)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def _names(parent: int) -> list[bytes]:
    with os.scandir(parent) as found:
        return [os.fsencode(entry.name) for entry in found if entry.name.startswith(".workspace-")]


def sync_all(folder: int) -> None:
    """Everything below a folder is on disk; one call, where a thousand files would take a thousand."""
    if _syncfs is None:
        os.sync()
    elif _syncfs(ctypes.c_int(folder)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
