"""Processes that became our children when those between us and them had ended; the users they are, their groups."""

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Callable

from kernels import processes
from kernels.cgroups import Group, Hierarchy
from kernels.errors import StartFailed
from kernels.nests import Nest

log = logging.getLogger(__name__)


class Kin:
    """What such processes have taken: their numbers until they are reaped, and users of the system.

    `groups` is where a group can be made for each; None where that is impossible.
    """

    def __init__(self, groups: Hierarchy | None = None) -> None:
        self.pids: set[int] = set()
        self.groups = groups
        self._uids: set[int] = set()

    def take_uid(self, of: range) -> int | None:
        """One of a range that nobody has; None if the range is empty. Raises `StartFailed` if all of it is taken."""
        if not of:
            return None
        if len(self._uids) >= len(of):
            raise StartFailed(f"All {len(of)} users of this host that sessions may be are taken.")
        while (uid := of[secrets.randbelow(len(of))]) in self._uids:
            pass
        self._uids.add(uid)
        return uid

    def new_group(self) -> Group | None:
        """A group that bounds nothing yet."""
        if self.groups is None:
            return None
        try:
            return self.groups.group(secrets.token_hex(8))
        except OSError as error:
            log.warning("There is no group for one more kernel: %s", error)
            return None

    def give_back(self, uid: int | None) -> None:
        if uid is not None:
            self._uids.discard(uid)


class Inherited:
    """A child of ours; `init_pid` is the first process of its pid namespace, where it has one of its own.

    `uid` is given back to `kin` when it is reaped.
    """

    def __init__(self, pid: int, init_pid: int | None, kin: Kin, uid: int | None = None) -> None:
        self.pid = pid
        self.init_pid = init_pid
        self.walls: list[str] = []  # that stand around it
        self.group: Group | None = None  # that it is in, with all that it starts
        self.nest: Nest | None = None  # its namespaces, once others are to be inside of them
        self.on_end: Callable[[], None] = lambda: None
        self._uid = uid
        self._kin = kin
        self._kin.pids.update(self.pids)
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

    @property
    def shared(self) -> bool:
        """Whether copies of it are behind its walls too: these stay until the last one has ended."""
        return self.nest is not None and self.nest.held > 1

    async def reaped(self) -> int | None:
        """Wait for its end and that of all behind its walls; its exit code, negative for the signal that ended it.

        Where there are copies, what it has started may run yet. None: nobody can know.
        """
        await self.unreaped()
        code = await self._exit_code()
        self._kin.pids.discard(self.pid)
        if self.nest is not None:
            await self.nest.let_go()
        else:
            await self.end_walls()
        return code

    async def _exit_code(self) -> int | None:
        return _exit_code(self.pid)

    async def end_walls(self) -> None:
        """End all that is behind them; nobody needs them any more."""
        if self.init_pid is not None:  # which can't end before that is done
            os.kill(self.init_pid, signal.SIGKILL)
            await processes.gone(self.init_pid)
            _exit_code(self.init_pid)
            self._kin.pids.discard(self.init_pid)
        self._kin.give_back(self._uid)

    def kill(self) -> None:
        if self.running:
            os.kill(self.pid if self.shared else self.init_pid or self.pid, signal.SIGKILL)

    async def discard(self) -> None:
        """End it, whatever it does."""
        self.kill()
        await self.reaped()
        if self.group is not None:
            await asyncio.to_thread(remove, self.group)


def remove(group: Group) -> None:
    """Whatever runs in it. Blocks."""
    try:
        group.end()
    except OSError as error:
        log.warning("A group stays: %s", error)


def _exit_code(pid: int) -> int:
    """Of a child that has ended; its number is anybody's from now on."""
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
