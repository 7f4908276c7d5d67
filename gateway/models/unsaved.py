"""What could not be kept of a session's variables, and how they came back.

Lists are bounded, so that every store can hold them; a last entry tells how many more there were.
"""

from collections.abc import Callable
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator

from gateway.models.base import told

MOST_NAMED = 1000
ELLIPSIS = "…"

Entry = TypeVar("Entry", bound=BaseModel)


def cut(most_characters: int) -> BeforeValidator:
    """Names and reasons come from user code and file systems: lone surrogates are escaped, what is long is cut."""

    return BeforeValidator(lambda text: told(text, most_characters) if isinstance(text, str) else text)


def bounded(more: Callable[[int], Entry]) -> AfterValidator:
    """At most `MOST_NAMED` entries; `more` makes the last one, from the count of those left out."""

    def bound(entries: list[Entry]) -> list[Entry]:
        if len(entries) <= MOST_NAMED:
            return entries
        return [*entries[: MOST_NAMED - 1], more(len(entries) - MOST_NAMED + 1)]

    return AfterValidator(bound)


class UnsavedVariable(BaseModel):
    """A variable that could not be kept; with `part` it is there, and only something within it is not."""

    name: Annotated[str, cut(200)]
    type: Annotated[str, cut(200)]
    reason: Annotated[str, cut(500)]
    part: bool = False


Unsaved = Annotated[
    list[UnsavedVariable],
    bounded(lambda count: UnsavedVariable(name=ELLIPSIS, type="", reason=f"and {count:,} more", part=False)),
]


class Woken(BaseModel):
    """How a kernel began whose session had been used before, for its first run to tell.

    `fresh_start`: without the variables of earlier runs. `resumed`: with those that were saved, except `not_carried`.
    """

    fresh_start: bool = False
    resumed: bool = False
    not_carried: Unsaved = []
