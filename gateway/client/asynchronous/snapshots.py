"""Snapshots of a session: its files and variables, as of one moment."""

import os

from gateway.client.asynchronous.pages import AsyncPages
from gateway.client.asynchronous.transfers import AsyncDownload, upload
from gateway.client.asynchronous.transport import AsyncTransport
from gateway.client.calls import Call, delete, get, given, part, post
from gateway.client.documents import Page, read
from gateway.client.progress import Progress
from gateway.client.sources import Source
from gateway.models.sessions import SessionView
from gateway.models.snapshots import SnapshotDeleted, SnapshotList, SnapshotView


def page_of_snapshots(body: bytes) -> Page[SnapshotView]:
    found = read(SnapshotList, body)
    return Page(found.snapshots, found.total_count, found.next_token)


class AsyncSnapshots:
    """The snapshots of one session."""

    def __init__(self, transport: AsyncTransport, session_id: str) -> None:
        self._transport = transport
        self._session = f"/api/sessions/{part(session_id)}"
        self._path = f"{self._session}/snapshots"

    async def create(self, name: str | None = None, *, wait: bool = True) -> SnapshotView:
        """Save files and variables; `unsaved` names what could not be.

        A cell that runs is waited for. Without `wait`, raises `SessionBusy` then.
        """
        return await self._transport.ask(SnapshotView, post(self._path, given(name=name, wait=None if wait else False)))

    def list(self, *, limit: int = 100) -> AsyncPages[SnapshotView]:
        """Newest first; `limit` is how many are fetched at once."""
        return AsyncPages(self._transport, self._path, {"limit": limit}, page_of_snapshots)

    async def get(self, snapshot_id: str) -> SnapshotView:
        return await self._transport.ask(SnapshotView, get(self._one(snapshot_id)))

    async def restore(
        self, snapshot: SnapshotView | str, *, files: bool | None = None, state: bool | None = None
    ) -> SessionView:
        """Take files and variables back to a snapshot; `files=False` or `state=False` leaves them as they are."""
        body = given(snapshot_id=id_of(snapshot), files=files, state=state)
        return await self._transport.ask(SessionView, post(f"{self._session}/restore", body))

    async def delete(self, snapshot: SnapshotView | str) -> SnapshotDeleted:
        """Raises `SnapshotInUse` if the session wakes with it."""
        snapshot_id = id_of(snapshot)
        return await self._transport.ask(
            SnapshotDeleted, delete(self._one(snapshot_id)), lambda: SnapshotDeleted(id=snapshot_id)
        )

    async def download(
        self, snapshot: SnapshotView | str, target: str | os.PathLike[str], *, progress: Progress = False
    ) -> int:
        """Write the portable tarball, for any gateway, to a file; its size in bytes."""
        snapshot_id = id_of(snapshot)
        call = Call("GET", f"{self._one(snapshot_id)}/archive", waits=True)
        return await AsyncDownload(self._transport, call, resumable=False).to_file(target, progress, snapshot_id)

    def _one(self, snapshot_id: str) -> str:
        return f"{self._path}/{part(snapshot_id)}"


class AsyncImportedSnapshots:
    """Snapshots that were brought in from elsewhere, and belong to no session."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def upload(self, source: Source, *, progress: Progress = False) -> SnapshotView:
        """Bring a tarball in, to restore sessions from or to carry on from it. Raises `SnapshotDamaged`."""
        call = Call("PUT", "/api/snapshots", headers={"Content-Type": "application/zstd"}, waits=True)
        return await upload(self._transport, SnapshotView, call, source, progress, "snapshot")

    def list(self, *, limit: int = 100) -> AsyncPages[SnapshotView]:
        return AsyncPages(self._transport, "/api/snapshots", {"limit": limit}, page_of_snapshots)

    async def get(self, snapshot_id: str) -> SnapshotView:
        return await self._transport.ask(SnapshotView, get(f"/api/snapshots/{part(snapshot_id)}"))

    async def delete(self, snapshot: SnapshotView | str) -> SnapshotDeleted:
        snapshot_id = id_of(snapshot)
        call = delete(f"/api/snapshots/{part(snapshot_id)}")
        return await self._transport.ask(SnapshotDeleted, call, lambda: SnapshotDeleted(id=snapshot_id))


def id_of(snapshot: SnapshotView | str) -> str:
    return snapshot if isinstance(snapshot, str) else snapshot.id
