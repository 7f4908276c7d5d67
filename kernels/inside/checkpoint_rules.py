"""How each kind of object is told apart and written down; what can't be is refused with a reason.

The user's objects are only looked at, and never changed. A rule gives what `__reduce_ex__` would give.
"""

from __future__ import annotations

import abc
import array as arrays
import copyreg
import enum
import functools
import gc
import importlib.util
import io
import marshal
import mmap
import os
import pickle
import random
import stat
import struct
import sys
import threading
import types
import typing
import weakref
from collections.abc import Callable
from typing import Any

from . import checkpoint_rebuild as rebuild
from .checkpoint_lost import Lost, described

try:
    import _abc
except ImportError:  # pragma: no cover
    _abc = None  # type: ignore[assignment]

Recipe = typing.Union[tuple[Any, ...], str]
Rule = Callable[[Any], Any]

_HEAP = 1 << 9  # the flag of a class that was made at run time
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_attributes: Callable[[type], Any] = type.__dict__["__dict__"].__get__
_module: Callable[[type], Any] = type.__dict__["__module__"].__get__
_qualname: Callable[[type], str] = type.__dict__["__qualname__"].__get__

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

_UNPLACED: tuple[type, ...] = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray, list, dict, tuple, set, frozenset, type),
    *(types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.MethodType, property, Lost),
)


_SERIES_MEMORY = "pandas.core.internals.managers.SingleBlockManager"


class CannotCarry(Exception):
    """Why an object can't be written down."""


class Variables:
    """Stands for the dict of a module's variables."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module = module


def kind_of(obj: Any) -> str:
    """The name of an object's type, with its module when that tells something."""
    if type(obj) is Lost:
        return described(obj)[0]
    cls = type(obj)
    module = _module(cls)
    return _qualname(cls) if module in ("builtins", "__main__") else f"{module}.{_qualname(cls)}"


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
    return importable(cls, _module(cls), _qualname(cls))


