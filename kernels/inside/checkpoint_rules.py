"""How each kind of object is told apart and written down; what can't be is refused with a reason.

The user's objects are only looked at, and never changed. A rule gives what `__reduce_ex__` would give.
"""

from __future__ import annotations

import abc
import copyreg
import enum
import functools
import gc
import importlib
import importlib.util
import io
import marshal
import os
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
from .checkpoint_arrays import ArrayRules
from .checkpoint_caches import cached_calls
from .checkpoint_kinds import (
    HEAP,
    REFUSED,
    CannotCarry,
    attributes_of,
    class_importable,
    importable,
    made_by_hand,
    module_of,
    mro_of,
    qualname_of,
)
from .checkpoint_lost import Lost, described

_abc: Any = importlib.import_module("_abc")  # what abc is made of; it has no types

Recipe = tuple[Any, ...]
Rule = Callable[[Any], Any]

_UNPLACED: tuple[type, ...] = (
    *(type(None), bool, int, float, complex, str, bytes, bytearray, list, dict, tuple, set, frozenset, type),
    *(types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.MethodType, property, Lost),
)


class Variables:
    """Stands for the dict of a module's variables."""

    def __init__(self, module: types.ModuleType) -> None:
        self.module = module


class Rules:
    """The recipe for any object, by its type. Raises `CannotCarry`, or whatever the object raises."""

    def __init__(self, user_ns: dict[str, Any], foreign: Callable[[Any], bool]) -> None:
        self._user_ns = user_ns
        self._foreign = foreign  # whether a module is a library's, so that what it holds is found there again
        self._rules: dict[type, Rule] = {}
        self._owners: dict[int, Any] = {}
        self._places = self._find_places()
        self.warnings: dict[str, None] = {}
        self._arrays = ArrayRules(self._found, self.warnings)
        self._exact: dict[type, Rule] = {
            types.FunctionType: self._function,
            types.CodeType: lambda code: (rebuild.code, (importlib.util.MAGIC_NUMBER, marshal.dumps(code))),
            types.CellType: self._cell,
            types.MethodType: lambda method: (types.MethodType, (method.__func__, method.__self__)),
            types.MappingProxyType: self._proxy,
            classmethod: lambda method: (classmethod, (method.__func__,)),
            staticmethod: lambda method: (staticmethod, (method.__func__,)),
            super: lambda it: (
                super,
                (it.__thisclass__, it.__self__) if it.__self__ is not None else (it.__thisclass__,),
            ),
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
        for base in mro_of(cls):
            reason = REFUSED.get(f"{module_of(base)}.{qualname_of(base)}")
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
        of_arrays = self._arrays.rule_for(cls)
        if of_arrays is not None:
            return of_arrays
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
                    classes[cls] = class_importable(cls) or cls.__flags__ & HEAP == 0
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
        if not cls.__flags__ & HEAP:
            for module_name in ("types", "_collections_abc", "functools", "weakref"):
                for name, value in vars(sys.modules[module_name]).items():
                    if value is cls:
                        return rebuild.attribute, (module_name, name)
            raise CannotCarry("it is a type of C that can't be imported by its name")
        meta, own = type(cls), dict(attributes_of(cls))
        beginning = {"__module__": own.get("__module__"), "__qualname__": qualname_of(cls)}
        provided = {name for name in ("__dict__", "__weakref__") if type(own.get(name)) is types.GetSetDescriptorType}
        members = {name for name, value in own.items() if self._is_slot(cls, value)}
        if "__slots__" in own:
            beginning["__slots__"] = tuple(sorted(members | provided))
        for name in provided | members | {"_abc_impl", "__static_attributes__"}:
            own.pop(name, None)
        if module_of(meta) == "_ctypes":
            meta = type  # which asks the bases for the right one
            own = {name: value for name, value in own.items() if type(value).__name__ != "CField"}
        how = (meta, qualname_of(cls).rpartition(".")[2], cls.__bases__, beginning)
        if issubclass(meta, enum.EnumMeta):
            return self._enum(cls, how, own)
        registered = []
        if issubclass(meta, abc.ABCMeta):
            registered = [it() for it in _abc._get_dump(cls)[0] if it() is not None]
        return rebuild.new_class, how, (own, registered), None, None, rebuild.fill_class

    def _is_slot(self, cls: type, value: Any) -> bool:
        return type(value) is types.MemberDescriptorType and value.__objclass__ is cls

    def _enum(self, cls: Any, how: tuple[Any, ...], own: dict[str, Any]) -> Recipe:
        named = dict(own.pop("_member_map_"))
        members = {name: member for name, member in named.items() if member._name_ == name}
        aliases = {name: member._name_ for name, member in named.items() if name not in members}
        base: Any = next(base for base in mro_of(cls) if not base.__flags__ & HEAP)
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
        cls: Any = type(obj)
        if issubclass(cls, set) and cls.__reduce__ is set.__reduce__ and cls.__reduce_ex__ is object.__reduce_ex__:
            state = (set, list(set.__iter__(obj)), getattr(obj, "__dict__", None))
            return rebuild.bare, (set, cls), state, None, None, rebuild.fill_container
        made = self._found(obj)
        if type(made) is not tuple or made[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return made
        how, arguments, state, items, pairs = (*made, None, None, None)[:5]
        base = next(base for base in mro_of(cls) if not base.__flags__ & HEAP)
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
            base = next(base for base in mro_of(cls) if not base.__flags__ & HEAP)
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
            if isinstance(owner, type) and gc.get_referents(attributes_of(owner))[0] is behind:
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
