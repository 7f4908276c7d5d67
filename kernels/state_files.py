"""A finished checkpoint's files, taken into packs: bytes that mean nothing here.

Whoever wrote them is not trusted: links are not followed, and a file that somebody could still write to is copied.
"""

import fcntl
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from secrets import token_hex

from blake3 import blake3

from kernels.errors import SnapshotError
from kernels.manifests import CHUNK_BYTES, STATE_FILES, Chunk, Location, StateFile
from kernels.packs import Packer, Sink, ordered

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_ADOPTED_BYTES = 8 << 20
_BATCH_CHUNKS = 4

State = dict[str, Callable[[], StateFile]]  # what its files are, once the packer is finished
Adopted = list[tuple[str, Path]]


def read_state(folder: int, work: Path, packer: Packer, pool: ThreadPoolExecutor) -> tuple[State, Adopted]:
    """Give a checkpoint to the packer. A large file that is mostly new is not copied, but becomes a pack itself."""
    state: State = {}
    adopted: Adopted = []
    with ExitStack() as opened:
        for name in STATE_FILES:
            try:
                fd = os.open(name, _READ, dir_fd=folder)
            except OSError as error:
                raise SnapshotError(f"There is no finished checkpoint: {name!r}: {error.strerror}.") from None
            opened.callback(os.close, fd)
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise SnapshotError(f"There is no finished checkpoint: {name!r} is not a file.")
            size = status.st_size
            if size < _ADOPTED_BYTES:
                sink: Sink = []
                _add(
                    fd, [(start, min(CHUNK_BYTES, size - start)) for start in range(0, size, CHUNK_BYTES)], packer, sink
                )
                state[name] = partial(_as_told, size, sink)
                continue
            with ThreadPoolExecutor(1) as other:
                if not any(aligned for _, aligned in packer.known):  # it will be adopted
                    other.submit(os.fsync, fd)
                chunks = _hashed(fd, size, pool)
            new = [chunk for chunk in chunks if (chunk.digest, True) not in packer.known]
            if sum(chunk.length for chunk in new) * 2 >= size and _is_ours_alone(fd, status):
                pack = f"{token_hex(16)}.pack"
                if _moved(folder, name, work / pack, status):
                    os.fsync(fd)
                    for chunk in chunks:
                        at = Location(pack, chunk.offset, chunk.length, chunk.length, 0, chunk.length)
                        packer.locations[chunk.digest, True] = at
                    adopted.append((pack, work / pack))
                    state[name] = partial(StateFile, size, tuple(chunks))
                    continue
            packer.use((chunk for chunk in chunks if (chunk.digest, True) in packer.known), aligned=True)
            told: Sink = []
            _add(fd, [(chunk.offset, chunk.length) for chunk in new], packer, told)
            state[name] = partial(_copied, size, chunks, new, told)
    return state, adopted


def _add(fd: int, stretches: list[tuple[int, int]], packer: Packer, sink: Sink) -> None:
    for start, length in stretches:
        data = os.pread(fd, length, start)
        if len(data) != length:
            raise SnapshotError("The checkpoint was cut off while it was read.")
        packer.add(data, start, sink, aligned=True)


def _hashed(fd: int, size: int, pool: ThreadPoolExecutor) -> list[Chunk]:
    def hashed(start: int) -> list[Chunk]:
        chunks = []
        for at in range(start, min(start + _BATCH_CHUNKS * CHUNK_BYTES, size), CHUNK_BYTES):
            data = os.pread(fd, min(CHUNK_BYTES, size - at), at)
            if len(data) != min(CHUNK_BYTES, size - at):
                raise SnapshotError("The checkpoint was cut off while it was read.")
            chunks.append(Chunk(at, len(data), blake3(data).digest()))
        return chunks

    batches = ordered(pool, hashed, range(0, size, _BATCH_CHUNKS * CHUNK_BYTES))
    return [chunk for batch in batches for chunk in batch]


def _is_ours_alone(fd: int, status: os.stat_result) -> bool:
    """Whether the file has no other name, and nobody has it open or mapped for writing."""
    if status.st_nlink != 1:
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except (OSError, AttributeError):  # somebody writes to it, or this system can't tell
        return False
    return True


def _moved(folder: int, name: str, target: Path, status: os.stat_result) -> bool:
    """Whether it is that file, and could be moved."""
    try:
        os.rename(name, target, src_dir_fd=folder)
    except OSError:  # another file system
        return False
    if os.path.samestat(os.lstat(target), status):
        os.chmod(target, 0o400)
        return True
    os.unlink(target)
    return False


def _as_told(size: int, sink: Sink) -> StateFile:
    return StateFile(size, tuple(sink))


def _copied(size: int, chunks: list[Chunk], new: list[Chunk], told: Sink) -> StateFile:
    if told != new:
        raise SnapshotError("The checkpoint was changed while it was read.")
    return StateFile(size, tuple(chunks))
