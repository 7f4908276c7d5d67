"""An IPython kernel that knows the gateway's own requests, and is made before it has anybody to talk to.

A run may bring environment variables; the control channel answers questions about variables while a cell runs, and
has them saved and brought back between cells; a run may bring what its `input()` reads, and who takes a run over is
told what it asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import zmq
from ipykernel.ipkernel import IPythonKernel
from IPython.core.interactiveshell import InteractiveShell
from zmq.eventloop.zmqstream import ZMQStream

from .between_cells import BetweenCells
from .budgets import budgets
from .cell_threads import keep_threads_with_their_cell
from .duplicate import duplicate
from .session import BoundedSession
from .shell_channel import ShellChannel
from .streams import BoundedStream


class GatewayKernel(IPythonKernel):
    """Has its streams and threads from `connect`; `context` are the context variables that cells see."""

    if TYPE_CHECKING:
        session: Any
        shell: Any
        parent: Any
        io_loop: Any

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._banner = self.shell.banner
        self.control_handlers["session_gateway_request"] = self.session_gateway_request
        self.context = contextvars.copy_context()
        self.between_cells = BetweenCells()
        self._checkpoints: Any = None
        self._last = {"last_run": "", "last_setting": ""}  # ids of requests that may have changed variables, and ended
        self._question: dict[str, Any] = {}  # that a cell waits to be answered
        self._stdin_of, self._stdin = "", deque[str]()  # the run that brought lines for its `input()`, what is left
        self._answering: set[asyncio.Task[None]] = set()
        self._shell_socket: Any = None
        keep_threads_with_their_cell(self.shell)

    @property
    def banner(self) -> Any:  # type: ignore[override]
        """Made once: it has a tip in it that is drawn with the session's own random numbers."""
        return self._banner

    @property
    def kernel_info(self) -> dict[str, Any]:
        return {**super().kernel_info, "session_gateway": 1}

    def connect(self, shell_socket: Any, control_socket: Any, stdin_socket: Any, control_thread: Any) -> None:
        """Called on the main thread, before its loop runs and the control thread does."""
        self.stdin_socket = stdin_socket
        self.control_thread = control_thread
        self.control_stream = ZMQStream(control_socket, control_thread.io_loop)
        self.debugpy_stream = self.debug_shell_socket = None
        self._main_asyncio_lock = asyncio.Lock()
        self._shell_socket = shell_socket

    def start(self) -> None:
        """Like ipykernel's, but for the debugger, which is made ready by its first request."""
        self.shell.exit_now = False
        self.shell.keepkernel_on_exit = True  # `exit()` ends a cell: else all variables are gone a moment later
        self.shell_channel_thread = ShellChannel(
            self, self._shell_socket, asyncio.get_event_loop_policy().get_event_loop(), self.context
        )
        super(IPythonKernel, self).start()
        self.between_cells.begin(self.io_loop, self.context)

    async def dispatch_shell(self, *args: Any, **kwargs: Any) -> None:
        with self.between_cells.request():
            await super().dispatch_shell(*args, **kwargs)

    async def execute_request(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        wishes = parent.get("metadata", {}).get("session_gateway", {})
        if "output_limit" in wishes:
            budgets.open(parent["header"]["msg_id"], wishes["output_limit"])
        if "stdin" in wishes:
            self._stdin_of, self._stdin = parent["header"]["msg_id"], deque(wishes["stdin"])
        env = wishes.get("env", {})
        before = {name: os.environ.get(name) for name in env}
        os.environ.update(env)
        try:
            await super().execute_request(stream, ident, parent)
        finally:
            self._last["last_run"] = parent["header"]["msg_id"]
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def _abort_queues(self, subshell_id: str | None = None) -> None:
        if subshell_id is None:
            self._aborting = True
        else:
            self.shell_channel_thread.set_subshell_aborting(subshell_id, True)
        self.shell_channel_thread.abort(subshell_id)

    @contextlib.contextmanager
    def _cancel_on_sigint(self, future: Any) -> Iterator[None]:
        """While a cell with `await` runs: an interrupt reaches it at once, in the loop's sleep and in what blocks."""
        with super()._cancel_on_sigint(future):
            cancel: Any = signal.getsignal(signal.SIGINT)
            loop = asyncio.get_running_loop()

            def interrupt(number: int, frame: Any) -> None:
                while frame is not None and frame.f_back is not None:
                    frame = frame.f_back
                    if frame.f_code is InteractiveShell.run_code.__code__:  # which shows it and goes on
                        raise KeyboardInterrupt
                cancel(number, frame)
                loop.call_soon_threadsafe(lambda: None)  # wakes it; the stock handler does not

            signal.signal(signal.SIGINT, interrupt)
            yield

    def finish_metadata(self, parent: dict[str, Any], metadata: dict[str, Any], reply_content: Any) -> dict[str, Any]:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, BoundedStream):
                stream.drain()
        budget = budgets.of(parent["header"])
        if budget is not None and budget.cut:
            metadata["session_gateway"] = {"truncated": True}
        finished: dict[str, Any] = super().finish_metadata(parent, metadata, reply_content)
        return finished

    def _input_request(self, prompt: str, ident: Any, parent: Any, password: bool = False) -> str:
        run_id = parent.get("header", {}).get("msg_id", "")
        try:
            if run_id == self._stdin_of:  # the run brought it along
                return self._next_line()
            self._question = {"run_id": run_id, "prompt": str(prompt), "password": bool(password)}
            return super()._input_request(prompt, ident, parent, password)
        except EOFError:
            raise EOFError("input() found nothing more to read: the run's `stdin` is used up") from None
        finally:
            self._question = {}

    def _next_line(self) -> str:
        if not self._stdin:
            raise EOFError
        return self._stdin.popleft()

    # The debugger, and subshells: ready when somebody asks

    async def debug_request(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        if self.debugpy_stream is None:
            self._prepare_debugger()
        await super().debug_request(stream, ident, parent)

    def _prepare_debugger(self) -> None:
        app = self.parent
        socket = app.context.socket(zmq.STREAM)
        socket.linger = 1000
        self.debug_shell_socket = app.context.socket(zmq.DEALER)
        self.debug_shell_socket.linger = 1000
        app.apply_curve(self.debug_shell_socket, "client")
        self.debug_shell_socket.connect(self._shell_socket.getsockopt(zmq.LAST_ENDPOINT))
        self.debugpy_stream = ZMQStream(socket, self.control_thread.io_loop)
        self.debugpy_stream.on_recv(self.dispatch_debugpy, copy=False)
        if (debugger := getattr(self, "debugger", None)) is not None:
            debugger.debugpy_client.debugpy_stream = self.debugpy_stream
            debugger.shell_socket = self.debug_shell_socket
            self._polling = asyncio.ensure_future(self.poll_stopped_queue())

    async def create_subshell_request(self, socket: Any, ident: Any, parent: dict[str, Any]) -> None:
        reply = {"status": "ok", "subshell_id": self.shell_channel_thread.create()}
        self.session.send(socket, "create_subshell_reply", reply, parent, ident)

    async def delete_subshell_request(self, socket: Any, ident: Any, parent: dict[str, Any]) -> None:
        subshell_id, reply = parent["content"].get("subshell_id"), {"status": "ok"}
        try:
            self.shell_channel_thread.delete(subshell_id)
        except KeyError:
            reply = {"status": "error", "evalue": f"Unknown subshell_id {subshell_id!r}"}
        self.session.send(socket, "delete_subshell_reply", reply, parent, ident)

    async def list_subshell_request(self, socket: Any, ident: Any, parent: dict[str, Any]) -> None:
        reply = {"status": "ok", "subshell_id": self.shell_channel_thread.list_subshell()}
        self.session.send(socket, "list_subshell_reply", reply, parent, ident)

    def refuse_unknown_subshell(self, frames: Any, subshell_id: str) -> None:
        """Answer a request for a subshell that is not there."""
        idents, parts = self.session.feed_identities(frames, copy=False)
        parent = self.session.deserialize(parts, content=False, copy=False)
        content = {
            "status": "error",
            "ename": "UnknownSubshellError",
            "evalue": f"Unknown subshell_id {subshell_id!r}",
            "traceback": [],
        }
        metadata = {**super().finish_metadata(parent, self.init_metadata(parent), content), "status": "error"}
        reply_type = parent["header"]["msg_type"].rsplit("_", 1)[0] + "_reply"
        self._publish_status("busy", "shell", parent=parent)
        self.session.send(
            self.shell_channel_thread, reply_type, content, parent, ident=idents, metadata=metadata
        )  # fmt: skip
        self._publish_status("idle", "shell", parent=parent)

    # The gateway's requests

    async def session_gateway_request(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        content = dict(parent["content"])
        action = content.pop("action")
        if action in ("checkpoint", "restore", "duplicate"):  # which take their time: others are answered meanwhile
            answering = asyncio.ensure_future(self._answer(stream, ident, parent, self._keep(action, **content)))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)
        else:
            await self._answer(stream, ident, parent, self._look(parent["header"]["msg_id"], action, **content))

    async def _answer(self, stream: Any, ident: Any, parent: dict[str, Any], answer: Awaitable[dict[str, Any]]) -> None:
        try:
            reply = {"status": "ok", **await answer}
        except Exception as error:
            reply = {"status": "error", "ename": type(error).__name__, "evalue": str(error)}
        self.session.send(stream, "session_gateway_reply", reply, parent, ident=ident)

    async def _keep(self, action: str, **arguments: Any) -> dict[str, Any]:
        if action == "duplicate":
            return await self._duplicate(**arguments)
        if self._checkpoints is None:
            from .checkpoint_requests import CheckpointRequests

            self._checkpoints = CheckpointRequests(self.shell, self.between_cells, say_nothing_more, self._last.copy)
        operations = {"checkpoint": self._checkpoints.save, "restore": self._checkpoints.restore}
        answer: dict[str, Any] = await operations[action](**arguments)
        return answer

    async def _duplicate(self, address: str, wait_s: float) -> dict[str, Any]:
        """Raises `Busy` if no moment between cells came within `wait_s`."""
        answer: dict[str, Any] = await self.between_cells.do(partial(duplicate, self.parent, address), wait_s)
        return answer

    def renew(self) -> None:
        """In a copy of this process: nothing is under way."""
        self.between_cells = BetweenCells()
        self._checkpoints = None
        self._answering = set()
        self._question = {}
        self._aborting = False

    async def _look(self, request_id: str, action: str, **arguments: Any) -> dict[str, Any]:
        """What is asked of the user's variables; answered by the thread of the control channel."""
        from . import namespace as names

        shell: Any = self.shell
        variables = shell.user_ns
        if action == "question":
            return {"question": self._question}
        if action == "list":
            hidden = set(shell.user_ns_hidden)
            found = names.list_variables(variables, hidden, **arguments)
            return {"variables": found, "count": len(found), "total_count": names.count_variables(variables, hidden)}
        operations = {"get": names.get_variable, "set": names.set_variable, "delete": names.delete_variable}
        operation: Any = operations[action]
        answer: dict[str, Any] = operation(variables, **arguments)
        if action != "get":
            self._last["last_setting"] = answer["change_id"] = request_id
        return answer


def say_nothing_more() -> None:
    """In a copy of this process: nothing that it still prints or displays goes anywhere."""
    BoundedStream.write = lambda self, string: len(string)  # type: ignore[method-assign]
    BoundedStream.flush = lambda self: None  # type: ignore[method-assign]
    BoundedSession.send = lambda self, *args, **kwargs: None  # type: ignore[method-assign]
