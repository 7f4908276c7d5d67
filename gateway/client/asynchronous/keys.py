"""API keys, and who did what; for admins."""

from datetime import datetime
from typing import Any

from gateway.client.asynchronous.pages import AsyncPages
from gateway.client.asynchronous.transport import AsyncTransport
from gateway.client.calls import delete, get, given, part, post_once
from gateway.client.documents import Page, read
from gateway.models.access import KeyList, KeyMade, KeyRevoked, KeyView, Role
from gateway.models.audit import AuditList, AuditView
from gateway.models.base import now


class AsyncKeys:
    """API keys. A secret is in the answer that makes it and nowhere else, so making one is never tried twice."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def create(
        self, name: str, *, role: Role | str = Role.USER, agent_id: str | None = None,
        expires_at: datetime | None = None, expires_in_seconds: float | None = None,
        requests_per_second: float | None = None, burst: int | None = None, most_sessions: int | None = None,
    ) -> KeyMade:  # fmt: skip
        """A key for `name`; its secret is `made.key`, shown this once."""
        body = given(
            name=name, role=str(role), agent_id=agent_id, expires_at=expires_at,
            expires_in_seconds=expires_in_seconds, requests_per_second=requests_per_second, burst=burst,
            most_sessions=most_sessions,
        )  # fmt: skip
        return await self._transport.ask(KeyMade, post_once("/api/keys", body))

    def list(self, *, include_revoked: bool = False, limit: int = 100) -> AsyncPages[KeyView]:
        """Newest first, without their secrets."""

        def parse(body: bytes) -> Page[KeyView]:
            found = read(KeyList, body)
            return Page(found.keys, found.total_count, found.next_token)

        query = {"limit": limit, "include_revoked": include_revoked}
        return AsyncPages(self._transport, "/api/keys", query, parse)

    async def get(self, key_id: str) -> KeyView:
        return await self._transport.ask(KeyView, get(f"/api/keys/{part(key_id)}"))

    async def revoke(self, key_id: str) -> KeyRevoked:
        """Revoke it for good; what it has under way is cut off."""
        call = delete(f"/api/keys/{part(key_id)}")
        return await self._transport.ask(KeyRevoked, call, lambda: KeyRevoked(id=key_id, revoked_at=now()))

    async def rotate(self, key_id: str, *, overlap_seconds: float | None = None) -> KeyMade:
        """A new secret; the old one stays good for a while."""
        call = post_once(f"/api/keys/{part(key_id)}/rotate", given(overlap_seconds=overlap_seconds))
        return await self._transport.ask(KeyMade, call)


def audit_pages(transport: AsyncTransport, query: dict[str, Any]) -> AsyncPages[AuditView]:
    def parse(body: bytes) -> Page[AuditView]:
        found = read(AuditList, body)
        return Page(found.audit, found.total_count, found.next_token)

    return AsyncPages(transport, "/api/audit", query, parse)
