"""A place for the copy of a live kernel to report at, and what becomes of it: walls of its own, a name, a new child.

The copy runs the session's code, so it is believed nothing: its walls are built by processes of ours, it only enters
them, and it is looked at from outside before it counts as a kernel.
"""

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kernels import cgroups, processes
from kernels.copied import Copied, First
from kernels.errors import StartFailed
from kernels.inherited import Inherited, Kin
from kernels.inside.nests import NAMES
from kernels.nests import Nest
from kernels.zygote import Zygote, ZygoteFailed

_ARRIVES_S = 30.0
_READY_S = 30.0
_DEEPEST = 28  # of at most 32; the session's own walls take some
_MESSAGE_BYTES = 65_536
_LONGEST_PATH = 107
_CREDENTIALS = struct.Struct("3i")
STRANGERS = "the session that it was copied from can signal it, and reach programs that it starts"


class Lodging:
    """Namespaces that are there for a copy, with nobody in them but their first process."""

    def __init__(self, nest: Nest, first: First, namespaces: dict[str, int]) -> None:
        self.nest = nest
        self.first = first
        self.namespaces = namespaces

    @classmethod
    async def made(
        cls, around: Nest, zygote: Zygote, plan: Mapping[str, Any], behind: Mapping[str, Any], root: bool
    ) -> "Lodging":
        """Raises `ZygoteFailed`, `OSError`. `around` is that of the source, and has been held for it."""
        ours, its = socket.socketpair()
        opened: list[int] = []
        try:
            owner = [around.owner()] if root else []
            try:
                order = {"plan": plan, "trees": behind["trees"], "hostname": behind["hostname"], "depth": around.depth}
                chain = [nest.user_ns for nest in around.chain]
                told, opened = await zygote.nest(order, [its.fileno(), around.pid_ns, *chain, *owner])
            finally:
                for fd in owner:
                    os.close(fd)
                its.close()
            first = First(told["init_pid"], ours)
        except BaseException:
            ours.close()
            for fd in opened:
                os.close(fd)
            raise
        names = [name for name in NAMES if name in plan["namespaces"]]
        namespaces = dict(zip(names, opened, strict=True))
        nest = Nest(os.dup(namespaces["user"]), os.dup(namespaces["pid"]), around, first.end)
        return cls(nest, first, namespaces)

    def forget_descriptors(self) -> None:
        for fd in self.namespaces.values():
            os.close(fd)
        self.namespaces = {}


