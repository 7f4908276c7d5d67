"""What a session has run, as front ends and `%history` ask for it, from memory: it sleeps and wakes with `In`.

IPython's own is kept in a file, which all sessions of a user would share.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from fnmatch import translate
from functools import partial
from typing import Any, Literal

from IPython.core.history import HistoryManager, HistoryOutput

from .streams import BoundedStream

_FEW = 10  # that are told when it is not said how many


def keep_history(shell: Any) -> None:
    """Keep that of this shell so, from now on."""
    shell.history_manager.__class__ = SessionHistory
    shell.history_manager.outputs = Outputs(list)
    shell._tee = partial(_tee, shell, shell._tee)


class Outputs(defaultdict[int, list[HistoryOutput]]):
    """By the number of their cell. Who adds one finds there what was printed before."""

    def __getitem__(self, number: int) -> list[HistoryOutput]:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, BoundedStream):
                stream.flush()
        return super().__getitem__(number)


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


@contextlib.contextmanager
def _tee(shell: Any, stock: Any, channel: Literal["stdout", "stderr"]) -> Iterator[None]:
    """Take down what a cell prints, for `%notebook`, as it is sent. IPython's own looks at each write: slow."""
    stream = getattr(sys, channel)
    if not isinstance(stream, BoundedStream):
        with stock(channel):
            yield
        return
    cells, number = shell.history_manager.outputs, shell.execution_count
    kind: Literal["out_stream", "err_stream"] = "out_stream" if channel == "stdout" else "err_stream"

    def take_down(text: str) -> None:
        if text:
            outputs = cells.setdefault(number, [])
            if not outputs or outputs[-1].output_type != kind:
                outputs.append(HistoryOutput(output_type=kind, bundle={"stream": []}))
            outputs[-1].bundle["stream"].append(text)

    before = stream.take_down
    stream.take_down = take_down
    try:
        yield
    finally:
        stream.flush()
        stream.take_down = before
