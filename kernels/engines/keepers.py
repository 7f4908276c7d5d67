"""Speaks with the keepers of a data folder, and starts one where none serves.

A keeper that ends without being told to takes none of its kernels for alive: they are ended, and reported so.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kernels import processes
from kernels.engine import Exit, ProcessUsage, Walls
from kernels.errors import KernelsError, Refused, StartFailed
from kernels.keeper import KINDS, LINE_BYTES, Folders
from kernels.logs import Log
from kernels.processes import MARK

log = logging.getLogger(__name__)

KEEPER_ENDED = "The keeper of this machine ended."

_START_S = 30.0
_END_S = 10.0
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")

PROGRAM = "kernels.keeper"

# Memory that a flood took is given back: no arena per thread, and nothing large among the small.
_THRIFTY = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}


class KeptProcess:
    """A kernel that a keeper is the parent of."""

    def __init__(self, kernel_id: str, record: Mapping[str, Any], keeper: "Keeper | None") -> None:
        self.kernel_id = kernel_id
        self.pid: int = record["pid"]
        self.connection: Mapping[str, Any] = record["connection"]
        self.started_at: float = record["started_at"]
        self.memory_limit_bytes: int | None = record["memory_bytes"]
        self.mark = f"{MARK}={record['mark']}"
        self.walls = Walls(**record["walls"])
        self.taken = False  # by another gateway: it is not ours to end
        self.keeper = keeper  # None: it has ended, and nobody keeps it
        self._log = Log(Path(record["log"]))
        self._log_start: int = record["log_start"]
        self._heard = asyncio.Event()
        if record["heard"]:
            self._heard.set()
        self._ended: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        if record["exit"] is not None:
            self.has_ended(Exit(**record["exit"]))

    @property
    def running(self) -> bool:
        return not self._ended.done()

    def has_ended(self, exit_: Exit) -> None:
        if not self._ended.done():
            self._ended.set_result(exit_)

    def was_heard(self) -> None:
        self._heard.set()

    async def ended(self) -> Exit:
        return await asyncio.shield(self._ended)

    async def journaling(self) -> None:
        await self._heard.wait()

    async def interrupt(self, since: float) -> None:
        await self._ask("interrupt", None, since=since)

    async def kill(self, reason: str) -> None:
        await self._ask("kill", None, reason=reason)
        await self.ended()

    async def kill_children(self, since: float) -> int:
        return int(await self._ask("kill_children", 0, since=since))

    async def printed(self, limit_bytes: int) -> str:
        try:
            return await asyncio.to_thread(self._log.tail, limit_bytes, self._log_start)
        except OSError:  # it is gone, or became something else
            return ""

    async def usage(self) -> ProcessUsage:
        return ProcessUsage(*await self._ask("usage", (0.0, 0, 0)))

    async def forget(self) -> bool:
        """Have what is kept of it removed, once it has ended; False if there is nobody to do so."""
        if self.keeper is None or self.keeper.lost:
            return False
        self.keeper.processes.pop(self.kernel_id, None)
        try:
            await self.keeper.ask("forget", kernel_id=self.kernel_id)
        except KernelsError:
            return False
        return True

    async def _ask(self, action: str, otherwise: Any, **arguments: Any) -> Any:
        """Also when whoever asks has left: what was begun goes on."""
        if self.running and self.keeper is not None:
            with contextlib.suppress(KeeperLost, Refused):  # then it has ended for us
                return await self.keeper.ask(action, kernel_id=self.kernel_id, **arguments)
        return otherwise


class KeeperLost(KernelsError):
    """The connection to a keeper has ended."""

    def __init__(self) -> None:
        super().__init__(KEEPER_ENDED)


class Keeper:
    """The connection to one keeper. Made by `_connected`."""

    def __init__(self, announcement: Path, announced: Mapping[str, Any], writer: asyncio.StreamWriter) -> None:
        self.id: str = announced["id"]
        self.pid: int = announced["pid"]
        self.version: str = announced["version"]
        self.retiring = False
        self.lost = False
        self.processes: dict[str, KeptProcess] = {}
        self._announcement = announcement
        self._writer = writer
        self._asked: dict[int, tuple[asyncio.Future[Any], Callable[[Any], Any]]] = {}
        self._count = 0
        self._leaving = False

    async def ask(self, action: str, **arguments: Any) -> Any:
        """Raises what the keeper says, `KeeperLost`."""
        if self.lost:
            raise KeeperLost()
        return await asyncio.shield(self._send(action, arguments))

    def start(self, kernel_id: str, kernel_name: str, order: Mapping[str, Any]) -> "asyncio.Future[KeptProcess]":
        arguments = {"order": order, "kernel_name": kernel_name}
        return self._send("start", arguments, lambda record: self._process(kernel_id, record))

    def duplicate(self, kernel_id: str) -> "asyncio.Future[KeptProcess]":
        """What has come to an `offer` for this kernel."""
        return self._send("duplicate", {"kernel_id": kernel_id}, lambda record: self._process(kernel_id, record))

    def adopt(self, kernel_id: str) -> "asyncio.Future[KeptProcess]":
        return self._send("adopt", {"kernel_id": kernel_id}, lambda record: self._process(kernel_id, record))

    def _process(self, kernel_id: str, record: Mapping[str, Any]) -> KeptProcess:
        """Made before anything else is read: the next line may tell of its end."""
        process = self.processes[kernel_id] = KeptProcess(kernel_id, record, self)
        return process

    def _send(
        self, action: str, arguments: Mapping[str, Any], made: Callable[[Any], Any] = lambda answer: answer
    ) -> "asyncio.Future[Any]":
        self._count += 1
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked[self._count] = answer, made
        if self.lost:
            answer.set_exception(KeeperLost())
        answer.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._writer.write(json.dumps({"id": self._count, "do": action, **arguments}).encode() + b"\n")
        return answer

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Take in answers and events until the connection ends."""
        try:
            while line := await reader.readline():
                self._take(json.loads(line))
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("What a keeper said can't be read: %s", error)
        finally:
            self.lost = True
            self._writer.close()
            with contextlib.suppress(OSError):
                await self._writer.wait_closed()
            for answer, _ in self._asked.values():
                if not answer.done():
                    answer.set_exception(KeeperLost())
        if not self._leaving:
            await self._end_all()

    async def _end_all(self) -> None:
        running = [process for process in self.processes.values() if process.running]
        if running:
            log.warning("A keeper ended; its %d kernels are ended too", len(running))
        await asyncio.gather(*(self._end(process) for process in running))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await processes.gone(self.pid)
                await asyncio.to_thread(clear_away, self._announcement)

    async def _end(self, process: KeptProcess) -> None:
        await asyncio.to_thread(processes.end_family, None, process.mark)
        process.has_ended(Exit(reason=KEEPER_ENDED))

    def _take(self, message: dict[str, Any]) -> None:
        if "event" not in message:
            answer, made = self._asked.pop(message["id"])
            if "error" in message:
                answer.set_exception(KINDS.get(message["kind"], KernelsError)(message["error"]))
            else:
                answer.set_result(made(message.get("answer")))
        elif (process := self.processes.get(message["kernel_id"])) is not None:
            if message["event"] == "ended":
                process.has_ended(Exit(**message["exit"]))
            elif message["event"] == "heard":
                process.was_heard()
            elif message["event"] == "taken":
                process.taken = True
                process.has_ended(Exit(reason="Another gateway has taken this kernel over."))

    async def leave(self) -> None:
        """Ask for nothing more; wait for its end if nothing is left for it to do."""
        self._leaving = True
        try:
            async with asyncio.timeout(_END_S):
                left = await self.ask("leave")
                self._writer.close()
                if left["ends"]:
                    await processes.gone(self.pid)
        except (KernelsError, TimeoutError) as error:
            log.warning("A keeper was left alone: %s", str(error) or "it does not answer")
        finally:
            self._writer.close()

    def abandon(self) -> None:
        """Have it end our kernels, without waiting for anything."""
        if not self.lost:
            self._leaving = True
            self._send("abandon", {})


