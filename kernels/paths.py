r"""Paths in a workspace, walked one open folder at a time.

The system never resolves more than one name for us, and never a link: links are read
and followed by hand, so that a process that swaps a folder for a link gains nothing.

A path is text with `/` between its parts; parts that are `.` mean nothing. A name that is
not UTF-8 is shown, and taken back, with `\xHH` for each stray byte; a backslash that would
look like such an escape is shown as `\x5c`. So every name has exactly one shown form.
"""

import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kernels.errors import BadPath, FileConflict, NoSuchFile, OutsideWorkspace, QuotaExceeded, WorkspaceError

Parts = tuple[bytes, ...]

MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
MAX_DEPTH = 2048
MAX_LINKS = 40
_MAX_STEPS = 5000

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ESCAPE = re.compile(rb"\\x(5c|[89a-f][0-9a-f])")
_HIDDEN = re.compile(rb"\.workspace-[0-9a-f]{32}")

_KINDS: dict[int, type[WorkspaceError]] = {
    errno.ENOENT: NoSuchFile,
    errno.ENAMETOOLONG: BadPath,
    errno.EILSEQ: BadPath,
    errno.ENOSPC: QuotaExceeded,
    errno.EDQUOT: QuotaExceeded,
    errno.EFBIG: QuotaExceeded,
} | dict.fromkeys(
    (
        *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.EINVAL, errno.ELOOP, errno.EMLINK),
        *(errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.ETXTBSY, errno.EXDEV, errno.ENXIO),
    ),
    FileConflict,
)


def parse(path: str) -> Parts:
    """The names that a path is made of; none for the workspace itself. Raises `BadPath`, `OutsideWorkspace`."""
    try:
        raw = path.encode()
    except UnicodeEncodeError:
        raise BadPath(path, "not valid Unicode") from None
    if raw.startswith(b"/"):
        raise OutsideWorkspace(path, "paths are relative to the workspace")
    parts = tuple(raw.split(b"/")) if raw else ()
    if b"." in parts:
        parts = tuple(part for part in parts if part != b".")
    if b"\\" in raw:
        parts = tuple(map(read_name, parts))
    check(parts, path)
    return parts


def check(parts: Parts, path: str) -> None:
    """Raises if these can't be names in a workspace, one below the other."""
    if b".." in parts:
        raise OutsideWorkspace(path, "`..` is not allowed in a path")
    if not all(parts):
        raise BadPath(path, "a part of the path is empty")
    whole = b"/".join(parts)
    if b"\0" in whole:
        raise BadPath(path, "a NUL can't be in a name")
    if len(whole) > MAX_NAME_BYTES and max(map(len, parts)) > MAX_NAME_BYTES:
        raise BadPath(path, f"a name is longer than {MAX_NAME_BYTES} bytes")
    if len(whole) > MAX_PATH_BYTES:
        raise BadPath(path, f"the path is longer than {MAX_PATH_BYTES} bytes")
    if parts and is_hidden(parts[0]):
        raise BadPath(path, "that name is kept for files on their way")


def show(parts: Parts) -> str:
    """The text for a path, which `parse` turns back into the same names."""
    return show_name(b"/".join(parts))


def show_name(name: bytes) -> str:
    """The same for a name, or for several with `/` between them."""
    if b"\\" in name:
        name = _ESCAPE.sub(rb"\\x5cx\1", name)
    return name.decode("utf-8", "backslashreplace")


def read_name(part: bytes) -> bytes:
    """What `show_name` showed, as UTF-8, back as it was."""
    return _ESCAPE.sub(lambda found: bytes.fromhex(found[1].decode()), part) if b"\\" in part else part


def hidden_name() -> bytes:
    """A name in the workspace's own folder for something on its way in or out; nobody can guess it."""
    return f".workspace-{secrets.token_hex(16)}".encode()


def is_hidden(name: bytes) -> bool:
    return name.startswith(b".") and _HIDDEN.fullmatch(name) is not None


@contextmanager
def translated(path: str) -> Iterator[None]:
    """What the system says about a path, as one of our errors."""
    try:
        yield
    except OSError as error:
        kind = _KINDS.get(error.errno or 0)
        if kind is None:
            raise
        raise kind(path, (error.strerror or str(error)).lower()) from error


