"""Labels, and the selector grammar of Kubernetes that filters by them."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AfterValidator, WithJsonSchema

from gateway.errors import Invalid

_KEY = re.compile(r"([a-z0-9.-]+/)?[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_MOST_LABELS = 64
_LONGEST_KEY = 316
_LONGEST_VALUE = 256


def check_key(key: str) -> str:
    if len(key) > _LONGEST_KEY or not _KEY.fullmatch(key):
        raise ValueError(f"label key {key[:80]!r} must look like 'team' or 'example.com/team'")
    return key


def check_value(value: str) -> str:
    if not value or len(value) > _LONGEST_VALUE or "\0" in value:
        raise ValueError(f"a label value must hold 1 to {_LONGEST_VALUE} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("a label value must not contain a lone surrogate") from None
    return value


def check_count(labels: Collection[str]) -> None:
    if len(labels) > _MOST_LABELS:
        raise ValueError(f"at most {_MOST_LABELS} labels")


def _check_changes(changes: dict[str, str | None]) -> dict[str, str | None]:
    check_count(changes)
    for key, value in changes.items():
        check_key(key)
        if value is not None:
            check_value(value)
    return changes


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    check_count(labels)
    for key, value in labels.items():
        check_key(key)
        check_value(value)
    return labels


_VALUE_SCHEMA: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": _LONGEST_VALUE}
_MAP_SCHEMA: dict[str, Any] = {
    "type": "object",
    "maxProperties": _MOST_LABELS,
    "propertyNames": {"pattern": f"^{_KEY.pattern}$", "maxLength": _LONGEST_KEY},
}
_CHANGE_SCHEMA = {"anyOf": [_VALUE_SCHEMA, {"type": "null"}]}

Labels = Annotated[
    dict[str, str],
    AfterValidator(_check_labels),
    WithJsonSchema({**_MAP_SCHEMA, "additionalProperties": _VALUE_SCHEMA}),
]
LabelChanges = Annotated[
    dict[str, str | None],
    AfterValidator(_check_changes),
    WithJsonSchema({**_MAP_SCHEMA, "additionalProperties": _CHANGE_SCHEMA}),
]


class Operator(StrEnum):
    IN = "in"  # has one of the values
    NOT_IN = "notin"  # has none of them, or not the key at all
    EXISTS = "exists"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One part of a selector; `values` is empty for EXISTS and ABSENT."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def matches(self, labels: dict[str, str]) -> bool:
        match self.operator:
            case Operator.IN:
                return labels.get(self.key) in self.values
            case Operator.NOT_IN:
                return labels.get(self.key) not in self.values
            case Operator.EXISTS:
                return self.key in labels
            case Operator.ABSENT:
                return self.key not in labels


_PART = re.compile(
    r"""\s*(?:
        !\s*(?P<absent>[^\s,()=!]+)
      | (?P<key>[^\s,()=!]+)\s*(?:
            (?:\s(?P<set>in|notin)\s*\((?P<values>[^()]*)\))
          | (?P<equality>==|=|!=)\s*(?P<value>[^,()]*?)
        )?
    )\s*(?:,|$)""",
    re.VERBOSE,
)


def parse_selector(text: str) -> tuple[Requirement, ...]:
    """`project=demo,env in (test,prod),team!=backend,tier,!legacy`. Raises `Invalid`."""
    requirements: list[Requirement] = []
    at = 0
    text = text.strip()
    while at < len(text):
        match = _PART.match(text, at)
        if not match:
            raise _bad_selector(f"can't be read from {text[at : at + 40]!r} on")
        try:
            requirements.append(_requirement(match))
        except ValueError as error:
            raise _bad_selector(str(error)) from None
        at = match.end()
    if text.endswith(","):
        raise _bad_selector("must not end with a comma")
    return tuple(requirements)


def _requirement(match: re.Match[str]) -> Requirement:
    if absent := match["absent"]:
        return Requirement(check_key(absent), Operator.ABSENT)
    key = check_key(match["key"])
    if match["set"]:
        values = tuple(check_value(value.strip()) for value in match["values"].split(","))
        return Requirement(key, Operator(match["set"]), values)
    if match["equality"]:
        operator = Operator.NOT_IN if match["equality"] == "!=" else Operator.IN
        return Requirement(key, operator, (check_value(match["value"].strip()),))
    return Requirement(key, Operator.EXISTS)


def _bad_selector(why: str) -> Invalid:
    return Invalid(f"label_selector: {why}.", field="label_selector")


def parse_json_filter(text: str) -> tuple[Requirement, ...]:
    """`{"project": "demo"}`: all must match. Raises `Invalid`."""
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"labels: is not JSON: {error}.", field="labels") from None
    if not isinstance(labels, dict) or not all(isinstance(value, str) for value in labels.values()):
        raise Invalid('labels: must be a JSON object of strings, such as {"project": "demo"}.', field="labels")
    try:
        return tuple(Requirement(check_key(key), Operator.IN, (check_value(value),)) for key, value in labels.items())
    except ValueError as error:
        raise Invalid(f"labels: {error}.", field="labels") from None
