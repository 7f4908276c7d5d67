"""Sends what a kernel publishes, from whatever thread has something to say: no thread of its own, and no hop to it."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import zmq
from ipykernel.iostream import BackgroundSocket, IOPubThread

_send = zmq.backend.Socket.send


def deliver(socket: Any, frames: Sequence[Any], copy: bool = True) -> None:
    """Send all frames of a message. No signal handler comes between two of them, and raises: all of it runs in C."""
    flags = itertools.chain(itertools.repeat(zmq.SNDMORE, len(frames) - 1), (0,))
    deque(map(partial(_send, socket), frames, flags, itertools.repeat(copy)), maxlen=0)


class Publisher(IOPubThread):
    """In place of ipykernel's thread. It is built without a socket; until it has one nothing is sent."""

    def __init__(self, session: Any) -> None:
        self.socket: Any = None
        self.session = session
        self.thread: Any = None
        self.io_loop: Any = None
        self.background_socket = BackgroundSocket(self)
        self._sending = False
        self._waiting: deque[tuple[Sequence[Any], bool]] = deque()
        self._stopped = False
        self._pipe_flag = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._renew()
        os.register_at_fork(after_in_child=self._leave)

    def connect(self, socket: Any, io_loop: Any) -> None:
        """Send to this XPUB socket; who subscribes to it is welcomed by the thread of this loop, not running yet."""
        self.socket, self.io_loop, self._loop = socket, io_loop, io_loop.asyncio_loop
        self._renew()
        assert self._loop is not None
        self._loop.add_reader(socket.FD, self._hear)
        self._loop.call_soon(self._hear)

    def start(self) -> None:
        """There is nothing to start."""

    def stop(self) -> None:
        self._stopped = True

    def schedule(self, f: Callable[[], Any]) -> None:
        f()

    def send_multipart(self, msg: Sequence[Any], flags: int = 0, copy: bool = True, track: bool = False) -> None:
        with self._lock:
            self._waiting.append((msg, copy))
            if self._sending:  # a finalizer says something in the middle of a message: it goes after that
                return
            self._sending = True
            try:
                while self._waiting:
                    frames, copy = self._waiting.popleft()
                    if self.socket is not None:
                        deliver(self.socket, frames, copy)
                if self.socket is not None and self.socket.EVENTS & zmq.POLLIN:  # its file descriptor won't tell again
                    assert self._loop is not None
                    self._loop.call_soon_threadsafe(self._hear)
            except zmq.ZMQError as error:
                if error.errno not in (zmq.ENOTSOCK, zmq.ETERM):  # it is being shut down
                    raise
            finally:
                self._sending = False

    def _hear(self) -> None:
        with self._lock:
            while self.socket is not None and not self.socket.closed and self.socket.EVENTS & zmq.POLLIN:
                self._handle_subscription(self.socket.recv_multipart(zmq.NOBLOCK))

    def _renew(self) -> None:
        self._lock = threading.RLock()
        self._sending = False
        self._waiting.clear()
        self._master_pid = os.getpid()

    def _leave(self) -> None:
        """In a child of this process: the socket is the parent's, and must not be touched."""
        self.socket = None
        self._renew()
