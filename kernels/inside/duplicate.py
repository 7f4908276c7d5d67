"""Live duplicate: a copy of the running kernel that becomes a session of its own, with everything in it as it is.

Done on the main thread between cells. The copy is nobody's child; it connects to who asked for it, is told who it is,
and then serves with the same application, kernel and shell, so that whatever the session holds of them stays good.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

from .forks import become_nobodys_child, own_pipes, quiet_fork
from .gpu import gpu_in_use

_ANSWER_S = 3600  # its files are copied meanwhile; if nobody is there to answer, that is seen at once
_MESSAGE_BYTES = 1_000_000
_MOST_FDS = 16
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4


class Reborn(SystemExit):
    """In the copy: leaves the loop of the kernel that it is a copy of."""

    def __init__(self, identity: dict[str, Any], connection: socket.socket, namespaces: list[int]) -> None:
        super().__init__(0)
        self.identity = identity
        self.connection = connection
        self.namespaces = namespaces  # to enter, as `identity["namespaces"]` names them


def duplicate(app: Any, address: str) -> dict[str, Any]:
    """{"pause_ms"}, or {"refused": [{"name", "type", "reason"}, ...]} without a copy. In that it raises `Reborn`."""
    refused = list(what_would_be_lost(app))
    if refused:
        return {"refused": refused}
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    random_state = random.getstate()
    began = time.perf_counter()
    with _closed_to_others():
        first = quiet_fork()
        if first == 0:
            _be_the_copy(app, address, random_state)
    with contextlib.suppress(ChildProcessError):  # the session does not want to hear of children
        os.waitpid(first, 0)
    return {"pause_ms": (time.perf_counter() - began) * 1000}


@contextlib.contextmanager
def _closed_to_others() -> Iterator[None]:
    """A copy that is made meanwhile can't be looked into by processes of this session, from its first moment on."""
    libc = ctypes.CDLL(None)
    before = libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(_PR_SET_DUMPABLE, before, 0, 0, 0)


def _be_the_copy(app: Any, address: str, random_state: Any) -> NoReturn:
    try:
        become_nobodys_child()
        os.setsid()
        random.setstate(random_state)  # Python has drawn a new one
        app.abandon_connection()
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(_ANSWER_S)
        connection.connect(address)
        identity, fds = receive(connection)
        if identity is None:
            os._exit(0)
    except BaseException as error:
        last_words(error)
    if fds:
        copies = [getattr(stream, "_original_stdstream_copy", fd) for stream, fd in ((sys.stdout, 1), (sys.stderr, 2))]
        for fd in {1, 2, *copies}:
            os.dup2(fds[0], fd, inheritable=fd <= 2)
        os.close(fds[0])
    raise Reborn(identity, connection, fds[1:])


def last_words(error: BaseException) -> NoReturn:
    """End a copy, with what went wrong in the kernel's log."""
    with contextlib.suppress(OSError):
        os.write(2, "".join(traceback.format_exception(type(error), error, error.__traceback__)).encode())
    os._exit(1)


