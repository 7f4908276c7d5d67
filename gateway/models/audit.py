"""Audit lines: who did what, when, from where, with which outcome."""

from typing import Any

from pydantic import BaseModel

from gateway.models.base import Utc


class AuditLine(BaseModel):
    id: str
    at: Utc
    actor: str
    action: str
    session_id: str | None = None
    outcome: str
    request_id: str
    remote: str | None = None
    details: dict[str, Any] = {}
