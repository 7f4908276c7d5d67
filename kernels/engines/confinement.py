"""What a kernel of this machine is confined to: its plan of walls, what it has behind them, and what is missing.

Which walls the host can give is found once, by trying.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kernels import cgroups, sandbox
from kernels.confined import command
from kernels.engine import Kernelspec, Launch
from kernels.errors import StartFailed, WallsMissing
from kernels.inherited import Kin, remove
from kernels.offers import STRANGERS
from kernels.sandbox import HostWalls

Isolation = Literal["strict", "best-effort", "none"]

_TURNED_OFF = "isolation is off"
_TMP_BYTES = 1 << 30
_LEAST_TMP_BYTES = 1 << 20
_NICE = 10  # where there are no groups, gateway and keeper come first all the same
_OPEN_FILES = 4096
_FRESH_S = 60.0
_SETUPS = 1000  # users of the host that setups become, and kernels do not
_HOSTNAME = "session"
_WITHOUT_GROUPS = (
    "so memory is looked at a few times a second, temporary files have half of it at most, and the processors are "
    "shared by processes, those of sessions after those of the gateway"
)


@dataclass(frozen=True, slots=True)
class Confined:
    """As the keeper needs it: `plan` of `inside.walls`, folders and limits behind it; `missing` walls and why."""

    plan: dict[str, Any] = field(default_factory=dict)
    trees: dict[str, str] = field(default_factory=dict)
    limits: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def behind(self) -> dict[str, Any]:
        return {"trees": self.trees, "hostname": _HOSTNAME, "limits": self.limits}


class Confinement:
    """Of all kernels of one engine. `readable` are further folders that sessions may read."""

    def __init__(self, isolation: Isolation, readable: Iterable[Path] = ()) -> None:
        self._isolation = isolation
        self._readable = tuple(readable)
        self._plans: dict[tuple[str, str, tuple[Path, ...]], tuple[float, dict[str, Any]]] = {}
        self._kin = Kin()
        self.host = HostWalls((), range(0), None)

    async def look(self, folder: Path) -> None:
        """Find out what this host can give, sessions' files being below `folder`. Raises `WallsMissing`."""
        if self._isolation == "none":
            return
        self.host = await asyncio.to_thread(sandbox.host_walls, folder)
        self._kin = Kin(self.host.cgroups)
        lacking = [wall for wall in self.host.missing if wall.name in sandbox.REQUIRED]
        if lacking and self._isolation == "strict":
            raise WallsMissing([(wall.name, wall.reason, wall.remedy) for wall in lacking])

    @property
    def confines(self) -> bool:
        """Whether a kernel sees folders of its own alone."""
        return self.host.stands("user") and self.host.stands("mount")

    def check_copy(self) -> None:
        """Raises `StartFailed` where no kernel may be a copy of a live one."""
        if self._isolation == "strict":
            raise StartFailed(f"Isolation is strict, and of a copy of a live kernel it holds that {STRANGERS}.")

    def of(self, launch: Launch, interpreters: Iterable[Path], trees: dict[str, str]) -> Confined:
        """The walls of one kernel, with what it reads to run, and `trees` ("rw", "ro") of its own."""
        limits: dict[str, Any] = {"open_files": _OPEN_FILES}
        if self._isolation == "none":
            return Confined(limits=limits, missing=dict.fromkeys((*sandbox.NAMESPACES, *sandbox.FURTHER), _TURNED_OFF))
        plan = self.plan(launch.spec, launch.network, interpreters)
        if self.host.cgroups is None and (self.host.own_uids or _counts_processes_by_namespace()):
            limits["processes"] = launch.limits.pids
        if self.host.cgroups is None:
            limits["nice"] = _NICE
            if plan.get("tmp_bytes") and launch.limits.memory_bytes is not None:
                # Two of them, and nothing counts what is in them before it is looked at.
                limits["tmp_bytes"] = min(_TMP_BYTES, max(_LEAST_TMP_BYTES, launch.limits.memory_bytes // 2))
                plan = {**plan, "tmp_bytes": limits["tmp_bytes"], "shm_bytes": limits["tmp_bytes"]}
        missing = {wall.name: wall.reason for wall in self.host.missing}
        if "cgroup" in missing:
            missing["cgroup"] += f"; {_WITHOUT_GROUPS}"
        if launch.network == "host":
            missing["network"] = "the session has the network of this host"
        else:
            missing.pop("abstract-sockets", None)
        return Confined(plan, trees if self.confines else {}, limits, missing)

    def plan(self, spec: Kernelspec, network: Literal["none", "host"], interpreters: Iterable[Path]) -> dict[str, Any]:
        """The same for all kernels of a kind; who starts one gives it one of its `uids` (a range) as `uid`."""
        if self._isolation == "none":
            return {}
        key = (network, spec.resource_dir, tuple(interpreters))
        made_at, plan = self._plans.get(key, (-_FRESH_S, {}))
        if time.monotonic() - made_at > _FRESH_S:  # what a host has in /etc changes
            read_only = self._read(spec, key[2])
            plan = sandbox.plan(self.host, network=network, read_only=read_only, tmp_bytes=_TMP_BYTES, uid=None)
            if plan and self.host.own_uids:
                plan["uids"] = [self.host.uids.start, self.host.uids.stop - _SETUPS]
            self._plans[key] = time.monotonic(), plan
        return plan

    @asynccontextmanager
    async def setup(self, confined: Confined, argv: list[str], cwd: Path, launch: Launch) -> AsyncIterator[list[str]]:
        """How a program of a setup is run behind the walls of the session's kernels, until the block is left."""
        plan, limits = dict(confined.plan), launch.limits
        if not plan:
            yield argv
            return
        uid = self._kin.take_uid(self.host.uids[-_SETUPS:]) if plan.pop("uids", None) else None
        group = self._kin.new_group()
        try:
            if group is not None:
                group.limit(cgroups.Limits(memory_bytes=limits.memory_bytes, processes=limits.pids, cpus=limits.cpu))
                plan["cgroups"] = [str(folder) for folder in group.folders]
            order = {"plan": {**plan, "uid": uid}, "trees": confined.trees, "limits": confined.limits,
                     "hostname": _HOSTNAME, "cwd": str(cwd)}  # fmt: skip
            yield command(argv, order)
        finally:
            self._kin.give_back(uid)
            if group is not None:
                await asyncio.to_thread(remove, group)

    def _read(self, spec: Kernelspec, interpreters: Iterable[Path]) -> list[Path]:
        paths = [sandbox.INSIDE, *self._readable]
        paths += [path for python in interpreters for path in sandbox.interpreter_paths(python)]
        return [*paths, *([Path(spec.resource_dir)] if spec.resource_dir else [])]


def _counts_processes_by_namespace() -> bool:
    """Whether a limit on a user's processes counts those of its user namespace alone: otherwise all of that user's."""
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    return sys.platform == "linux" and release >= (5, 14)
