"""Saved state over HTTP: snapshots, restore, duplicate, remix."""

from collections.abc import AsyncIterator
from urllib.parse import quote

from gateway.handlers.base import ApiHandler, Operation
from gateway.handlers.files import UploadHandler
from gateway.models.access import Need
from gateway.models.pages import Page
from gateway.models.queries import PageQuery
from gateway.models.sessions import SessionView
from gateway.models.snapshots import (
    CreateSnapshot,
    DuplicateSession,
    DuplicateView,
    RemixSession,
    RestoreSnapshot,
    Snapshot,
    SnapshotDeleted,
    SnapshotList,
    SnapshotView,
)  # fmt: skip
from gateway.services.snapshots import Carried

_BUSY = {409: "It runs code"}


def _list(found: Page[Snapshot]) -> SnapshotList:
    views = [SnapshotView.of(one) for one in found.items]
    return SnapshotList(snapshots=views, count=len(views), total_count=found.total_count, next_token=found.next_token)


class SnapshotsHandler(ApiHandler):
    """/api/sessions/{session_id}/snapshots"""

    operations = {
        "POST": Operation("Save files and variables as of now", SnapshotView, 201, CreateSnapshot,
                          body_required=False, also=_BUSY, needs=Need.WRITE),
        "GET": Operation("Snapshots of a session, newest first", SnapshotList, query=PageQuery, needs=Need.READ),
    }  # fmt: skip

    async def post(self, session_id: str) -> None:
        session_id, request = self.session_id(session_id), self.body(CreateSnapshot)
        self.send(SnapshotView.of(await self.services.snapshots.create(session_id, request, self.caller)), 201)

    async def get(self, session_id: str) -> None:
        page = self.query(PageQuery).page_request
        self.send(_list(await self.services.snapshots.list(self.session_id(session_id), page)))


class SnapshotHandler(ApiHandler):
    """/api/sessions/{session_id}/snapshots/{snapshot_id}"""

    operations = {
        "GET": Operation("One snapshot", SnapshotView, needs=Need.READ),
        "DELETE": Operation(
            "Delete a snapshot", SnapshotDeleted, also={409: "The session wakes with it"}, needs=Need.WRITE
        ),
    }

    async def get(self, session_id: str, snapshot_id: str) -> None:
        self.send(SnapshotView.of(await self.services.snapshots.get(self.session_id(session_id), snapshot_id)))

    async def delete(self, session_id: str, snapshot_id: str) -> None:
        deleted = await self.services.snapshots.delete(self.session_id(session_id), snapshot_id)
        self.send(SnapshotDeleted(id=deleted.id))


class SnapshotArchiveHandler(ApiHandler):
    """/api/sessions/{session_id}/snapshots/{snapshot_id}/archive"""

    operations = {"GET": Operation("The portable tarball, for any gateway", "application/zstd", needs=Need.READ)}

    async def get(self, session_id: str, snapshot_id: str) -> None:
        session_id = self.session_id(session_id)
        pieces = await self.services.snapshots.export(session_id, snapshot_id)
        self.set_header("Content-Type", "application/zstd")
        name = quote(f"{session_id}-{snapshot_id}", safe="")
        self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{name}.tar.zst")
        async for piece in pieces:
            self.write(piece)
            await self.flush()


class ImportHandler(UploadHandler):
    """/api/snapshots: tarballs from elsewhere, which a session is restored or remixed from."""

    operations = {
        "PUT": Operation("Bring a tarball in", SnapshotView, 201, body="application/zstd", needs=Need.MAKE),
        "GET": Operation("Snapshots that were brought in, newest first", SnapshotList, query=PageQuery, needs=Need.KEY),
    }

    async def get(self) -> None:
        page = self.query(PageQuery).page_request
        self.send(_list(await self.services.snapshots.list_imported(page, self.who.sees_only)))

    async def receive(self, pieces: AsyncIterator[bytes], **where: str) -> None:
        self.send(SnapshotView.of(await self.services.snapshots.take_in(pieces, self.caller)), 201)


class ImportedHandler(ApiHandler):
    """/api/snapshots/{snapshot_id}"""

    operations = {
        "GET": Operation("One snapshot that was brought in", SnapshotView, needs=Need.KEY),
        "DELETE": Operation(
            "Delete a snapshot that was brought in", SnapshotDeleted, also={409: "It is being read"}, needs=Need.MAKE
        ),
    }

    async def get(self, snapshot_id: str) -> None:
        self.send(SnapshotView.of(await self._brought_in(snapshot_id)))

    async def delete(self, snapshot_id: str) -> None:
        await self._brought_in(snapshot_id)
        self.send(SnapshotDeleted(id=(await self.services.snapshots.delete_imported(snapshot_id)).id))

    async def _brought_in(self, snapshot_id: str) -> Snapshot:
        snapshot = await self.services.snapshots.get_imported(snapshot_id)
        self.services.access.check_brought_in(self.who, snapshot)
        return snapshot


class RestoreHandler(ApiHandler):
    """/api/sessions/{session_id}/restore"""

    operations = {
        "POST": Operation(
            "Files and variables go back to a snapshot", SessionView, body=RestoreSnapshot, also=_BUSY, needs=Need.WRITE
        )
    }

    async def post(self, session_id: str) -> None:
        session_id, request = self.session_id(session_id), self.body(RestoreSnapshot)
        await self.services.access.check_snapshot(self.who, request.snapshot_id)
        self.send(self.view(await self.services.snapshots.restore(session_id, request)))


class _CarriesOnHandler(ApiHandler):
    async def _check(self, request: DuplicateSession | RemixSession) -> None:
        if request.snapshot_id is not None:
            await self.services.access.check_snapshot(self.who, request.snapshot_id)

    def _send(self, carried: Carried) -> None:
        how = {"method": carried.method, "method_reason": carried.method_reason, "not_carried": carried.not_carried}
        self.send(self.view_as(DuplicateView, carried.session, **how), 201)


class DuplicateHandler(_CarriesOnHandler):
    """/api/sessions/{session_id}/duplicate"""

    operations = {
        "POST": Operation(
            "A new session with all files and variables of this one as of now",
            DuplicateView,
            201,
            DuplicateSession,
            body_required=False,
            also={409: "The id is taken, or it runs code"},
            needs=Need.COPY,
        )
    }

    async def post(self, session_id: str) -> None:
        session_id, request = self.session_id(session_id), self.body(DuplicateSession)
        await self._check(request)
        self._send(await self.services.snapshots.duplicate(session_id, request, self.caller))


class RemixHandler(_CarriesOnHandler):
    """/api/sessions/{session_id}/remix"""

    operations = {
        "POST": Operation("A new session that inherits configuration, files and variables", DuplicateView, 201,
                          RemixSession, also={409: "The id is taken, or it runs code"}, needs=Need.COPY)
    }  # fmt: skip

    async def post(self, session_id: str) -> None:
        session_id, request = self.session_id(session_id), self.body(RemixSession)
        await self._check(request)
        self._send(await self.services.snapshots.remix(session_id, request, self.caller))
