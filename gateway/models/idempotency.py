"""Kept answers: a POST that is sent again under its `Idempotency-Key` gets the first answer."""

from pydantic import BaseModel

from gateway.models.base import Utc


class KeptAnswer(BaseModel):
    """`key` names owner, path and the client's key; `request_digest` tells whether the body is the same.

    `status` is None while the first request is still under way.
    """

    key: str
    request_digest: str
    created_at: Utc
    status: int | None = None
    content_type: str | None = None
    body: bytes = b""
