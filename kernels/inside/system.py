"""Calls of the Linux kernel that Python's `os` lacks; what fails names the wall it was for. Runs inside the kernel."""

from __future__ import annotations

import ctypes
import os
import platform

CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 32, 4096, 16384, 1 << 18
MNT_DETACH = 2

MOUNT_RDONLY, MOUNT_NOSUID, MOUNT_NODEV, MOUNT_NOEXEC = 1, 2, 4, 8
MOUNT_IDMAP = 0x100000

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
AMBIENT_RAISE, AMBIENT_CLEAR = 2, 4

LAST_CAPABILITY = 63  # as many as fit; the system refuses those that it does not know
CAP_WAKE_ALARM = 35

_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_FROM_EMPTY_PATH = 4

_SAME = {"open_tree": 428, "move_mount": 429, "mount_setattr": 442, "landlock_create": 444, "landlock_restrict": 446}
_NUMBERS = {
    "x86_64": {**_SAME, "pivot_root": 155, "capget": 125, "capset": 126, "seccomp": 317, "keyctl": 250},
    "aarch64": {**_SAME, "pivot_root": 41, "capget": 90, "capset": 91, "seccomp": 277, "keyctl": 219},
}
MACHINE = {"arm64": "aarch64", "amd64": "x86_64"}.get(platform.machine(), platform.machine())

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class WallError(Exception):
    """A wall could not be put up: which one, and why."""

    def __init__(self, wall: str, reason: str) -> None:
        super().__init__(f"{wall}: {reason}")
        self.wall = wall
        self.reason = reason


def refused(wall: str, what: str, error: OSError) -> WallError:
    return WallError(wall, f"{what}: {error.strerror}")


def _check(result: int, wall: str, what: str) -> int:
    if result == -1:
        raise WallError(wall, f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def call(wall: str, name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """A system call by its name in the table above. Raises `WallError`."""
    number = _NUMBERS.get(MACHINE, {}).get(name)
    if number is None:
        raise WallError(wall, f"{name} is not known on {MACHINE}")
    passed = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *passed), wall, name)


def unshare(wall: str, flags: int) -> None:
    _check(_libc.unshare(ctypes.c_int(flags)), wall, "unshare")


def setns(wall: str, fd: int, flags: int) -> None:
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)), wall, "setns")


def prctl(wall: str, option: int, *arguments: int) -> int:
    padded = [ctypes.c_ulong(one) for one in (*arguments, 0, 0, 0, 0)[:4]]
    return _check(_libc.prctl(ctypes.c_int(option), *padded), wall, f"prctl({option})")


def set_name(name: str) -> None:
    """As this process is listed."""
    _libc.prctl(15, name.encode(), 0, 0, 0)


def mount(wall: str, kind: str, target: str, flags: int, options: str = "") -> None:
    """Mount a new file system of a kind; an empty kind changes the mount that is there."""
    done = _libc.mount(kind.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode() or None)
    _check(done, wall, f"mount {kind or 'again'} at {target}")


def unmount(wall: str, target: str) -> None:
    _check(_libc.umount2(target.encode(), MNT_DETACH), wall, f"unmount {target}")


def open_tree(wall: str, path: str, attributes: int, user_ns: int | None = None) -> int:
    """A detached copy of what is mounted at a path and below it, as a descriptor. Raises `WallError`."""
    flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
    try:
        fd = call(wall, "open_tree", _AT_FDCWD, os.fsencode(path), flags)
    except WallError as error:
        raise WallError(wall, f"{error.reason} ({path})") from None
    try:
        set_attributes(wall, fd, attributes, user_ns=user_ns)
    except WallError as error:
        os.close(fd)
        raise WallError(wall, f"{error.reason} ({path})") from None
    return fd


def set_attributes(wall: str, fd: int, attributes: int, *, clear: int = 0, user_ns: int | None = None) -> None:
    given = attributes | (MOUNT_IDMAP if user_ns is not None else 0)
    struct = b"".join(one.to_bytes(8, "little") for one in (given, clear, 0, user_ns or 0))
    call(wall, "mount_setattr", fd, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, struct, len(struct))


def move_mount(wall: str, fd: int, target: str) -> None:
    """Mount a detached tree. Raises `WallError`."""
    try:
        call(wall, "move_mount", fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_FROM_EMPTY_PATH)
    except WallError as error:
        raise WallError(wall, f"{error.reason} ({target})") from None


def pivot_root(wall: str) -> None:
    """Make the current folder the root of all processes of this mount namespace, and let go of the old one."""
    call(wall, "pivot_root", b".", b".")
    unmount(wall, ".")
    os.chdir("/")


def permitted() -> int:
    """The capabilities that this thread may have, in its own user namespace, as bits."""
    header = bytes.fromhex("22050820") + bytes(4)  # version 3, this thread
    data = ctypes.create_string_buffer(24)
    call("capabilities", "capget", header, data)
    return int.from_bytes(data.raw[4:8], "little") | int.from_bytes(data.raw[16:20], "little") << 32


def set_capabilities(wall: str, capabilities: int, inheritable: int = 0) -> None:
    """Set those that are effective and permitted, as bits."""
    header = bytes.fromhex("22050820") + bytes(4)
    sets = [capabilities, capabilities, inheritable]
    words = [(one >> shift) & 0xFFFFFFFF for shift in (0, 32) for one in sets]
    call(wall, "capset", header, b"".join(word.to_bytes(4, "little") for word in words))


def drop_capabilities(wall: str) -> None:
    """For good: none can be had again, not even by a program that is set-uid."""
    for capability in range(LAST_CAPABILITY + 1):
        try:
            prctl(wall, PR_CAPBSET_DROP, capability)
        except WallError:
            if capability <= CAP_WAKE_ALARM:
                raise
            break  # more than this system has
    prctl(wall, PR_CAP_AMBIENT, AMBIENT_CLEAR)
    set_capabilities(wall, 0)
