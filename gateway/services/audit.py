"""The audit log: searched, exported, and proved to be what was written."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass

from gateway.models.audit import (
    BEGIN,
    EVERY_LINE,
    NO_HASH,
    AuditFilter,
    AuditList,
    AuditView,
    Before,
    ChainedLine,
    hash_of,
)  # fmt: skip
from gateway.models.pages import PageRequest
from gateway.stores.base import Store


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the chain holds: `flaw` tells of the first line that does not fit, and why.

    `head` is `NUMBER:HASH` of the last line; kept elsewhere, it shows later whether lines were cut off since.
    """

    lines: int
    before: int
    head: str | None
    flaw: str | None


class AuditService:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, filter_: AuditFilter, page: PageRequest) -> AuditList:
        found = await self._store.list_audit(filter_, page)
        views = [AuditView.model_validate(one.document) for one in found.items]
        return AuditList(audit=views, count=len(views), total_count=found.total_count, next_token=found.next_token)

    async def export(self, filter_: AuditFilter = EVERY_LINE) -> AsyncIterator[str]:
        """JSON lines, oldest first, each with its newline."""
        async for one in self._store.read_audit(filter_):
            yield f"{json.dumps(one.document)}\n"

    async def verify(self, known: str | None = None) -> Verdict:
        """Go through the whole chain; `known` is a head from before, which must be in it."""
        return await verify(self._store.read_audit(), known)


async def verify(lines: AsyncIterator[ChainedLine], known: str | None = None) -> Verdict:
    """The first flaw of lines in their order, if there is one."""
    before, number, previous, known_seen = Before(), 0, NO_HASH, known is None
    async for one in lines:
        if one.number is None and number == 0 and one.intact:
            before.add(one.fields)
            continue
        flaw = _flaw(one, number, previous)
        if flaw is None and number == 0:
            flaw = _flaw_of_first(one, before)
        if flaw is not None:
            return Verdict(number, before.count, _head(number, previous), flaw)
        number, previous = number + 1, one.hash or ""
        known_seen = known_seen or _head(number, previous) == known
    if not known_seen:
        return Verdict(number, before.count, _head(number, previous), f"{known} is not in the chain any more.")
    return Verdict(number, before.count, _head(number, previous), None)


def _flaw(one: ChainedLine, number: int, previous: str) -> str | None:
    name = f"Line {one.number or 'before the chain'} (id {one.fields.get('id')!r}, {one.fields.get('at')})"
    if one.number is None and number > 0:
        return f"A line without a number (id {one.fields.get('id')!r}) stands among those of the chain."
    if one.number is None:
        return f"{name} was changed: what it is searched by is not what it says."
    if one.number != number + 1:
        return f"Line {number + 1} is missing: after line {number} comes line {one.number}."
    if one.previous != previous:
        return f"{name} does not follow line {number}: the hash that it has of it is another."
    if one.hash != hash_of(one.fields, one.number, previous):
        return f"{name} was changed: its hash is another."
    if not one.intact:
        return f"{name} was changed: what it is searched by is not what it says."
    return None


def _flaw_of_first(one: ChainedLine, before: Before) -> str | None:
    told = one.fields.get("details")
    if one.fields.get("action") != BEGIN or not isinstance(told, dict):
        return "Line 1 is not the one that begins a chain."
    if told != before.told:
        return f"What was written before the chain was changed: there were {told.get('lines_before')} lines."
    return None


def _head(number: int, hash_: str) -> str | None:
    return f"{number}:{hash_}" if number else None
