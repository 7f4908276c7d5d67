"""A workspace's files read into chunks, and written back from them.

Whatever a session's processes do to files meanwhile, reading goes on, and what could not be kept is named.
"""

import ctypes
import errno
import os
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field

from kernels.copies import extents
from kernels.engine import Skipped, Usage
from kernels.errors import NoSuchFile, WorkspaceError
from kernels.manifests import CHUNK_BYTES, Chunk, Entry, Manifest, Stamp
from kernels.packs import Packer, Packs, Sink, Wanted, write_all
from kernels.paths import Folders, Parts, Root, check, is_hidden, open_anyway, parse, show, split, walk
from kernels.swaps import sync_all

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_UNFINISHED = 0o600
_TRIES = 2
_OURS = {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_GONE = {errno.ENOENT, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ESPIPE, errno.EISDIR}
_KINDS = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a fifo",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_SYNC_RANGE = 7  # wait, write, wait
_SYNC_BYTES = 2 << 20  # written to disk while more is made

_libc = ctypes.CDLL(None, use_errno=True)
_sync_file_range = getattr(_libc, "sync_file_range", None) if sys.platform == "linux" else None


@dataclass(slots=True)
class Tree:
    """What was found. Its entries have their chunks once the packer is finished."""

    skipped: list[Skipped] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    drafts: list[tuple[Entry, Sink]] = field(default_factory=list)

    def entries(self) -> tuple[Entry, ...]:
        return tuple(
            Entry(*entry[:6], tuple(sink), entry.stamp) if sink else entry  # `_replace` takes three times as long
            for entry, sink in self.drafts
        )


def read_tree(root: Root, packer: Packer, before: Mapping[Parts, Entry], settled_s: float) -> Tree:
    """Read everything in a workspace.

    A file that has the stamp of the entry `before` is not read again. A stamp is good only if the file was left
    alone for `settled_s` before it was read: clocks are coarse, and what is written through a mapping shows in the
    file's times only after the system has written it back, which takes half a minute.
    """
    tree = Tree()
    reader = _Reader(tree, packer, before, round(settled_s * 1e9))

    def unreadable(parts: Parts, error: OSError) -> None:
        tree.skipped.append(Skipped(show(parts), f"a folder that can't be read: {_why(error)}"))

    for parts, folder, entries in walk(root.fd, skip=is_hidden, on_error=unreadable):
        kept = []
        for name, status in entries:
            path = (*parts, name)
            if reader.read(path, folder, status):
                kept.append((name, status))
        entries[:] = kept  # what is left out is not entered either
    return tree


class _Reader:
    def __init__(self, tree: Tree, packer: Packer, before: Mapping[Parts, Entry], settled_ns: int) -> None:
        self._tree = tree
        self._packer = packer
        self._before = before
        self._settled_ns = settled_ns
        self._linked: dict[tuple[int, int], bytes] = {}

    def read(self, path: Parts, folder: int, status: os.stat_result) -> bool:
        """Whether it is kept."""
        reason = _KINDS.get(stat.S_IFMT(status.st_mode))
        try:
            if reason is None:
                check(path, "")
                self._keep(path, folder, status)
                return True
        except WorkspaceError as error:
            reason = str(error).removeprefix("'': ")
        except OSError as error:
            if error.errno in _OURS:
                raise
            gone = error.errno in _GONE
            reason = "it vanished while it was read" if gone else f"it can't be read: {_why(error)}"
        self._tree.skipped.append(Skipped(show(path), reason))
        return False

    def _keep(self, path: Parts, folder: int, status: os.stat_result) -> None:
        mode, modified_ns = stat.S_IMODE(status.st_mode), status.st_mtime_ns
        drafts = self._tree.drafts
        if stat.S_ISDIR(status.st_mode):
            drafts.append((Entry(path, "folder", mode, modified_ns), []))
        elif stat.S_ISLNK(status.st_mode):
            target = os.readlink(path[-1], dir_fd=folder)
            drafts.append((Entry(path, "link", 0, modified_ns, target=target), []))
        elif (inode := (status.st_dev, status.st_ino)) in self._linked:
            drafts.append((Entry(path, "hard link", target=self._linked[inode]), []))
        else:
            drafts.append(self._file(path, folder, status))
            if status.st_nlink > 1:
                self._linked[inode] = b"/".join(path)

    def _file(self, path: Parts, folder: int, status: os.stat_result) -> tuple[Entry, Sink]:
        known = self._before.get(path)
        if known is not None and known.stamp == _stamp(status):
            self._packer.use(known.chunks)
            return known._replace(mode=stat.S_IMODE(status.st_mode)), []
        fd = open_anyway(path[-1], _READ, folder)
        try:
            for _ in range(_TRIES):
                started_ns = time.time_ns()
                settled = max(status.st_ctime_ns, status.st_mtime_ns) < started_ns - self._settled_ns
                if settled and _sync_file_range is not None:
                    _sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_RANGE)
                sink: Sink = []
                size = _read_chunks(fd, status, self._packer, sink)
                after = os.fstat(fd)
                if not stat.S_ISREG(after.st_mode):
                    raise OSError(errno.ENOENT, "it became something else")
                same = _stamp(after) == _stamp(status) and size == status.st_size
                mode, modified_ns, status = stat.S_IMODE(status.st_mode), status.st_mtime_ns, after
                if same:
                    break
            else:
                self._tree.changed.append(show(path))
            stamp = _stamp(status) if same and settled else None
            return Entry(path, "file", mode, modified_ns, size, stamp=stamp), sink
        finally:
            os.close(fd)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _read_chunks(fd: int, status: os.stat_result, packer: Packer, sink: Sink) -> int:
    """Hand every chunk to the packer; returns the size, which is less when the file was cut off meanwhile."""
    if 0 < status.st_size <= min(CHUNK_BYTES, status.st_blocks * 512):  # most files are small, and have no holes
        if data := os.pread(fd, status.st_size, 0):
            packer.add(data, 0, sink)
        return len(data)
    for start, end in extents(fd, status):
        while start < end:
            wanted = min(end, start - start % CHUNK_BYTES + CHUNK_BYTES) - start
            data = os.pread(fd, wanted, start)
            if data:
                packer.add(data, start, sink)
            start += len(data)
            if len(data) < wanted:
                return start
    return status.st_size


