"""Quotas in MongoDB, which several gateways agree on."""

from datetime import UTC, date, datetime

from gateway.errors import QuotaExceeded
from gateway.models.base import iso
from gateway.stores.mongo_reach import Reach


class MongoQuotas(Reach):
    async def take_place(
        self, owner: str, uid: str, gateway_id: str, stale_before: datetime, most: int | None = None
    ) -> None:
        """Put it there, then count: of two gateways that do so at once, at least one sees the other."""
        mine = {"_id": uid, "owner": owner, "gateway_id": gateway_id}

        async def work() -> None:
            places = self._collection("places")
            await places.replace_one({"_id": uid}, mine, upsert=True)
            if most is None:
                return
            others = await places.find({"owner": owner, "_id": {"$ne": uid}}, {"gateway_id": 1}).to_list(None)
            beating = {"_id": {"$in": sorted({one["gateway_id"] for one in others})}, "at": {"$gte": iso(stale_before)}}
            alive = {one["_id"] for one in await self._collection("gateways").find(beating).to_list(None)}
            if sum(1 for one in others if one["gateway_id"] in {*alive, gateway_id}) >= most:
                await places.delete_one(mine)
                raise QuotaExceeded.of_kernels(owner, most)

        await self._reach(work)

    async def free_place(self, uid: str, gateway_id: str) -> None:
        await self._reach(lambda: self._collection("places").delete_one({"_id": uid, "gateway_id": gateway_id}))

    async def clear_places(self, gateway_id: str) -> None:
        await self._reach(lambda: self._collection("places").delete_many({"gateway_id": gateway_id}))

    async def note_cpu(self, owner: str, day: date, process: str, seconds: float) -> float:
        async def work() -> float:
            used = self._collection("cpu")
            of_day = {"owner": owner, "day": day.isoformat()}
            kept = {"$max": {"seconds": seconds}, "$setOnInsert": {**of_day, "made_at": datetime.now(UTC)}}
            await used.update_one({"_id": f"{owner} {day.isoformat()} {process}"}, kept, upsert=True)
            found = await used.find(of_day, {"seconds": 1}).to_list(None)
            return float(sum(one["seconds"] for one in found))

        return await self._reach(work)

    async def disk_used(self, owner: str) -> int:
        wanted, shown = {"live": True, "created_by": owner}, {"total_size_bytes": 1}
        found = await self._reach(lambda: self._collection("sessions").find(wanted, shown).to_list(None))
        return sum(int(one.get("total_size_bytes", 0)) for one in found)
