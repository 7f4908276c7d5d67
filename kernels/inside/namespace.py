"""What a session's variables are, told as JSON. Runs inside the kernel, from Python 3.9 on, on anything users make.

Looking at a variable never raises, never changes it, and never takes or returns more than a bounded part of it.
Other threads may be at work: a cell can run meanwhile.
"""

from __future__ import annotations

import base64
import collections
import datetime
import itertools
import json
import keyword
import math
import sys
import time
import types
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Any

PREVIEW_CHARS = 200
PREVIEW_ITEMS = 20
PREVIEW_DEPTH = 4
SIZE_SAMPLES = (40, 8, 3)
"""How many items of a container are weighed, and of one inside it, and of one inside that."""

VALUE_CHARS = 1_000_000
VALUE_DEPTH = 40
MOST_VARIABLES = 1_000  # in one answer
MOST_ROWS = 10_000
MOST_COLUMNS = 1_000
LONGEST_NUMBER_BITS = 2_000  # longer ones Python may refuse to write
MOST_CELLS = 200_000
REPR_TIME_S = 1.0
"""After this long in one answer, no more `__repr__` of the user's is called."""

NO_JSON = object()
IPYTHON_NAMES = frozenset(["In", "Out", "exit", "quit", "get_ipython", "open"])
SHAPED = frozenset(["cupy", "jax", "jaxlib", "numpy", "pandas", "polars", "pyarrow", "scipy", "torch", "xarray"])
LIBRARY_TYPES = {
    "array": ("numpy", "ndarray"),
    "scalar": ("numpy", "generic"),
    "frame": ("pandas", "DataFrame"),
    "series": ("pandas", "Series"),
    "index": ("pandas", "Index"),
    "missing": ("pandas._libs.missing", "NAType"),
    "polars_frame": ("polars", "DataFrame"),
    "polars_series": ("polars", "Series"),
    "tensor": ("torch", "Tensor"),
}

# A class can answer for itself whatever it likes; these ask the interpreter.
_mro: Callable[[type], tuple[type, ...]] = type.__dict__["__mro__"].__get__
_attributes: Callable[[type], Any] = type.__dict__["__dict__"].__get__
_module: Callable[[type], Any] = type.__dict__["__module__"].__get__
_qualname: Callable[[type], str] = type.__dict__["__qualname__"].__get__

CONTAINERS: tuple[type, ...] = (
    *(collections.OrderedDict, dict, list, tuple, set, frozenset, collections.deque, range),
    *(type({}.keys()), type({}.values()), type({}.items())),
)
BRACKETS = {
    list.__repr__: ("[", "]"),
    tuple.__repr__: ("(", ")"),
    set.__repr__: ("{", "}"),
    dict.__repr__: ("{", "}"),
    frozenset.__repr__: ("frozenset({", "})"),
    collections.deque.__repr__: ("deque([", "])"),
    collections.OrderedDict.__repr__: ("OrderedDict({", "})"),
    collections.defaultdict.__repr__: ("defaultdict({", "})"),
    collections.Counter.__repr__: ("Counter({", "})"),
    type({}.keys()).__repr__: ("dict_keys([", "])"),
    type({}.values()).__repr__: ("dict_values([", "])"),
    type({}.items()).__repr__: ("dict_items([", "])"),
}


def list_variables(
    ns: dict[Any, Any], hidden: Iterable[str] = (), offset: int = 0, limit: int = MOST_VARIABLES
) -> list[dict[str, Any]]:
    """The user's variables by name, functions, classes and modules among them; not IPython's, nor `_private` ones."""
    copy = _copied(ns)
    names = _variable_names(copy, hidden)
    until = time.monotonic() + REPR_TIME_S
    start = max(offset, 0)
    return [_described(name, copy[name], until) for name in names[start : start + min(max(limit, 0), MOST_VARIABLES)]]


def count_variables(ns: dict[Any, Any], hidden: Iterable[str] = ()) -> int:
    """How many `list_variables` has in all."""
    return len(_variable_names(_copied(ns), hidden))


def _variable_names(ns: dict[Any, Any], hidden: Iterable[str]) -> list[str]:
    skipped = IPYTHON_NAMES.union(hidden)
    return sorted(name for name in ns if type(name) is str and name[:1] != "_" and name not in skipped)


