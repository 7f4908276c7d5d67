"""Audit lines: who did what, when, from where, with which outcome; and the chain that shows when one was changed.

Each line's hash covers the line, its number and the hash of the line before. A store has one chain, whoever writes to
it. Line 1 is the chain's own: it says how many lines there were before, and their digest.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, model_validator

from gateway.models.base import Answer, Moment, Text, Utc, iso
from gateway.models.pages import digest
from gateway.models.queries import PageQuery

NO_HASH = "0" * 64
BEGIN_ID = "audit-chain"  # of line 1: two gateways that begin at once write it once
BEGIN = "audit.begin"
SEARCHED = ("actor", "action", "session_id", "outcome", "request_id", "key_id", "agent_id")


class AuditLine(BaseModel):
    """`action` is `METHOD /route` for what came over HTTP; else a word, such as `run` for each run that has ended.

    `actor` is the name that acted: of a key, `agent:ID`, `local` without keys, `gateway` for what it did by itself.
    """

    id: str
    at: Utc
    actor: str
    key_id: str | None = None
    agent_id: str | None = None
    window_id: str | None = None
    action: str
    session_id: str | None = None
    outcome: str
    request_id: str
    remote: str | None = None
    details: dict[str, Any] = {}


@dataclass(frozen=True, slots=True)
class ChainedLine:
    """A line as a store keeps it. `number`, `previous` and `hash` are None for what is older than the chain.

    `intact`: what a store keeps beside the line, to search by, is what the line says.
    """

    fields: dict[str, Any]
    number: int | None = None
    previous: str | None = None
    hash: str | None = None
    intact: bool = True

    @property
    def line(self) -> AuditLine:
        return AuditLine.model_validate(self.fields)

    @property
    def document(self) -> dict[str, Any]:
        """The line with its place in the chain, as it is shown and exported."""
        return {**self.fields, "number": self.number, "previous": self.previous, "hash": self.hash}

    @property
    def searched(self) -> dict[str, Any]:
        return {name: self.fields.get(name) for name in SEARCHED}


def canonical(fields: dict[str, Any]) -> str:
    """What is hashed of a line: ASCII JSON, keys in order, no spaces."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"))


def hash_of(fields: dict[str, Any], number: int, previous: str) -> str:
    return hashlib.sha256(f"{previous}\n{number}\n{canonical(fields)}".encode()).hexdigest()


def chained(lines: Iterable[AuditLine], number: int, previous: str) -> list[ChainedLine]:
    """Lines as they follow the one with this number and hash."""
    links = []
    for line in lines:
        number, fields = number + 1, line.model_dump(mode="json")
        links.append(ChainedLine(fields, number, previous, hash_of(fields, number, previous)))
        previous = links[-1].hash or ""
    return links


class Before:
    """Counts and digests the lines that are older than the chain, oldest first."""

    def __init__(self) -> None:
        self.count = 0
        self._hash = hashlib.sha256()

    def add(self, fields: dict[str, Any]) -> None:
        self.count += 1
        self._hash.update(f"{canonical(fields)}\n".encode())

    @property
    def told(self) -> dict[str, Any]:
        """What line 1 says of them."""
        return {"lines_before": self.count, "digest_before": self._hash.hexdigest()}


def beginning(before: Before, at: datetime) -> AuditLine:
    return AuditLine(
        id=BEGIN_ID, at=at, actor="gateway", action=BEGIN, outcome="ok", request_id="", details=before.told
    )


@dataclass(frozen=True, slots=True)
class AuditFilter:
    """Which lines; every part that is given must match. `since` is within, `until` is not."""

    actor: str | None = None
    action: str | None = None
    session_id: str | None = None
    outcome: str | None = None
    request_id: str | None = None
    key_id: str | None = None
    agent_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    @property
    def digest(self) -> str:
        return digest(("audit", self))

    @property
    def equal(self) -> dict[str, str]:
        """The parts that must be equal."""
        return {name: value for name in SEARCHED if (value := getattr(self, name)) is not None}

    @property
    def span(self) -> tuple[str, str]:
        """From and to, as the stores write times."""
        return iso(self.since) if self.since else "", iso(self.until) if self.until else "~"


EVERY_LINE = AuditFilter()

_Word = Annotated[Text, Field(max_length=300)]


class AuditQuery(PageQuery):
    """`from` is within the span, `to` is not."""

    actor: _Word | None = None
    action: _Word | None = None
    session_id: _Word | None = None
    outcome: _Word | None = None
    request_id: _Word | None = None
    key_id: _Word | None = None
    agent_id: _Word | None = None
    from_: Moment | None = Field(default=None, alias="from")
    to: Moment | None = None
    format: Literal["json", "jsonl"] | None = None

    @model_validator(mode="after")
    def _span(self) -> Self:
        if self.from_ is not None and self.to is not None and self.to < self.from_:
            raise ValueError("to: is before from")
        return self

    @property
    def filter(self) -> AuditFilter:
        return AuditFilter(**{name: getattr(self, name) for name in SEARCHED}, since=self.from_, until=self.to)


class AuditView(Answer):
    """A line and its place in the chain; `number`, `previous` and `hash` are null for what is older than the chain.

    `hash` is SHA-256, in hex, of `previous`, a newline, `number`, a newline, and the line without these three as JSON
    in ASCII with sorted keys and no spaces.
    """

    id: str
    at: Utc
    actor: str
    key_id: str | None = None
    agent_id: str | None = None
    window_id: str | None = None
    action: str
    session_id: str | None = None
    outcome: str
    request_id: str
    remote: str | None = None
    details: dict[str, Any]
    number: int | None
    previous: str | None
    hash: str | None


class AuditList(Answer):
    audit: list[AuditView]
    count: int
    total_count: int
    next_token: str | None
