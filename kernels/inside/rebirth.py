"""A copy of a running kernel takes on an identity of its own; what the session has changed itself stays as it is."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from typing import Any

from .checkpoint_settings import remember_start, started_with
from .duplicate import Reborn, last_words, moved, opened_files, reopen_files
from .identity import forget_process, renew

MARK = "SESSION_GATEWAY_KERNEL"
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4


def be_reborn(app: Any, reborn: Reborn, launcher: str) -> None:
    """Everything up to serving. Tells who waits at the connection why it can't be, and ends then."""
    try:
        _take_on(app, reborn, launcher)
        app.reconnect(reborn.identity)
    except BaseException as error:
        refusal = {"error": f"{type(error).__name__}: {error}"}
        reborn.connection.send(json.dumps(refusal).encode())
        last_words(error)


def say_ready(reborn: Reborn) -> None:
    reborn.connection.send(b'{"ready": true}')
    reborn.connection.close()


def _take_on(app: Any, reborn: Reborn, launcher: str) -> None:
    shell, identity = app.shell, reborn.identity
    overlay = identity["overlay"]
    workspace, environment = os.path.realpath(shell.starting_dir), sys.prefix
    here, files = os.getcwd(), opened_files(app, but=reborn.namespaces)
    _become_another_process(reborn)
    os.chdir(moved(here, workspace, identity["cwd"]))
    reopen_files(files, workspace, identity["cwd"])
    start = _environment(shell, identity["env"], [(environment, overlay["root"]), (workspace, identity["cwd"])])
    _packages(environment, overlay["root"], overlay["python"])
    sys.argv[:] = [launcher, "-f", identity["connection_file"]]
    shell.starting_dir = identity["cwd"]
    forget_process()
    renew(app, reseeded=False)
    remember_start(shell, {"environ": start, "path": started_with(shell)["path"]})


def _become_another_process(reborn: Reborn) -> None:
    identity, libc = reborn.identity, ctypes.CDLL(None)
    namespaces: list[str] = identity.get("namespaces", [])
    if namespaces:
        from . import nests

        fds = dict(zip(namespaces, reborn.namespaces))  # noqa: B905 - Python 3.9 has no strict
        del reborn.namespaces[:]
        nests.enter(fds, reborn.connection)
    else:
        libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)  # whoever ends it by its mark must be able to see that
    if "mark" in identity:
        carry(identity["mark"])
        if not namespaces:  # whose first process ends with the keeper; here the keeper is the parent
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def carry(mark: str) -> None:
    """Have the system tell whose process this is: written into the environment that it was started with."""
    with open("/proc/self/stat", "rb") as file:
        start, end = map(int, file.read().rpartition(b")")[2].split()[47:49])
    text = ctypes.string_at(start, end - start)
    name = f"{MARK}=".encode()
    at = 0 if text.startswith(name) else text.find(b"\0" + name) + 1
    begin = at + len(name)
    room = text.find(b"\0", begin) - begin
    if not text[at:].startswith(name) or room < len(mark):
        raise ValueError("there is no room for a mark of its own")
    ctypes.memmove(start + begin, mark.encode().ljust(room, b"\0"), room)


def _environment(shell: Any, env: dict[str, str], moves: list[tuple[str, str]]) -> dict[str, str]:
    """Replace what the session was given; what it has set itself stays. Gives what the copy begins with."""
    before = started_with(shell)["environ"]
    for name in {*os.environ, *before, *env}:
        value = os.environ.get(name)
        if value == before.get(name):
            new = env.get(name, value if name not in before else None)
        else:
            new = value
            for old_place, place in moves:
                new = new.replace(old_place, place) if new is not None else None
        if new is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = new
    time.tzset()
    return {**{name: value for name, value in before.items() if name in os.environ}, **env}


def _packages(before: str, after: str, python: str) -> None:
    sys.prefix = sys.exec_prefix = after
    sys.executable = python
    sys.path[:] = [moved(it, before, after) if isinstance(it, str) else it for it in sys.path]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        path = getattr(module, "__path__", None)
        if type(path) is list and any(str(it).startswith(before) for it in path):
            path[:] = [moved(it, before, after) for it in path]
