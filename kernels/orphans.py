"""Processes that a kernel has left behind, and that became ours: reaped when they have ended."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

_TOGETHER_S = 0.1


class Orphans:
    """`own` tells the children that somebody else waits for; None when that is not known now."""

    def __init__(self, own: Callable[[], set[int] | None]) -> None:
        self._own = own
        self._ended = asyncio.Event()

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._ended.set)
        try:
            while True:
                await self._ended.wait()
                await asyncio.sleep(_TOGETHER_S)  # most are somebody's, who is reaping them right now
                if (own := self._own()) is not None:
                    self._ended.clear()
                    _reap(own)
        finally:
            loop.remove_signal_handler(signal.SIGCHLD)


def _reap(own: set[int]) -> None:
    for pid in _children():
        if pid not in own:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def _children() -> list[int]:
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
    return found
