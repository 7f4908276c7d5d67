"""The namespaces of a session, for copies of it to have theirs inside: those of its users, and of its processes.

They last until the session's kernel and all copies that are inside, at whatever depth, have ended.
"""

import fcntl
import os
from collections.abc import Awaitable, Callable

_NS_GET_PARENT = 0xB702


class Nest:
    """`end` is called when nobody is in it any more. The descriptors are its own, closed then."""

    def __init__(self, user_ns: int, pid_ns: int, around: "Nest | None", end: Callable[[], Awaitable[None]]) -> None:
        self.user_ns = user_ns
        self.pid_ns = pid_ns
        self.held = 1  # by the session itself; and by each copy of it
        self._around = around
        self._end = end

    @classmethod
    def of(cls, pid: int, end: Callable[[], Awaitable[None]]) -> "Nest":
        """Of a process that runs. Raises `OSError`."""
        user_ns = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return cls(user_ns, os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC), None, end)
        except BaseException:
            os.close(user_ns)
            raise

    @property
    def chain(self) -> "list[Nest]":
        """From the outermost to this one."""
        return [*(self._around.chain if self._around is not None else ()), self]

    @property
    def depth(self) -> int:
        return len(self.chain) - 1

    def owner(self) -> int:
        """The user namespace that the outermost one is in, which its files belong to; the caller's to close."""
        return fcntl.ioctl(self.chain[0].user_ns, _NS_GET_PARENT)

    def hold(self) -> None:
        """For a copy that is to be inside."""
        self.held += 1

    async def let_go(self) -> None:
        """By the session itself, or one of its copies, when it has ended."""
        self.held -= 1
        if self.held == 0:
            await self._end()
            os.close(self.user_ns)
            os.close(self.pid_ns)
            if self._around is not None:
                await self._around.let_go()
