"""How much this process holds of messages that are on their way to it, from all kernels together.

What is small comes in as it comes. Room for what is large is lent, and who does not get on with it while others wait
loses it: no kernel can keep others from saying what they have to say.
"""

import asyncio
import time
from collections import deque
from typing import Protocol

PATIENCE_S = 5.0
_LOOK_S = 0.5


class Borrower(Protocol):
    def lent(self) -> None:
        """What it has waited for is its own now."""
        ...

    def recall(self) -> None:
        """It has to give back what it has, at once."""
        ...


class Intake:
    """Room for `at_once` messages of `message_bytes`, which is the most that one may have."""

    def __init__(self, message_bytes: int = 32 * 2**20, at_once: int = 1) -> None:
        self.message_bytes = message_bytes
        self._free_bytes = message_bytes * at_once
        self._held: dict[Borrower, tuple[int, float]] = {}  # bytes, and since when
        self._waiting: deque[tuple[Borrower, int]] = deque()
        self._looking: asyncio.TimerHandle | None = None

    def borrow(self, borrower: Borrower, size_bytes: int) -> bool:
        """So much more; if it is not there now, `lent` tells when it is. `size_bytes` is no more than of a message."""
        if not self._waiting and size_bytes <= self._free_bytes:
            self._lend(borrower, size_bytes)
            return True
        self._waiting.append((borrower, size_bytes))
        self._look_soon()
        return False

    def give_back(self, borrower: Borrower) -> None:
        """All that it has, or waits for."""
        held, _ = self._held.pop(borrower, (0, 0.0))
        self._free_bytes += held
        if self._waiting:
            self._waiting = deque(one for one in self._waiting if one[0] is not borrower)
            self._serve()

    def _lend(self, borrower: Borrower, size_bytes: int) -> None:
        self._free_bytes -= size_bytes
        self._held[borrower] = self._held.get(borrower, (0, 0.0))[0] + size_bytes, time.monotonic()

    def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting and self._waiting[0][1] <= self._free_bytes:
            borrower, size_bytes = self._waiting.popleft()
            self._lend(borrower, size_bytes)
            loop.call_soon(borrower.lent)

    def _look_soon(self) -> None:
        if self._looking is None:
            self._looking = asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._looking = None
        late = time.monotonic() - PATIENCE_S
        for borrower, (_, since) in list(self._held.items()):
            if self._waiting and since < late:
                borrower.recall()
        if self._waiting:
            self._look_soon()
