"""Processes of this machine: waiting for their end, finding and ending what they started.

A process is told from a later one with the same number by its start time.
"""

import asyncio
import contextlib
import functools
import os
import signal
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

MARK = "SESSION_GATEWAY_KERNEL"  # in the environment of all that runs for a kernel or a setup

_CAP_SYS_RESOURCE = 24
_MOST_ROUNDS = 100
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


async def exited(process: "subprocess.Popen[bytes]") -> int:
    """Wait, without polling where the system can, for a child's return code (negative: its signal)."""
    await unreaped_exit(process)
    return process.wait()


async def unreaped_exit(process: "subprocess.Popen[bytes]") -> None:
    """Wait for a child's end; until somebody asks for its return code, no other process can have its number."""
    if hasattr(os, "pidfd_open"):
        await gone(process.pid)
    else:
        await asyncio.to_thread(os.waitid, os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


async def gone(pid: int) -> None:
    """Wait for the end of any process, a child or not."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await over(pidfd)
    finally:
        os.close(pidfd)


async def over(pidfd: int) -> None:
    """Wait for the end of the process that a descriptor stands for."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(pidfd, _set, readable)
    try:
        await readable
    finally:
        loop.remove_reader(pidfd)


def _set(readable: "asyncio.Future[None]") -> None:
    if not readable.done():
        readable.set_result(None)


def family(pid: int | None, mark: str) -> list[psutil.Process]:
    """A process, its descendants, the others of its session, and all whose environment carries `mark`."""
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.Error):
        if pid is not None:
            root = psutil.Process(pid)
            found[pid] = root
            found.update((child.pid, child) for child in descendants(root))
    own, carried = os.getpid(), mark.encode()
    for other in psutil.pids():
        if other in found or other == own:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if (pid is not None and os.getsid(other) == pid) or _carries(other, carried):
                found[other] = psutil.Process(other)
    return list(found.values())


def group(pid: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for other in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getpgid(other) == pid:
                found.append(other)
    return found


def started_since(pid: int, unix_time: float) -> bool:
    """Whether a process was started at this time or later; False when it is gone.

    Reckoned on the clock that processes are stamped with: the time that psutil tells is up to a second off.
    """
    since_boot = unix_time - time.time() + time.clock_gettime(time.CLOCK_BOOTTIME)
    with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rpartition(b")")[2].split()[19]) * _TICK_S >= since_boot - 2 * _TICK_S
    return False


def _carries(pid: int, mark: bytes) -> bool:
    with open(f"/proc/{pid}/environ", "rb", buffering=0) as environ:
        text = environ.read()
    return mark in text and mark in text.split(b"\0")


def end(processes: Iterable[psutil.Process]) -> int:
    """SIGKILL each that still is what it was; returns how many were there."""
    count = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
            count += 1
    return count


def end_family(pid: int | None, mark: str) -> int:
    """End a process and everything that it started, again until nothing is left; returns how many there were."""
    count = 0
    for _ in range(10):
        alive = [one for one in family(pid, mark) if _runs(one)]
        if not alive:
            break
        count += end(alive)
        psutil.wait_procs([one for one in alive if one.pid != pid], timeout=0.2)
    return count


def end_all_beside(pid: int | None) -> None:
    """End all other processes of a process's pid namespace, but not those of the namespaces inside of it."""
    namespace = os.stat(f"/proc/{pid}/ns/pid").st_ino
    for _ in range(_MOST_ROUNDS):
        found = [other for other in psutil.pids() if other != pid and _is_in(other, namespace)]
        if not found:
            break
        for other in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        time.sleep(_TICK_S)


def _is_in(pid: int, namespace: int) -> bool:
    with contextlib.suppress(OSError, psutil.Error):
        return os.stat(f"/proc/{pid}/ns/pid").st_ino == namespace and _runs(psutil.Process(pid))
    return False


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def usage(pid: int, init_pid: int | None = None) -> tuple[float, int, int]:
    """CPU seconds, memory in bytes (resident) and number of a process, its descendants and those of its init."""
    cpu_seconds, memory_bytes, count = 0.0, 0, 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *started_by(pid, init_pid)):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                cpu_seconds += times.user + times.system
                memory_bytes += process.memory_info().rss
                count += 1
        times = root.cpu_times()
        cpu_seconds += getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
    return cpu_seconds, memory_bytes, count


def shared_memory_bytes(pid: int, init_pid: int | None = None) -> int:
    """Memory of the same processes, each page that they share counted once; slower than `usage`."""
    total = 0
    with contextlib.suppress(psutil.Error):
        for process in (psutil.Process(pid), *started_by(pid, init_pid)):
            with contextlib.suppress(psutil.Error):
                total += process.memory_full_info().pss
    return total


def memory_file_bytes(pid: int, init_pid: int | None = None) -> int:
    """What the same processes hold in files that are nowhere but in memory: temporary ones, and those without a name.

    Only what lies behind walls of their own counts: `/tmp` and `/dev/shm` may be the machine's.
    """
    found: dict[tuple[int, int], int] = {}
    for path in ("/tmp", "/dev/shm"):  # noqa: S108 - theirs
        with contextlib.suppress(OSError):
            about = os.stat(f"/proc/{pid}/root{path}")
            if about.st_dev != os.stat(path).st_dev:
                room = os.statvfs(f"/proc/{pid}/root{path}")
                found[about.st_dev, 0] = (room.f_blocks - room.f_bfree) * room.f_frsize
    for one in [pid, *(process.pid for process in started_by(pid, init_pid))]:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{one}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{one}/fd/{name}").startswith("/memfd:"):
                        about = os.stat(f"/proc/{one}/fd/{name}")
                        found[about.st_dev, about.st_ino] = about.st_blocks * 512
    return sum(found.values())


def unmapped_bytes(pid: int, init_pid: int | None = None) -> int:
    """The part of `memory_file_bytes` that is mapped nowhere; slower."""
    mapped = 0
    for one in [pid, *(process.pid for process in started_by(pid, init_pid))]:
        with contextlib.suppress(OSError), open(f"/proc/{one}/smaps_rollup") as lines:
            mapped += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss_Shmem:"))
    return max(0, memory_file_bytes(pid, init_pid) - mapped)


def started_by(pid: int, init_pid: int | None) -> list[psutil.Process]:
    """The descendants of a process, and those that its init, the first process of its namespace, took in."""
    found: list[psutil.Process] = []
    for one in (pid, init_pid):
        if one is not None:
            with contextlib.suppress(psutil.Error):
                found += descendants(psutil.Process(one))
    return found


def descendants(root: psutil.Process) -> list[psutil.Process]:
    """Without a look at every process of the machine where the kernel lists children."""
    found: list[psutil.Process] = []
    pending = [root.pid]
    while pending:
        pid = pending.pop()
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
            listed = [Path(f"/proc/{pid}/task/{task}/children").read_text() for task in tasks]
            children = [int(child) for line in listed for child in line.split()]
        except FileNotFoundError:
            if pid == root.pid and not os.path.exists(f"/proc/{pid}/task"):
                return root.children(recursive=True)
            continue
        except OSError:
            continue
        pending.extend(children)
        for child in children:
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(child))
    return found


def oom_kills() -> int:
    """How often this machine has killed a process for want of memory."""
    with contextlib.suppress(OSError, ValueError), open("/proc/vmstat") as vmstat:
        for line in vmstat:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


@functools.cache
def may_raise_limits() -> bool:
    """Whether we may raise a hard limit of a process again: containers' root, and ordinary users, can't."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_RESOURCE & 1)
    return False


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
