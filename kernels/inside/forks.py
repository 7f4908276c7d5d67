"""Copies of this process that are nobody's children: the session's own `os.wait()` never sees them."""

from __future__ import annotations

import ctypes
import os
import signal
import warnings
from typing import Any

_CLONE_VM, _CLONE_VFORK = 0x100, 0x4000
_SYSCALLS = {"x86_64": (56, 218), "aarch64": (220, 96)}  # clone, set_tid_address
_PR_GET_TID_ADDRESS = 40
_libc = ctypes.CDLL(None)

own_pipes: set[int] = set()
"""To other copies, which are not the session's: a copy that becomes a session has no use for them."""


def quiet_fork() -> int:
    """`os.fork()`, without the warning about threads, which the copy does not use."""
    quiet = ("ignore", None, DeprecationWarning, None, 0)
    filters: Any = warnings.filters
    filters.insert(0, quiet)
    try:
        return os.fork()
    finally:
        filters.remove(quiet)


def become_nobodys_child() -> None:
    """In a fork: go on in a second process, and end this one, for whose end the first process waits."""
    first = os.getpid()
    if go_on_elsewhere():
        os.kill(first, signal.SIGKILL)
    elif os.fork():
        os._exit(0)


def go_on_elsewhere() -> bool:
    """Go on in a child of this process, which stands still until somebody ends it. False, here, if that can't be.

    A second fork would copy the page tables again, while the session stands still. So the child takes over the memory
    of this process as it is.
    """
    syscalls = _SYSCALLS.get(os.uname().machine)
    own_number = ctypes.POINTER(ctypes.c_int)()  # where the C library keeps the thread's number, which changes
    if syscalls is None or _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(own_number), 0, 0, 0) != 0:
        return False
    clone, set_tid_address = syscalls
    _libc.syscall(set_tid_address, None)  # or its end would be noted in the memory that goes on being used
    pid = _libc.syscall(clone, ctypes.c_long(_CLONE_VM | _CLONE_VFORK | signal.SIGCHLD), None, None, None, None)
    if pid > 0:  # it was ended before it could end us
        os._exit(0)
    if pid == 0 and own_number:
        own_number[0] = os.getpid()
        _libc.syscall(set_tid_address, own_number)
    return bool(pid == 0)
