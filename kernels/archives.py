"""A workspace's files as a tar.zst, and back.

An archive from outside is read twice: once to see that every entry may be unpacked,
then, out of the same bytes, into a hidden folder from where it is moved into place.
"""

import errno
import gzip
import io
import itertools
import os
import re
import stat
import sys
import tarfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Self

from kernels.errors import BadArchive, BadPath, FileConflict, OutsideWorkspace, QuotaExceeded, WorkspaceError
from kernels.paths import (
    Folders,
    Parts,
    Root,
    check,
    delete_tree,
    is_hidden,
    open_anyway,
    open_root,
    resolve,
    show,
    split,
    translated,
    walk,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE_BYTES = 1 << 20
ZEROS = bytes(PIECE_BYTES)
_SPARE_BYTES = 1 << 20
_HEADER_BYTES = 1 << 14
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)
_MAX_EXTENSION_BYTES = 1 << 16
_DAMAGE = (
    *(tarfile.TarError, zstd.ZstdError, zlib.error, gzip.BadGzipFile, EOFError),
    *(ArithmeticError, ValueError, RecursionError),
)
_WINDOWS = re.compile(rb"[A-Za-z]:[\\/]|\\|(.*[\\/])?\.\.([\\/]|$)", re.DOTALL)


def pack(root: Root) -> Iterator[bytes]:
    """A tar.zst of everything, made as it is asked for; a piece may be empty while there is nothing to hand out yet.

    Files that change meanwhile are cut or padded to the size that they had.
    """
    return compressed(_tar(root))


def compressed(blocks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """A zst of these, in pieces; empty ones while there is nothing to hand out yet."""
    workers = min(2, os.cpu_count() or 1, zstd.CompressionParameter.nb_workers.bounds()[1])
    compressor = zstd.ZstdCompressor(
        options={
            zstd.CompressionParameter.compression_level: 1,
            zstd.CompressionParameter.checksum_flag: 1,
            zstd.CompressionParameter.nb_workers: workers if workers > 1 else 0,
        }
    )
    raw = bytearray()
    for block in blocks:
        raw += block
        if len(raw) >= PIECE_BYTES:
            yield from _cut(compressor.compress(raw))
            raw = bytearray()
    yield from _cut(compressor.compress(raw) + compressor.flush())


def _cut(data: bytes) -> Iterator[bytes]:
    if len(data) <= PIECE_BYTES:
        yield data
        return
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


def _tar(root: Root) -> Iterator[bytes]:
    linked: dict[tuple[int, int], str] = {}
    for parts, folder, entries in walk(root.fd, skip=is_hidden):
        for name, status in entries:
            with translated(show((*parts, name))):
                try:
                    yield from _packed((*parts, name), folder, status, linked)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ELOOP, errno.ENXIO, errno.EINVAL):
                        raise  # those four: it is gone, or something else, since the folder was read
    yield bytes(2 * tarfile.BLOCKSIZE)


def _packed(parts: Parts, folder: int, status: os.stat_result, linked: dict[tuple[int, int], str]) -> Iterator[bytes]:
    """One entry: its header, and what is in it."""
    header = _header(parts, status)
    if stat.S_ISDIR(status.st_mode):
        header.type = tarfile.DIRTYPE
    elif stat.S_ISLNK(status.st_mode):
        header.type = tarfile.SYMTYPE
        header.linkname = _text(os.readlink(parts[-1], dir_fd=folder))
    elif stat.S_ISREG(status.st_mode):
        inode = status.st_dev, status.st_ino
        if inode in linked:
            header.type = tarfile.LNKTYPE
            header.linkname = linked[inode]
        else:
            fd = open_anyway(parts[-1], _READ, folder)
            try:
                status = os.fstat(fd)
                if stat.S_ISREG(status.st_mode):
                    header = _header(parts, status)
                    header.size = status.st_size
                    yield header_bytes(header)
                    yield from _contents(fd, status)
                    yield bytes(-status.st_size % tarfile.BLOCKSIZE)
            finally:
                os.close(fd)
            if status.st_nlink > 1:
                linked[inode] = header.name
            return
    else:
        return
    yield header_bytes(header)


