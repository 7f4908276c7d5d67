"""Where finished files of snapshots are kept: a folder, or an object store.

A blob is there whole or not at all, and never changes. Keys are `<place>/<name>`. Methods block: call them in threads.
"""

import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kernels.errors import BlobsAway

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PIECE_BYTES = 8 << 20
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Blobs(Protocol):
    """Methods that name a blob which is not there raise `FileNotFoundError`."""

    def put_file(self, key: str, path: Path) -> None:
        """Keep a file, which is on disk already (`os.fsync`), and need not be there afterwards."""
        ...

    def put(self, key: str, data: bytes) -> None: ...

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes: ...

    def fetch(self, key: str, path: Path) -> None:
        """Have the blob as a file, which must not be changed and stays good when the blob is deleted."""
        ...

    def copy(self, source: str, target: str) -> None: ...

    def sizes(self, place: str) -> dict[str, int]:
        """The names at a place, and their bytes."""
        ...

    def delete(self, key: str) -> None:
        """Nothing happens if it is not there."""
        ...

    def remove(self, place: str) -> None:
        """Delete all that is at a place."""
        ...

    def local_path(self, key: str) -> Path | None:
        """Where the blob is on this machine, if it is there as a file."""
        ...

    def locked(self, place: str) -> AbstractContextManager[None]:
        """A block that only one process of this machine is in at a time."""
        ...


class FolderBlobs:
    """A folder for each place. What was put is on disk when `put` returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put_file(self, key: str, path: Path) -> None:
        target = self._target(key)
        try:
            os.rename(path, target)
        except OSError:
            if path.stat().st_dev == target.parent.stat().st_dev:
                raise
            self._copied(path, target)
        _sync(target.parent)

    def put(self, key: str, data: bytes) -> None:
        target = self._target(key)
        self._written(target, lambda fd: _write_all(fd, data))
        _sync(target.parent)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        with open(self._folder / key, "rb", opener=_open_regular) as file:
            file.seek(start)
            return file.read(-1 if end is None else max(0, end - start))

    def fetch(self, key: str, path: Path) -> None:
        try:
            os.link(self._folder / key, path, follow_symlinks=False)
        except FileNotFoundError:
            raise
        except OSError:
            shutil.copyfile(self._folder / key, path)

    def copy(self, source: str, target: str) -> None:
        there = self._target(target)
        try:
            os.link(self._folder / source, there, follow_symlinks=False)
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError:
            self._copied(self._folder / source, there)
        _sync(there.parent)

    def sizes(self, place: str) -> dict[str, int]:
        found = {}
        with suppress(FileNotFoundError), os.scandir(self._folder / place) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and not entry.name.startswith("."):
                        found[entry.name] = status.st_size
        return found

    def delete(self, key: str) -> None:
        path = self._folder / key
        with suppress(FileNotFoundError):
            os.unlink(path)
            _sync(path.parent)

    def remove(self, place: str) -> None:
        with suppress(FileNotFoundError):
            shutil.rmtree(self._folder / place)

    def local_path(self, key: str) -> Path | None:
        path = self._folder / key
        return path if path.is_file() else None

    @contextmanager
    def locked(self, place: str) -> Iterator[None]:
        folder = self._folder / place
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            for name in os.listdir(fd):
                if name.startswith("."):  # from a crash: whoever writes one holds the lock
                    os.unlink(name, dir_fd=fd)
            yield
        finally:
            os.close(fd)

    def _target(self, key: str) -> Path:
        path = self._folder / key
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def _copied(self, source: Path, target: Path) -> None:
        def write(fd: int) -> None:
            with open(source, "rb", opener=_open_regular) as file:
                while piece := file.read(_PIECE_BYTES):
                    _write_all(fd, piece)

        self._written(target, write)

    def _written(self, target: Path, write: Any) -> None:
        new = target.with_name(f".{target.name}.new")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                write(fd)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(new, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(new)
            raise


def _open_regular(path: str, flags: int) -> int:
    return os.open(path, _READ)


def _write_all(fd: int, data: bytes) -> None:
    with memoryview(data) as left:
        written = 0
        while written < len(left):
            written += os.write(fd, left[written:])


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class ObjectBlobs:
    """An object store, through obstore. What it answers to a put is what it keeps."""

    def __init__(self, store: "ObjectStore", prefix: str = "") -> None:
        self._store = store
        self._prefix = f"{prefix.strip('/')}/" if prefix.strip("/") else ""

    @classmethod
    def at(cls, url: str, **options: Any) -> "ObjectBlobs":
        """A store by its address: `s3://bucket/prefix`, `gs://…`, `az://…`, `memory:///`, `file:///…`."""
        from obstore.store import from_url

        wait = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=2), "base": 2}
        retry: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=15), "backoff": wait}
        return cls(from_url(url, retry_config=retry, **options))

    def put_file(self, key: str, path: Path) -> None:
        with _reaching():
            self._store.put(self._prefix + key, path)

    def put(self, key: str, data: bytes) -> None:
        with _reaching():
            self._store.put(self._prefix + key, data)

    def get(self, key: str, start: int = 0, end: int | None = None) -> bytes:
        with _reaching():
            if end is None:
                return bytes(self._store.get(self._prefix + key).bytes())[start:]
            end = min(end, self._store.head(self._prefix + key)["size"])
            return bytes(self._store.get_range(self._prefix + key, start=start, end=end)) if start < end else b""

    def fetch(self, key: str, path: Path) -> None:
        with _reaching(), open(path, "xb") as file:
            found = self._store.get(self._prefix + key)
            file.writelines(found.stream(min_chunk_size=_PIECE_BYTES))

    def copy(self, source: str, target: str) -> None:
        with _reaching():
            self._store.copy(self._prefix + source, self._prefix + target)

    def sizes(self, place: str) -> dict[str, int]:
        start = f"{self._prefix}{place}/"
        with _reaching():
            found = (it for batch in self._store.list(start) for it in batch)
            return {it["path"].removeprefix(start): it["size"] for it in found}

    def delete(self, key: str) -> None:
        with suppress(FileNotFoundError), _reaching():
            self._store.delete(self._prefix + key)

    def remove(self, place: str) -> None:
        for name in self.sizes(place):
            self.delete(f"{place}/{name}")

    def local_path(self, key: str) -> Path | None:
        return None

    def locked(self, place: str) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def _reaching() -> Iterator[None]:
    """An object store that does not do what it is asked, told as one of our errors."""
    from obstore.exceptions import BaseError

    try:
        yield
    except BaseError as error:
        what = str(error).partition("\n")[0][:300]
        raise BlobsAway(f"The object store of the snapshots does not answer as it should: {what}") from error
