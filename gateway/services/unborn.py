"""Places that are being made and that no document names yet, written down so that a crash leaves none behind."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Making:
    """`removed` once nothing is left of what could not be finished."""

    removed: bool = False


class Unborn:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._left = sorted(folder.glob("*"))  # by an earlier process

    @contextmanager
    def making(self, place: str, name: str) -> Iterator[Making]:
        """A block in which a place is filled for the session or snapshot `name`, until that is there or given up."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        record = self._folder / place
        record.write_text(name, encoding="ascii")
        making = Making()
        try:
            yield making
        except BaseException:
            if making.removed:  # else the next start looks again
                record.unlink(missing_ok=True)
            raise
        record.unlink(missing_ok=True)

    async def clear(
        self, is_born: Callable[[str, str], Awaitable[bool]], remove: Callable[[str], Awaitable[None]]
    ) -> None:
        """Remove what an earlier process left half made. `is_born` is given place and name."""
        while self._left:
            record = self._left[-1]
            name = record.read_text(encoding="ascii")
            if not await is_born(record.name, name):
                log.info("%r was being made when the gateway ended: it is removed", name)
                await remove(record.name)
            record.unlink(missing_ok=True)
            self._left.pop()
