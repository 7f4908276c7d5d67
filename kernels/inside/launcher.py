"""Starts the Python kernel of a session: ipykernel, with what the gateway needs to keep its promises.

Run as a script by the kernel's own interpreter, in place of `-m ipykernel_launcher`. Imports nothing of ours:
beside it lies `namespace.py`, which is loaded by its path when first asked for.

What it adds: output is sent in pieces and cut at the run's limit where it is made, so that nobody has to
hold a gigabyte; stdout and stderr keep their order; a run may bring environment variables; the control channel
answers questions about variables while a cell runs.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections import OrderedDict
from typing import Any

NAME = "session_gateway_kernel"

if __name__ == "__main__":
    sys.path.pop(0)  # this folder; user code must find nothing in it
    sys.path.insert(0, "")  # as under `python -m`: modules in the workspace can be imported
    sys.modules[NAME] = sys.modules["__main__"]

import zmq
from ipykernel.iostream import OutStream
from ipykernel.ipkernel import IPythonKernel
from ipykernel.kernelapp import IPKernelApp
from jupyter_client.session import Session
from traitlets import default

_PIECE = 256 * 1024  # characters of one stream message
_REMEMBERED_RUNS = 256


class Budgets:
    """How much each run may still publish, by the id of its request; no entry is without limit."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, int] = OrderedDict()

    def open(self, msg_id: str, limit: int) -> None:
        self._left[msg_id] = limit + 1  # one more than the gateway keeps, so that it sees there was more
        while len(self._left) > _REMEMBERED_RUNS:
            self._left.popitem(last=False)

    def left(self, msg_id: str | None) -> int | None:
        """None is without limit."""
        return self._left.get(msg_id) if msg_id else None

    def spend(self, msg_id: str | None, size: int) -> None:
        if msg_id is not None and msg_id in self._left:
            self._left[msg_id] -= size


budgets = Budgets()


class BoundedStream(OutStream):
    """sys.stdout and sys.stderr, in pieces, within the run's budget, in the order written."""

    _unsent = 0  # characters since the last flush
    _room = 0  # how many more may come before this must be looked at again
    _parent: Any = None  # the run that `_room` is for
    _last_written: BoundedStream | None = None

    def write(self, string: str) -> int | None:  # type: ignore[override]
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        length = len(string)
        # Most writes are short and follow each other: they take this way, which is nearly as fast as the stock one.
        if length <= self._room and self.parent_header is self._parent and BoundedStream._last_written is self:
            self._room -= length
            self._unsent += length
            super().write(string)
        else:
            self._write_pieces(string)
        return length

    def _write_pieces(self, string: str) -> None:
        self._flush_other()
        if self._unsent >= _PIECE:
            self.flush()
        self._settle(self.parent_header)
        at = 0
        while at < len(string):
            piece = string[at : at + self._room]
            if not piece:
                return  # the run has published all that it may
            super().write(piece)
            at += len(piece)
            self._room -= len(piece)
            self._unsent += len(piece)
            if self._unsent >= _PIECE:
                self.flush()
            self._settle(self.parent_header)

    def _settle(self, parent: Any) -> None:
        """Charge what was written to its run, and find out how much may come."""
        if self._parent is not None:
            budgets.spend(self._parent.get("msg_id"), self._granted - self._room)
        left = budgets.left(parent.get("msg_id"))
        piece = max(_PIECE - self._unsent, 0)
        self._parent = parent
        self._granted = self._room = piece if left is None else min(left, piece)

    _granted = 0

    def flush(self) -> None:
        self._unsent = 0
        super().flush()

    def _flush_other(self) -> None:
        other = BoundedStream._last_written
        BoundedStream._last_written = self
        if other is not None and other is not self and other._unsent and other._is_master_process():
            other.flush()


class BoundedSession(Session):
    """Leaves out a display that is larger than the whole run's limit, and says so in its place."""

    def serialize(self, msg: dict[str, Any], ident: Any = None) -> list[bytes]:
        frames: list[bytes] = super().serialize(msg, ident)
        header = msg.get("header", {})
        if header.get("msg_type") not in ("display_data", "update_display_data", "execute_result", "error"):
            return frames
        size = sum(len(frame) for frame in frames)
        run_id = msg.get("parent_header", {}).get("msg_id")
        left = budgets.left(run_id)
        if left is None or size <= max(left, 100_000):
            budgets.spend(run_id, min(size, left or 0))
            return frames
        return super().serialize({**msg, "content": self._shortened(header["msg_type"], msg["content"], size)}, ident)

    def _shortened(self, msg_type: str, content: dict[str, Any], size: int) -> dict[str, Any]:
        note = f"<an output of {size} bytes is past the limit of this run>"
        if msg_type == "error":
            return {"ename": content["ename"], "evalue": str(content["evalue"])[:1000], "traceback": [note]}
        return {**content, "data": {"text/plain": note}, "metadata": {"truncated": True}}


class GatewayKernel(IPythonKernel):
    """An IPython kernel that knows the gateway's own requests."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.control_handlers["session_gateway_request"] = self.session_gateway_request

    @property
    def kernel_info(self) -> dict[str, Any]:
        return {**super().kernel_info, "session_gateway": 1}

    async def execute_request(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        wishes = parent.get("metadata", {}).get("session_gateway", {})
        if "output_limit" in wishes:
            budgets.open(parent["header"]["msg_id"], wishes["output_limit"])
        env = wishes.get("env", {})
        before = {name: os.environ.get(name) for name in env}
        os.environ.update(env)
        try:
            await super().execute_request(stream, ident, parent)
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value

    def raw_input(self, prompt: str = "") -> str:
        __tracebackhide__ = True
        try:
            answer: str = super().raw_input(prompt)
        except EOFError:
            raise EOFError("input() found nothing more to read: the run's `stdin` is used up") from None
        return answer

    async def session_gateway_request(self, stream: Any, ident: Any, parent: dict[str, Any]) -> None:
        content = dict(parent["content"])
        action = content.pop("action")
        try:
            reply = {"status": "ok", **self._look(action, **content)}
        except Exception as error:
            reply = {"status": "error", "ename": type(error).__name__, "evalue": str(error)}
        assert self.session is not None
        self.session.send(stream, "session_gateway_reply", reply, parent, ident=ident)


    def _look(self, action: str, **arguments: Any) -> dict[str, Any]:
        """What is asked of the user's variables; answered by the thread of the control channel."""
        shell: Any = self.shell
        names, variables = _namespace(), shell.user_ns
        if action == "list":
            found = names.list_variables(variables, set(shell.user_ns_hidden))
            part = found[arguments["offset"] : arguments["offset"] + arguments["limit"]]
            return {"variables": part, "count": len(part), "total_count": len(found)}
        operations = {"get": names.get_variable, "set": names.set_variable, "delete": names.delete_variable}
        answer: dict[str, Any] = operations[action](variables, **arguments)
        return answer


def _namespace() -> Any:
    name = f"{NAME}_namespace"
    if name not in sys.modules:
        path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "namespace.py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


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
    app.start()


if __name__ == "__main__":
    main()
