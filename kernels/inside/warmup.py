"""Runs what sessions usually do through the whole of a kernel, before it is anybody's.

What is imported, cached and made only when it is first needed is then there already, and shared by all that are
forked. No trace of it is left that a session could see.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import contextvars
import linecache
import sys
from typing import Any

import zmq
from ipykernel.control import ControlThread
from zmq.eventloop.zmqstream import ZMQStream

from .budgets import budgets
from .publisher import deliver

_REHEARSAL_MS = 5000

CELLS = [
    "1 + 1",
    "print('text')",
    "import sys\nfor i in range(3):\n    print(i, file=sys.stderr)",
    "x = [1, 2.5, 'three', {'four': (None, True)}]\nx",
    "def f(a, *b, c=1, **d):\n    return [a * it for it in b]\nf(1, 2)",
    "class A:\n    def __init__(self):\n        self.x = 1\nA().x",
    "f(1, 2)[5]",
    "1 / 0",
    "raise ValueError('what')",
    "no such syntax",
    "no_such_name",
    "from IPython.display import HTML, display\ndisplay(HTML('<b>text</b>'))",
    "import asyncio\nawait asyncio.sleep(0)",
    "%pwd",
    "import json, os, re, math, time, datetime, random, collections, itertools, functools\njson.dumps({'a': 1})",
    "sorted(x[:2]), sum(i * i for i in range(10)), f'{x!r}'",
    "x = None\nx;",
]
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("kernel_info_request", {}),
    ("is_complete_request", {"code": "def f():"}),
    ("inspect_request", {"code": "len", "cursor_pos": 3, "detail_level": 0}),
    ("history_request", {"hist_access_type": "tail", "output": False, "raw": True, "n": 3}),
    ("comm_info_request", {}),
]


class Nobody:
    """Stands where a socket will be."""

    EVENTS = 0
    closed = False

    def send_multipart(self, *args: Any, **kwargs: Any) -> None:
        pass


def warm_up(app: Any) -> None:
    """On the main thread, of a kernel that is not connected."""
    kernel, shell = app.kernel, app.shell
    variables, hidden = dict(shell.user_ns), dict(shell.user_ns_hidden)
    modules = {name: sys.modules[name] for name in ("__main__",)}
    parent = kernel._shell_context
    kernel.shell_channel_thread = _Channel()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        contextvars.copy_context().run(loop.run_until_complete, _run_all(kernel))
    finally:
        asyncio.set_event_loop(None)
        loop.close()
        kernel.shell_channel_thread = None
    kernel._shell_context = parent
    kernel._main_asyncio_lock = asyncio.Lock()
    _forget(app)
    sys.modules.update(modules)
    shell.user_ns.clear()
    shell.user_ns.update(variables)
    shell.user_ns_hidden.clear()
    shell.user_ns_hidden.update(hidden)


def rehearse(folder: str) -> None:
    """One message there and back over sockets and a loop like those of a kernel, all of which are gone afterwards."""
    context: zmq.Context[Any] = zmq.Context()
    sockets = [context.socket(kind) for kind in (zmq.ROUTER, zmq.XPUB, zmq.DEALER, zmq.SUB)]
    for one, other in ((0, 2), (1, 3)):
        sockets[one].bind(f"ipc://{folder}/{one}")
        sockets[other].connect(f"ipc://{folder}/{one}")
    thread = ControlThread(daemon=True)
    loop: Any = thread.io_loop
    stream: Any = ZMQStream(sockets[0], loop)
    stream.on_recv(lambda frames: deliver(sockets[0], [frames[0].bytes, b""]), copy=False)
    sockets[2].send_multipart([b"there"])
    thread.start()
    sockets[2].poll(_REHEARSAL_MS)
    sockets[2].recv_multipart()
    thread.stop()
    thread.join()
    stream.socket = None  # its loop is closed
    for socket in sockets:
        socket.close(linger=0)
    context.term()


class _Channel(Nobody):
    """Stands for the shell channel of a kernel that has none yet."""

    parent_thread: Any = None

    @property
    def manager(self) -> _Channel:
        return self

    def get_subshell_to_shell_channel_socket(self, subshell_id: str | None) -> _Channel:
        return self

    def abort(self, subshell_id: str | None) -> None:
        pass


async def _run_all(kernel: Any) -> None:
    for code in CELLS:
        await _ask(kernel, "execute_request", {"code": code, "silent": False, "store_history": True})
        kernel._aborting = False
    for kind, content in REQUESTS:
        await _ask(kernel, kind, content)


async def _ask(kernel: Any, kind: str, content: dict[str, Any]) -> None:
    session = kernel.session
    message = session.msg(kind, content, metadata={"session_gateway": {"output_limit": 1_000_000}})
    frames = session.serialize(message, ident=b"nobody")
    await kernel.dispatch_shell([zmq.Frame(frame) for frame in frames])


def _forget(app: Any) -> None:
    kernel, shell = app.kernel, app.shell
    shell.history_manager.output_hist.clear()
    shell.history_manager.output_hist_reprs.clear()
    for name in ("outputs", "exceptions"):
        getattr(shell.history_manager, name, {}).clear()
    shell.history_manager.input_hist_parsed[:] = [""]
    shell.history_manager.input_hist_raw[:] = [""]
    for name in ("_i00", "_i", "_ii", "_iii"):
        setattr(shell.history_manager, name, "")
    hook = shell.displayhook
    hook._ = hook.__ = hook.___ = ""
    hook.exec_result = None
    with contextlib.suppress(AttributeError):
        del builtins._  # type: ignore[attr-defined]
    shell.execution_count = 1
    shell.last_execution_succeeded, shell.last_execution_result = True, None
    shell._last_traceback = shell.InteractiveTB.tb = None
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
    for name in list(shell.compile._filename_map):
        linecache.cache.pop(name, None)
    shell.compile._filename_map.clear()
    said_by: list[Any] = [sys.stdout, sys.stderr, app.displayhook, shell.displayhook, shell.display_pub, shell]
    for one in said_by:
        one._parent_header_global = {}
    kernel.session.digest_history.clear()
    budgets.forget()