@dataclass(frozen=True, slots=True)
class Root:
    """A workspace's own folder, opened."""

    path: Path
    fd: int

    def inside(self, absolute: bytes) -> list[bytes] | None:
        """The steps from here to an absolute path, or None if it lies elsewhere."""
        steps = split(absolute)
        for prefix in {os.path.abspath(self.path), os.path.realpath(self.path)}:
            start = split(os.fsencode(prefix))
            if steps[: len(start)] == start:
                return steps[len(start) :]
        return None


@contextmanager
def open_root(path: Path, asked: str = "") -> Iterator[Root]:
    with translated(asked):
        fd = os.open(path, _FOLDER)
        try:
            yield Root(path, fd)
        finally:
            os.close(fd)


def split(target: bytes) -> list[bytes]:
    """The steps that a link's target names; `..` among them."""
    return [part for part in target.split(b"/") if part not in (b"", b".")]


class Folders:
    """Folders below one that is open, reached without following a link. Only the last one asked for stays open.

    One whose owner may not look into it, and that is us, is opened to the owner for as long.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._fd = os.dup(root)
        self._mode: int | None = None
        self._names: list[bytes] = []

    def open(self, parts: Parts | list[bytes]) -> int:
        """A descriptor that is good until the next call."""
        depth = len(self._names)
        if self._names != list(parts[:depth]):
            self._step(os.dup(self._root))
            self._names.clear()
            depth = 0
        for name in parts[depth:]:
            self._step(open_anyway(name, _FOLDER, self._fd))
            self._names.append(name)
            status = os.fstat(self._fd)
            if status.st_mode & 0o500 != 0o500 and status.st_uid == os.geteuid():
                self._mode = stat.S_IMODE(status.st_mode)
                os.fchmod(self._fd, self._mode | 0o500)
        return self._fd

    def _step(self, fd: int) -> None:
        self.close()
        self._fd, self._mode = fd, None

    def close(self) -> None:
        if self._mode is not None:
            os.fchmod(self._fd, self._mode)
        os.close(self._fd)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a path leads: the deepest `folder` of it that is there, and the names `left` from there.

    `names` are the folder's own names, without links. One name left is usually there,
    more are not; none means that the path is the folder.
    """

    path: str
    folder: int
    names: Parts
    left: Parts

    @property
    def parts(self) -> Parts:
        return self.names + self.left

    def status(self) -> os.stat_result:
        """Of the thing itself, even if it is a link. Raises `NoSuchFile`."""
        if not self.left:
            return os.fstat(self.folder)
        if len(self.left) > 1:
            raise NoSuchFile(self.path, "no such file or folder")
        return os.stat(self.left[0], dir_fd=self.folder, follow_symlinks=False)

    def status_or_none(self) -> os.stat_result | None:
        try:
            return self.status()
        except (FileNotFoundError, NoSuchFile):
            return None

    @contextmanager
    def made(self) -> Iterator[int]:
        """The folder for the last name, made if it is not there; a block that fails leaves none behind."""
        made: list[bytes] = []
        with closing(Folders(self.folder)) as folders:
            try:
                for name in self.left[:-1]:
                    parent = folders.open(made)
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o755, dir_fd=parent)
                    made.append(name)
                    os.fsync(parent)
                yield folders.open(made)
            except BaseException:
                while made:
                    with suppress(OSError):
                        name = made.pop()
                        os.rmdir(name, dir_fd=folders.open(made))
                raise


@contextmanager
def resolve(root: Root, path: str, *, follow: bool = True) -> Iterator[Place]:
    """Find a path. `follow` says whether a link at its very end is followed; links before it always are.

    Errors of the system inside the block become ours.
    """
    with translated(path), closing(Folders(root.fd)) as folders:
        names, left = _locate(root, folders, path, follow)
        yield Place(path, folders.open(names), tuple(names), left)


def _locate(root: Root, folders: Folders, path: str, follow: bool) -> tuple[list[bytes], Parts]:
    names: list[bytes] = []
    todo = list(reversed(parse(path)))
    links = steps = 0
    while todo:
        steps += 1
        name = todo.pop()
        if name == b"..":
            if not names:
                raise OutsideWorkspace(path, "a link on it leads out of the workspace")
            names.pop()
            continue
        if not (todo or follow):
            return names, (name,)
        try:
            target = os.readlink(name, dir_fd=folders.open(names))
        except FileNotFoundError:
            if b".." in todo:
                raise
            return names, (name, *reversed(todo))
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            if not todo:
                return names, (name,)
            names.append(name)
            continue
        links += 1
        if links > MAX_LINKS or steps > _MAX_STEPS:
            raise FileConflict(path, f"more than {MAX_LINKS} links on it, or one that leads to itself")
        if target.startswith(b"/"):
            inside = root.inside(target)
            if inside is None:
                raise OutsideWorkspace(path, "a link on it leads out of the workspace")
            names.clear()
            todo += reversed(inside)
        else:
            todo += reversed(split(target))
    return names, ()


