"""Which memories fit a question best: the one place that ranks, for every store.

A store finds candidates, memories that hold some of the words, and we weigh them as BM25 does: a word counts for more
the fewer memories hold it, and less in a long memory. What is looked at is bounded: a word that more than a thousand
memories hold finds none by itself as long as rarer ones find enough; if it must, its newest thousand are looked at.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log

from gateway.models.memories import Candidate, Memory, MemoryFilter, Wording
from gateway.models.words import asked_words, count_of, counted, word_name
from gateway.stores.base import Store

MOST_CANDIDATES = 1000

_COMMON = 1000  # memories; a word that more of them hold tells little
_K1 = 1.2
_B = 0.75


@dataclass(frozen=True, slots=True)
class Found:
    """A memory with what it said at the time that was asked for, and how well that fits, 0 to 1."""

    memory: Memory
    said: Wording
    score: float


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each word that was asked for tells, by its name in the index."""

    of: Mapping[str, float]

    @classmethod
    def counted(cls, holding: Mapping[str, int], total: int) -> "Weights":
        return cls({name: log(1 + (total - held + 0.5) / (held + 0.5)) for name, held in holding.items()})

    def scores(self, candidates: Sequence[Candidate]) -> list[float]:
        """1 for a memory of usual length that holds every word once; more for one that holds them more often."""
        best = sum(self.of.values())
        usual = sum(one.length for one in candidates) / len(candidates) if candidates else 1.0
        scores = []
        for one in candidates:
            length = _K1 * (1 - _B + _B * one.length / (usual or 1.0))
            score = 0.0
            for name, weight in self.of.items():
                if count := count_of(name, one.counts):
                    score += weight * count * (_K1 + 1) / (count + length)
            scores.append(score / best)
        return scores


class Recaller:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def recall(
        self, filter_: MemoryFilter, query: str, limit: int, min_score: float = 0.0
    ) -> tuple[list[Found], bool]:
        """The best `limit`, the best first; and whether every memory that holds one of the words was looked at."""
        names = [word_name(word) for word in asked_words(query)]
        counts = await self._store.count_words(filter_.agent_uid, names, _COMMON + 1)
        candidates, complete = await self._candidates(filter_, counts.holding, limit)
        candidates, looked_at = await self._as_of(filter_, candidates)
        weights = Weights.counted(counts.holding, counts.total)
        scores = await asyncio.to_thread(weights.scores, candidates)
        ranked = sorted(
            zip(scores, candidates, strict=True),
            key=lambda pair: (pair[0], pair[1].created_at, pair[1].id),
            reverse=True,
        )
        best = [(score, one) for score, one in ranked if score > 0 and min(score, 1.0) >= min_score][:limit]
        missing = [one.id for _, one in best if one.id not in looked_at]
        looked_at |= {memory.id: memory for memory in await self._store.get_memories(filter_.agent_uid, missing)}
        found = []
        for score, one in best:
            memory = looked_at.get(one.id)
            said = memory.as_of(filter_.at) if memory is not None else None
            if memory is not None and said is not None:  # else it was changed, or forgotten, just now
                found.append(Found(memory, said, round(min(score, 1.0), 4)))
        return found, complete

    async def _candidates(
        self, filter_: MemoryFilter, holding: Mapping[str, int], limit: int
    ) -> tuple[list[Candidate], bool]:
        """Those that hold rare words, the rarest first; if they are too few, those that hold common ones as well."""
        held = sorted((count, name) for name, count in holding.items() if count)
        chosen: list[str] = []
        expected = 0
        for count, name in held:
            if count <= _COMMON and (not chosen or expected + count <= MOST_CANDIDATES):
                chosen.append(name)
                expected += count
        left = [name for _, name in held if name not in chosen]
        found = await self._store.find_candidates(filter_, chosen, MOST_CANDIDATES) if chosen else []
        if not left:
            return found, True
        if len(found) >= limit:
            return found, False
        more = await self._store.find_candidates(filter_, left, MOST_CANDIDATES)
        known = {one.id for one in found}
        return [*found, *(one for one in more if one.id not in known)], len(more) < MOST_CANDIDATES

    async def _as_of(
        self, filter_: MemoryFilter, candidates: list[Candidate]
    ) -> tuple[list[Candidate], dict[str, Memory]]:
        """Candidates as they were at the time that is asked for; and the memories that were read to know."""
        unsure = [one.id for one in candidates if one.changed or filter_.is_past]
        if not unsure:
            return candidates, {}
        memories = {one.id: one for one in await self._store.get_memories(filter_.agent_uid, unsure)}
        return await asyncio.to_thread(_judged, filter_, candidates, memories), memories


def _judged(filter_: MemoryFilter, candidates: list[Candidate], memories: Mapping[str, Memory]) -> list[Candidate]:
    judged = []
    for one in candidates:
        memory = memories.get(one.id)
        if memory is None:
            if not one.changed and not filter_.is_past:
                judged.append(one)
            continue
        said = memory.as_of(filter_.at)
        if said is None or not filter_.takes(said):
            continue
        if said is memory.now:
            judged.append(one)
        else:
            counts, length = counted(said.text)
            judged.append(Candidate(one.id, one.created_at, one.changed, counts, length))
    return judged
