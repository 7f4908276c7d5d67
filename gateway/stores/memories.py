"""What every store promises of memories. Which of them fit a question best is not its business."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from gateway.errors import Conflict
from gateway.models.memories import Candidate, Indexed, Memory, MemoryFilter
from gateway.models.pages import Page, PageRequest


class MemoryChanged(Conflict):
    code = "memory_changed"

    def __init__(self, memory_id: str) -> None:
        super().__init__(f"Memory {memory_id!r} was changed meanwhile.", memory_id=memory_id)


@dataclass(frozen=True, slots=True)
class WordCounts:
    """How many memories there are, and how many hold each word; what is more than was asked for is not told apart."""

    total: int
    holding: dict[str, int]


class MemoryStore(Protocol):
    async def put_memory(self, memory: Memory, indexed: Indexed) -> None:
        """Insert; one whose `id` is there already is left as it is."""
        ...

    async def change_memory(self, memory: Memory, indexed: Indexed) -> None:
        """Put it in the place of the version before it. Raises `MemoryChanged` if that is not the last, or deleted."""
        ...

    async def delete_memory(self, agent_uid: str, memory_id: str, at: datetime) -> None:
        """From now on it is there only for who looks back. Raises `MemoryNotFound`."""
        ...

    async def get_memory(self, agent_uid: str, memory_id: str) -> Memory:
        """Also one that has expired. Raises `MemoryNotFound` for one that is deleted or another agent's."""
        ...

    async def get_memories(self, agent_uid: str, memory_ids: Sequence[str]) -> list[Memory]:
        """Those that are there, deleted or not, in no order."""
        ...

    async def list_memories(self, filter_: MemoryFilter, page: PageRequest) -> Page[Memory]:
        """Newest first (`created_at`, then `id`), as of now. Raises `BadPageToken`."""
        ...

    async def count_words(self, agent_uid: str, names: Sequence[str], most: int) -> WordCounts:
        """How many of the agent's memories, deleted ones too, ever held each word; none counts for more than `most`."""
        ...

    async def find_candidates(self, filter_: MemoryFilter, names: Sequence[str], most: int) -> list[Candidate]:
        """Those that ever held one of these words, the newest first, at most `most`.

        Type, tags, expiry and confidence are looked at only if the filter is not of the past.
        """
        ...
