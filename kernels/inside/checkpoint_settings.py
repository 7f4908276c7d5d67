"""What a session has set beside its variables: its place, environment, randomness, libraries' options and IPython's.

Each setting is a root of its own: what can't be told or set again is named, and costs nothing else.
"""

from __future__ import annotations

import contextlib
import importlib
import linecache
import logging
import os
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from traitlets.config import Application

_START = "session_gateway_start"
_OWN_VARIABLES = ("JPY_", "KERNEL_", "SESSION_GATEWAY_")  # each kernel is given its own
_NO_OPTIONS = frozenset(
    ["HistoryManager", "SessionHistory", "ProfileDir", "ZMQShellDisplayHook", "ZMQDisplayPublisher"]
)
_PLAIN = (bool, int, float, str)


def remember_start(shell: Any, start: dict[str, Any] | None = None) -> None:
    """Take down what a kernel begins with, so that a checkpoint knows what the session changed."""
    setattr(shell, _START, start or {"environ": dict(os.environ), "path": list(sys.path)})


def started_with(shell: Any) -> dict[str, Any]:
    start: dict[str, Any] | None = getattr(shell, _START, None)
    if start is None:
        start = {"environ": first_environ(), "path": []}
    return start


def first_environ() -> dict[str, str]:
    try:
        with open("/proc/self/environ", "rb") as file:
            pairs = [os.fsdecode(pair).partition("=") for pair in file.read().split(b"\0") if pair]
    except OSError:
        return dict(os.environ)
    return {name: value for name, _, value in pairs}


def workspace_modules(shell: Any) -> dict[str, types.ModuleType]:
    """The modules that were imported from the session's own files."""
    folders = {os.path.realpath(getattr(shell, "starting_dir", ".")) + os.sep}
    with contextlib.suppress(FileNotFoundError):  # it was deleted
        folders.add(os.getcwd() + os.sep)
    not_theirs = tuple(os.path.dirname(os.path.realpath(file)) + os.sep for file in (__file__, os.__file__))
    found = {}
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) if isinstance(module, types.ModuleType) else None
        if name == "__main__" or not isinstance(file, str):
            continue
        path = os.path.realpath(file)
        if (
            "-packages" not in path
            and not path.startswith(not_theirs)
            and any(path.startswith(folder) for folder in folders)
        ):
            found[name] = module
    return found


def save_module(module: types.ModuleType) -> dict[str, Any]:
    """The globals of a workspace module; those that importing it gives again are found by their names."""
    return {name: value for name, value in vars(module).items() if name[:2] != "__" and name[-2:] != "__"}


def restore_module(name: str, variables: dict[str, Any]) -> None:
    own = vars(importlib.import_module(name))
    for gone in [key for key in own if key[:2] != "__" and key[-2:] != "__" and key not in variables]:
        del own[gone]
    own.update(variables)


# One pair of functions for each setting: the first tells it, None if there is nothing to tell; the second sets it


def _directory(shell: Any) -> tuple[bool, str]:
    here, start = os.getcwd(), getattr(shell, "starting_dir", os.getcwd())
    inside = os.path.commonpath([here, start]) == start
    return inside, os.path.relpath(here, start) if inside else here


def _set_directory(shell: Any, value: tuple[bool, str]) -> None:
    inside, path = value
    os.chdir(os.path.join(getattr(shell, "starting_dir", os.getcwd()), path) if inside else path)


def _environ(shell: Any) -> dict[str, str | None]:
    before, now = started_with(shell)["environ"], dict(os.environ)
    changed = {name: now.get(name) for name in {*before, *now} if before.get(name) != now.get(name)}
    return {name: value for name, value in changed.items() if not name.startswith(_OWN_VARIABLES)}


def _set_environ(shell: Any, value: dict[str, str | None]) -> None:
    for name, text in value.items():
        if text is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = text


def _path(shell: Any) -> list[tuple[int, Any]]:
    before = started_with(shell)["path"]
    return [(at, entry) for at, entry in enumerate(sys.path) if entry not in before]


def _set_path(shell: Any, value: list[tuple[int, Any]]) -> None:
    for at, entry in value:
        if entry not in sys.path:
            sys.path.insert(at, entry)


def _random(shell: Any) -> Any:
    return random.getstate()


def _set_random(shell: Any, value: Any) -> None:
    random.setstate(value)


def _numpy(shell: Any) -> dict[str, Any]:
    numpy = sys.modules["numpy"]
    options = numpy.get_printoptions()
    return {"random": numpy.random.get_state(), "print": options, "errors": numpy.geterr()}


