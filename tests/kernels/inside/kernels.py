"""Kernels for tests, without a gateway: forked from a built one, or started ordinarily; with a plain client."""

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import zmq
from jupyter_client.session import Session

from kernels.engines.overlay import Overlay, probe

HERE = Path(__file__).parent
LAUNCHER = HERE.parents[2] / "kernels" / "inside" / "launcher.py"
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
WITHIN_S = 30


def identity_at(folder: Path, **env: str) -> dict[str, Any]:
    """Of a session whose files are all in one folder."""
    for name in ("workspace", "home"):
        (folder / name).mkdir(parents=True)
    interpreter, overlay = probe(sys.executable), Overlay(folder / "overlay")
    overlay.prepare(interpreter)
    home = folder / "home"
    own = {"PATH": os.environ["PATH"], "HOME": str(home), "IPYTHONDIR": str(home / ".ipython"), **overlay.env(), **env}
    return {
        "connection": {
            "transport": "ipc",
            "ip": str(folder / "k"),
            "key": uuid4().hex,
            "signature_scheme": "hmac-sha256",
            "kernel_name": "python3",
            **{f"{name}_port": number for number, name in enumerate(CHANNELS, start=1)},
        },
        "connection_file": str(folder / "connection.json"),
        "env": own,
        "cwd": str(folder / "workspace"),
        "overlay": {
            "root": str(overlay.root),
            "python": str(overlay.python),
            "site_packages": str(overlay.root / "lib" / f"python{interpreter.version}" / "site-packages"),
        },
        "log": str(folder / "log"),
    }


class Client:
    """Talks to one kernel, a request at a time."""

    def __init__(self, context: "zmq.Context[Any]", identity: dict[str, Any], pid: int) -> None:
        self.identity, self.pid = identity, pid
        connection = identity["connection"]
        self._session = Session(key=connection["key"].encode())
        self._sockets = {
            name: context.socket(zmq.SUB if name == "iopub" else zmq.DEALER)
            for name in ("shell", "iopub", "control", "hb")
        }
        for name, one in self._sockets.items():
            one.linger = 0
            one.reconnect_ivl = 2
            if name == "iopub":
                one.subscribe(b"")
            one.connect(f"ipc://{connection['ip']}-{connection[f'{name}_port']}")
        self._attach()

    def _attach(self) -> None:
        """Until it is heard on iopub."""
        until = time.monotonic() + WITHIN_S
        while not self._heard(self.send("shell", "kernel_info_request", {}), 0.1):
            assert time.monotonic() < until, Path(self.identity["log"]).read_text()

    def _heard(self, msg_id: str, within_s: float) -> bool:
        until = time.monotonic() + within_s
        while (left_s := until - time.monotonic()) > 0:
            if (message := self._receive("iopub", left_s)) and message["parent_header"].get("msg_id") == msg_id:
                return True
        return False

    def send(self, channel: str, kind: str, content: dict[str, Any], **header: Any) -> str:
        message = self._session.msg(kind, content)
        message["header"].update(header)
        self._session.send(self._sockets[channel], message)
        msg_id: str = message["header"]["msg_id"]
        return msg_id

    def _receive(self, channel: str, within_s: float) -> Any:
        if not self._sockets[channel].poll(within_s * 1000):
            return None
        return self._session.recv(self._sockets[channel])[1]

    def wait_for(self, kind: str) -> dict[str, Any]:
        """The content of the next message on iopub that is of this kind."""
        while message := self._receive("iopub", WITHIN_S):
            if message["msg_type"] == kind:
                content: dict[str, Any] = message["content"]
                return content
        raise TimeoutError(kind)

    def ask(self, channel: str, kind: str, content: dict[str, Any]) -> dict[str, Any]:
        """The reply's content."""
        return self.reply(channel, self.send(channel, kind, content))

    def reply(self, channel: str, msg_id: str) -> dict[str, Any]:
        while message := self._receive(channel, WITHIN_S):
            if message["parent_header"].get("msg_id") == msg_id:
                content: dict[str, Any] = message["content"]
                return content
        raise TimeoutError(Path(self.identity["log"]).read_text())

    def run(self, code: str, **header: Any) -> str:
        """What it printed, and its result. A cell that fails fails the test."""
        content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}
        msg_id, said = self.send("shell", "execute_request", content, **header), ""
        while message := self._receive("iopub", WITHIN_S):
            if message["parent_header"].get("msg_id") == msg_id:
                found = message["content"]
                said += found.get("text", "") + found.get("data", {}).get("text/plain", "")
                if message["msg_type"] == "error":
                    said += f"{found['ename']}: {found['evalue']}"
                if found.get("execution_state") == "idle":
                    break
        assert self.reply("shell", msg_id)["status"] != "aborted"
        return said

    def said(self, text: str) -> None:
        """Wait until a cell prints that."""
        while message := self._receive("iopub", WITHIN_S):
            if message["content"].get("text", "").strip() == text:
                return
        raise TimeoutError(text)

    def beats(self) -> bool:
        heart = self._sockets["hb"]
        heart.send(b"ping")
        return bool(heart.poll(WITHIN_S * 1000)) and heart.recv() == b"ping"

    def duplicate(self, context: "zmq.Context[Any]", folder: Path) -> "Client":
        """A copy, whose workspace is a copy too."""
        identity, address = identity_at(folder), str(folder / "address")
        shutil.copytree(self.identity["cwd"], identity["cwd"], dirs_exist_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
            listening.bind(address)
            listening.listen()
            listening.settimeout(WITHIN_S)
            answer = self.ask_for_duplicate(address)
            assert answer["status"] == "ok", answer
            assert answer["pause_ms"] > 0, answer
            with listening.accept()[0] as connection:
                connection.settimeout(WITHIN_S)
                pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
                log = os.open(identity["log"], os.O_CREAT | os.O_WRONLY, 0o600)
                socket.send_fds(connection, [json.dumps(identity).encode()], [log])
                os.close(log)
                assert json.loads(connection.recv(65536)) == {"ready": True}
        return Client(context, identity, pid)

    def ask_for_duplicate(self, address: str) -> dict[str, Any]:
        request = {"action": "duplicate", "address": address, "wait_s": 10}
        return self.ask("control", "session_gateway_request", request)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        for one in self._sockets.values():
            one.close()


class Forked:
    """Kernels that are forks of one process."""

    def __init__(self, process: "subprocess.Popen[str]", built: dict[str, int]) -> None:
        self.built, self.pid = built, process.pid
        self._process = process

    def start(self, identity: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(identity), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


@contextmanager
def forked(*preloads: str) -> Iterator[Forked]:
    with subprocess.Popen(
        [sys.executable, str(HERE / "forking_child.py"), *preloads],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={"PATH": os.environ["PATH"]},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        try:
            yield Forked(process, json.loads(process.stdout.readline()))
        finally:
            assert process.stdin is not None
            process.stdin.close()


@contextmanager
def ordinary(identity: dict[str, Any], *program: str) -> Iterator[int]:
    """A kernel that is started as the engine does it, or by another program; its process id."""
    Path(identity["connection_file"]).write_text(json.dumps(identity["connection"]))
    with open(identity["log"], "wb") as log, subprocess.Popen(
        [identity["overlay"]["python"], *(program or [str(LAUNCHER)]), "-f", identity["connection_file"]],
        env=identity["env"], cwd=identity["cwd"], stdout=log, stderr=log, stdin=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        try:
            yield process.pid
        finally:
            process.kill()
