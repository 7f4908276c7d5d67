"""Lists, newest first, page by page: keyset tokens that are bound to their filter."""

import base64
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

from gateway.errors import BadPageToken
from gateway.models.base import iso
from gateway.models.labels import Requirement
from gateway.states import State

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class PageRequest:
    """Which part of a list: `limit` items, after a token or at the `page`-th page (from 1)."""

    limit: int = 100
    token: str | None = None
    page: int | None = None


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page ended: the next one holds what is older."""

    created_at: datetime
    key: str


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    items: list[Item]
    total_count: int
    next_token: str | None


@dataclass(frozen=True, slots=True)
class SessionFilter:
    """Which sessions; every part that is given must match. `seen_by`: who may see them, as `readers` names them."""

    labels: tuple[Requirement, ...] = ()
    state: State | None = None
    language: str | None = None
    created_by: str | None = None
    parent_id: str | None = None
    name: str | None = None
    include_deleted: bool = False
    seen_by: str | None = None

    @property
    def digest(self) -> str:
        return digest(self)


def digest(filter_: object) -> str:
    """Eight hex digits that tell one filter from another."""
    return hashlib.sha256(repr(filter_).encode()).hexdigest()[:8]


def encode(position: Position, filter_digest: str) -> str:
    """An opaque token for the items that come after `position` under this filter."""
    body = json.dumps([iso(position.created_at), position.key, filter_digest])
    return base64.urlsafe_b64encode(body.encode()).decode().rstrip("=")


def decode(token: str, filter_digest: str) -> Position:
    """Raises `BadPageToken` for a token that is broken or belongs to another filter."""
    try:
        created_at, key, made_for = json.loads(base64.urlsafe_b64decode(token.encode() + b"=" * (-len(token) % 4)))
        position = Position(datetime.strptime(created_at, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC), key)
        key.encode()
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise BadPageToken("is not a token that this gateway gave out.") from None
    if made_for != filter_digest:
        raise BadPageToken("was given out for another filter; start again without it.")
    return position
