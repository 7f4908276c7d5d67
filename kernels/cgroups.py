"""Memory, processes and CPU of a session, bounded by a cgroup of its own: version 2, or version 1, where writable.

Groups lie at `session-gateway/<owner>/<name>` below the group that we run in; an owner's name tells whether it still
lives, so that what a dead one left can be cleared away. Nothing here is async: it takes microseconds, but for
`Group.end`, which waits until processes are gone.
"""

import contextlib
import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

PARENT = "session-gateway"

_NEEDED = ("memory", "pids")
_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")
_PERIOD_US = 100_000
_UNLIMITED = {1: "-1", 2: "max"}
_END_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """None: unlimited. Swap counts only where the system accounts for it."""

    memory_bytes: int | None = None
    swap_bytes: int | None = 0
    processes: int | None = None
    cpus: float | None = None


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """Where groups are made: for each controller the folder of the group that ours lie in."""

    version: int
    folders: dict[str, Path]

    def group(self, name: str) -> "Group":
        """Make a group of ours, or take the one that is there. Raises `OSError`."""
        return Group(self, f"{_owner()}/{name}")

    def sweep(self) -> int:
        """Remove what owners left that live no more, and end what still runs in it; returns how many groups."""
        names = {
            f"{owner.name}/{group.name}"
            for folder in set(self.folders.values())
            for owner in _subfolders(folder / PARENT)
            if not _lives(owner.name)
            for group in _subfolders(owner)
        }
        for name in names:
            with contextlib.suppress(OSError):
                Group(self, name).end()
        for folder in set(self.folders.values()):
            for owner in _subfolders(folder / PARENT):
                if not _lives(owner.name):
                    with contextlib.suppress(OSError):
                        owner.rmdir()
        return len(names)

    def leave(self) -> None:
        """Remove our own empty folders; for who makes no more groups."""
        for folder in set(self.folders.values()):
            for empty in (folder / PARENT / _owner(), folder / PARENT):
                with contextlib.suppress(OSError):
                    empty.rmdir()


class Group:
    """One session's processes. Limits and counts raise `OSError` when the group is gone."""

    def __init__(self, hierarchy: Hierarchy, name: str) -> None:
        self.name = name
        self._version = hierarchy.version
        self._by_controller = {controller: folder / PARENT / name for controller, folder in hierarchy.folders.items()}
        for folder in self.folders:
            folder.mkdir(parents=True, exist_ok=True)
            if self._version == 2:
                for parent in list(reversed(folder.parents[:3])):  # the outermost first
                    _enable(parent)

    @property
    def folders(self) -> list[Path]:
        """For `plan["cgroups"]`: a process that is written to `cgroup.procs` in each is in the group."""
        return list(dict.fromkeys(self._by_controller.values()))

    def limit(self, limits: Limits) -> None:
        """May be called again while processes run; lowered memory is taken back from them."""
        memory, pids, cpu = (self._by_controller.get(one) for one in ("memory", "pids", "cpu"))
        if pids is not None:
            _set(pids / "pids.max", _text(limits.processes, 2))
        if cpu is not None:
            quota = None if limits.cpus is None else max(1000, round(limits.cpus * _PERIOD_US))
            if self._version == 2:
                _set(cpu / "cpu.max", f"{_text(quota, 2)} {_PERIOD_US}")
            else:
                _set(cpu / "cpu.cfs_quota_us", _text(quota, 1))
        if memory is not None:
            (self._limit_memory_2 if self._version == 2 else self._limit_memory_1)(memory, limits)

    def _limit_memory_2(self, folder: Path, limits: Limits) -> None:
        _set(folder / "memory.max", _text(limits.memory_bytes, 2))
        if (folder / "memory.swap.max").exists():
            _set(folder / "memory.swap.max", _text(limits.swap_bytes, 2))

    def _limit_memory_1(self, folder: Path, limits: Limits) -> None:
        both = folder / "memory.memsw.limit_in_bytes"
        swapped = None
        if limits.memory_bytes is not None and limits.swap_bytes is not None:
            swapped = limits.memory_bytes + limits.swap_bytes
        if both.exists():  # never below the other one, on the way either
            _set(both, "-1")
        _set(folder / "memory.limit_in_bytes", _text(limits.memory_bytes, 1))
        if both.exists():
            _set(both, _text(swapped, 1))

    def add(self, pid: int) -> None:
        """Raises `OSError` if the process is gone. What it forks from now on is in the group; memory it has is not."""
        for folder in self.folders:
            _set(folder / "cgroup.procs", str(pid))

    def pids(self) -> list[int]:
        """Those of this process's pid namespace."""
        return [int(line) for line in (self.folders[0] / "cgroup.procs").read_text().split()]

    def memory_bytes(self) -> int:
        """In use, with the page cache that it filled."""
        name = "memory.current" if self._version == 2 else "memory.usage_in_bytes"
        return int((self._by_controller["memory"] / name).read_text())

    def peak_bytes(self) -> int:
        name = "memory.peak" if self._version == 2 else "memory.max_usage_in_bytes"
        return int((self._by_controller["memory"] / name).read_text())

    def cpu_seconds(self) -> float:
        if self._version == 2:
            return _fields(self._by_controller["memory"] / "cpu.stat")["usage_usec"] / 1e6
        folder = self._by_controller.get("cpuacct")
        return int((folder / "cpuacct.usage").read_text()) / 1e9 if folder is not None else 0.0

    def oom_kills(self) -> int:
        """How many processes of the group were killed for want of memory."""
        name = "memory.events" if self._version == 2 else "memory.oom_control"
        return _fields(self._by_controller["memory"] / name).get("oom_kill", 0)

    def kill(self) -> int:
        """SIGKILL all that is in it now, however fast it forks; returns how many were seen."""
        seen = len(self.pids())
        if self._version == 2 and (self.folders[0] / "cgroup.kill").exists():
            _set(self.folders[0] / "cgroup.kill", "1")
            return seen
        pids = self._by_controller.get("pids")
        if pids is not None:
            _set(pids / "pids.max", "0")  # so that nothing more comes
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return seen

    def end(self, timeout_s: float = _END_S) -> None:
        """Kill all that is in it and remove it; once more is no error. Raises `OSError` if processes will not go."""
        until = time.monotonic() + timeout_s
        for folder in self.folders:
            while True:
                try:
                    folder.rmdir()
                except FileNotFoundError:
                    pass
                except OSError as error:
                    if error.errno != errno.EBUSY or time.monotonic() > until:
                        raise
                    self.kill()
                    time.sleep(0.005)
                    continue
                break


