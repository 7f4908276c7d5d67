"""How objects are made again. A checkpoint names these functions by their key in `FUNCTIONS`, never by a module path.

Whatever can be part of a cycle is made empty first and filled afterwards, so that its parts can point back at it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import marshal
import operator
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

from .checkpoint_lost import Lost

_abc: Any = importlib.import_module("_abc")  # what abc is made of; it has no types


# Modules and what is found in them


def module(name: str, parts: tuple[str, ...] = ()) -> Any:
    for part in parts:  # `import a.b` has made `b` an attribute of `a`
        if part not in sys.modules:
            with contextlib.suppress(Exception):
                importlib.import_module(part)
    return sys.modules.get(name) or importlib.import_module(name)


def attribute(module_name: str, path: str) -> Any:
    return operator.attrgetter(path)(module(module_name))


def new_module(name: str, registered: bool) -> types.ModuleType:
    made = types.ModuleType(name)
    if registered:
        sys.modules[name] = made
    return made


def fill_module(made: types.ModuleType, variables: dict[str, Any]) -> None:
    vars(made).update(variables)


def variables_of(owner: Any) -> Any:
    return vars(owner)


# Functions


def code(magic: bytes, marshalled: bytes) -> types.CodeType:
    if magic != importlib.util.MAGIC_NUMBER:
        raise ValueError("it was compiled by another version of Python")
    loaded: types.CodeType = marshal.loads(marshalled)  # noqa: S302 - loaded only inside the session it came from
    return loaded


def cell() -> types.CellType:
    return types.CellType()


def fill_cell(made: types.CellType, contents: tuple[Any, ...]) -> None:
    for value in contents:
        made.cell_contents = value


def function(compiled: types.CodeType, variables: dict[str, Any], name: str, cells: Any) -> types.FunctionType:
    return types.FunctionType(compiled, variables, name, None, cells)


def fill_function(made: types.FunctionType, state: dict[str, Any]) -> None:
    vars(made).update(state.pop("__dict__"))
    for name, value in state.items():
        setattr(made, name, value)


def cached(wrapped: Any, maxsize: int | None, typed: bool) -> Any:
    return functools.lru_cache(maxsize=maxsize, typed=typed)(wrapped)


def fill_cache(made: Any, state: tuple[dict[str, Any], list[tuple[tuple[Any, ...], dict[str, Any], Any]]]) -> None:
    """Put results into a cache: for the moment, the function behind it does nothing but answer with them."""
    attributes, calls = state
    vars(made).update(attributes)
    wrapped = made.__wrapped__
    if not calls:
        return
    results: list[Any] = []
    behind = wrapped.__code__
    stand_in = (lambda *args, **kwargs: "results".pop()).__code__  # type: ignore[attr-defined]
    constants = tuple(results if constant == "results" else constant for constant in stand_in.co_consts)
    wrapped.__code__ = stand_in.replace(co_consts=constants, co_freevars=behind.co_freevars)
    try:
        for args, kwargs, result in calls:
            results.append(result)
            made(*args, **kwargs)
    finally:
        wrapped.__code__ = behind


# Classes


def new_class(meta: Any, name: str, bases: tuple[Any, ...], beginning: dict[str, Any]) -> type:
    """A class without its attributes. No code of the user's runs: the metaclass and the bases have had their say."""
    with _quiet(bases):
        try:
            made: type = type.__new__(meta, name, bases, dict(beginning))
        except TypeError:  # a metaclass written in C
            made = meta(name, bases, dict(beginning))
    if any(base.__name__ == "ABCMeta" for base in type.mro(meta)):
        _abc._abc_init(made)
    return made


@contextlib.contextmanager
def _quiet(bases: tuple[Any, ...]) -> Iterator[None]:
    """While a class is made again: `__init_subclass__` is not called a second time."""
    silenced: dict[Any, Any] = {}
    for base in bases:
        for owner in type.mro(base):
            if "__init_subclass__" in vars(owner) and owner.__flags__ & (1 << 9):
                silenced.setdefault(owner, vars(owner)["__init_subclass__"])
    for owner in silenced:
        type.__setattr__(owner, "__init_subclass__", classmethod(lambda cls, **kwargs: None))
    try:
        yield
    finally:
        for owner, stock in silenced.items():
            type.__setattr__(owner, "__init_subclass__", stock)


