"""The files of a session."""

# Made of asynchronous/files.py by deploy/sync_client.py: change that.

import os
from collections.abc import Iterator

from gateway.client.calls import Call, delete, file_part, get, part, post
from gateway.client.progress import Progress
from gateway.client.sources import Source
from gateway.client.synchronous.transfers import Download, upload
from gateway.client.synchronous.transport import Transport
from gateway.models.queries import ArchiveUnpacked, FileDeleted, FileList, FileView

Listed = list[FileView]


class Files:
    """The files of one session, whatever state it is in. Paths are relative to its workspace."""

    def __init__(self, transport: Transport, session_id: str) -> None:
        self._transport = transport
        self._session = f"/api/sessions/{part(session_id)}"

    def list(self, path: str = "", *, recursive: bool = False) -> Listed:
        """What is in a folder; with `recursive` also in those below it."""
        call = get(f"{self._session}/files", path=path or None, recursive=recursive)
        return (self._transport.ask(FileList, call)).files

    def upload(self, source: Source, path: str, *, progress: Progress = False) -> FileView:
        """Put a file there: bytes, the path of a file here, or one that is open in binary mode.

        What was there stays until all of the new one has arrived. It is read a piece at a time.
        """
        call = Call("PUT", self._file(path), headers=_BYTES, waits=True)
        return upload(self._transport, FileView, call, source, progress, path)

    def write_text(self, path: str, text: str) -> FileView:
        """Put a text there, as UTF-8."""
        return self.upload(text.encode(), path)

    def download(self, path: str, target: str | os.PathLike[str], *, progress: Progress = False) -> int:
        """Write a file to one here, which is there once it is whole, and tell its size in bytes.

        After a cut it goes on where it was. Raises `Incomplete` if the session writes to it meanwhile.
        """
        return self._reading(path).to_file(target, progress, path)

    def read_bytes(self, path: str) -> bytes:
        return self._reading(path).to_bytes()

    def read_text(self, path: str) -> str:
        """The same as UTF-8."""
        return (self.read_bytes(path)).decode()

    def open(self, path: str) -> Iterator[bytes]:
        """A file piece by piece."""
        return self._reading(path).pieces()

    def move(self, source: str, target: str, *, overwrite: bool = False) -> FileView:
        """Move or rename. Raises `Conflict` if the target is there and is not to be overwritten."""
        body = {"source": source, "target": target, "overwrite": overwrite}
        return self._transport.ask(FileView, post(f"{self._session}/files/move", body))

    def delete(self, path: str) -> FileDeleted:
        """Delete a file, or a folder with all in it."""
        return self._transport.ask(FileDeleted, delete(self._file(path)), lambda: FileDeleted(path=path))

    def download_archive(self, target: str | os.PathLike[str], *, progress: Progress = False) -> int:
        """All of them as a tar.zst; its size in bytes."""
        call = Call("GET", f"{self._session}/archive", waits=True)
        archive = Download(self._transport, call, resumable=False)
        return archive.to_file(target, progress, "archive")

    def upload_archive(self, source: Source, *, progress: Progress = False) -> ArchiveUnpacked:
        """Unpack a tar.zst, tar.gz or tar over the workspace."""
        call = Call("PUT", f"{self._session}/archive", headers={"Content-Type": "application/zstd"}, waits=True)
        return upload(self._transport, ArchiveUnpacked, call, source, progress, "archive")

    def _file(self, path: str) -> str:
        return f"{self._session}/files/{file_part(path)}"

    def _reading(self, path: str) -> Download:
        return Download(self._transport, Call("GET", self._file(path), waits=True))


_BYTES = {"Content-Type": "application/octet-stream"}
