"""Starts the Python kernel of a session: ipykernel, with what the gateway needs to keep its promises.

Run as a script by the kernel's own interpreter, in place of `-m ipykernel_launcher`. What lies beside it is loaded
by its path, as a package of a private name, and only when it is asked for: user code finds nothing of it.

What it adds: output is sent in pieces and cut at the run's limit where it is made, so that nobody has to
hold a gigabyte; stdout and stderr keep their order; a run may bring environment variables; the control channel
answers questions about variables while a cell runs, and has them saved and brought back between cells; a run may
bring what its `input()` reads, and who takes a run over is told what it asks.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import fcntl
import functools
import importlib
import json
import os
import select
import signal
import sys
import termios
import threading
import time
import types
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

NAME = "session_gateway_kernel"

if __name__ == "__main__":
    sys.path.pop(0)  # this folder; user code must find nothing in it
    sys.path.insert(0, "")  # as under `python -m`: modules in the workspace can be imported
    sys.modules[NAME] = sys.modules["__main__"]
    __name__ = NAME  # `__main__` is the session's; what is defined below is found by this name, in any kernel

import zmq
from ipykernel.iostream import OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.session import Session
from traitlets import default

_PIECE = 256 * 1024  # characters of one stream message
_READ_BYTES = 64 * 1024
_DRAIN_S = 0.5
_REMEMBERED_RUNS = 100_000  # about 300 bytes each
_RESERVE = 1_000_000  # for small displays, the result and the error of a run that has filled its limit
_SMALL = 100_000
_LAST = 300_000  # what of the reserve is left for the result and the error
_NOTE = 1_000  # about what a message takes that only says that something was left out


class Budget:
    """What one run may still publish."""

    __slots__ = ("cut", "left", "reserve")

    def __init__(self, left: int) -> None:
        self.left = left
        self.reserve = _RESERVE
        self.cut = False  # whether something was left out

    @property
    def room_for_displays(self) -> int:
        return max(self.left, min(_SMALL, self.reserve - _LAST))

    def grant(self, size: int, room: int) -> bool:
        """Charge for a whole message; False if it may not be sent."""
        if size <= self.left:
            self.left -= size
        elif size <= room:
            self.reserve -= size
        else:
            self.cut = True
            return False
        return True


class Budgets:
    """The budgets of runs, by the id of their request; what was given none is without limit.

    Also a run that ended long ago may still have a thread that prints.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Budget] = OrderedDict()

    def open(self, msg_id: str, limit: int) -> None:
        self._runs[msg_id] = Budget(limit + 1)  # one more than the gateway keeps, so that it sees there was more
        while len(self._runs) > _REMEMBERED_RUNS:
            self._runs.popitem(last=False)

    def of(self, header: Any) -> Budget | None:
        return self._runs.get(header.get("msg_id"))


budgets = Budgets()


class BoundedStream(OutStream):
    """sys.stdout and sys.stderr, in pieces, within the run's budget, in the order written."""

    _unsent = 0  # characters since the last flush
    _room = 0  # how many more may come before this must be looked at again
    _granted = 0  # what `_room` was at first
    _parent: Any = None  # the run that `_room` is for
    _relaying = False  # whether something is on its way from the file descriptor
    _last_written: BoundedStream | None = None
    _settling = threading.RLock()

    def write(self, string: str) -> int | None:  # type: ignore[override]
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        length = len(string)
        # Most writes are short and follow each other: they take this way, which is nearly as fast as the stock one.
        if length <= self._room and self.parent_header is self._parent and BoundedStream._last_written is self:
            self._room -= length
            self._unsent += length
            super().write(string)
        elif threading.current_thread() is getattr(self.pub_thread, "thread", None):
            super().write(string)  # it is the one that flushes, and can't wait for itself
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

    def flush(self) -> None:
        self._unsent = 0
        super().flush()

    def _flush_other(self) -> None:
        other = BoundedStream._last_written
        BoundedStream._last_written = self
        if other is not None and other is not self and other._unsent and other._is_master_process():
            other.flush()

    def _watch_pipe_fd(self) -> None:
        """Relay what is written to the file descriptor, past Python: by C code, and by processes that were started."""
        decoder, pipe = codecs.getincrementaldecoder("utf-8")("replace"), self._fid
        assert pipe is not None
        with contextlib.suppress(OSError):
            while self._should_watch:
                select.select([pipe], [], [])
                self._relaying = True
                data = os.read(pipe, _READ_BYTES)
                if not data or not self._should_watch:
                    break
                self.write(decoder.decode(data))
                self._relaying = False
        self._relaying = False

    def drain(self) -> None:
        """Wait until what was written to the file descriptor has been relayed, unless more and more comes."""
        if not self._should_watch or not self._is_master_process():
            return
        until = time.monotonic() + _DRAIN_S
        while (self._waiting_bytes() or self._relaying) and time.monotonic() < until:
            time.sleep(0.0005)

    def _waiting_bytes(self) -> int:
        assert self._fid is not None
        return int.from_bytes(fcntl.ioctl(self._fid, termios.FIONREAD, bytes(4)), sys.byteorder)


