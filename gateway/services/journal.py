"""Numbered events, kept in a bounded ring: many may follow, and a slow one holds nobody up."""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import cached_property
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    number: int
    kind: str
    data: Any
    size_bytes: int


class Journal:
    """Holds the last `limit_bytes` of events; who comes too late for some is told how many they missed."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: deque[Entry] = deque()
        self.size_bytes = 0
        self._last = 0
        self._closed = False
        self.followers = 0
        self._news: asyncio.Event | None = None  # made by the first who waits

    @cached_property
    def epoch(self) -> str:
        """Tells its numbers from those of a journal that was there before."""
        return secrets.token_hex(4)

    def add(self, kind: str, data: Any, size_bytes: int = 100) -> None:
        self._last += 1
        self._entries.append(Entry(self._last, kind, data, size_bytes + 100))
        self.size_bytes += size_bytes + 100
        while self.size_bytes > self._limit_bytes and len(self._entries) > 1:
            self.size_bytes -= self._entries.popleft().size_bytes
        self._tell()

    def close(self) -> None:
        self._closed = True
        self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None

    async def follow(self, after: int = 0) -> AsyncGenerator[Entry, None]:
        """Every event after number `after`, until the journal is closed."""
        self.followers += 1
        try:
            async for entry in self._follow(min(after, self._last)):
                yield entry
        finally:
            self.followers -= 1

    async def _follow(self, after: int) -> AsyncGenerator[Entry, None]:
        while True:
            missed = self._entries[0].number - after - 1 if self._entries else 0
            if missed > 0:
                after += missed
                yield Entry(after, "missed", {"count": missed}, 0)
            for entry in self._after(after):
                after = entry.number
                yield entry
            if self._last == after:
                if self._closed:
                    return
                self._news = self._news or asyncio.Event()
                await self._news.wait()

    def _after(self, number: int) -> list[Entry]:
        if not self._entries:
            return []
        skip = max(0, number + 1 - self._entries[0].number)
        return [self._entries[at] for at in range(skip, min(len(self._entries), skip + 100))]
