"""Namespaces for a copy of a session, inside of those of the session that it is copied from.

Built from outside, by processes of ours and not by the copy, which runs the session's code: that only enters them.
Called in a single-threaded process that may command the session's namespaces. Runs inside the kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from . import roots, system, walls
from .system import WallError

NAMES = {"user": "user", "mount": "mnt", "ipc": "ipc", "uts": "uts", "network": "net", "pid": "pid"}
"""Namespaces as the plan of walls names them, in the order in which they are entered, and as the system does."""

_MOST = "/proc/sys/user/max_user_namespaces"
_PROC = "/run/proc"
_MANY = b"1000000"
_MOST_FDS = 64
_ALIVE_S = 10.0


def build(order: Mapping[str, Any], fds: list[int]) -> tuple[dict[str, Any], list[int]]:
    """Build them; {"init_pid": of the first process in them} and their descriptors, as `NAMES` has them.

    `order`: `plan`, `trees`, `hostname` as in `walls`; `depth`, of how many sessions the source is a copy. `fds`: a
    socket whose other end, once closed, ends all that is in the new ones; the source's pid namespace; user namespaces,
    from that of the outermost session to the source's; and that which the trees belong to, if there is one.
    Raises `WallError`.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    builder = os.fork()
    if builder == 0:
        ours.close()
        _Builder(order, fds, theirs).run()
    theirs.close()
    ours.settimeout(_ALIVE_S)
    opened: list[int] = []
    try:
        _, limits = _told(ours)
        with _raised(limits):
            ours.send(b"{}")
            _told(ours)
        told, opened = _told(ours)
        init_pid = _only_child(told["between"])
        opened.append(os.open(f"/proc/{init_pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC))
        ours.send(b"{}")
    except BaseException as error:
        for fd in opened:
            os.close(fd)
        os.kill(builder, signal.SIGKILL)
        if isinstance(error, OSError):
            raise WallError("pid", f"{type(error).__name__}: {error}") from None
        raise
    finally:
        ours.close()
        os.waitpid(builder, 0)
    return {"init_pid": init_pid}, opened


@contextlib.contextmanager
def _raised(limits: list[int]) -> Iterator[None]:
    """For a moment user namespaces can be made in the sessions: by us, for the sessions' filters keep them from it."""
    try:
        for fd in limits:
            os.pwrite(fd, _MANY, 0)
        yield
    finally:
        for fd in limits:
            os.pwrite(fd, b"0", 0)
            os.close(fd)


def _told(ours: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, fds, _, _ = socket.recv_fds(ours, 65536, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    message = json.loads(data or b'{"wall": "fork", "reason": "a process ended on the way"}')
    if "reason" in message:
        raise WallError(message["wall"], message["reason"])
    return message, fds


def _only_child(pid: int) -> int:
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        found = children.read().split()
    if len(found) != 1:
        raise WallError("pid", "the first process of the namespace has ended")
    return int(found[0])


class _Builder:
    """Outside of the source's pid namespace, and so out of its sight, until everything but that has been made."""

    def __init__(self, order: Mapping[str, Any], fds: list[int], theirs: socket.socket) -> None:
        levels = order["depth"] + 1
        self._plan = order["plan"]
        self._order = order
        self._lifeline, self._pid_ns = fds[:2]
        self._user_ns = fds[2 : 2 + levels]
        self._owner = fds[2 + levels] if len(fds) > 2 + levels else None
        self._theirs = theirs

    def run(self) -> NoReturn:
        try:
            system.prctl("pid", system.PR_SET_PDEATHSIG, signal.SIGKILL)
            trees = self._opened()
            self._enter()
            self._unshare()
            names = [os.open(f"/proc/self/ns/{NAMES[name]}", os.O_RDONLY | os.O_CLOEXEC) for name in self._named()]
            self._furnish(trees)
            self._start_init(names)
        except BaseException as error:
            self._fail(error)
        os._exit(0)

    def _named(self) -> list[str]:
        return [name for name in NAMES if name in self._plan["namespaces"] and name != "pid"]

    def _opened(self) -> dict[str, int]:
        trees = roots.system_trees(self._plan)
        trees.update(walls.readable_trees(self._plan["read_only"], self._owner))
        trees.update(walls.open_trees(self._order["trees"], self._owner))
        trees[_PROC] = system.open_tree("pid", "/proc", system.MOUNT_NOSUID | system.MOUNT_NODEV | system.MOUNT_NOEXEC)
        return trees

    def _enter(self) -> None:
        """Into the source's user namespace, as its user; the limit of each on the way is handed out."""
        with contextlib.suppress(PermissionError):  # an ordinary user keeps what it has
            os.setgroups([])
        system.setns("pid", self._pid_ns, system.CLONE_NEWPID)  # of our children
        limits = []
        for namespace in self._user_ns:
            system.setns("user", namespace, system.CLONE_NEWUSER)
            limits.append(os.open(_MOST, os.O_WRONLY | os.O_CLOEXEC))
        os.setresgid(walls.INSIDE_ID, walls.INSIDE_ID, walls.INSIDE_ID)
        os.setresuid(walls.INSIDE_ID, walls.INSIDE_ID, walls.INSIDE_ID)
        system.prctl("user", system.PR_SET_DUMPABLE, 1)  # else what is in /proc/self is not ours
        self._tell({}, limits)
        for fd in limits:
            os.close(fd)
        self._wait()

    def _unshare(self) -> None:
        system.unshare("user", system.CLONE_NEWUSER)
        self._tell({})
        walls.map_own(walls.INSIDE_ID, walls.INSIDE_ID, walls.INSIDE_ID, walls.INSIDE_ID)
        system.prctl("user", system.PR_SET_DUMPABLE, 0)  # the source sees our children, and may not look into them
        flags = 0
        for name in self._named():
            flags |= walls.NAMESPACES[name]
        system.unshare("mount", flags & ~system.CLONE_NEWUSER)

    def _furnish(self, trees: Mapping[str, int]) -> None:
        if "network" in self._plan["namespaces"]:
            walls.raise_loopback()
        if "uts" in self._plan["namespaces"]:
            socket.sethostname(self._order["hostname"])
        roots.build({**self._plan, "namespaces": self._named()}, trees)
        for tree in trees.values():
            os.close(tree)

    def _start_init(self, names: list[int]) -> None:
        """By a process in the source's pid namespace, from which the new one can be made."""
        reading, writing = os.pipe()
        staying, leaving = os.pipe()
        between = os.fork()
        if between == 0:
            os.close(leaving)
            self._be_between(reading, writing, staying)
        os.close(writing)
        with open(reading, "rb") as heard:
            said = heard.readline()
        if said != b"{}\n":
            raise WallError(*json.loads(said or b'["pid", "the first process of the namespace has ended"]'))
        self._tell({"between": between}, names)
        self._wait()
        os.close(leaving)
        os.waitpid(between, 0)

    def _be_between(self, reading: int, writing: int, staying: int) -> NoReturn:
        try:
            system.unshare("pid", system.CLONE_NEWPID)
            if os.fork() == 0:
                self._be_init(writing)
            os.close(writing)
            os.read(staying, 1)
        except BaseException as error:
            _refuse(writing, error)
        os._exit(0)

    def _be_init(self, writing: int) -> NoReturn:
        """Until whoever holds the other end of the lifeline lets go of it. No program: that could be looked into."""
        try:
            os.setsid()
            system.set_name("session-init")
            roots.mount_proc(_PROC)
            roots.finish({})
            system.drop_capabilities("capabilities")
            system.prctl("no-new-privileges", system.PR_SET_NO_NEW_PRIVS, 1)
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            os.write(writing, b"{}\n")
        except BaseException as error:
            _refuse(writing, error)
            os._exit(1)
        walls.close_descriptors({self._lifeline})
        while os.read(self._lifeline, 1):
            pass
        os._exit(0)

    def _tell(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        socket.send_fds(self._theirs, [json.dumps(message).encode()], fds or [])

    def _wait(self) -> None:
        if not self._theirs.recv(64):
            os._exit(1)

    def _fail(self, error: BaseException) -> None:
        wall, reason = _described(error)
        with contextlib.suppress(OSError):
            self._tell({"wall": wall, "reason": reason})
        os._exit(1)


def _refuse(fd: int, error: BaseException) -> None:
    with contextlib.suppress(OSError):
        os.write(fd, json.dumps(_described(error)).encode() + b"\n")


def _described(error: BaseException) -> tuple[str, str]:
    if isinstance(error, WallError):
        return error.wall, error.reason
    return "fork", f"{type(error).__name__}: {error}"


def enter(fds: Mapping[str, int], connection: socket.socket) -> None:
    """In the copy: go on inside, in a process that has no capability. Tells who waits at the connection, and waits.

    Afterwards the current folder is the new root. Raises `WallError`.
    """
    from .forks import go_on_elsewhere

    for name in NAMES:
        if name in fds:
            system.setns(name, fds[name], walls.NAMESPACES[name])
            os.close(fds[name])
    if not go_on_elsewhere():
        raise WallError("pid", f"{system.MACHINE} is not known")
    connection.send(b'{"inside": true}')  # so that the process that it was is ended
    connection.recv(64)
    os.setsid()
    with contextlib.suppress(WallError):
        system.unshare("cgroup", system.CLONE_NEWCGROUP)
    system.drop_capabilities("capabilities")
    system.prctl("capabilities", system.PR_SET_DUMPABLE, 0)
