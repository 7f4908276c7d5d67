"""The process that kernels are children of. It outlives gateways, and needs none to be right.

One runs per data folder and version: it starts kernels, reaps them, tells their exits, watches their memory and
journals what they publish. It ends by itself when it has no kernels and no gateway. Run as `python -m kernels.keeper`.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import signal
import socket
import struct
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from kernels import cgroups
from kernels.children import Child, Journaling, MemoryWatch, Order, connection_at
from kernels.disk_watch import DiskWatch
from kernels.engine import Exit
from kernels.errors import KernelGone, KernelsError, Refused, StartFailed
from kernels.inherited import Inherited, Kin, remove
from kernels.intake import Intake
from kernels.journal import JournalWriter
from kernels.logs import Log
from kernels.offers import Offer
from kernels.orphans import Orphans
from kernels.pool import Pools, Wanted
from kernels.zygote import Forked, Zygote, ZygoteFailed, be_subreaper

log = logging.getLogger(__name__)

LINE_BYTES = 8 * 2**20  # of one request or answer
PROTOCOL = 1
KINDS: dict[str, type[KernelsError]] = {"start_failed": StartFailed, "refused": Refused, "gone": KernelGone}

_UNREAD_BYTES = 4 * 2**20  # answers that a gateway may leave unread
_GRACE_S = 2.0  # without kernels and gateways
_FIRST_GRACE_S = 15.0  # until the first gateway comes
_INITS = "inits"  # the group of first processes that stay for copies
_NAME = re.compile(r"[0-9A-Za-z_-]{1,64}")
_IMPORTS = re.compile(r"^\s*from (kernels[\w.]*) import (\([^)]*\)|[^\n(]+)$", re.MULTILINE)
_CREDENTIALS = struct.Struct("3i")


def version() -> str:
    """Differs when keepers do: of the protocol, and of the code that they run."""
    digest = hashlib.blake2s(str(PROTOCOL).encode(), digest_size=8)
    for path in sorted(_run_by_keepers()):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _run_by_keepers() -> set[Path]:
    """This file, and those of the package that it imports, and these, and so on; and all that kernels are made of."""
    package = Path(__file__).parent
    found = set((package / "inside").glob("*.py"))  # a zygote holds on to what it has read of them
    pending = [Path(__file__)]
    while pending:
        path = pending.pop()
        if path in found or not path.exists():
            continue
        found.add(path)
        for names in _IMPORTS.findall(path.read_text()):
            pending += [package.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in _modules(*names)]
    return found


def _modules(of: str, names: str) -> list[str]:
    """Each may be a module, or something in the one that it is imported from."""
    listed = [name.split()[0] for name in names.strip("()\n ").replace("\n", " ").split(",") if name.strip()]
    return [of, *(f"{of}.{name}" for name in listed)]


class Folders:
    """Where a keeper, and who speaks with it, find things under a data folder."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.keepers = data_dir / "keepers"  # one file per keeper that runs
        self.records = data_dir / "kernels"  # one file per kernel or setup
        self.journals = data_dir / "journals"
        self.log = data_dir / "keeper.log"

    def make(self) -> None:
        for folder in (self.keepers, self.records, self.journals):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def record(self, mark: str) -> Path:
        return self.records / f"{mark}.json"

    def forget(self, kernel_id: str) -> None:
        """Remove what is kept of a kernel that has ended."""
        shutil.rmtree(self.journals / kernel_id, ignore_errors=True)
        self.record(kernel_id).unlink(missing_ok=True)


def write_whole(path: Path, content: dict[str, Any]) -> None:
    """Readers see the old file or the new one."""
    new = path.with_suffix(".new")
    with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
        json.dump(content, file)
    new.replace(path)


class Gateway:
    """One connection. What comes later has a higher epoch, and takes kernels from what came before."""

    def __init__(self, epoch: int, writer: asyncio.StreamWriter) -> None:
        self.epoch = epoch
        self.left = False
        self._writer = writer

    def tell(self, message: dict[str, Any]) -> None:
        if self._writer.is_closing():
            return
        self._writer.write(json.dumps(message).encode() + b"\n")
        if self._writer.transport.get_write_buffer_size() > _UNREAD_BYTES:
            log.warning("A gateway does not read what it is told; its connection is closed")
            self._writer.transport.abort()

    def close(self) -> None:
        self._writer.close()


