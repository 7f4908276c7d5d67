"""The variables of a session, written to a folder and brought back in a fresh kernel. Runs inside the kernel.

What can't be carried is left out and named, and costs nothing else. A folder without a `state.json` is no
checkpoint: it is written last. Unpickling runs code: load a checkpoint only inside the session that it is for.
"""

from __future__ import annotations

import builtins
import contextlib
import gc
import hashlib
import json
import linecache
import os
import platform
import re
import sys
import types
import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from . import checkpoint_rebuild as rebuild
from .checkpoint_files import CheckpointError, mapped
from .checkpoint_kinds import kind_of, made_by_hand
from .checkpoint_lost import Lost, NotCarriedOver, described
from .checkpoint_pickler import Failed, NotWritten, RootWriter, lost_parts
from .checkpoint_reader import RootReader
from .checkpoint_rules import Rules
from .checkpoint_settings import SETTINGS, remember_start, restore_module, save_module, workspace_modules

__all__ = ["CheckpointError", "NotCarriedOver", "dump", "load", "remember_start"]

FORMAT = 1
FIRST_SETTINGS = ("working directory", "environment", "sys.path")
"""What must be as it was before anything else is brought back."""

_SHELL_PARTS = (
    *("user_module", "user_ns", "user_ns_hidden", "display_pub", "displayhook", "history_manager", "events", "config"),
    *("magics_manager", "alias_manager", "display_formatter", "extension_manager", "prefilter_manager", "compile"),
    *("Completer", "kernel", "parent", "builtin_trap", "input_transformer_manager", "meta", "payload_manager"),
)
_MOST_PACKAGES = 1000
_MODULE_NAMES = frozenset(f"__{name}__" for name in ("builtins", "doc", "loader", "name", "package", "spec"))
_HISTORY_NAME = re.compile(r"_(i\d*|ii|iii|\d+|_|__|oh|ih|dh|sh)?")


def dump(shell: Any, folder: str) -> dict[str, Any]:
    """Write the variables of `shell`; which were written, and which not or not wholly, and why.

    Nothing is synced to disk. Call it between cells, or in a forked copy of the kernel. Raises `CheckpointError` if
    the folder can't be written to, and then it holds no checkpoint.
    """
    try:
        return _dumped(shell, folder)
    except OSError as error:
        raise CheckpointError(f"The checkpoint can't be written: {error.strerror or error}.") from None
    except NotWritten as error:
        raise CheckpointError(f"The checkpoint can't be written: {error}.") from None


