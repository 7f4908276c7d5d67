"""Forks kernels: a process of the kernel's own interpreter that has built all of a kernel but its identity.

Run as a script by its keeper, over a socket that ends it when it is closed. It has one thread, and nothing of any
session: each child gets what it is to be from the keeper itself, over a socket of its own, in its own time.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
import os
import signal
import socket
import sys
import traceback
from typing import Any

NAME = "session_gateway_zygote"
MARK = "SESSION_GATEWAY_KERNEL"

if __name__ == "__main__":
    sys.path.pop(0)  # this folder; user code must find nothing in it
    sys.modules[NAME] = sys.modules["__main__"]
    __name__ = NAME  # `__main__` is the session's

_MESSAGE_BYTES = 65_536
_MOST_FDS = 64
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


def main(control: socket.socket, preloads: list[str]) -> None:
    """Serve until the keeper is gone. Returns in a child too, when the kernel that it became was shut down."""
    control.set_inheritable(False)
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    _prctl(_PR_SET_NAME, b"kernel-zygote")
    keeper = os.pidfd_open(os.getppid())
    launcher = _launcher()
    walls = launcher._inside("walls")
    launcher._inside("nests")
    app = launcher.build(preloads)
    control.send(json.dumps({"modules": _modules()}).encode())
    while True:
        request, fds = _receive(control)
        if request is None:
            return
        try:
            if "trees" in request:
                opened: dict[str, int] = walls.open_trees(request["trees"], fds[0] if fds else None)
                _send(control, {"opened": list(opened)}, list(opened.values()))
            elif "nest" in request:
                _send(control, *launcher._inside("nests").build(request["nest"], fds))
            else:
                forked = walls.fork(request["plan"], master=keeper)
                if forked is None:
                    break
                told = {"pid": forked.pid, "init_pid": forked.init_pid}
                _send(control, told, [] if forked.user_ns is None else [forked.user_ns])
        except BrokenPipeError:  # the keeper is gone
            return
        except Exception as error:
            _send(control, {"error": f"{type(error).__name__}: {error}"}, [])
        for fd in fds:
            os.close(fd)
    control.close()
    _become_kernel(launcher, walls, app, socket.socket(fileno=fds[0]), request["plan"])


def _send(control: socket.socket, told: dict[str, Any], fds: list[int]) -> None:
    """The descriptors are closed."""
    try:
        socket.send_fds(control, [json.dumps(told).encode()], fds)
    finally:
        for fd in fds:
            os.close(fd)


def _become_kernel(launcher: Any, walls: Any, app: Any, channel: socket.socket, plan: dict[str, Any]) -> None:
    """Wait to be told who to be, and be it. Nobody's, if the keeper is gone."""
    _prctl(_PR_SET_NAME, b"kernel")
    launcher.make_ready(app)
    order, fds = _receive(channel)
    if order is None:
        os._exit(0)
    log, identity_file, *trees = fds
    os.dup2(log, 1)
    os.dup2(log, 2)
    with open(identity_file, "rb") as file:
        identity = json.loads(file.read())
    try:
        _carry(identity["mark"])
        by_path = dict(zip(order["trees"], trees))  # noqa: B905 - not before Python 3.10
        standing = walls.close(plan, by_path, hostname=order["hostname"], limits=order["limits"])
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after all that clears it; its parent is the keeper
        channel.send(json.dumps({"walls": standing}).encode())
        app.on_bound = functools.partial(_tell_bound, channel)
        launcher.serve(app, identity)
    except Exception:
        os.write(log, traceback.format_exc().encode())  # what is at 1 and 2 may be what its cells print by now
        os._exit(1)


def _tell_bound(channel: socket.socket) -> None:
    """Who connects before there is something to connect to has to try again, and again."""
    channel.send(json.dumps({"bound": True}).encode())
    channel.close()


def _receive(channel: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """None when the other end is closed."""
    try:
        data, fds, _, _ = socket.recv_fds(channel, _MESSAGE_BYTES, _MOST_FDS, socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        return None, []
    return (json.loads(data) if data else None), fds


def _carry(mark: str) -> None:
    """Have the system tell whose process this is: written over what was put into the environment as room for it."""
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_void_p
    room = libc.getenv(MARK.encode())
    if room:
        length = len(ctypes.string_at(room))
        ctypes.memmove(room, mark.encode().ljust(length, b"\0"), length)


def _modules() -> list[str]:
    """What is imported already that is not Python's own: another version of it would not be found any more."""
    standard: frozenset[str] = getattr(sys, "stdlib_module_names", frozenset())
    return sorted({name.partition(".")[0] for name in sys.modules} - standard)


def _prctl(option: int, value: int | bytes) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _launcher() -> Any:
    """What lies beside this file, under the name by which the kernel's own parts know it."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launcher.py")
    spec = importlib.util.spec_from_file_location("session_gateway_kernel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == NAME:
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
