"""The walls around a session: a process forked off into namespaces and a root of its own, then closed for good.

`fork` needs nothing of the session; behind it the child may still mount, and has run no code of a user. `close` names
it and takes all that away. Made by a process with one thread. `plan` comes from `kernels/sandbox.py`; an empty one
means no walls. Runs inside the kernel.
"""

from __future__ import annotations

import contextlib
import fcntl  # nothing can be imported on the way: the interpreter may not be readable there
import json
import os
import resource
import signal
import socket
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import inits, roots, seccomp, system
from .forks import go_on_elsewhere
from .system import WallError

__all__ = ["Forked", "WallError", "close", "close_descriptors", "enter", "fork", "open_trees"]

Plan = Mapping[str, Any]

INSIDE_ID = 1000  # of user and group, as a session sees itself

NAMESPACES = {
    "user": system.CLONE_NEWUSER,
    "mount": system.CLONE_NEWNS,
    "pid": system.CLONE_NEWPID,
    "ipc": system.CLONE_NEWIPC,
    "uts": system.CLONE_NEWUTS,
    "network": system.CLONE_NEWNET,
}
_CREDENTIALS = struct.Struct("iII")  # pid, uid, gid
_ATTRIBUTES = system.MOUNT_NOSUID | system.MOUNT_NODEV


class Forked(NamedTuple):
    """A child that stands behind its first walls. Numbers are those of the forking process's pid namespace.

    Both are reparented to the nearest subreaper; killing `init_pid` ends everything in the session. The child has to
    be reaped before init can be. `user_ns` is for `open_trees`, and the caller's to close.
    """

    pid: int
    init_pid: int | None
    user_ns: int | None


def enter(read_only: Mapping[str, str] | None = None) -> None:
    """Give this process, of an ordinary user, the right to fork sessions: user and mount namespaces of its own.

    These paths become read-only in it: a program that is started from one of them afterwards can't be written through
    `/proc/self/exe` by a session that has the same user. Raises `WallError`.
    """
    uid, gid = os.geteuid(), os.getegid()
    system.unshare("user", system.CLONE_NEWUSER | system.CLONE_NEWNS)
    map_own(uid, gid, uid, gid)
    roots.make_private()
    for path in read_only or ():
        tree = system.open_tree("mount", path, _ATTRIBUTES | system.MOUNT_RDONLY)
        system.move_mount("mount", tree, path)
        os.close(tree)
    # A program that is executed keeps them, as long as nothing takes them away.
    every = system.permitted()
    system.set_capabilities("user", every, every)
    for capability in range(every.bit_length()):
        system.prctl("user", system.PR_CAP_AMBIENT, system.AMBIENT_RAISE, capability)


