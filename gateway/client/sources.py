"""What is uploaded: bytes, files and streams, read a piece at a time, and from the start again if need be."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PIECE_BYTES = 1 << 20

Source = bytes | bytearray | memoryview | str | os.PathLike[str] | IO[bytes]


@dataclass
class Opened:
    """A source that is being read. `repeatable`: it can be read from its start again. `size` is None if unknown."""

    file: IO[bytes]
    start: int
    size: int | None
    repeatable: bool

    def rewind(self) -> None:
        if self.repeatable:
            self.file.seek(self.start)

    def piece(self) -> bytes:
        """The next one; empty at the end."""
        piece = self.file.read(PIECE_BYTES)
        if not isinstance(piece, bytes):
            raise TypeError("A file to upload must be open in binary mode.")
        return piece


@contextmanager
def opened(source: Source) -> Iterator[Opened]:
    """`source`: the bytes themselves, the path of a file, or a file that is open, which is read from where it is.

    Raises `OSError` for a file that can't be read.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        import io

        content = bytes(source)
        yield Opened(io.BytesIO(content), 0, len(content), repeatable=True)
    elif isinstance(source, str | os.PathLike):
        with Path(source).open("rb") as file:
            yield Opened(file, 0, os.fstat(file.fileno()).st_size, repeatable=True)
    else:
        yield _given(source)


def _given(file: IO[bytes]) -> Opened:
    try:
        start = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(start)
    except (OSError, AttributeError, ValueError):
        return Opened(file, 0, None, repeatable=False)
    return Opened(file, start, end - start, repeatable=True)
