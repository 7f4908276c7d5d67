"""sys.stdout and sys.stderr of a kernel."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import contextvars
import fcntl
import os
import sys
import termios
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from io import StringIO
from typing import Any, ClassVar

from ipykernel.iostream import OutStream

from .budgets import budgets
from .timers import Timer
from .undisturbed import undisturbed

_PIECE = 256 * 1024  # characters of one stream message
_READ_BYTES = 64 * 1024
_DRAIN_S = 0.5


class BoundedStream(OutStream):
    """sys.stdout and sys.stderr, in pieces, within the run's budget, in the order written."""

    _unsent = 0  # characters since the last flush
    _room = 0  # how many more may come before this must be looked at again
    _granted = 0  # what `_room` was at first
    _parent: Any = None  # the run that `_room` is for
    _quick: StringIO | None = None  # the buffer that was written to last,
    _quick_parent: Any = None  # and whose output is in it
    _sending = False  # whether a thread is about to send what was written
    _timer: Timer | None = None
    take_down: Callable[[str], None] = staticmethod(lambda text: None)  # what is sent, for the history of the cell
    _fid: int
    _all: ClassVar[weakref.WeakSet[BoundedStream]] = weakref.WeakSet()
    _forked = False  # whether this is a child that the session has forked
    _last_written: BoundedStream | None = None
    _settling = threading.RLock()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "watchfd": False})
        self._relaying = threading.Lock()
        BoundedStream._all.add(self)

    def write(self, string: str) -> int | None:  # type: ignore[override]
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        length = len(string)
        # Most writes are short and follow each other: they take this way, which is nearly as fast as the stock one.
        parent = self.parent_header
        if length <= self._room and parent is self._parent and BoundedStream._last_written is self:
            self._room -= length
            self._unsent += length
            with self._buffer_lock:
                if self._quick is not None and self._quick_parent is parent:
                    self._quick.write(string)
                else:
                    super().write(string)
                    if self.echo is None:
                        self._quick, self._quick_parent = self._buffers[frozenset(parent.items())], parent
            if not self._flush_pending:
                self._schedule_flush()
        elif BoundedStream._forked:
            _write_whole(self._original_stdstream_fd, string)  # the parent relays what comes from there
        else:
            with BoundedStream._settling:
                self._write_pieces(string)
        return length

    def _write_pieces(self, string: str) -> None:
        self._flush_other()
        parent = self.parent_header
        at = 0
        while at < len(string):
            if self._unsent >= _PIECE:
                self.flush()
            room = self._settle(parent)
            if room <= 0:
                budget = budgets.of(parent)
                if budget is None or budget.left > 0:
                    continue  # another thread was faster
                budget.cut = True
                return  # the run has published all that it may
            piece = string[at : at + room]
            self._room -= len(piece)
            self._unsent += len(piece)
            super().write(piece)
            at += len(piece)

    def _settle(self, parent: Any) -> int:
        """Charge what was written to its run, and find out how much may come."""
        if self._parent is not None and (before := budgets.of(self._parent)) is not None:
            before.left -= self._granted - self._room
        budget = budgets.of(parent)
        piece = max(_PIECE - self._unsent, 0)
        self._parent = parent
        self._granted = self._room = room = piece if budget is None else min(max(budget.left, 0), piece)
        return room

    def _schedule_flush(self) -> None:
        if not self._flush_pending and BoundedStream._timer is not None:
            self._flush_pending = True
            BoundedStream._timer.start()

    def _rotate_buffers(self) -> Any:
        with self._buffer_lock:
            self._quick = self._quick_parent = None
            return super()._rotate_buffers()

    def _flush_buffers(self) -> Iterator[Any]:
        for parent, text in super()._flush_buffers():
            self.take_down(text)
            yield parent, text

    def flush(self) -> None:
        self._unsent = 0
        if self._buffers or self._sending:
            with undisturbed(), self._buffer_lock:
                self._sending = True
                try:
                    self._flush()
                finally:
                    self._sending = False

    def _flush_other(self) -> None:
        other = BoundedStream._last_written
        BoundedStream._last_written = self
        if other is not None and other is not self and other._unsent:
            other.flush()

    def _leave(self) -> None:
        self._buffer_lock = threading.RLock()
        self._relaying = threading.Lock()
        self._rotate_buffers()
        self._room = self._unsent = 0
        self._sending = self._flush_pending = False

    # What is written to the file descriptor, past Python: by C code, and by processes that were started

    def capture(self, loop: asyncio.AbstractEventLoop) -> None:
        """Relay that from now on; by this loop, which does not run yet, unless somebody waits for it."""
        own: Any = getattr(sys, f"__{self.name}__")
        fd = self._original_stdstream_fd = own.fileno()
        self._original_stdstream_copy = os.dup(fd)
        self._fid, pipe = os.pipe()
        os.dup2(pipe, fd)
        os.close(pipe)
        os.set_blocking(self._fid, False)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._should_watch = True
        contextvars.Context().run(loop.add_reader, self._fid, self._relay)  # it is for whatever cell runs then

    def _relay(self) -> None:
        with self._relaying, contextlib.suppress(OSError):
            self.write(self._decoder.decode(os.read(self._fid, _READ_BYTES)))

    def drain(self) -> None:
        """Relay what was written to the file descriptor until now, unless more and more comes."""
        if self._should_watch and not BoundedStream._forked and self._waiting_bytes():
            until = time.monotonic() + _DRAIN_S
            while self._waiting_bytes() and time.monotonic() < until:
                self._relay()
        elif self._should_watch and not BoundedStream._forked:
            with self._relaying:  # by another thread
                pass

    def _waiting_bytes(self) -> int:
        return int.from_bytes(fcntl.ioctl(self._fid, termios.FIONREAD, bytes(4)), sys.byteorder)

    def close(self) -> None:
        if self._should_watch:
            self._relay()
            self._should_watch = False
            os.dup2(self._original_stdstream_copy, self._original_stdstream_fd)
        self.pub_thread = None


def capture(streams: list[BoundedStream], loop: asyncio.AbstractEventLoop) -> None:
    """Send in time what is written to these, and what is written to their file descriptors."""

    def flush() -> None:
        for stream in streams:
            stream.flush()

    BoundedStream._forked = False
    BoundedStream._timer = Timer(loop, OutStream.flush_interval, flush)
    for stream in streams:
        stream.capture(loop)


def _write_whole(fd: int, text: str) -> None:
    view = memoryview(text.encode(errors="replace"))
    while view:
        view = view[os.write(fd, view) :]


def _leave() -> None:
    """In a child that was forked: what was written before is the parent's to send."""
    BoundedStream._settling = threading.RLock()
    BoundedStream._forked = True
    BoundedStream._last_written = BoundedStream._timer = None
    for stream in BoundedStream._all:
        stream._leave()


os.register_at_fork(after_in_child=_leave)
