"""What every store promises of memories; and that recall finds the very same ones in all of them."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BadPageToken, MemoryNotFound
from gateway.models.memories import Indexed, Memory, MemoryFilter, Wording
from gateway.models.pages import PageRequest
from gateway.models.words import word_name
from gateway.services import recall
from gateway.services.recall import Found, Recaller
from gateway.stores.base import Store
from gateway.stores.memories import MemoryChanged
from gateway.stores.mongo import MongoStore
from gateway.stores.sqlite import SqliteStore
from tests.contracts.test_agents import created
from tests.contracts.test_store import ALL, T0, later, no_socket_left_for_later_tests, outcomes, store  # noqa: F401
from tests.mongod import Mongod, mongod  # noqa: F401 - a fixture

pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <socket\.socket:pytest.PytestUnraisableExceptionWarning"
)

OURS, THEIRS = "a" * 32, "b" * 32
SOON = later(10_000)


def new_memory(number: int, content: str, agent_uid: str = OURS, **said: Any) -> Memory:
    at = later(number)
    given: dict[str, Any] = {"type": "fact", "confidence": 1.0, "since": at, **said}
    return Memory(
        id=f"mem_{agent_uid}{number:06}", agent_uid=agent_uid, agent_id="bot", window_id="win_1", created_at=at,
        now=Wording(content=content, **given),
    )  # fmt: skip


async def put(store: Store, *contents: str, agent_uid: str = OURS, **said: Any) -> list[Memory]:  # noqa: F811
    memories = [new_memory(number, content, agent_uid, **said) for number, content in enumerate(contents)]
    for memory in memories:
        await store.put_memory(memory, Indexed.of(memory))
    return memories


async def reworded(store: Store, memory: Memory, at: datetime, **changes: Any) -> Memory:  # noqa: F811
    changed = memory.reworded(changes, at)
    await store.change_memory(changed, Indexed.of(changed))
    return changed


def which(at: datetime = SOON, agent_uid: str = OURS, **parts: Any) -> MemoryFilter:
    return MemoryFilter(agent_uid=agent_uid, at=at, **parts)


async def recalled(store: Store, query: str, limit: int = 10, **parts: Any) -> list[str]:  # noqa: F811
    found, _ = await Recaller(store).recall(which(**parts), query, limit)
    return [one.said.content for one in found]


async def listed(store: Store, **parts: Any) -> list[str]:  # noqa: F811
    page = await store.list_memories(which(**parts), ALL)
    assert page.total_count == len(page.items)
    return [memory.now.content for memory in page.items]


async def test_a_memory_comes_back_as_it_was_kept(store: Store) -> None:  # noqa: F811
    memory = new_memory(
        1, "Ein Öl, 東京, \U0001f600 $a.b", title="T", confidence=0.25, tags=["a b", "$", "ü"], expires_at=later(20_000)
    )

    await store.put_memory(memory, Indexed.of(memory))
    await store.put_memory(memory, Indexed.of(memory))  # asked for again

    assert await store.get_memory(OURS, memory.id) == memory
    assert await store.get_memories(OURS, [memory.id, "mem_other"]) == [memory]
    assert await recalled(store, "öl") == [memory.now.content]
    for agent_uid, memory_id in ((THEIRS, memory.id), (OURS, "mem_other")):
        with pytest.raises(MemoryNotFound):
            await store.get_memory(agent_uid, memory_id)


async def test_no_agent_finds_memories_of_another(store: Store) -> None:  # noqa: F811
    await put(store, "the colour is blue")
    theirs = await put(store, "the colour is red", agent_uid=THEIRS)

    assert await recalled(store, "colour") == ["the colour is blue"]
    assert await recalled(store, "colour", agent_uid=THEIRS) == ["the colour is red"]
    assert await listed(store) == ["the colour is blue"]
    with pytest.raises(MemoryNotFound):
        await store.delete_memory(OURS, theirs[0].id, later())
    assert await store.get_memories(OURS, [theirs[0].id]) == []


async def test_rare_words_count_for_more_and_long_memories_for_less(store: Store) -> None:  # noqa: F811
    await put(
        store,
        "the invoice of march",
        "the invoice of april, which was sent late, with a long letter about this, that and the other thing",
        "the invoice of april",
        *("the weather of today" for _ in range(5)),
    )

    found = await recalled(store, "the invoice of april")

    assert found[:3] == [
        "the invoice of april",
        "the invoice of april, which was sent late, with a long letter about this, that and the other thing",
        "the invoice of march",
    ]


async def test_what_a_user_writes_is_never_an_operator(store: Store) -> None:  # noqa: F811
    await put(store, "cats NEAR dogs", "cats only", "AND OR NOT", 'a "quoted" word*', "col: umn")

    assert await recalled(store, 'cats AND NOT "dogs"') == ["AND OR NOT", "cats NEAR dogs", "cats only"]
    assert await recalled(store, "NEAR(cats dogs, 5)") == ["cats NEAR dogs", "cats only"]
    assert await recalled(store, "col:umn ^umn* -umn") == ["col: umn"]
    assert await recalled(store, 'quoted" OR "1"="1') == ['a "quoted" word*', "AND OR NOT"]
    assert await recalled(store, "words : sssss $where {$gt:1}") == []


@pytest.mark.parametrize(
    ("content", "query"),
    [
        ("Die Straße nach Köln", "STRASSE koln"),
        ("Привет, мир", "привет"),
        ("東京都に住んでいます", "東京"),
        ("私は猫が好き", "猫"),
        ("हिन्दी में लिखा", "हिन्दी"),
        ("مرحبا بالعالم", "بالعالم"),
        ("ภาษาไทยง่าย", "ไทย"),
        ("ﬁne ｆｕｌｌｗｉｄｔｈ", "fine fullwidth"),  # noqa: RUF001
        ("user_id=42", "user_id"),
    ],
)
async def test_every_script_is_found(store: Store, content: str, query: str) -> None:  # noqa: F811
    await put(store, content, "something else entirely")

    assert await recalled(store, query) == [content]


async def test_memories_are_found_by_type_tags_time_and_confidence(store: Store) -> None:  # noqa: F811
    for number in range(8):
        tags = [tag for bit, tag in enumerate(("a, b", "c")) if number & 1 << bit]
        memory = new_memory(
            number, f"note {number}", type="odd" if number & 4 else "even", tags=tags, confidence=number / 10
        )
        await store.put_memory(memory, Indexed.of(memory))

    finds: list[Callable[..., Awaitable[list[str]]]] = [partial(recalled, store, "note"), partial(listed, store)]
    for find in finds:
        assert await find(type="odd", tags=("c",)) == ["note 7", "note 6"]
        assert await find(tags=("a, b", "c")) == ["note 7", "note 3"]
        assert await find(since=later(2), until=later(4)) == ["note 3", "note 2"]
        assert await find(min_confidence=0.6, type="odd") == ["note 7", "note 6"]
        assert await find(tags=("a",)) == []


async def test_an_edit_counts_at_once_and_what_was_said_before_is_known_as_of_then(store: Store) -> None:  # noqa: F811
    (memory,) = await put(store, "the colour is blue", tags=["old"], type="guess")

    changed = await reworded(store, memory, later(100), content="the shade is red", tags=["new"], type="fact")

    assert await store.get_memory(OURS, memory.id) == changed
    assert await recalled(store, "colour") == []
    assert await recalled(store, "shade") == ["the shade is red"]
    assert await recalled(store, "shade", tags=("old",)) == await recalled(store, "shade", type="guess") == []
    assert await listed(store, tags=("old",)) == []
    assert await recalled(store, "colour", at=later(99), is_past=True) == ["the colour is blue"]
    assert await recalled(store, "colour", at=later(99), is_past=True, tags=("old",)) == ["the colour is blue"]
    assert await recalled(store, "colour", at=later(99), is_past=True, tags=("new",)) == []
    assert await recalled(store, "shade", at=later(99), is_past=True) == []
    assert await recalled(store, "colour", at=later(-1), is_past=True) == []


async def test_a_forgotten_or_expired_memory_is_found_only_as_of_before(store: Store) -> None:  # noqa: F811
    await put(store, "gone tomorrow", expires_at=later(50))
    forgotten = new_memory(7, "gone today")
    await store.put_memory(forgotten, Indexed.of(forgotten))

    await store.delete_memory(OURS, forgotten.id, later(30))

    assert await recalled(store, "gone", at=later(40)) == ["gone tomorrow"]
    assert await listed(store, at=later(40)) == ["gone tomorrow"]
    assert await recalled(store, "gone") == await listed(store) == []
    assert await recalled(store, "gone", at=later(20), is_past=True) == ["gone today", "gone tomorrow"]
    assert (await store.get_memories(OURS, [forgotten.id]))[0].deleted_at == later(30)
    with pytest.raises(MemoryNotFound):
        await store.get_memory(OURS, forgotten.id)
    with pytest.raises(MemoryNotFound):
        await store.delete_memory(OURS, forgotten.id, later(31))
    with pytest.raises(MemoryChanged):
        await reworded(store, forgotten, later(32), content="back")


async def test_of_two_edits_of_one_version_one_is_refused(store: Store) -> None:  # noqa: F811
    (memory,) = await put(store, "first")

    results = await asyncio.gather(
        *(reworded(store, memory, later(9), content=content) for content in ("second", "third")),
        return_exceptions=True,
    )

    assert outcomes(results, MemoryChanged) == (1, 1)
    assert (await store.get_memory(OURS, memory.id)).version == 2
    assert len(await recalled(store, "second third")) == 1


async def test_memories_are_listed_newest_first_page_by_page(store: Store) -> None:  # noqa: F811
    await put(store, *"abcde", tags=["t"])

    for tags in ((), ("t",)):
        first = await store.list_memories(which(tags=tags), PageRequest(limit=3))
        second = await store.list_memories(which(tags=tags), PageRequest(limit=3, token=first.next_token))
        assert [one.now.content for one in (*first.items, *second.items)] == list("edcba")
        assert (first.total_count, second.next_token) == (5, None)
    with pytest.raises(BadPageToken):
        await store.list_memories(which(type="fact"), PageRequest(limit=3, token=first.next_token))


async def test_a_purged_agent_takes_its_memories_along_and_a_deleted_one_keeps_them(store: Store) -> None:  # noqa: F811
    agent = await created(store)
    await put(store, "ours to lose", agent_uid=agent.uid)
    await put(store, "theirs to keep", agent_uid=THEIRS)

    await store.delete_agent(agent.uid, later())
    kept = await recalled(store, "lose", agent_uid=agent.uid)
    await store.purge_agent(agent.uid)

    assert kept == ["ours to lose"]
    assert await recalled(store, "lose", agent_uid=agent.uid) == await listed(store, agent_uid=agent.uid) == []
    assert await recalled(store, "keep", agent_uid=THEIRS) == ["theirs to keep"]


async def test_counting_and_candidates_stop_where_they_are_told_and_are_the_newest(store: Store) -> None:  # noqa: F811
    await put(store, *(f"common {'rare' if number == 3 else ''} {number}" for number in range(20)))
    names = [word_name(word) for word in ("common", "rare", "none")]

    counts = await store.count_words(OURS, names, 7)
    candidates = await store.find_candidates(which(), names, 5)

    assert (counts.total, [counts.holding[name] for name in names]) == (7, [7, 1, 0])
    assert [one.id for one in candidates] == [f"mem_{OURS}{number:06}" for number in (19, 18, 17, 16, 15)]
    assert all(f" {names[0]}:1 " in one.counts for one in candidates)


async def test_a_memory_of_100_kb_and_its_edits_are_kept_whole(store: Store) -> None:  # noqa: F811
    large = " ".join(f"word{number}" for number in range(11_000))
    (memory,) = await put(store, large)
    for number in range(12):
        memory = await reworded(store, memory, later(100 + number), content=f"{large} edit{number}")

    assert await recalled(store, "edit11 word10999") == [f"{large} edit11"]
    kept = await store.get_memory(OURS, memory.id)
    assert (kept, kept.version) == (memory, 13)
    assert await recalled(store, "edit10", at=later(110.5), is_past=True) == [f"{large} edit10"]
    assert kept.known_since > memory.created_at  # so long ago is not kept, and it says so


async def test_of_many_edits_the_last_ones_are_known(store: Store) -> None:  # noqa: F811
    (memory,) = await put(store, "edit0")
    for number in range(1, 60):
        memory = await reworded(store, memory, later(number), content=f"edit{number}")

    assert await recalled(store, "edit59") == ["edit59"]
    assert await recalled(store, "edit30", at=later(30), is_past=True) == ["edit30"]
    assert memory.known_since == later(9)


VOCABULARY = [f"w{number}" for number in range(40)] + ["東京", "straße", "the", "of"]


@pytest.fixture
async def stores(mongod: Mongod, tmp_path: Path) -> AsyncIterator[list[Store]]:  # noqa: F811
    with mongod.database() as one, mongod.database() as two:
        made: list[Store] = [
            SqliteStore(tmp_path / "gateway.db"), MongoStore(one, driver="motor"), MongoStore(two, driver="pymongo"),
        ]  # fmt: skip
        async with AsyncExitStack() as stack:
            for each in made:
                await stack.enter_async_context(each.opened())
            yield made


@pytest.mark.external_service
async def test_recall_finds_the_same_with_the_same_scores_in_every_store(
    stores: list[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "MOST_CANDIDATES", 25)  # so that the bounds are met by few memories
    monkeypatch.setattr(recall, "_COMMON", 12)
    chance = random.Random(7)  # noqa: S311 - the same one each time
    memories = []
    for number in range(150):
        words = chance.choices(
            VOCABULARY, weights=[1 + place**2 for place in range(len(VOCABULARY))], k=chance.randint(1, 12)
        )
        memories.append(new_memory(
            number, " ".join(words), OURS if number % 5 else THEIRS, type=chance.choice(["fact", "note"]),
            tags=chance.sample(["x", "y", "z"], chance.randint(0, 3)), confidence=chance.random(),
            expires_at=later(chance.randint(500, 2000)) if number % 7 == 0 else None,
        ))  # fmt: skip
    edits = [(memory, " ".join(chance.choices(VOCABULARY, k=5))) for memory in chance.sample(memories, 30)]
    for each in stores:
        for memory in memories:
            await each.put_memory(memory, Indexed.of(memory))
        for memory, content in edits[:20]:
            await reworded(each, memory, later(300), content=content, tags=["x"])
        for memory, _ in edits[20:]:
            await each.delete_memory(memory.agent_uid, memory.id, later(400))

    asked = 0
    for _ in range(60):
        query = " ".join(chance.sample(VOCABULARY, chance.randint(1, 6)))
        at = later(chance.choice([250, 350, 450, 1500, 5000]))
        filter_ = MemoryFilter(
            chance.choice([OURS, OURS, THEIRS]), at, is_past=chance.random() < 0.3 or at < later(460),
            type=chance.choice([None, None, "fact"]), tags=chance.choice([(), (), ("x",), ("x", "y")]),
            since=chance.choice([None, later(40)]), min_confidence=chance.choice([None, 0.5]),
        )  # fmt: skip
        limit, min_score = chance.choice([1, 5, 50]), chance.choice([0.0, 0.3])
        answers: list[tuple[list[Found], bool]] = [
            await Recaller(each).recall(filter_, query, limit, min_score) for each in stores
        ]
        assert answers[0] == answers[1] == answers[2], (query, filter_)
        asked += len(answers[0][0])
    assert asked > 100


def test_a_wording_is_the_one_of_its_time_also_after_a_clock_was_set_back() -> None:
    memory = (
        new_memory(10, "first").reworded({"content": "second"}, later(20)).reworded({"content": "third"}, later(15))
    )

    said = [one.content if (one := memory.as_of(later(at))) else None for at in (9, 10, 19, 20, 25)]
    assert said == [None, "first", "first", "third", "third"]
    assert memory.now.since - T0 == timedelta(seconds=20)
