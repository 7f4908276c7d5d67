"""A process behind all walls that does what a test tells it to, and what lies outside for it to reach."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from kernels import sandbox

ORDINARY = 65_534
SECRET = "the secret of a neighbour"

_INMATE = r"""
import ctypes, errno, glob, json, os, platform, resource, signal, socket, struct, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
NUMBERS = {"x86_64": {"keyctl": 250, "add_key": 248, "open_by_handle_at": 304, "bpf": 321, "io_uring_setup": 425},
           "aarch64": {"keyctl": 219, "add_key": 217, "open_by_handle_at": 265, "bpf": 280, "io_uring_setup": 425}}
def of(function, *arguments):
    "`done`, or the name of the error."
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"
def c(name, *arguments):
    call = getattr(libc, name)
    call.restype = ctypes.c_long if name == "syscall" else ctypes.c_int
    return "done" if call(*arguments) != -1 else errno.errorcode[ctypes.get_errno()]
def sysc(name, *arguments):
    return c("syscall", NUMBERS[platform.machine()][name], *arguments)
def read(path):
    with open(path, "rb") as file:
        return file.read(65536).decode(errors="replace")
def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)
for line in sys.stdin:
    scope = dict(globals())
    try:
        exec(json.loads(line), scope)
        answer = scope["result"]
    except BaseException as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps(answer), flush=True)
"""


@dataclass
class Outside:
    """A neighbour: a process with a secret in its environment and memory, with files and sockets of all kinds."""

    folder: Path
    workspace: Path
    process: subprocess.Popen[str]
    address: int  # of the secret in its memory
    port: int
    abstract: str
    unix: Path
    _sockets: list[socket.socket] = field(default_factory=list)

    @property
    def file(self) -> Path:
        return self.folder / "neighbour" / "secret"

    def untouched(self) -> bool:
        """Its process runs, its file is what it was, and nobody has come by on a socket."""
        for one in self._sockets:
            one.setblocking(False)
            try:
                one.accept()[0].close()
            except BlockingIOError:
                continue
            return False
        return self.process.poll() is None and self.file.read_text() == SECRET


@contextmanager
def outside(owner: int) -> Iterator[Outside]:
    folder = Path(tempfile.mkdtemp(prefix="walls-"))
    folder.chmod(0o755)
    for name in ("neighbour", "workspace", "runtime"):
        (folder / name).mkdir()
        os.chown(folder / name, owner, owner)
    (folder / "neighbour" / "secret").write_text(SECRET)
    shutil.copytree(sandbox.INSIDE, folder / "inside", ignore=shutil.ignore_patterns("__pycache__"))
    code = (
        f"import ctypes, sys; secret = ctypes.create_string_buffer({SECRET!r}.encode());"
        "print(ctypes.addressof(secret), flush=True); sys.stdin.read()"
    )
    tcp, abstract, unix = socket.socket(), socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    neighbour = subprocess.Popen(
        [_python(owner), "-I", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"SECRET": SECRET}, user=owner, group=owner, extra_groups=[] if os.geteuid() == 0 else None,
    )  # fmt: skip
    try:
        assert neighbour.stdout is not None
        tcp.bind(("127.0.0.1", 0))
        abstract.bind(f"\0walls-{folder.name}")
        unix.bind(str(folder / "neighbour" / "socket"))
        for one in (tcp, abstract, unix):
            one.listen()
        yield Outside(
            folder, folder / "workspace", neighbour, int(neighbour.stdout.readline()), tcp.getsockname()[1],
            f"walls-{folder.name}", folder / "neighbour" / "socket", [tcp, abstract, unix],
        )  # fmt: skip
    finally:
        for one in (tcp, abstract, unix):
            one.close()
        neighbour.kill()
        neighbour.communicate()
        shutil.rmtree(folder)


def _python(owner: int) -> str:
    return sys.executable if owner == os.geteuid() else "/usr/bin/python3"


class Prison:
    """Runs code behind the walls; `result` of the code comes back."""

    def __init__(
        self,
        outside: Outside,
        *,
        owner: int,
        own_uid: bool = False,
        network: Literal["none", "host"] = "none",
        limits: dict[str, Any] | None = None,
        tmp_bytes: int = 32 << 20,
    ) -> None:
        host = sandbox.host_walls(outside.folder)
        inside = outside.folder / "inside"
        python = _python(owner)
        self.plan = sandbox.plan(
            host,
            network=network,
            read_only=[inside, *sandbox.interpreter_paths(Path(python))],
            tmp_bytes=tmp_bytes,
            uid=host.uids[7] if own_uid else None,
        )
        order = {
            "plan": self.plan,
            "trees": {str(outside.workspace): "rw"},
            "limits": {"open_files": 512, **(limits or {})},
            "hostname": "prison",
            "cwd": str(outside.workspace),
        }
        environment = {"PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
        self._process = subprocess.Popen(
            [python, "-I", "-S", str(inside / "confine.py"), json.dumps(order), python, "-I", "-S", "-c", _INMATE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, user=owner, group=owner,
            extra_groups=[] if os.geteuid() == 0 else None, cwd="/",
        )  # fmt: skip
        assert self.run("result = 1 + 1") == 2

    def run(self, code: str, **given: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        head = "".join(f"{name} = {value!r}\n" for name, value in given.items())
        self._process.stdin.write(json.dumps(head + code) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"The process ended: {self._process.wait()}"
        return json.loads(line)

    def session_pids(self) -> list[int]:
        """Of its program and first process, as seen from outside."""
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def ended(self) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        return self._process.wait(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pids = self.session_pids() if self._process.poll() is None else []
        self.ended()
        for pid in pids:
            assert _gone(pid), f"{pid} outlives its session"


def _gone(pid: int) -> bool:
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    return False