def _set_numpy(shell: Any, value: dict[str, Any]) -> None:
    numpy = importlib.import_module("numpy")
    numpy.random.set_state(value["random"])
    numpy.seterr(**value["errors"])
    options = {name: option for name, option in value["print"].items() if name != "override_repr"}
    numpy.set_printoptions(**options)


def _pandas(shell: Any) -> dict[str, Any]:
    config: Any = importlib.import_module("pandas._config.config")
    changed = {}
    for name, option in config._registered_options.items():
        value = config.get_option(name)
        if value is not option.defval and value != option.defval:
            changed[name] = value
    return changed


def _set_pandas(shell: Any, value: dict[str, Any]) -> None:
    pandas = importlib.import_module("pandas")
    for name, option in value.items():
        pandas.set_option(name, option)


def _matplotlib(shell: Any) -> dict[str, Any]:
    matplotlib = sys.modules["matplotlib"]
    default, now = matplotlib.rcParamsOrig, matplotlib.rcParams
    return {name: now[name] for name in now if name != "backend" and now[name] != default.get(name)}


def _set_matplotlib(shell: Any, value: dict[str, Any]) -> None:
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.rcParams.update(value)


def _decimal(shell: Any) -> Any:
    return sys.modules["decimal"].getcontext().copy()


def _set_decimal(shell: Any, value: Any) -> None:
    import decimal

    decimal.setcontext(value)


def _recursion(shell: Any) -> int:
    return sys.getrecursionlimit()


def _set_recursion(shell: Any, value: int) -> None:
    sys.setrecursionlimit(value)


def _warnings(shell: Any) -> list[Any]:
    return [list(entry) for entry in warnings.filters]


def _set_warnings(shell: Any, value: list[Any]) -> None:
    filters: Any = warnings.filters
    filters[:] = [tuple(entry) for entry in value]
    warnings._filters_mutated() if hasattr(warnings, "_filters_mutated") else None


def _loggers(shell: Any) -> dict[str, tuple[int, bool, bool]]:
    named = {name: it for name, it in logging.root.manager.loggerDict.items() if isinstance(it, logging.Logger)}
    named["root"] = logging.root
    return {name: (it.level, it.disabled, it.propagate) for name, it in named.items()}


def _set_loggers(shell: Any, value: dict[str, tuple[int, bool, bool]]) -> None:
    for name, (level, disabled, propagate) in value.items():
        logger = logging.getLogger(None if name == "root" else name)
        if logger.level != level:
            logger.setLevel(level)
        logger.disabled, logger.propagate = disabled, propagate


# IPython's


def _history(shell: Any) -> dict[str, Any]:
    history, hook = shell.history_manager, shell.displayhook
    inputs = {name: getattr(history, name) for name in ("_i", "_ii", "_iii", "_i00")}
    outputs = {name: getattr(hook, name, "") for name in ("_", "__", "___") if name in shell.user_ns}
    return {
        "count": shell.execution_count,
        "parsed": list(history.input_hist_parsed),
        "raw": list(history.input_hist_raw),
        "directories": list(history.dir_hist),
        "inputs": inputs,
        "outputs": outputs,
        "names": {name: it for name, it in shell.user_ns.items() if name[:2] == "_i" and name[2:].isdigit()},
    }


def _set_history(shell: Any, value: dict[str, Any]) -> None:
    history, hook, names = shell.history_manager, shell.displayhook, shell.user_ns
    history.input_hist_parsed[:] = value["parsed"]
    history.input_hist_raw[:] = value["raw"]
    history.dir_hist[:] = value["directories"]
    for name, text in value["inputs"].items():
        setattr(history, name, text)
        if name != "_i00":
            names[name] = text
    for name, output in value["outputs"].items():
        setattr(hook, name, output)
        names[name] = output
    names.update(value["names"])
    shell.execution_count = value["count"]


def _configurables(shell: Any) -> Iterator[Any]:
    """But the application, whose options are those of a process: its connection, say."""
    yield from (
        it for it in shell.configurables if type(it).__name__ not in _NO_OPTIONS and not isinstance(it, Application)
    )
    yield from shell.display_formatter.formatters.values()


def _options(shell: Any) -> dict[str, dict[str, Any]]:
    found = {}
    for owner in _configurables(shell):
        values = {}
        for name, trait in owner.traits(config=True).items():
            with contextlib.suppress(Exception):
                value = getattr(owner, name)
                if type(value) in _PLAIN and value != trait.default():
                    values[name] = value
        if values:
            found[type(owner).__name__] = values
    found["InteractiveTB"] = {"mode": shell.InteractiveTB.mode}
    return found


