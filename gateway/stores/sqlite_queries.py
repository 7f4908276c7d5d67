"""A `SessionFilter` as SQL."""

from dataclasses import dataclass, field
from typing import Any

from gateway.models.base import iso
from gateway.models.labels import Operator, Requirement
from gateway.models.pages import Position, SessionFilter


@dataclass(slots=True)
class SessionQuery:
    """Which sessions, newest first.

    Who may see them leads, or else the first label that is asked for: its rows come out of an index in the order of
    the list, so that a page costs as much as it is long. Every other label is one probe of that index.
    """

    rows: str
    leads: str
    conditions: list[str] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, filter_: SessionFilter) -> "SessionQuery":
        lead = _lead(filter_.labels)
        columns = {
            name: value
            for name in ("state", "language", "created_by", "parent_id", "name")
            if (value := getattr(filter_, name)) is not None
        }
        if filter_.seen_by is not None:
            lead, query = None, cls("session_readers AS lead", "lead")
            query._ask("lead.reader = ?", [filter_.seen_by])
        else:
            query = cls("sessions", "sessions") if lead is None else cls("session_labels AS lead", "lead")
        query.conditions.append(
            f"{query.leads}.live IN (0, 1)" if filter_.include_deleted else f"{query.leads}.live = 1"
        )
        if lead is not None:
            query._ask(*_condition("lead", lead))
        for requirement in filter_.labels:
            if requirement is not lead:
                query._probe(requirement)
        if columns and query.leads == "lead":
            query.rows = f"{query.rows} {_JOIN}"
        for name, value in columns.items():
            query._ask(f"sessions.{name} = ?", [value])
        return query

    def counting(self) -> tuple[str, list[Any]]:
        return f"SELECT count(*) FROM {self.rows} WHERE {' AND '.join(self.conditions)}", self.values  # noqa: S608 - fixed fragments, values are bound

    def page(self, after: Position | None, limit: int, offset: int) -> tuple[str, list[Any]]:
        conditions, values, leads = list(self.conditions), list(self.values), self.leads
        rows = self.rows if leads == "sessions" or _JOIN in self.rows else f"{self.rows} {_JOIN}"
        if after is not None:
            conditions.append(f"({leads}.created_at, {leads}.uid) < (?, ?)")
            values += [iso(after.created_at), after.key]
        sql = (
            f"SELECT sessions.document FROM {rows} WHERE {' AND '.join(conditions)}"  # noqa: S608 - as above
            f" ORDER BY {leads}.created_at DESC, {leads}.uid DESC LIMIT ? OFFSET ?"
        )
        return sql, [*values, limit, offset]

    def _ask(self, condition: str, values: list[Any]) -> None:
        self.conditions.append(condition)
        self.values += values

    def _probe(self, requirement: Requirement) -> None:
        condition, values = _condition("probe", requirement)
        absent = "NOT " if requirement.operator in (Operator.NOT_IN, Operator.ABSENT) else ""
        self._ask(
            f"{absent}EXISTS (SELECT 1 FROM session_labels AS probe WHERE probe.live = {self.leads}.live"  # noqa: S608 - as above
            f" AND {condition} AND probe.created_at = {self.leads}.created_at AND probe.uid = {self.leads}.uid)",
            values,
        )


# CROSS JOIN keeps SQLite from starting with the other table.
_JOIN = "CROSS JOIN sessions ON sessions.uid = lead.uid"


def _lead(requirements: tuple[Requirement, ...]) -> Requirement | None:
    """The one that is likely to leave the fewest: a single value before several, before a mere key."""
    positive = [one for one in requirements if one.operator in (Operator.IN, Operator.EXISTS)]
    return min(positive, key=lambda one: len(one.values) or 1_000_000, default=None)


def _condition(table: str, requirement: Requirement) -> tuple[str, list[Any]]:
    if not requirement.values:
        return f"{table}.k = ?", [requirement.key]
    marks = ", ".join("?" * len(requirement.values))
    return f"{table}.k = ? AND {table}.v IN ({marks})", [requirement.key, *requirement.values]
