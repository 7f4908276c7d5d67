"""Reads roots back, one after the other, with one memo. What fails is left out and told; the rest does not notice."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from .checkpoint_lost import Lost, NotCarriedOver, described
from .checkpoint_pickler import reason_of

_PYTHON: Any = pickle._Unpickler


class _BufferCursor:
    """The large buffers, from the one that a root begins with."""

    def __init__(self, buffers: list[memoryview]) -> None:
        self._buffers = buffers
        self.position = 0

    def __iter__(self) -> Iterator[memoryview]:
        return self

    def __next__(self) -> memoryview:
        if self.position >= len(self._buffers):
            raise StopIteration
        self.position += 1
        return self._buffers[self.position - 1]


class _Source:
    """What an unpickler reads from: one segment at a time."""

    def __init__(self) -> None:
        self.data = io.BytesIO()

    def read(self, size: int = -1) -> bytes:
        return self.data.read(size)

    def readline(self) -> bytes:
        return self.data.readline()

    def readinto(self, buffer: Any) -> int:
        return self.data.readinto(buffer)


class _Fast(pickle.Unpickler):
    seeds: Any = ()

    def persistent_load(self, at: Any) -> Any:
        return self.seeds[at]


class _Tolerant(_PYTHON):  # type: ignore[misc]
    """Goes on where something fails, with a `Lost` in its place, and so keeps the count of the memo."""

    dispatch: ClassVar[dict[int, Any]] = dict(_PYTHON.dispatch)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lost: list[Lost] = []

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except Exception as error:
            return self._lost(f"{module}.{name}", reason_of(error))

    def _lost(self, kind: str, reason: str) -> Lost:
        lost = Lost(kind, reason)
        self.lost.append(lost)
        return lost

    def _make(self, make: Any, args: Any, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except Exception as error:
            for part in (make, *args):
                if type(part) is Lost:
                    return self._lost(*described(part))
            made = next((arg for arg in args if isinstance(arg, type)), make)
            return self._lost(getattr(made, "__qualname__", "object"), reason_of(error))

    def _spoil(self, made: Any, error: Exception) -> Lost:
        """An object that could not be completed is not handed out."""
        if isinstance(error, NotCarriedOver):
            lost = self._lost(type(made).__qualname__, "a part of it was not carried over")
        else:
            lost = self._lost(type(made).__qualname__, reason_of(error))
        for at, value in self.memo.items():
            if value is made:
                self.memo[at] = lost
        self.stack[:] = [lost if value is made else value for value in self.stack]
        return lost

    def load_reduce(self) -> None:
        args = self.stack.pop()
        make = self.stack[-1]
        if getattr(make, "__name__", "")[:5] != "fill_":
            self.stack[-1] = self._make(make, args, lambda: make(*args))
        elif type(args[0]) is not Lost:
            try:
                make(*args)
            except Exception as error:
                self._spoil(args[0], error)

    dispatch[pickle.REDUCE[0]] = load_reduce

    def load_newobj(self) -> None:
        args = self.stack.pop()
        cls = self.stack[-1]
        self.stack[-1] = self._make(cls, (cls,), lambda: cls.__new__(cls, *args))

    dispatch[pickle.NEWOBJ[0]] = load_newobj

    def load_newobj_ex(self) -> None:
        kwargs, args = self.stack.pop(), self.stack.pop()
        cls = self.stack[-1]
        self.stack[-1] = self._make(cls, (cls,), lambda: cls.__new__(cls, *args, **kwargs))

    dispatch[pickle.NEWOBJ_EX[0]] = load_newobj_ex

    def load_build(self) -> None:
        made = self.stack[-2]
        if type(made) is Lost:
            self.stack.pop()
            return
        depth = len(self.stack) - 1
        try:
            super().load_build()
        except Exception as error:
            del self.stack[depth:]
            self._spoil(made, error)

    dispatch[pickle.BUILD[0]] = load_build

    def _fill(self, fill: Callable[[Any], None]) -> None:
        made = self.stack[-1]
        if type(made) is Lost:
            return
        try:
            fill(made)
        except Exception as error:
            self._spoil(made, error)

    def load_append(self) -> None:
        value = self.stack.pop()
        self._fill(lambda made: made.append(value))

    dispatch[pickle.APPEND[0]] = load_append

    def load_appends(self) -> None:
        items = self.pop_mark()
        self._fill(lambda made: made.extend(items))

    dispatch[pickle.APPENDS[0]] = load_appends

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill(lambda made: made.__setitem__(key, value))

    dispatch[pickle.SETITEM[0]] = load_setitem

    def load_setitems(self) -> None:
        items = self.pop_mark()

        def fill(made: Any) -> None:
            for at in range(0, len(items), 2):
                made[items[at]] = items[at + 1]

        self._fill(fill)

    dispatch[pickle.SETITEMS[0]] = load_setitems

    def load_additems(self) -> None:
        items = self.pop_mark()
        self._fill(lambda made: made.update(items))

    dispatch[pickle.ADDITEMS[0]] = load_additems

    def load_frozenset(self) -> None:
        items = self.pop_mark()
        self.append(self._make(frozenset, (), lambda: frozenset(items)))

    dispatch[pickle.FROZENSET[0]] = load_frozenset


class RootReader:
    """Reads the roots of a checkpoint in the order in which they were written."""

    def __init__(self, segments: memoryview, buffers: list[memoryview], seeds: list[Any]) -> None:
        self._segments = segments
        self._cursor = _BufferCursor(buffers)
        self._source = _Source()
        self._seeds = seeds
        self._last: Any = None
        self._fast = self._primed(seeds)

    def read(self, start: int, end: int, first_buffer: int) -> tuple[Any, list[Lost]]:
        """The value of a root, and what was lost of it only now."""
        try:
            root = self._load(self._fast, start, end, first_buffer)
            lost: list[Lost] = []
        except Exception:
            memo = self._fast.memo.copy()
            first = len(self._seeds)
            if self._last is not None:
                first = 1 + max(at for at, value in memo.items() if value is self._last)
            tolerant = _Tolerant(self._source, buffers=self._cursor)
            tolerant.memo = {at: value for at, value in memo.items() if at < first}
            root = self._load(tolerant, start, end, first_buffer)
            lost = tolerant.lost
            self._fast = self._primed([tolerant.memo[at] for at in range(len(tolerant.memo))])
        self._last = root
        return root[0], lost

    def _load(self, unpickler: Any, start: int, end: int, first_buffer: int) -> Any:
        self._source.data = io.BytesIO(self._segments[start:end])
        self._cursor.position = first_buffer
        return unpickler.load()

    def _primed(self, seeds: list[Any]) -> _Fast:
        """An unpickler that has these objects in its memo already."""
        unpickler = _Fast(self._source, buffers=self._cursor)
        unpickler.seeds = seeds
        numbers = (
            b"J" + at.to_bytes(4, "little") + pickle.BINPERSID + pickle.MEMOIZE + pickle.POP for at in range(len(seeds))
        )
        self._source.data = io.BytesIO(pickle.PROTO + b"\x05" + b"".join(numbers) + pickle.NONE + pickle.STOP)
        unpickler.load()
        unpickler.seeds = ()
        return unpickler
