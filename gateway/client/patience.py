"""Whether a call is made again, and when. It decides and does nothing: waiting is for those who call."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import httpx2

from gateway.client.errors import GatewayError, InProgress, QuotaExceeded, TooManyGuesses, Unreachable

_WHILE_IT_STARTS = (502, 503, 504)  # of a proxy whose gateway is away
_CONTACT_S = 1.0


@dataclass(frozen=True, slots=True)
class Patience:
    """A gateway that is away, or has no room, is waited for as long as `lasts_s`; 0 is no patience at all.

    Waits grow from `first_s` to `longest_s`, or are what the gateway asks for, and vary, so that many clients don't
    come back at once.
    """

    lasts_s: float = 60.0
    first_s: float = 0.1
    longest_s: float = 2.0


@dataclass(slots=True)
class Attempts:
    """The attempts at one call."""

    patience: Patience
    repeatable: bool
    clock: Callable[[], float] = time.monotonic
    count: int = 0
    lost: bool = False  # one of them may have been carried out, though its answer never came
    _until: float | None = field(default=None, init=False)
    _begun: float = field(default=0.0, init=False)
    _in_a_row: int = field(default=0, init=False)

    def begin(self) -> None:
        self.count += 1
        self._begun = self.clock()

    def heard(self) -> None:
        """The gateway is there: patience begins anew."""
        self._until, self._in_a_row = None, 0

    def wait_after(self, failure: Exception) -> float | None:
        """Seconds until the next attempt; None if there is to be none."""
        arrived = not isinstance(failure, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)
        refused = isinstance(failure, GatewayError)
        if arrived and not refused:
            self.lost = True
            if not self.repeatable:
                return None
            if self.clock() - self._begun > _CONTACT_S:
                self.heard()
        if isinstance(failure, GatewayError) and not self._may_change(failure):
            return None
        now = self.clock()
        if self._until is None:
            self._until = now + self.patience.lasts_s
        asked = failure.retry_after_s if isinstance(failure, GatewayError) else None
        wait = self._next_wait(asked)
        if isinstance(failure, InProgress):
            return wait  # the first one is being answered: that is no failure
        return wait if now + wait <= self._until else None

    def _may_change(self, refusal: GatewayError) -> bool:
        if isinstance(refusal, QuotaExceeded | TooManyGuesses):
            return False  # it is for the caller to do something about it
        if refusal.status in _WHILE_IT_STARTS and refusal.request_id is None:
            return self.repeatable
        return refusal.retry_after_s is not None

    def _next_wait(self, asked_s: float | None) -> float:
        self._in_a_row += 1
        if asked_s is not None:
            return asked_s * random.uniform(1, 1.1)  # noqa: S311
        grown = self.patience.first_s * 2.0 ** min(self._in_a_row - 1, 20)
        return min(grown, self.patience.longest_s) * random.uniform(0.5, 1)  # noqa: S311


def unreachable(url: str, failure: Exception, attempts: Attempts) -> Unreachable:
    """What is raised once patience is at its end; `failure` is its cause."""
    what = str(failure) or type(failure).__name__
    times = f" ({attempts.count} attempts)" if attempts.count > 1 else ""
    maybe = "" if attempts.repeatable or not attempts.lost else " What was asked for may have been done all the same."
    return Unreachable(f"No gateway answers at {url}{times}: {what}.{maybe}")
