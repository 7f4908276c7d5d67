"""Processes that were left behind, and that became ours: reaped when they have ended.

The first process of a namespace does not end by itself. One that nobody has heard of is left by what was ended while it
forked a kernel: it is ended too, with all that is in its namespace.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

_TOGETHER_S = 0.1
_STRANGE_S = 2.0  # who has just been forked is heard of in a moment


class Orphans:
    """`own` tells the children that somebody else waits for; None when that is not known now."""

    def __init__(self, own: Callable[[], set[int] | None]) -> None:
        self._own = own
        self._ended = asyncio.Event()
        self._strange: dict[int, float] = {}  # since when; first processes that nobody has heard of

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGCHLD, self._ended.set)
        try:
            while True:
                await self._ended.wait()
                await asyncio.sleep(_TOGETHER_S)  # most are somebody's, who is reaping them right now
                if (own := self._own()) is not None:
                    self._ended.clear()
                    self._reap(own)
                    if self._strange:
                        loop.call_later(_STRANGE_S, self._ended.set)
        finally:
            loop.remove_signal_handler(signal.SIGCHLD)

    def _reap(self, own: set[int]) -> None:
        now, strange = time.monotonic(), {}
        for pid in _children():
            if pid not in own:
                with contextlib.suppress(ChildProcessError, ProcessLookupError):
                    if os.waitpid(pid, os.WNOHANG)[0] == 0 and _is_first(pid):
                        strange[pid] = self._strange.get(pid, now)
                        if now - strange[pid] >= _STRANGE_S:
                            os.kill(pid, signal.SIGKILL)
        self._strange = strange


def _is_first(pid: int) -> bool:
    """Of a pid namespace. A session's own processes never are, since it can make none."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as lines:
        for line in lines:
            if line.startswith("NSpid:"):
                numbers = line.split()[1:]
                return len(numbers) > 1 and numbers[-1] == "1"
    return False


def _children() -> list[int]:
    found: list[int] = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/self/task/{task}/children").read_text().split())
    return found
