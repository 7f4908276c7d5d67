"""What every store promises of quotas, and of what was deleted."""

import asyncio
import uuid
from contextlib import suppress
from datetime import timedelta

import pytest

from gateway.errors import QuotaExceeded, SessionExists, SessionNotFound
from gateway.stores.base import Store
from gateway.stores.mongo import MongoStore
from tests.contracts.test_keys import store  # noqa: F401 - a fixture
from tests.contracts.test_store import T0, ids, later, new_session
from tests.mongod import Mongod, mongod  # noqa: F401 - a fixture

pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <socket\.socket:pytest.PytestUnraisableExceptionWarning"
)


async def test_nobody_owns_more_sessions_than_the_quota(store: Store) -> None:  # noqa: F811
    first = new_session("a", created_by="alice")
    await store.create_session(first, 2)
    await store.create_session(first, 2)  # asked for again by who never heard the answer
    with pytest.raises(SessionExists):
        await store.create_session(new_session("a", created_by="alice"), 2)
    await store.create_session(new_session("b", created_by="alice"), 2)
    await store.create_session(new_session("c", created_by="bob"), 2)

    refused = new_session("d", created_by="alice")
    with pytest.raises(QuotaExceeded):
        await store.create_session(refused, 2)
    with pytest.raises(SessionNotFound):
        await store.get_session("d")
    assert sorted(await ids(store)) == ["a", "b", "c"]

    await store.delete_session(first.uid, later(1))
    await store.create_session(refused, 2)
    assert sorted(await ids(store)) == ["b", "c", "d"]


@pytest.mark.external_service
async def test_gateways_on_one_database_agree_on_quotas(mongod: Mongod) -> None:  # noqa: F811
    uri = mongod.uri(f"test_{uuid.uuid4().hex}")
    stores = [MongoStore(uri), MongoStore(uri, driver="pymongo")]
    async with stores[0].opened(), stores[1].opened():
        assert [await ids(one) for one in stores] == [[], []]  # the indexes are there
        sessions = [new_session(f"s{n}", created_by="alice") for n in range(12)]

        results = await asyncio.gather(
            *(stores[n % 2].create_session(one, 5) for n, one in enumerate(sessions)), return_exceptions=True
        )
        made = [one for one in results if one is None]
        for n in range(12, 18):  # who was refused for another that was refused as well comes again
            if len(await ids(stores[n % 2])) < 5:
                await stores[n % 2].create_session(new_session(f"s{n}", created_by="alice"), 5)

        assert [one for one in results if one is not None and not isinstance(one, QuotaExceeded)] == []
        assert len(made) <= 5
        assert len(await ids(stores[0])) == 5
        with pytest.raises(QuotaExceeded):
            await stores[1].create_session(new_session("more", created_by="alice"), 5)


async def test_nobody_has_more_kernels_than_the_quota(store: Store) -> None:  # noqa: F811
    for gateway in ("g1", "g2"):
        await store.beat(gateway, later(10))
    for uid in ("a", "a", "b"):
        await store.take_place("alice", uid, "g1", later(0), 2)
    await store.take_place("bob", "c", "g2", later(0), 2)

    with pytest.raises(QuotaExceeded) as refused:
        await store.take_place("alice", "d", "g2", later(0), 2)
    assert refused.value.details == {"quota": "kernels", "limit": 2}
    await store.take_place("alice", "b", "g1", later(0), 2)  # it has its place
    await store.take_place("alice", "d", "g2", later(11), 2)  # what a gateway had that is gone is not counted
    await store.free_place("d", "g1")  # which has not taken it
    with pytest.raises(QuotaExceeded):
        await store.take_place("alice", "e", "g2", later(11), 1)
    await store.clear_places("g1")
    await store.free_place("d", "g2")
    await store.take_place("alice", "e", "g2", later(0), 1)
    await store.take_place("alice", "f", "g2", later(0))  # runs already, whatever the quota says


async def test_processor_seconds_are_added_up_by_owner_and_day_and_none_is_counted_twice(store: Store) -> None:  # noqa: F811
    today, tomorrow = T0.date(), T0.date() + timedelta(days=1)
    told = [
        await store.note_cpu("alice", today, "p1", 2.5),
        await store.note_cpu("alice", today, "p2", 1.0),
        await store.note_cpu("alice", today, "p1", 2.5),  # asked for again by who never heard the answer
        await store.note_cpu("alice", today, "p1", 2.0),  # late
        await store.note_cpu("bob", today, "p1", 7.0),
        await store.note_cpu("alice", tomorrow, "p1", 0.5),
        await store.note_cpu("alice", today, "p2", 1.5),
    ]

    assert told == [2.5, 3.5, 3.5, 3.5, 7.0, 0.5, 4.0]


async def test_files_of_live_sessions_are_added_up_by_owner(store: Store) -> None:  # noqa: F811
    sizes = {"a": ("alice", 1000), "b": ("alice", 500), "gone": ("alice", 70), "c": ("bob", 9)}
    for name, (owner, size) in sizes.items():
        one = new_session(name, created_by=owner, total_size_bytes=size)
        await store.create_session(one)
        if name == "gone":
            await store.delete_session(one.uid, later(1))

    assert [await store.disk_used(owner) for owner in ("alice", "bob", "nobody")] == [1500, 9, 0]


@pytest.mark.external_service
async def test_gateways_on_one_database_agree_on_kernels(mongod: Mongod) -> None:  # noqa: F811
    uri = mongod.uri(f"test_{uuid.uuid4().hex}")
    stores = [MongoStore(uri), MongoStore(uri, driver="pymongo")]
    async with stores[0].opened(), stores[1].opened():
        for n, one in enumerate(stores):
            await one.beat(f"g{n}", later(10))

        taken = (stores[n % 2].take_place("alice", f"u{n}", f"g{n % 2}", later(0), 3) for n in range(12))
        results = await asyncio.gather(*taken, return_exceptions=True)
        for n in range(12, 18):  # who was refused for another that was refused as well comes again
            with suppress(QuotaExceeded):
                await stores[n % 2].take_place("alice", f"u{n}", f"g{n % 2}", later(0), 3)

        assert results.count(None) <= 3
        assert all(one is None or isinstance(one, QuotaExceeded) for one in results)
        with pytest.raises(QuotaExceeded):
            await stores[0].take_place("alice", "more", "g0", later(0), 3)


async def test_the_last_one_deleted_is_found_until_it_is_purged(store: Store) -> None:  # noqa: F811
    for number in (1, 2):
        one = new_session("a")
        await store.create_session(one)
        await store.delete_session(one.uid, later(number))

    found = await store.get_deleted_session("a")
    await store.purge_session(one.uid)

    assert (found.uid, found.deleted_at, found.created_at) == (one.uid, later(2), T0)
    assert (await store.get_deleted_session("a")).deleted_at == later(1)
    with pytest.raises(SessionNotFound):
        await store.get_deleted_session("b")