def _header(parts: Parts, status: os.stat_result) -> tarfile.TarInfo:
    header = tarfile.TarInfo(_text(b"/".join(parts)))
    header.mode = stat.S_IMODE(status.st_mode)
    set_time(header, status.st_mtime_ns)
    return header


def set_time(header: tarfile.TarInfo, modified_ns: int) -> None:
    header.mtime = modified_ns // 10**9
    seconds, nanoseconds = divmod(abs(modified_ns), 10**9)
    if nanoseconds:
        header.pax_headers = {"mtime": f"{'-' * (modified_ns < 0)}{seconds}.{nanoseconds:09}"}


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def header_bytes(header: tarfile.TarInfo) -> bytes:
    return header.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _contents(fd: int, status: os.stat_result) -> Iterator[bytes]:
    """Exactly as many bytes as the file had; its holes are not read."""
    sparse = status.st_blocks * 512 < status.st_size and hasattr(os, "SEEK_DATA")
    position = 0
    while position < status.st_size:
        left = min(PIECE_BYTES, status.st_size - position)
        piece = b"" if sparse and _in_hole(fd, position, left) else os.pread(fd, left, position)
        yield piece or ZEROS[:left]
        position += len(piece) or left


def _in_hole(fd: int, position: int, length: int) -> bool:
    try:
        return os.lseek(fd, position, os.SEEK_DATA) >= position + length
    except OSError:  # ENXIO: no data from here to the end
        return True


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to unpack. `target` is a link's text, or the path in the archive that a hard link stands for."""

    parts: Parts
    kind: Literal["file", "folder", "link", "hard link"]
    size: int = 0
    mode: int = 0o755
    modified_ns: int | None = None
    target: bytes = b""


@dataclass(slots=True)
class Plan:
    """What an archive holds, found to be harmless: the entries in order, and each path with its folders."""

    entries: list[Entry] = field(default_factory=list)
    tree: dict[Parts, Entry] = field(default_factory=dict)
    size_bytes: int = 0

    def add(self, entry: Entry) -> None:
        self.entries.append(entry)
        self.size_bytes += entry.size
        for depth in range(len(entry.parts) - 1, 0, -1):
            folder = entry.parts[:depth]
            known = self.tree.get(folder)
            if known is None:
                self.tree[folder] = Entry(folder, "folder")
            elif known.kind == "folder":
                break
            else:
                raise BadArchive(show(entry.parts), f"the archive has a {known.kind} where a folder must be")
        known = self.tree.get(entry.parts, entry)
        if known is not entry and (known.kind, entry.kind) != ("folder", "folder"):
            raise BadArchive(show(entry.parts), "it is in the archive twice")
        if entry.kind == "hard link":
            original = self.tree.get(tuple(split(entry.target)))
            if original is None or original.kind not in ("file", "hard link"):
                raise BadArchive(show(entry.parts), "a hard link to what is no file earlier in the archive")
        if entry.parts:
            self.tree[entry.parts] = entry


class Stopped(Exception):
    """Nobody waits for this archive any more."""


class Meter(io.BufferedIOBase):
    """What an archive decompresses to, as long as that is no more than its entries may take.

    A bomb is measured by what it becomes, not by what it says.
    """

    def __init__(self, source: IO[bytes] | zstd.ZstdFile | gzip.GzipFile, stopped: threading.Event) -> None:
        super().__init__()
        self._source = source
        self._stopped = stopped
        self._left = _SPARE_BYTES

    def read(self, size: int | None = -1, /) -> bytes:
        if self._stopped.is_set():
            raise Stopped
        piece = self._source.read(-1 if size is None else size)
        self._left -= len(piece)
        if self._left < 0:
            raise QuotaExceeded("", "the archive unpacks to more than its entries account for")
        return piece

    def grant(self, size: int) -> None:
        """Let an entry and the header after it through. What headers saved up is capped: they are held in memory."""
        self._left = min(self._left, _SPARE_BYTES) + size + tarfile.BLOCKSIZE + _HEADER_BYTES

    def drain(self) -> None:
        """To the end, which is where damage shows."""
        while self.read(PIECE_BYTES):
            pass


