"""ZMQ sockets on the event loop: what comes in is handed on as it comes, without a task or future for each message."""

import asyncio
from collections.abc import Callable, Sequence

import zmq

_BREATH = 64  # messages that are handled before other tasks get their turn
_READABLE = int(zmq.POLLIN)  # an operation on the enum costs more than the question


class Socket:
    """A connected socket, read from until it is closed.

    `broke` is told what nobody foresaw; nothing more is read then.
    """

    def __init__(
        self, raw: "zmq.Socket[bytes]", take: Callable[[Sequence[bytes]], None], broke: Callable[[Exception], None]
    ) -> None:
        self._raw = raw
        self._take = take
        self._broke = broke
        self._loop = asyncio.get_running_loop()
        self._fd: int = raw.get(zmq.FD)  # type: ignore[assignment]
        self._soon: asyncio.Handle | None = None
        self._loop.add_reader(self._fd, self._read)
        self._read_soon()

    def send(self, frames: Sequence[bytes]) -> None:
        """Raises `zmq.ZMQError`."""
        self._raw.send_multipart(frames, zmq.NOBLOCK)
        self._read_soon()  # sending may have swallowed the sign that there is something to read

    def close(self) -> None:
        self._stop()
        self._raw.close()

    def _stop(self) -> None:
        self._loop.remove_reader(self._fd)
        if self._soon is not None:
            self._soon.cancel()

    def _read_soon(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_soon(self._read)

    def _read(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        try:
            for _ in range(_BREATH):
                if self._raw.closed or not self._raw.get(zmq.EVENTS) & _READABLE:  # type: ignore[operator]
                    return
                self._take(self._raw.recv_multipart())
        except Exception as error:
            self._stop()
            self._broke(error)
        else:
            self._read_soon()
