"""The pages of memory that every kernel writes to: a fork gets its own of them while nobody waits for it.

They are learned from one fork that lives as a kernel does, from its name to the answer to its first cell. Without them
a fork is as good, only slower. Runs inside the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from array import array
from collections.abc import Callable, Iterator
from typing import Any

Ranges = list[tuple[int, int]]  # address, length

_PAGE = os.sysconf("SC_PAGE_SIZE")
_PRESENT, _OF_FILE, _OURS_ALONE = 1 << 63, 1 << 61, 1 << 56
_POPULATE_WRITE = 23
_PR_SET_PDEATHSIG = 1
_LONGEST_S = 20
_ANSWER_MS = 10_000


def own(ranges: Ranges) -> None:
    """Have pages of our own here. What is in them stays; where the system can't, nothing happens."""
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for address, length in ranges:
        madvise(address, length, _POPULATE_WRITE)


def learn(serve: Callable[[Any, dict[str, Any]], None], app: Any, identity: dict[str, Any]) -> Ranges:
    """Called once all is built, on the only thread; `identity` is one that nobody has. Empty if it fails."""
    if not sys.platform.startswith("linux"):
        return []
    written = _told_by(lambda asked, tell: _live(serve, app, identity, asked, tell), identity["connection"])
    return _joined(sorted(written - _told_by(_do_nothing)))  # what forking, and telling, writes to is no news


def _told_by(live: Callable[[int, int], object], connection: dict[str, Any] | None = None) -> set[int]:
    """What a fork tells that lives so, and answers its first cell if it has a connection."""
    told, tell = os.pipe()
    asked, ask = os.pipe()
    pids = []
    found = array("Q")
    try:
        if connection is not None:
            pids.append(_forked(lambda: _first_cell(connection, ask), told, tell))
        pids.append(_forked(lambda: live(asked, tell), told, ask))
        os.close(tell)  # from now on: what we write to ourselves looks like something that the kernel wrote to
        while part := os.read(told, _PAGE):
            found.frombytes(part)
    except (OSError, ValueError):
        return set()
    finally:
        for fd in (told, asked, ask):
            os.close(fd)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return set(found)


def _do_nothing(asked: int, tell: int) -> None:
    _tell(tell, list(_private()))


def _tell(tell: int, mappings: list[tuple[int, int]]) -> None:
    for address in _written(mappings):
        os.write(tell, address.to_bytes(8, sys.byteorder))
    os._exit(0)


def _forked(do: Callable[[], object], *not_its: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        for fd in not_its:
            os.close(fd)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.alarm(_LONGEST_S)
        do()
    finally:
        os._exit(0)


def _live(
    serve: Callable[[Any, dict[str, Any]], None], app: Any, identity: dict[str, Any], asked: int, tell: int
) -> None:
    mappings = list(_private())

    def answer_when_asked() -> None:
        asyncio.get_event_loop_policy().get_event_loop().add_reader(asked, _tell, tell, mappings)

    app.on_bound = answer_when_asked
    nothing = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(nothing, fd)
    serve(app, identity)


def _first_cell(connection: dict[str, Any], ask: int) -> None:
    """What a gateway asks of a kernel at first; then ask which pages that took."""
    import zmq
    from jupyter_client.session import Session

    session = Session(key=connection["key"].encode())
    with zmq.Context() as context:
        sockets = [context.socket(kind) for kind in (zmq.DEALER, zmq.SUB)]
        sockets[1].subscribe(b"")
        for socket, name in zip(sockets, ("shell", "iopub")):  # noqa: B905 - not before Python 3.10
            socket.linger = 0
            socket.reconnect_ivl = 2  # ms: there is nobody yet
            socket.connect(f"ipc://{connection['ip']}-{connection[f'{name}_port']}")
        for kind, content in (("kernel_info_request", {}), ("execute_request", {"code": "1 + 1", "silent": False})):
            session.send(sockets[0], kind, content)
            if not sockets[0].poll(_ANSWER_MS):
                return
            sockets[0].recv_multipart()
        os.write(ask, b"!")
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


def _private() -> Iterator[tuple[int, int]]:
    """Where memory can be written to that a fork shares only until then: first and last address."""
    with open("/proc/self/maps") as lines:
        for line in lines:
            addresses, flags = line.split()[:2]
            if flags.startswith("rw") and flags.endswith("p"):
                first, end = (int(one, 16) for one in addresses.split("-"))
                yield first, end


def _written(mappings: list[tuple[int, int]]) -> Iterator[int]:
    """The addresses of pages that nobody shares with us any more; it takes next to no memory to tell."""
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    for first, end in mappings:
        for address in range(first, end, _PAGE):
            entry = int.from_bytes(os.pread(pagemap, 8, address // _PAGE * 8), sys.byteorder)
            if entry & _PRESENT and entry & _OURS_ALONE and not entry & _OF_FILE:
                yield address


def _joined(addresses: list[int]) -> Ranges:
    ranges: Ranges = []
    for address in addresses:
        if ranges and sum(ranges[-1]) == address:
            ranges[-1] = ranges[-1][0], ranges[-1][1] + _PAGE
        else:
            ranges.append((address, _PAGE))
    return ranges
