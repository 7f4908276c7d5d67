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
    """In a fork: go on in a second process, and end this one, for whose end the first process waits.

    A second fork would copy the page tables again, while the session stands still. So the second process takes over
    the memory of the first as it is: that one stops until the second one ends it.
    """
    syscalls = _SYSCALLS.get(os.uname().machine)
    own_number = ctypes.POINTER(ctypes.c_int)()  # where the C library keeps the thread's number, which changes
    if syscalls is not None and _libc.prctl(_PR_GET_TID_ADDRESS, ctypes.byref(own_number), 0, 0, 0) == 0:
        clone, set_tid_address = syscalls
        _libc.syscall(set_tid_address, None)  # or its end would be noted in the memory that goes on being used
        first = os.getpid()
        pid = _libc.syscall(clone, ctypes.c_long(_CLONE_VM | _CLONE_VFORK | signal.SIGCHLD), None, None, None, None)
        if pid == 0:
            os.kill(first, signal.SIGKILL)
            if own_number:
                own_number[0] = os.getpid()
                _libc.syscall(set_tid_address, own_number)
            return
        if pid > 0:  # it was ended before it could do that
            os._exit(0)
    if os.fork():
        os._exit(0)
