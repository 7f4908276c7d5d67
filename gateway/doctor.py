"""What this host can give a gateway, found by trying; for what is missing, why, and what mends it."""

import asyncio
import os
import platform
import resource
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.app import make_engine, make_store
from gateway.config import Settings
from gateway.errors import GatewayError
from kernels.sandbox import REQUIRED, host_walls

_ENOUGH_FILES = 16_384
_ENOUGH_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Finding:
    """`needed` is what this gateway's settings do not go without."""

    name: str
    fine: bool
    needed: bool = False
    told: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        mark = "ok     " if self.fine else "MISSING" if self.needed else "without"
        line = f"{mark}  {self.name}{': ' if self.told else ''}{self.told}"
        return line if self.fine or not self.remedy else f"{line}\n         {self.remedy}"


async def examine(settings: Settings) -> list[Finding]:
    """Look at everything that a gateway with these settings uses. Makes the data folder, if there is none."""
    return [
        _python(),
        _data_folder(settings),
        await _store(settings),
        *_kernels(settings),
        *await asyncio.to_thread(lambda: list(_walls(settings))),
        _fork_server(settings),
        _open_files(),
    ]


def _python() -> Finding:
    return Finding("Python", fine=True, needed=True, told=f"{platform.python_version()} on {platform.system()}")


def _data_folder(settings: Settings) -> Finding:
    folder = settings.data_dir
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        remedy = "Choose another one with --data-dir."
        return Finding("data folder", fine=False, needed=True, told=f"{folder}: {error.strerror}", remedy=remedy)
    if not os.access(folder, os.W_OK | os.X_OK):
        remedy = "Choose another one with --data-dir."
        return Finding("data folder", fine=False, needed=True, told=f"{folder} can't be written to", remedy=remedy)
    told = f"{folder}, {free >> 20:,} MiB free"
    return Finding("data folder", fine=free >= _ENOUGH_BYTES, told=told, remedy="Free some space.")


async def _store(settings: Settings) -> Finding:
    name = "SQLite" if settings.store_uri.startswith("sqlite:") else "MongoDB"
    try:
        async with make_store(settings).opened():
            return Finding("store", fine=True, needed=True, told=name)
    except (GatewayError, OSError) as error:
        return Finding("store", fine=False, needed=True, told=f"{name}: {error}", remedy="Check --store.")


def _kernels(settings: Settings) -> Iterator[Finding]:
    specs = make_engine(settings).kernelspecs()
    python = any(spec.language == "python" for spec in specs.values())
    remedy = "Install one: `pip install ipykernel`."
    yield Finding("kernels", fine=python, needed=True, told=", ".join(sorted(specs)) or "none found", remedy=remedy)


def _walls(settings: Settings) -> Iterator[Finding]:
    wanted = settings.walls_wanted
    for wall in host_walls(settings.data_dir).walls:
        needed = wanted == "strict" and wall.name in REQUIRED
        yield Finding(f"wall {wall.name}", fine=wall.stands, needed=needed, told=wall.reason, remedy=wall.remedy)


def _fork_server(settings: Settings) -> Finding:
    if not settings.fork_server:
        return Finding("fork server", fine=False, told="turned off", remedy="Set GATEWAY_FORK_SERVER=true.")
    fine = sys.platform == "linux" and hasattr(os, "pidfd_open")
    told = "" if fine else f"{platform.system()} starts each kernel anew: slower, and with more memory"
    return Finding("fork server", fine=fine, told=told, remedy="Run the gateway on Linux 5.3 or later.")


def _open_files() -> Finding:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    unlimited = most == resource.RLIM_INFINITY
    told = "unlimited" if unlimited else f"at most {most:,}"
    remedy = "Raise the limit (`ulimit -Hn 65536`, or LimitNOFILE= in a systemd unit) for many sessions at once."
    return Finding("open files", fine=unlimited or most >= _ENOUGH_FILES, told=told, remedy=remedy)
