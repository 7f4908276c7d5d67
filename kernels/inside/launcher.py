"""Starts the Python kernel of a session: ipykernel, with what the gateway needs to keep its promises.

Run as a script by the kernel's own interpreter, in place of `-m ipykernel_launcher`; or loaded by its path, by a
process that builds a kernel, forks, and has the copy serve. What lies beside it is loaded by its path too, as a
package of a private name: user code finds nothing of it.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from typing import Any

NAME = "session_gateway_kernel"

if __name__ == "__main__":
    sys.path.pop(0)  # this folder; user code must find nothing in it
    sys.path.insert(0, "")  # as under `python -m`: modules in the workspace can be imported
    sys.modules[NAME] = sys.modules["__main__"]
    __name__ = NAME  # `__main__` is the session's; what is defined below is found by this name, in any kernel


def _inside(name: str) -> Any:
    """A module that lies beside this file."""
    package = f"{NAME}_inside"
    if package not in sys.modules:
        made = types.ModuleType(package)
        made.__path__ = [os.path.dirname(os.path.abspath(__file__))]
        sys.modules[package] = made
    return importlib.import_module(f"{package}.{name}")


def build(preloads: list[str]) -> Any:
    """A kernel that lacks only who it is: no socket, no thread, nothing of any session. To be called once, then forked.

    `preloads` are modules that its sessions find imported; those that can't be are left out.
    """
    return _inside("birth").build(preloads)


def make_ready(app: Any) -> None:
    """In a fork, before it is known what it is to be: what would cost it time then."""
    _inside("pages").own(app.pages)


def serve(app: Any, identity: dict[str, Any]) -> None:
    """In a fork: be the kernel that `identity` describes. Returns when it is shut down; then the process should end.

    identity: {"connection": as in a connection file, "connection_file": path, "env": {...}, "cwd": path,
    "overlay": {"root": path, "python": path, "site_packages": path}}
    """
    _inside("birth").serve(app, identity)


def main() -> None:
    app = _inside("app").GatewayKernelApp.instance()
    app.initialize()
    _inside("checkpoint_settings").remember_start(app.shell)
    app.start()


if __name__ == NAME and sys.modules.get("__main__") is sys.modules.get(NAME):
    main()