class Offer:
    """To one copy of `source`. Made by `open`; then either `accept` is called, or `withdraw`."""

    def __init__(self, source: Inherited | None, source_pid: int, folder: Path) -> None:
        self._source = source
        self._source_pid = source_pid
        path = folder / f"c{secrets.token_hex(4)}"
        if len(os.fsencode(path)) > _LONGEST_PATH:
            raise StartFailed("The path of the kernel's runtime folder is too long.")
        self.address = str(path)
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listening.bind(self.address)
        self._listening.listen(1)
        self._lodging: asyncio.Task[Lodging] | None = None
        self._connection: socket.socket | None = None

    def lodge(self, zygote: Zygote, plan: Mapping[str, Any], behind: Mapping[str, Any]) -> None:
        """Begin to build namespaces for it, inside of the source's. Raises `OSError`."""
        source = self._source
        assert source is not None
        if source.nest is None:
            source.nest = Nest.of(source.pid, source.end_walls)
        if source.nest.depth >= _DEEPEST:
            raise StartFailed(f"The session is a copy of a copy, {source.nest.depth} times over: walls nest no deeper.")
        source.nest.hold()
        self._lodging = asyncio.create_task(self._lodged(source.nest, zygote, plan, behind))
        self._lodging.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _lodged(
        self, around: Nest, zygote: Zygote, plan: Mapping[str, Any], behind: Mapping[str, Any]
    ) -> Lodging:
        try:
            return await Lodging.made(around, zygote, plan, behind, root=os.geteuid() == 0)
        except BaseException:
            await asyncio.shield(around.let_go())
            raise

    async def accept(
        self, identity: Mapping[str, Any], output_fd: int, group: cgroups.Group | None, kin: Kin, *, seccomp: bool
    ) -> Inherited:
        """The copy, once it serves under this identity. Raises `StartFailed`; then nothing of it stays."""
        pidfd = -1
        lodging: Lodging | None = None
        try:
            async with asyncio.timeout(_ARRIVES_S):
                pid, pidfd = await self._arrived()
                if self._lodging is not None:
                    lodging = await asyncio.shield(self._lodging)
            if group is not None:
                group.add(pid)
            namespaces = lodging.namespaces if lodging is not None else {}
            self._tell({**identity, "namespaces": list(namespaces)}, [output_fd, *namespaces.values()])
            async with asyncio.timeout(_READY_S):
                if lodging is not None:
                    await self._heard("inside")
                    first_pidfd, pidfd = pidfd, -1
                    try:
                        pid, pidfd = _only_child(pid)
                    finally:
                        await _ended(first_pidfd)  # until then it is one of the copy's group
                    self._tell({}, [])
                await self._heard("ready")
            if lodging is not None:
                _look_at(pid, lodging.namespaces, seccomp=seccomp)
                if group is not None and set(group.pids()) != {pid}:
                    raise StartFailed("The copy has brought others along.")
            return self._taken_in(pid, lodging, kin)
        except BaseException as error:
            if pidfd >= 0:
                _end(pidfd)
                pidfd = -1
            await asyncio.shield(self.withdraw())
            match error:
                case TimeoutError():
                    raise StartFailed("The copy of the kernel was not ready in time.") from None
                case ZygoteFailed() | OSError():
                    raise StartFailed(f"The copy of the kernel has no walls: {error}") from None
            raise
        finally:
            if pidfd >= 0:
                os.close(pidfd)
            self._close()

    def _taken_in(self, pid: int, lodging: Lodging | None, kin: Kin) -> Inherited:
        if lodging is None:
            return Inherited(pid, None, kin)
        copied = Copied(pid, lodging.first, kin)
        copied.nest = lodging.nest
        lodging.forget_descriptors()
        self._lodging = None
        return copied

    async def _arrived(self) -> tuple[int, int]:
        """Its number and a descriptor of it. Raises `StartFailed`."""
        loop = asyncio.get_running_loop()
        self._connection, _ = await loop.sock_accept(self._listening)
        self._connection.setblocking(False)
        option = self._connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, _, _ = _CREDENTIALS.unpack(option)
        pidfd = os.pidfd_open(pid) if pid > 0 else -1
        try:
            for name in ("user", "pid"):
                if pidfd < 0 or _inode(f"/proc/{pid}/ns/{name}") != _inode(f"/proc/{self._source_pid}/ns/{name}"):
                    raise StartFailed("What has reported is no copy of the kernel.")
            with contextlib.suppress(BlockingIOError):
                if not self._connection.recv(1, socket.MSG_PEEK):
                    raise StartFailed("The copy of the kernel has ended.")
        except BaseException:
            if pidfd >= 0:
                os.close(pidfd)
            raise
        return pid, pidfd

    def _tell(self, message: Mapping[str, Any], fds: list[int]) -> None:
        assert self._connection is not None
        try:
            socket.send_fds(self._connection, [json.dumps(message).encode()], fds)
        except OSError as error:
            raise StartFailed(f"The copy of the kernel has ended: {error.strerror}") from None

    async def _heard(self, word: str) -> None:
        assert self._connection is not None
        try:
            data = await asyncio.get_running_loop().sock_recv(self._connection, _MESSAGE_BYTES)
        except ConnectionError:
            data = b""
        message = json.loads(data) if data else {"error": "it has ended; the session's log may tell why"}
        if not isinstance(message, dict) or message.get(word) is not True:
            why = message.get("error") if isinstance(message, dict) else None
            raise StartFailed(f"The copy of the kernel does not serve: {str(why)[:300]}")

    async def withdraw(self) -> None:
        """Nobody comes, or is wanted any more; what has come ends."""
        self._close()
        if self._lodging is not None:
            lodging, self._lodging = self._lodging, None
            with contextlib.suppress(ZygoteFailed, OSError):
                made = await lodging
                made.forget_descriptors()
                await made.nest.let_go()

    def _close(self) -> None:
        self._listening.close()
        if self._connection is not None:
            self._connection.close()
        with contextlib.suppress(OSError):
            os.unlink(self.address)


def _only_child(pid: int) -> tuple[int, int]:
    """Of a process that stands still: where the copy goes on. Raises `StartFailed`."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as children:
            found = children.read().split()
        if len(found) != 1:
            raise StartFailed("The copy of the kernel has ended.")
        return int(found[0]), os.pidfd_open(int(found[0]))
    except OSError:
        raise StartFailed("The copy of the kernel has ended.") from None


def _end(pidfd: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    os.close(pidfd)


async def _ended(pidfd: int) -> None:
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        await processes.over(pidfd)
    finally:
        os.close(pidfd)


def _inode(path: str) -> int:
    return os.stat(path).st_ino


def _look_at(pid: int, namespaces: Mapping[str, int], *, seccomp: bool) -> None:
    """Whether its walls stand, whatever it said. Raises `StartFailed`, `OSError`."""
    for name, fd in namespaces.items():
        if _inode(f"/proc/{pid}/ns/{NAMES[name]}") != os.fstat(fd).st_ino:
            raise StartFailed(f"The copy of the kernel is not behind its wall: {name}")
    with open(f"/proc/{pid}/status") as lines:
        status = {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}
    wanted = {f"Cap{kind}": "0" * 16 for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    wanted |= {"NoNewPrivs": "1", "TracerPid": "0", **({"Seccomp": "2"} if seccomp else {})}
    wrong = [name for name, value in wanted.items() if status.get(name, value) != value]
    if wrong:
        raise StartFailed(f"The copy of the kernel is not behind its walls: {', '.join(wrong)}")
