"""API keys over HTTP. A secret is in the answer that makes it, and nowhere else."""

from gateway.handlers.base import ApiHandler, Operation
from gateway.models.access import CreateKey, KeyList, KeyMade, KeyRevoked, KeyView, Need, RotateKey
from gateway.models.queries import KeysQuery


class _KeysHandler(ApiHandler):
    answers_once = takes_idempotency_key = False  # a kept answer would keep the secret


class KeysHandler(_KeysHandler):
    """/api/keys"""

    operations = {
        "POST": Operation("Make a key; its secret is shown this once", KeyMade, 201, CreateKey, needs=Need.ADMIN),
        "GET": Operation("Keys, newest first, without their secrets", KeyList, query=KeysQuery, needs=Need.ADMIN),
    }

    async def post(self) -> None:
        made = await self.services.keys.create(self.body(CreateKey), self.caller)
        self.noted = {"made_key_id": made.id, "name": made.name, "role": made.role}
        self.send(made, 201)

    async def get(self) -> None:
        query = self.query(KeysQuery)
        found = await self.services.keys.list(query.page_request, include_revoked=query.include_revoked)
        views = [KeyView.of(key) for key in found.items]
        self.send(KeyList(keys=views, count=len(views), total_count=found.total_count, next_token=found.next_token))


class KeyHandler(_KeysHandler):
    """/api/keys/{key_id}"""

    operations = {
        "GET": Operation("One key, also a revoked one", KeyView, needs=Need.ADMIN),
        "DELETE": Operation("Revoke a key for good; what it has under way is cut off", KeyRevoked, needs=Need.ADMIN),
    }

    async def get(self, key_id: str) -> None:
        self.send(KeyView.of(await self.services.keys.get(key_id)))

    async def delete(self, key_id: str) -> None:
        revoked = await self.services.keys.revoke(key_id)
        self.noted = {"revoked_key_id": revoked.id}
        assert revoked.revoked_at is not None
        self.send(KeyRevoked(id=revoked.id, revoked_at=revoked.revoked_at))


class RotateHandler(_KeysHandler):
    """/api/keys/{key_id}/rotate"""

    operations = {
        "POST": Operation(
            "A new secret for a key; the old one stays good for a while", KeyMade, body=RotateKey, body_required=False,
            also={409: "Somebody else rotates it"}, needs=Need.ADMIN,
        )
    }  # fmt: skip

    async def post(self, key_id: str) -> None:
        rotated = await self.services.keys.rotate(key_id, self.body(RotateKey).overlap_seconds)
        self.noted = {"rotated_key_id": rotated.id}
        self.send(rotated)
