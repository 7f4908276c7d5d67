"""How long it takes to recall from 100,000 memories of one agent, beside those of a hundred others, on both stores.

    python -m tests.bench.bench_recall [--memories 100000] [--rounds 300]

Memories are sentences of words as frequent as those of a language (Zipf's law). Questions: one rare word, five words as
they come, five of the most common, and five with a tag, as of an hour ago. Each is asked of a store that is warm.
"""

import argparse
import asyncio
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from pathlib import Path
from statistics import median

from gateway.models.memories import Indexed, Memory, MemoryFilter, Wording
from gateway.services.recall import Recaller
from gateway.stores.base import Store
from gateway.stores.mongo import MongoStore
from gateway.stores.mongo_memories import memory_document
from gateway.stores.sqlite import SqliteStore
from tests.mongod import running_mongod

WORDS = 30_000
START = datetime(2026, 1, 1, tzinfo=UTC)
ONE, OTHERS = "0" * 32, [f"{number:032x}" for number in range(1, 101)]
AT_ONCE = 500

Ask = Callable[[random.Random], tuple[str, MemoryFilter]]


def questions(count: int) -> dict[str, Ask]:
    end = START + timedelta(seconds=count)
    now, before = MemoryFilter(ONE, end), MemoryFilter(ONE, end - timedelta(hours=1), is_past=True)
    tagged = MemoryFilter(ONE, end, tags=("t7",))
    common = [f"w{rank}" for rank in range(20)]
    return {
        "one rare word": lambda chance: (f"w{chance.randrange(WORDS // 2, WORDS)}", now),
        "five words as they come": lambda chance: (" ".join(drawn(chance, 5)), now),
        "five of the most common": lambda chance: (" ".join(chance.sample(common, 5)), now),
        "five words, with a tag": lambda chance: (" ".join(drawn(chance, 5)), tagged),
        "five words, as of an hour ago": lambda chance: (" ".join(drawn(chance, 5)), before),
    }


_ZIPF = list(accumulate(1 / (rank + 1) for rank in range(WORDS)))


def drawn(chance: random.Random, count: int) -> list[str]:
    return [f"w{rank}" for rank in chance.choices(range(WORDS), cum_weights=_ZIPF, k=count)]


def memory(number: int, agent_uid: str, chance: random.Random) -> Memory:
    at = START + timedelta(seconds=number)
    said = Wording(
        type="fact", content=" ".join(drawn(chance, chance.randint(8, 30))), confidence=1.0,
        tags=[f"t{chance.randrange(20)}"], since=at,
    )  # fmt: skip
    return Memory(
        id=f"mem_{agent_uid}_{number}", agent_uid=agent_uid, agent_id="bot", window_id="win", created_at=at, now=said
    )


Put = Callable[[list[Memory]], Awaitable[None]]


async def fill(put: Put, count: int) -> float:
    """Memories a second."""
    chance, began = random.Random(1), time.perf_counter()  # noqa: S311 - the same ones each time
    for start in range(0, count, AT_ONCE):
        numbers = range(start, min(start + AT_ONCE, count))
        ours = [memory(number, ONE, chance) for number in numbers]
        await put(ours + [memory(number, chance.choice(OTHERS), chance) for number in numbers[::5]])
    return 1.2 * count / (time.perf_counter() - began)


async def ask(store: Store, question: Ask, rounds: int) -> list[float]:
    """Milliseconds of each."""
    chance, recaller, took = random.Random(2), Recaller(store), []  # noqa: S311 - as above
    for _ in range(rounds):
        query, filter_ = question(chance)
        began = time.perf_counter()
        await recaller.recall(filter_, query, 10)
        took.append(1000 * (time.perf_counter() - began))
    return sorted(took)


@asynccontextmanager
async def opened_stores(folder: Path) -> AsyncIterator[dict[str, tuple[Store, Put]]]:
    """Each with a way to put many memories at once."""
    sqlite = SqliteStore(folder / "gateway.db")
    with running_mongod(folder / "mongod") as server, server.client() as client:
        mongo = MongoStore(server.uri("bench"))

        async def into_sqlite(memories: list[Memory]) -> None:
            await asyncio.gather(*(sqlite.put_memory(one, Indexed.of(one)) for one in memories))

        async def into_mongo(memories: list[Memory]) -> None:  # one by one each would wait for the disk
            client["bench"]["memories"].insert_many([memory_document(one, Indexed.of(one)) for one in memories])

        async with sqlite.opened(), mongo.opened():
            await mongo.ping()  # makes the indexes
            yield {"SQLite": (sqlite, into_sqlite), "MongoDB": (mongo, into_mongo)}


async def main(count: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="bench-recall-") as name:
        async with opened_stores(Path(name)) as stores:
            print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, {count:,} memories, {rounds} rounds\n")
            for kind, (_, put) in stores.items():
                print(f"{kind}: {await fill(put, count):,.0f} memories a second", flush=True)
            print(f"\n{'ms: median / p99':34}" + "".join(f"{kind:>20}" for kind in stores))
            for what, question in questions(count).items():
                line = f"{what:34}"
                for store, _ in stores.values():
                    took = await ask(store, question, rounds)
                    line += f"{f'{median(took):.1f} / {took[int(0.99 * (len(took) - 1))]:.1f}':>20}"
                print(line, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--memories", type=int, default=100_000, help="of the agent that is asked; others have a fifth of that"
    )
    parser.add_argument("--rounds", type=int, default=300, help="questions of each kind")
    parser.add_argument("--quick", action="store_true", help="few of all")
    given = parser.parse_args()
    asyncio.run(main(2000, 20) if given.quick else main(given.memories, given.rounds))
