"""Run a program behind the walls of a session: for kernels of other languages, and setups.

`python -I -S confine.py ORDER ARGV…`, with ORDER as JSON: `plan`; `trees` ({path: "rw"|"ro"}); `limits`; `hostname`;
`cwd`; `tell`, a descriptor. To that, it writes one line, {"pid", "init_pid", "walls"} or {"wall", "reason"}, and ends:
the program is the subreaper's. Without it, it stays, passes signals on, and ends as the program does. 70: no walls.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import socket
import sys
import types
from typing import Any

_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_SET_CHILD_SUBREAPER = 36
_NO_WALLS, _NO_PROGRAM = 70, 127


def beside(name: str) -> Any:
    """A module that lies beside this file, which is not on the path."""
    package = "confine_inside"
    if package not in sys.modules:
        made = types.ModuleType(package)
        made.__path__ = [os.path.dirname(os.path.abspath(__file__))]
        sys.modules[package] = made
    return importlib.import_module(f"{package}.{name}")


def main() -> None:
    order, argv = json.loads(sys.argv[1]), sys.argv[2:]
    told = order.get("tell")
    if told is None:
        be_subreaper()
        signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)  # until there is somebody to pass them on to
    else:
        os.set_inheritable(told, False)
    walls = beside("walls")
    try:
        forked, standing = _confined(walls, order, argv)
    except walls.WallError as error:
        _tell(told, {"wall": error.wall, "reason": error.reason})
        print(f"The walls can't be put up: {error}", file=sys.stderr)
        sys.exit(_NO_WALLS)
    if told is None:
        _accompany(forked)
    _tell(told, {"pid": forked.pid, "init_pid": forked.init_pid, "walls": standing})


def be_subreaper() -> None:
    """What a session's processes leave behind becomes a child of this process."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _tell(fd: int | None, message: dict[str, Any]) -> None:
    if fd is not None:
        os.write(fd, json.dumps(message).encode() + b"\n")


def _confined(walls: Any, order: dict[str, Any], argv: list[str]) -> Any:
    plan = order["plan"]
    if plan.get("namespaces") and os.geteuid() != 0:
        walls.enter()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    master = os.pidfd_open(os.getpid() if order.get("tell") is None else os.getppid())  # who waits for its end
    forked = walls.fork(plan, master=master)
    if forked is None:
        ours.close()
        _become(walls, order, argv, theirs)
    theirs.close()
    try:
        return _handed_over(walls, order, forked, ours)
    except BaseException:
        for pid in (forked.init_pid, forked.pid):
            if pid is not None:
                os.kill(pid, signal.SIGKILL)
        raise
    finally:
        ours.close()
        if forked.user_ns is not None:
            os.close(forked.user_ns)


def _handed_over(walls: Any, order: dict[str, Any], forked: Any, ours: socket.socket) -> Any:
    """Give the session its folders, and wait until its program is executed. Raises `WallError`."""
    namespaces = order["plan"].get("namespaces", ())
    trees = walls.open_trees(order.get("trees", {}) if "mount" in namespaces else {}, forked.user_ns)
    try:
        socket.send_fds(ours, [json.dumps(list(trees)).encode()], list(trees.values()))
    finally:
        for tree in trees.values():
            os.close(tree)
    answer = json.loads(ours.recv(65536) or '["confine", "the process ended"]')
    if isinstance(answer, list):
        raise walls.WallError(*answer)
    return forked, answer["walls"]


def _become(walls: Any, order: dict[str, Any], argv: list[str], theirs: socket.socket) -> None:
    """In the session's process; does not return."""
    try:
        names, fds, _, _ = socket.recv_fds(theirs, 1 << 20, 256)
        trees = dict(zip(json.loads(names), fds))  # noqa: B905 - Python 3.9 has no strict
        hostname, limits = order.get("hostname", "session"), order.get("limits", {})
        standing = walls.close(order["plan"], trees, hostname=hostname, limits=limits)
        os.chdir(order.get("cwd", "/"))
        # Which Python ignores, and whatever started us in the background may have: a shell could not even trap them.
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
        theirs.send(json.dumps({"walls": standing}).encode())
    except walls.WallError as error:
        theirs.send(json.dumps([error.wall, error.reason]).encode())
        os._exit(_NO_WALLS)
    except BaseException as error:
        theirs.send(json.dumps(["confine", f"{type(error).__name__}: {error}"]).encode())
        os._exit(_NO_WALLS)
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - that is the work
    except OSError as error:
        print(f"{argv[0]}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(_NO_PROGRAM)


def _accompany(forked: Any) -> None:
    """Wait for the program's end, and end in the same way; does not return."""

    def pass_on(number: int, frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(forked.pid, number)

    for passed in _PASSED_ON:
        signal.signal(passed, pass_on)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)
    status = os.waitpid(forked.pid, 0)[1]
    if forked.init_pid is not None:
        os.kill(forked.init_pid, signal.SIGKILL)
        os.waitpid(forked.init_pid, 0)
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    os._exit(os.WEXITSTATUS(status))


if __name__ == "__main__":
    main()