def chosen(manifest: Manifest, paths: Collection[str]) -> tuple[list[Entry], list[Parts]]:
    """The entries below these paths and the folders that lead to them, and the paths. Raises `NoSuchFile`.

    Where the file that a hard link stands for is not among them, the link becomes that file.
    """
    by_parts = {entry.parts: entry for entry in manifest.entries}
    tops = {parse(path) for path in paths}
    for top in tops:
        if top and top not in by_parts:
            raise NoSuchFile(show(top), f"it is not in the snapshot {manifest.id!r}")
    tops = {top for top in tops if not any(top[:depth] in tops for depth in range(len(top)))}
    leading = {top[:depth] for top in tops for depth in range(1, len(top))}
    stands_for: dict[bytes, bytes] = {}
    entries = []
    for entry in manifest.entries:
        inside = any(entry.parts[:depth] in tops for depth in range(len(entry.parts) + 1))
        if not inside and entry.parts not in leading:
            continue
        if entry.kind == "file":
            stands_for[b"/".join(entry.parts)] = b"/".join(entry.parts)
        elif entry.kind == "hard link":
            here = b"/".join(entry.parts)
            if (first := stands_for.setdefault(entry.target, here)) == here:
                entry = by_parts[tuple(split(entry.target))]._replace(parts=entry.parts)
            else:
                entry = entry._replace(target=first)
        entries.append(entry)
    return entries, sorted(tops)


def write_tree(
    entries: list[Entry],
    there: list[Entry],
    manifest: Manifest,
    packs: Packs,
    pool: ThreadPoolExecutor,
    into: int,
) -> None:
    """Write entries below a folder that nobody else sees. Folders, those `there` too, get their modes at the end.

    Most of it is on disk afterwards; what a `sync_all` tells when it fails, it tells once, so none goes unheard.
    """
    files = [entry for entry in entries if entry.kind == "file"]
    wanted: list[Wanted[tuple[Entry, Chunk]]] = [
        ((chunk.digest, False), manifest.locations[chunk.digest, False], (entry, chunk))
        for entry in files
        for chunk in entry.chunks
    ]
    with closing(Folders(into)) as folders:
        for entry in entries:
            if entry.kind == "folder":
                os.mkdir(entry.parts[-1], 0o700, dir_fd=folders.open(entry.parts[:-1]))
        writer = _Writer(folders)
        syncing: Future[None] | None = None
        unsynced = 0
        try:
            for (entry, chunk), data in packs.read(pool, wanted):
                writer.write(entry, chunk, data)
                unsynced += len(data)
                if unsynced >= _SYNC_BYTES and (syncing is None or syncing.done()):
                    if syncing is not None:
                        syncing.result()
                    syncing, unsynced = pool.submit(sync_all, into), 0
        finally:
            writer.close()
        for entry in files:
            if len(entry.chunks) != 1:
                writer.finish(entry)
        for entry in entries:
            if entry.kind in ("link", "hard link"):
                _write_link(entry, folders, into)
        made = sorted((entry for entry in (*there, *entries) if entry.kind == "folder"), key=lambda it: it.parts)
        for entry in reversed(made):
            os.utime(folders.open(entry.parts), ns=(entry.modified_ns, entry.modified_ns))
        for entry in reversed(made):
            os.chmod(entry.parts[-1], entry.mode, dir_fd=folders.open(entry.parts[:-1]))
        if syncing is not None:
            syncing.result()


