"""Fills what is free between the things in memory, so that a fork puts its own side by side on pages of its own.

Else each of its small things falls into another hole, and a page that was shared is copied for it. Runs inside the
kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import sys
from typing import Any

_SIZES = (*range(64 << 10, 4 << 10, -1024), *range(4 << 10, 1 << 10, -64), *range(1 << 10, 8, -16))
_NEAR_END = 300_000  # bytes: there what is free is in one piece
_MOST = 100_000
_CLASS = re.compile(r"^ *\d+ +(\d+) +\d+ +\d+ +(\d+)$", re.MULTILINE)  # its size, and how many of it are free

_kept: list[Any] = []


def fill() -> None:
    """To be called once, on the only thread; what can't be done is left as it is."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError, ValueError):
            _fill_pools()
            _fill_heap()


def _fill_pools() -> None:
    """Those of Python's own small objects."""
    for size, free in (map(int, found) for found in _CLASS.findall(_debug_stats())):
        if size >= 48:
            _kept.append([bytes(size - sys.getsizeof(b"")) for _ in range(free)])
        else:
            _kept.append([object() if size < 32 else float(number) for number in range(free)])


def _debug_stats() -> str:
    """What Python tells of its memory, which it only ever writes to descriptor 2."""
    fd, stderr = os.memfd_create("memory"), os.dup(2)
    try:
        os.dup2(fd, 2)
        try:
            sys._debugmallocstats()
        finally:
            os.dup2(stderr, 2)
        return os.pread(fd, 1 << 20, 0).decode()
    finally:
        os.close(fd)
        os.close(stderr)


def _fill_heap() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    with open("/proc/self/maps") as lines:
        start, end = next((int(part, 16) for part in line.split()[0].split("-")) for line in lines if "[heap]" in line)
    left = _MOST
    for size in _SIZES:
        while left:
            left -= 1
            if not start <= (address := libc.malloc(size) or 0) < end - _NEAR_END:
                libc.free(address)
                break