def fill_class(made: Any, state: tuple[dict[str, Any], list[Any]]) -> None:
    attributes, registered = state
    for name, value in attributes.items():
        if type(made).__module__ != "_ctypes":
            type.__setattr__(made, name, value)
        else:
            setattr(made, name, value)  # of ctypes, which lays out a structure when its fields are set
    for subclass in registered:
        made.register(subclass)


def new_enum(meta: Any, name: str, bases: tuple[Any, ...], beginning: dict[str, Any], members: list[Any]) -> Any:
    """An enumeration with its members, as yet without their attributes."""
    made = new_class(meta, name, bases, beginning)
    named = {}
    for member_name, arguments in members:
        base: Any = next(base for base in made.__mro__ if not base.__flags__ & (1 << 9))
        named[member_name] = base.__new__(made, *arguments)
    type.__setattr__(made, "_member_map_", named)
    return made


def fill_enum(made: Any, state: tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, str]]) -> None:
    attributes, members, aliases = state
    named = made._member_map_
    for name, variables in members.items():
        vars(named[name]).update(variables)
    for alias, name in aliases.items():
        named[alias] = named[name]
    for name, value in attributes.items():
        if name != "_member_map_":
            type.__setattr__(made, name, value)


def enum_member(cls: Any, name: str) -> Any:
    return cls._member_map_[name]


def enum_value(cls: Any, value: Any) -> Any:
    return cls(value)


# Instances


def bare(base: Any, cls: Any, *arguments: Any) -> Any:
    """An object of a session's class, without the `__new__` and `__init__` that its class defines."""
    return base.__new__(cls, *arguments)


def fill_slots(made: Any, state: tuple[dict[str, Any] | None, dict[str, Any]]) -> None:
    variables, slots = state
    if variables:
        vars(made).update(variables)
    for name, value in slots.items():
        object.__setattr__(made, name, value)


def fill_container(made: Any, state: tuple[Any, Any, dict[str, Any] | None]) -> None:
    """Fill a subclass of dict, list or set past the methods it overrides."""
    base, items, attributes = state
    fill: Any = {dict: dict.update, list: list.extend, set: set.update}[base]
    fill(made, items)
    if attributes is not None:
        if isinstance(attributes, tuple):
            fill_slots(made, attributes)
        else:
            vars(made).update(attributes)


def exception(base: Any, cls: Any, arguments: tuple[Any, ...]) -> Any:
    made = base.__new__(cls, *arguments)
    base.__init__(made, *arguments)
    made.args = arguments
    return made


def fill_exception(made: Any, state: dict[str, Any]) -> None:
    attributes = state.pop("__dict__")
    if attributes is not None:
        if hasattr(type(made), "__setstate__"):
            made.__setstate__(attributes)
        else:
            vars(made).update(attributes)
    for name, value in state.items():
        setattr(made, name, value)


# Views and references


def dead_reference() -> Any:
    class Gone:
        pass

    return weakref.ref(Gone())


def view(owner: Any, name: str) -> Any:
    return getattr(owner, name)()


def file(path: str, mode: str, position: Any, options: dict[str, Any]) -> Any:
    opened = open(path, mode, **options)  # noqa: SIM115 - it stays open, as it was
    opened.seek(position)
    return opened


def array_view(base: Any, shape: Any, strides: Any, dtype: Any, offset: int, writeable: bool, cls: Any) -> Any:
    """An array that shares its memory with another."""
    numpy = module("numpy")
    flat = base.T if isinstance(base, numpy.ndarray) and not base.flags.c_contiguous else base
    if dtype.hasobject:
        items = flat.reshape(-1)[offset // dtype.itemsize :]
        made = numpy.lib.stride_tricks.as_strided(items, shape, strides)
    else:
        made = numpy.ndarray(shape, dtype, flat, offset, strides)
    if cls is not numpy.ndarray:
        made = made.view(cls)
    if not writeable:
        made.flags.writeable = False
    return made


def array_file(path: str, dtype: Any, mode: str, offset: int, shape: Any, fortran: bool) -> Any:
    numpy = module("numpy")
    return numpy.memmap(path, dtype, "r+" if mode == "w+" else mode, offset, shape, "F" if fortran else "C")


FUNCTIONS: dict[str, Callable[..., Any]] = {
    made.__name__: made
    for made in (
        *(module, attribute, new_module, fill_module, variables_of, code, cell, fill_cell, function, fill_function),
        *(cached, fill_cache, new_class, fill_class, new_enum, fill_enum, enum_member, enum_value, bare, fill_slots),
        *(fill_container, exception, fill_exception, dead_reference, view, file, array_view, array_file, Lost),
    )
}
