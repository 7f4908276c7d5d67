"""API keys, and who did what; for admins."""

# Made of asynchronous/keys.py by deploy/sync_client.py: change that.

from datetime import datetime
from typing import Any

from gateway.client.calls import delete, get, given, part, post_once
from gateway.client.documents import Page, read
from gateway.client.synchronous.pages import Pages
from gateway.client.synchronous.transport import Transport
from gateway.models.access import KeyList, KeyMade, KeyRevoked, KeyView, Role
from gateway.models.audit import AuditList, AuditView
from gateway.models.base import now


class Keys:
    """API keys. A secret is in the answer that makes it and nowhere else, so making one is never tried twice."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
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
        return self._transport.ask(KeyMade, post_once("/api/keys", body))

    def list(self, *, include_revoked: bool = False, limit: int = 100) -> Pages[KeyView]:
        """Newest first, without their secrets."""

        def parse(body: bytes) -> Page[KeyView]:
            found = read(KeyList, body)
            return Page(found.keys, found.total_count, found.next_token)

        query = {"limit": limit, "include_revoked": include_revoked}
        return Pages(self._transport, "/api/keys", query, parse)

    def get(self, key_id: str) -> KeyView:
        return self._transport.ask(KeyView, get(f"/api/keys/{part(key_id)}"))

    def revoke(self, key_id: str) -> KeyRevoked:
        """Revoke it for good; what it has under way is cut off."""
        call = delete(f"/api/keys/{part(key_id)}")
        return self._transport.ask(KeyRevoked, call, lambda: KeyRevoked(id=key_id, revoked_at=now()))

    def rotate(self, key_id: str, *, overlap_seconds: float | None = None) -> KeyMade:
        """A new secret; the old one stays good for a while."""
        call = post_once(f"/api/keys/{part(key_id)}/rotate", given(overlap_seconds=overlap_seconds))
        return self._transport.ask(KeyMade, call)


def audit_pages(transport: Transport, query: dict[str, Any]) -> Pages[AuditView]:
    def parse(body: bytes) -> Page[AuditView]:
        found = read(AuditList, body)
        return Page(found.audit, found.total_count, found.next_token)

    return Pages(transport, "/api/audit", query, parse)