class _StrictInfo(tarfile.TarInfo):
    """tarfile takes a damaged or missing header for the end of the archive, and reads any extended one; we don't."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end
            raise BadArchive("", f"damaged or cut off: {error}") from error
        if header.type in _EXTENSIONS and header.size > _MAX_EXTENSION_BYTES:
            raise BadArchive("", f"an extended header is longer than {_MAX_EXTENSION_BYTES} bytes")
        return header


class Tar(tarfile.TarFile):
    members: list[tarfile.TarInfo]
    tarinfo = _StrictInfo

    def next_header(self) -> tarfile.TarInfo | None:
        header = self.next()
        self.members.clear()  # a million of them would fill the memory
        return header


@contextmanager
def reading(spool: IO[bytes], stopped: threading.Event) -> Iterator[tuple[Tar, Meter]]:
    """An archive from its start, whatever it is compressed with. Damage raises `BadArchive`."""
    spool.seek(0)
    magic = spool.read(4)
    spool.seek(0)
    try:
        with ExitStack() as stack:
            source: IO[bytes] | zstd.ZstdFile | gzip.GzipFile = spool
            if magic == b"\x28\xb5\x2f\xfd" or (magic[1:] == b"\x2a\x4d\x18" and magic[0] & 0xF0 == 0x50):
                source = zstd.ZstdFile(spool)
                stack.callback(source.close)
            elif magic[:2] == b"\x1f\x8b":
                source = gzip.GzipFile(fileobj=spool)
                stack.callback(source.close)
            meter = Meter(source, stopped)
            yield stack.enter_context(Tar.open(fileobj=meter, mode="r|", bufsize=1 << 16, encoding="utf-8")), meter
    except _DAMAGE as error:
        raise BadArchive("", f"not an archive that can be read: {error}") from error


def read_plan(
    spool: IO[bytes], root: Root, *, max_bytes: int, max_files: int, ours: bool, stopped: threading.Event
) -> Plan:
    """Look at every entry. Raises the `WorkspaceError` of the first one that may not be unpacked."""
    plan = Plan()
    with reading(spool, stopped) as (tar, meter):
        while (header := tar.next_header()) is not None:
            entry = _entry(header, root, ours=ours)
            plan.add(entry)
            if plan.size_bytes > max_bytes:
                raise QuotaExceeded("", f"the archive holds more than {max_bytes} bytes")
            if len(plan.tree) > max_files:
                raise QuotaExceeded("", f"the archive holds more than {max_files} files and folders")
            meter.grant(entry.size)
        meter.drain()
    return plan


def _entry(header: tarfile.TarInfo, root: Root, *, ours: bool) -> Entry:
    parts = _entry_parts(header.name, ours=ours)
    shown = show(parts)
    mode = header.mode & 0o777
    modified_ns = _nanoseconds(header)
    if header.size < 0 or header.issparse() or any(key.startswith("GNU.sparse") for key in header.pax_headers):
        raise BadArchive(shown, "a sparse entry, or one with no sensible size")  # they can lie about what they hold
    if header.isdir():
        return Entry(parts, "folder", mode=mode, modified_ns=modified_ns)
    if not parts:
        raise BadArchive("", "an entry has no name")
    if header.isreg():
        return Entry(parts, "file", header.size, mode, modified_ns)
    target = header.linkname.encode("utf-8", "surrogateescape")
    if header.islnk():
        return Entry(parts, "hard link", target=b"/".join(_entry_parts(header.linkname, ours=ours)))
    if header.issym():
        if not target or b"\0" in target or len(target) >= 4096:
            raise BadArchive(shown, "a link to what can't be a path")
        if not (ours or stays_inside(parts, target, root)):
            raise OutsideWorkspace(shown, "a link that leads, or could lead, out of the workspace")
        return Entry(parts, "link", modified_ns=modified_ns, target=target)
    raise BadArchive(shown, "neither a file, a folder nor a link")


def _entry_parts(name: str, *, ours: bool) -> Parts:
    raw = name.encode("utf-8", "surrogateescape")
    parts = tuple(split(raw))
    if raw.startswith(b"/") or not (ours or _WINDOWS.match(raw) is None):
        raise OutsideWorkspace(show(parts), "an archive's names are relative, with `/` between their parts")
    try:
        check(parts, show(parts))
    except BadPath as error:
        raise BadArchive(show(parts), "not a name for a file here") from error
    return parts


def stays_inside(parts: Parts, target: bytes, root: Root) -> bool:
    """Whether a link can't lead out, whatever other links it meets: it climbs at its start only, and not too far."""
    if target.startswith(b"/"):
        steps, depth = root.inside(target), 0
    else:
        steps, depth = split(target), len(parts) - 1
    if steps is None:
        return False
    down = list(itertools.dropwhile(lambda step: step == b"..", steps))
    return len(steps) - len(down) <= depth and b".." not in down


