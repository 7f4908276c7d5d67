"""What a session has run, as front ends and `%history` ask for it, from memory: it sleeps and wakes with `In`.

IPython's own is kept in a file, which all sessions of a user would share.
"""

from __future__ import annotations

import re
from fnmatch import translate
from typing import Any

from IPython.core.history import HistoryManager

_FEW = 10  # that are told when it is not said how many


class SessionHistory(HistoryManager):
    """Lines are told as (session, line, input), or (session, line, (input, output)); there is one session, 0."""

    def get_tail(
        self, n: int | None = _FEW, raw: bool = True, output: bool = False, include_latest: bool = False
    ) -> list[Any]:
        """The last `n`, the oldest of them first."""
        lines = list(self.get_range(raw=raw, output=output))
        return _last(lines if include_latest else lines[:-1], _FEW if n is None else n)

    def search(
        self,
        pattern: str = "*",
        raw: bool = True,
        search_raw: bool = True,
        output: bool = False,
        n: int | None = None,
        unique: bool = False,
    ) -> list[Any]:
        """Those that match as a whole, with the wildcards of a shell; of those that are `unique` the latest."""
        searched = self.input_hist_raw if search_raw else self.input_hist_parsed
        matches = re.compile(translate(pattern)).match
        found = [number for number, source in enumerate(searched) if number and matches(source)]
        if unique:
            found = sorted({searched[number]: number for number in found}.values())
        wanted = set(found if n is None else _last(found, n))
        return [line for line in self.get_range(raw=raw, output=output) if line[1] in wanted]


def _last(items: list[Any], n: int) -> list[Any]:
    return items[-n:] if n > 0 else []
