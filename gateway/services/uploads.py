"""Files that come in chunks, one request each: the old one stays until the last chunk is on disk."""

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from gateway.errors import Conflict, Exhausted, GatewayError, TimedOut
from gateway.services.recorder import Spawn
from kernels.engine import FileInfo, Workspace
from kernels.errors import KernelsError

log = logging.getLogger(__name__)

LAST = -1
_PATIENCE_S = 600  # for the next chunk
_MOST = 200


class ChunkOutOfPlace(Conflict):
    code = "chunk_out_of_place"


class Uploads:
    """Those under way, by the uid of their session and their path."""

    def __init__(self, spawn: Spawn) -> None:
        self._spawn = spawn
        self._under_way: dict[tuple[str, str], _Upload] = {}

    async def add(self, uid: str, workspace: Workspace, path: str, number: int, content: bytes) -> FileInfo | None:
        """Take a chunk; the file once it was the last. Raises `ChunkOutOfPlace`, `Exhausted`, `WorkspaceError`."""
        key = (uid, path)
        upload = self._under_way.get(key)
        if number == 1:
            if upload is not None:
                upload.give_up()
            elif len(self._under_way) >= _MOST:
                raise Exhausted(f"{_MOST} files are on their way in chunks already.", retry_after_s=5)
            upload = self._under_way[key] = _Upload()
            self._spawn(self._write(key, upload, workspace))
        elif upload is None:
            raise ChunkOutOfPlace(f"chunk: no upload of {path!r} is under way; begin with chunk 1.", field="chunk")
        return await upload.add(number, content)

    async def _write(self, key: tuple[str, str], upload: "_Upload", workspace: Workspace) -> None:
        try:
            upload.done.set_result(await workspace.write(key[1], upload.pieces()))
        except (KernelsError, GatewayError) as error:
            upload.done.set_exception(error)
        except Exception as error:
            log.exception("A file in chunks could not be written")
            upload.done.set_exception(GatewayError(f"Something went wrong here ({type(error).__name__})."))
        finally:
            if self._under_way.get(key) is upload:
                del self._under_way[key]
            upload.done.cancel()


class _Upload:
    def __init__(self) -> None:
        self.done: asyncio.Future[FileInfo] = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(lambda future: future.cancelled() or future.exception())
        self._queue: asyncio.Queue[bytes | GatewayError | None] = asyncio.Queue(2)
        self._next = 1

    async def add(self, number: int, content: bytes) -> FileInfo | None:
        if number not in (self._next, LAST):
            raise ChunkOutOfPlace(f"chunk: {self._next} was to come, or {LAST}; not {number}.", field="chunk")
        self._next += 1
        await self._put(content)
        if number != LAST:
            return None
        await self._put(None)
        return await asyncio.shield(self.done)

    async def _put(self, piece: bytes | None) -> None:
        """Hand a piece on, unless its file can't be written."""
        putting = asyncio.ensure_future(self._queue.put(piece))
        waiting: set[asyncio.Future[Any]] = {putting, self.done}
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()
        if self.done.done() and not putting.done():
            self.done.result()

    def give_up(self) -> None:
        while not self._queue.empty():
            self._queue.get_nowait()
        self._queue.put_nowait(ChunkOutOfPlace("Another upload of this file has begun."))

    async def pieces(self) -> AsyncIterator[bytes]:
        """Raises `ChunkOutOfPlace`, `TimedOut` when there are no more and the last one has not come."""
        while (piece := await self._piece()) is not None:
            yield piece

    async def _piece(self) -> bytes | None:
        try:
            async with asyncio.timeout(_PATIENCE_S):
                piece = await self._queue.get()
        except TimeoutError:
            raise TimedOut(f"No further chunk came within {_PATIENCE_S} s.") from None
        if isinstance(piece, GatewayError):
            raise piece
        return piece