def _nanoseconds(header: tarfile.TarInfo) -> int:
    exact = re.fullmatch(r"(-?)(\d{1,11})(?:\.(\d+))?", header.pax_headers.get("mtime", ""))
    if exact is None:
        return max(-(2**36), min(int(header.mtime), 2**36)) * 10**9
    nanoseconds = int(exact[2]) * 10**9 + int((exact[3] or "0")[:9].ljust(9, "0"))
    return -nanoseconds if exact[1] else nanoseconds


def extract(spool: IO[bytes], plan: Plan, into: int, stopped: threading.Event) -> None:
    """Write what was planned below an empty folder."""
    with reading(spool, stopped) as (tar, meter), closing(Folders(into)) as folders:
        for parts in sorted(parts for parts, entry in plan.tree.items() if entry.kind == "folder"):
            os.mkdir(parts[-1], 0o700, dir_fd=folders.open(parts[:-1]))
        for entry in plan.entries:
            header = tar.next_header()
            if header is None:
                raise BadArchive("", "it changed while it was read")
            meter.grant(entry.size)
            folder = folders.open(entry.parts[:-1])
            if entry.kind == "file":
                _write(entry, tar.extractfile(header), folder)
            elif entry.kind == "link":
                os.symlink(entry.target, entry.parts[-1], dir_fd=folder)
                os.utime(entry.parts[-1], ns=_times(entry), dir_fd=folder, follow_symlinks=False)
            elif entry.kind == "hard link":
                *above, name = split(entry.target)
                with closing(Folders(into)) as originals:
                    original = originals.open(above)
                    os.link(name, entry.parts[-1], src_dir_fd=original, dst_dir_fd=folder, follow_symlinks=False)


