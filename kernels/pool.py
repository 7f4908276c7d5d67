"""Kernels before they are anybody's: per environment a process that forks them, and a few that are forked already.

All of it can fail without a kernel failing: then nothing is handed out, and kernels are started in another way.
"""

import asyncio
import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kernels.errors import StartFailed
from kernels.inherited import Kin, remove
from kernels.zygote import Environment, Forked, Zygote, ZygoteFailed

log = logging.getLogger(__name__)

_QUIET_S = 0.05  # since a kernel was last taken: until then others have the processor
_LOOK_S = 1.0
_NOTICED_S = 0.05
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 300.0
_SOUND_S = 10.0  # one that lived as long has not failed to start
_EMPTY_AFTER_S = 900.0
_END_AFTER_S = 3600.0
_LEAST_FREE = 0.05  # of the machine's memory; with less nothing is kept ready
_MOST_ENVIRONMENTS = 16
_MOST_INSTALLED = 5000


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a kernel is to be forked from. `watched` are paths whose change makes it another environment."""

    environment: Environment
    watched: tuple[str, ...]
    size: int  # how many to keep ready
    plan: Mapping[str, Any] = field(default_factory=dict)  # of its walls; with `uids` each becomes one of these users
    installed: str = ""  # a folder of packages that come before those of the environment

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Wanted":
        environment = Environment(
            argv=tuple(told["argv"]), env=tuple(sorted(told["env"].items())), preloads=tuple(told["preloads"])
        )
        overlay = told.get("overlay") or {}
        return cls(
            environment,
            tuple(told["watched"]),
            int(told["size"]),
            told.get("plan") or {},
            str(overlay.get("site_packages", "")),
        )

    @property
    def key(self) -> str:
        environment = self.environment
        text = json.dumps([environment.argv, environment.env, environment.preloads, self.plan])
        return hashlib.blake2s(text.encode()).hexdigest()


class Pool:
    """Of one environment. `serve` does the work, `take` hands it out."""

    def __init__(self, wanted: Wanted, home: Path, kin: Kin) -> None:
        self.wanted = wanted
        self.name = f"{wanted.environment.argv[0]} {' '.join(wanted.environment.preloads)}".strip()
        self.zygote: Zygote | None = None
        self.modules: frozenset[str] = frozenset()  # what every kernel of it has imported
        self.used_at = time.monotonic()
        self._home = home
        self._kin = kin
        self._dead: list[Forked] = []
        self._ready: deque[Forked] = deque()
        self._settled = asyncio.Event()  # there is a zygote, or it is known that there is none for now
        self._wake = asyncio.Event()
        self._seen = _seen(wanted.watched)
        self._pause_s = 0.0  # after the next failure

    @property
    def unused_s(self) -> float:
        return time.monotonic() - self.used_at

    async def take(self, installed: str) -> Forked | None:
        """One that nobody else gets; None if there is none to be had now, or that would do."""
        self.used_at = time.monotonic()
        self._wake.set()
        if self._changed():
            await self._replace()
        if _hides(installed, self.modules):
            return None
        while self._ready:
            forked = self._ready.popleft()
            forked.on_end = _nothing
            if forked.running and self._can_be_named(forked):
                return forked
            await forked.discard()
        for _ in range(2):  # one that dies is replaced at once, if it has lived for some time
            await self._settled.wait()
            if self.zygote is not None and self.zygote.over.is_set():
                await asyncio.sleep(_NOTICED_S)  # by then it is noticed
            if self.zygote is not None and not self.zygote.over.is_set() and not _hides(installed, self.modules):
                try:
                    return await self._forked(self.zygote)
                except ZygoteFailed as error:
                    log.warning("A kernel of %s is not forked: %s", self.name, error)
        return None

    async def forking(self) -> Zygote | None:
        """The process that forks them, if there is one to be had."""
        self.used_at = time.monotonic()
        self._wake.set()
        await self._settled.wait()
        return self.zygote if self.zygote is not None and not self.zygote.over.is_set() else None

    async def _forked(self, zygote: Zygote) -> Forked:
        """Raises `ZygoteFailed`."""
        plan = dict(self.wanted.plan)
        try:
            uid = self._kin.take_uid(range(*plan.pop("uids", (0,))))
        except StartFailed as error:
            raise ZygoteFailed(error.sentence) from None
        group = self._kin.new_group()
        folders = [str(folder) for folder in group.folders] if group is not None else []
        try:
            forked = await zygote.fork({**plan, "uid": uid, "cgroups": folders}, self._kin)
        except BaseException:
            self._kin.give_back(uid)
            if group is not None:
                await asyncio.shield(asyncio.to_thread(remove, group))
            raise
        forked.group = group
        return forked

    def _can_be_named(self, forked: Forked) -> bool:
        """Behind walls, what forked it has to open its folders for it."""
        return forked.zygote_runs or "mount" not in self.wanted.plan.get("namespaces", ())

    def _changed(self) -> bool:
        return _seen(self.wanted.watched) != self._seen

    async def _replace(self) -> None:
        log.info("The environment of %s has changed: kernels are forked anew", self.name)
        self._seen = _seen(self.wanted.watched)
        self._settled.clear()
        await self.empty()
        if self.zygote is not None:
            await self.zygote.end()

    async def serve(self) -> None:
        """Keep one zygote running, and kernels ready."""
        try:
            while True:
                await self._serve_one()
                if self.unused_s > _END_AFTER_S:
                    self._settled.clear()
                    self._wake.clear()
                    await self._wake.wait()
                elif self._settled.is_set():  # nobody waits for the next one
                    await asyncio.sleep(self._pause_s)
                    self._settled.clear()
                self._pause_s = min(max(2 * self._pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
        finally:
            self._settled.set()
            await self.empty()

    async def _serve_one(self) -> None:
        began = time.monotonic()
        try:
            read_only = self.wanted.plan.get("read_only")
            self.zygote = zygote = await Zygote.start(self.wanted.environment, self._home, read_only)
        except ZygoteFailed as error:
            log.warning("No kernels of %s are forked for %g s: %s", self.name, self._pause_s, error)
            if self._pause_s > 0:
                self._settled.set()
            return
        self.modules = zygote.modules
        log.info("Kernels of %s are forked by process %d", self.name, zygote.pid)
        self._settled.set()
        try:
            while not zygote.over.is_set() and self.unused_s <= _END_AFTER_S:
                await self._refill(zygote)
        except ZygoteFailed as error:
            log.warning("No kernel of %s was made ready: %s", self.name, error)
        finally:
            if time.monotonic() - began > _SOUND_S:
                self._pause_s = 0.0
            if self._pause_s == 0:
                self._settled.clear()
            self.zygote = None
            if not all(map(self._can_be_named, self._ready)):
                await asyncio.shield(self.empty())
            code = await asyncio.shield(zygote.end())
        log.info("Process %d, which forked kernels of %s, has ended with %d", zygote.pid, self.name, code)

    async def _refill(self, zygote: Zygote) -> None:
        """One more, or a wait for something to happen."""
        self._wake.clear()
        await self._bury()
        missing = self.wanted.size - len(self._ready)
        if self.unused_s > _EMPTY_AFTER_S or short_of_memory():
            await self.empty()
            missing = 0
        if missing > 0 and self.unused_s >= _QUIET_S:
            forked = await self._forked(zygote)
            if zygote.over.is_set():  # and what it forks is not wanted any more
                await forked.discard()
                return
            forked.on_end = lambda: self._lost(forked)
            self._ready.append(forked)
            return
        waiting = {asyncio.ensure_future(self._wake.wait()), asyncio.ensure_future(zygote.over.wait())}
        try:
            await asyncio.wait(waiting, timeout=_QUIET_S if missing > 0 else _LOOK_S, return_when="FIRST_COMPLETED")
        finally:
            for one in waiting:
                one.cancel()

    def _lost(self, forked: Forked) -> None:
        """One of those ready has ended, whatever ended it."""
        self._ready.remove(forked)
        self._dead.append(forked)
        self._wake.set()

    async def _bury(self) -> None:
        while self._dead:
            await self._dead.pop().reaped()

    async def empty(self) -> None:
        ready, self._ready = list(self._ready), deque()
        for forked in ready:
            forked.on_end = _nothing
        await asyncio.gather(self._bury(), *(forked.discard() for forked in ready))


class Pools:
    """Of all environments in use."""

    def __init__(self, home: Path, tasks: asyncio.TaskGroup, kin: Kin | None = None) -> None:
        self._home = home
        self._kin = kin or Kin()
        self._tasks = tasks
        self._pools: dict[str, tuple[Pool, asyncio.Task[None]]] = {}

    def of(self, wanted: Wanted) -> Pool:
        """The pool of an environment, which begins to work if it is new."""
        key = wanted.key
        if key not in self._pools:
            self._make_room()
            pool = Pool(wanted, self._home, self._kin)
            self._pools[key] = pool, self._tasks.create_task(pool.serve())
        pool, _ = self._pools[key]
        pool.wanted = wanted
        return pool

    async def take(self, wanted: Wanted) -> Forked | None:
        return await self.of(wanted).take(wanted.installed)

    def _make_room(self) -> None:
        """End what nobody has used for long, and what was used least when there are too many."""
        by_age = sorted(self._pools, key=lambda key: self._pools[key][0].used_at)
        for number, key in enumerate(by_age):
            pool, serving = self._pools[key]
            if pool.unused_s > _END_AFTER_S or len(by_age) - number >= _MOST_ENVIRONMENTS:
                del self._pools[key]
                serving.cancel()

    @property
    def forking(self) -> bool:
        """Whether there may be children of ours that we have not heard of."""
        return any(pool.zygote is not None and pool.zygote.forking for pool, _ in self._pools.values())

    @property
    def pids(self) -> set[int]:
        """Of all that is ours to reap, kernels among it."""
        return self._kin.pids | {pool.zygote.pid for pool, _ in self._pools.values() if pool.zygote is not None}

    async def end(self) -> None:
        serving = [task for _, task in self._pools.values()]
        for task in serving:
            task.cancel()
        if serving:
            await asyncio.wait(serving)


def short_of_memory() -> bool:
    try:
        with open("/proc/meminfo") as lines:
            found = dict(line.split(":", 1) for line in lines)
        total, free = (int(found[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, ValueError, KeyError):
        return False
    return free < _LEAST_FREE * total


def _hides(installed: str, modules: frozenset[str]) -> bool:
    """Whether a session has installed something of its own that was imported already, as another version."""
    found = set()
    try:
        with os.scandir(installed) as entries:
            for entry in entries:
                found.add(entry.name.partition(".")[0])
                if len(found) > _MOST_INSTALLED:
                    return True
    except OSError:
        return False
    return not found.isdisjoint(modules | {"sitecustomize", "usercustomize"})


def _nothing() -> None:
    pass


def _seen(paths: Iterable[str]) -> tuple[tuple[int, int] | None, ...]:
    """What changes when a package is installed, or an interpreter is replaced."""
    return tuple(map(_stamp, paths))


def _stamp(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
