"""Writes roots one after the other into one file, with one memo, so that what they share is written once.

A root that fails is taken back whole. Something deep inside a root that can't be carried costs only itself.
"""

from __future__ import annotations

import gc
import io
import pickle
import sys
import threading
import zlib
from typing import Any

from .checkpoint_kinds import CannotCarry, class_importable, kind_of
from .checkpoint_lost import Lost
from .checkpoint_rules import Rules

OUT_OF_BAND_BYTES = 64 * 1024
PAGE_BYTES = 4096
_PIECE_BYTES = 64 << 20
_DEEP_STACK_BYTES = 1 << 30  # address space; only what is used of it becomes memory
_DEEP_LIMIT = 400_000
_MOST_SEARCHED = 2_000_000  # objects that are looked through for a part that was lost
_CONTAINERS = (dict, list, tuple, set, frozenset)


class NotWritten(BaseException):
    """A file of the checkpoint can't be written. Not an `Exception`, so that nobody takes it for a root's failure."""


def _write_all(file: io.FileIO, view: memoryview) -> None:
    written = 0
    try:
        while written < view.nbytes:
            written += file.write(view[written : written + _PIECE_BYTES]) or 0
    except OSError as error:
        raise NotWritten(error.strerror or str(error)) from None


class Failed(Exception):
    """Why a root was left out."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind
        self.reason = reason


def reason_of(error: BaseException) -> str:
    """One line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    try:
        text = str(error)
    except BaseException:
        text = ""
    if isinstance(error, CannotCarry):
        return text
    return f"{type(error).__name__}: {text}"[:500] if text else type(error).__name__


class _Pickler(pickle.Pickler):
    def __init__(self, file: Any, rules: Rules, buffers: Buffers) -> None:
        super().__init__(file, 5, buffer_callback=buffers.take)
        self._rules = rules
        self.stopped = False
        self.ready: tuple[Any, Any] | None = None
        """What was found out about a root before it is written."""
        self.lost: list[tuple[Any, str, str]] = []
        """What could not be carried, with its type and the reason."""

    def reducer_override(self, obj: Any) -> Any:
        if self.ready is not None and self.ready[0] is obj:
            (_, recipe), self.ready = self.ready, None
            return recipe
        if self.stopped:
            raise KeyboardInterrupt
        try:
            return self._rules.recipe(obj)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:
            kind, reason = kind_of(obj), reason_of(error)
            self.lost.append((obj, kind, reason))
            return Lost, (kind, reason)


