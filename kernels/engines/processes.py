"""Processes of this machine: waiting for their end, finding and ending what they started.

A process is told from a later one with the same number by its start time.
"""

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterable

import psutil


async def exited(process: "subprocess.Popen[bytes]") -> int:
    """Wait, without polling where the system can, for a child's return code (negative: its signal)."""
    if not hasattr(os, "pidfd_open"):
        return await asyncio.to_thread(process.wait)
    try:
        pidfd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return process.wait()
    loop = asyncio.get_running_loop()
    readable = loop.create_future()
    loop.add_reader(pidfd, lambda: readable.done() or readable.set_result(None))
    try:
        await readable
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return process.wait()


def family(pid: int, mark: str | None = None) -> list[psutil.Process]:
    """A process, its descendants, the others of its session, and all whose environment carries `mark`."""
    found: dict[int, psutil.Process] = {}
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        found[pid] = root
        found.update((child.pid, child) for child in root.children(recursive=True))
    own = os.getpid()
    for other in psutil.process_iter():
        if other.pid in found or other.pid == own:
            continue
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(other.pid) == pid or (mark is not None and _carries(other.pid, mark)):
                found[other.pid] = other
    return list(found.values())


def _carries(pid: int, mark: str) -> bool:
    with open(f"/proc/{pid}/environ", "rb") as environ:
        return mark.encode() in environ.read().split(b"\0")


def end(processes: Iterable[psutil.Process]) -> int:
    """SIGKILL each that still is what it was; returns how many were there."""
    count = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
            count += 1
    return count


def end_family(pid: int, mark: str) -> None:
    """End a process and everything that it started, again until nothing is left."""
    for _ in range(10):
        alive = [one for one in family(pid, mark) if _runs(one)]
        if not alive:
            return
        end(alive)
        psutil.wait_procs([one for one in alive if one.pid != pid], timeout=0.2)


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


def usage(pid: int) -> tuple[float, int, int]:
    """CPU seconds, memory in bytes (resident) and number of a process and its descendants."""
    cpu_seconds, memory_bytes, count = 0.0, 0, 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *descendants(root)):
            with contextlib.suppress(psutil.Error):
                times = process.cpu_times()
                cpu_seconds += times.user + times.system
                memory_bytes += process.memory_info().rss
                count += 1
        times = root.cpu_times()
        cpu_seconds += getattr(times, "children_user", 0) + getattr(times, "children_system", 0)
    return cpu_seconds, memory_bytes, count


def descendants(root: psutil.Process) -> list[psutil.Process]:
    """Without a look at every process of the machine where the kernel lists children."""
    found: list[psutil.Process] = []
    pending = [root.pid]
    while pending:
        pid = pending.pop()
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
            children = [
                int(child) for task in tasks for child in open(f"/proc/{pid}/task/{task}/children").read().split()
            ]
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


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
