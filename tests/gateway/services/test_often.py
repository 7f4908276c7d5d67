"""Lines for what happens often: the first at once, the others together."""

import asyncio
from typing import Any

from gateway.services.often import Often


class Lines:
    def __init__(self) -> None:
        self.told: list[tuple[str, str, int]] = []
        self.more = asyncio.Event()

    def note(self, action: str, session_id: str, **details: Any) -> None:
        self.told.append((action, session_id, details["count"]))
        self.more.set()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(5):
            while len(self.told) < count:
                self.more.clear()
                await self.more.wait()


async def test_the_first_is_told_at_once_and_the_rest_by_number_for_each_session() -> None:
    lines = Lines()
    often = Often(lines.note, together_s=0.05)

    for _ in range(100):
        often.note("comm_msg", "a", "uid-a")
    often.note("comm_msg", "b", "uid-b")
    assert lines.told == [("comm_msg", "a", 1), ("comm_msg", "b", 1)]
    await lines.until(3)
    assert lines.told[2:] == [("comm_msg", "a", 99)]
    while often._counted:
        await asyncio.sleep(0.01)
    often.note("comm_msg", "a", "uid-a")

    assert lines.told[3:] == [("comm_msg", "a", 1)]


async def test_what_is_counted_when_the_gateway_stops_is_told() -> None:
    lines = Lines()
    often = Often(lines.note)
    for _ in range(3):
        often.note("comm_msg", "a", "uid-a")

    often.flush()
    often.flush()

    assert lines.told == [("comm_msg", "a", 1), ("comm_msg", "a", 2)]