class Keepers:
    """All keepers that run for a data folder."""

    def __init__(self, folders: Folders, version: str) -> None:
        self._folders = folders
        self._version = version
        self._connected: dict[str, tuple[Keeper, asyncio.Task[None]]] = {}
        self._looking = asyncio.Lock()

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Connected to those that run; those with nothing left to do have ended when this is left."""
        try:
            async with self._looking:
                await self._look()
            yield
        finally:
            await asyncio.gather(*(keeper.leave() for keeper in self.running()))
            await asyncio.gather(*(reading for _, reading in self._connected.values()))

    def running(self) -> list[Keeper]:
        return [keeper for keeper, _ in self._connected.values() if not keeper.lost]

    def find(self, keeper_id: str | None) -> Keeper | None:
        return next((keeper for keeper in self.running() if keeper.id == keeper_id), None)

    async def starter(self) -> Keeper:
        """The one that starts kernels: of our version, started if there is none. Raises `StartFailed`."""
        async with self._looking:
            try:
                async with asyncio.timeout(_START_S):
                    while (found := self._serving()) is None:
                        await self._look()
                        if self._serving() is None:
                            await self._start_one()
                            await self._look()
            except TimeoutError:
                raise StartFailed(f"The keeper did not answer within {_START_S:g} s.") from None
            for other in self.running():
                if other is not found and not other.retiring:
                    other.retiring = True
                    with contextlib.suppress(KernelsError):
                        await other.ask("retire")
            return found

    def _serving(self) -> Keeper | None:
        return next((one for one in self.running() if one.version == self._version and not one.retiring), None)

    async def _look(self) -> None:
        """Connect to all that answer; clear away after those that are gone."""
        for file in await asyncio.to_thread(lambda: list(self._folders.keepers.glob("*.json"))):
            if self.find(file.stem) is not None:
                continue
            try:
                await self._connect(file)
            except (ConnectionRefusedError, FileNotFoundError):
                await asyncio.to_thread(clear_away, file)
            except (OSError, ValueError, KeyError, KernelsError) as error:
                log.warning("The keeper of %s does not answer: %s", file.name, error)

    async def _connect(self, announcement: Path) -> None:
        announced = json.loads(await asyncio.to_thread(announcement.read_text))
        address = str(Path(announced["runtime"]) / "keeper")
        reader, writer = await asyncio.open_unix_connection(address, limit=LINE_BYTES)
        keeper = Keeper(announcement, announced, writer)
        reading = asyncio.create_task(keeper.read(reader))
        self._connected[keeper.id] = keeper, reading
        keeper.retiring = (await keeper.ask("hello"))["retiring"]

    async def _start_one(self) -> None:
        """Returns when one serves; maybe another one than was started here."""
        env = {name: value for name, value in os.environ.items() if name in _PASSED_ON} | _THRIFTY
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", PROGRAM, str(self._folders.data_dir), self._version,
            env=env, cwd="/", stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, words = await process.communicate()
        if process.returncode != 0:
            why = words.decode(errors="replace").strip() or f"{self._folders.log} tells why"
            raise StartFailed(f"The keeper of this machine does not start: {why}")


def clear_away(file: Path) -> None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        shutil.rmtree(json.loads(file.read_text())["runtime"], ignore_errors=True)
    file.unlink(missing_ok=True)