class Rules:
    """The recipe for any object, by its type. Raises `CannotCarry`, or whatever the object raises."""

    def __init__(self, user_ns: dict[str, Any], foreign: Callable[[Any], bool]) -> None:
        self._user_ns = user_ns
        self._foreign = foreign  # whether a module is a library's, so that what it holds is found there again
        self._rules: dict[type, Rule] = {}
        self._owners: dict[int, Any] = {}
        self._kept: list[Any] = []
        """What must live as long as the pickler, which knows objects by their address."""
        self._own_memory: dict[int, Any] = {}
        self._places = self._find_places()
        self.warnings: dict[str, None] = {}
        self._exact: dict[type, Rule] = {
            types.FunctionType: self._function,
            types.CodeType: lambda code: (rebuild.code, (importlib.util.MAGIC_NUMBER, marshal.dumps(code))),
            types.CellType: self._cell,
            types.MethodType: lambda method: (types.MethodType, (method.__func__, method.__self__)),
            types.MappingProxyType: self._proxy,
            classmethod: lambda method: (classmethod, (method.__func__,)),
            staticmethod: lambda method: (staticmethod, (method.__func__,)),
            super: lambda it: (super, (it.__thisclass__, it.__self__) if it.__self__ is not None else (it.__thisclass__,)),
            memoryview: self._memoryview,
            weakref.ref: self._reference,
            weakref.ProxyType: lambda proxy: (weakref.proxy, (proxy.__repr__.__self__,)),
            weakref.CallableProxyType: lambda proxy: (weakref.proxy, (proxy.__repr__.__self__,)),
            weakref.WeakMethod: lambda method: (weakref.WeakMethod, (method(),)) if method() else self._dead(),
            weakref.WeakSet: lambda weak: (weakref.WeakSet, (list(weak),)),
            weakref.WeakKeyDictionary: lambda weak: (type(weak), (), None, None, iter(list(weak.items()))),
            weakref.WeakValueDictionary: lambda weak: (type(weak), (), None, None, iter(list(weak.items()))),
            type(threading.Lock()): self._lock,
            type(threading.RLock()): self._lock,
            type(functools.lru_cache(print)): self._cache,
            struct.Struct: lambda layout: (struct.Struct, (layout.format,)),
            random.SystemRandom: lambda source: (random.SystemRandom, ()),
            typing.TypeVar: self._type_variable,
            io.TextIOWrapper: self._file,
            io.BufferedReader: self._file,
            io.BufferedWriter: self._file,
            io.BufferedRandom: self._file,
            io.FileIO: self._file,
            Variables: lambda variables: (rebuild.variables_of, (variables.module,)),
            Lost: lambda lost: self._refuse(described(lost)[1]),
            **dict.fromkeys((type({}.keys()), type({}.values()), type({}.items())), self._dict_view),
        }

    def recipe(self, obj: Any) -> Any:
        """As a pickler's `reducer_override`: a recipe, or NotImplemented for what is found by its name."""
        place = self._places.get(id(obj))
        if place is not None:
            return rebuild.attribute, place
        cls = type(obj)
        rule = self._rules.get(cls)
        if rule is None:
            rule = self._rules[cls] = self._rule_for(cls)
        return rule(obj)

    def _rule_for(self, cls: type) -> Rule:
        if cls in self._exact:
            return self._exact[cls]
        for base in _mro(cls):
            reason = REFUSED.get(f"{_module(base)}.{_qualname(base)}")
            if reason is not None:
                return functools.partial(self._refuse, reason)
        for kinds, rule in (
            (type, self._class),
            (types.ModuleType, self._a_module),
            (property, self._property),
            (enum.Enum, self._enum_member),
            (BaseException, self._exception),
            (threading.local, lambda it: (copyreg.__newobj__, (type(it),), dict(vars(it)))),  # type: ignore[attr-defined]
        ):
            if issubclass(cls, kinds):
                return rule
        numpy = sys.modules.get("numpy")
        if numpy is not None and hasattr(numpy, "ndarray") and cls in (numpy.ndarray, numpy.memmap):
            return self._array if cls is numpy.ndarray else self._array_file
        internals = sys.modules.get("pandas._libs.internals")
        if internals is not None and issubclass(cls, internals.Block):
            return self._block
        if internals is not None and f"{_module(cls)}.{_qualname(cls)}" == _SERIES_MEMORY:
            return lambda memory: (cls, (memory.blocks[0], memory.axes[0]))  # its own recipe passes by the block's
        return self._found if class_importable(cls) else self._instance

    def _refuse(self, reason: str, obj: Any = None) -> Any:
        raise CannotCarry(reason)

    def _dead(self) -> Recipe:
        return rebuild.dead_reference, ()

    def _find_places(self) -> dict[int, tuple[str, str]]:
        """What lies in the modules of libraries: sentinels that are compared with `is`, registries, instances."""
        places: dict[int, tuple[str, str]] = {}
        classes: dict[type, bool] = {}
        for module_name, module in list(sys.modules.items()):
            if type(module) is not types.ModuleType or module_name == "__main__" or not self._foreign(module):
                continue
            for name, value in list(vars(module).items()):
                cls = type(value)
                if cls in _UNPLACED or issubclass(cls, type) or (module_name == "sys" and name[:4] in ("last", "std")):
                    continue
                if cls not in classes:
                    classes[cls] = class_importable(cls) or cls.__flags__ & _HEAP == 0
                if classes[cls]:
                    places.setdefault(id(value), (module_name, name))
        return places

    # Functions, modules, classes

    def _function(self, function: Any) -> Any:
        if importable(function, function.__module__, function.__qualname__):
            return NotImplemented
        names = ["__defaults__", "__kwdefaults__", "__qualname__", "__module__", "__doc__", "__type_params__"]
        names.append("__annotate__" if getattr(function, "__annotate__", None) else "__annotations__")
        state = {name: getattr(function, name) for name in names if hasattr(function, name)}
        state["__dict__"] = dict(vars(function))
        made = (function.__code__, self._globals(function.__globals__), function.__name__, function.__closure__)
        return rebuild.function, made, state, None, None, rebuild.fill_function

    def _globals(self, variables: dict[str, Any]) -> Any:
        """The namespace that a function lives in: not what it holds, but the very one."""
        if variables is self._user_ns:
            return variables
        if id(variables) not in self._owners:
            owner: Any = sys.modules.get(str(variables.get("__name__")))
            if owner is None or getattr(owner, "__dict__", None) is not variables:
                referrers = gc.get_referrers(variables)
                owner = next((it for it in referrers if isinstance(it, types.ModuleType)), None)
            self._owners[id(variables)] = variables if owner is None else Variables(owner)
        return self._owners[id(variables)]

    def _cell(self, cell: types.CellType) -> Recipe:
        try:
            contents: tuple[Any, ...] = (cell.cell_contents,)
        except ValueError:
            contents = ()
        return rebuild.cell, (), contents, None, None, rebuild.fill_cell

    def _property(self, made: property) -> Recipe:
        return type(made), (made.fget, made.fset, made.fdel, made.__doc__), getattr(made, "__dict__", None) or None

    def _cache(self, made: Any) -> Recipe:
        attributes = dict(vars(made))
        calls = cached_calls(made)
        if calls is None or (calls and type(attributes.get("__wrapped__")) is not types.FunctionType):
            self.warnings[f"The cache of {made.__qualname__} starts empty."] = None
            calls = []
        state = (attributes, calls)
        if importable(made, made.__module__, made.__qualname__):
            if self._foreign(sys.modules[made.__module__]):
                return rebuild.attribute, (made.__module__, made.__qualname__)
            return rebuild.attribute, (made.__module__, made.__qualname__), ({}, calls), None, None, rebuild.fill_cache
        limits = made.cache_parameters()
        how = (made.__wrapped__, limits["maxsize"], limits["typed"])
        return rebuild.cached, how, state, None, None, rebuild.fill_cache

    def _a_module(self, module: Any) -> Recipe:
        variables = vars(module)
        name = variables.get("__name__")
        if type(name) is not str:
            raise CannotCarry("it has no name")
        registered = sys.modules.get(name) is module
        if registered and not made_by_hand(module):
            parts = [part for part in list(sys.modules) if part.startswith(f"{name}.")]
            return rebuild.module, (name, tuple(parts))
        if variables.get("__file__"):
            raise CannotCarry("another module has taken its place")
        skipped = ("__builtins__", "__loader__", "__spec__")
        kept = {key: value for key, value in variables.items() if key not in skipped}
        return rebuild.new_module, (name, registered), kept, None, None, rebuild.fill_module

    def _class(self, cls: Any) -> Any:
        if cls in (type(None), type(...), type(NotImplemented)) or class_importable(cls):
            return NotImplemented
        if not cls.__flags__ & _HEAP:
            for module_name in ("types", "_collections_abc", "functools", "weakref"):
                for name, value in vars(sys.modules[module_name]).items():
                    if value is cls:
                        return rebuild.attribute, (module_name, name)
            raise CannotCarry("it is a type of C that can't be imported by its name")
        meta, own = type(cls), dict(_attributes(cls))
        beginning = {"__module__": own.get("__module__"), "__qualname__": _qualname(cls)}
        provided = {name for name in ("__dict__", "__weakref__") if type(own.get(name)) is types.GetSetDescriptorType}
        members = {name for name, value in own.items() if self._is_slot(cls, value)}
        if "__slots__" in own:
            beginning["__slots__"] = tuple(sorted(members | provided))
        for name in provided | members | {"_abc_impl", "__static_attributes__"}:
            own.pop(name, None)
        if not meta.__flags__ & _HEAP and not class_importable(meta):
            meta = type  # which asks the bases for the right one
            own = {name: value for name, value in own.items() if type(value).__name__ != "CField"}
        how = (meta, _qualname(cls).rpartition(".")[2], cls.__bases__, beginning)
        if issubclass(meta, enum.EnumMeta):
            return self._enum(cls, how, own)
        registered = []
        if _abc is not None and issubclass(meta, abc.ABCMeta):
            registered = [it() for it in _abc._get_dump(cls)[0] if it() is not None]
        return rebuild.new_class, how, (own, registered), None, None, rebuild.fill_class

    def _is_slot(self, cls: type, value: Any) -> bool:
        return type(value) is types.MemberDescriptorType and value.__objclass__ is cls

    def _enum(self, cls: Any, how: tuple[Any, ...], own: dict[str, Any]) -> Recipe:
        named = dict(own.pop("_member_map_"))
        members = {name: member for name, member in named.items() if member._name_ == name}
        aliases = {name: member._name_ for name, member in named.items() if name not in members}
        base: Any = next(base for base in _mro(cls) if not base.__flags__ & _HEAP)
        arguments = [
            (name, base.__getnewargs__(member) if base is not object else ()) for name, member in members.items()
        ]
        values = own["_value2member_map_"].items()
        own["_value2member_map_"] = {value: it for value, it in values if it._name_ in members}
        state = (own, {name: dict(vars(member)) for name, member in members.items()}, aliases)
        return rebuild.new_enum, (*how, arguments), state, None, None, rebuild.fill_enum

    def _enum_member(self, member: Any) -> Any:
        cls = type(member)
        if class_importable(cls):
            return self._found(member)
        if member._name_ in cls._member_map_:
            return rebuild.enum_member, (cls, member._name_)
        return rebuild.enum_value, (cls, member._value_)

    def _type_variable(self, variable: Any) -> Any:
        if importable(variable, variable.__module__, variable.__name__):
            return rebuild.attribute, (variable.__module__, variable.__name__)
        options = {"covariant": variable.__covariant__, "contravariant": variable.__contravariant__}
        made = functools.partial(typing.TypeVar, bound=variable.__bound__, **options)
        return made, (variable.__name__, *variable.__constraints__)

    # Instances

    def _found(self, obj: Any) -> Any:
        """An object of a library's class, which knows best how it is written down."""
        reduce = copyreg.dispatch_table.get(type(obj))
        made: Any = reduce(obj) if reduce else obj.__reduce_ex__(5)
        if type(made) is str:
            return self._named(obj, made)
        if type(made) is not tuple or not 2 <= len(made) <= 6 or not callable(made[0]) or type(made[1]) is not tuple:
            raise CannotCarry("its `__reduce__` answers with something that is no recipe")
        return made

    def _named(self, obj: Any, path: str) -> Any:
        if importable(obj, getattr(obj, "__module__", None), path):
            return rebuild.attribute, (obj.__module__, path)
        if type(getattr(obj, "__dict__", None)) is not dict:
            raise CannotCarry("it can be saved only by a name, and nothing is found under it")
        return copyreg.__newobj__, (type(obj),), dict(vars(obj))  # type: ignore[attr-defined]

    def _instance(self, obj: Any) -> Any:
        """An object of a session's class. What its class defines is not asked more often than needed."""
        cls = type(obj)
        if issubclass(cls, set) and cls.__reduce__ is set.__reduce__ and cls.__reduce_ex__ is object.__reduce_ex__:
            state = (set, list(set.__iter__(obj)), getattr(obj, "__dict__", None))
            return rebuild.bare, (set, cls), state, None, None, rebuild.fill_container
        made = self._found(obj)
        if type(made) is not tuple or made[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return made
        how, arguments, state, items, pairs = (*made, None, None, None)[:5]
        base = next(base for base in _mro(cls) if not base.__flags__ & _HEAP)
        given = getattr(cls, "__getnewargs_ex__", None) or getattr(cls, "__getnewargs__", None)
        if type(cls.__new__) is types.FunctionType and type(given) is not types.FunctionType:
            how, arguments = rebuild.bare, (base, *arguments)
        if cls.__reduce__ is object.__reduce__ and (items is not None or pairs is not None) and base in (list, dict):
            content = list(list.__iter__(obj)) if base is list else dict(dict.items(obj))
            if not hasattr(cls, "__setstate__"):
                return how, arguments, (base, content, state), None, None, rebuild.fill_container
        if type(state) is tuple and len(state) == 2 and type(state[1]) is dict and not hasattr(cls, "__setstate__"):
            return how, arguments, state, items, pairs, rebuild.fill_slots
        return how, arguments, state, items, pairs

    def _exception(self, error: BaseException) -> Any:
        made = self._found(error)
        cls = type(error)
        state: dict[str, Any] = {"__dict__": made[2] if len(made) > 2 else None}
        for name in ("__cause__", "__context__", "__suppress_context__"):
            if getattr(error, name):
                state[name] = getattr(error, name)
        how, arguments = made[:2]
        if how is cls and type(cls.__init__) is types.FunctionType:
            base = next(base for base in _mro(cls) if not base.__flags__ & _HEAP)
            how, arguments = rebuild.exception, (base, cls, tuple(arguments))
        if error.__traceback__ is not None:
            self.warnings["Exceptions come back without their tracebacks."] = None
        return how, arguments, state, None, None, rebuild.fill_exception

    # References and views

    def _reference(self, reference: Any) -> Recipe:
        target = reference()
        if target is None:
            return self._dead()
        callback = reference.__callback__
        return weakref.ref, (target,) if callback is None else (target, callback)

    def _proxy(self, proxy: Any) -> Recipe:
        (behind,) = gc.get_referents(proxy)
        for name in ("__dict__", "__weakref__", "__doc__"):
            owner = getattr(behind.get(name), "__objclass__", None) if type(behind) is dict else None
            if isinstance(owner, type) and gc.get_referents(_attributes(owner))[0] is behind:
                return rebuild.variables_of, (owner,)
        return types.MappingProxyType, (behind,)

    def _dict_view(self, view: Any) -> Recipe:
        (behind,) = gc.get_referents(view)
        return rebuild.view, (behind, type(view).__name__.rpartition("_")[2])

    def _memoryview(self, view: memoryview) -> Recipe:
        whole = memoryview(view.obj)
        if (view.shape, view.strides, view.format, view.readonly) != (
            *(whole.shape, whole.strides, whole.format, whole.readonly),
        ):
            raise CannotCarry("it shows a part of another object's memory")
        return memoryview, (view.obj,)

    def _lock(self, lock: Any) -> Recipe:
        if "unlocked" not in repr(lock):
            self.warnings["A lock that was held comes back unlocked: whoever held it is gone."] = None
        return (threading.RLock if type(lock) is type(threading.RLock()) else threading.Lock), ()

    def _file(self, opened: Any) -> Recipe:
        mode = getattr(opened, "mode", "")
        if opened.closed or not isinstance(mode, str) or mode.strip("bt") != "r" or type(opened.name) is not str:
            raise CannotCarry("of open files, only those open for reading are opened again where they stood")
        if not stat.S_ISREG(os.fstat(opened.fileno()).st_mode) or not os.path.exists(opened.name):
            raise CannotCarry("it is no regular file, or was deleted")
        options: dict[str, Any] = {} if "b" in mode else {"encoding": opened.encoding, "errors": opened.errors}
        if type(opened) is io.FileIO:
            options["buffering"] = 0
        return rebuild.file, (opened.name, mode, opened.tell(), options)

    # Arrays and frames

    def _array(self, array: Any) -> Any:
        """An array that shows a part of another stays one, so that a change in either is seen in both."""
        numpy = sys.modules["numpy"]
        if id(array) in self._own_memory or array.base is None or not array.size:
            return self._found(array)
        base = array.base.obj if type(array.base) is memoryview else array.base
        if isinstance(base, (bytes, bytearray, arrays.array)):
            return self._view(array, base, numpy.frombuffer(base, "u1"))
        if type(base) in (numpy.ndarray, numpy.memmap) and (base.flags.c_contiguous or base.flags.f_contiguous):
            return self._view(array, base, base)
        if not isinstance(base, (mmap.mmap, pickle.PickleBuffer)) and not _module(type(base)).startswith("sklearn."):
            self.warnings["Some arrays no longer share their memory with what they were made from."] = None
        return self._found(array)

    def _view(self, array: Any, base: Any, owner: Any) -> Recipe:
        offset = array.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        place = (array.shape, array.strides, array.dtype, offset, array.flags.writeable)
        return rebuild.array_view, (base, *place, type(array))

    def _array_file(self, array: Any) -> Any:
        if array.filename is None:
            raise CannotCarry("the file that it maps is not known")
        if isinstance(array.base, sys.modules["numpy"].ndarray):
            return self._view(array, array.base, array.base)
        how = (os.fspath(array.filename), array.dtype, array.mode, array.offset, array.shape)
        return rebuild.array_file, (*how, not array.flags.c_contiguous)

    def _block(self, block: Any) -> Any:
        """The memory of a frame. Where pandas copies on write, two that share it for now must not share it for ever."""
        made = self._found(block)
        pandas = sys.modules["pandas"]
        if int(pandas.__version__.split(".")[0]) < 3 and not pandas.options.mode.copy_on_write:
            return made
        values, *others = made[1]
        own = values.view() if type(values) is sys.modules["numpy"].ndarray else values.copy()
        self._own_memory[id(own)] = own
        return (made[0], (own, *others), *made[2:])


def cached_calls(made: Any) -> list[tuple[tuple[Any, ...], dict[str, Any], Any]] | None:
    """What a functools cache holds, oldest first; None if that can't be told."""
    info = made.cache_info()
    if not info.currsize:
        return []
    parts = gc.get_referents(made)
    marks = [it for it in parts if type(it) is object]
    tables = [it for it in parts if type(it) is dict and len(it) == info.currsize and it is not made.__dict__]
    if info.maxsize is not None:
        tables = [it for it in tables if all(type(link).__name__ == "_lru_list_elem" for link in it.values())]
    if len(tables) != 1:
        return None
    pairs = list(tables[0].items())
    if info.maxsize is not None:
        before = parts[: next(at for at, it in enumerate(parts) if it is tables[0])]
        listed = [it for it in before if it is not type(made) and getattr(it, "__name__", "") != "_lru_list_elem"]
        pairs = list(zip(listed[::2], listed[1::2]))
        known = {id(key) for key in tables[0]}
        if len(listed) != 2 * info.currsize or any(id(key) not in known for key, _ in pairs):
            return None
    typed = made.cache_parameters()["typed"]
    calls = []
    for key, result in pairs:
        if type(key) is not tuple:
            calls.append(((key,), {}, result))
            continue
        at = next((at for at, it in enumerate(key) if any(it is mark for mark in marks)), None)
        count = (len(key) // 2 if typed else len(key)) if at is None else at
        end = count if at is None else (at + 1 + (len(key) - 2 * at - 1) // 3 * 2 if typed else len(key))
        named = key[count + 1 : end]
        calls.append((key[:count], dict(zip(named[::2], named[1::2])), result))
    return calls