def fork(plan: Plan, *, master: int | None = None) -> Forked | None:
    """Fork a session's process; None in it. Returns when its first walls stand. Raises `WallError`, in the parent only.

    `master` is a pidfd of the process with which everything behind the walls ends, where they have a pid namespace; no
    session gets it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    if plan.get("seccomp"):
        seccomp.filter_program()  # once, here, and not in each child
    program = inits.opened() if "pid" in plan.get("namespaces", ()) else None
    middle = os.fork()
    if middle == 0:
        ours.close()
        _Middle(plan, theirs, program, master).fork()
        return None
    theirs.close()
    with ours:
        try:
            forked = _accompany(plan, middle, ours)
        finally:
            os.kill(middle, signal.SIGKILL)  # it stands still if the session took over its memory
            os.waitpid(middle, 0)
            if program is not None:
                os.close(program)
        try:
            ours.send(b"alone")
            _hear(ours)
        except BaseException:
            _end(forked)
            raise
    return forked


def open_trees(paths: Mapping[str, str], user_ns: int | None) -> dict[str, int]:
    """Detached mounts of these paths ("rw" or "ro"), for `close`; the caller's to close. Raises `WallError`.

    With a user namespace (`Forked.user_ns`) what belongs to this process's user is the session's own.
    """
    trees: dict[str, int] = {}
    try:
        for path, access in paths.items():
            attributes = _ATTRIBUTES | (system.MOUNT_RDONLY if access == "ro" else 0)
            trees[path] = system.open_tree("mount", path, attributes, user_ns)
    except BaseException:
        for tree in trees.values():
            os.close(tree)
        raise
    return trees


def close(plan: Plan, trees: Mapping[str, int], *, hostname: str, limits: Mapping[str, Any]) -> list[str]:
    """Put up what is left, in the child; it can't be undone. Returns the names of the walls that stand.

    The trees are mounted where they are outside, and their descriptors closed. Limits: `open_files`, `processes`,
    `file_bytes`, `data_bytes`, `oom_score`, `nice`, `tmp_bytes`; each may be missing. Raises `WallError`: the process
    must end then.
    """
    walls = list(plan.get("namespaces", ()))
    if "mount" in walls:
        if limits.get("tmp_bytes"):
            roots.bound_temporary(limits["tmp_bytes"])
        roots.finish(trees)
    for tree in trees.values():
        os.close(tree)
    if "uts" in walls:
        try:
            socket.sethostname(hostname)
        except OSError as error:
            raise system.refused("uts", "sethostname", error) from None
    if plan.get("cgroup_namespace"):
        system.unshare("cgroup", system.CLONE_NEWCGROUP)
    _limit(limits)
    walls.append("limits")
    if not plan.keys() - {"uid", "cgroups"}:
        return walls
    system.drop_capabilities("capabilities")
    system.prctl("capabilities", system.PR_SET_DUMPABLE, 1)
    system.prctl("no-new-privileges", system.PR_SET_NO_NEW_PRIVS, 1)
    walls += ["capabilities", "no-new-privileges"]
    if plan.get("abstract_sockets") == "own":
        _keep_to_own_sockets()
        walls.append("abstract-sockets")
    if plan.get("seccomp"):
        seccomp.refuse()
        walls.append("seccomp")
    return walls


def close_descriptors(keep: set[int]) -> None:
    """Close all descriptors but these."""
    start = 0
    for fd in sorted(keep):
        os.closerange(start, fd)
        start = fd + 1
    os.closerange(start, max(start, resource.getrlimit(resource.RLIMIT_NOFILE)[0], _highest_descriptor() + 1))


def _highest_descriptor() -> int:
    try:
        return max(map(int, os.listdir("/proc/self/fd")))
    except OSError:
        return 65_535


def _accompany(plan: Plan, middle: int, ours: socket.socket) -> Forked:
    """What only the forking process can do for the one between, until that is the session."""
    forked = Forked(0, None, None)
    try:
        while not forked.pid:
            message, pid = _hear(ours)
            if "init_pid" in message:
                forked = forked._replace(**message)
            elif "wants" in message:
                _map(middle, plan["uid"])
                forked = forked._replace(user_ns=os.open(f"/proc/{middle}/ns/user", os.O_RDONLY | os.O_CLOEXEC))
                _send_trees(ours, readable_trees(plan["read_only"], forked.user_ns))
            else:
                forked = forked._replace(pid=pid)
    except BaseException:
        _end(forked)
        raise
    return forked


def _hear(ours: socket.socket) -> tuple[dict[str, Any], int]:
    """What one of the others says, and its number here. Raises `WallError` if it failed."""
    data, beside, _, _ = ours.recvmsg(65536, socket.CMSG_SPACE(_CREDENTIALS.size))
    message = json.loads(data or b'{"wall": "fork", "reason": "a process ended on the way"}')
    if "reason" in message:
        raise WallError(message["wall"], message["reason"])
    return message, _CREDENTIALS.unpack(beside[0][2])[0]


def _send_trees(to: socket.socket, trees: Mapping[str, int]) -> None:
    try:
        socket.send_fds(to, [json.dumps(list(trees)).encode()], list(trees.values()))
    finally:
        for tree in trees.values():
            os.close(tree)


def _end(forked: Forked) -> None:
    if forked.user_ns is not None:
        os.close(forked.user_ns)
    for pid in (forked.init_pid, forked.pid):
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _map(pid: int, uid: int) -> None:
    """Our own user and group are, in the new namespace of a process, those that the session has outside."""
    for kind, own in (("uid", os.geteuid()), ("gid", os.getegid())):
        _write("user", f"/proc/{pid}/{kind}_map", f"{own} {uid} 1")


def map_own(inside_uid: int, inside_gid: int, uid: int, gid: int) -> None:
    _write("user", "/proc/self/setgroups", "deny")
    _write("user", "/proc/self/uid_map", f"{inside_uid} {uid} 1")
    _write("user", "/proc/self/gid_map", f"{inside_gid} {gid} 1")


def _write(wall: str, path: str, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise system.refused(wall, f"write {path}", error) from None


def readable_trees(paths: list[str], user_ns: int | None) -> dict[str, int]:
    """What we own is the session's to read too, also where nobody else may; unless the file system can't do that."""
    trees = {}
    for path in paths:
        try:
            trees.update(open_trees({path: "ro"}, user_ns))
        except WallError:
            trees.update(open_trees({path: "ro"}, None))
    return trees


class _Middle:
    """The process between: it unshares; the session goes on from it and is the subreaper's once this one is ended."""

    def __init__(
        self, plan: Plan, theirs: socket.socket, program: int | None, master: int | None
    ) -> None:  # fmt: skip
        self._plan = plan
        self._namespaces = plan.get("namespaces", ())
        self._theirs = theirs
        self._program = program
        self._master = master
        self._trees: dict[str, int] = {}

    def fork(self) -> None:
        init_pid: int | None = None
        try:
            self._join_cgroups()
            if self._namespaces:
                self._unshare()
            self._tell({"init_pid": self._start_init()})
            if not go_on_elsewhere() and os.fork():
                os._exit(0)
            self._tell({})
            self._theirs.recv(64)  # once it has ended: this one must not end before it
            self._become_session()
        except BaseException as error:
            if init_pid is not None:  # which nobody would hear of, and so never end
                os.kill(init_pid, signal.SIGKILL)
            self._fail(error)

    def _join_cgroups(self) -> None:
        for folder in self._plan.get("cgroups", ()):
            _write("cgroup", f"{folder}/cgroup.procs", "0")

    def _unshare(self) -> None:
        flags = 0
        for name in self._namespaces:
            flags |= NAMESPACES[name]
        uid, gid = os.geteuid(), os.getegid()
        if "mount" in self._namespaces:
            self._trees = roots.system_trees(self._plan)
        if self._plan.get("uid") is not None:
            os.setgroups([])
            system.unshare("user", system.CLONE_NEWUSER)
            self._tell({"wants": "map"})
            names, trees, _, _ = socket.recv_fds(self._theirs, 65536, 256)
            self._trees.update(zip(json.loads(names), trees))  # noqa: B905 - Python 3.9 has no strict
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            system.prctl("user", system.PR_SET_DUMPABLE, 1)  # else what is in /proc/self is not ours
        elif "mount" in self._namespaces:
            self._trees.update(readable_trees(self._plan["read_only"], None))
        os.chdir("/")  # so that the new root becomes init's too
        system.unshare("user" if "user" in self._namespaces else self._namespaces[0], flags)
        if "user" in self._namespaces:
            map_own(INSIDE_ID, INSIDE_ID, uid, gid)

    def _start_init(self) -> int | None:
        if self._program is None:
            return None
        try:
            return inits.start(self._program, self._master)
        finally:
            os.close(self._program)

    def _become_session(self) -> None:
        """Here None is returned through, in the session's process; if anything fails it ends."""
        if self._master is not None:
            os.close(self._master)
        with contextlib.suppress(OSError):
            os.setsid()
        if "network" in self._namespaces:
            raise_loopback()
        if "mount" in self._namespaces:
            roots.build(self._plan, self._trees)
        for tree in self._trees.values():
            os.close(tree)
        self._tell({})
        self._theirs.close()

    def _tell(self, message: dict[str, Any]) -> None:
        self._theirs.send(json.dumps(message).encode())

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, WallError):
            error = WallError("fork", f"{type(error).__name__}: {error}")
        with contextlib.suppress(OSError):
            self._tell({"wall": error.wall, "reason": error.reason})
        os._exit(1)