def open_anyway(name: bytes, flags: int, folder: int) -> int:
    """Open what is ours even when its mode forbids it; the mode stays as it was."""
    try:
        return os.open(name, flags, dir_fd=folder)
    except PermissionError:
        mode = stat.S_IMODE(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode)
        _chmod(name, mode | 0o700, folder)
        try:
            return os.open(name, flags, dir_fd=folder)
        finally:
            _chmod(name, mode, folder)


def _chmod(name: bytes, mode: int, folder: int) -> None:
    """Change a mode, never through a link. Linux can do that only by way of a descriptor."""
    if sys.platform != "linux":
        os.chmod(name, mode, dir_fd=folder, follow_symlinks=False)
        return
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if stat.S_ISLNK(os.fstat(fd).st_mode):
            raise FileConflict(show_name(name), "it became a link meanwhile")
        os.chmod(f"/proc/self/fd/{fd}", mode)
    finally:
        os.close(fd)


def walk(
    root: int,
    top: Parts = (),
    *,
    skip: Callable[[bytes], bool],
    on_error: Callable[[Parts, OSError], object] | None = None,
) -> Iterator[tuple[Parts, int, list[tuple[bytes, os.stat_result]]]]:
    """Each folder from `top` down: its names, a descriptor good until the next one, its entries sorted.

    Links are not followed. What disappears meanwhile is left out. `skip` is asked about names in the root.
    Folders taken out of the entries are not entered. A folder that can't be read is told to `on_error`, or raises.
    """
    pending = [top]
    with closing(Folders(root)) as folders:
        while pending:
            parts = pending.pop()
            if len(parts) > MAX_DEPTH:
                raise FileConflict(show(parts[:3]), f"folders are nested more than {MAX_DEPTH} deep")
            try:
                fd = folders.open(parts)
            except OSError as error:
                if parts != top and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    continue
                if parts == top or on_error is None:
                    raise
                on_error(parts, error)
                continue
            entries = _entries(fd, skip if not parts else None)
            yield parts, fd, entries
            pending.extend((*parts, name) for name, status in reversed(entries) if stat.S_ISDIR(status.st_mode))


def _entries(folder: int, skip: Callable[[bytes], bool] | None) -> list[tuple[bytes, os.stat_result]]:
    entries = []
    with os.scandir(folder) as found:
        for entry in found:
            name = os.fsencode(entry.name)
            if skip is not None and skip(name):
                continue
            with suppress(FileNotFoundError):
                entries.append((name, entry.stat(follow_symlinks=False)))
    entries.sort()
    return entries


def delete_tree(name: bytes, folder: int) -> None:
    """Delete a folder and all in it, links as links, whatever its modes.

    What lies deeper is moved up first, so that no depth costs more than two descriptors.
    A process that keeps adding files makes it give up with `OSError`.
    """
    patience = 100
    top = _open_own(name, folder)
    try:
        while found := _names(top):
            for child, is_folder in found:
                try:
                    if is_folder:
                        _lift(child, top)
                        os.rmdir(child, dir_fd=top)
                    else:
                        os.unlink(child, dir_fd=top)
                except FileNotFoundError:
                    continue
                except OSError:
                    patience -= 1
                    if not patience:
                        raise
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=folder)


def _lift(child: bytes, top: int) -> None:
    """Empty a folder: its files are deleted, its folders moved up."""
    fd = _open_own(child, top)
    try:
        for name, is_folder in _names(fd):
            if not is_folder:
                os.unlink(name, dir_fd=fd)
                continue
            os.close(_open_own(name, fd))  # one that is read-only could not be moved
            os.rename(name, hidden_name(), src_dir_fd=fd, dst_dir_fd=top)
    finally:
        os.close(fd)


def _open_own(name: bytes, folder: int) -> int:
    """Open a folder with the right to change it."""
    fd = open_anyway(name, _FOLDER, folder)
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & 0o700 != 0o700:
        with suppress(PermissionError):
            os.fchmod(fd, mode | 0o700)
    return fd


def _names(folder: int) -> list[tuple[bytes, bool]]:
    with os.scandir(folder) as found:
        return [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found]
