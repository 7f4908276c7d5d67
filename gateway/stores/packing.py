"""Executions and answers as bytes: JSON, compressed when that is worth it.

What is packed says itself how (zstd opens with a magic number), so old and new rows mix freely.
"""

import asyncio
import json
import sys

from pydantic_core import PydanticSerializationError

from gateway.models.executions import Execution, Status
from gateway.models.pages import PageRequest
from gateway.models.pieces import LARGE_CHARACTERS, execution_pieces, text_size

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

LARGE = 256 * 1024
_MOST_PAGE_BYTES = 64 * 1024 * 1024
_WORTH_IT = 4 * 1024
_MAGIC = b"\x28\xb5\x2f\xfd"
_UNFINISHED = {Status.QUEUED: 0, Status.RUNNING: 1}
FINISHED = 2


def rank(execution: Execution) -> int:
    """How far it has come: a row is only replaced by one that came as far, however late a write arrives."""
    return _UNFINISHED.get(execution.status, FINISHED)


def dump_execution(execution: Execution) -> bytes:
    """Outputs may hold lone surrogates, which JSON can escape but pydantic refuses to write."""
    try:
        return execution.model_dump_json().encode()
    except PydanticSerializationError:
        head = execution.model_dump_json(exclude={"outputs"})
        return f'{head[:-1]},"outputs":{json.dumps(execution.outputs)}}}'.encode()


def load_execution(packed: bytes) -> Execution:
    return Execution.model_validate(json.loads(unpack(packed)))


class Filling:
    """A page of executions: at most `limit`, fewer when their outputs fill memory: a token leads to the rest."""

    def __init__(self, page: PageRequest) -> None:
        self.executions: list[Execution] = []
        self.more = False
        self._limit = page.limit
        self._room = _MOST_PAGE_BYTES

    def add(self, packed: bytes) -> bool:
        """Whether there was room for it."""
        if len(self.executions) == self._limit or self._room <= 0:
            self.more = True
            return False
        plain = unpack(packed)
        self._room -= len(plain)
        self.executions.append(Execution.model_validate(json.loads(plain)))
        return True


def pack(plain: bytes) -> bytes:
    if len(plain) < _WORTH_IT and not plain.startswith(_MAGIC):
        return plain
    return zstd.compress(plain, 1)


def unpack(packed: bytes) -> bytes:
    return zstd.decompress(packed) if packed.startswith(_MAGIC) else packed


async def pack_execution(execution: Execution) -> bytes:
    """A record as bytes; one with much text is compressed piece by piece, off the event loop."""
    if text_size(execution.outputs) <= LARGE_CHARACTERS:
        return await pack_aside(dump_execution(execution))
    try:
        return await asyncio.to_thread(_pack_pieces, execution)
    except PydanticSerializationError:
        return await pack_aside(dump_execution(execution))


def _pack_pieces(execution: Execution) -> bytes:
    compressor = zstd.ZstdCompressor(1)
    packed = [compressor.compress(piece) for piece in execution_pieces(execution)]
    return b"".join([*packed, compressor.flush()])


async def pack_aside(plain: bytes) -> bytes:
    """`pack`, off the event loop when it would take long."""
    return await asyncio.to_thread(pack, plain) if len(plain) > LARGE else pack(plain)


async def load_execution_aside(packed: bytes) -> Execution:
    return await asyncio.to_thread(load_execution, packed) if len(packed) > LARGE else load_execution(packed)
