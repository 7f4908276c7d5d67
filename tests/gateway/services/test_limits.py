"""Token buckets: what they let through, when, and how much they remember."""

import pytest

from gateway.services import buckets as buckets_module
from gateway.services.buckets import Buckets
from gateway.services.limits import RateLimited, take


class Clock:
    def __init__(self) -> None:
        self.at = 1000.0

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(buckets_module, "time", made)
    return made


def taken(buckets: Buckets, name: str, tries: int = 100) -> int:
    for number in range(tries):
        try:
            take(buckets, name, "requests", 2, 5)
        except RateLimited:
            return number
    return tries


def test_after_a_burst_tokens_come_back_at_the_rate_and_never_more_than_the_burst(clock: Clock) -> None:
    buckets = Buckets()

    at_once = taken(buckets, "a")
    clock.at += 1
    after_a_second = taken(buckets, "a")
    clock.at += 1000
    after_long = taken(buckets, "a")

    assert (at_once, after_a_second, after_long) == (5, 2, 5)
    assert taken(buckets, "b") == 5


def test_who_is_refused_is_told_how_long_to_wait_and_after_that_is_let_in(clock: Clock) -> None:
    buckets = Buckets()
    take(buckets, "a", "requests", 0.1, 1)

    with pytest.raises(RateLimited) as refused:
        take(buckets, "a", "requests", 0.1, 1)

    assert refused.value.retry_after_s == 10
    clock.at += 10
    take(buckets, "a", "requests", 0.1, 1)


def test_memory_is_bounded_and_the_one_longest_unused_is_forgotten() -> None:
    buckets = Buckets(most=3)
    for name in ("a", "b", "c", "a", "d"):
        take(buckets, name, "requests", 0.001, 2)

    assert len(buckets) == 3
    with pytest.raises(RateLimited):
        take(buckets, "a", "requests", 0.001, 2)
    take(buckets, "b", "requests", 0.001, 2)
    take(buckets, "b", "requests", 0.001, 2)