@dataclass(slots=True)
class Offered:
    """To be a kernel of this gateway, for a copy of another one."""

    gateway: Gateway
    source: Child
    child: Child
    offer: Offer

    async def withdraw(self) -> None:
        await self.offer.withdraw()
        self.child.clear()
        await self.child.end_group()


class Keeper:
    """Serves until it has nothing left to keep."""

    def __init__(self, data_dir: Path, version: str) -> None:
        self.id = uuid4().hex[:12]
        self._folders = Folders(data_dir)
        self._version = version
        self._children: dict[str, Child] = {}
        self._owners: dict[str, Gateway] = {}
        self._offers: dict[str, Offered] = {}  # by the kernel that is to come of it
        self._journalings: dict[str, Journaling] = {}
        self._gateways: set[Gateway] = set()
        self._epoch = 0
        self._retiring = False
        self._forks = False  # whether this system can fork kernels
        self._launching = 0  # what is started meanwhile may become our child before we hear of it
        self._kin: Kin
        self._over = asyncio.Event()
        self._lock: int | None = None
        self._runtime: Path
        self._intake = Intake()
        self._tasks: asyncio.TaskGroup
        self._pools: Pools

    async def serve(self, ready: Callable[[], None]) -> None:
        """Serve until there is nothing to keep; does nothing if another one of this version does so already."""
        self._folders.make()
        self._lock = _locked(self._folders.keepers / f"{self._version}.lock")
        if self._lock is None:
            ready()
            return
        # Paths of sockets hold at most 107 bytes, so they can't be under the data folder.
        self._runtime = Path(tempfile.mkdtemp(prefix="sg-", dir=_short_temp()))
        announcement = self._folders.keepers / f"{self.id}.json"
        try:
            async with asyncio.TaskGroup() as self._tasks:
                self._kin = Kin(_swept_groups())
                self._pools = Pools(self._runtime / "nobody", self._tasks, self._kin)
                await self._serve(announcement, ready)
        finally:
            announcement.unlink(missing_ok=True)
            shutil.rmtree(self._runtime, ignore_errors=True)
            self._unlock()

    async def _serve(self, announcement: Path, ready: Callable[[], None]) -> None:
        address = str(self._runtime / "keeper")
        server = await asyncio.start_unix_server(self._connected, address, limit=LINE_BYTES)
        self._forks = be_subreaper()
        if not self._forks:
            log.info("This system can't have a process take in orphans: kernels are started one by one")
        watches = (MemoryWatch(self._children), DiskWatch(self._children))
        beside = [self._tasks.create_task(one.watch()) for one in watches]
        if self._forks:
            beside.append(self._tasks.create_task(Orphans(self._own_pids).watch()))
        told = {"id": self.id, "pid": os.getpid(), "version": self._version, "runtime": str(self._runtime)}
        write_whole(announcement, told)
        ready()
        self._end_soon(_FIRST_GRACE_S)
        try:
            await self._over.wait()
        finally:
            server.close()
            await self._withdraw_all(None)
            for child in list(self._children.values()):
                await child.kill("The keeper of this machine was told to end.")
            await self._pools.end()
            for task in beside:
                task.cancel()
            for gateway in self._gateways:
                gateway.close()

    def stop(self) -> None:
        self._over.set()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _own_pids(self) -> set[int] | None:
        """Of children that somebody waits for; None while there may be one that we have not heard of."""
        if self._pools.forking or self._launching:
            return None
        return {child.pid for child in self._children.values() if child.running} | self._pools.pids

    # Its end

    def _end_soon(self, after_s: float) -> None:
        asyncio.get_running_loop().call_later(after_s, self._end_if_idle)

    def _end_if_idle(self) -> None:
        if not self._children and (self._retiring or all(gateway.left for gateway in self._gateways)):
            self._over.set()

    # Gateways

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._over.is_set() or not _same_user(writer.get_extra_info("socket")):
            writer.close()
            return
        self._epoch += 1
        gateway = Gateway(self._epoch, writer)
        self._gateways.add(gateway)
        try:
            async with asyncio.TaskGroup() as requests:
                while line := await reader.readline():
                    request = _request(line)
                    requests.create_task(self._answer(gateway, request))
        except* (ValueError, OSError) as errors:  # too long, no JSON, or it is gone
            log.warning("A connection was closed: %s", errors.exceptions[0])
        finally:
            self._gateways.discard(gateway)
            gateway.left = True
            gateway.close()
            await self._withdraw_all(gateway)
            self._end_soon(_GRACE_S)

    async def _answer(self, gateway: Gateway, request: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": request.pop("id", None)}
        try:
            answer["answer"] = await self._do(gateway, request.pop("do", None), request)
        except (TypeError, KeyError, ValueError) as error:
            answer |= {"kind": "bad_request", "error": f"This can't be done: {error}"}
        except KernelsError as error:
            kind = next((name for name, one in KINDS.items() if isinstance(error, one)), "failed")
            answer |= {"kind": kind, "error": str(error)}
        except Exception as error:
            log.exception("A request failed")
            answer |= {"kind": "failed", "error": f"The keeper failed: {error}"}
        gateway.tell(answer)

    async def _do(self, gateway: Gateway, action: Any, arguments: dict[str, Any]) -> Any:
        actions: dict[str, Callable[..., Awaitable[Any]]] = {
            "hello": self._hello,
            "prepare": self._prepare,
            "start": self._start,
            "offer": self._offer,
            "duplicate": self._duplicate,
            "withdraw": self._withdraw,
            "adopt": self._adopt,
            "forget": self._forget,
            "interrupt": self._interrupt,
            "kill": self._kill,
            "kill_children": self._kill_children,
            "usage": self._usage,
            "leave": self._leave,
            "retire": self._retire,
            "abandon": self._abandon,
        }
        if not isinstance(action, str) or action not in actions:
            raise ValueError("no such request")
        return await actions[action](gateway, **arguments)

    async def _hello(self, gateway: Gateway) -> dict[str, Any]:
        return {
            "id": self.id,
            "version": self._version,
            "epoch": gateway.epoch,
            "retiring": self._retiring,
            "kernels": list(self._children),
        }

    async def _leave(self, gateway: Gateway) -> dict[str, Any]:
        """It will ask for nothing more. Whether that was all there was to do."""
        gateway.left = True
        self._end_if_idle()
        return {"ends": self._over.is_set()}

    async def _retire(self, gateway: Gateway) -> None:
        """Start nothing new; end with the last kernel."""
        self._retiring = True
        self._unlock()
        self._end_if_idle()

    async def _abandon(self, gateway: Gateway) -> None:
        gateway.left = True
        await asyncio.gather(
            *(self._children[one].kill("It was ended.") for one, owner in self._owners.items() if owner is gateway)
        )
        self._end_if_idle()

    # Kernels

    async def _start(self, gateway: Gateway, order: dict[str, Any], kernel_name: str) -> dict[str, Any]:
        self._check_start(gateway)
        wanted = Order(**order)
        kernel_id = _plain(wanted.kernel_id)
        forked = await self._forked(wanted) if kernel_id not in self._children else None
        try:
            child = await self._started(gateway, wanted, kernel_name, forked)
        except ZygoteFailed as error:
            log.warning(
                "Kernel %s is started the ordinary way, what would have forked it has failed: %s", kernel_id, error
            )
            child = await self._started(gateway, wanted, kernel_name, None)
        return await self._taken_on(gateway, child)

    async def _taken_on(self, gateway: Gateway, child: Child) -> dict[str, Any]:
        self._tasks.create_task(self._keep(child))
        self._write_down(child)
        if self._over.is_set() or gateway.left:  # meanwhile
            await child.kill("It was ended.")
        return child.record(self.id)

    async def _offer(self, gateway: Gateway, source: str, order: dict[str, Any], kernel_name: str) -> dict[str, Any]:
        """Where a copy of a live kernel may report; it is nothing yet. `duplicate` or `withdraw` follows."""
        self._check_start(gateway)
        wanted = Order(**order)
        original = self._commanded(gateway, source)
        if original is None or not original.running:
            raise StartFailed(f"The kernel {source!r} has ended.")
        kernel_id = _plain(wanted.kernel_id)
        if kernel_id in self._children or kernel_id in self._offers:
            raise StartFailed(f"The kernel {kernel_id!r} runs already.")
        zygote = await self._nest_builder(original, wanted) if original.walled else None
        child = self._new_child(wanted, kernel_name, self._kin.new_group())
        process = original.process
        try:
            self._check_start(gateway)
            folder = child.make_folder()
            inherited = process if isinstance(process, Inherited) else None
            offer = Offer(inherited, original.pid, original.make_folder())
            offered = self._offers[kernel_id] = Offered(gateway, original, child, offer)
        except BaseException:
            child.clear()
            await child.end_group()
            raise
        try:
            if zygote is not None:
                self._set_init_apart(original)
                confine = wanted.confine
                behind = {**confine["behind"], "trees": {**confine["behind"]["trees"], str(folder): "rw"}}
                offer.lodge(zygote, confine["plan"], behind)
        except BaseException as error:
            del self._offers[kernel_id]
            await offered.withdraw()
            if isinstance(error, OSError):
                raise StartFailed(f"The kernel {source!r} can't be copied: {error}") from None
            raise
        return {"address": offer.address}

    async def _nest_builder(self, original: Child, order: Order) -> Zygote:
        """Raises `StartFailed` where a copy can't have walls of its own inside of those of the original."""
        namespaces = order.confine.get("plan", {}).get("namespaces", ())
        if not {"user", "mount", "pid"} <= set(namespaces):
            raise StartFailed("A copy can't be behind the walls that this host gives.")
        if "seccomp" not in original.walls.standing:  # which keeps it from what is allowed for a moment
            raise StartFailed("A copy can't have walls of its own where the session has no filter of system calls.")
        zygote = original.zygote
        if os.geteuid() == 0 and (zygote is None or zygote.over.is_set()) and order.fork is not None:
            zygote = await self._pools.of(Wanted.of(order.fork)).forking()
        if zygote is None or zygote.over.is_set():
            raise StartFailed("The process that has put up the session's walls has ended.")
        return zygote

    def _set_init_apart(self, original: Child) -> None:
        """From its group: it stays as long as there are copies, the rest of the group does not."""
        process = original.process
        if self._kin.groups is not None and isinstance(process, Inherited) and process.init_pid is not None:
            with contextlib.suppress(OSError):
                self._kin.groups.group(_INITS).add(process.init_pid)

    async def _duplicate(self, gateway: Gateway, kernel_id: str) -> dict[str, Any]:
        """Take in the copy that has come, or comes soon, to an offer."""
        offered = self._offers.get(_plain(kernel_id))
        if offered is None or offered.gateway is not gateway:
            raise StartFailed(f"Nothing was offered for the kernel {kernel_id!r}.")
        del self._offers[kernel_id]
        try:
            self._check_start(gateway)
            take = partial(offered.child.take_copy, offered.offer, offered.source)
        except BaseException:
            await offered.withdraw()
            raise
        await self._launched(gateway, offered.child, take)
        return await self._taken_on(gateway, offered.child)

    async def _withdraw(self, gateway: Gateway, kernel_id: str) -> None:
        offered = self._offers.get(_plain(kernel_id))
        if offered is not None and offered.gateway is gateway:
            del self._offers[kernel_id]
            await offered.withdraw()

    async def _withdraw_all(self, gateway: Gateway | None) -> None:
        """Those of a gateway that has left, or of all."""
        for kernel_id, offered in list(self._offers.items()):
            if gateway is None or offered.gateway is gateway:
                del self._offers[kernel_id]
                await offered.withdraw()

    def _check_start(self, gateway: Gateway) -> None:
        if self._retiring or self._over.is_set() or gateway.left:
            raise StartFailed("The keeper of this machine ends, and starts nothing more.")

    async def _started(self, gateway: Gateway, order: Order, kernel_name: str, forked: Forked | None) -> Child:
        """Raises `StartFailed`, `ZygoteFailed`; then nothing of it stays."""
        try:
            self._check_start(gateway)  # meanwhile it may have left
            if order.kernel_id in self._children:
                raise StartFailed(f"The kernel {order.kernel_id!r} runs already.")
            child = self._new_child(order, kernel_name, forked.group if forked is not None else self._kin.new_group())
            await self._launched(gateway, child, partial(child.launch, forked))
        except BaseException:
            if forked is not None:
                await forked.discard()
            raise
        return child

    def _new_child(self, order: Order, kernel_name: str, group: cgroups.Group | None) -> Child:
        folder = self._runtime / order.kernel_id.replace("-", "")[:12]
        connection = connection_at(folder, kernel_name)
        return Child(order, connection, folder, group=_limited(group, order), kin=self._kin)

    async def _launched(self, gateway: Gateway, child: Child, launch: Callable[[], Awaitable[None]]) -> None:
        """Raises `StartFailed`, `ZygoteFailed`; then nothing of it stays, but what was forked is still the caller's."""
        kernel_id = child.id
        self._children[kernel_id], self._owners[kernel_id] = child, gateway
        try:
            writer = JournalWriter(self._folders.journals / kernel_id, child.order.journal_bytes)
            self._write_down(child)  # before it runs: after our death it is found by its mark
            self._launching += 1
            try:
                await launch()
            finally:
                self._launching -= 1
            self._journalings[kernel_id] = Journaling(self._intake, child, writer, lambda: self._heard(child))
        except BaseException:
            self._drop(child)
            self._folders.forget(kernel_id)
            await child.end_group()
            raise

    async def _forked(self, order: Order) -> Forked | None:
        """None if it is to be started the ordinary way."""
        wanted = Wanted.of(order.fork) if order.fork is not None else None
        return await self._pools.take(wanted) if wanted is not None and self._forks else None

    async def _prepare(self, gateway: Gateway, fork: dict[str, Any]) -> None:
        """Have kernels of an environment ready before the first is asked for."""
        if self._forks and not self._retiring and not self._over.is_set():
            self._pools.of(Wanted.of(fork))

    async def _keep(self, child: Child) -> None:
        exit_ = await child.ended()
        self._tell_owner(child, {"event": "ended", "kernel_id": child.id, "exit": asdict(exit_)})
        await child.last_words()
        self._drop(child)
        if not child.forgotten.is_set():
            self._write_down(child, exit_)
        if self._retiring:
            self._end_if_idle()
        elif not self._gateways:
            self._end_soon(_GRACE_S)

    def _drop(self, child: Child) -> None:
        """It has ended; what it published, and how it ended, stays written down."""
        if (journaling := self._journalings.pop(child.id, None)) is not None:
            journaling.close()
        self._owners.pop(child.id, None)
        del self._children[child.id]
        child.clear()

    def _write_down(self, child: Child, exit_: Exit | None = None) -> None:
        try:
            write_whole(self._folders.record(child.id), child.record(self.id, exit_))
        except OSError as error:
            if exit_ is None:
                raise StartFailed(f"The kernel can't be written down: {error.strerror}") from None
            log.warning("The end of kernel %s can't be written down: %s", child.id, error)

    def _heard(self, child: Child) -> None:
        self._tell_owner(child, {"event": "heard", "kernel_id": child.id})

    def _tell_owner(self, child: Child, message: dict[str, Any]) -> None:
        if (owner := self._owners.get(child.id)) is not None:
            owner.tell(message)

    async def _adopt(self, gateway: Gateway, kernel_id: str) -> dict[str, Any]:
        child = self._children.get(kernel_id)
        if child is None or not child.running:
            raise KernelGone(f"The kernel {kernel_id!r} is not there.")
        former = self._owners[kernel_id]
        if former.epoch > gateway.epoch:
            raise Refused(f"The kernel {kernel_id!r} was adopted by a gateway that came later.")
        if former is not gateway:
            former.tell({"event": "taken", "kernel_id": kernel_id})
            self._owners[kernel_id] = gateway
            if former in self._gateways:  # it is there yet: two that go by one name would take it from each other
                child.connection = {**child.connection, "session": uuid4().hex}
        return child.record(self.id)

    def _commanded(self, gateway: Gateway, kernel_id: str) -> Child | None:
        """The kernel that a gateway has started or adopted; None if it has ended. Raises `Refused`."""
        owner = self._owners.get(kernel_id)
        if owner is not None and owner is not gateway:
            raise Refused(f"The kernel {kernel_id!r} was adopted by another gateway.")
        return self._children.get(kernel_id)

    async def _forget(self, gateway: Gateway, kernel_id: str) -> None:
        """Its end is known: nothing of it needs to be kept."""
        child = self._commanded(gateway, _plain(kernel_id))
        if child is not None:
            if child.running:
                raise Refused(f"The kernel {kernel_id!r} runs.")
            child.forgotten.set()
        await asyncio.to_thread(self._folders.forget, kernel_id)

    async def _interrupt(self, gateway: Gateway, kernel_id: str, since: float) -> None:
        if child := self._commanded(gateway, kernel_id):
            child.interrupt(since)

    async def _kill(self, gateway: Gateway, kernel_id: str, reason: str) -> None:
        if child := self._commanded(gateway, kernel_id):
            await child.kill(reason)

    async def _kill_children(self, gateway: Gateway, kernel_id: str, since: float) -> int:
        child = self._commanded(gateway, kernel_id)
        return await child.kill_children(since) if child else 0

    async def _usage(self, gateway: Gateway, kernel_id: str) -> list[float]:
        child = self._commanded(gateway, kernel_id)
        return list(await child.usage()) if child else [0.0, 0, 0]


def _swept_groups() -> cgroups.Hierarchy | None:
    """Where groups of processes can be made, without those that dead keepers left; None where that is impossible."""
    groups, _ = cgroups.found()
    if groups is not None:
        groups.sweep()
    return groups


def _limited(group: cgroups.Group | None, order: Order) -> cgroups.Group | None:
    """None if it can't be limited: then its memory is watched, and its other limits are the system's."""
    if group is not None:
        try:
            group.limit(cgroups.Limits(memory_bytes=order.memory_bytes, processes=order.pids, cpus=order.cpus))
        except OSError as error:
            log.warning("Kernel %s is not limited by a group: %s", order.kernel_id, error)
            remove(group)
            return None
    return group


def _plain(kernel_id: str) -> str:
    if not _NAME.fullmatch(kernel_id):
        raise ValueError("not an id of a kernel")
    return kernel_id


def _request(line: bytes) -> dict[str, Any]:
    """Raises `ValueError`."""
    try:
        request = json.loads(line)
    except RecursionError:
        raise ValueError("nested too deep") from None
    if not isinstance(request, dict):
        raise ValueError("not an object")  # noqa: TRY004 - like any other garbage
    return request


def _same_user(peer: Any) -> bool:
    """The folder of the socket lets nobody else in; this holds if it is opened by mistake."""
    _, uid, _ = _CREDENTIALS.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return bool(uid == os.geteuid())


def _locked(path: Path) -> int | None:
    """Held until it is closed; None if somebody else holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _short_temp() -> str:
    """The system's folder for temporary files, `/tmp` if that one's path is too long for sockets."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 60 else "/tmp"  # noqa: S108 - a private folder is made in it


class BoundedLog(logging.Handler):
    """Appends to a log that keeps its end."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._log = Log(path)

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError), self._log.opened() as output:
            print(self.format(record), file=output)


def _detach(log_path: Path) -> None:
    """A session of our own, nothing open but the log: whoever started us may end as it likes."""
    os.setsid()
    os.chdir("/")
    nothing = os.open(os.devnull, os.O_RDONLY)
    with Log(log_path).opened() as output:
        for source, target in ((nothing, 0), (output.fileno(), 1), (output.fileno(), 2)):
            os.dup2(source, target)
    os.close(nothing)


async def _serve(data_dir: Path, version: str, ready: Callable[[], None]) -> None:
    keeper = Keeper(data_dir, version)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, keeper.stop)
    await keeper.serve(ready)


def main(data_dir: Path, version: str) -> None:
    """Start a keeper that belongs to nobody, and return when it serves."""
    started, tell_started = os.pipe()
    if os.fork():
        os.close(tell_started)
        sys.exit(0 if os.read(started, 1) else 1)
    os.close(started)
    path = Folders(data_dir).log
    try:
        _detach(path)
    except OSError as error:
        sys.exit(f"{path} can't be written: {error.strerror}")
    handler = BoundedLog(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])

    def ready() -> None:
        os.write(tell_started, b"1")
        os.close(tell_started)

    asyncio.run(_serve(data_dir, version, ready))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