def _write(entry: Entry, source: IO[bytes] | None, folder: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(entry.parts[-1], flags, 0o600, dir_fd=folder)
    with open(fd, "wb", buffering=PIECE_BYTES) as file:
        while source is not None and (piece := source.read(PIECE_BYTES)):
            if piece == ZEROS:
                file.seek(PIECE_BYTES, os.SEEK_CUR)  # what was sparse stays so
            else:
                file.write(piece)
        file.truncate(entry.size)
        os.fchmod(fd, entry.mode)
        os.utime(fd, ns=_times(entry))


def _times(entry: Entry) -> tuple[int, int]:
    return entry.modified_ns or 0, entry.modified_ns or 0


@dataclass(slots=True)
class Merge:
    """How what was unpacked goes into the workspace: each step moves one new file or folder with all in it."""

    steps: list[Parts] = field(default_factory=list)
    new_folders: list[Entry] = field(default_factory=list)
    new_files: int = 0
    freed_bytes: int = 0


def plan_merge(root: Root, plan: Plan) -> Merge:
    """Compare with what is there. Raises `FileConflict` for a folder where a file is, or the other way round."""
    merge = Merge()
    moved: Parts | None = None
    with closing(Folders(root.fd)) as folders:
        for parts in sorted(plan.tree):
            entry = plan.tree[parts]
            is_folder = entry.kind == "folder"
            merge.new_files += not is_folder
            if moved is None or parts[: len(moved)] != moved:
                there = _status(parts, folders)
                if there is not None and is_folder and stat.S_ISDIR(there.st_mode):
                    continue
                if there is not None:
                    _check_replaceable(root, parts, there, is_folder=is_folder)
                    merge.new_files -= 1
                    merge.freed_bytes += there.st_size if there.st_nlink == 1 else 0
                moved = parts
                merge.steps.append(parts)
            if is_folder:
                merge.new_folders.append(entry)
    return merge


def _status(parts: Parts, folders: Folders) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return os.stat(parts[-1], dir_fd=folders.open(parts[:-1]), follow_symlinks=False)
    return None


def _check_replaceable(root: Root, parts: Parts, there: os.stat_result, *, is_folder: bool) -> None:
    if stat.S_ISLNK(there.st_mode) and is_folder:
        with resolve(root, show(parts)):  # raises if it leads out
            raise FileConflict(show(parts), "a link is where the archive has a folder")
    if is_folder or stat.S_ISDIR(there.st_mode):
        raise FileConflict(show(parts), "a file where the archive has a folder, or the other way round")


def apply(merge: Merge, root: Root, unpacked: int, replaced: int) -> None:
    """Move everything into place; if that fails, everything goes back."""
    with ExitStack() as undo, closing(Folders(root.fd)) as here, closing(Folders(unpacked)) as there:
        for number, parts in enumerate(merge.steps):
            with translated(show(parts)):
                name, folder, backup = parts[-1], here.open(parts[:-1]), b"%d" % number
                old = _status(parts, here)
                if old is not None and not stat.S_ISDIR(old.st_mode):
                    os.rename(name, backup, src_dir_fd=folder, dst_dir_fd=replaced)
                    undo.callback(_move_back, root, parts, replaced, backup)
                os.rename(name, name, src_dir_fd=there.open(parts[:-1]), dst_dir_fd=folder)
                undo.callback(_take_away, root, parts, replaced, b"new-" + backup)
        undo.pop_all()
        for entry in reversed(merge.new_folders):
            with suppress(OSError):  # the session may have moved it on
                folder = here.open(entry.parts)
                os.fchmod(folder, entry.mode)
                if entry.modified_ns is not None:
                    os.utime(folder, ns=_times(entry))


def _move_back(root: Root, parts: Parts, replaced: int, backup: bytes) -> None:
    with suppress(OSError), closing(Folders(root.fd)) as folders:
        os.rename(backup, parts[-1], src_dir_fd=replaced, dst_dir_fd=folders.open(parts[:-1]))


def _take_away(root: Root, parts: Parts, replaced: int, name: bytes) -> None:
    with suppress(OSError), closing(Folders(root.fd)) as folders:
        os.rename(parts[-1], name, src_dir_fd=folders.open(parts[:-1]), dst_dir_fd=replaced)


@contextmanager
def staging(workspace: Path, name: bytes, lock: AbstractContextManager[object]) -> Iterator[tuple[int, int]]:
    """A hidden folder in the workspace, gone after the block: a place to unpack to, and one for what is replaced.

    The workspace may become another folder meanwhile; its descriptors stay good. Under `lock` it does not.
    """
    try:
        with ExitStack() as opened:
            with lock, open_root(workspace) as root:
                os.mkdir(name, 0o700, dir_fd=root.fd)
                new, old = (opened.enter_context(closing(Folders(root.fd))) for _ in range(2))
                for folder in (b"new", b"old"):
                    os.mkdir(folder, 0o700, dir_fd=new.open((name,)))
                places = new.open((name, b"new")), old.open((name, b"old"))
            yield places
    finally:
        with suppress(OSError, WorkspaceError), lock, open_root(workspace) as root:
            delete_tree(name, root.fd)
