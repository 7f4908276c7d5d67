"""The keeper's side of a process that forks kernels, and of what it has forked.

A forked kernel is our own child: the processes between us and it have ended when we hear of it, and we are a subreaper.
"""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernels import processes
from kernels.errors import KernelsError
from kernels.inherited import Inherited, Kin
from kernels.processes import MARK

_SCRIPT = Path(__file__).parent / "inside" / "zygote.py"
_ENTER = _SCRIPT.with_name("enter.py")
_START_S = 30.0
_FORK_S = 10.0
_BIND_S = 5.0
_AT_ONCE = 16  # forks that are asked for before the first is answered
_MESSAGE_BYTES = 65_536
_MOST_FDS = 64
_LONGEST_MARK = 64
_PR_SET_CHILD_SUBREAPER = 36


Answer = tuple[dict[str, Any], list[int]]  # and descriptors


class ZygoteFailed(KernelsError):
    """Nothing was forked; a kernel can be started in another way."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What kernels that one process can fork have in common."""

    argv: tuple[str, ...]  # an interpreter and its options
    env: tuple[tuple[str, str], ...]
    preloads: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Behind:
    """What a session has behind its walls: folders ("rw", "ro"), a name for its machine, limits as in `walls.close`."""

    trees: Mapping[str, str] = field(default_factory=dict)
    hostname: str = "session"
    limits: Mapping[str, Any] = field(default_factory=dict)


def be_subreaper() -> bool:
    """Have orphans among our descendants become our children. False where the system can't."""
    try:
        done: int = ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    except AttributeError:
        return False
    return done == 0 and hasattr(os, "pidfd_open")