def get_variable(ns: dict[Any, Any], name: str, offset: int = 0, limit: int = 100) -> dict[str, Any]:
    """One variable with its value; what has items or rows shows `limit` of them from `offset`, of `total`.

    `exact` is false where something in the value had to be left out or told as text: NaN, for one, or an object.
    `truncated` is true where the value would be longer than about a megabyte.
    """
    copy = _copied(ns)
    if name not in copy:
        return {"error": "missing"}
    return _with_value(name, copy[name], max(offset, 0), min(max(limit, 0), MOST_ROWS))


def set_variable(ns: dict[Any, Any], name: str, value: Any) -> dict[str, Any]:
    """Set a variable; `{"error": "name"}` for what cannot be one, or what IPython needs for itself."""
    plain = _variable_name(name)
    if plain is None:
        return {"error": "name"}
    ns[plain] = value
    return _described(plain, value, time.monotonic() + REPR_TIME_S)


def delete_variable(ns: dict[Any, Any], name: str) -> dict[str, Any]:
    """Delete a variable, as `del` does."""
    plain = _variable_name(name)
    if plain is None:
        return {"error": "name"}
    try:
        del ns[plain]
    except KeyError:
        return {"error": "missing"}
    return {"name": plain}


def _variable_name(name: object) -> str | None:
    """The name as Python reads it in code, where it is the same in all its Unicode spellings."""
    plain = unicodedata.normalize("NFKC", name) if isinstance(name, str) else ""
    if not plain.isidentifier() or keyword.iskeyword(plain) or plain in IPYTHON_NAMES or plain.startswith("__"):
        return None
    return plain


def _copied(ns: dict[Any, Any]) -> dict[Any, Any]:
    while True:
        try:
            return dict(ns)
        except RuntimeError:  # another thread added or removed a name
            time.sleep(0)


def _described(name: str, obj: Any, until: float) -> dict[str, Any]:
    return {
        "name": _clean(name),
        "type": _attempt("object", _type_name, type(obj)),
        "shape": _attempt(None, _shape, obj),
        "size_bytes": _attempt(None, _size, obj),
        "preview": _preview(obj, until),
    }


def _attempt(otherwise: Any, look: Callable[..., Any], *args: Any) -> Any:
    """What `look` finds. An object of the user's may raise anything at all when it is looked at."""
    for _ in range(3):
        try:
            return look(*args)
        except BaseException as error:
            if type(error) is not RuntimeError:  # which it is when a container changed size meanwhile
                break
    return otherwise


def _is(cls: type, base: type | None) -> bool:
    return any(parent is base for parent in _mro(cls))


def _library_type(cls: type) -> str:
    """Which of LIBRARY_TYPES this is, of the libraries the user has imported; else an empty string."""
    for kind, (module, name) in LIBRARY_TYPES.items():
        known = getattr(sys.modules.get(module), "__dict__", {}).get(name)
        if known is not None and _is(cls, known):
            return kind
    return ""


def _container(cls: type) -> Any:
    return next((base for base in CONTAINERS if _is(cls, base)), None)


def _type_name(cls: type) -> str:
    if _is(cls, types.ModuleType):
        return "module"
    module, name = _module(cls), _qualname(cls)
    if type(module) is str and module != "builtins":
        name = f"{module}.{name}"
    return _clean(name)[:PREVIEW_CHARS]


def _clean(text: str) -> str:
    """Half a surrogate pair is fine in a Python string, but not in UTF-8."""
    return str(text).encode("utf-8", "backslashreplace").decode("utf-8")


def _shape(obj: Any) -> list[int] | None:
    cls = type(obj)
    if base := _container(cls):
        return [base.__len__(obj)]
    if _is(cls, str) or _is(cls, bytes) or _is(cls, bytearray) or _is(cls, type):
        return None
    if any(str(_module(parent)).partition(".")[0] in SHAPED for parent in _mro(cls)):
        shape = getattr(obj, "shape", None)
        if isinstance(shape, tuple):
            return [int(length) for length in shape] if _library_type(cls) != "scalar" else None
    if any("__len__" in _attributes(parent) for parent in _mro(cls)):
        return [len(obj)]
    return None


