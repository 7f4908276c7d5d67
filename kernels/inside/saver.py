"""A copy of the kernel that does one piece of work beside it: the session stands still for the fork, not for the work.

The copy is nobody's child, so that the session's own `os.wait()` never sees it. It is in a session of its own, says
nothing to any front end, holds none of the session's pipes and sockets open, and ends without exit handlers.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import faulthandler
import fcntl
import gc
import json
import os
import random
import select
import signal
import stat
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from .forks import become_nobodys_child, own_pipes, quiet_fork

_NICENESS = 10
_LOW_IO_PRIORITY = 2 << 13 | 7  # the last of the usual class
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_PR_SET_NAME = 15
_PID_WIDTH = 20
_FORK_S = 10  # in which a copy must have come to life
_EXIT_S = 5  # in which a killed one must be gone

Work = Callable[[], Any]


class SaverFailed(Exception):
    """The copy ended before its work was done."""


class Saver:
    """The copy, seen from the kernel. Made by `fork`; its `answer` must be awaited."""

    def __init__(self, pid: int, pipe: int, oom_kills: int) -> None:
        self._pid = pid
        self._pipe = pipe
        self._oom_kills = oom_kills
        self._received = bytearray()

    async def answer(self, timeout_s: float) -> Any:
        """What the work gave. Raises `SaverFailed`; a copy that takes longer is ended with all that it started."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        os.set_blocking(self._pipe, False)
        asyncio.get_running_loop().add_reader(self._pipe, self._read, ended)
        try:
            await asyncio.wait({ended}, timeout=timeout_s)
            if not ended.done():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._pid, signal.SIGKILL)
                await asyncio.wait({ended}, timeout=_EXIT_S)
                raise SaverFailed(f"Saving took longer than {timeout_s:g} s and was ended.")
        finally:
            asyncio.get_running_loop().remove_reader(self._pipe)
            _close(self._pipe)
        return self._parsed()

    def _read(self, ended: asyncio.Future[None]) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._pipe, 1 << 20)
            self._received += data
            whole = self._received[:1] == b"{" and self._received[-1:] == b"\n"  # something that it started may live on
            if (whole or not data) and not ended.done():
                ended.set_result(None)

    def _parsed(self) -> Any:
        try:
            answer = json.loads(self._received)
        except ValueError:
            raise SaverFailed(f"The copy of the kernel that was saving {self._last_words()}.") from None
        if "error" in answer:
            raise SaverFailed(f"Saving failed: {answer['error']}")
        return answer["answer"]

    def _last_words(self) -> str:
        text = self._received.decode(errors="replace")
        if "Fatal Python error: " in text:
            return f"crashed ({text.partition('Fatal Python error: ')[2].splitlines()[0][:200]})"
        if _oom_kills() > self._oom_kills:
            return "ran out of memory and was ended by the system"
        return "was killed before it had finished"


def fork(work: Work, quieten: Callable[[], None]) -> Saver:
    """Have `work` done by a copy of this process; its result, or why there is none, is sent back as JSON.

    Only on the main thread. Raises `OSError` if there can be no copy, and then nothing has happened.
    """
    oom_kills, random_state = _oom_kills(), random.getstate()
    libc, ioprio_set = ctypes.CDLL(None), _IOPRIO_SET.get(os.uname().machine)
    pipe, copys_end = os.pipe()
    own_pipes.add(pipe)
    try:
        first = quiet_fork()
    except BaseException:
        _close(pipe)
        os.close(copys_end)
        raise
    if first == 0:
        _be_the_copy(work, quieten, copys_end, libc, ioprio_set, random_state)
    os.close(copys_end)
    begun = bool(select.select([pipe], [], [], _FORK_S)[0])
    if not begun:
        os.kill(first, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):  # the session does not want to hear of children
        os.waitpid(first, 0)
    pid = os.read(pipe, _PID_WIDTH) if begun else b""
    if not pid:
        _close(pipe)
        raise OSError(errno.EAGAIN, "the copy did not come to life")
    return Saver(int(pid), pipe, oom_kills)


def _close(pipe: int) -> None:
    own_pipes.discard(pipe)
    os.close(pipe)


def _be_the_copy(
    work: Work,
    quieten: Callable[[], None],
    pipe: int,
    libc: Any,
    ioprio_set: int | None,
    random_state: Any,
) -> NoReturn:
    try:
        gc.disable()
        sys.settrace(None)
        sys.setprofile(None)
        become_nobodys_child()
        os.setsid()
        os.write(pipe, str(os.getpid()).encode().ljust(_PID_WIDTH))
        quieten()
        _take_no_signals()
        _let_go(pipe)
        _be_modest(libc, ioprio_set)
        faulthandler.enable(pipe, all_threads=False)
        random.setstate(random_state)
        try:
            text = json.dumps({"answer": work()})
        except BaseException as error:
            text = json.dumps({"error": f"{type(error).__name__}: {error}"})
        view = memoryview(f"{text}\n".encode())
        while view:
            view = view[os.write(pipe, view) :]
    finally:
        os._exit(0)


def _take_no_signals() -> None:
    """An interrupt is meant for the session; what its other signals do is not done here."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        with contextlib.suppress(OSError, ValueError):
            if signal.getsignal(number) not in (signal.SIG_DFL, signal.SIG_IGN):
                signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _let_go(pipe: int) -> None:
    """Close what the session holds, or others would wait for its end in vain; files that it reads are looked at."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(nowhere, fd)
    folder = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"
    for fd in [int(name) for name in os.listdir(folder)]:
        if fd > 2 and fd != pipe:
            with contextlib.suppress(OSError):
                only_read = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
                if not (only_read and stat.S_ISREG(os.fstat(fd).st_mode)):
                    os.close(fd)


def _be_modest(libc: Any, ioprio_set: int | None) -> None:
    """The session goes first, and this ends first when memory runs out."""
    with contextlib.suppress(OSError):
        os.nice(_NICENESS)
    if ioprio_set is not None:
        libc.syscall(ioprio_set, 1, 0, _LOW_IO_PRIORITY)
    libc.prctl(_PR_SET_NAME, b"kernel-saver", 0, 0, 0)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")


def _oom_kills() -> int:
    with contextlib.suppress(OSError, ValueError), open("/proc/vmstat", "rb") as file:
        return int(file.read().partition(b"\noom_kill ")[2].split(maxsplit=1)[0])
    return 0
