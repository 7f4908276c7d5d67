"""What a file holds, as Jupyter's contents API has it: text, base64 or a notebook."""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from gateway.config import MEBI
from gateway.errors import Malformed, TooLarge
from gateway.models.contents import ContentFormat, Contents, ContentsQuery, SaveContents
from gateway.services import ipynb
from gateway.services.places import Place
from kernels.engine import Workspace

_MOST_BYTES = 64 * MEBI


class BadFormat(Malformed):
    code = "bad_format"


async def with_content(found: Contents, place: Place, workspace: Workspace, query: ContentsQuery) -> Contents:
    if (found.size or 0) > _MOST_BYTES:
        raise TooLarge(
            f"The file is larger than {_MOST_BYTES:,} bytes; read it at "
            f"/api/sessions/{place.session_id}/files/{place.path}.", limit_bytes=_MOST_BYTES,
        )  # fmt: skip
    raw = b"".join([piece async for piece in workspace.read(place.path, end=_MOST_BYTES + 1)])
    changes: dict[str, Any] = {}
    if query.hash:
        changes |= {"hash": await asyncio.to_thread(_sha256, raw), "hash_algorithm": "sha256"}
    if found.type == "notebook":
        notebook, flaw = await asyncio.to_thread(_shown_notebook, raw, place)
        return found.model_copy(update={**changes, "content": notebook, "format": "json", "message": flaw})
    text, format_ = await asyncio.to_thread(_decoded, raw, place, query.format)
    kind = found.mimetype or ("text/plain" if format_ == "text" else "application/octet-stream")
    return found.model_copy(update={**changes, "content": text, "format": format_, "mimetype": kind})


def _shown_notebook(raw: bytes, place: Place) -> tuple[dict[str, Any], str | None]:
    """Nobody vouches for what a session wrote: front ends are told not to trust its outputs."""
    try:
        notebook, flaw = ipynb.read(raw.decode())
    except (UnicodeDecodeError, ipynb.NotANotebook) as error:
        raise ipynb.NotANotebook(f"Unreadable Notebook: {place.whole} {error}") from None
    for cell in notebook.get("cells", ()):
        if cell.get("cell_type") == "code":
            cell.setdefault("metadata", {})["trusted"] = False
    return notebook, flaw


def _decoded(raw: bytes, place: Place, wanted: ContentFormat | None) -> tuple[str, ContentFormat]:
    if wanted != "base64":
        try:
            return raw.decode(), "text"
        except UnicodeDecodeError:
            if wanted == "text":
                raise BadFormat(f"{place.whole} is not UTF-8 encoded", reason="bad format") from None
    return base64.encodebytes(raw).decode("ascii"), "base64"


async def bytes_of(request: SaveContents) -> tuple[bytes, str | None]:
    """What a file is to hold, and why it is no valid notebook. Raises `BadFormat`, `NotANotebook`."""
    if request.type == "directory":
        return b"", None
    if request.type == "notebook":
        return await asyncio.to_thread(_notebook_bytes, request.content)
    if not isinstance(request.content, str) or request.format not in ("text", "base64"):
        raise BadFormat("Must specify 'content' as text, and its format as 'text' or 'base64'", reason="bad format")
    try:
        if request.format == "text":
            return request.content.encode(), None
        return base64.b64decode("".join(request.content.split()), validate=True), None
    except (binascii.Error, ValueError) as error:
        raise BadFormat(f"The content can't be read as {request.format}: {error}", reason="bad format") from None


def _notebook_bytes(content: Any) -> tuple[bytes, str | None]:
    notebook, flaw = ipynb.taken(content)
    return ipynb.write(notebook), flaw


async def digest_of(pieces: AsyncIterator[bytes]) -> str:
    digest = hashlib.sha256()
    async for piece in pieces:
        await asyncio.to_thread(digest.update, piece)
    return digest.hexdigest()


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
