"""A session's files in a folder of this machine: safe paths, a quota, atomic writes, archives.

No path, link or archive entry ever reaches outside, even while another process
moves things about: every step of a path is opened from the folder before it.
"""

import asyncio
import os
import stat
import tempfile
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO

from kernels import archives, swaps
from kernels.engine import FileInfo, FileType, Usage
from kernels.errors import BadPath, FileConflict, NoSuchFile, QuotaExceeded
from kernels.paths import (
    Place,
    Root,
    delete_tree,
    hidden_name,
    is_hidden,
    open_anyway,
    open_root,
    parse,
    resolve,
    show,
    show_name,
    translated,
    walk,
)
from kernels.threads import in_thread, outcome

PIECE_BYTES = 1 << 20
_USAGE_AGE_S = 1.0
_LEFTOVER_AGE_S = 86_400
_SPOOL_SPARE_BYTES = 256 << 20


class LocalWorkspace:
    """A workspace in a folder of this machine, whose parents nobody but us can change.

    Names like `.workspace-<32 hex digits>` in it are ours: files on their way in or out. They are not listed
    or archived, and what a crash left behind is deleted after a day.
    """

    def __init__(self, root: Path, quota_bytes: int | None, max_files: int = 250_000) -> None:
        self.root = self._root = root
        self._room = _Room(root, quota_bytes, max_files)
        self._deleting = threading.Lock()
        with suppress(FileNotFoundError):
            parent = os.open(root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                swaps.finish(parent, os.fsencode(root.name))
            finally:
                os.close(parent)

    async def usage(self) -> Usage:
        return await in_thread(self._room.measure)

    async def list(self, path: str = "", *, recursive: bool = False) -> list[FileInfo]:
        return await in_thread(_list, self._root, path, recursive)

    async def info(self, path: str) -> FileInfo:
        return await in_thread(self._info, path)

    async def read(self, path: str, *, start: int = 0, end: int | None = None) -> AsyncGenerator[bytes, None]:
        with ExitStack() as opened:
            fd = await in_thread(self._open, path, opened)
            while end is None or start < end:
                size = PIECE_BYTES if end is None else min(PIECE_BYTES, end - start)
                piece = await in_thread(os.pread, fd, size, start)
                if not piece:
                    break
                yield piece
                start += len(piece)

    async def write(self, path: str, pieces: AsyncIterator[bytes]) -> FileInfo:
        upload = _Upload(self._root, self._room, path)
        try:
            await in_thread(upload.open)
            waiting = bytearray()
            async for piece in pieces:
                waiting += piece
                if len(waiting) >= PIECE_BYTES:
                    await in_thread(upload.add, waiting)
                    waiting = bytearray()
            return await in_thread(upload.finish, waiting)
        finally:
            await in_thread(upload.close)

    async def make_folder(self, path: str) -> FileInfo:
        return await in_thread(self._make_folder, path)

    async def delete(self, path: str) -> None:
        await in_thread(self._delete, path)

    async def move(self, source: str, target: str, *, overwrite: bool = False) -> FileInfo:
        return await in_thread(self._move, source, target, overwrite)

    async def archive(self) -> AsyncGenerator[bytes, None]:
        with closing(self._pack()) as pieces:
            while (piece := await in_thread(partial(next, pieces, None))) is not None:
                if piece:
                    yield piece

    async def unpack(self, pieces: AsyncIterator[bytes], *, ours: bool = False) -> Usage:
        stopped = threading.Event()
        with ExitStack() as opened:
            spool = await in_thread(self._spool, opened)
            waiting, size = bytearray(), 0
            async for piece in pieces:
                waiting += piece
                size += len(piece)
                if self._room.quota_bytes is not None and size > self._room.quota_bytes + _SPOOL_SPARE_BYTES:
                    raise QuotaExceeded("", "the archive is larger than the workspace may be")
                if len(waiting) >= PIECE_BYTES:
                    await in_thread(_write_all, spool.fileno(), waiting, "")
                    waiting = bytearray()
            await in_thread(_write_all, spool.fileno(), waiting, "")
            loop = asyncio.get_running_loop()
            return await outcome(loop.run_in_executor(None, self._unpack, spool, ours, stopped), stopped.set)

    async def exchange(
        self,
        build: Callable[[Root, int], Usage | None],
        *,
        over: bool,
        on_stage: Callable[[str], object] = lambda _: None,
    ) -> Usage:
        """Everything becomes what `build` writes into an empty folder, at once. It is given the old one as well.

        What it wrote is measured if `build` does not tell how much that is.

        Nothing else changes the workspace while it builds `over` what is there. What is on its way in arrives later.
        The old files are deleted behind the answer.
        """
        loop = asyncio.get_running_loop()

        def later(delete: Callable[[], None]) -> None:
            loop.call_soon_threadsafe(lambda: loop.run_in_executor(None, delete))

        return await in_thread(self._exchange, build, over, on_stage, later)

    async def remove(self) -> None:
        await in_thread(self._remove)

    def _info(self, path: str) -> FileInfo:
        with open_root(self._root, path) as root, resolve(root, path) as place:
            return _file_info(show(parse(path)), place.status())

    def _open(self, path: str, opened: ExitStack) -> int:
        with open_root(self._root, path) as root, resolve(root, path) as place:
            _check_regular(place, place.status())
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = open_anyway(place.left[0], flags, place.folder)
            opened.callback(os.close, fd)
            _check_regular(place, os.fstat(fd))
            return fd

    def _make_folder(self, path: str) -> FileInfo:
        with self._room.change(), open_root(self._root, path) as root, resolve(root, path) as place:
            name = _name(place)
            if place.status_or_none() is not None:
                raise FileConflict(path, "it is there already")
            with place.made() as folder:
                os.mkdir(name, 0o755, dir_fd=folder)
                os.fsync(folder)
                return _file_info(show(parse(path)), os.stat(name, dir_fd=folder, follow_symlinks=False))

    def _delete(self, path: str) -> None:
        with self._room.change(), open_root(self._root, path) as root, resolve(root, path, follow=False) as place:
            name = _name(place)
            if not stat.S_ISDIR(place.status().st_mode):
                os.unlink(name, dir_fd=place.folder)
                return
            trash = hidden_name()
            try:
                os.rename(name, trash, src_dir_fd=place.folder, dst_dir_fd=root.fd)
            except PermissionError:  # a read-only folder can't be moved
                delete_tree(name, place.folder)
            else:
                delete_tree(trash, root.fd)

    def _move(self, source: str, target: str, overwrite: bool) -> FileInfo:
        with (
            self._room.change(),
            open_root(self._root, source) as root,
            resolve(root, source, follow=False) as old,
            resolve(root, target, follow=False) as new,
        ):
            old_name, new_name = _name(old), _name(new)
            status, there = old.status(), new.status_or_none()
            same = new.parts == old.parts
            if new.parts[: len(old.parts)] == old.parts and not same:
                raise FileConflict(target, "a folder can't be moved into itself")
            if there is not None and not overwrite:
                raise FileConflict(target, "it is there already")
            if there is not None and not same and stat.S_ISDIR(there.st_mode):
                raise FileConflict(target, "a folder is there")
            with new.made() as folder:
                os.rename(old_name, new_name, src_dir_fd=old.folder, dst_dir_fd=folder)
                if there is not None and status.st_nlink > 1 and os.path.samestat(status, there) and not same:
                    os.unlink(old_name, dir_fd=old.folder)  # rename leaves both names of a hard link
                os.fsync(folder)
                os.fsync(old.folder)
            return _file_info(show(parse(target)), status)

    def _pack(self) -> Generator[bytes, None, None]:
        with open_root(self._root) as root:
            yield from archives.pack(root)

    def _spool(self, opened: ExitStack) -> IO[bytes]:
        with translated(""):
            return opened.enter_context(tempfile.TemporaryFile(dir=self._root, buffering=0))

    def _unpack(self, spool: IO[bytes], ours: bool, stopped: threading.Event) -> Usage:
        name = hidden_name()
        try:
            with open_root(self._root) as root:
                limit = self._room.quota_bytes
                if limit is None:
                    disk = os.fstatvfs(root.fd)
                    limit = disk.f_bavail * disk.f_frsize
                plan = archives.read_plan(
                    spool, root, max_bytes=limit, max_files=self._room.max_files, ours=ours, stopped=stopped
                )
                merge = archives.plan_merge(root, plan)
                self._room.claim(name, "", plan.size_bytes - merge.freed_bytes, merge.new_files)
                with archives.staging(self._root, name, self._room.lock) as (unpacked, replaced):
                    archives.extract(spool, plan, unpacked, stopped)
                    with self._room.change(), open_root(self._root) as now:
                        archives.apply(archives.plan_merge(now, plan), now, unpacked, replaced)
                        self._room.settle(name)
        finally:
            self._room.drop(name)
        return self._room.measure()

    def _exchange(
        self,
        build: Callable[[Root, int], Usage | None],
        over: bool,
        on_stage: Callable[[str], object],
        later: Callable[[Callable[[], None]], object],
    ) -> Usage:
        with ExitStack() as undo:
            parent = os.open(self._root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            undo.callback(os.close, parent)
            with self._deleting:  # old files never pile up
                swaps.clean(parent)
            name, folder = undo.enter_context(swaps.building(parent))
            if over:
                undo.enter_context(self._room.change())
            with open_root(self._root) as old:
                usage = build(old, folder)
                os.fchmod(folder, stat.S_IMODE(os.fstat(old.fd).st_mode))
            on_stage("built")
            swaps.sync_all(folder)
            on_stage("synced")
            with self._room.change(), open_root(self._root) as old:
                self._room.move_claims(old.fd, folder)
                delete_old = swaps.replace(parent, name, folder, os.fsencode(self._root.name))
                undo.callback(later, partial(self._delete_old, delete_old))
                if usage is not None:
                    self._room.start_anew(usage)
            on_stage("swapped")
            return usage or self._room.measure()

    def _delete_old(self, delete: Callable[[], None]) -> None:
        with self._deleting:
            delete()

    def _remove(self) -> None:
        with self._deleting, self._room.change(), translated(""), suppress(FileNotFoundError):
            parent = os.open(self._root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                delete_tree(os.fsencode(self._root.name), parent)
            finally:
                os.close(parent)


class _Room:
    """What a workspace may hold, what it holds, and what is on its way into it. Used from threads."""

    def __init__(self, root: Path, quota_bytes: int | None, max_files: int) -> None:
        self.quota_bytes = quota_bytes
        self.max_files = max_files
        self._root = root
        self.lock = threading.RLock()
        self._used = Usage(0, 0)
        self._measured_at = float("-inf")
        self._claims: dict[bytes, Usage] = {}

    @contextmanager
    def change(self) -> Iterator[None]:
        """A block that changes files; one at a time."""
        with self.lock:
            try:
                yield
            finally:
                self._measured_at = float("-inf")

    def measure(self) -> Usage:
        with self.lock:
            if time.monotonic() - self._measured_at > _USAGE_AGE_S:
                self._used = self._scan()
                self._measured_at = time.monotonic()
            return self._used

    def claim(self, name: bytes, path: str, more_bytes: int, more_files: int) -> None:
        """Say how much what arrives under a hidden name will add. Raises `QuotaExceeded` if that is too much."""
        with self.lock:
            others = [claim for other, claim in self._claims.items() if other != name]
            total_bytes = self._used.total_bytes + more_bytes + sum(max(0, claim.total_bytes) for claim in others)
            file_count = self._used.file_count + more_files + sum(max(0, claim.file_count) for claim in others)
            if self.quota_bytes is not None and more_bytes > 0 and total_bytes > self.quota_bytes:
                raise QuotaExceeded(path, f"the workspace may hold {self.quota_bytes} bytes")
            if more_files > 0 and file_count > self.max_files:
                raise QuotaExceeded(path, f"the workspace may hold {self.max_files} files")
            self._claims[name] = Usage(more_files, more_bytes)

    def settle(self, name: bytes) -> None:
        """What was claimed is there now."""
        with self.lock:
            claim, used = self._claims[name], self._used
            self._used = Usage(used.file_count + claim.file_count, used.total_bytes + claim.total_bytes)
            self._claims[name] = Usage(0, 0)

    def drop(self, name: bytes) -> None:
        with self.lock:
            self._claims.pop(name, None)

    def start_anew(self, used: Usage) -> None:
        """The workspace holds this now, and what is on its way in."""
        with self.lock:
            self._used = used

    def move_claims(self, old: int, new: int) -> None:
        """What is on its way in goes on in another folder."""
        for name in self._claims:
            with suppress(FileNotFoundError):
                os.rename(name, name, src_dir_fd=old, dst_dir_fd=new)

    def _scan(self) -> Usage:
        file_count = total_bytes = 0
        seen = set()
        with open_root(self._root) as root:
            self._delete_leftovers(root)
            for _, _, entries in walk(root.fd, skip=self._claims.__contains__):
                for _, status in entries:
                    if stat.S_ISDIR(status.st_mode):
                        continue
                    if status.st_nlink > 1:
                        if (status.st_dev, status.st_ino) in seen:
                            continue
                        seen.add((status.st_dev, status.st_ino))
                    file_count += 1
                    total_bytes += status.st_size
        return Usage(file_count, total_bytes)

    def _delete_leftovers(self, root: Root) -> None:
        parent = os.open(self._root.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            swaps.clean(parent)
        finally:
            os.close(parent)
        with os.scandir(root.fd) as found:
            names = [name for entry in found if is_hidden(name := os.fsencode(entry.name))]
        for name in names:
            with suppress(OSError):
                status = os.stat(name, dir_fd=root.fd, follow_symlinks=False)
                if name in self._claims or status.st_mtime > time.time() - _LEFTOVER_AGE_S:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    delete_tree(name, root.fd)
                else:
                    os.unlink(name, dir_fd=root.fd)


class _Upload:
    """A file on its way in, hidden until all of it is on disk."""

    def __init__(self, root: Path, room: _Room, path: str) -> None:
        self._root = root
        self._room = room
        self._path = path
        self._name = hidden_name()
        self._fd = -1
        self._size = 0
        self._old: os.stat_result | None = None
        self._finished = False

    def open(self) -> None:
        with (
            self._room.lock,
            open_root(self._root, self._path) as root,
            resolve(root, self._path) as place,
        ):
            self._find_old(place)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self._name, flags, 0o600, dir_fd=root.fd)

    def add(self, data: bytearray) -> None:
        self._size += len(data)
        self._claim()
        _write_all(self._fd, data, self._path)

    def finish(self, data: bytearray) -> FileInfo:
        """Put the file in its place, which is looked for again: much may have changed since."""
        self.add(data)
        with translated(self._path):
            os.fsync(self._fd)
        with (
            self._room.lock,
            open_root(self._root, self._path) as root,
            resolve(root, self._path) as place,
        ):
            self._find_old(place)
            os.fchmod(self._fd, 0o644 if self._old is None else self._old.st_mode & 0o777)
            with place.made() as folder:
                os.rename(self._name, place.left[-1], src_dir_fd=root.fd, dst_dir_fd=folder)
                os.fsync(folder)
            self._finished = True
            self._room.settle(self._name)
            return _file_info(show(parse(self._path)), os.fstat(self._fd))

    def close(self) -> None:
        """What was not finished is taken away."""
        if self._fd >= 0:
            os.close(self._fd)
            if not self._finished:
                with suppress(FileNotFoundError, NoSuchFile), open_root(self._root) as root:
                    os.unlink(self._name, dir_fd=root.fd)
        self._room.drop(self._name)

    def _find_old(self, place: Place) -> None:
        _name(place)
        self._old = place.status_or_none()
        if self._old is not None:
            _check_regular(place, self._old)
        self._room.measure()
        self._claim()

    def _claim(self) -> None:
        """The old file gives its bytes back, if no other name holds on to them."""
        freed = self._old.st_size if self._old is not None and self._old.st_nlink == 1 else 0
        self._room.claim(self._name, self._path, self._size - freed, int(self._old is None))


def _list(root_path: Path, path: str, recursive: bool) -> list[FileInfo]:
    asked = show(parse(path))
    with open_root(root_path, path) as root, resolve(root, path) as place:
        status = place.status()
        if not stat.S_ISDIR(status.st_mode):
            return [_file_info(asked, status)]
        found = []
        for parts, _, entries in walk(root.fd, place.parts, skip=is_hidden):
            folder = "/".join(filter(None, (asked, show(parts[len(place.parts) :]))))
            start = f"{folder}/" if folder else ""
            found += [_file_info(start + show_name(name), status) for name, status in entries]
            if not recursive:
                break
    found.sort(key=lambda info: info.path)
    return found


_TYPES: dict[int, FileType] = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}


def _file_info(path: str, status: os.stat_result) -> FileInfo:
    try:
        modified_at = datetime.fromtimestamp(status.st_mtime, UTC)
    except (OverflowError, ValueError, OSError):  # a file can claim to be from any year
        modified_at = datetime(9999 if status.st_mtime > 0 else 1, 12, 31, tzinfo=UTC)
    kind = _TYPES.get(stat.S_IFMT(status.st_mode), "other")
    version = f"{status.st_mtime_ns:x}-{status.st_ino:x}-{status.st_size:x}"
    return FileInfo(path, status.st_size, modified_at, kind, stat.S_IMODE(status.st_mode), version)


def _name(place: Place) -> bytes:
    """The last name of a path to something that can be written, moved or deleted."""
    if place.left:
        return place.left[-1]
    if parse(place.path):
        raise FileConflict(place.path, "it leads to a folder")
    raise BadPath(place.path, "that is the workspace itself")


def _check_regular(place: Place, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise FileConflict(place.path, "it is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise FileConflict(place.path, "it is not a regular file")


def _write_all(fd: int, data: bytearray, path: str) -> None:
    with translated(path), memoryview(data) as left:
        written = 0
        while written < len(left):
            written += os.write(fd, left[written:])
