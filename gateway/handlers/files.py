"""A session's files over HTTP, streamed both ways."""

import asyncio
import mimetypes
import re
from collections.abc import AsyncIterator
from urllib.parse import quote

from gateway.errors import Invalid
from gateway.handlers.base import ApiHandler, Operation, envelope
from gateway.models.access import Need
from gateway.models.queries import ArchiveUnpacked, FileDeleted, FileList, FilesQuery, FileView, MoveFile
from kernels.engine import FileInfo
from kernels.errors import BadPath, FileConflict
from kernels.paths import parse

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
_PIECES_AHEAD = 8


class NoSuchPart(Invalid):
    code = "no_such_part"


def view(info: FileInfo) -> FileView:
    return FileView(
        path=info.path, size=info.size, modified_at=info.modified_at, type=info.type, mode=f"{info.mode:04o}"
    )


def _seen(task: asyncio.Task[None]) -> None:
    """A refusal that nobody waits for any more, since the client is gone, is no news for the log."""
    if not task.cancelled():
        task.exception()


class UploadHandler(ApiHandler):
    """Hands the body of a PUT on as it comes; its sender is slowed down to what the workspace takes."""

    @property
    def body_limit_bytes(self) -> int:
        if self.request.method != "PUT":
            return super().body_limit_bytes
        return self.services.settings.upload_limit_bytes

    def initialize(self, *args: object, **kwargs: object) -> None:
        super().initialize(*args, **kwargs)  # type: ignore[arg-type]
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue(_PIECES_AHEAD)
        self._receiving: asyncio.Task[None] | None = None

    async def prepare(self) -> None:
        await super().prepare()
        if self.request.method == "PUT" and not self._refused:
            self._receiving = asyncio.create_task(self.receive(self._incoming(), **self.path_kwargs))
            self._receiving.add_done_callback(_seen)

    async def receive(self, pieces: AsyncIterator[bytes], **path: str) -> None:
        """Take the body and send the answer."""
        raise NotImplementedError

    async def data_received(self, chunk: bytes) -> None:  # type: ignore[override]
        if self._receiving is None:
            super().data_received(chunk)
            return
        self._received += len(chunk)
        if self._received > self.body_limit_bytes:
            self._receiving.cancel()
        elif not self._receiving.done():
            putting = asyncio.ensure_future(self._pieces.put(chunk))
            await asyncio.wait({putting, self._receiving}, return_when=asyncio.FIRST_COMPLETED)
            putting.cancel()

    async def _incoming(self) -> AsyncIterator[bytes]:
        while (piece := await self._pieces.get()) is not None:
            yield piece

    async def put(self, **path: str) -> None:
        if self._receiving is None:
            return
        if self._received > self.body_limit_bytes:
            raise self._too_large()
        if not self._receiving.done():
            putting = asyncio.ensure_future(self._pieces.put(None))
            await asyncio.wait({putting, self._receiving}, return_when=asyncio.FIRST_COMPLETED)
            putting.cancel()
        await self._receiving

    def on_connection_close(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
        super().on_connection_close()


class FilesHandler(ApiHandler):
    """/api/sessions/{session_id}/files"""

    operations = {"GET": Operation("List a folder of the workspace", FileList, query=FilesQuery, needs=Need.READ)}

    async def get(self, session_id: str) -> None:
        query = self.query(FilesQuery)
        workspace = await self.services.sessions.files(self.session_id(session_id))
        files = [view(one) for one in await workspace.list(query.path, recursive=query.recursive)]
        self.send(FileList(files=files, count=len(files)))


class FileHandler(UploadHandler):
    """/api/sessions/{session_id}/files/{path}"""

    operations = {
        "GET": Operation("Download a file; `Range` and `If-None-Match` are honoured", "application/octet-stream",
                         also={206: "A part", 304: "Not modified", 416: "No such part"}, needs=Need.READ),
        "PUT": Operation("Upload a file; the old one stays until the new one is whole", FileView, 201,
                         body="application/octet-stream", needs=Need.RUN_OR_MAKE),
        "DELETE": Operation("Delete a file, or a folder with all in it", FileDeleted, needs=Need.RUN),
    }  # fmt: skip

    async def head(self, session_id: str, path: str) -> None:
        await self.get(session_id, path)

    async def get(self, session_id: str, path: str) -> None:
        workspace = await self.services.sessions.files(self.session_id(session_id))
        info = await workspace.info(path)
        if info.type != "file":  # told here for HEAD, which reads nothing
            raise FileConflict(path, "it is not a regular file")
        self.set_header("ETag", info.etag)
        self.set_header("Last-Modified", info.modified_at)
        self.set_header("Accept-Ranges", "bytes")
        self.set_header("Cache-Control", "no-cache")
        if self.check_etag_header():
            self.set_status(304)
            return
        span = self._span(info)
        if span is None:
            self.set_header("Content-Range", f"bytes */{info.size}")
            self.send(envelope(NoSuchPart(f"The file has {info.size} bytes."), self.request_id), 416)
            return
        start, end = span
        self.set_header("Content-Type", mimetypes.guess_type(path)[0] or "application/octet-stream")
        # What a session wrote must never run as a page of the gateway's own origin.
        self.set_header("Content-Security-Policy", "sandbox")
        name = quote(path.rsplit("/", 1)[-1], safe="")
        self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{name}")
        self.set_header("Content-Length", str(end - start))
        if self.request.method == "HEAD":
            return
        async for piece in workspace.read(path, start=start, end=end):
            self.write(piece)
            await self.flush()

    def _span(self, info: FileInfo) -> tuple[int, int] | None:
        """What part to send, as start and end; None if there is no such part."""
        match = _RANGE.fullmatch(self.request.headers.get("Range", ""))
        if not match or match[1] == match[2] == "" or self.request.headers.get("If-Range", info.etag) != info.etag:
            return 0, info.size
        start = int(match[1]) if match[1] else max(0, info.size - int(match[2]))
        end = min(info.size, int(match[2]) + 1) if match[1] and match[2] else info.size
        if start >= end:
            return None
        self.set_status(206)
        self.set_header("Content-Range", f"bytes {start}-{end - 1}/{info.size}")
        return start, end

    async def receive(self, pieces: AsyncIterator[bytes], **where: str) -> None:
        session_id, path = self.session_id(where["session_id"]), where["path"]
        if not parse(path):  # before a session is created for it
            raise BadPath(path, "that is the workspace itself")
        workspace = await self.services.sessions.files(session_id, self.caller, create=True)
        info = await workspace.write(path, pieces)
        await self.services.sessions.files_changed(session_id)
        self.set_header("ETag", info.etag)
        self.send(view(info), 201)

    async def delete(self, session_id: str, path: str) -> None:
        workspace = await self.services.sessions.files(self.session_id(session_id))
        await workspace.delete(path)
        await self.services.sessions.files_changed(session_id)
        self.send(FileDeleted(path=path))


class MoveHandler(ApiHandler):
    """POST /api/sessions/{session_id}/files/move"""

    operations = {
        "POST": Operation("Move or rename", FileView, body=MoveFile, also={409: "The target is there"}, needs=Need.RUN)
    }

    async def post(self, session_id: str) -> None:
        request = self.body(MoveFile)
        workspace = await self.services.sessions.files(self.session_id(session_id))
        moved = await workspace.move(request.source, request.target, overwrite=request.overwrite)
        await self.services.sessions.files_changed(session_id)
        self.send(view(moved))


class ArchiveHandler(UploadHandler):
    """/api/sessions/{session_id}/archive"""

    operations = {
        "GET": Operation("The workspace as tar.zst", "application/zstd", needs=Need.READ),
        "PUT": Operation(
            "Unpack a tar.zst, tar.gz or tar over the workspace",
            ArchiveUnpacked,
            body="application/zstd",
            needs=Need.RUN_OR_MAKE,
        ),
    }

    async def get(self, session_id: str) -> None:
        session_id = self.session_id(session_id)
        workspace = await self.services.sessions.files(session_id)
        self.set_header("Content-Type", "application/zstd")
        name = quote(session_id, safe="")
        self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{name}.tar.zst")
        async for piece in workspace.archive():
            self.write(piece)
            await self.flush()

    async def receive(self, pieces: AsyncIterator[bytes], **where: str) -> None:
        session_id = self.session_id(where["session_id"])
        workspace = await self.services.sessions.files(session_id, self.caller, create=True)
        usage = await workspace.unpack(pieces)
        await self.services.sessions.files_changed(session_id)
        self.send(ArchiveUnpacked(file_count=usage.file_count, total_size_bytes=usage.total_bytes))
