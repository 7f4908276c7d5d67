"""Gateways for tests: real processes, on a port of their own, with a data folder of their own."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil

from kernels.processes import MARK
from tests.api import Api

READY_S = 60

# What a session evaluates to tell its process from any other; behind walls, the number alone is that of many.
WHICH_PROCESS = (
    "(lambda os, stat: (os.getpid(), os.readlink('/proc/self/ns/pid'), stat.rpartition(')')[2].split()[19]))"
    "(__import__('os'), open('/proc/self/stat').read())"
)


def keepers_of(data_dir: Path) -> list[psutil.Process]:
    """The keepers that run for a data folder."""
    found = []
    for file in (data_dir / "keepers").glob("*.json"):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            found.append(psutil.Process(json.loads(file.read_text())["pid"]))
    return found


def kernels_of(data_dir: Path) -> list[psutil.Process]:
    """What runs below the keepers of a data folder for a session, but for the first process behind its walls."""
    return [one for one in below_keepers(data_dir) if not _is_nobodys(one) and not _is_init(one)]


async def kernel_pid(gateway: "GatewayProcess", api: Api, session_id: str) -> int:
    """The number of a session's kernel on this machine; behind its walls it has another one."""
    kernel_id = (await api.get(f"/api/sessions/{session_id}"))["jupyter"]["kernel_id"]
    record = record_at(gateway.data_dir, UUID(kernel_id).hex)
    pid: int = record["pid"]
    return pid


def record_at(data_dir: Path, place: str) -> dict[str, Any]:
    """What the keeper has written down of the kernel at a place."""
    for file in (data_dir / "kernels").glob("*.json"):
        record: dict[str, Any] = json.loads(file.read_text())
        if (record.get("about") or {}).get("place") == place:
            return record
    raise LookupError(place)


def spares_of(data_dir: Path) -> list[psutil.Process]:
    """What runs below the keepers of a data folder for no session: what forks kernels, and what it has forked ahead."""
    return [one for one in below_keepers(data_dir) if _is_nobodys(one)]


def inits_of(data_dir: Path) -> list[psutil.Process]:
    """The first processes behind walls, of sessions and of what was forked ahead."""
    return [one for one in below_keepers(data_dir) if _is_init(one)]


def below_keepers(data_dir: Path) -> list[psutil.Process]:
    found = []
    for keeper in keepers_of(data_dir):
        with contextlib.suppress(psutil.NoSuchProcess):
            found += keeper.children(recursive=True)
    return found


def _is_nobodys(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return set(process.environ().get(MARK, "")) == {"-"} or process.status() == psutil.STATUS_ZOMBIE
    return True


def _is_init(process: psutil.Process) -> bool:
    with contextlib.suppress(OSError):
        return "memfd:init" in os.readlink(f"/proc/{process.pid}/exe")
    return False


class GatewayProcess:
    """A gateway that was started as a user would start it."""

    def __init__(self, data_dir: Path, settings: dict[str, Any], port: int = 0) -> None:
        self.data_dir = data_dir
        self._settings = settings
        self._port = port
        self._log = data_dir.parent / f"{data_dir.name}.log"
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start it (again), and wait for its first line."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
        env |= {f"GATEWAY_{name.upper()}": str(value) for name, value in self._settings.items()}
        command = [
            sys.executable,
            "-m",
            "gateway",
            "serve",
            "--port",
            str(self._port),
            "--data-dir",
            str(self.data_dir),
        ]
        with open(self._log, "ab") as log:
            self.process = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=log, cwd=tempfile.gettempdir()
            )
        async with asyncio.timeout(READY_S):
            assert self.process.stdout is not None
            line = (await asyncio.to_thread(self.process.stdout.readline)).decode()
        assert line.startswith("Listening on "), f"{line!r}; {self.log()}"
        self.url = line.removeprefix("Listening on ").strip()
        self._port = int(self.url.rsplit(":", 1)[1])

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def log(self) -> str:
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    async def ended(self, timeout_s: float = 30) -> int:
        """Wait for its exit code."""
        assert self.process is not None
        async with asyncio.timeout(timeout_s):
            code = await asyncio.to_thread(self.process.wait)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    async def stop(self) -> int:
        if self.process is not None and self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return await self.ended()

    async def kill(self) -> None:
        self.signal(signal.SIGKILL)
        await self.ended()


@asynccontextmanager
async def gateway_process(data_dir: Path, **settings: Any) -> AsyncIterator[GatewayProcess]:
    """A gateway until the block is left; settings are named as in `Settings`."""
    gateway = GatewayProcess(data_dir, settings)
    await gateway.start()
    try:
        yield gateway
    finally:
        if gateway.process is not None and gateway.process.poll() is None:
            await gateway.stop()
