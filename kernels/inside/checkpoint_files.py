"""The large files of a checkpoint as memory that is read when it is used, and is copied when it is written to.

A file may also be given as extents of other files in its folder (`extents.json`), which follow each other here.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import stat
from collections.abc import Iterator
from typing import Any, NamedTuple

_BLOCK_BYTES = 4096
_MOST_MAPPED = 10_000
"""Pieces; a process may have about 65,000. The rest is read into memory."""
_MAP_FIXED = 0x10


class CheckpointError(Exception):
    """A checkpoint that can't be written, or a folder that holds none that can be loaded. Nothing was changed."""


class Extent(NamedTuple):
    file: str
    offset: int
    length: int


def mapped(folder: str, sizes: dict[str, int]) -> dict[str, memoryview]:
    """The files of these names and sizes. Their memory is there as long as anything refers to it."""
    extents = _read_extents(folder)
    views = {}
    for name, size in sizes.items():
        try:
            views[name] = _joined(folder, name, size, extents[name]) if name in extents else _whole(folder, name, size)
        except OSError as error:
            raise CheckpointError(f"The checkpoint's `{name}` can't be read: {error}") from None
    return views


def _whole(folder: str, name: str, size: int) -> memoryview:
    with open(os.path.join(folder, name), "rb") as file:
        actual = os.fstat(file.fileno()).st_size
        if actual != size:
            raise CheckpointError(f"The checkpoint's `{name}` has {actual} bytes instead of {size}.")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) if size else b"")


def _read_extents(folder: str) -> dict[str, list[Extent]]:
    try:
        with open(os.path.join(folder, "extents.json"), encoding="utf-8") as file:
            listed = json.load(file)
        return {name: [_extent(*one) for one in extents] for name, extents in listed.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"The checkpoint's `extents.json` can't be read: {error}") from None


def _extent(file: Any, offset: Any, length: Any) -> Extent:
    if type(file) is not str or file in ("", ".", "..") or "/" in file or "\0" in file:
        raise ValueError(f"{file!r} is no name of a file beside it")
    if type(offset) is not int or type(length) is not int or offset < 0 or length < 0 or offset % _BLOCK_BYTES:
        raise ValueError(f"{offset!r}, {length!r} is no place in a file")
    return Extent(file, offset, length)


def _joined(folder: str, name: str, size: int, extents: list[Extent]) -> memoryview:
    if sum(extent.length for extent in extents) != size:
        raise CheckpointError(f"The extents of the checkpoint's `{name}` are not {size} bytes long.")
    if any(extent.length % _BLOCK_BYTES for extent in extents[:-1]):
        raise CheckpointError(f"The extents of the checkpoint's `{name}` do not follow each other by whole blocks.")
    if not size:
        return memoryview(b"")
    merged = list(_merged(extents))
    for extent in merged:
        with _opened(folder, extent.file) as fd:
            if extent.offset + extent.length > os.fstat(fd).st_size:
                raise CheckpointError(f"The checkpoint's {extent.file!r} is shorter than an extent of `{name}` says.")
    region = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # unmapped when nothing refers to it
    view = memoryview(region)
    address = ctypes.addressof(ctypes.c_char.from_buffer(region))
    at = 0
    for number, extent in enumerate(merged):
        with _opened(folder, extent.file) as fd:
            if number >= _MOST_MAPPED or not _map(address + at, extent.length, fd, extent.offset):
                _read(view[at : at + extent.length], fd, extent.offset)
        at += extent.length
    return view


def _merged(extents: list[Extent]) -> Iterator[Extent]:
    """Those that follow each other in their file, too, as one."""
    last: Extent | None = None
    for extent in extents:
        if not extent.length:
            continue
        if last is not None and last.file == extent.file and last.offset + last.length == extent.offset:
            last = last._replace(length=last.length + extent.length)
            continue
        if last is not None:
            yield last
        last = extent
    if last is not None:
        yield last


@contextlib.contextmanager
def _opened(folder: str, name: str) -> Iterator[int]:
    fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise CheckpointError(f"The checkpoint's {name!r} is no file.")
        yield fd
    finally:
        os.close(fd)


def _map(address: int, length: int, fd: int, offset: int) -> bool:
    """Put a part of a file into our own memory at this place; False where that can't be done."""
    if offset % mmap.ALLOCATIONGRANULARITY or address % mmap.PAGESIZE:
        return False
    function = ctypes.CDLL(None).mmap
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    function.restype = ctypes.c_void_p
    flags = mmap.MAP_PRIVATE | _MAP_FIXED
    return bool(function(address, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, offset) == address)


def _read(view: memoryview, fd: int, offset: int) -> None:
    done = 0
    while done < view.nbytes:
        count = os.preadv(fd, [view[done:]], offset + done)
        if not count:
            raise CheckpointError("A file of the checkpoint became shorter while it was read.")
        done += count
