"""Tries which walls this host can give; run as `python -I -S probe.py ORDER` by `kernels/sandbox.py`.

ORDER is JSON: a `plan` with everything, `folder` where sessions' files will be. Prints {wall: why it can't be had}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from typing import Any

_beside = importlib.util.spec_from_file_location("confine", os.path.join(os.path.dirname(__file__), "confine.py"))
assert _beside is not None
assert _beside.loader is not None
confine = importlib.util.module_from_spec(_beside)
_beside.loader.exec_module(confine)
walls = confine.beside("walls")

_ALL = ("user", "mount", "pid", "ipc", "uts", "network")


def probed(plan: dict[str, Any], folder: str) -> dict[str, str]:
    reasons: dict[str, str] = {}
    uid, plan = plan["uid"], {**plan, "uid": None, "abstract_sockets": "own"}
    while True:
        failed = _tried(plan, None)
        if failed is None:
            break
        wall, reason = failed
        reasons[wall] = reason
        if wall in ("user", "mount"):
            reasons.update({name: f"needs the wall {wall!r}, and {reason}" for name in _ALL if name != wall})
            plan["namespaces"] = []
        elif wall in plan["namespaces"]:
            plan["namespaces"] = [name for name in plan["namespaces"] if name != wall]
        elif wall == "abstract-sockets":
            plan["abstract_sockets"] = ""
        elif wall == "seccomp":
            plan["seccomp"] = False
        elif wall == "cgroup":
            plan["cgroup_namespace"] = False
        else:
            break
    if "user" in reasons or "mount" in reasons:
        reasons["own-uid"] = "it needs a user namespace"
    elif uid is None:
        reasons["own-uid"] = "the gateway does not run as root" if os.geteuid() else "this container has too few users"
    else:
        failed = _tried({**plan, "uid": uid}, folder)
        if failed is not None:
            reasons["own-uid"] = failed[1]
    return reasons


def _tried(plan: dict[str, Any], folder: str | None) -> tuple[str, str] | None:
    """Put the walls up around a process that does nothing; which one failed, and why."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            _try(plan, folder)
            failed = None
        except walls.WallError as error:
            failed = error.wall, error.reason
        except BaseException as error:
            failed = "fork", f"{type(error).__name__}: {error}"
        os.write(writing, json.dumps(failed).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as answer:
        content = answer.read()
    os.waitpid(pid, 0)
    return tuple(json.loads(content)) if content not in ("", "null") else None


def _try(plan: dict[str, Any], folder: str | None) -> None:
    confine.be_subreaper()
    if plan["namespaces"] and os.geteuid() != 0:
        walls.enter()
    reading, writing = os.pipe()
    go, going = os.pipe()
    forked = walls.fork(plan)
    if forked is None:
        _close(plan, go, writing)
    os.close(writing)
    try:
        if folder is not None:
            walls.open_trees({folder: "rw"}, forked.user_ns)
        os.write(going, b".")
        with open(reading) as answer:
            failed = json.loads(answer.read() or '["fork", "the process ended"]')
    finally:
        for one in (forked.init_pid, forked.pid):
            if one is not None:
                os.kill(one, signal.SIGKILL)
        os.waitpid(forked.pid, 0)
    if failed:
        raise walls.WallError(*failed)


def _close(plan: dict[str, Any], go: int, writing: int) -> None:
    """In the session's process; does not return."""
    os.read(go, 1)
    failed: list[str] = []
    try:
        walls.close(plan, {}, hostname="probe", limits={})
    except walls.WallError as error:
        failed = [error.wall, error.reason]
    os.write(writing, json.dumps(failed).encode())
    os._exit(0)


if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    print(json.dumps(probed(order["plan"], order["folder"])))