def receive(connection: socket.socket) -> tuple[Any, list[int]]:
    """One message and its file descriptors; None if the other end was closed."""
    import json

    data, fds, _, _ = socket.recv_fds(connection, _MESSAGE_BYTES, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    return (json.loads(data) if data else None), fds


def what_would_be_lost(app: Any) -> Iterator[dict[str, str]]:
    """What a copy of a process does not have, or would share with the session, one entry each."""
    for thread in threading.enumerate():
        if thread not in (threading.main_thread(), app.control_thread) and thread.name != "Heartbeat":
            yield _lost(thread.name, thread, "a copy has none of the threads that are running")
    if app.kernel.eventloop is not None:
        yield _lost("%gui", app.kernel.eventloop, "the event loop of a graphical toolkit can't be copied")
    if app.kernel.debugpy_stream is not None:
        yield {"name": "debugger", "type": "debugpy", "reason": "a debugger is attached, or was"}
    loop = app.io_loop.asyncio_loop
    import asyncio

    for task in asyncio.all_tasks(loop):
        if task not in app.kernel.shell_channel_thread.tasks and task not in app.abandoned_tasks:
            yield _lost(getattr(task.get_coro(), "__qualname__", task.get_name()), task, "it is still running")
    for timer in loop._scheduled:
        if not timer.cancelled():
            yield _lost(repr(timer), timer, "it waits in the event loop")
    for pid in _children():
        yield {"name": str(pid), "type": "process", "reason": "a process that the session has started is running"}
    if (library := gpu_in_use()) is not None:
        yield {"name": library, "type": "GPU", "reason": f"{library} computes on a GPU, whose memory can't be copied"}
    yield from _shared_memory()
    for fd, reason, kind in _open_files(app):
        yield {"name": f"file descriptor {fd}", "type": kind, "reason": reason}


def _lost(name: str, thing: Any, reason: str) -> dict[str, str]:
    return {"name": name, "type": type(thing).__name__, "reason": reason}


def _children() -> list[int]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []
    found: list[int] = []
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{thread}/children") as file:
            found += [pid for pid in map(int, file.read().split()) if not _has_ended(pid)]
    return found


def _has_ended(pid: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    return True


def _shared_memory() -> Iterator[dict[str, str]]:
    with open("/proc/self/maps") as maps:
        for line in maps:
            parts = line.split(maxsplit=5)
            if "w" in parts[1] and "s" in parts[1]:
                name = parts[5].strip() if len(parts) > 5 else "anonymous"
                yield {"name": name, "type": "mmap", "reason": "memory that is shared with other processes"}


def _open_files(app: Any) -> Iterator[tuple[int, str, str]]:
    """Those of the session's that a copy can't have for itself."""
    place = os.path.realpath(app.shell.starting_dir)
    for fd in open_fds():
        if fd in app.own_fds or fd in own_pipes:
            continue
        try:
            mode, target = os.fstat(fd).st_mode, os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            continue
        if stat.S_ISSOCK(mode):
            if not is_own_socket(app, fd):
                yield fd, "an open connection", "socket"
        elif stat.S_ISFIFO(mode):
            yield fd, "an open pipe", "pipe"
        elif stat.S_ISREG(mode):
            written = _flags(fd) & os.O_ACCMODE != os.O_RDONLY
            if written and (target.endswith(" (deleted)") or os.path.commonpath([place, target]) != place):
                yield fd, f"{target} is open for writing, and is not among the session's files", "file"
        elif not (stat.S_ISCHR(mode) or stat.S_ISDIR(mode)):
            yield fd, f"{target} can't be copied", "file descriptor"


def open_fds() -> list[int]:
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the one that looked
            os.fstat(fd)
            found.append(fd)
    return found


def is_own_socket(app: Any, fd: int) -> bool:
    """Whether a front end is at the other end."""
    try:
        with socket.socket(fileno=os.dup(fd)) as it:
            name = it.getsockname()
    except OSError:
        return False
    return it.family == socket.AF_UNIX and isinstance(name, str) and name.startswith(f"{app.ip}-")


def _flags(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_GETFL)


def opened_files(app: Any, but: list[int]) -> dict[int, str]:
    """Files and folders that the session has open, by descriptor, with their paths."""
    found = {}
    for fd in open_fds():
        if fd not in app.own_fds and fd > 2 and fd not in but:
            kind = os.fstat(fd).st_mode
            if stat.S_ISREG(kind) or stat.S_ISDIR(kind):
                found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def reopen_files(opened: dict[int, str], before: str, after: str) -> None:
    """Files that were open have a place of their own from now on; those among the session's files are the copy's."""
    for fd, target in opened.items():
        with contextlib.suppress(FileNotFoundError):
            is_folder = stat.S_ISDIR(os.fstat(fd).st_mode)
            path = f"/proc/self/fd/{fd}" if target.endswith(" (deleted)") else moved(target, before, after)
            flags = _flags(fd) & (os.O_ACCMODE | os.O_APPEND | os.O_NONBLOCK)
            inheritable, at = os.get_inheritable(fd), 0 if is_folder else os.lseek(fd, 0, os.SEEK_CUR)
            own = os.open(path, flags | os.O_CLOEXEC)
            if at:
                os.lseek(own, at, os.SEEK_SET)
            os.dup2(own, fd, inheritable)
            os.close(own)


def moved(path: str, before: str, after: str) -> str:
    return after + path[len(before) :] if path == before or path.startswith(f"{before}/") else path
