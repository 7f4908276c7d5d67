"""A kernel that is built in one process and serves in a fork of it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import shutil
import sys
import tempfile
from typing import Any

from . import holes, pages
from . import identity as identities
from .app import GatewayKernelApp
from .checkpoint_settings import first_environ, remember_start
from .warmup import rehearse, warm_up

_PR_SET_THP_DISABLE = 41
_LAUNCHER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launcher.py")


def build(preloads: list[str]) -> GatewayKernelApp:
    """See the launcher."""
    ctypes.CDLL(None).prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0)  # or a page that is written to costs 2 MB
    started_with = first_environ()
    nowhere = tempfile.mkdtemp(prefix="session-gateway-")
    os.environ.update(HOME=nowhere, IPYTHONDIR=nowhere)
    try:
        for name in preloads:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        app = GatewayKernelApp.instance()
        app.build([])
        app.init_extensions()
        app.init_code()
        for name in _LATER:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        warm_up(app)
        rehearse(nowhere)
    finally:
        shutil.rmtree(nowhere, ignore_errors=True)
    app.started_with = started_with
    app.added_to_environ = {name: value for name, value in os.environ.items() if name not in started_with}
    for name in ("HOME", "IPYTHONDIR"):
        app.added_to_environ.pop(name, None)
    gc.collect()
    gc.disable()
    holes.fill()
    gc.freeze()
    app.pages = _learn_pages(app)
    return app


def _learn_pages(app: GatewayKernelApp) -> pages.Ranges:
    with tempfile.TemporaryDirectory(prefix="session-gateway-") as place:
        connection: dict[str, Any] = {
            "transport": "ipc", "ip": f"{place}/k", "key": "nobody's", "signature_scheme": "hmac-sha256",
            **{f"{name}_port": at for at, name in enumerate(("shell", "iopub", "stdin", "control", "hb"), start=1)},
        }  # fmt: skip
        overlay = {"root": place, "python": sys.executable, "site_packages": f"{place}/lib"}
        env = {**app.started_with, "HOME": place, "IPYTHONDIR": f"{place}/.ipython"}
        identity = {"connection": connection, "connection_file": f"{place}/kernel.json", "env": env, "cwd": place}
        return pages.learn(serve, app, {**identity, "overlay": overlay})


_LATER = ("pexpect", "IPython.utils._process_posix", "getpass")


def serve(app: GatewayKernelApp, identity: dict[str, Any]) -> None:
    """See the launcher."""
    connection, path = identity["connection"], identity["connection_file"]
    with contextlib.suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "w") as file:
            json.dump(connection, file)
    if (reason := identities.why_not_forked(identity, app.started_with)) is not None:
        print(f"An ordinary start, because of {reason}.", file=sys.__stderr__, flush=True)
        identities.start_anew(identity, _LAUNCHER)
    identities.take_on(app, identity, _LAUNCHER)
    app.connection_file = path
    app.load_connection_info(connection)
    app.connect()
    atexit.register(app.close)
    remember_start(app.shell)
    gc.enable()
    sys.stdout.flush()
    app.start()
