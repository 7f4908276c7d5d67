"""The shell channel: read by the main thread, which runs what comes; by a thread of its own once there are subshells.

It stands where ipykernel's kernel expects its shell channel thread, and that one's manager of subshells.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
import uuid
from collections.abc import Sequence
from typing import Any

import zmq
from ipykernel.thread import SHELL_CHANNEL_THREAD_NAME, BaseThread

from .publisher import deliver
from .undisturbed import undisturbed

_DELIMITER = b"<IDS|MSG>"


class Subshell(BaseThread):
    io_loop: Any

    """Runs what is sent to it beside the main thread."""

    def __init__(self, subshell_id: str) -> None:
        super().__init__(name=f"subshell-{subshell_id}", daemon=True)
        self.aborting = False
        self.asyncio_lock = asyncio.Lock()
        self.context = contextvars.copy_context()


class ShellChannel:
    """Takes requests to where they are run, and sends the replies, in the order in which they came."""

    def __init__(self, kernel: Any, socket: Any, loop: asyncio.AbstractEventLoop, context: contextvars.Context) -> None:
        self._kernel = kernel
        self._socket = socket
        self._loop = loop
        self._context = context
        self._lock = threading.RLock()
        self._subshells: dict[str, Subshell] = {}
        self._reader: Any = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self.parent_thread = threading.current_thread()
        self.manager = self
        self.to_stream = self  # for the loops of graphical toolkits, which look for requests themselves
        loop.add_reader(socket.FD, self._read)
        loop.call_soon(self._read)

    # What the main thread does

    def _read(self) -> int:
        count = 0
        with self._lock:
            while not self._socket.closed and self._socket.EVENTS & zmq.POLLIN:
                self._route(self._socket.recv_multipart(zmq.NOBLOCK, copy=False))
                count += 1
        return count

    def _route(self, frames: Sequence[Any]) -> None:
        subshell_id = self._subshell_of(frames)
        if subshell_id is None:
            if threading.current_thread() is self.parent_thread:
                self._begin(frames)
            else:
                self._loop.call_soon_threadsafe(self._begin, frames)
        elif (subshell := self._subshells.get(subshell_id)) is not None:
            subshell.io_loop.add_callback(self._begin, frames, subshell_id)
        else:
            self._kernel.refuse_unknown_subshell(frames, subshell_id)

    def _subshell_of(self, frames: Sequence[Any]) -> str | None:
        header = next((frames[at + 2].bytes for at in range(len(frames) - 2) if frames[at].bytes == _DELIMITER), b"")
        if not self._subshells and b'"subshell_id"' not in header:
            return None
        session, kernel = self._kernel.session, self._kernel
        try:
            _, parts = session.feed_identities(frames, copy=False)
            message = session.deserialize(parts, content=False, copy=False)
            subshell_id = message["header"].get("subshell_id")
            if message["header"]["msg_type"] in ("comm_msg", "comm_close"):
                content = session.unpack(message["content"])
                route = getattr(kernel.comm_manager.get_comm(content.get("comm_id")), "_reply_subshell_for", None)
                subshell_id = route(content.get("data"), subshell_id) if route is not None else subshell_id
        except Exception:  # whoever handles it tells what is wrong with it
            return None
        return subshell_id if isinstance(subshell_id, str) else None

    def _begin(self, frames: Sequence[Any], subshell_id: str | None = None) -> None:
        context = self._context if subshell_id is None else self._subshells[subshell_id].context
        task = asyncio.get_running_loop().create_task(self._kernel.shell_main(subshell_id, frames), context=context)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def send_multipart(self, frames: Sequence[Any], flags: int = 0, copy: bool = True, track: bool = False) -> None:
        with self._lock:
            deliver(self._socket, frames, copy)
            more = self._socket.EVENTS & zmq.POLLIN  # its file descriptor won't tell again
        if more:
            loop = self._loop if self._reader is None else self._reader.io_loop.asyncio_loop
            loop.call_soon_threadsafe(self._read)

    def abort(self, subshell_id: str | None) -> None:
        """Have the kernel know when all that has come until now was refused. Called by the thread that refuses it."""
        with undisturbed():
            self._read()
            if subshell_id is None or subshell_id in self._subshells:
                self._begin([zmq.Frame(b"stop aborting")], subshell_id)

    def flush(self, flag: int = zmq.POLLIN, limit: int | None = None) -> int:
        return self._read()

    def getsockopt(self, option: int) -> Any:
        return self._socket.getsockopt(option)

    # What ipykernel asks of a manager of subshells

    def get_shell_channel_to_subshell_pair(self, subshell_id: str | None) -> ShellChannel:
        return self

    def get_subshell_to_shell_channel_socket(self, subshell_id: str | None) -> ShellChannel:
        return self

    def get_subshell_aborting(self, subshell_id: str) -> bool:
        return self._subshells[subshell_id].aborting

    def set_subshell_aborting(self, subshell_id: str, aborting: bool) -> None:
        self._subshells[subshell_id].aborting = aborting

    def get_subshell_asyncio_lock(self, subshell_id: str) -> asyncio.Lock:
        return self._subshells[subshell_id].asyncio_lock

    def list_subshell(self) -> list[str]:
        return list(self._subshells)

    def subshell_id_from_thread_id(self, thread_id: int) -> str | None:
        if thread_id == self.parent_thread.ident:
            return None
        for subshell_id, subshell in list(self._subshells.items()):
            if subshell.ident == thread_id:
                return subshell_id
        raise RuntimeError(f"Thread id {thread_id!r} does not correspond to a subshell of this kernel")

    # What the control thread asks for

    def create(self) -> str:
        """A new subshell's id. From now on requests are read also while the main thread runs a cell."""
        subshell = Subshell(subshell_id := str(uuid.uuid4()))
        subshell.start()
        with self._lock:
            self._subshells[subshell_id] = subshell
            if self._reader is None:
                self._reader = BaseThread(name=SHELL_CHANNEL_THREAD_NAME, daemon=True)
                loop = self._reader.io_loop.asyncio_loop
                loop.add_reader(self._socket.FD, self._read)
                loop.call_soon(self._read)
                self._reader.start()
                self._loop.call_soon_threadsafe(self._loop.remove_reader, self._socket.FD)
        return subshell_id

    def delete(self, subshell_id: str) -> None:
        """Raises `KeyError`."""
        with self._lock:
            subshell = self._subshells.pop(subshell_id)
        subshell.stop()
        subshell.join()

    def close(self) -> None:
        for thread in [*self._subshells.values(), self._reader]:
            if thread is not None:
                thread.stop()
                thread.join(1)
