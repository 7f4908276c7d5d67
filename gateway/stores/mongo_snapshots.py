"""Snapshots in MongoDB: what lists go by as fields, the rest as JSON text."""

from gateway.errors import SnapshotNotFound
from gateway.models.base import iso
from gateway.models.pages import Page, PageRequest, Position, digest
from gateway.models.snapshots import Snapshot
from gateway.stores.mongo_reach import Reach, insert_missing
from gateway.stores.mongo_schema import Document


class MongoSnapshots(Reach):
    async def put_snapshot(self, snapshot: Snapshot) -> None:
        document: Document = {
            "_id": snapshot.id,
            "place": snapshot.place,
            "loose": snapshot.is_loose,
            "created_by": snapshot.created_by,
            "created_at": iso(snapshot.created_at),
            "document": snapshot.model_dump_json(),
        }
        # One that is there was asked for by a caller that never heard the first answer.
        await self._reach(lambda: insert_missing(self._collection("snapshots"), [document]))

    async def get_snapshot(self, snapshot_id: str) -> Snapshot:
        document = await self._reach(lambda: self._collection("snapshots").find_one({"_id": snapshot_id}))
        if document is None:
            raise SnapshotNotFound(snapshot_id)
        return _load(document)

    async def list_snapshots(
        self, place: str | None, page: PageRequest, created_by: str | None = None
    ) -> Page[Snapshot]:
        digest_ = digest(("snapshots", place, created_by))
        wanted: Document = {"loose": True} if place is None else {"place": place}
        if place is None and created_by is not None:
            wanted["created_by"] = created_by
        return await self._newest(
            "snapshots", wanted, page, digest_, _load, lambda last: Position(last.created_at, last.id)
        )

    async def delete_snapshot(self, snapshot_id: str) -> None:
        call = ("delete_snapshot", snapshot_id)
        asked_before = self._attempts.in_doubt(*call)

        async def work() -> None:
            nonlocal asked_before
            again, asked_before = asked_before, True
            deleted = await self._collection("snapshots").delete_one({"_id": snapshot_id})
            if not deleted.deleted_count and not again:  # else it was this very call whose answer got lost
                raise SnapshotNotFound(snapshot_id)

        with self._attempts.attempt(*call):
            await self._reach(work)


def _load(document: Document) -> Snapshot:
    return Snapshot.model_validate_json(document["document"])
