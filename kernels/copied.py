"""Kernels that are copies of others, inside of their namespaces: not children of ours, but ended as exactly."""

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct

from kernels import processes
from kernels.inherited import Inherited, Kin

_PIDFD_GET_INFO = 0xC040FF0B
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_INFO_EXIT = 1 << 3
_LOOKS = 20
_LOOK_S = 0.002


class First:
    """The first process of a pid namespace, which ends with it; and when `lifeline` is closed, whatever becomes of us.

    Raises `OSError` if it has ended.
    """

    def __init__(self, pid: int, lifeline: socket.socket) -> None:
        self.pid = pid
        self._lifeline = lifeline
        self._pidfd = os.pidfd_open(pid)
        try:
            lifeline.send(b"1", socket.MSG_DONTWAIT)  # it hears that: it is not another one with its number
        except OSError:
            os.close(self._pidfd)
            raise

    async def end(self) -> None:
        """End all that is in the namespace, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        self._lifeline.close()
        await processes.over(self._pidfd)
        os.close(self._pidfd)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class Copied(Inherited):
    """Its `nest` has to be set before it can be reaped."""

    def __init__(self, pid: int, first: First, kin: Kin) -> None:
        super().__init__(pid, first.pid, kin)
        self._first = first
        self._kin.pids.difference_update(self.pids)  # which are not ours to reap
        self._asked = os.dup(self._pidfd)

    async def _exit_code(self) -> int | None:
        """As the system remembers it for who knew the process; from Linux 6.15."""
        try:
            for _ in range(_LOOKS):
                with contextlib.suppress(OSError):
                    told = bytearray(_PIDFD_INFO.pack(_INFO_EXIT, *[0] * 13))
                    fcntl.ioctl(self._asked, _PIDFD_GET_INFO, told)
                    mask, *_, status = _PIDFD_INFO.unpack(told)
                    if mask & _INFO_EXIT:
                        return os.waitstatus_to_exitcode(status)
                await asyncio.sleep(_LOOK_S)  # it ends, but its new parent has not taken note yet
            return None
        finally:
            os.close(self._asked)

    async def end_walls(self) -> None:
        """Nothing: its nest ends with its first process."""

    def kill(self) -> None:
        if not self.running:
            return
        if self.shared:
            os.kill(self.pid, signal.SIGKILL)
        else:
            self._first.kill()
