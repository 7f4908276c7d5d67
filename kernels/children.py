"""Kernels as children of this process: started from a complete order, watched, reaped, their exits told.

What such a kernel publishes is journaled by a subscriber of our own; nothing here asks it anything.
"""

import asyncio
import contextlib
import errno
import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

from kernels import cgroups, confined, processes
from kernels.engine import Exit, Walls
from kernels.errors import StartFailed
from kernels.inherited import Inherited, Kin, remove
from kernels.intake import Intake
from kernels.journal import JournalWriter
from kernels.logs import Log
from kernels.offers import STRANGERS, Offer
from kernels.processes import MARK
from kernels.sockets import Socket, address_of
from kernels.zmtp import Cut
from kernels.zygote import Behind, Forked, Zygote

log = logging.getLogger(__name__)

_CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
_LAST_WORDS_S = 0.05  # how long after its death a kernel's messages are still read
_BATCH_S = 0.002
_LOOK_S = 0.25
_NOTE_TURNS = 8


@dataclass(frozen=True, slots=True)
class Order:
    """All that starting a kernel takes. `{connection_file}` in `argv` is replaced by its path."""

    kernel_id: str
    argv: list[str]
    env: dict[str, str]
    cwd: str
    log: str
    memory_bytes: int | None
    journal_bytes: int
    about: dict[str, Any]  # what whoever adopts it must know; of no interest here
    fork: dict[str, Any] | None = None  # what it can be forked from, if it can
    confine: dict[str, Any] = field(default_factory=dict)  # `plan` of its walls, what is `behind`, what is `missing`
    cpus: float | None = None
    pids: int | None = None
    disk_bytes: int | None = None
    disk_paths: list[str] = field(default_factory=list)  # where its files are
    state_paths: list[str] = field(default_factory=list)  # where it can write to when its variables are saved


