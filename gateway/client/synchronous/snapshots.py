"""Snapshots of a session: its files and variables, as of one moment."""

# Made of asynchronous/snapshots.py by deploy/sync_client.py: change that.

import os

from gateway.client.calls import Call, delete, get, given, part, post
from gateway.client.documents import Page, read
from gateway.client.progress import Progress
from gateway.client.sources import Source
from gateway.client.synchronous.pages import Pages
from gateway.client.synchronous.transfers import Download, upload
from gateway.client.synchronous.transport import Transport
from gateway.models.sessions import SessionView
from gateway.models.snapshots import SnapshotDeleted, SnapshotList, SnapshotView


def page_of_snapshots(body: bytes) -> Page[SnapshotView]:
    found = read(SnapshotList, body)
    return Page(found.snapshots, found.total_count, found.next_token)


class Snapshots:
    """The snapshots of one session."""

    def __init__(self, transport: Transport, session_id: str) -> None:
        self._transport = transport
        self._session = f"/api/sessions/{part(session_id)}"
        self._path = f"{self._session}/snapshots"

    def create(self, name: str | None = None, *, wait: bool = True) -> SnapshotView:
        """Save files and variables; `unsaved` names what could not be.

        A cell that runs is waited for. Without `wait`, raises `SessionBusy` then.
        """
        return self._transport.ask(SnapshotView, post(self._path, given(name=name, wait=None if wait else False)))

    def list(self, *, limit: int = 100) -> Pages[SnapshotView]:
        """Newest first; `limit` is how many are fetched at once."""
        return Pages(self._transport, self._path, {"limit": limit}, page_of_snapshots)

    def get(self, snapshot_id: str) -> SnapshotView:
        return self._transport.ask(SnapshotView, get(self._one(snapshot_id)))

    def restore(
        self, snapshot: SnapshotView | str, *, files: bool | None = None, state: bool | None = None
    ) -> SessionView:
        """Take files and variables back to a snapshot; `files=False` or `state=False` leaves them as they are."""
        body = given(snapshot_id=id_of(snapshot), files=files, state=state)
        return self._transport.ask(SessionView, post(f"{self._session}/restore", body))

    def delete(self, snapshot: SnapshotView | str) -> SnapshotDeleted:
        """Raises `SnapshotInUse` if the session wakes with it."""
        snapshot_id = id_of(snapshot)
        return self._transport.ask(
            SnapshotDeleted, delete(self._one(snapshot_id)), lambda: SnapshotDeleted(id=snapshot_id)
        )

    def download(
        self, snapshot: SnapshotView | str, target: str | os.PathLike[str], *, progress: Progress = False
    ) -> int:
        """Write the portable tarball, for any gateway, to a file; its size in bytes."""
        snapshot_id = id_of(snapshot)
        call = Call("GET", f"{self._one(snapshot_id)}/archive", waits=True)
        return Download(self._transport, call, resumable=False).to_file(target, progress, snapshot_id)

    def _one(self, snapshot_id: str) -> str:
        return f"{self._path}/{part(snapshot_id)}"


class ImportedSnapshots:
    """Snapshots that were brought in from elsewhere, and belong to no session."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def upload(self, source: Source, *, progress: Progress = False) -> SnapshotView:
        """Bring a tarball in, to restore sessions from or to carry on from it. Raises `SnapshotDamaged`."""
        call = Call("PUT", "/api/snapshots", headers={"Content-Type": "application/zstd"}, waits=True)
        return upload(self._transport, SnapshotView, call, source, progress, "snapshot")

    def list(self, *, limit: int = 100) -> Pages[SnapshotView]:
        return Pages(self._transport, "/api/snapshots", {"limit": limit}, page_of_snapshots)

    def get(self, snapshot_id: str) -> SnapshotView:
        return self._transport.ask(SnapshotView, get(f"/api/snapshots/{part(snapshot_id)}"))

    def delete(self, snapshot: SnapshotView | str) -> SnapshotDeleted:
        snapshot_id = id_of(snapshot)
        call = delete(f"/api/snapshots/{part(snapshot_id)}")
        return self._transport.ask(SnapshotDeleted, call, lambda: SnapshotDeleted(id=snapshot_id))


def id_of(snapshot: SnapshotView | str) -> str:
    return snapshot if isinstance(snapshot, str) else snapshot.id
