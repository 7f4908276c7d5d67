"""The application around a kernel. Everything that can be made before a fork is made by `build`; the rest by `connect`.

It has two threads: the main one runs cells, and that of the control channel does all that must go on meanwhile.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import stat
import sys
from collections.abc import Callable
from io import FileIO, TextIOWrapper
from typing import TYPE_CHECKING, Any

import zmq
from ipykernel.control import ControlThread
from ipykernel.kernelapp import IPKernelApp
from IPython.core.application import BaseIPythonApplication
from jupyter_client.session import Session
from traitlets import default

from .duplicate import Reborn, is_own_socket, open_fds
from .forks import own_pipes
from .heartbeat import answer_when_asked
from .history import keep_history
from .kernel import GatewayKernel
from .publisher import Publisher
from .rebirth import be_reborn, say_ready
from .session import BoundedSession
from .streams import BoundedStream, capture

_LINGER_MS = 1000


class GatewayKernelApp(IPKernelApp):
    hb_socket: Any = None
    on_bound: Callable[[], None] = staticmethod(lambda: None)  # called once others can connect
    if TYPE_CHECKING:
        io_loop: Any
    own_fds: set[int]  # which are not the session's
    abandoned_tasks: set[Any]  # and other things of the kernel that this one is a copy of: never closed or collected
    started_with: dict[str, str]  # the environment of the process in which it was built,
    pages: list[tuple[int, int]]  # of memory, that all its forks write to
    added_to_environ: dict[str, str]  # and what the interpreter and its libraries put there themselves

    @default("session")
    def _bounded_session(self) -> Session:
        return BoundedSession(parent=self)

    @default("outstream_class")
    def _bounded_stream(self) -> str:
        return f"{BoundedStream.__module__}.BoundedStream"

    def build(self, argv: list[str] | None = None) -> None:
        """All of a kernel but its connection and what it is configured to run at its start."""
        self.config.HistoryManager.enabled = False  # its file would be shared by every session of this user
        self.config.IPythonKernel._execute_sleep = 0.0
        self.kernel_class = GatewayKernel
        self.abandoned_tasks = set()
        self._session_fds: set[int] = set()
        self._log_stream: Any = None
        self._abandoned: list[Any] = []
        BaseIPythonApplication.initialize(self, argv)
        self.init_pdb()
        self.init_blackhole()
        self.configure_tornado_logger()
        self.iopub_thread = Publisher(self.session)
        self.iopub_socket = self.iopub_thread.background_socket
        self.init_io()
        self.init_kernel()
        self.init_path()
        self.init_shell()
        self.init_gui_pylab()

    def init_kernel(self) -> None:
        self.kernel = kernel = self.kernel_class.instance(  # type: ignore[attr-defined]
            parent=self,
            session=self.session,
            iopub_thread=self.iopub_thread,
            iopub_socket=self.iopub_socket,
            log=self.log,
            profile_dir=self.profile_dir,
            user_ns=self.user_ns,
        )
        self.displayhook.get_execution_count = lambda: kernel.execution_count
        keep_history(kernel.shell)

    def connect(self) -> None:
        """Open the sockets that the connection file names; nothing is said before `start`."""
        self.init_signal()
        asyncio.set_event_loop(asyncio.new_event_loop())
        self._open_sockets()

    def _open_sockets(self) -> None:
        self.context = zmq.Context()
        self.shell_socket, self.stdin_socket, self.control_socket, self.hb_socket = (
            self._bound(zmq.ROUTER, name) for name in ("shell", "stdin", "control", "hb")
        )
        iopub = self._bound(zmq.XPUB, "iopub")
        self.on_bound()
        self.control_thread = ControlThread(daemon=True)
        loop = self.control_thread.io_loop.asyncio_loop  # type: ignore[attr-defined]
        self.iopub_thread.connect(iopub, self.control_thread.io_loop)
        answer_when_asked(self.hb_socket, loop)
        if self.capture_fd_output and isinstance(sys.stdout, BoundedStream) and isinstance(sys.stderr, BoundedStream):
            capture([sys.stdout, sys.stderr], loop)
            self._log_to(sys.stderr._original_stdstream_copy)
        self.kernel.connect(self.shell_socket, self.control_socket, self.stdin_socket, self.control_thread)
        self._ports = {name: getattr(self, f"{name}_port") for name in ("shell", "iopub", "stdin", "hb", "control")}
        self.kernel.record_ports({f"{name}_port": port for name, port in self._ports.items()})
        self.own_fds = set(open_fds()) - self._session_fds

    def _bound(self, kind: int, name: str) -> Any:
        assert self.context is not None
        socket = self.context.socket(kind)
        socket.linger = _LINGER_MS
        if kind == zmq.ROUTER:
            socket.router_handover = 1  # ipython/ipykernel#270
        else:
            socket.sndhwm = 0  # what a run may publish is bounded by its budget; nothing of it may be dropped
        self.apply_curve(socket, "server")
        setattr(self, f"{name}_port", self._bind_socket(socket, getattr(self, f"{name}_port")))
        return socket

    def apply_curve(self, socket: Any, side: str) -> None:
        """Encrypt, if the connection says so."""
        getattr(self, f"_apply_curve_{side}_options", lambda _: None)(socket)

    def excepthook(self, etype: Any, evalue: Any, tb: Any) -> None:
        if isinstance(sys.stderr, BoundedStream) and sys.stderr._should_watch:  # which nobody may read any more
            os.dup2(sys.stderr._original_stdstream_copy, sys.stderr._original_stdstream_fd)
        super().excepthook(etype, evalue, tb)

    def _log_to(self, fd: int) -> None:
        for handler in self.log.handlers:
            stream = getattr(handler, "stream", None)
            if isinstance(handler, logging.StreamHandler) and stream in (sys.__stderr__, self._log_stream):
                handler.stream = TextIOWrapper(FileIO(fd, "w", closefd=False), write_through=True)
                self._log_stream = handler.stream

    def start(self) -> None:
        """Serve until it is shut down; in a copy of this process too, once it has become another session's."""
        if self.poller is not None:
            self.poller.start()
        reborn: Reborn | None = None
        while True:
            self.kernel.start()
            self.control_thread.start()
            self.io_loop = self.kernel.io_loop
            if reborn is not None:
                self.own_fds.discard(reborn.connection.fileno())
                say_ready(reborn)
            try:
                self.io_loop.start()
            except KeyboardInterrupt:
                pass
            except Reborn as copy:
                reborn = copy
                be_reborn(self, copy, sys.argv[0])
                continue
            return

    def abandon_connection(self) -> None:
        """In a copy of this process: leave alone what is the other one's, but hold none of its sockets open."""
        kernel = self.kernel
        self._session_fds = set()
        for fd in open_fds():
            kind = os.fstat(fd).st_mode
            if fd in self.own_fds:
                ours = fd > 2 and not stat.S_ISREG(kind) and not stat.S_ISCHR(kind)
            else:
                ours = stat.S_ISSOCK(kind) and is_own_socket(self, fd)
                if not ours and fd not in own_pipes:
                    self._session_fds.add(fd)
            if ours or fd in own_pipes:
                os.close(fd)
        own_pipes.clear()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, BoundedStream) and stream._should_watch:
                os.dup2(stream._original_stdstream_copy, stream._original_stdstream_fd)
                os.close(stream._original_stdstream_copy)  # the other one's log
                stream._original_stdstream_copy = stream._original_stdstream_fd
        tasks = kernel.shell_channel_thread.tasks
        self.abandoned_tasks.update(tasks)
        self._abandoned.append(
            (self.context, self.control_thread, kernel.control_stream, kernel.shell_channel_thread, tasks,
             kernel._answering, self.shell_socket, self.stdin_socket, self.control_socket, self.hb_socket)
        )  # fmt: skip

    def reconnect(self, identity: dict[str, Any]) -> None:
        """In such a copy: all that a connection needs anew, around the same loop, kernel and streams."""
        self.connection_file = identity["connection_file"]
        self.on_bound = _nothing
        self.load_connection_info(identity["connection"])
        self._renew_loop()
        self._open_sockets()

    def _renew_loop(self) -> None:
        loop: Any = self.io_loop.asyncio_loop
        self._abandoned.append((loop._selector, loop._ssock, loop._csock, list(loop._ready)))
        loop._selector = type(loop._selector)()
        loop._ready.clear()
        loop._scheduled.clear()
        loop._make_self_pipe()
        asyncio.set_event_loop(loop)  # Python 3.12 has forgotten it
        self.kernel.renew()

    def initialize(self, argv: list[str] | None = None) -> None:
        """An ordinary start, from a connection file."""
        self.build(argv)
        self.init_connection_file()
        self.init_poller()
        self.connect()
        self.write_connection_file()
        atexit.register(self.close)
        self.init_extensions()
        self.init_code()
        sys.stdout.flush()
        sys.stderr.flush()

    def close(self) -> None:
        """Send what is still to be sent, and close everything."""
        sys.stdout.flush()
        sys.stderr.flush()
        streams = [it for it in (sys.stdout, sys.stderr) if isinstance(it, BoundedStream)]
        self.reset_io()
        self.iopub_thread.stop()
        if self.control_thread is not None and self.control_thread.is_alive():
            self.control_thread.stop()
            self.control_thread.join(_LINGER_MS / 1000)
        for stream in streams:
            stream.close()
        kernel = self.kernel
        if kernel.shell_channel_thread is not None:
            kernel.shell_channel_thread.close()
        iopub, self.iopub_thread.socket = self.iopub_thread.socket, None
        for socket in (
            iopub, self.shell_socket, self.control_socket, self.stdin_socket, self.hb_socket,
            kernel.debug_shell_socket, getattr(kernel.debugpy_stream, "socket", None),
        ):  # fmt: skip
            if socket is not None and not socket.closed and (socket is not self.hb_socket or not _echoes()):
                socket.close()
        assert self.context is not None
        self.context.term()


def _nothing() -> None:
    pass


def _echoes() -> bool:
    import threading

    return any(thread.name == "Heartbeat" for thread in threading.enumerate())