def _size(obj: Any, depth: int = 0) -> int:
    """Bytes, guessed from a sample of what is inside."""
    cls = type(obj)
    library = _library_type(cls)
    if library in ("array", "tensor"):
        return int(obj.nbytes)
    if library == "frame":
        columns = max(len(obj.columns), 1)
        narrow = obj.iloc[:, :MOST_COLUMNS] if columns > MOST_COLUMNS else obj
        return int(narrow.memory_usage(deep=False).sum() * max(columns / MOST_COLUMNS, 1))
    if library in ("series", "index"):
        return int(obj.memory_usage(deep=False))
    if library in ("polars_frame", "polars_series"):
        return int(obj.estimated_size())
    size = sys.getsizeof(obj, 0)
    base = _container(cls)
    if depth == len(SIZE_SAMPLES) or base is range or _is(cls, type) or _is(cls, types.ModuleType):
        return size
    if base is None:
        attributes = _attempt(None, object.__getattribute__, obj, "__dict__")
        return size + (_size(attributes, depth + 1) if type(attributes) is dict else 0)
    sample = _some_items(base, obj, 0, SIZE_SAMPLES[depth])
    parts = itertools.chain.from_iterable(sample) if _is(base, dict) else sample
    distinct = {id(part): part for part in parts}
    inside = sum(_attempt(0, _size, part, depth + 1) for part in distinct.values())
    return int(size + inside * base.__len__(obj) / max(len(sample), 1))


def _items(base: Any, obj: Any) -> Iterator[Any]:
    """What is in a container, whatever methods of the container the user's class has redefined."""
    return iter(base.items(obj)) if _is(base, dict) else iter(base.__iter__(obj))


def _some_items(base: Any, obj: Any, start: int, end: int) -> list[Any]:
    return list(itertools.islice(_items(base, obj), start, end))


def _preview(obj: Any, until: float) -> str:
    text = _attempt(None, _text, obj, PREVIEW_CHARS, until)
    if text is None:
        text = f"<{_attempt('object', _type_name, type(obj))} that cannot be shown>"
    return _shortened(_clean(text))


def _shortened(text: str) -> str:
    return text if len(text) <= PREVIEW_CHARS else f"{text[: PREVIEW_CHARS - 1]}…"


def _text(obj: Any, room: int, until: float, depth: int = 0) -> str:
    """`repr`, but for the inner parts that would not be seen."""
    cls = type(obj)
    if cls is str or cls is bytes or cls is bytearray:
        return repr(obj[:room]) + ("…" if len(obj) > room else "")
    if cls is int and obj.bit_length() > LONGEST_NUMBER_BITS:
        return f"<int of {obj.bit_length()} bits>"
    if _is(cls, types.ModuleType):  # whose own repr would load a lazy one
        return f"<module {object.__getattribute__(obj, '__dict__').get('__name__')!r}>"
    library = _library_type(cls)
    if library in ("frame", "polars_frame", "series", "index", "polars_series"):
        return _table_text(obj, library, room, until, depth)
    if library == "array":
        return _array_text(obj)
    brackets = _attempt(None, BRACKETS.get, _repr_of(cls))
    if brackets:
        return _container_text(obj, brackets, room, until, depth)
    if time.monotonic() > until:
        return f"<{_type_name(cls)} object>"
    return str.__getitem__(repr(obj), slice(0, room + 1))


def _repr_of(cls: type) -> Any:
    return next(_attributes(parent)["__repr__"] for parent in _mro(cls) if "__repr__" in _attributes(parent))


def _container_text(obj: Any, brackets: tuple[str, str], room: int, until: float, depth: int) -> str:
    cls = type(obj)
    base = _container(cls)
    length = base.__len__(obj)
    if not length:
        return repr(obj)
    if depth >= PREVIEW_DEPTH:
        return f"{brackets[0]}…{brackets[1]}"
    pieces: list[str] = []
    used = 0
    for item in _some_items(base, obj, 0, PREVIEW_ITEMS):
        if used > room:
            break
        if _is(base, dict):
            pieces.append(": ".join(_item_text(part, room - used, until, depth + 1) for part in item))
        else:
            pieces.append(_item_text(item, room - used, until, depth + 1))
        used += len(pieces[-1]) + 2
    if len(pieces) < length:
        pieces.append("…")
    elif base is tuple and length == 1:
        pieces.append("")
    return brackets[0] + ", ".join(pieces).rstrip(" " if pieces[-1:] == [""] else "") + brackets[1]


