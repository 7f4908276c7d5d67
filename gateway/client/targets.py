"""Where a download goes: a file that is there when all of it is, and until then is beside it under another name."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from uuid import uuid4


@contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `target` at the end of the block, and is gone if it fails.

    Raises `OSError`.
    """
    path = Path(target)
    if path.is_dir():
        raise IsADirectoryError(f"{os.fspath(target)!r} is a folder.")
    unfinished = path.with_name(f".{path.name[:200]}.{uuid4().hex[:8]}.part")
    try:
        with unfinished.open("xb") as file:
            yield file
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
