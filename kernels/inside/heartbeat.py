"""Answers a front end that asks whether the kernel is alive; costs a thread only from the first question on."""

from __future__ import annotations

import contextlib
import errno
import threading
from typing import Any

import zmq


def answer_when_asked(socket: Any, loop: Any) -> None:
    """Called before the loop runs. The thread needs nothing of Python, which a cell may keep to itself for long."""

    def look() -> None:
        if socket.closed:
            loop.remove_reader(fd)
        elif socket.EVENTS & zmq.POLLIN:
            loop.remove_reader(fd)
            threading.Thread(target=_echo, args=(socket,), name="Heartbeat", daemon=True).start()

    fd = socket.FD
    loop.add_reader(fd, look)
    loop.call_soon(look)


def _echo(socket: Any) -> None:
    with contextlib.suppress(zmq.ContextTerminated):
        while True:
            try:
                zmq.device(zmq.QUEUE, socket, socket)
            except zmq.ZMQError as error:
                if error.errno != errno.EINTR:
                    break
    socket.close()
