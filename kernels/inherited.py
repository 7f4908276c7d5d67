"""Processes that became our children when those between us and them had ended, and the users that they are."""

import asyncio
import os
import secrets
import signal
from collections.abc import Callable


class Uids:
    """Users of the system that a session has to itself: none is given twice while it is in use."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def take(self, of: range) -> int | None:
        """One of a range; None if the range is empty, or all of it is taken."""
        if len(of) <= len(self._taken.intersection(of) if len(self._taken) >= len(of) else ()):
            return None
        while (uid := of[secrets.randbelow(len(of))]) in self._taken:
            pass
        self._taken.add(uid)
        return uid

    def give_back(self, uid: int | None) -> None:
        if uid is not None:
            self._taken.discard(uid)


class Inherited:
    """A child of ours; `init_pid` is the first process of its pid namespace, where it has one of its own."""

    def __init__(self, pid: int, init_pid: int | None, on_reaped: Callable[[], None] = lambda: None) -> None:
        self.pid = pid
        self.init_pid = init_pid
        self.walls: list[str] = []  # that stand around it
        self.on_end: Callable[[], None] = lambda: None
        self._on_reaped = on_reaped
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[None] = self._loop.create_future()
        self._pidfd = os.pidfd_open(pid)  # it is our child: until we reap it, nobody else can have its number
        self._loop.add_reader(self._pidfd, self._ended)

    @property
    def running(self) -> bool:
        return not self._over.done()

    @property
    def exact(self) -> bool:
        """Whether all that it has started ends with it, whatever it did."""
        return self.init_pid is not None

    @property
    def pids(self) -> list[int]:
        return [pid for pid in (self.pid, self.init_pid) if pid is not None]

    def _ended(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._over.set_result(None)
        self.on_end()

    async def unreaped(self) -> None:
        """Wait for its end; its number stays its own."""
        await asyncio.shield(self._over)

    def reap(self) -> int:
        """Its exit code once it has ended, negative for the signal that ended it; nothing that it started is left."""
        _, status = os.waitpid(self.pid, 0)
        if self.init_pid is not None:
            os.kill(self.init_pid, signal.SIGKILL)
            os.waitpid(self.init_pid, 0)
        self._on_reaped()
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        if self.running:
            os.kill(self.init_pid or self.pid, signal.SIGKILL)

    async def discard(self) -> None:
        """End it, whatever it does."""
        self.kill()
        await self.unreaped()
        self.reap()