class Forked(Inherited):
    """A process that waits to be told which kernel it is, and then is that one. It ends when we do."""

    def __init__(
        self, zygote: "Zygote", pid: int, init_pid: int | None, user_ns: int | None, channel: socket.socket,
        kin: Kin, uid: int | None,
    ) -> None:  # fmt: skip
        super().__init__(pid, init_pid, kin, uid)
        self.zygote = zygote
        self._user_ns = user_ns
        self._channel = channel
        self._bound = asyncio.Event()

    @property
    def zygote_runs(self) -> bool:
        return not self.zygote.over.is_set()

    async def name(self, identity: Mapping[str, Any], output_fd: int, behind: Behind) -> None:
        """Tell it who it is. Raises `ZygoteFailed`; then it has ended, or is the caller's to end."""
        trees = await self.zygote.open_trees(behind.trees, self._user_ns) if behind.trees else {}
        order = {"trees": list(trees), "hostname": behind.hostname, "limits": behind.limits}
        file = _in_memory(json.dumps(identity).encode())
        try:
            socket.send_fds(self._channel, [json.dumps(order).encode()], [output_fd, file, *trees.values()])
        except OSError as error:
            raise ZygoteFailed(f"The kernel ended before it began: {error.strerror}") from None
        finally:
            for fd in (file, *trees.values()):
                os.close(fd)
        self._loop.add_reader(self._channel, self._hear)

    async def bound(self) -> None:
        """Wait until it can be connected to, or has ended; not for long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BIND_S):
                await self._bound.wait()

    def _hear(self) -> None:
        try:
            told = self._channel.recv(_MESSAGE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            told = b""
        message = json.loads(told or b"{}")
        if "walls" in message:
            self.walls = message["walls"]
        else:
            self._close()

    def _close(self) -> None:
        if self._channel.fileno() < 0:
            return
        self._bound.set()
        self._loop.remove_reader(self._channel)
        self._channel.close()
        if self._user_ns is not None:
            os.close(self._user_ns)
            self._user_ns = None

    async def reaped(self) -> int | None:
        await self.unreaped()
        self._close()
        return await super().reaped()


def _in_memory(content: bytes) -> int:
    """A file that is nowhere: unlike a message, it may be of any size."""
    fd = os.memfd_create("identity", os.MFD_CLOEXEC)
    with open(fd, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class Zygote:
    """One that runs. Made by `start`; whoever made it ends it."""

    def __init__(self, environment: Environment, process: "subprocess.Popen[bytes]", control: socket.socket) -> None:
        self.environment = environment
        self.pid = process.pid
        self.modules: frozenset[str] = frozenset()
        self.over = asyncio.Event()
        self._process = process
        self._control = control
        self._asked: deque[asyncio.Future[Answer]] = deque()
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        asyncio.get_running_loop().add_reader(control, self._read)

    @classmethod
    async def start(cls, environment: Environment, home: Path, read_only: Sequence[str] | None = None) -> "Zygote":
        """Raises `ZygoteFailed`. `home` is a folder where it finds and leaves nothing.

        With `read_only` (paths) what it forks can have walls around it.
        """
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        env = {**dict(environment.env), "HOME": str(home), "IPYTHONDIR": str(home), MARK: "-" * _LONGEST_MARK}
        command = [*environment.argv, "-s", str(_SCRIPT), str(its.fileno()), *environment.preloads]
        if read_only is not None and os.geteuid() != 0:
            command = [sys.executable, "-I", "-S", str(_ENTER), json.dumps(list(read_only)), *command]
        with its:
            try:
                process = subprocess.Popen(  # noqa: ASYNC220, S603 - starting what a kernelspec names is the work
                    command, env=env, cwd="/", stdin=subprocess.DEVNULL, pass_fds=[its.fileno()], start_new_session=True
                )
            except (OSError, ValueError) as error:
                ours.close()
                raise ZygoteFailed(f"{environment.argv[0]!r} does not start: {error}") from None
        zygote = cls(environment, process, ours)
        try:
            async with asyncio.timeout(_START_S):
                await zygote._ready
        except TimeoutError:
            await zygote.end()
            raise ZygoteFailed(f"It was not ready within {_START_S:g} s.") from None
        except BaseException:
            await zygote.end()
            raise
        return zygote

    @property
    def forking(self) -> bool:
        """Whether there may be a child of ours that we have not heard of."""
        return bool(self._asked)

    async def fork(self, plan: Mapping[str, Any], kin: Kin) -> Forked:
        """Raises `ZygoteFailed`. `plan` is that of its walls."""
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with its:
                told, fds = await self._ask({"plan": plan}, [its.fileno()])
        except BaseException:
            ours.close()  # if it is there it sees that it is nobody's
            raise
        return Forked(self, told["pid"], told["init_pid"], fds[0] if fds else None, ours, kin, plan.get("uid"))

    async def open_trees(self, paths: Mapping[str, str], user_ns: int | None) -> dict[str, int]:
        """Detached mounts of these paths, the caller's to close. Raises `ZygoteFailed`."""
        told, fds = await self._ask({"trees": dict(paths)}, [] if user_ns is None else [user_ns])
        return dict(zip(told["opened"], fds, strict=True))

    async def nest(self, order: Mapping[str, Any], fds: Sequence[int]) -> Answer:
        """Namespaces inside of a session's, and {"init_pid"}: see `inside/nests.py`. Raises `ZygoteFailed`."""
        return await self._ask({"nest": order}, fds)

    async def _ask(self, request: Mapping[str, Any], fds: Sequence[int]) -> Answer:
        async with self._turn:
            if self.over.is_set():
                raise ZygoteFailed("It has ended.")
            answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            self._asked.append(answer)
            try:
                socket.send_fds(self._control, [json.dumps(request).encode()], list(fds))
            except OSError as error:
                self._lost(f"It can't be reached: {error.strerror}.")
            try:
                async with asyncio.timeout(_FORK_S):
                    return await answer
            except TimeoutError:
                self._lost(f"It did not answer within {_FORK_S:g} s.")
                raise ZygoteFailed("It does not answer.") from None

    def _read(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE_BYTES, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._lost("It has ended.")
            return
        message = json.loads(data)
        if "modules" in message:
            self.modules = frozenset(message["modules"])
            self._ready.set_result(None)
            return
        answer = self._asked.popleft()
        if answer.done():  # whoever asked has left
            for fd in fds:
                os.close(fd)
            if message.get("init_pid"):  # which would wait for ever for somebody to end it; it is our child
                os.kill(message["init_pid"], signal.SIGKILL)
        elif "error" in message:
            answer.set_exception(ZygoteFailed(message["error"]))
        else:
            answer.set_result((message, fds))

    def _lost(self, why: str) -> None:
        """Nothing more comes of it; what it may have forked without telling ends by itself."""
        if self.over.is_set():
            return
        self.over.set()
        asyncio.get_running_loop().remove_reader(self._control)
        self._control.close()
        for answer in self._asked:
            if not answer.done():
                answer.set_exception(ZygoteFailed(why))
        self._asked.clear()
        if not self._ready.done():
            self._ready.set_exception(ZygoteFailed(f"{why} The keeper's log has what it said."))
        self._process.kill()

    async def end(self) -> int:
        """End it, if it has not ended; how it did."""
        self._lost("It was ended.")
        if self._process.returncode is not None:
            return self._process.returncode
        return await processes.exited(self._process)