def usage(entries: Iterable[Entry]) -> Usage:
    """What they come to in a workspace."""
    found = [entry for entry in entries if entry.kind in ("file", "link")]
    return Usage(len(found), sum(entry.size or len(entry.target) for entry in found))


class _Writer:
    """Writes chunks as they come; a file whose chunks come one after another is opened once."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self._fd = -1
        self._parts: Parts = ()
        self._given: dict[int, bool] = {}

    def write(self, entry: Entry, chunk: Chunk, data: memoryview) -> None:
        if entry.parts != self._parts:
            self._open(entry, entry.mode if len(entry.chunks) == 1 else _UNFINISHED)
        write_all(self._fd, data, chunk.offset)
        if len(entry.chunks) == 1:
            self._finish(entry, self._gives(entry.mode))

    def finish(self, entry: Entry) -> None:
        """Once all chunks are written; a file that has none is made here."""
        self._open(entry, _UNFINISHED)
        self._finish(entry, False)
        self.close()

    def _finish(self, entry: Entry, has_mode: bool) -> None:
        if not entry.chunks or entry.chunks[-1].offset + entry.chunks[-1].length != entry.size:
            os.ftruncate(self._fd, entry.size)
        if not has_mode:
            os.fchmod(self._fd, entry.mode)
        os.utime(self._fd, ns=(entry.modified_ns, entry.modified_ns))

    def _gives(self, mode: int) -> bool:
        """Whether a file that is made with this mode has it. What takes from it is the same for all of them."""
        if (given := self._given.get(mode)) is None:
            given = self._given[mode] = stat.S_IMODE(os.fstat(self._fd).st_mode) == mode
        return given

    def _open(self, entry: Entry, mode: int) -> None:
        self.close()
        self._fd = os.open(entry.parts[-1], _WRITE, mode, dir_fd=self._folders.open(entry.parts[:-1]))
        self._parts = entry.parts

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd, self._parts = -1, ()


def _write_link(entry: Entry, folders: Folders, into: int) -> None:
    if entry.kind == "link":
        folder = folders.open(entry.parts[:-1])
        os.symlink(entry.target, entry.parts[-1], dir_fd=folder)
        os.utime(entry.parts[-1], ns=(entry.modified_ns,) * 2, dir_fd=folder, follow_symlinks=False)
        return
    *above, name = split(entry.target)
    with closing(Folders(into)) as originals:
        os.link(
            name, entry.parts[-1], src_dir_fd=originals.open(above), dst_dir_fd=folders.open(entry.parts[:-1]),
            follow_symlinks=False,
        )  # fmt: skip


def link_tree(root: Root, into: int, leave_out: Callable[[Parts], bool]) -> list[Entry]:
    """The same files under a second folder, which is what a workspace becomes when only some of it is replaced.

    Folders are made anew, and returned: they get their modes when all is in them. Files are the same ones, with one
    more name.
    """
    made = []
    with closing(Folders(into)) as folders:
        for parts, folder, entries in walk(root.fd, skip=is_hidden):
            entries[:] = [(name, status) for name, status in entries if not leave_out((*parts, name))]
            for name, status in entries:
                target = folders.open(parts)
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(name, 0o700, dir_fd=target)
                    mode, modified_ns = stat.S_IMODE(status.st_mode), status.st_mtime_ns
                    made.append(Entry((*parts, name), "folder", mode, modified_ns))
                else:
                    with suppress(FileNotFoundError):  # it was deleted since the folder was read
                        os.link(name, name, src_dir_fd=folder, dst_dir_fd=target, follow_symlinks=False)
    return made
