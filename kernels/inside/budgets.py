"""What each run may publish: output is cut at the run's limit where it is made."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

_REMEMBERED_RUNS = 100_000  # about 300 bytes each
RESERVE = 1_000_000  # for small displays, the result and the error of a run that has filled its limit
SMALL = 100_000
_LAST = 300_000  # what of the reserve is left for the result and the error


class Budget:
    """What one run may still publish."""

    __slots__ = ("cut", "left", "reserve")

    def __init__(self, left: int) -> None:
        self.left = left
        self.reserve = RESERVE
        self.cut = False  # whether something was left out

    @property
    def room_for_displays(self) -> int:
        return max(self.left, min(SMALL, self.reserve - _LAST))

    def grant(self, size: int, room: int) -> bool:
        """Charge for a whole message; False if it may not be sent."""
        if size <= self.left:
            self.left -= size
        elif size <= room:
            self.reserve -= size
        else:
            self.cut = True
            return False
        return True


class Budgets:
    """The budgets of runs, by the id of their request; what was given none is without limit.

    Also a run that ended long ago may still have a thread that prints.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[str, Budget] = OrderedDict()

    def open(self, msg_id: str, limit: int) -> None:
        self._runs[msg_id] = Budget(limit + 1)  # one more than the gateway keeps, so that it sees there was more
        while len(self._runs) > _REMEMBERED_RUNS:
            self._runs.popitem(last=False)

    def forget(self) -> None:
        self._runs.clear()

    def of(self, header: Any) -> Budget | None:
        return self._runs.get(header.get("msg_id"))


budgets = Budgets()