def _dumped(shell: Any, folder: str) -> dict[str, Any]:
    os.makedirs(folder, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        os.remove(os.path.join(folder, "state.json"))
    known = _anchors(shell)
    own_modules = workspace_modules(shell)
    notes: list[str] = []
    roots = list(_roots(shell, own_modules, notes))
    own = {id(module) for module in own_modules.values()}
    with _quietly(), _files(folder) as (segments, buffers):
        rules = Rules(shell.user_ns, lambda module: id(module) not in own and not made_by_hand(module))
        writer = RootWriter(segments, buffers, rules, list(known.values()))
        written, unsaved = _write(writer, roots, known)
    state = {
        "format": FORMAT,
        "python": platform.python_version(),
        "packages": _packages(),
        "anchors": list(known),
        "order": [name for name in shell.user_ns if type(name) is str],
        "roots": written,
        "buffers": writer.buffers.places,
        "sizes": {"segments.bin": writer.end, "buffers.bin": writer.buffers.end},
        "unsaved": unsaved,
        "warnings": [*notes, *rules.warnings],
    }
    _write_state(folder, state)
    return {
        "variables": _variables(written),
        "unsaved": unsaved,
        "warnings": state["warnings"],
        "packages": state["packages"],
    }


def load(shell: Any, folder: str, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Bring back what `dump` wrote, into a fresh shell; of the variables only `names`, if given.

    Raises `CheckpointError`, and then the namespace is as it was. Large arrays are mapped from the folder: it may be
    deleted afterwards, but its files must not be changed. Whoever keeps them checks them; only the segments are, here.
    """
    state = _read_state(folder)
    segments, buffers = _mapped(folder, state)
    known = _anchors(shell)
    seeds = [known.get(key) or Lost(key, "this kernel has no such thing") for key in state["anchors"]]
    wanted = None if names is None else set(names)
    before = dict(shell.user_ns)
    failed: list[dict[str, Any]] = []
    later: list[tuple[dict[str, Any], Any]] = []
    try:
        with _quietly():
            reader = RootReader(segments, buffers, seeds)
            for root in state["roots"]:
                try:
                    value, lost = reader.read(root["start"], root["end"], root["buffers"][0])
                except Exception as error:
                    raise CheckpointError(f"{_label(root)} can't be read: {error}") from error
                whole = type(value) is Lost
                failed += _told(_label(root), [value] if whole else lost, part=not whole)
                if whole:
                    continue
                if root["kind"] == "setting" and root["name"] not in FIRST_SETTINGS:
                    later.append((root, value))
                else:
                    failed += _place(shell, root, value)
        for root, value in later:
            failed += _place(shell, root, value)
    except BaseException:
        shell.user_ns.clear()
        shell.user_ns.update(before)
        raise
    variables = _variables(state["roots"])
    unwanted = {it["name"] for it in variables} - wanted if wanted is not None else set()
    _arrange(shell.user_ns, before, state["order"], unwanted)
    gone = unwanted.union(it["name"] for it in failed if not it["part"])
    back = [it for it in variables if it["name"] not in gone]
    warned = [] if state["python"] == platform.python_version() else [f"It was saved by Python {state['python']}."]
    here = _packages()
    warned += [
        f"It was saved with {name} {version}; here is {here[name]}."
        for name, version in state.get("packages", {}).items()
        if here.get(name, version) != version
    ]
    return {
        "variables": back,
        "unsaved": state["unsaved"],
        "failed": failed,
        "warnings": [*state["warnings"], *warned],
    }


# What is saved


def _anchors(shell: Any) -> dict[str, Any]:
    """What every kernel has of its own: named, not written, and found again in the new one."""
    found: dict[str, Any] = {f"rebuild.{name}": made for name, made in rebuild.FUNCTIONS.items()}
    found["shell"] = shell
    for name in _SHELL_PARTS:
        found[f"shell.{name}"] = getattr(shell, name, None)
    for name in ("stdout", "stderr", "stdin", "__stdout__", "__stderr__", "__stdin__", "modules", "path", "argv"):
        found[f"sys.{name}"] = getattr(sys, name)
    for name in ("meta_path", "path_hooks", "path_importer_cache"):
        found[f"sys.{name}"] = getattr(sys, name)
    found["os.environ"], found["os.environ._data"] = os.environ, getattr(os.environ, "_data", None)
    found["builtins"], found["builtins.__dict__"] = builtins, vars(builtins)
    found["warnings.filters"], found["linecache.cache"] = warnings.filters, linecache.cache
    for name in ("In", "Out", "_dh", "exit", "quit", "get_ipython", "open"):
        found[f"hidden.{name}"] = shell.user_ns_hidden.get(name)
    plain: tuple[Any, ...] = (str, bytes, int, float, bool, type(None), tuple)
    by_address = {id(value): key for key, value in reversed(found.items()) if type(value) not in plain}
    return {key: found[key] for key in found if by_address.get(id(found[key])) == key}


def _packages() -> dict[str, str]:
    """The versions of the packages that are imported, as far as they tell."""
    found: dict[str, str] = {}
    for name, module in list(sys.modules.items()):
        version = vars(module).get("__version__") if type(module) is types.ModuleType else None
        if type(version) is str and "." not in name and len(found) < _MOST_PACKAGES:
            found[name] = version[:100]
    return found


def _roots(shell: Any, modules: dict[str, Any], notes: list[str]) -> Iterator[tuple[str, str, Any]]:
    """Kind, name and value of all that is written, in the order in which it is brought back."""
    settings = {}
    for name, (tell, _, needed) in SETTINGS.items():
        if needed not in sys.modules:
            continue
        try:
            settings[name] = tell(shell)
        except Exception as error:
            notes.append(f"The setting {name!r} could not be told: {type(error).__name__}: {error}")
    for name in FIRST_SETTINGS:
        if name in settings:
            yield "setting", name, settings.pop(name)
    for name, module in modules.items():
        yield "module", name, save_module(module)
    hidden, missing = shell.user_ns_hidden, object()
    variables = [
        (name, value)
        for name, value in list(shell.user_ns.items())
        if type(name) is str and hidden.get(name, missing) is not value and not _is_ipythons(name)
    ]
    for name, value in sorted(variables, key=lambda variable: _rank(variable[1])):
        yield "variable", name, value
    for number, value in list(shell.user_ns.get("_oh", {}).items()):
        yield "output", str(number), value
    for name, value in settings.items():
        yield "setting", name, value


def _is_ipythons(name: str) -> bool:
    return name in _MODULE_NAMES or name == "__builtin__" or _HISTORY_NAME.fullmatch(name) is not None


def _rank(value: Any) -> int:
    """Modules, constants, functions and classes first: what is made again later may ask for them."""
    if issubclass(type(value), types.ModuleType):
        return 0
    if type(value) in (type(None), bool, int, float, complex, str, bytes):
        return 1
    return 2 if issubclass(type(value), (type, types.FunctionType)) else 3


def _write(
    writer: RootWriter, roots: list[tuple[str, str, Any]], known: dict[str, Any]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    written: list[dict[str, Any]] = []
    unsaved: list[dict[str, Any]] = []
    first: dict[str, list[int]] = {}
    kept: dict[str, Any] = {}
    for kind, name, value in roots:
        entry = {"kind": kind, "name": name, "type": kind_of(value)}
        label, lost_before = _label(entry), set(writer.lost)
        try:
            written.append({**entry, **writer.write(value)})
            kept[label] = value
            first[label] = [key for key in writer.lost if key not in lost_before]
        except Failed as failure:
            unsaved.append({"name": label, "type": failure.kind, "reason": failure.reason, "part": False})
    if writer.lost:
        borders = {id(vars(module)) for module in list(sys.modules.values()) if type(module) is types.ModuleType}
        borders.update(id(value) for value in (*known.values(), *sys.modules.values()))
        searched = lost_parts(kept, writer.lost, borders) or {}
        for label in kept:
            for key in dict.fromkeys([*first[label], *searched.get(label, [])]):
                _, kind, reason = writer.lost[key]
                unsaved.append({"name": label, "type": kind, "reason": reason, "part": True})
    return written, unsaved


def _label(root: dict[str, Any]) -> str:
    """What a root is called where people read it."""
    name = str(root["name"])
    return {"variable": name, "output": f"Out[{name}]"}.get(root["kind"], f"{root['kind']} {name}")


def _variables(roots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: root[key] for key in ("name", "type", "size")} for root in roots if root["kind"] == "variable"]


# How it is brought back


def _place(shell: Any, root: dict[str, Any], value: Any) -> list[dict[str, Any]]:
    """Put a root where it belongs; what went wrong."""
    kind, name = root["kind"], root["name"]
    try:
        if kind == "variable":
            shell.user_ns[name] = value
        elif kind == "output":
            shell.user_ns["_oh"][int(name)] = value
            shell.user_ns[f"_{name}"] = value
        elif kind == "module":
            restore_module(name, value)
        else:
            SETTINGS[name][1](shell, value)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return [{"name": _label(root), "type": root["type"], "reason": reason, "part": False}]
    return []


def _told(label: str, lost: list[Lost], part: bool) -> list[dict[str, Any]]:
    kinds = dict.fromkeys(described(it) for it in lost)
    return [{"name": label, "type": kind, "reason": reason, "part": part} for kind, reason in kinds]


def _arrange(names: dict[str, Any], before: dict[str, Any], order: list[str], unwanted: set[str]) -> None:
    """Leave out what is not wanted, and put the rest in the order in which it was made."""
    for name in order:
        if name in names:
            value = names.pop(name)
            if name not in unwanted:
                names[name] = value
            elif name in before:
                names[name] = before[name]


# Files


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the pauses and warnings that the user has not asked for."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if collecting:
            gc.enable()


@contextlib.contextmanager
def _files(folder: str) -> Iterator[tuple[Any, Any]]:
    segments, buffers = (os.path.join(folder, name) for name in ("segments.bin", "buffers.bin"))
    with open(segments, "wb", buffering=0) as first, open(buffers, "wb", buffering=0) as second:
        yield first, second


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _write_state(folder: str, state: dict[str, Any]) -> None:
    path = os.path.join(folder, "state.json")
    with open(f"{path}.new", "w", encoding="ascii") as file:
        json.dump({**state, "sha256": _digest(state)}, file)
    os.replace(f"{path}.new", path)


def _read_state(folder: str) -> dict[str, Any]:
    try:
        with open(os.path.join(folder, "state.json"), encoding="ascii") as file:
            state = json.load(file)
    except FileNotFoundError:
        raise CheckpointError("There is no finished checkpoint: `state.json` is missing.") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"The checkpoint's `state.json` can't be read: {error}") from None
    if not isinstance(state, dict) or type(state.get("format")) is not int:
        raise CheckpointError("The checkpoint's `state.json` is damaged.")
    if state["format"] > FORMAT:
        raise CheckpointError(f"The checkpoint has format {state['format']}; this gateway reads up to {FORMAT}.")
    if state.pop("sha256", None) != _digest(state):
        raise CheckpointError("The checkpoint's `state.json` is damaged.")
    return state


def _mapped(folder: str, state: dict[str, Any]) -> tuple[memoryview, list[memoryview]]:
    """The segments, checked, and the large buffers, which are read only when they are used."""
    views = mapped(folder, state["sizes"])
    segments, buffers = views["segments.bin"], views["buffers.bin"]
    for root in state["roots"]:
        if zlib.crc32(segments[root["start"] : root["end"]]) != root["checksum"]:
            raise CheckpointError(f"The checkpoint's `segments.bin` is damaged, in {_label(root)}.")
    return segments, [buffers[start : start + size] for start, size in state["buffers"]]
