"""What every store promises of quotas, and of what was deleted."""

import asyncio
import uuid

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