def _item_text(obj: Any, room: int, until: float, depth: int) -> str:
    text: str | None = _attempt(None, _text, obj, room, until, depth)
    return f"<{_type_name(type(obj))} that cannot be shown>" if text is None else text


def _table_text(obj: Any, library: str, room: int, until: float, depth: int) -> str:
    """One line, where pandas would take milliseconds to lay out many."""
    rows = int(obj.shape[0])
    name = _qualname(type(obj))
    if library in ("frame", "polars_frame"):
        columns = list(obj.columns[:PREVIEW_ITEMS])
        texts = [_attempt("?", str, column)[:room] for column in columns]
        more = ", …" if len(obj.columns) > len(columns) else ""
        return f"{name}, {rows} x {len(obj.columns)}: {', '.join(texts)}{more}"
    values = obj.head(PREVIEW_ITEMS) if library != "index" else obj[:PREVIEW_ITEMS]
    text = _text(values.to_list(), room, until, depth + 1)
    return f"{name}, {rows}: {text[:-1]}, …]" if rows > PREVIEW_ITEMS else f"{name}, {rows}: {text}"


def _array_text(obj: Any) -> str:
    numpy = sys.modules["numpy"]
    if obj.ndim > 3:
        return f"{_qualname(type(obj))} of shape {obj.shape}, {obj.dtype}"
    edge = 3 if obj.ndim < 3 else 1
    text = numpy.array2string(obj, threshold=8, edgeitems=edge, separator=", ", max_line_width=PREVIEW_CHARS * 10)
    return f"array({text}, dtype={obj.dtype})"


def _with_value(name: str, obj: Any, offset: int, limit: int) -> dict[str, Any]:
    result = _described(name, obj, time.monotonic() + REPR_TIME_S)
    writer, value, total = _attempt((_Writer(), NO_JSON, None), _page, obj, offset, offset + limit)
    if value is NO_JSON:
        value, writer.exact = None, False
    result.update(value=value, total=total, offset=offset, limit=limit)
    result.update(exact=writer.exact, truncated=writer.truncated)
    if _is(type(obj), bytes) or type(obj) is bytearray:
        result["encoding"] = "base64"
    return result


def _page(obj: Any, start: int, end: int) -> tuple[_Writer, Any, int | None]:
    writer = _Writer()
    return writer, *writer.page(obj, start, end)