def found() -> tuple[Hierarchy | None, str]:
    """Where this process may make groups; if nowhere, why. Tries it."""
    try:
        mounts, own = _mounts(), _own()
    except OSError as error:
        return None, f"/proc can't be read: {error.strerror}"
    reasons = []
    for hierarchy in (_version_2(mounts, own), _version_1(mounts, own)):
        if isinstance(hierarchy, str):
            reasons.append(hierarchy)
            continue
        try:
            group = hierarchy.group(f"probe-{os.getpid()}")
            try:
                group.limit(Limits())
            finally:
                group.end()
        except OSError as error:
            reasons.append(f"version {hierarchy.version}: {error.filename or 'a group'}: {error.strerror}")
        else:
            return hierarchy, ""
    return None, "; ".join(reasons)


def _version_2(mounts: dict[str, Path], own: dict[str, str]) -> Hierarchy | str:
    if "" not in mounts or "" not in own:
        return "version 2 is not mounted"
    folder = _below(mounts[""], own[""])
    try:
        offered = (folder / "cgroup.controllers").read_text().split()
    except OSError as error:
        return f"version 2: {folder}: {error.strerror}"
    missing = [name for name in _NEEDED if name not in offered]
    if missing:
        return f"version 2: {folder} has no controller {' or '.join(missing)}"
    return Hierarchy(2, {name: folder for name in _CONTROLLERS if name in offered})


def _version_1(mounts: dict[str, Path], own: dict[str, str]) -> Hierarchy | str:
    missing = [name for name in _NEEDED if name not in mounts or name not in own]
    if missing:
        return f"version 1: no controller {' or '.join(missing)}"
    return Hierarchy(1, {name: _below(mounts[name], own[name]) for name in _CONTROLLERS if name in {*mounts} & {*own}})


def _below(mount: Path, path: str) -> Path:
    folder = mount / path.lstrip("/")
    return folder if folder.exists() else mount  # in a container without a namespace of its own, the mount is ours


def _mounts() -> dict[str, Path]:
    """Controllers of version 1, and "" for version 2, and where they are mounted."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup2":
            found.setdefault("", Path(before.split()[4]))
        elif kind == "cgroup":
            for name in set(options.split(",")) & set(_CONTROLLERS):
                found.setdefault(name, Path(before.split()[4]))
    return found


def _own() -> dict[str, str]:
    """For the same names, the group that this process is in; if it is one of ours, the one around `PARENT`."""
    own: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        outer = path.partition(f"/{PARENT}/")[0] if f"/{PARENT}/" in path else path
        own.update(dict.fromkeys(names.split(","), outer))
    return own


def _enable(folder: Path) -> None:
    """Give groups below this one their controllers; what runs in it moves aside, if the system asks for that."""
    control = folder / "cgroup.subtree_control"
    offered = set((folder / "cgroup.controllers").read_text().split()) & set(_CONTROLLERS)
    wanted = " ".join(f"+{name}" for name in offered - set(control.read_text().split()))
    if wanted:
        try:
            _set(control, wanted)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            aside = folder / f"{PARENT}-host"
            aside.mkdir(exist_ok=True)
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    _set(aside / "cgroup.procs", pid)
            _set(control, wanted)


def _owner() -> str:
    pid = os.getpid()
    return f"{pid}-{_started(pid)}"


def _lives(owner: str) -> bool:
    pid, _, started = owner.partition("-")
    return pid.isdigit() and _started(int(pid)) == started


def _started(pid: int) -> str | None:
    """When a process was started, in ticks since the machine was."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if path.is_dir()]
    except OSError:
        return []


def _text(value: int | None, version: int) -> str:
    return _UNLIMITED[version] if value is None else str(value)


def _set(path: Path, text: str) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def _fields(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in (line.split() for line in path.read_text().splitlines())}
