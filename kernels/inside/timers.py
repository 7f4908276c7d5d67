"""A timer of another thread's loop, which that thread notices only when it has run out."""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_NONBLOCK_CLOEXEC = 0o4000 | 0o2000000


class _TimerSpec(ctypes.Structure):
    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "after_s", "after_ns")]


class Timer:
    """Calls `work` in the loop's thread some time after `start`; started again, it begins anew.

    Where the system has no timers with a file descriptor each start costs the loop's thread a turn.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, after_s: float, work: Callable[[], None]) -> None:
        """Called before the loop runs."""
        self._loop = loop
        self._after_s = after_s
        self._work = work
        self._fd = -1
        libc = ctypes.PyDLL(None)  # keeps the interpreter's lock: these calls take no time
        if hasattr(libc, "timerfd_create"):
            self._set = libc.timerfd_settime
            self._spec = ctypes.byref(_TimerSpec(0, 0, int(after_s), int(after_s % 1 * 1e9)))
            self._fd = libc.timerfd_create(_CLOCK_MONOTONIC, _NONBLOCK_CLOEXEC)
        if self._fd >= 0:
            loop.add_reader(self._fd, self._over)

    def start(self) -> None:
        if self._fd >= 0:
            self._set(self._fd, 0, self._spec, None)
        else:
            self._loop.call_soon_threadsafe(self._loop.call_later, self._after_s, self._work)

    def _over(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was started again
            return
        self._work()