class _Writer:
    """Turns objects into strict JSON until there is no room left."""

    def __init__(self) -> None:
        self.room = VALUE_CHARS
        self.exact = True
        self.truncated = False
        self._until = time.monotonic() + REPR_TIME_S
        self._open: list[Any] = []
        """The containers we are inside of."""

    def page(self, obj: Any, start: int, end: int) -> tuple[Any, int | None]:
        """The part of the value that was asked for, and how long the whole is."""
        cls = type(obj)
        library = _library_type(cls)
        if library in ("frame", "polars_frame"):
            return self._table(obj, library, start, end), int(obj.shape[0])
        if library in ("series", "polars_series"):
            table = self._table(obj.to_frame(), library.replace("series", "frame"), start, end)
            return {**table, "columns": [self._value(obj.name)]}, int(obj.shape[0])
        if library == "index":
            return self._list(obj[start:end].to_list()), int(obj.shape[0])
        if library == "array" and obj.ndim:
            return self._array(obj[start:end]), int(obj.shape[0])
        base = _container(cls)
        if base is None:
            return self._scalar(obj, library), None
        self._open.append(obj)
        if base in (list, tuple, range):
            part = base.__getitem__(obj, slice(start, end))
        else:
            part = _attempt((), _some_items, base, obj, start, end)
        return self._object(part) if _is(base, dict) else self._list(part), base.__len__(obj)

    def _value(self, obj: Any) -> Any:
        """An object inside another: what is not JSON becomes its preview."""
        cls = type(obj)
        if obj is None or cls is bool or cls is int or cls is float or cls is str:
            return self._scalar(obj, "")
        base = _container(cls)
        library = "" if base else _library_type(cls)
        if base is None and library != "array":
            found = _attempt(NO_JSON, self._scalar, obj, library)
            if type(found) is str and _is(cls, bytes):
                return {"base64": found}
            return self._as_text(obj) if found is NO_JSON else found
        if len(self._open) > VALUE_DEPTH or any(outer is obj for outer in self._open):
            return self._as_text(obj)
        self._open.append(obj)
        try:
            if library:
                return self._array(obj)
            items = _attempt((), _some_items, base, obj, 0, max(self.room, 0) + 1)
            return self._object(items) if _is(base, dict) else self._list(items)
        finally:
            self._open.pop()

    def _list(self, items: Iterable[Any]) -> list[Any]:
        result = []
        for item in items:
            if not self._spend(2):
                break
            result.append(self._value(item))
        return result

    def _object(self, items: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
        result = {}
        for key, item in items:
            if not self._spend(4):
                break
            name = self._string(str.__str__(key)) if _is(type(key), str) else self._as_text(key)
            result[name] = self._value(item)
        return result

    def _array(self, array: Any) -> Any:
        if not array.ndim:
            one = array[()]
            return self._as_text(array) if _library_type(type(one)) == "array" else self._value(one)
        if array.ndim == 1 and array.dtype.kind in "biuf" and array.dtype.itemsize <= 8:
            return self._list(array[: max(self.room, 0) + 1].tolist())
        return self._list(array)

    def _table(self, frame: Any, library: str, start: int, end: int) -> dict[str, Any]:
        width = min(len(frame.columns), MOST_COLUMNS)
        most_rows = MOST_CELLS // max(width, 1)
        self.truncated |= len(frame.columns) > width or min(end, frame.shape[0]) - start > most_rows
        end = min(end, start + most_rows)
        if library == "frame":
            part = frame.iloc[start:end, :width]
            labels, index, rows = part.columns.to_list(), part.index.to_list(), part.itertuples(index=False, name=None)
        else:
            part = frame[start:end, :width]
            labels, index, rows = part.columns, range(start, start + part.shape[0]), part.iter_rows()
        columns = self._list(labels)
        written = []
        for row in rows:
            if not self._spend(2):
                break
            written.append(self._list(row))
        return {"columns": columns, "index": self._list(index[: len(written)]), "rows": written}

    def _scalar(self, obj: Any, library: str) -> Any:
        """What JSON has a word for, else NO_JSON."""
        cls = type(obj)
        if obj is None or cls is bool:
            self._spend(4)
            return obj
        if _is(cls, str):
            return self._string(str.__str__(obj))
        if _is(cls, int):
            return self._number(int.__int__(obj))
        if _is(cls, float):
            return self._number(float.__float__(obj))
        if _is(cls, bytes) or cls is bytearray:
            return self._base64(obj)
        if _is(cls, datetime.date) or _is(cls, datetime.time):  # a datetime is a date
            return self._moment(obj.isoformat())
        if library == "missing":
            return self._lost()
        if library == "array" and not obj.ndim:
            return self._array(obj)
        if library == "scalar":
            if obj.dtype.kind in "biu":
                return self._scalar(obj.item(), "")
            if obj.dtype.kind in "fM":
                return self._number(float(obj)) if obj.dtype.kind == "f" else self._moment(str(obj))
        return NO_JSON

    def _number(self, number: float) -> int | float | None:
        fits = number.bit_length() <= LONGEST_NUMBER_BITS if type(number) is int else math.isfinite(number)
        self._spend(number.bit_length() // 3 if type(number) is int else 16)
        return number if fits else self._lost()

    def _moment(self, text: str) -> str | None:
        return self._lost() if text == "NaT" else self._string(str.__str__(text))

    def _base64(self, data: bytes) -> str:
        most = max(self.room, 0) * 3 // 4
        self.truncated |= len(data) > most
        text = base64.b64encode(data[:most]).decode()
        self._spend(len(text))
        return text

    def _string(self, text: str) -> str:
        clean = text if text.isascii() else _clean(text)
        self.exact &= clean == text
        room = max(self.room, 0)
        short = clean[:room]
        length = len(json.dumps(short))
        if length > room:
            short = short[: len(short) * room // length]
        self.truncated |= len(short) < len(clean)
        self._spend(min(length, room))
        return short

    def _as_text(self, obj: Any) -> str:
        self.exact = False
        return self._string(_preview(obj, self._until))

    def _lost(self) -> Any:
        self.exact = False
        return None

    def _spend(self, chars: int) -> bool:
        self.room -= chars
        self.truncated |= self.room < 0
        return self.room >= 0
