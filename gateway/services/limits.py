"""How much one caller may: requests and runs by token buckets, sessions by a quota that the store counts.

Rates are this gateway's own. What must hold over all gateways on a store is counted there.
"""

import math

from gateway.config import Settings
from gateway.errors import Exhausted
from gateway.models.access import Caller
from gateway.services.buckets import Buckets
from gateway.services.origin import GATEWAY, present


class RateLimited(Exhausted):
    code = "rate_limited"

    def __init__(self, what: str, per_s: float, wait_s: float) -> None:
        super().__init__(
            f"Too many {what}: {per_s:g} a second are allowed.",
            retry_after_s=max(1, math.ceil(wait_s)),
            limit_per_second=per_s,
        )


def take(buckets: Buckets, name: str, what: str, per_s: float, burst: float) -> None:
    """Raises `RateLimited` when there is no token; what is refused takes none."""
    left = buckets.left(name, per_s, burst)
    if left < 1:
        raise RateLimited(what, per_s, (1 - left) / per_s)
    buckets.spend(name, per_s, burst)


class Limits:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._requests = Buckets()
        self._runs = Buckets()

    def check_request(self, who: Caller) -> None:
        """Raises `RateLimited`: by key, whatever its secret is just now."""
        per_s = who.limits.requests_per_second or self._settings.requests_per_second
        if per_s is not None:
            burst = who.limits.burst or self._settings.requests_burst or max(1.0, per_s)
            take(self._requests, who.key_id or who.acts_as, "requests", per_s, burst)

    def check_run(self, uid: str) -> None:
        """Raises `RateLimited`: by session, whoever runs in it."""
        per_s = self._settings.session_runs_per_second
        if per_s is not None:
            take(self._runs, uid, "runs in this session", per_s, self._settings.session_runs_burst or max(1.0, per_s))


def most_sessions(settings: Settings) -> int | None:
    """How many live sessions the caller of the request under way may own; None is any number."""
    who = present().who
    if who is GATEWAY.who:
        return None
    return who.limits.sessions if who.limits.sessions is not None else settings.quota_sessions