def _new_lock() -> None:
    BoundedStream._settling = threading.RLock()


os.register_at_fork(after_in_child=_new_lock)


class BoundedSession(Session):
    """Leaves out a display that is past the run's limit, and says so in its place."""

    _displays = frozenset(["display_data", "update_display_data", "clear_output"])
    _bounded = _displays | {"execute_result", "error", "execute_reply"}

    def send(self, stream: Any, msg_or_type: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(msg_or_type, dict) and msg_or_type.get("header", {}).get("msg_type") in self._displays:
            budget = budgets.of(msg_or_type.get("parent_header", {}))
            if budget is not None and budget.room_for_displays < _NOTE:
                budget.cut = True
                return None
        return super().send(stream, msg_or_type, *args, **kwargs)

    def serialize(self, msg: dict[str, Any], ident: Any = None) -> list[bytes]:
        try:
            frames: list[bytes] = super().serialize(msg, ident)
        except UnicodeEncodeError:  # half a surrogate pair: fine in a Python string, but not in UTF-8
            text = json.dumps(msg["content"], ensure_ascii=False, default=str).encode(errors="replace")
            msg = {**msg, "content": json.loads(text)}
            frames = super().serialize(msg, ident)
        msg_type = msg.get("header", {}).get("msg_type")
        budget = budgets.of(msg.get("parent_header", {})) if msg_type in self._bounded else None
        if budget is None:
            return frames
        size = sum(len(frame) for frame in frames)
        if msg_type == "execute_reply":
            if size <= _RESERVE:
                return frames
        else:
            room = budget.room_for_displays if msg_type in self._displays else min(_SMALL, budget.reserve)
            if budget.grant(size, room):
                return frames
            budget.grant(_NOTE, room)
        return super().serialize({**msg, "content": self._shortened(msg_type, msg["content"], size)}, ident)

    def _shortened(self, msg_type: str | None, content: dict[str, Any], size: int) -> dict[str, Any]:
        note = f"<an output of {size} bytes is past the limit of this run>"
        if "traceback" in content:
            shown = {
                "ename": str(content["ename"])[:1000],
                "evalue": str(content["evalue"])[:1000],
                "traceback": [note],
            }
            return {**content, **shown}
        if msg_type == "execute_reply":
            return {**content, "payload": [], "user_expressions": {}}
        return {**content, "data": {"text/plain": note}, "metadata": {"truncated": True}}


class GatewayKernel(IPythonKernel):
    """An IPython kernel that knows the gateway's own requests."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.control_handlers["session_gateway_request"] = self.session_gateway_request
        self.between_cells = _inside("between_cells").BetweenCells()
        self._checkpoints: Any = None
        self._last = {"last_run": "", "last_setting": ""}  # ids of requests that may have changed variables, and ended
        self._question: dict[str, Any] = {}  # that a cell waits to be answered
        self._stdin_of, self._stdin = "", deque[str]()  # the run that brought lines for its `input()`, what is left
        self._answering: set[asyncio.Task[None]] = set()
        _keep_threads_with_their_cell(self.shell)

    @property
    def kernel_info(self) -> dict[str, Any]:
        return {**super().kernel_info, "session_gateway": 1}

    def start(self) -> None:
        super().start()
        self.between_cells.loop = self.io_loop

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

    async def session_gateway_request(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        content = dict(parent["content"])
        action = content.pop("action")
        if action in ("checkpoint", "restore"):  # which take their time, and this channel answers one after the other
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
        assert self.session is not None
        self.session.send(stream, "session_gateway_reply", reply, parent, ident=ident)

    async def _keep(self, action: str, **arguments: Any) -> dict[str, Any]:
        if self._checkpoints is None:
            requests = _inside("checkpoint_requests")
            self._checkpoints = requests.CheckpointRequests(
                self.shell, self.between_cells, _say_nothing_more, self._last.copy
            )
        operations = {"checkpoint": self._checkpoints.save, "restore": self._checkpoints.restore}
        answer: dict[str, Any] = await operations[action](**arguments)
        return answer

    async def _look(self, request_id: str, action: str, **arguments: Any) -> dict[str, Any]:
        """What is asked of the user's variables; answered by the thread of the control channel."""
        shell: Any = self.shell
        names, variables = _inside("namespace"), shell.user_ns
        if action == "question":
            return {"question": self._question}
        if action == "list":
            hidden = set(shell.user_ns_hidden)
            found = names.list_variables(variables, hidden, **arguments)
            return {"variables": found, "count": len(found), "total_count": names.count_variables(variables, hidden)}
        operations = {"get": names.get_variable, "set": names.set_variable, "delete": names.delete_variable}
        answer: dict[str, Any] = operations[action](variables, **arguments)
        if action != "get":
            self._last["last_setting"] = answer["change_id"] = request_id
        return answer


def _keep_threads_with_their_cell(shell: Any) -> None:
    """What a thread prints belongs to the cell that started it, or gave a pool the work, also when that has ended."""

    def of_this_cell(work: Callable[..., Any]) -> Callable[..., Any]:
        parent = shell.get_parent()

        @functools.wraps(work)
        def worked(*args: Any, **kwargs: Any) -> Any:
            tokens = shell.set_thread_parent(parent)
            try:
                return work(*args, **kwargs)
            finally:
                shell.reset_thread_parent(tokens)

        return worked

    def start(thread: Any) -> None:
        thread.run = of_this_cell(thread.run)
        stock_start(thread)

    def submit(pool: Any, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return stock_submit(pool, of_this_cell(work), *args, **kwargs)

    stock_start, threading.Thread.start = threading.Thread.start, start  # type: ignore[method-assign,assignment]
    stock_submit, ThreadPoolExecutor.submit = ThreadPoolExecutor.submit, submit  # type: ignore[method-assign]


def _say_nothing_more() -> None:
    """In a copy of this process: nothing that it still prints or displays goes anywhere."""
    BoundedStream.write = lambda self, string: len(string)  # type: ignore[method-assign]
    BoundedStream.flush = lambda self: None  # type: ignore[method-assign]
    BoundedSession.send = lambda self, *args, **kwargs: None  # type: ignore[method-assign]


def _inside(name: str) -> Any:
    """A module that lies beside this file."""
    package = f"{NAME}_inside"
    if package not in sys.modules:
        made = types.ModuleType(package)
        made.__path__ = [os.path.dirname(os.path.abspath(__file__))]
        sys.modules[package] = made
    return importlib.import_module(f"{package}.{name}")


class GatewayKernelApp(IPKernelApp):
    @default("session")
    def _bounded_session(self) -> Session:
        return BoundedSession(parent=self)

    @default("outstream_class")
    def _bounded_stream(self) -> str:
        return f"{NAME}.BoundedStream"

    def init_iopub(self, context: Any) -> None:
        context.setsockopt(zmq.SNDHWM, 0)  # what a run may publish is bounded above; nothing of it may be dropped
        super().init_iopub(context)


def main() -> None:
    app = GatewayKernelApp.instance()
    app.config.HistoryManager.enabled = False  # its file would be shared by every session of this user
    app.config.IPythonKernel._execute_sleep = 0.0
    app.kernel_class = GatewayKernel
    app.initialize()
    _inside("checkpoint_settings").remember_start(app.shell)
    app.start()


if __name__ == NAME:
    main()
