"""Bytes of any size in MongoDB, whose documents end at 16 MB.

What is larger goes into pieces first, under a name made of its content. Only the document that names them makes them
visible, so a half-written one is never seen and a repeated write only writes the same again.
"""

import asyncio
import hashlib
from typing import Any

from bson import Binary
from pymongo.asynchronous.collection import AsyncCollection

_PIECE_BYTES = 8 * 1024 * 1024


class PiecesGone(Exception):
    """The document that named them was replaced in the meantime: read it again."""


class Pieces:
    def __init__(self, collection: AsyncCollection[dict[str, Any]]) -> None:
        self._collection = collection

    async def keep(self, owner: str, packed: bytes, **fields: Any) -> dict[str, Any]:
        """What the owner's document must hold to find `packed` again; `fields` are for whoever removes pieces."""
        if len(packed) <= _PIECE_BYTES:
            return {"bytes": Binary(packed)}
        digest = (await asyncio.to_thread(hashlib.blake2b, packed, digest_size=16)).hexdigest()
        starts = range(0, len(packed), _PIECE_BYTES)
        for number, start in enumerate(starts):
            piece = {**fields, "bytes": Binary(packed[start : start + _PIECE_BYTES])}
            await self._collection.replace_one({"_id": f"{owner}:{digest}:{number}"}, piece, upsert=True)
        return {"digest": digest, "count": len(starts)}

    async def load(self, owner: str, where: dict[str, Any]) -> bytes:
        """Raises `PiecesGone`."""
        if "bytes" in where:
            return bytes(where["bytes"])
        pieces = []
        for piece_id in _ids(owner, where):
            piece = await self._collection.find_one({"_id": piece_id})
            if piece is None:
                raise PiecesGone
            pieces.append(piece["bytes"])
        return b"".join(pieces)

    async def drop(self, owner: str, where: dict[str, Any]) -> None:
        if "digest" in where:
            await self._collection.delete_many({"_id": {"$in": _ids(owner, where)}})


def _ids(owner: str, where: dict[str, Any]) -> list[str]:
    return [f"{owner}:{where['digest']}:{number}" for number in range(where["count"])]