class Started:
    """A process that was started the ordinary way."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.pid = process.pid
        self._process = process

    async def unreaped(self) -> None:
        await processes.unreaped_exit(self._process)

    async def reaped(self) -> int:
        return await processes.exited(self._process)


class Child:
    """A kernel that runs, or that has ended and is not settled yet. Made by `start`."""

    def __init__(
        self,
        order: Order,
        connection: dict[str, Any],
        folder: Path,
        *,
        group: cgroups.Group | None = None,
        kin: Kin | None = None,
    ) -> None:
        self.id = order.kernel_id
        self.order = order
        self.connection = connection
        self.started_at = time.time()
        self.log_start = 0
        self.heard = asyncio.Event()
        self.forgotten = asyncio.Event()
        self.waiting: asyncio.Task[Exit]
        self.walls = Walls()
        self.mark = f"{MARK}={order.kernel_id}"
        self.zygote: Zygote | None = None  # which may command its walls
        self.folder = folder
        self._process: Started | Inherited | None = None
        self._group = group
        self._kin = kin or Kin()
        self._oom_kills = processes.oom_kills()
        self._noted_oom_kills = (0, 0)  # in its group: before the last look, and after it
        self._out_of_memory = False
        self._kill_reason: str | None = None

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def init_pid(self) -> int | None:
        """The first process of its pid namespace, where it has one: orphans in the session become its children."""
        return self._process.init_pid if isinstance(self._process, Inherited) else None

    @property
    def running(self) -> bool:
        return self._process is not None and not self.waiting.done()

    @property
    def watched(self) -> bool:
        """Whether somebody has to see to its memory: the system does where it has a group of its own."""
        return self._group is None and self.order.memory_bytes is not None

    @property
    def process(self) -> Started | Inherited:
        assert self._process is not None
        return self._process

    @property
    def walled(self) -> bool:
        """Whether all that it has started ends with it, since it is behind walls with it."""
        return isinstance(self._process, Inherited) and self._process.exact

    def make_folder(self) -> Path:
        """Where its sockets are, and those of offers to copies of it."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        return self.folder

    async def launch(self, forked: Forked | None = None) -> None:
        """Give what was forked its name, or start it the ordinary way. Raises `StartFailed`, `ZygoteFailed`."""
        self.make_folder()
        with self._opened_log() as output_fd:
            if forked is not None:
                await self._name(forked, output_fd)
                self.zygote = forked.zygote
            elif self.order.confine.get("plan"):
                await self._confine(output_fd)
            else:
                self._start(output_fd)
        self.waiting = asyncio.create_task(self._wait())
        if forked is not None:
            await forked.bound()
        self._note_walls(self._process.walls if isinstance(self._process, Inherited) else [])

    async def take_copy(self, offer: Offer, source: "Child") -> None:
        """Be what has come to an offer. Raises `StartFailed`."""
        with self._opened_log() as output_fd:
            plan = self.order.confine.get("plan") or {}
            self._process = await offer.accept(
                self._identity(), output_fd, self._group, self._kin, seccomp=bool(plan.get("seccomp"))
            )
        self.zygote = source.zygote
        self.waiting = asyncio.create_task(self._wait())
        self._note_walls([wall for wall in source.walls.standing if wall != "cgroup"])
        if self.walled:
            self.walls = Walls(self.walls.standing, {**self.walls.missing, "source": STRANGERS})

    @contextlib.contextmanager
    def _opened_log(self) -> Iterator[int]:
        with contextlib.ExitStack() as stack:
            try:
                output = stack.enter_context(Log(Path(self.order.log)).opened())
            except OSError as error:
                raise StartFailed(f"The session's log can't be written: {error.strerror}") from None
            self.log_start = os.fstat(output.fileno()).st_size
            yield output.fileno()

    def _note_walls(self, standing: list[str]) -> None:
        standing = [*standing, *(["cgroup"] if self._group is not None else [])]
        missing = {wall: why for wall, why in self.order.confine.get("missing", {}).items() if wall not in standing}
        self.walls = Walls(tuple(standing), missing)

    def _identity(self) -> dict[str, Any]:
        return {
            "connection": self.connection,
            "connection_file": str(self.folder / "kernel.json"),
            "env": self.order.env,
            "cwd": self.order.cwd,
            "overlay": (self.order.fork or {}).get("overlay"),
            "mark": self.mark.partition("=")[2],
        }

    async def _name(self, forked: Forked, output_fd: int) -> None:
        identity = self._identity()
        behind = dict(self.order.confine.get("behind") or {})
        if behind.get("trees"):
            behind["trees"] = {**behind["trees"], str(self.folder): "rw"}
        await forked.name(identity, output_fd, Behind(**behind))
        self._process = forked

    async def _confine(self, output_fd: int) -> None:
        program = self.order.argv[0]
        if shutil.which(program, path=self.order.env.get("PATH", os.defpath)) is None:
            raise self._refused(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), program))
        confine, behind = self.order.confine, self.order.confine["behind"]
        groups = [str(folder) for folder in self._group.folders] if self._group is not None else []
        order = {
            "plan": {**confine["plan"], "cgroups": groups},
            "trees": {**behind["trees"], str(self.folder): "rw"},
            "limits": behind["limits"],
            "hostname": behind["hostname"],
            "cwd": self.order.cwd,
        }
        self._process = await confined.start(
            self._command(), order, env=self._env(), output_fd=output_fd, kin=self._kin
        )

    def _command(self) -> list[str]:
        """With its connection file, which is written."""
        file = self.folder / "kernel.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(self.connection))
        return [part.replace("{connection_file}", str(file)) for part in self.order.argv]

    def _env(self) -> dict[str, str]:
        return {**self.order.env, "JPY_PARENT_PID": str(os.getpid())}

    def _start(self, output_fd: int) -> None:
        try:
            process = subprocess.Popen(  # noqa: S603 - starting what a kernelspec names is the work
                self._command(), env=self._env(), cwd=self.order.cwd, stdin=subprocess.DEVNULL, stdout=output_fd,
                stderr=output_fd, start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise self._refused(error) from None
        self._process = Started(process)
        if self._group is not None:
            with contextlib.suppress(OSError):  # it may have ended
                self._group.add(process.pid)

    def _refused(self, error: Exception) -> StartFailed:
        return StartFailed(f"The kernel {self.connection['kernel_name']!r} does not start: {error}")

    async def _wait(self) -> Exit:
        process = self.process
        await process.unreaped()
        if not (isinstance(process, Inherited) and process.exact):
            await asyncio.to_thread(processes.end_family, self.pid, self.mark)
        elif process.shared and self._group is None:
            await asyncio.to_thread(processes.end_all_beside, process.init_pid)
        exit_ = self._exit(await process.reaped())
        await self.end_group()
        return exit_

    async def end_group(self) -> None:
        if self._group is not None:
            await asyncio.to_thread(remove, self._group)

    def _exit(self, code: int | None) -> Exit:
        if self._out_of_memory:
            return Exit(signal=signal.SIGKILL, out_of_memory=True, reason=self._kill_reason or "")
        if self._kill_reason is not None:
            return Exit(signal=signal.SIGKILL, reason=self._kill_reason)
        if code in (-signal.SIGKILL, None) and self._oom_killed():
            limit = self.order.memory_bytes
            whole = self._group is not None and limit is not None
            what = f"the session used all of its {limit:,} bytes" if whole else "the system killed the kernel"
            return Exit(signal=signal.SIGKILL, out_of_memory=True, reason=f"Out of memory: {what}.")
        if code is None:
            return Exit(reason="The kernel ended; its exit code is not known.")
        if code >= 0:
            return Exit(code=code, reason=f"The kernel exited with code {code}.")
        return Exit(signal=-code, reason=f"The kernel was ended by signal {-code} ({processes.signal_name(-code)}).")

    def _oom_killed(self) -> bool:
        """Just now: what was ended for memory long before was another process."""
        with contextlib.suppress(OSError):
            if self._group is not None:
                return self._group.oom_kills() > self._noted_oom_kills[0]
        return processes.oom_kills() > self._oom_kills

    def note_oom_kills(self) -> None:
        """Tell its user which processes the system has ended for memory since the last look; the kernel lives on."""
        if self._group is None or (isinstance(self._process, Inherited) and not self._process.running):
            return
        with contextlib.suppress(OSError):  # its group has gone meanwhile
            before, now = self._noted_oom_kills[1], self._group.oom_kills()
            self._noted_oom_kills = before, now
            if now > before:
                ended = "a process" if now - before == 1 else f"{now - before} processes"
                limit = self.order.memory_bytes
                rest = f"; its limit is {limit:,} bytes" if limit is not None else ""
                self.note(f"Out of memory: the system ended {ended} of the session{rest}.")

    async def ended(self) -> Exit:
        return await asyncio.shield(self.waiting)

    def interrupt(self, since: float) -> None:
        if self.running:
            for pid in processes.group(self.pid):
                if pid == self.pid or processes.started_since(pid, since):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGINT)

    async def kill(self, reason: str) -> None:
        if self.running:
            if self._kill_reason is None:
                self._kill_reason = reason
            if isinstance(self._process, Inherited) and self._process.exact:
                self._process.kill()
            else:
                await asyncio.shield(asyncio.to_thread(processes.end_family, self.pid, self.mark))
            await self.ended()

    def cpu_seconds(self) -> float:
        """Used so far by all that it has started."""
        with contextlib.suppress(OSError):
            if self._group is not None:
                return self._group.cpu_seconds()
        return processes.usage(self.pid, self.init_pid)[0]

    def let_files_grow(self, grow: bool) -> None:
        """Whether what it runs, and what that starts from now on, may write to the end of files.

        Where we could not take it back, it is no more than a request: who ignores it fills the disk, and is ended.
        """
        size = resource.RLIM_INFINITY if grow else 0
        most = size if processes.may_raise_limits() else resource.RLIM_INFINITY
        for pid in self.family():
            with contextlib.suppress(OSError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, most))

    def family(self) -> list[int]:
        """All that it has started, and itself."""
        with contextlib.suppress(OSError):
            if self._group is not None:
                return self._group.pids()
        return [self.pid, *(one.pid for one in processes.started_by(self.pid, self.init_pid))]

    async def shorten_log(self) -> None:
        """It writes to its log by itself, and so past what may be there."""
        log_file = Log(Path(self.order.log))
        with contextlib.suppress(OSError):
            if log_file.is_too_long():
                await asyncio.to_thread(log_file.shorten)

    def note(self, sentence: str) -> None:
        """Tell its user, in its log."""
        with contextlib.suppress(OSError), Log(Path(self.order.log)).opened() as output:
            print(sentence, file=output, flush=True)

    async def kill_for_memory(self, used_bytes: int) -> None:
        limit = self.order.memory_bytes or 0
        self._out_of_memory = True
        await self.kill(f"Out of memory: the session used {used_bytes:,} bytes, its limit is {limit:,}.")

    async def kill_children(self, since: float) -> int:
        def end() -> int:
            others = (one for one in processes.family(self.pid, self.mark) if one.pid != self.pid)
            return processes.end(one for one in others if processes.started_since(one.pid, since))

        return await asyncio.to_thread(end) if self.running else 0

    async def usage(self) -> tuple[float, int, int]:
        return await asyncio.to_thread(processes.usage, self.pid, self.init_pid) if self.running else (0.0, 0, 0)

    async def last_words(self) -> None:
        """Leave its journal a moment for what was published just before its end, unless nobody wants it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self.forgotten.wait()

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def record(self, keeper_id: str, exit_: Exit | None = None) -> dict[str, Any]:
        """What is written down about it, for who comes later."""
        return {
            "mark": self.id,
            "folder": str(self.folder),
            "keeper": keeper_id,
            "pid": self.pid if self._process is not None else None,
            "started_at": self.started_at,
            "connection": self.connection,
            "log": self.order.log,
            "log_start": self.log_start,
            "memory_bytes": self.order.memory_bytes,
            "heard": self.heard.is_set(),
            "walls": asdict(self.walls),
            "about": self.order.about,
            "exit": asdict(exit_) if exit_ is not None else None,
        }


def connection_at(folder: Path, kernel_name: str) -> dict[str, Any]:
    """How to reach a kernel whose sockets are in a folder of its own: no port can collide, nobody else can connect.

    `session` is what its gateway goes by, so that the next one can take its place.
    """
    return {
        "transport": "ipc",
        "ip": str(folder / "k"),
        "key": uuid4().hex + uuid4().hex,
        "signature_scheme": "hmac-sha256",
        "kernel_name": kernel_name,
        "session": uuid4().hex,
        **{f"{name}_port": number for number, name in enumerate(_CHANNELS, start=1)},
    }


class Journaling:
    """Writes down all that a kernel publishes, from before its start until `close`.

    Nothing is dropped for us: what is not read yet waits in the kernel, if it is ours. Of a message that is larger than
    the journal holds, only that it was there is written down.
    """

    def __init__(self, intake: Intake, child: Child, writer: JournalWriter, heard: Callable[[], None]) -> None:
        self._child = child
        self._writer = writer
        self._tell_heard = heard
        self._socket = Socket(
            address_of(child.connection, "iopub"), "SUB", intake, self._take, self._broke, most_bytes=writer.most_bytes
        )

    def _take(self, messages: list[list[bytes]]) -> None:
        self._writer.add(() if isinstance(frames, Cut) else frames for frames in messages)
        if not self._child.heard.is_set():
            self._child.heard.set()
            self._tell_heard()
            self._socket.batch_s = _BATCH_S

    def _broke(self, error: Exception) -> None:
        log.error("What kernel %s publishes is not written down any more", self._child.id, exc_info=error)

    def close(self) -> None:
        self._socket.drain()  # its last words
        self._socket.close()
        self._writer.close()


class MemoryWatch:
    """Ends kernels that use more than they may; looked at often if they use CPU or have started something.

    Where the system sees to that, for kernels with a group of their own, what it has ended is told.
    """

    def __init__(self, children: dict[str, Child]) -> None:
        self._children = children
        self._seen: dict[str, float] = {}

    async def watch(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(_LOOK_S)
            turn += 1
            for child in list(self._children.values()):
                if turn % _NOTE_TURNS == 0 and child.running:
                    child.note_oom_kills()
                if not child.watched or child.order.memory_bytes is None or not child.running:
                    continue
                try:
                    await self._look(child, child.order.memory_bytes, always=turn % 20 == 0)
                except psutil.Error:  # it is gone
                    pass
                except Exception:
                    log.exception("The memory of kernel %s could not be looked at", child.id)
            self._seen = {kernel_id: used for kernel_id, used in self._seen.items() if kernel_id in self._children}

    async def _look(self, child: Child, limit_bytes: int, *, always: bool) -> None:
        times = psutil.Process(child.pid).cpu_times()
        used = times.user + times.system
        if self._seen.get(child.id) == used and not always:
            return
        _, memory_bytes, count = processes.usage(child.pid, child.init_pid)
        if count == 1:
            self._seen[child.id] = used
        else:
            self._seen.pop(child.id, None)
        if memory_bytes <= limit_bytes:  # some of it may be counted twice
            memory_bytes += processes.memory_file_bytes(child.pid, child.init_pid)
        if memory_bytes > limit_bytes:
            memory_bytes = await asyncio.to_thread(_exact_bytes, child)
        if memory_bytes > limit_bytes:
            await child.kill_for_memory(memory_bytes)


def _exact_bytes(child: Child) -> int:
    shared = processes.shared_memory_bytes(child.pid, child.init_pid)
    return shared + processes.unmapped_bytes(child.pid, child.init_pid)
