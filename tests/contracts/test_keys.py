"""What every store promises of API keys, and of who sees which sessions and snapshots."""

import asyncio
import hashlib
import sqlite3
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BadPageToken, KeyNotFound, SessionExists, SessionNotFound, SessionPurged
from gateway.models.access import ApiKey, Role
from gateway.models.labels import parse_selector
from gateway.models.pages import PageRequest, SessionFilter
from gateway.models.sessions import Session, SessionAgent
from gateway.models.snapshots import Snapshot
from gateway.stores.base import KeyChanged, SessionChanges, Store
from gateway.stores.mongo import MongoStore
from gateway.stores.mongo_schema import session_query
from gateway.stores.sqlite import SqliteStore
from gateway.stores.sqlite_queries import SessionQuery
from gateway.stores.sqlite_snapshots import list_snapshots
from tests.contracts.test_store import ALL, T0, new_session, new_snapshot
from tests.mongod import Mongod, mongod  # noqa: F401 - a fixture

pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <socket\.socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("motor", marks=pytest.mark.external_service),
        pytest.param("pymongo", marks=pytest.mark.external_service),
    ]
)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "sqlite":
        made: Store = SqliteStore(tmp_path / "gateway.db")
    else:
        server: Mongod = request.getfixturevalue("mongod")
        made = MongoStore(server.uri(f"test_{uuid.uuid4().hex}"), driver=request.param)
    async with made.opened():
        yield made


def new_key(**fields: Any) -> ApiKey:
    number = uuid.uuid4().hex[:16]
    plain = {"id": f"key_{number}", "name": "alice", "role": Role.USER, "created_at": T0, "created_by": "root"}
    return ApiKey.model_validate(plain | {"secret_hash": digest(number)} | fields)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def test_a_key_is_found_as_it_was_kept(store: Store) -> None:
    plain = new_key()
    full = new_key(
        role=Role.AGENT, agent_id="bot:1", former_hash=digest("f"), former_until=T0, expires_at=T0, rotated_at=T0,
        revoked_at=T0, last_used_at=T0,
    )  # fmt: skip
    for key in (plain, full, plain.model_copy(update={"name": "somebody else under this id"})):
        await store.create_key(key)

    assert await store.get_key(plain.id) == plain
    assert await store.get_key(full.id) == full
    with pytest.raises(KeyNotFound):
        await store.get_key(plain.id.upper())


async def test_there_is_a_key_until_the_last_one_is_revoked(store: Store) -> None:
    assert not await store.any_key()
    first, second = new_key(), new_key(expires_at=T0 - timedelta(days=1))
    await store.create_key(first)
    await store.create_key(second)

    await store.revoke_key(first.id, T0)
    assert await store.any_key()  # an expired one is still asked for

    await store.revoke_key(second.id, T0)
    assert not await store.any_key()


