"""What an object really is. A class can answer for itself whatever it likes; these ask the interpreter."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .checkpoint_lost import Lost, described

HEAP = 1 << 9  # the flag of a class that was made at run time
mro_of: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
attributes_of: Callable[[type], Any] = type.__dict__["__dict__"].__get__
module_of: Callable[[type], Any] = type.__dict__["__module__"].__get__
qualname_of: Callable[[type], str] = type.__dict__["__qualname__"].__get__

REFUSED = {
    **dict.fromkeys(
        ("threading.Thread", "multiprocessing.process.BaseProcess", "multiprocessing.pool.Pool", "subprocess.Popen"),
        "what runs beside the session does not run on in another process",
    ),
    **dict.fromkeys(
        ("concurrent.futures._base.Executor", "concurrent.futures._base.Future", "_asyncio.Future", "_asyncio.Task"),
        "work that is under way can't be carried over",
    ),
    **dict.fromkeys(
        ("asyncio.futures.Future", "asyncio.events.AbstractEventLoop", "asyncio.tasks.Task"),
        "it belongs to an event loop of the old process",
    ),
    **dict.fromkeys(("tempfile._TemporaryFileWrapper", "tempfile.SpooledTemporaryFile"), "open files are not carried"),
    **dict.fromkeys(("ctypes.CDLL", "_ctypes.CFuncPtr"), "it points into the memory of the old process"),
    "tempfile.TemporaryDirectory": "its directory is deleted with the old process",
    "weakref.finalize": "it is bound to the end of the old process",
    "selectors.BaseSelector": "it watches files of the old process",
    "builtins.generator": "Python can't save a generator where it stands",
    "builtins.coroutine": "Python can't save a coroutine where it stands",
    "builtins.async_generator": "Python can't save a generator where it stands",
    "builtins.frame": "Python can't save a frame",
    "builtins.traceback": "it holds frames, which Python can't save",
}


class CannotCarry(Exception):
    """Why an object can't be written down."""


def kind_of(obj: Any) -> str:
    """The name of an object's type, with its module when that tells something."""
    if type(obj) is Lost:
        return described(obj)[0]
    cls = type(obj)
    module = module_of(cls)
    return qualname_of(cls) if module in ("builtins", "__main__") else f"{module}.{qualname_of(cls)}"


def importable(obj: Any, module_name: Any, path: Any) -> bool:
    """Whether another process finds the same thing by its name."""
    if type(module_name) is not str or type(path) is not str or module_name == "__main__":
        return False
    found: Any = sys.modules.get(module_name)
    if found is None or made_by_hand(found):
        return False
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except Exception:
            return False
    return found is obj


def made_by_hand(module: Any) -> bool:
    """Whether a module was not imported but built by the session, so that nobody else can import it."""
    variables = getattr(module, "__dict__", {})
    if variables.get("__spec__") is not None or variables.get("__loader__") is not None:
        return False
    name = variables.get("__name__")
    return not variables.get("__file__") and not (isinstance(name, str) and "." in name) and name != "builtins"


def class_importable(cls: type) -> bool:
    return importable(cls, module_of(cls), qualname_of(cls))
