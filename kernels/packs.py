"""Chunks in packs: files that are written once and then only read.

Every chunk is checked against its digest whenever it is read. Chunks of files are compressed, several small ones in
one block; those of a state are kept as they are, from page to page, so that they can be mapped.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Self, TypeVar

from blake3 import blake3

from kernels.archives import Stopped
from kernels.errors import DamagedSnapshot
from kernels.manifests import CHUNK_BYTES, PAGE_BYTES, Chunk, Key, Location

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

WORKERS = 2
_AHEAD = 4
_BATCH_BYTES = 1 << 20
_MAX_BLOCK_CHUNKS = 4096
_SMALL_BYTES = 64 << 10  # hashed sooner than a thread is told of it
_WORTH = 0.95
_LEVEL = 1

T = TypeVar("T")
U = TypeVar("U")


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """Threads that hash and compress; none is left after the block."""
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="snapshot")
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def ordered(pool: ThreadPoolExecutor, function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """`map` that works only a few items ahead."""
    waiting: deque[Future[U]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


Sink = list[Chunk]
_Member = tuple[bytes, bytes | None, int, Sink]  # a chunk, its digest, where it is in its file, who is told


class Packer:
    """Writes those chunks that are not `known` into one pack, and finds out where all of them are."""

    def __init__(
        self, path: Path, name: str, known: Mapping[Key, Location], pool: ThreadPoolExecutor, stopped: threading.Event
    ) -> None:
        self.path = path
        self.name = name
        self.locations: dict[Key, Location] = {}
        self.known = known
        self.size_bytes = 0
        self._pool = pool
        self._stopped = stopped
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._group: list[_Member] = []
        self._group_bytes = 0
        self._waiting: deque[tuple[list[_Member], bool, Future[tuple[list[bytes], list[int], bytes, int]]]] = deque()
        self._writing: deque[Future[None]] = deque()

    def add(self, data: bytes, offset: int, sink: Sink, *, aligned: bool = False) -> None:
        """Take a chunk, and tell `sink` what it was; chunks of one sink come out in order."""
        if self._stopped.is_set():
            raise Stopped
        if aligned or self._group_bytes + len(data) > CHUNK_BYTES or len(self._group) >= _MAX_BLOCK_CHUNKS:
            self._submit()
        digest = blake3(data).digest() if len(data) < _SMALL_BYTES else None
        self._group.append((data, digest, offset, sink))
        self._group_bytes += len(data)
        if aligned:
            self._submit(aligned=True)

    def _submit(self, *, aligned: bool = False) -> None:
        if not self._group:
            return
        group, self._group, self._group_bytes = self._group, [], 0
        self._waiting.append((group, aligned, self._pool.submit(self._work, group, aligned)))
        while len(self._waiting) > _AHEAD:
            self._store()

    def _work(self, group: list[_Member], aligned: bool) -> tuple[list[bytes], list[int], bytes, int]:
        """In a thread: the digests, which of them are new, and the block of those."""
        digests = [digest or blake3(data).digest() for data, digest, _, _ in group]
        seen: set[bytes] = set()
        new = []
        for number, digest in enumerate(digests):
            key = digest, aligned
            if not (digest in seen or key in self.known or key in self.locations):
                seen.add(digest)
                new.append(number)
        raw = group[new[0]][0] if len(new) == 1 else b"".join(group[number][0] for number in new)
        if not aligned and raw:
            packed = zstd.compress(raw, _LEVEL)
            if len(packed) < _WORTH * len(raw):
                return digests, new, packed, len(raw)
        return digests, new, raw, len(raw)

    def _store(self) -> None:
        group, aligned, work = self._waiting.popleft()
        digests, new, stored, raw = work.result()
        if aligned:
            self.size_bytes += -self.size_bytes % PAGE_BYTES
        locations, known = self.locations, self.known
        inner = 0
        for number in new:
            length = len(group[number][0])
            place = Location(self.name, self.size_bytes, len(stored), raw, inner, length)
            locations.setdefault((digests[number], aligned), place)
            inner += length
        if new:
            self._writing.append(self._pool.submit(write_all, self._fd, stored, self.size_bytes))
            self.size_bytes += len(stored)
            while len(self._writing) > _AHEAD:
                self._writing.popleft().result()
        for (data, _, offset, sink), digest in zip(group, digests, strict=True):
            if (key := (digest, aligned)) not in locations:
                locations[key] = known[key]
            sink.append(Chunk(offset, len(data), digest))

    def use(self, chunks: Iterable[Chunk], *, aligned: bool = False) -> None:
        """Refer to chunks that are known, without reading them again."""
        for chunk in chunks:
            self.locations.setdefault((chunk.digest, aligned), self.known[chunk.digest, aligned])

    def finish(self) -> None:
        """All sinks are told. What was added is on its way to the disk; `synced` waits for it."""
        self._submit()
        while self._waiting:
            self._store()
        if self.size_bytes:
            written = tuple(self._writing)
            self._writing.append(self._pool.submit(self._sync, written))

    def synced(self) -> None:
        """Everything is on disk. Raises what kept it from there."""
        while self._writing:
            self._writing.popleft().result()

    def _sync(self, written: Iterable[Future[None]]) -> None:
        """In a thread: what is waited for was begun before, and is done by threads that wait for nothing."""
        wait(written)
        os.fsync(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        wait(self._writing)  # nothing is written to a descriptor that is somebody else's by then
        os.close(self._fd)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    written = os.pwrite(fd, data, offset)
    if written < len(data):
        with memoryview(data) as left:
            while written < len(left):
                written += os.pwrite(fd, left[written:], offset + written)


Wanted = tuple[Key, Location, T]


class Packs:
    """The packs of one snapshot, in a folder."""

    def __init__(self, folder: Path, names: Iterable[str], snapshot_id: str, named: Callable[[Key], str]) -> None:
        self._snapshot_id = snapshot_id
        self._named = named
        self._fds: dict[str, int] = {}
        with ExitStack() as opened:
            for name in names:
                fd = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                opened.callback(os.close, fd)
                self._fds[name] = fd
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def check(self, pool: ThreadPoolExecutor, wanted: Iterable[tuple[Key, Location]]) -> None:
        """Raises `DamagedSnapshot` unless all of them are as they were saved."""

        def checked(batch: list[list[Wanted[None]]]) -> None:
            for block in batch:
                self._opened_block(block)

        unique = ((key, location, None) for key, location in wanted)
        for _ in ordered(pool, checked, _batches(unique)):
            pass

    def read(self, pool: ThreadPoolExecutor, wanted: Iterable[Wanted[T]]) -> Iterator[tuple[T, memoryview]]:
        """The chunks, in the order in which they lie on disk."""

        def opened(batch: list[list[Wanted[T]]]) -> list[tuple[T, memoryview]]:
            return [found for block in batch for found in self._opened_block(block)]

        for batch in ordered(pool, opened, _batches(wanted)):
            yield from batch

    def chunk(self, key: Key, location: Location) -> memoryview:
        return self._opened_block([(key, location, None)])[0][1]

    def _opened_block(self, block: list[Wanted[T]]) -> list[tuple[T, memoryview]]:
        _, at, _ = block[0]
        data = os.pread(self._fds[at.pack], at.stored, at.offset)
        try:
            raw = zstd.ZstdDecompressor().decompress(data, max_length=at.raw) if at.stored != at.raw else data
        except zstd.ZstdError:
            raw = b""
        view = memoryview(raw)
        found = []
        for key, location, payload in block:
            piece = view[location.inner : location.inner + location.length]
            if len(piece) != location.length or blake3(piece).digest() != key[0]:
                raise DamagedSnapshot(
                    self._snapshot_id, f"{self._named(key)} can't be read back whole from the pack {at.pack}"
                )
            found.append((payload, piece))
        return found


def _batches(wanted: Iterable[Wanted[T]]) -> Iterator[list[list[Wanted[T]]]]:
    """Blocks, each with what is wanted of it, by position; about a megabyte at a time: the first one is waited for."""
    by_place = sorted(wanted, key=lambda it: (it[1].pack, it[1].offset, it[1].inner))
    batch: list[list[Wanted[T]]] = []
    size = 0
    for _, block in groupby(by_place, key=lambda it: (it[1].pack, it[1].offset)):
        members = list(block)
        batch.append(members)
        size += members[0][1].raw
        if size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