async def test_keys_are_listed_newest_first_and_by_pages(store: Store) -> None:
    keys = [new_key(created_at=T0 + timedelta(seconds=number // 2)) for number in range(7)]
    for key in keys:
        await store.create_key(key)
    await store.revoke_key(keys[3].id, T0)
    expected = sorted(keys, key=lambda key: (key.created_at, key.id), reverse=True)

    unrevoked = await store.list_keys(ALL, include_revoked=False)
    assert [key.id for key in unrevoked.items] == [key.id for key in expected if key is not keys[3]]
    assert unrevoked.total_count == 6

    found: list[str] = []
    page = await store.list_keys(PageRequest(3), include_revoked=True)
    while True:
        assert page.total_count == 7
        found += [key.id for key in page.items]
        if page.next_token is None:
            break
        page = await store.list_keys(PageRequest(3, page.next_token), include_revoked=True)
    assert found == [key.id for key in expected]
    first = await store.list_keys(PageRequest(3), include_revoked=True)
    with pytest.raises(BadPageToken):
        await store.list_keys(PageRequest(3, first.next_token), include_revoked=False)


async def test_of_many_who_rotate_a_key_at_once_one_wins_and_repeats_are_harmless(store: Store) -> None:
    key = new_key()
    await store.create_key(key)
    news = [digest(f"new {number}") for number in range(8)]

    results = await asyncio.gather(
        *(store.rotate_key(key.id, key.secret_hash, new, T0, T0) for new in news), return_exceptions=True
    )

    [won] = [result for result in results if isinstance(result, ApiKey)]
    assert sum(isinstance(result, KeyChanged) for result in results) == 7
    assert won.former_hash == key.secret_hash
    assert await store.get_key(key.id) == won
    assert await store.rotate_key(key.id, key.secret_hash, won.secret_hash, T0, T0) == won
    with pytest.raises(KeyNotFound):
        await store.rotate_key("key_0", key.secret_hash, "x", T0, T0)


async def test_a_key_is_revoked_for_good_and_the_first_time_stays(store: Store) -> None:
    key = new_key()
    await store.create_key(key)

    assert (await store.revoke_key(key.id, T0)).revoked_at == T0
    assert (await store.revoke_key(key.id, T0 + timedelta(days=1))).revoked_at == T0

    with pytest.raises(KeyNotFound):
        await store.rotate_key(key.id, key.secret_hash, "x", T0, T0)
    with pytest.raises(KeyNotFound):
        await store.revoke_key("key_0", T0)


async def test_the_last_use_of_a_key_only_moves_on(store: Store) -> None:
    key = new_key()
    await store.create_key(key)

    for seconds in (5, 9, 2):
        await store.touch_key(key.id, T0 + timedelta(seconds=seconds))
    await store.touch_key("key_0", T0)

    assert (await store.get_key(key.id)).last_used_at == T0 + timedelta(seconds=9)


async def kept(store: Store, session_id: str = "demo", **fields: Any) -> Session:
    session = new_session(session_id, **fields)
    await store.create_session(session)
    return session


async def seen(store: Store, reader: str | None, selector: str = "", **parts: Any) -> list[str]:
    filter_ = SessionFilter(labels=parse_selector(selector), seen_by=reader, **parts)
    page = await store.list_sessions(filter_, ALL)
    assert page.total_count == len(page.items)
    return sorted(session.id for session in page.items)


async def test_sessions_are_listed_for_their_owner_those_they_are_granted_to_and_their_agents(store: Store) -> None:
    own = await kept(store, "own", created_by="alice", labels={"team": "a"})
    await kept(store, "granted", created_by="bob", grants={"alice": "read", "c.d@e": "write"}, labels={"team": "b"})
    await kept(store, "assigned", created_by="bob", agents=[SessionAgent(id="alice"), SessionAgent(id="bot")])
    await kept(store, "made", created_by="agent:bot", agents=[SessionAgent(id="bot")])

    assert await seen(store, "alice") == ["granted", "own"]
    assert await seen(store, "c.d@e") == ["granted"]
    assert await seen(store, "agent:alice") == ["assigned"]
    assert await seen(store, "agent:bot") == ["assigned", "made"]
    assert await seen(store, "Alice") == await seen(store, "al%") == await seen(store, "") == []
    assert await seen(store, None) == ["assigned", "granted", "made", "own"]
    assert await seen(store, "alice", "team") == ["granted", "own"]
    assert await seen(store, "alice", "team=a") == ["own"]
    assert await seen(store, "alice", "team!=a") == ["granted"]
    assert await seen(store, "alice", "team=a", created_by="bob") == []
    assert await seen(store, "alice", created_by="bob") == ["granted"]

    await store.delete_session(own.uid, T0)
    assert await seen(store, "alice") == ["granted"]
    assert await seen(store, "alice", include_deleted=True) == ["granted", "own"]
    await store.purge_session(own.uid)
    assert await seen(store, "alice", include_deleted=True) == ["granted"]


async def test_a_change_of_grants_changes_who_sees_a_session(store: Store) -> None:
    session = await kept(store, "x", created_by="alice", agents=[SessionAgent(id="bot")])

    changed = await store.update_session(session.uid, SessionChanges(replace={"grants": {"bob": "run"}}), T0)

    assert changed.grants == {"bob": "run"}
    assert (await store.get_session("x")).grants == {"bob": "run"}
    assert [await seen(store, reader) for reader in ("alice", "bob", "agent:bot")] == [["x"]] * 3
    await store.update_session(session.uid, SessionChanges(replace={"name": "n", "grants": {}}, add={"changes": 1}), T0)
    assert [await seen(store, reader) for reader in ("alice", "bob", "agent:bot")] == [["x"], [], ["x"]]


async def test_pages_of_what_one_sees_are_whole_and_their_tokens_nobody_elses(store: Store) -> None:
    for number in range(12):
        owner = "alice" if number % 3 else "bob"
        await kept(store, f"s{number:02}", created_by=owner, created_at=T0 + timedelta(seconds=number // 4))
    mine = SessionFilter(seen_by="alice")

    found, page = [], await store.list_sessions(mine, PageRequest(3))
    while True:
        assert page.total_count == 8
        found += [session.id for session in page.items]
        if page.next_token is None:
            break
        page = await store.list_sessions(mine, PageRequest(3, page.next_token))

    assert sorted(found) == [f"s{number:02}" for number in range(12) if number % 3]
    token = (await store.list_sessions(mine, PageRequest(3))).next_token
    for other in (SessionFilter(seen_by="bob"), SessionFilter()):
        with pytest.raises(BadPageToken):
            await store.list_sessions(other, PageRequest(3, token))


async def test_an_owner_brings_back_their_own_and_learns_nothing_of_others(store: Store) -> None:
    older = await kept(store, "x", created_by="alice")
    await store.delete_session(older.uid, T0)
    later = await kept(store, "x", created_by="bob")
    await store.delete_session(later.uid, T0 + timedelta(seconds=1))

    with pytest.raises(SessionNotFound):
        await store.undelete_session("x", T0, "eve")
    assert (await store.undelete_session("x", T0, "alice")).uid == older.uid
    for owner in ("alice", "bob", None):
        with pytest.raises(SessionExists):
            await store.undelete_session("x", T0, owner)
    with pytest.raises(SessionNotFound):  # it is taken, which eve is not to know
        await store.undelete_session("x", T0, "eve")

    await store.purge_session(older.uid)
    await store.purge_session(later.uid)
    with pytest.raises(SessionPurged):
        await store.undelete_session("x", T0, "bob")
    with pytest.raises(SessionNotFound):
        await store.undelete_session("x", T0, "eve")


async def test_snapshots_that_were_brought_in_are_listed_for_who_brought_them(store: Store) -> None:
    by_alice, by_bob = (loose_snapshot(name) for name in ("alice", "bob"))
    for snapshot in (by_alice, by_bob):
        await store.put_snapshot(snapshot)

    async def listed(created_by: str | None) -> set[str]:
        page = await store.list_snapshots(None, ALL, created_by)
        assert page.total_count == len(page.items)
        return {one.id for one in page.items}

    assert await listed("alice") == {by_alice.id}
    assert await listed("eve") == set()
    assert await listed(None) == {by_alice.id, by_bob.id}


def loose_snapshot(created_by: str) -> Snapshot:
    return new_snapshot(uuid.uuid4().hex, session_id=None, kind="import", created_by=created_by)


async def test_sqlite_lists_what_one_sees_from_an_index(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "gateway.db")
    async with store.opened():
        await kept(store, created_by="alice", labels={"team": "a"})
        await store.put_snapshot(loose_snapshot("alice"))
        with closing(sqlite3.connect(tmp_path / "gateway.db")) as connection:
            for selector in ("", "team=a", "!team"):
                query = SessionQuery.of(SessionFilter(labels=parse_selector(selector), seen_by="alice"))
                for sql, values in (query.page(None, 10, 0), query.counting()):
                    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
                    assert plan[0].startswith("SEARCH lead USING PRIMARY KEY (reader=? AND live=?"), plan
                    assert not any("TEMP B-TREE" in step or "SCAN" in step for step in plan), plan
            statements: list[str] = []
            connection.set_trace_callback(statements.append)
            list_snapshots(connection, None, PageRequest(limit=1), "alice")
            connection.set_trace_callback(None)
            plans = [[row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")] for sql in statements]
    assert ["INDEX snapshots_brought_in" in plan[0] for plan in plans] == [True, True], plans


@pytest.mark.external_service
async def test_mongodb_lists_what_one_sees_from_an_index_and_completes_what_an_older_gateway_wrote(
    mongod: Mongod,  # noqa: F811
) -> None:
    database = f"test_{uuid.uuid4().hex}"
    store = MongoStore(mongod.uri(database), driver="pymongo")
    async with store.opened():
        await kept(store, "x", created_by="alice", agents=[SessionAgent(id="bot")])
        await store.put_snapshot(loose_snapshot("alice"))
    with mongod.client() as client:
        client[database].sessions.update_many({}, {"$unset": {"seen_by": "", "grants": ""}})
        client[database].snapshots.update_many({}, {"$unset": {"created_by": ""}})

    async with store.opened():
        assert [await seen(store, reader) for reader in ("alice", "agent:bot", "bob")] == [["x"], ["x"], []]
        assert (await store.list_snapshots(None, ALL, "alice")).total_count == 1
    with mongod.client() as client:
        query = session_query(SessionFilter(seen_by="alice"))
        found = client[database].sessions.find(query).sort([("created_at", -1), ("_id", -1)])
        plan = found.explain()["queryPlanner"]["winningPlan"]
    assert "SORT" not in stages(plan)
    assert "IXSCAN" in stages(plan)


def stages(plan: dict[str, Any]) -> list[str]:
    return list(_stages(plan))


def _stages(plan: dict[str, Any]) -> Iterator[str]:
    if "stage" in plan:
        yield plan["stage"]
    for inner in (plan.get("inputStage"), plan.get("queryPlan")):
        if inner:
            yield from _stages(inner)