def raise_loopback() -> None:
    up, running, set_flags = 0x1, 0x40, 0x8914
    request = b"lo".ljust(16, b"\0") + (up | running).to_bytes(2, "little") + bytes(22)
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as one:
            fcntl.ioctl(one, set_flags, request)
    except OSError as error:
        raise system.refused("network", "bring loopback up", error) from None


def _keep_to_own_sockets() -> None:
    """Abstract unix sockets belong to a network namespace: in the host's, only Landlock keeps us from others'."""
    scope_abstract_sockets = (0).to_bytes(16, "little") + (1).to_bytes(8, "little")
    ruleset = system.call("abstract-sockets", "landlock_create", scope_abstract_sockets, 24, 0)
    try:
        system.call("abstract-sockets", "landlock_restrict", ruleset, 0)
    finally:
        os.close(ruleset)


def _limit(limits: Mapping[str, Any]) -> None:
    wanted = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: limits.get("open_files"),
        resource.RLIMIT_NPROC: limits.get("processes"),
        resource.RLIMIT_FSIZE: limits.get("file_bytes"),
        resource.RLIMIT_DATA: limits.get("data_bytes"),
    }
    if limits.get("oom_score") is not None:
        _write("limits", "/proc/self/oom_score_adj", str(limits["oom_score"]))
    if limits.get("nice"):
        os.nice(limits["nice"])
    for kind, value in wanted.items():
        if value is None:
            continue
        most = resource.getrlimit(kind)[1]
        value = int(value) if most == resource.RLIM_INFINITY else min(int(value), most)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError) as error:
            raise WallError("limits", f"setrlimit({kind}, {value}): {error}") from None