class Buffers:
    """Large buffers, straight from the memory of their objects to the file; each begins on a page."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.end = 0
        self.places: list[tuple[int, int]] = []

    def take(self, buffer: pickle.PickleBuffer) -> bool:
        """As pickle's `buffer_callback`: true for what is to stay in the stream."""
        try:
            view = buffer.raw()
        except BufferError:
            return True
        size = view.nbytes
        if size < OUT_OF_BAND_BYTES:
            return True
        start = -(-self.end // PAGE_BYTES) * PAGE_BYTES
        self._file.seek(start)
        _write_all(self._file, view)
        self.end = start + size
        self.places.append((start, size))
        return False

    def cut(self, count: int) -> None:
        """Take back all but the first of them."""
        del self.places[count:]
        self.end = sum(self.places[-1]) if self.places else 0
        self._file.truncate(self.end)


class _Segments:
    """A file that knows the checksum of what was written since the last `begin`."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.begin(0)

    def begin(self, start: int) -> None:
        self.start = self.end = start
        self.checksum = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        _write_all(self._file, view)
        self.checksum = zlib.crc32(view, self.checksum)
        self.end += view.nbytes
        return view.nbytes

    def take_back(self) -> None:
        self._file.seek(self.start)
        self._file.truncate()
        self.begin(self.start)


class RootWriter:
    """Writes roots, and remembers what of them could not be carried."""

    def __init__(self, segments: io.FileIO, buffers: io.FileIO, rules: Rules, anchors: list[Any]) -> None:
        self._segments = _Segments(segments)
        self.buffers = Buffers(buffers)
        self._rules = rules
        self._pickler = _Pickler(self._segments, rules, self.buffers)
        self._pickler.memo = {id(anchor): (at, anchor) for at, anchor in enumerate(anchors)}
        self._first = len(anchors)
        self._last: tuple[Any, ...] | None = None
        self.lost: dict[int, tuple[Any, str, str]] = {}

    @property
    def end(self) -> int:
        return self._segments.end

    def write(self, value: Any) -> dict[str, Any]:
        """Write one root; what its segment is. Raises `Failed`, and then it was never there."""
        pickler, segments = self._pickler, self._segments
        segments.begin(segments.end)
        first_buffer = len(self.buffers.places)
        pickler.lost, pickler.ready = [], self._looked_at(value)
        root = (value,)
        try:
            try:
                self._dump(root)
            except RecursionError:
                self._take_back(first_buffer)
                self._dump_deep(root)
        except (Exception, RecursionError, SystemExit, GeneratorExit) as error:
            self._take_back(first_buffer)
            raise Failed(kind_of(value), reason_of(error)) from None
        for found in pickler.lost:
            self.lost[id(found[0])] = found
        self._last = root
        own = self.buffers.places[first_buffer:]
        return {
            "start": segments.start,
            "end": segments.end,
            "checksum": segments.checksum,
            "buffers": [first_buffer, len(self.buffers.places)],
            "size": segments.end - segments.start + sum(size for _, size in own),
        }

    def _looked_at(self, value: Any) -> tuple[Any, Any] | None:
        """A root that can't be carried at all is left out, not replaced."""
        if type(value) in _CONTAINERS or value is None or type(value) in (bool, int, float, str, bytes, bytearray):
            return None
        if id(value) in self.lost:
            raise Failed(*self.lost[id(value)][1:])
        try:
            return value, self._rules.recipe(value)
        except (KeyboardInterrupt, MemoryError):
            raise
        except BaseException as error:
            self.lost[id(value)] = (value, kind_of(value), reason_of(error))
            raise Failed(kind_of(value), reason_of(error)) from None

    def _dump(self, root: tuple[Any, ...]) -> None:
        self._pickler.dump(root)

    def _dump_deep(self, root: tuple[Any, ...]) -> None:
        """Write what is nested deeply, on a thread with a stack that is deep enough."""
        failures: list[BaseException] = []

        def work() -> None:
            try:
                self._dump(root)
            except BaseException as error:
                failures.append(error)

        limit, stack_bytes = sys.getrecursionlimit(), threading.stack_size(_DEEP_STACK_BYTES)
        try:
            thread = threading.Thread(target=work, daemon=True)
            sys.setrecursionlimit(max(limit, _DEEP_LIMIT))
            thread.start()
            while thread.is_alive():
                try:
                    thread.join()
                except KeyboardInterrupt as interrupt:
                    self._pickler.stopped = True  # it must be out of the pickler before anybody goes on
                    failures.append(interrupt)
        finally:
            sys.setrecursionlimit(limit)
            threading.stack_size(stack_bytes)
        if failures:
            raise failures[0]

    def _take_back(self, first_buffer: int) -> None:
        """Forget what a failed root has written, in the files and in the memo."""
        self._segments.take_back()
        self.buffers.cut(first_buffer)
        self._pickler.lost, self._pickler.ready = [], None
        memo = self._pickler.memo.copy()
        first = self._first if self._last is None else memo[id(self._last)][0] + 1
        self._pickler.memo = {key: entry for key, entry in memo.items() if entry[0] < first}


def lost_parts(roots: dict[str, Any], lost: dict[int, Any], borders: set[int]) -> dict[str, list[int]] | None:
    """Which roots lead to which lost objects. None if there is too much to search.

    Alias or not: each variable that can reach a lost object is named with it.
    """
    found: dict[str, list[int]] = {}
    left = _MOST_SEARCHED
    for name, root in roots.items():
        seen, waiting = {id(root)}, [root]
        parts: set[int] = set()
        while waiting:
            obj = waiting.pop()
            if id(obj) in lost:
                parts.add(id(obj))
                continue
            left -= 1
            if left < 0:
                return None
            for part in gc.get_referents(obj):
                if id(part) not in seen and id(part) not in borders and type(part) not in (str, int, float, bytes):
                    seen.add(id(part))
                    if not (issubclass(type(part), type) and class_importable(part)):
                        waiting.append(part)
        if parts:
            found[name] = list(parts)
    return found