def _set_options(shell: Any, value: dict[str, dict[str, Any]]) -> None:
    shell.InteractiveTB.set_mode(value["InteractiveTB"]["mode"])
    for owner in _configurables(shell):
        for name, option in value.get(type(owner).__name__, {}).items():
            with contextlib.suppress(Exception):
                if getattr(owner, name) != option:
                    setattr(owner, name, option)


def _aliases(shell: Any) -> list[tuple[str, str]]:
    magics = shell.magics_manager.magics["line"]
    return [(name, it.cmd) for name, it in magics.items() if type(it).__name__ == "Alias"]


def _set_aliases(shell: Any, value: list[tuple[str, str]]) -> None:
    for name, command in value:
        shell.alias_manager.define_alias(name, command)


def _is_session_made(it: Any) -> bool:
    return getattr(it, "__module__", None) == "__main__" and not type(it).__module__.startswith("ipykernel")


def _magics(shell: Any) -> dict[str, dict[str, Any]]:
    kinds = shell.magics_manager.magics.items()
    return {kind: {name: it for name, it in named.items() if _is_session_made(it)} for kind, named in kinds}


def _set_magics(shell: Any, value: dict[str, dict[str, Any]]) -> None:
    for kind, named in value.items():
        shell.magics_manager.magics[kind].update(named)


def _extensions(shell: Any) -> dict[str, Any]:
    reloader = getattr(shell.magics_manager.registry.get("AutoreloadMagics"), "_reloader", None)
    names = ("enabled", "check_all", "autoload_obj")
    modes = {name: getattr(reloader, name) for name in names if hasattr(reloader, name)}
    return {"loaded": sorted(shell.extension_manager.loaded), "autoreload": modes}


def _set_extensions(shell: Any, value: dict[str, Any]) -> None:
    for name in value["loaded"]:
        if name not in shell.extension_manager.loaded:
            shell.extension_manager.load_extension(name)
    reloader = getattr(shell.magics_manager.registry.get("AutoreloadMagics"), "_reloader", None)
    for name, mode in value["autoreload"].items():
        setattr(reloader, name, mode)


def _hooks(shell: Any) -> dict[str, Any]:
    events = shell.events.callbacks.items()
    formatters = shell.display_formatter.formatters.items()
    return {
        "events": {name: [it for it in calls if _is_session_made(it)] for name, calls in events},
        "printers": {
            mime: {cls: it for cls, it in formatter.type_printers.items() if _is_session_made(it)}
            for mime, formatter in formatters
        },
        "inputs": [it for it in shell.input_transformers_post if _is_session_made(it)],
        "trees": [it for it in shell.ast_transformers if _is_session_made(type(it))],
    }


def _set_hooks(shell: Any, value: dict[str, Any]) -> None:
    for name, calls in value["events"].items():
        for call in calls:
            shell.events.register(name, call)
    for mime, printers in value["printers"].items():
        shell.display_formatter.formatters[mime].type_printers.update(printers)
    shell.input_transformers_post.extend(value["inputs"])
    shell.ast_transformers.extend(value["trees"])


def _sources(shell: Any) -> dict[str, Any]:
    """The text of the cells, for tracebacks and `inspect`."""
    own = getattr(shell.compile, "_filename_map", {})
    return {name: (linecache.cache[name], own[name]) for name in own if name in linecache.cache}


def _set_sources(shell: Any, value: dict[str, Any]) -> None:
    for name, (entry, number) in value.items():
        linecache.cache[name] = entry
        shell.compile._filename_map[name] = number


SETTINGS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], None], str]] = {
    "working directory": (_directory, _set_directory, "os"),
    "environment": (_environ, _set_environ, "os"),
    "sys.path": (_path, _set_path, "sys"),
    "recursion limit": (_recursion, _set_recursion, "sys"),
    "decimal": (_decimal, _set_decimal, "decimal"),
    "numpy": (_numpy, _set_numpy, "numpy"),
    "pandas": (_pandas, _set_pandas, "pandas"),
    "matplotlib": (_matplotlib, _set_matplotlib, "matplotlib"),
    "warnings": (_warnings, _set_warnings, "warnings"),
    "loggers": (_loggers, _set_loggers, "logging"),
    "IPython extensions": (_extensions, _set_extensions, "IPython"),
    "IPython options": (_options, _set_options, "IPython"),
    "IPython aliases": (_aliases, _set_aliases, "IPython"),
    "IPython magics": (_magics, _set_magics, "IPython"),
    "IPython hooks": (_hooks, _set_hooks, "IPython"),
    "cell sources": (_sources, _set_sources, "IPython"),
    "history": (_history, _set_history, "IPython"),
    "random": (_random, _set_random, "random"),
}
"""How each is told and set, and the module without which there is none. Set in this order, randomness last."""
