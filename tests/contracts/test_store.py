"""What every store promises: one file of tests for SQLite, and for MongoDB through both of its drivers."""

import asyncio
import gc
import json
import random
import resource
import sqlite3
import stat
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest

from gateway.errors import (
    BadPageToken,
    Conflict,
    ExecutionNotFound,
    IllegalMove,
    SessionExists,
    SessionHeld,
    SessionNotFound,
    SessionPurged,
    SnapshotNotFound,
    StoreAway,
)
from gateway.models.audit import AuditLine
from gateway.models.executions import Execution, RunError, Status
from gateway.models.idempotency import KeptAnswer
from gateway.models.labels import parse_selector
from gateway.models.pages import Page, PageRequest, SessionFilter
from gateway.models.sessions import Move, Resources, Session, SessionAgent, SessionView, Setup
from gateway.models.snapshots import SkippedFile, Snapshot, SnapshotView
from gateway.models.unsaved import MOST_NAMED, UnsavedVariable, Woken
from gateway.states import State
from gateway.stores import sqlite_rows, sqlite_schema
from gateway.stores.base import BroughtBack, SessionChanges, StateChanged, Store
from gateway.stores.mongo import MongoStore
from gateway.stores.mongo_schema import session_query
from gateway.stores.sqlite import SqliteStore
from gateway.stores.sqlite_queries import SessionQuery
from gateway.stores.sqlite_schema import NewerFile
from gateway.stores.sqlite_snapshots import list_snapshots
from tests.mongod import Mongod, mongod, own_mongod  # noqa: F401 - fixtures

# The drivers leave the sockets to a server that was killed to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <socket\.socket:pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module", autouse=True)
def no_socket_left_for_later_tests() -> Iterator[None]:
    yield
    gc.collect()


Driver = Literal["motor", "pymongo"]

T0 = datetime(2026, 1, 20, 10, 0, 0, 123456, UTC)
LONG_AGO = T0 - timedelta(days=30)
ALL = PageRequest(limit=1000)
ODD: dict[str, Any] = {
    "a.b": 1,
    "$x": {"": None, "$set": [1, {"..": 2.5}]},
    "": "empty",
    "z": 2**62,
    "y": -(2**63),
    "unicode \u2028 ключ": "\U0001f600",
    "order": {"b": 1, "a": 2},
}
SAVED_FIELDS = (
    "saved_snapshot_id", "state_only", "files_from", "unloaded_snapshot_id", "saved_at", "save_problem", "changes",
    "saved_changes", "woken",
)  # fmt: skip
DRIVERS = [pytest.param(driver, marks=pytest.mark.external_service) for driver in ("motor", "pymongo")]


@pytest.fixture(params=["sqlite", *DRIVERS])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    if request.param == "sqlite":
        sqlite = SqliteStore(tmp_path / "gateway.db")
        async with sqlite.opened():
            yield sqlite
        return
    server: Mongod = request.getfixturevalue("mongod")
    with server.database() as uri:
        mongo = MongoStore(uri, driver=request.param)
        async with mongo.opened():
            yield mongo


@pytest.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "gateway.db", busy_timeout_s=0.1)
    async with store.opened():
        yield store


def new_session(session_id: str = "demo", at: datetime = T0, **fields: Any) -> Session:
    fields = {"name": session_id, "created_at": at, "updated_at": at, **fields}
    return Session(uid=uuid.uuid4().hex, id=session_id, **fields)


async def created(store: Store, session_id: str = "demo", at: datetime = T0, **fields: Any) -> Session:
    session = new_session(session_id, at, **fields)
    await store.create_session(session)
    return session


def new_execution(session: Session, number: int = 1, **fields: Any) -> Execution:
    fields = {"code": f"print({number})", "queued_at": later(number), **fields}
    return Execution(id=f"{session.uid}-e{number:03}", session_uid=session.uid, session_id=session.id, **fields)


def later(seconds: float = 1) -> datetime:
    return T0 + timedelta(seconds=seconds)


def outcomes(results: list[Any], kind: type[BaseException]) -> tuple[int, int]:
    """How many calls succeeded, and how many failed as expected."""
    return sum(not isinstance(one, BaseException) for one in results), sum(isinstance(one, kind) for one in results)


async def ids(store: Store, selector: str = "", **parts: Any) -> list[str]:
    filter_ = SessionFilter(labels=parse_selector(selector), **parts)
    page = await store.list_sessions(filter_, ALL)
    assert page.total_count == len(page.items)
    return [session.id for session in page.items]


# Sessions


async def test_a_session_comes_back_as_it_was_kept(store: Store) -> None:
    session = new_session(
        "prod:user:123:analysis",
        state_reason="because",
        labels={"example.com/team.name": "a=b,c", "k": "v"},
        data=ODD,
        metadata={"$where": {"a.b": [None, True, 1.5, "x"]}},
        agents=[SessionAgent(id="a1", model="m")],
        resources=Resources(cpu=1.5, memory="4Gi", network="none"),
        env={"PATH": "/bin", "EMPTY": ""},
        setup=Setup(pip=["numpy"], commands=["true"]),
        setup_status="pending",
        expires_at=later(3600),
        created_by="ключ",
        code="print('\U0001f600')",
        saved_snapshot_id="snap_1",
        state_only=["a.b", "$x", "ключ"],
        files_from="snap_2",
        unloaded_snapshot_id="snap_3_ccc",
        saved_at=later(1.000001),
        save_problem="no room",
        changes=7,
        saved_changes=6,
        woken=Woken(resumed=True, not_carried=[UnsavedVariable(name="$a.b", type="ключ", reason="$")]),
    )

    await store.create_session(session)

    kept = await store.get_session(session.id)
    assert kept == session
    assert list(kept.data) == list(ODD)
    assert list(kept.data["order"]) == ["b", "a"]
    assert kept.created_at.microsecond == 123456


async def test_an_unknown_session_is_not_found(store: Store) -> None:
    await created(store, "demo")

    with pytest.raises(SessionNotFound):
        await store.get_session("Demo")


async def test_of_two_creates_of_one_id_at_the_same_instant_one_is_refused(store: Store) -> None:
    sessions = [new_session("demo") for _ in range(2)]

    results = await asyncio.gather(*map(store.create_session, sessions), return_exceptions=True)

    assert outcomes(results, SessionExists) == (1, 1)
    winner = sessions[0] if results[0] is None else sessions[1]
    assert (await store.get_session("demo")).uid == winner.uid


async def test_a_create_that_is_asked_for_again_is_no_conflict_with_itself(store: Store) -> None:
    session = await created(store, "demo")

    await store.create_session(session)

    assert await ids(store) == ["demo"]
    assert (await store.list_moves(session.uid, ALL)).total_count == 1


async def test_an_update_replaces_merges_and_adds_at_once(store: Store) -> None:
    session = await created(store, data={"keep": 1, "drop": 2, "a.b": 3}, labels={"old": "x"}, run_count=4)
    changes = SessionChanges(
        replace={"name": "new", "labels": {"new/key": "y"}, "resources": Resources(pids=64), "last_run_at": later()},
        merge={"data": {"drop": None, "a.b": {"$x": 1}}},
        add={"run_count": 2},
    )

    updated = await store.update_session(session.uid, changes, later(2))

    assert updated == await store.get_session("demo")
    assert updated.data == {"keep": 1, "a.b": {"$x": 1}}
    assert (updated.name, updated.run_count, updated.labels) == ("new", 6, {"new/key": "y"})
    assert (updated.last_run_at, updated.updated_at, updated.resources.pids) == (later(), later(2), 64)
    assert updated.version > session.version
    assert await ids(store, "new/key=y") == ["demo"]
    assert await ids(store, "old") == []


async def test_updates_at_the_same_instant_all_count(store: Store) -> None:
    session = await created(store)

    await asyncio.gather(
        *(
            store.update_session(session.uid, SessionChanges(merge={"data": {f"k.{n}": n}}, add={"run_count": 1}), T0)
            for n in range(20)
        ),
        *(store.update_session(session.uid, SessionChanges(add={"run_count": 1}), T0) for _ in range(20)),
    )

    kept = await store.get_session("demo")
    assert kept.data == {f"k.{n}": n for n in range(20)}
    assert kept.run_count == 40


async def test_what_is_saved_of_a_session_is_set_and_cleared_again(store: Store) -> None:
    session = await created(store)
    saved = {"saved_snapshot_id": "snap_1", "saved_at": later(1.5), "state_only": ["x"], "files_from": "snap_0"}
    lost = {
        "saved_snapshot_id": None,
        "state_only": None,
        "files_from": None,
        "save_problem": "full",
        "unloaded_snapshot_id": "snap_3_ccc",
    }

    after_save = await store.update_session(session.uid, SessionChanges(replace=saved), later(2))
    after_loss = await store.update_session(session.uid, SessionChanges(replace=lost), later(3))

    assert {name: getattr(after_save, name) for name in saved} == saved
    assert after_save.unloaded_snapshot_id is None
    assert {name: getattr(after_loss, name) for name in lost} == lost
    assert after_loss.saved_at == later(1.5)
    assert after_loss == await store.get_session("demo")
    view = SessionView.of(after_loss, "http://h").model_dump(mode="json")
    assert (view["saved_snapshot_id"], view["save_problem"]) == (None, "full")
    assert view["saved_at"] == "2026-01-20T10:00:01.623456Z"
    assert not {"state_only", "files_from", "unloaded_snapshot_id"} & set(view)


async def test_how_a_session_woke_is_kept_until_it_is_cleared_and_not_shown(store: Store) -> None:
    session = await created(store)
    woken = Woken(resumed=True, not_carried=[UnsavedVariable(name="a.$b", type="socket", reason="it is open")])
    idle = Move(before=State.INIT, after=State.READY, at=later(1))
    busy = Move(before=State.READY, after=State.BUSY, at=later(2))

    await store.move_session(session.uid, idle, changes=SessionChanges(replace={"woken": woken, "saved_changes": 3}))
    kept = await store.get_session("demo")
    told = SessionChanges(replace={"woken": None}, add={"changes": 1})
    await store.move_session(session.uid, busy, changes=told)
    cleared = await store.get_session("demo")

    assert (kept.woken, kept.changes, kept.saved_changes) == (woken, 0, 3)
    assert (cleared.woken, cleared.changes, cleared.saved_changes) == (None, 1, 3)
    assert not {"woken", "changes", "saved_changes"} & set(SessionView.of(kept, "http://h").model_dump())


async def test_what_is_not_live_can_be_neither_updated_nor_moved_nor_claimed_nor_deleted(store: Store) -> None:
    session = await created(store)
    await store.delete_session(session.uid, later())

    for uid in (session.uid, "nobody"):
        with pytest.raises(SessionNotFound):
            await store.update_session(uid, SessionChanges(replace={"name": "x"}), T0)
        with pytest.raises(SessionNotFound):
            await store.update_session(uid, SessionChanges(merge={"data": {"x": 1}}), T0)
        with pytest.raises(SessionNotFound):
            await store.move_session(uid, Move(before=State.INIT, after=State.READY, at=T0))
        with pytest.raises(SessionNotFound):
            await store.claim_session(uid, "g1", LONG_AGO)
        with pytest.raises(SessionNotFound):
            await store.delete_session(uid, later())


# Moves


async def test_a_move_changes_state_reason_and_fields_together(store: Store) -> None:
    session = await created(store)
    changes = SessionChanges(replace={"last_run_at": later(1)}, merge={"data": {"x": 1}}, add={"run_count": 1})

    moved = await store.move_session(
        session.uid, Move(before=State.INIT, after=State.READY, at=later(1), reason="started"), changes=changes
    )

    assert moved == await store.get_session("demo")
    assert (moved.state, moved.state_reason, moved.updated_at) == (State.READY, "started", later(1))
    assert (moved.last_run_at, moved.data, moved.run_count) == (later(1), {"x": 1}, 1)
    again = await store.move_session(session.uid, Move(before=State.READY, after=State.BUSY, at=later(2)))
    assert (again.state, again.state_reason) == (State.BUSY, None)


async def test_runs_that_come_with_a_move_are_kept_also_when_it_is_refused(store: Store) -> None:
    session = await created(store)
    first, second = new_execution(session, 1), new_execution(session, 2)

    await store.move_session(
        session.uid, Move(before=State.INIT, after=State.READY, at=later()), executions=[first, second]
    )
    ended = first.model_copy(update={"status": Status.OK})
    with pytest.raises(Conflict):
        await store.move_session(
            session.uid, Move(before=State.INIT, after=State.READY, at=later(2)), executions=[ended]
        )

    assert (await store.get_session("demo")).state is State.READY
    assert await store.get_execution(session.uid, first.id) == ended
    assert await store.get_execution(session.uid, second.id) == second


async def test_every_move_is_listed_newest_first(store: Store) -> None:
    session = await created(store)
    states = [State.INIT, *[State.READY, State.BUSY] * 20, State.ERROR]
    for number, (before, after) in enumerate(pairwise(states)):
        await store.move_session(session.uid, Move(before=before, after=after, at=later(number), reason=f"r{number}"))

    moves = (await store.list_moves(session.uid, ALL)).items

    assert [move.after for move in moves] == states[::-1]
    assert [move.before for move in moves] == [*states[-2::-1], None]
    assert [move.reason for move in moves] == [*(f"r{n}" for n in reversed(range(41))), None]
    assert [move.at for move in moves[:2]] == [later(40), later(39)]
    assert await everything(lambda page: store.list_moves(session.uid, page), 7) == moves


async def test_of_fifty_moves_at_the_same_instant_one_wins(store: Store) -> None:
    session = await created(store, state=State.READY)

    results = await asyncio.gather(
        *(store.move_session(session.uid, Move(before=State.READY, after=State.BUSY, at=later())) for _ in range(50)),
        return_exceptions=True,
    )

    assert outcomes(results, StateChanged) == (1, 49)
    assert (await store.list_moves(session.uid, ALL)).total_count == 2


async def test_of_fifty_moves_that_also_merge_one_wins(store: Store) -> None:
    session = await created(store, state=State.READY)
    changes = [SessionChanges(merge={"data": {"winner": n}}) for n in range(50)]

    results = await asyncio.gather(
        *(
            store.move_session(session.uid, Move(before=State.READY, after=State.BUSY, at=later()), changes=one)
            for one in changes
        ),
        return_exceptions=True,
    )

    assert outcomes(results, StateChanged) == (1, 49)
    winner = next(n for n, one in enumerate(results) if isinstance(one, Session))
    assert (await store.get_session("demo")).data == {"winner": winner}


async def test_an_illegal_move_changes_nothing(store: Store) -> None:
    session = await created(store)

    with pytest.raises(IllegalMove):
        await store.move_session(session.uid, Move(before=State.INIT, after=State.BUSY, at=later()))

    assert await store.get_session("demo") == session


async def test_a_move_from_a_state_that_is_over_is_a_conflict(store: Store) -> None:
    session = await created(store, state=State.READY)

    with pytest.raises(Conflict) as caught:
        await store.move_session(session.uid, Move(before=State.BUSY, after=State.READY, at=later()))

    assert caught.value.code == "state_changed"


async def test_a_move_in_the_name_of_a_holder_needs_that_holder(store: Store) -> None:
    session = await created(store, state=State.READY)
    await store.claim_session(session.uid, "g1", LONG_AGO)

    with pytest.raises(StateChanged):
        await store.move_session(session.uid, Move(before=State.READY, after=State.BUSY, at=later()), holder="g2")
    moved = await store.move_session(session.uid, Move(before=State.READY, after=State.BUSY, at=later()), holder="g1")

    assert (moved.state, moved.holder) == (State.BUSY, "g1")


# Delete, undelete, purge


async def test_a_deleted_session_is_gone_and_its_id_is_free(store: Store) -> None:
    session = await created(store, labels={"k": "v"})
    await store.claim_session(session.uid, "g1", LONG_AGO)

    deleted = await store.delete_session(session.uid, later())

    assert (deleted.deleted_at, deleted.holder) == (later(), None)
    with pytest.raises(SessionNotFound):
        await store.get_session("demo")
    assert await ids(store) == await ids(store, "k=v") == []
    again = await created(store, at=later(2))
    assert (await store.get_session("demo")).uid == again.uid
    assert await ids(store, include_deleted=True) == ["demo", "demo"]
    assert await ids(store, "k=v", include_deleted=True) == ["demo"]


async def test_undelete_brings_back_the_last_one_deleted_as_it_was(store: Store) -> None:
    for number in range(3):
        session = await created(store, at=later(number), state=State.IDLE, labels={"n": str(number)})
        await store.delete_session(session.uid, later(10 + number))

    back = await store.undelete_session("demo", later(20))

    assert (back.uid, back.state, back.deleted_at, back.updated_at) == (session.uid, State.IDLE, None, later(20))
    assert await store.get_session("demo") == back
    assert await ids(store, "n=2") == ["demo"]
    assert await ids(store, "n=1") == []


async def test_undelete_is_refused_while_the_id_is_taken(store: Store) -> None:
    session = await created(store)
    await store.delete_session(session.uid, later())
    await created(store)

    with pytest.raises(SessionExists):
        await store.undelete_session("demo", later(2))


async def test_of_two_undeletes_at_the_same_instant_one_is_refused(store: Store) -> None:
    session = await created(store)
    await store.delete_session(session.uid, later())

    results = await asyncio.gather(
        *(store.undelete_session("demo", later(2)) for _ in range(2)), return_exceptions=True
    )

    assert outcomes(results, SessionExists) == (1, 1)


async def test_undelete_of_what_never_was_is_not_found(store: Store) -> None:
    with pytest.raises(SessionNotFound):
        await store.undelete_session("demo", T0)


@pytest.mark.parametrize("deleted_before", [True, False])
async def test_a_purged_session_is_gone_for_good_and_its_id_free(store: Store, deleted_before: bool) -> None:
    session = await created(store, labels={"k": "v"})
    execution = new_execution(session, status=Status.RUNNING)
    await store.put_execution(execution)
    snapshot, other = new_snapshot(session.uid), new_snapshot("other", 2)
    for one in (snapshot, other):
        await store.put_snapshot(one)
    if deleted_before:
        await store.delete_session(session.uid, later())

    for _ in range(2):  # asking twice is harmless
        await store.purge_session(session.uid)

    with pytest.raises(SessionPurged):
        await store.undelete_session("demo", later(2))
    with pytest.raises(ExecutionNotFound):
        await store.get_execution(session.uid, execution.id)
    assert await ids(store, include_deleted=True) == await ids(store, "k", include_deleted=True) == []
    assert await store.list_unfinished(session.uid) == []
    assert (await store.list_moves(session.uid, ALL)).items == []
    with pytest.raises(SnapshotNotFound):
        await store.get_snapshot(snapshot.id)
    assert (await store.list_snapshots(session.uid, ALL)).items == []
    assert await store.get_snapshot(other.id) == other
    await created(store)


async def test_a_session_that_was_undeleted_or_deleted_again_is_not_purged(store: Store) -> None:
    session = await created(store)
    first = (await store.delete_session(session.uid, later())).deleted_at
    await store.undelete_session("demo", later(2))

    with pytest.raises(BroughtBack):
        await store.purge_session(session.uid, first)
    again = (await store.delete_session(session.uid, later(3))).deleted_at
    with pytest.raises(BroughtBack):
        await store.purge_session(session.uid, first)
    for _ in range(2):
        await store.purge_session(session.uid, again)

    with pytest.raises(SessionPurged):
        await store.undelete_session("demo", later(4))


# Lists


LABELS = [
    {},
    {"project": "demo"},
    {"project": "demo", "env": "test"},
    {"project": "demo", "env": "prod", "example.com/team.name": "a/b.c=d"},
    {"env": "prod", "legacy": "yes"},
    {"project": "other", "env": "test"},
]


@pytest.mark.parametrize(
    "selector",
    [
        "", "project=demo", "project!=demo", "env in (test,prod)", "env notin (test,prod)", "env", "!env",
        "example.com/team.name=a/b.c=d", "example.com/team.name", "!example.com/team.name", "project=nobody",
        "project=demo,env=test", "project,env!=test", "project=demo,env in (test,prod),!legacy", "!project,!env",
        "env,project=demo,example.com/team.name in (a/b.c=d,x)", "project=demo,project=other", "env,env",
        "project in (demo,demo)", "project=demo,project!=demo",
    ],
)  # fmt: skip
async def test_a_selector_finds_what_its_grammar_says(store: Store, selector: str) -> None:
    for number, labels in enumerate(LABELS):
        await created(store, f"s{number}", later(number), labels=labels)

    found = await ids(store, selector)

    requirements = parse_selector(selector)
    matching = [f"s{n}" for n, labels in enumerate(LABELS) if all(one.matches(labels) for one in requirements)]
    assert found == matching[::-1]


async def test_filters_combine(store: Store) -> None:
    wanted: dict[str, Any] = {"state": State.READY, "language": "r", "created_by": "u", "parent_id": "p", "name": "n"}
    await created(store, "all", labels={"k": "v"}, **wanted)
    for part in wanted:
        other: Any = {**wanted, part: State.ERROR if part == "state" else "other"}
        await created(store, f"not-{part}", labels={"k": "v"}, **other)
    await created(store, "no-label", later(), **wanted)

    assert await ids(store, **wanted) == ["no-label", "all"]
    assert await ids(store, "k=v", **wanted) == ["all"]
    assert await ids(store, "!k", **wanted) == ["no-label"]
    for part, value in wanted.items():
        found = await ids(store, **{part: value})
        assert f"not-{part}" not in found
        assert len(found) == 6


async def test_states_are_filtered_as_they_are_now(store: Store) -> None:
    session = await created(store)

    await store.move_session(session.uid, Move(before=State.INIT, after=State.READY, at=later()))

    assert await ids(store, state=State.READY) == ["demo"]
    assert await ids(store, state=State.INIT) == []


async def everything(ask: Any, limit: int) -> list[Any]:
    """All items of a list, by its tokens."""
    items: list[Any] = []
    token: str | None = None
    while True:
        page: Page[Any] = await ask(PageRequest(limit=limit, token=token))
        assert len(page.items) <= limit
        items += page.items
        if not (token := page.next_token):
            return items


@pytest.mark.parametrize("selector", ["", "k=v", "k", "k in (v,w)", "!other"])
async def test_pages_by_token_stay_in_step_while_sessions_come(store: Store, selector: str) -> None:
    for number in range(10):  # pairs share a creation time: the uid decides
        await created(store, f"s{number}", later(number // 2), labels={"k": "v"})
    filter_ = SessionFilter(labels=parse_selector(selector))
    before = [session.uid for session in (await store.list_sessions(filter_, ALL)).items]

    seen: list[str] = []
    token: str | None = None
    for number in range(4):
        page = await store.list_sessions(filter_, PageRequest(limit=3, token=token))
        seen += [session.uid for session in page.items]
        token = page.next_token
        assert page.total_count == 10 + number
        await created(store, f"new{number}", later(100 + number), labels={"k": "v"})

    assert seen == before
    assert token is None


async def test_pages_by_number_cut_the_same_list(store: Store) -> None:
    for number in range(5):
        await created(store, f"s{number}", later(number), labels={"k": "v"})

    for selector in ("", "k=v"):
        filter_ = SessionFilter(labels=parse_selector(selector))
        pages = [await store.list_sessions(filter_, PageRequest(limit=2, page=page)) for page in (1, 2, 3, 4)]
        assert [[one.id for one in page.items] for page in pages] == [["s4", "s3"], ["s2", "s1"], ["s0"], []]
        assert {page.total_count for page in pages} == {5}
        assert [page.next_token is None for page in pages] == [False, False, True, True]


async def test_a_token_of_another_list_is_refused(store: Store) -> None:
    sessions = [await created(store, name, state=State.READY) for name in ("a", "b")]
    for session in sessions:
        await store.move_session(session.uid, Move(before=State.READY, after=State.BUSY, at=later()))
        for number in range(2):
            await store.put_execution(new_execution(session, number))
            await store.put_snapshot(new_snapshot(session.uid, number))
    one = PageRequest(limit=1)
    first, second = (session.uid for session in sessions)
    tokens = [
        (await store.list_sessions(SessionFilter(), one)).next_token,
        (await store.list_moves(first, one)).next_token,
        (await store.list_executions(first, one)).next_token,
        (await store.list_snapshots(first, one)).next_token,
    ]

    asks: list[tuple[Any, Any]] = [
        (tokens[0], lambda page: store.list_sessions(SessionFilter(name="x"), page)),
        (tokens[1], lambda page: store.list_sessions(SessionFilter(), page)),
        (tokens[1], lambda page: store.list_moves(second, page)),
        (tokens[2], lambda page: store.list_moves(first, page)),
        (tokens[2], lambda page: store.list_executions(second, page)),
        (tokens[3], lambda page: store.list_executions(first, page)),
        (tokens[3], lambda page: store.list_snapshots(second, page)),
        (tokens[3], lambda page: store.list_snapshots(None, page)),
    ]
    asks += [("nonsense", ask) for _, ask in asks]
    for token, ask in asks:
        with pytest.raises(BadPageToken):
            await ask(replace(one, token=token))


# Who holds what


async def test_a_session_is_claimed_by_one_gateway_at_a_time(store: Store) -> None:
    session = await created(store)
    for gateway_id in ("g1", "g2"):
        await store.beat(gateway_id, later(10))

    results = await asyncio.gather(
        *(store.claim_session(session.uid, gateway_id, later(5)) for gateway_id in ("g1", "g2")),
        return_exceptions=True,
    )

    assert outcomes(results, SessionHeld) == (1, 1)
    holder = (await store.get_session("demo")).holder
    assert holder is not None
    assert (await store.claim_session(session.uid, holder, later(5))).holder == holder


async def test_a_holder_that_beats_no_more_loses_its_session(store: Store) -> None:
    session = await created(store)
    await store.beat("g1", later(10))
    await store.claim_session(session.uid, "g1", later(5))

    with pytest.raises(SessionHeld):
        await store.claim_session(session.uid, "g2", later(10))
    claimed = await store.claim_session(session.uid, "g2", later(10.000001))

    assert claimed.holder == "g2"
    assert claimed == await store.get_session("demo")


async def test_a_late_beat_does_not_turn_the_clock_back(store: Store) -> None:
    session = await created(store)
    await store.beat("g1", later(10))
    await store.beat("g1", later(1))
    await store.claim_session(session.uid, "g1", later(5))

    with pytest.raises(SessionHeld):
        await store.claim_session(session.uid, "g2", later(5))


async def test_an_update_in_the_name_of_a_holder_needs_that_holder(store: Store) -> None:
    session = await created(store)
    await store.claim_session(session.uid, "g1", LONG_AGO)
    for changes in (SessionChanges(replace={"name": "no"}), SessionChanges(merge={"data": {"no": 1}})):
        with pytest.raises(Conflict) as caught:
            await store.update_session(session.uid, changes, later(), holder="g2")
        assert caught.value.code == "holder_changed"

    updated = await store.update_session(session.uid, SessionChanges(replace={"name": "yes"}), later(), holder="g1")

    assert (updated.name, updated.data) == ("yes", {})
    await store.delete_session(session.uid, later(2))
    with pytest.raises(SessionNotFound):
        await store.update_session(session.uid, SessionChanges(replace={"name": "no"}), later(3), holder="g1")


async def test_a_gateway_is_alive_while_it_beats(store: Store) -> None:
    await store.beat("g1", later(10))

    assert await store.is_alive("g1", later(10))
    assert not await store.is_alive("g1", later(10.000001))
    assert not await store.is_alive("g2", LONG_AGO)


async def test_temporary_sessions_that_nobody_holds_are_found(store: Store) -> None:
    found = await created(store, "found", persistent=False)
    await created(store, "kept")
    held = await created(store, "held", persistent=False)
    await store.claim_session(held.uid, "g1", LONG_AGO)
    deleted = await created(store, "deleted", persistent=False)
    await store.delete_session(deleted.uid, later())

    assert await store.list_unheld_temporary() == [found]


async def test_only_the_holder_releases(store: Store) -> None:
    session = await created(store)
    await store.claim_session(session.uid, "g1", LONG_AGO)

    await store.release_session(session.uid, "g2")
    assert (await store.get_session("demo")).holder == "g1"

    await store.release_session(session.uid, "g1")
    assert (await store.get_session("demo")).holder is None
    await store.release_session("nobody", "g1")


async def test_abandoned_sessions_are_ones_own_and_those_of_silent_gateways(store: Store) -> None:
    for gateway_id, beat in (("me", 10), ("alive", 10), ("silent", 1)):
        await store.beat(gateway_id, later(beat))
    for holder in ("me", "alive", "silent", "unheard"):
        session = await created(store, holder)
        await store.claim_session(session.uid, holder, LONG_AGO)
    await created(store, "free")
    gone = await created(store, "deleted")
    await store.claim_session(gone.uid, "silent", LONG_AGO)
    await store.delete_session(gone.uid, later())

    abandoned = await store.list_abandoned("me", later(5))

    assert sorted(session.id for session in abandoned) == ["me", "silent", "unheard"]


# Executions


async def test_an_execution_comes_back_as_it_was_kept(store: Store) -> None:
    session = await created(store)
    execution = new_execution(
        session,
        code="print('ключ \U0001f600')",
        status=Status.ERROR,
        outputs=[
            {"output_type": "stream", "name": "stdout", "text": "ünïcode \u2028 \U0001f600 \ud800 lone\0nul"},
            {"output_type": "display_data", "data": {"a/b.c": {"$x": [None, 1.5]}, "": ""}, "metadata": {}},
        ],
        error=RunError(ename="E", evalue="v", traceback=["t"]),
        execution_count=3,
        resumed=True,
        not_carried=[UnsavedVariable(name="gen", type="generator", reason="a generator can't be kept", part=True)],
        started_at=later(1.000001),
        finished_at=later(2),
        duration_ms=1.25,
    )

    await store.put_execution(execution)

    assert await store.get_execution(session.uid, execution.id) == execution
    assert (await store.list_executions(session.uid, ALL)).items == [execution]
    for uid, execution_id in ((session.uid, "nothing"), ("nobody", execution.id)):
        with pytest.raises(ExecutionNotFound):
            await store.get_execution(uid, execution_id)


@pytest.mark.parametrize("kind", ["compressible", "incompressible"])
async def test_outputs_of_forty_megabytes_come_back_whole(store: Store, kind: str) -> None:
    session = await created(store)
    dice = random.Random(7)  # noqa: S311 - no secret
    texts = [dice.randbytes(20_000_000).hex() if kind == "incompressible" else "spam " * 8_000_000, "small again"]

    for text in texts:
        output = {"output_type": "stream", "name": "stdout", "text": text}
        execution = new_execution(session, outputs=[output], status=Status.OK)
        await store.put_execution(execution)
        await store.put_execution(execution)
        assert await store.get_execution(session.uid, execution.id) == execution

    assert (await store.list_executions(session.uid, ALL)).total_count == 1


async def test_executions_are_listed_newest_first_page_by_page(store: Store) -> None:
    session, other = await created(store, "a"), await created(store, "b")
    executions = [new_execution(session, number, queued_at=later(number // 2)) for number in range(9)]
    for execution in [*executions, new_execution(other)]:
        await store.put_execution(execution)

    page = await store.list_executions(session.uid, PageRequest(limit=4, page=2))

    assert page.items == executions[::-1][4:8]
    assert page.total_count == 9
    assert await everything(lambda page: store.list_executions(session.uid, page), 2) == executions[::-1]


async def test_a_page_by_number_ends_early_as_well(store: Store) -> None:
    session = await created(store)
    output = {"output_type": "stream", "name": "stdout", "text": "spam " * 8_000_000}
    executions = [new_execution(session, number, outputs=[output]) for number in range(4)]
    for execution in executions:
        await store.put_execution(execution)

    page = await store.list_executions(session.uid, PageRequest(limit=3, page=1))
    rest = await store.list_executions(session.uid, PageRequest(limit=3, token=page.next_token))

    assert [one.id for one in [*page.items, *rest.items]] == [one.id for one in executions[::-1]]
    assert len(page.items) == 2


async def test_a_page_of_large_outputs_ends_early_and_says_where_to_go_on(store: Store) -> None:
    session = await created(store)
    output = {"output_type": "stream", "name": "stdout", "text": "spam " * 8_000_000}
    executions = [new_execution(session, number, outputs=[output]) for number in range(3)]
    for execution in executions:
        await store.put_execution(execution)

    page = await store.list_executions(session.uid, ALL)

    assert len(page.items) == 2
    assert await everything(lambda page: store.list_executions(session.uid, page), 1000) == executions[::-1]


async def test_unfinished_executions_are_those_queued_or_running(store: Store) -> None:
    session = await created(store)
    for number, status in enumerate(Status):
        await store.put_execution(new_execution(session, number, status=status))

    unfinished = await store.list_unfinished(session.uid)

    assert [execution.status for execution in unfinished] == [Status.QUEUED, Status.RUNNING]


async def test_a_finished_execution_stays_finished_however_late_a_write_arrives(store: Store) -> None:
    session = await created(store)
    for status in (Status.QUEUED, Status.RUNNING, Status.OK, Status.RUNNING):
        await store.put_execution(new_execution(session, status=status))

    kept = await store.get_execution(session.uid, new_execution(session).id)

    assert kept.status == Status.OK
    assert await store.list_unfinished(session.uid) == []


# Snapshots


def new_snapshot(place: str, number: int = 1, **fields: Any) -> Snapshot:
    fields = {"kind": "manual", "created_at": later(number), "digest": f"d{number}", "session_id": "demo", **fields}
    return Snapshot(id=f"snap_{place}_{number:03}", place=place, **fields)


async def test_a_snapshot_comes_back_as_it_was_kept(store: Store) -> None:
    snapshot = new_snapshot(
        "u1",
        name="before the \U0001f600",
        kind="hibernate",
        created_by="ключ",
        size_bytes=2**40,
        stored_bytes=5,
        file_count=3,
        variable_count=2,
        unsaved=[UnsavedVariable(name="gen\ud800", type="a.b.$c", reason="nul \0", part=True)],
        skipped=[SkippedFile(path="odd\udcff.sock", reason="is a socket")],
        has_state=True,
        state_note="saved in-process",
        parent_snapshot_id="snap_0",
    )

    await store.put_snapshot(snapshot)

    kept = await store.get_snapshot(snapshot.id)
    assert kept == snapshot
    assert kept.unsaved[0].name == "gen\\ud800"
    assert (await store.list_snapshots("u1", ALL)).items == [snapshot]
    view = json.loads(SnapshotView.of(kept).model_dump_json())
    assert view == {key: value for key, value in json.loads(snapshot.model_dump_json()).items() if key != "place"}
    with pytest.raises(SnapshotNotFound):
        await store.get_snapshot("snap_nobody")


async def test_a_snapshot_that_is_put_again_is_the_same_write(store: Store) -> None:
    snapshot = new_snapshot("u1")

    await asyncio.gather(*(store.put_snapshot(snapshot) for _ in range(5)))
    await store.put_snapshot(snapshot.model_copy(update={"name": "another", "place": "u2"}))

    assert (await store.list_snapshots("u1", ALL)).items == [snapshot]
    assert (await store.list_snapshots("u2", ALL)).total_count == 0


async def test_snapshots_are_listed_newest_first_page_by_page(store: Store) -> None:
    snapshots = [new_snapshot("u1", number, created_at=later(number // 2)) for number in range(9)]
    for snapshot in [*snapshots[::2], *snapshots[1::2], new_snapshot("u2")]:
        await store.put_snapshot(snapshot)

    page = await store.list_snapshots("u1", PageRequest(limit=4, page=2))

    assert page.items == snapshots[::-1][4:8]
    assert page.total_count == 9
    assert await everything(lambda page: store.list_snapshots("u1", page), 2) == snapshots[::-1]


async def test_snapshots_without_a_place_are_those_brought_in_that_no_session_owns(store: Store) -> None:
    loose = [new_snapshot(f"i{number}", number, kind="import", session_id=None) for number in range(3)]
    owned = new_snapshot("u1", 7, kind="import")
    orphan = new_snapshot("u2", 8, session_id=None)
    for snapshot in (*loose, owned, orphan):
        await store.put_snapshot(snapshot)

    assert (await store.list_snapshots(None, ALL)).total_count == 3
    assert await everything(lambda page: store.list_snapshots(None, page), 2) == loose[::-1]
    assert (await store.list_snapshots("i1", ALL)).items == [loose[1]]
    assert (await store.list_snapshots("u1", ALL)).items == [owned]


async def test_a_deleted_snapshot_is_not_found(store: Store) -> None:
    gone, stays = new_snapshot("u1", 1), new_snapshot("u1", 2)
    for snapshot in (gone, stays):
        await store.put_snapshot(snapshot)

    results = await asyncio.gather(*(store.delete_snapshot(gone.id) for _ in range(5)), return_exceptions=True)

    assert outcomes(results, SnapshotNotFound) == (1, 4)
    with pytest.raises(SnapshotNotFound):
        await store.get_snapshot(gone.id)
    assert (await store.list_snapshots("u1", ALL)).items == [stays]


async def test_a_snapshot_that_names_very_much_is_kept_and_says_how_much_more_there_was(store: Store) -> None:
    long = "\x01" * 5000  # six bytes each, in JSON
    snapshot = new_snapshot(
        "u1",
        unsaved=[UnsavedVariable(name=long, type=long, reason=long)] * (MOST_NAMED + 4321),
        skipped=[SkippedFile(path=long, reason=long)] * (MOST_NAMED + 1),
        state_note=long,
    )

    await store.put_snapshot(snapshot)

    kept = await store.get_snapshot(snapshot.id)
    assert kept == snapshot
    assert (len(kept.unsaved), kept.unsaved[-1].reason) == (MOST_NAMED, "and 4,322 more")
    assert (len(kept.skipped), kept.skipped[-1].reason) == (MOST_NAMED, "and 2 more")
    assert kept.unsaved[0].name.endswith("\x01…")


# Idempotency keys


def new_answer(key: str = "local POST /api/sessions k1", at: datetime | None = None, **fields: Any) -> KeptAnswer:
    return KeptAnswer(key=key, request_digest="d", created_at=at or datetime.now(UTC), **fields)


async def test_of_two_who_reserve_a_key_at_the_same_instant_one_gets_it(store: Store) -> None:
    results = await asyncio.gather(*(store.reserve_answer(new_answer(), LONG_AGO) for _ in range(10)))

    assert sum(result is None for result in results) == 1
    assert all(result.status is None for result in results if result)


@pytest.mark.parametrize("body", [b"", b'{"id": "demo"}', b"\x28\xb5\x2f\xfd not zstd", bytes(20_000_000)])
async def test_a_kept_answer_is_given_again(store: Store, body: bytes) -> None:
    answer = new_answer()
    assert await store.reserve_answer(answer, LONG_AGO) is None
    kept = answer.model_copy(update={"status": 201, "content_type": "application/json", "body": body})

    await store.keep_answer(kept)

    assert await store.reserve_answer(new_answer(), LONG_AGO) == kept
    assert await store.get_answer(kept.key) == kept
    assert await store.get_answer("another") is None


async def test_a_key_that_is_dropped_or_expired_is_free(store: Store) -> None:
    await store.reserve_answer(new_answer("dropped", later()), LONG_AGO)
    await store.reserve_answer(new_answer("expired", later()), LONG_AGO)

    await store.drop_answer(new_answer("dropped", later()))
    await store.drop_answer(new_answer("never there"))

    assert await store.reserve_answer(new_answer("dropped"), LONG_AGO) is None
    results = await asyncio.gather(*(store.reserve_answer(new_answer("expired"), later(2)) for _ in range(5)))
    assert sum(result is None for result in results) == 1


async def test_a_reservation_is_dropped_only_while_it_is_that_one_and_unanswered(store: Store) -> None:
    answered, again = new_answer("answered", later()), new_answer("again", later(2))
    for reservation in (answered, again):
        await store.reserve_answer(reservation, LONG_AGO)
    kept = answered.model_copy(update={"status": 200})
    await store.keep_answer(kept)

    await store.drop_answer(answered)
    await store.drop_answer(new_answer("again", later(1)))

    assert await store.reserve_answer(new_answer("answered"), LONG_AGO) == kept
    assert await store.reserve_answer(new_answer("again"), LONG_AGO) == again


# Audit


def audit_line(number: int, at: datetime) -> AuditLine:
    return AuditLine(id=f"a{number}", at=at, actor="local", action="create", outcome="ok", request_id="r", details=ODD)


async def test_audit_lines_are_kept_once_and_read_in_the_order_in_which_they_were_written(store: Store) -> None:
    lines = [audit_line(number, later(number // 3)) for number in range(1200)]

    await store.append_audit(lines[600:])
    await store.append_audit(lines[:601])
    await store.append_audit([lines[0].model_copy(update={"actor": "forger"})])
    await store.append_audit([])

    begin, *read = [one.line async for one in store.read_audit()]
    assert begin.details["lines_before"] == 0
    assert read == [*lines[600:], *lines[:600]]
    assert list(read[0].details) == list(ODD)


# Cancelled and failing calls


async def test_a_call_that_fails_fails_alone(store: Store) -> None:
    await created(store, "taken")
    sessions = [new_session("taken" if number % 2 else f"s{number}") for number in range(40)]

    results = await asyncio.gather(*map(store.create_session, sessions), return_exceptions=True)

    assert [isinstance(result, SessionExists) for result in results] == [bool(number % 2) for number in range(40)]
    assert len(await ids(store)) == 21


async def test_a_caller_that_gives_up_breaks_nothing(store: Store) -> None:
    session = await created(store)
    count = SessionChanges(add={"run_count": 1})

    tasks = [asyncio.ensure_future(store.update_session(session.uid, count, later(n))) for n in range(20)]
    await asyncio.wait(tasks[:1])
    for task in tasks[1::2]:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)

    updated = await store.update_session(session.uid, count, later(30))
    succeeded = sum(isinstance(result, Session) for result in results)
    assert succeeded < updated.run_count <= 21
    assert await store.get_session("demo") == updated


async def test_a_store_that_is_closed_says_so(tmp_path: Path) -> None:
    stores: list[Store] = [SqliteStore(tmp_path / "gateway.db"), MongoStore("mongodb://127.0.0.1:1/x")]
    for store in stores:
        async with store.opened():
            pass

        for call in (store.get_session("demo"), store.purge_session("demo"), store.list_unfinished("demo")):
            with pytest.raises(StoreAway):
                await call


# SQLite


async def test_sqlite_answers_a_label_filter_from_an_index(sqlite_store: SqliteStore, tmp_path: Path) -> None:
    await created(sqlite_store)

    for selector in ("", "k=v", "a.b/c", "k=v,other!=x", "!x,k=v"):
        query = SessionQuery.of(SessionFilter(labels=parse_selector(selector), created_by="u" if selector else None))
        sql, values = query.page(None, 10, 0)
        with closing(sqlite3.connect(tmp_path / "gateway.db")) as connection:
            plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
        assert not any("SCAN" in step or "TEMP B-TREE" in step for step in plan), plan
        assert ("lead" if selector else "sessions_newest") in plan[0]


async def test_sqlite_keeps_everything_that_it_acknowledged_before_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _WRITE_FOR_EVER, str(tmp_path / "gateway.db")]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    acknowledged = [(await process.stdout.readline()).decode().strip() for _ in range(500)]
    process.kill()
    acknowledged += (await process.stdout.read()).decode().split("\n")[:-1]
    await process.wait()

    store = SqliteStore(tmp_path / "gateway.db")
    async with store.opened():
        kept = {session.id async for session in every_session(store)}
    assert len(acknowledged) >= 500
    assert kept.issuperset(acknowledged)


_WRITE_FOR_EVER = """
import asyncio, itertools, sys
from pathlib import Path
from gateway.models.base import now
from gateway.models.sessions import Move, Session
from gateway.stores.sqlite import SqliteStore

async def write(store, name):
    for number in itertools.count():
        key = f"{name}-{number}"
        await store.create_session(Session(uid=key, id=key, name=key, created_at=now(), updated_at=now()))
        print(key, flush=True)

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    async with store.opened():
        await asyncio.gather(*(write(store, name) for name in "abcdefgh"))

asyncio.run(main())
"""


async def every_session(store: Store) -> AsyncIterator[Session]:
    for session in await everything(lambda page: store.list_sessions(SessionFilter(), page), 1000):
        yield session


async def test_sqlite_finds_everything_again_in_a_file_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "gateway.db"
    for _ in range(2):
        store = SqliteStore(path)
        async with store.opened():
            if not await ids(store):
                session = await created(store)

    async with store.opened():
        assert await store.get_session("demo") == session
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_sqlite_refuses_a_file_that_a_newer_gateway_wrote(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "gateway.db")) as connection:
        connection.execute("PRAGMA user_version = 999")

    with pytest.raises(NewerFile, match="999"):
        async with SqliteStore(tmp_path / "gateway.db").opened():
            pass


async def test_sqlite_brings_a_file_of_an_older_gateway_up_to_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_schema, "_MIGRATIONS", sqlite_schema._MIGRATIONS[:1])
        patch.setattr(sqlite_rows, "_write_readers", lambda *_: None)
        async with (old := SqliteStore(tmp_path / "gateway.db")).opened():
            session = await created(old)
    with closing(sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)) as connection:
        for name in SAVED_FIELDS:
            connection.execute("UPDATE sessions SET document = json_remove(document, ?)", (f"$.{name}",))

    async with (store := SqliteStore(tmp_path / "gateway.db")).opened():
        await store.put_snapshot(new_snapshot(session.uid))

        assert await store.get_session("demo") == session
        assert await ids(store, seen_by=session.created_by) == ["demo"]
        assert (await store.list_snapshots(session.uid, ALL)).total_count == 1


async def test_sqlite_lists_snapshots_from_an_index(sqlite_store: SqliteStore, tmp_path: Path) -> None:
    await sqlite_store.put_snapshot(new_snapshot("u1"))
    with closing(sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)) as connection:
        statements: list[str] = []
        connection.set_trace_callback(statements.append)
        for place in ("u1", None):
            list_snapshots(connection, place, PageRequest(limit=1))
        connection.set_trace_callback(None)
        plans = [[row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}")] for sql in statements]

    assert len(plans) == 4
    for plan, index in zip(plans, ["newest", "newest", "loose", "loose"], strict=True):
        assert f"INDEX snapshots_{index}" in plan[0]
        assert not any("TEMP B-TREE" in step for step in plan), plan


async def test_sqlite_is_away_while_its_file_is_locked(sqlite_store: SqliteStore, tmp_path: Path) -> None:
    session = await created(sqlite_store)

    with closing(sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        results = await asyncio.gather(
            *(sqlite_store.delete_session(session.uid, later()) for _ in range(20)), return_exceptions=True
        )
        assert outcomes(results, StoreAway) == (0, 20)
        assert await sqlite_store.get_session("demo") == session

    assert (await sqlite_store.delete_session(session.uid, later())).id == "demo"


async def test_sqlite_is_away_while_its_disk_takes_no_more(sqlite_store: SqliteStore, tmp_path: Path) -> None:
    session = await created(sqlite_store)
    noise = random.Random(7).randbytes(1_000_000).hex()  # noqa: S311 - no secret
    large = new_execution(session, outputs=[{"output_type": "stream", "name": "stdout", "text": noise}])

    with no_file_larger_than((tmp_path / "gateway.db-wal").stat().st_size + 100_000):
        results = await asyncio.gather(
            sqlite_store.put_execution(large),
            *(sqlite_store.beat(f"g{number}", T0) for number in range(5)),
            return_exceptions=True,
        )

    assert [type(result) for result in results if isinstance(result, BaseException)] == [StoreAway]
    await sqlite_store.put_execution(large)
    assert await sqlite_store.get_execution(session.uid, large.id) == large


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# MongoDB


@pytest.fixture(params=DRIVERS)
async def mongo_store(request: pytest.FixtureRequest, own_mongod: Mongod) -> AsyncIterator[MongoStore]:  # noqa: F811 - the fixture
    """On a server of its own, to be stopped and killed."""
    store = MongoStore(own_mongod.uri("gateway"), driver=request.param)
    async with store.opened():
        yield store


async def insist(call: Callable[[], Awaitable[Any]]) -> Any:
    """What a caller does: the very same call again until the store is back."""
    async with asyncio.timeout(30):
        while True:
            with suppress(StoreAway):
                return await call()


async def test_mongo_answers_a_label_filter_from_an_index(mongod: Mongod) -> None:  # noqa: F811 - the fixture
    with mongod.database() as uri, mongod.client() as client:
        store = MongoStore(uri)
        async with store.opened():
            for number in range(200):  # half of them have labels: were it all, the plain list would do as well
                labels = {"a.b/c": str(number % 5), "k": "v"} if number % 2 else {}
                await created(store, f"s{number}", later(number), labels=labels)
        for selector in ("a.b/c=1", "k", "a.b/c=1,k", "k=v,a.b/c!=2"):
            find = {
                "find": "sessions",
                "filter": session_query(SessionFilter(labels=parse_selector(selector))),
                "sort": {"created_at": -1, "_id": -1},
            }
            plan = client[uri.rsplit("/", 1)[1]].command("explain", find)["queryPlanner"]["winningPlan"]
            assert '"COLLSCAN"' not in json.dumps(plan)
            assert '"SORT"' not in json.dumps(plan)
            assert '"labels"' in json.dumps(plan)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_mongo_may_be_away_at_the_start(own_mongod: Mongod, driver: Driver) -> None:  # noqa: F811 - the fixture
    own_mongod.stop()
    store = MongoStore(own_mongod.uri("gateway"), driver=driver)

    async with store.opened():
        with pytest.raises(StoreAway):
            await store.ping()
        own_mongod.start()
        await insist(store.ping)
        await created(store)
        with pytest.raises(SessionExists):
            await created(store)


async def test_mongo_that_stops_is_told_quickly_and_comes_back_by_itself(
    mongo_store: MongoStore,
    own_mongod: Mongod,  # noqa: F811 - the fixture
) -> None:
    session = await created(mongo_store)
    own_mongod.stop()

    async with asyncio.timeout(6):
        for _ in range(2):
            with pytest.raises(StoreAway):
                await mongo_store.get_session("demo")
    own_mongod.start()

    moved = await insist(
        lambda: mongo_store.move_session(session.uid, Move(before=State.INIT, after=State.READY, at=later()))
    )
    assert moved.state == State.READY


async def test_mongo_that_is_killed_keeps_everything_that_it_acknowledged(
    mongo_store: MongoStore,
    own_mongod: Mongod,  # noqa: F811 - the fixture
) -> None:
    acknowledged: list[str] = []

    async def write(name: str) -> None:
        for number in range(10_000):
            acknowledged.append((await created(mongo_store, f"{name}-{number}")).id)
            if len(acknowledged) == 200:
                own_mongod.kill()

    results = await asyncio.gather(*(write(name) for name in "abcd"), return_exceptions=True)
    assert outcomes(results, StoreAway) == (0, 4)
    own_mongod.start()

    await insist(mongo_store.ping)
    kept = {session.id async for session in every_session(mongo_store)}
    assert kept.issuperset(acknowledged)


async def test_a_call_repeated_because_its_answer_got_lost_happens_once(
    mongo_store: MongoStore,
    own_mongod: Mongod,  # noqa: F811 - the fixture
) -> None:
    live = [await created(mongo_store, name, state=State.READY) for name in ("move", "count", "merge", "delete")]
    gone = await created(mongo_store, "undelete")
    await mongo_store.delete_session(gone.uid, later())
    new, answer = new_session("create"), new_answer()
    put, dropped = new_snapshot("u1", 1), new_snapshot("u1", 2)
    await mongo_store.put_snapshot(dropped)
    count, merge = SessionChanges(add={"run_count": 1}), SessionChanges(merge={"data": {"x": 1}}, add={"run_count": 1})
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: mongo_store.create_session(new),
        lambda: mongo_store.move_session(live[0].uid, Move(before=State.READY, after=State.BUSY, at=later(2))),
        lambda: mongo_store.update_session(live[1].uid, count, later(2)),
        lambda: mongo_store.update_session(live[2].uid, merge, later(2)),
        lambda: mongo_store.delete_session(live[3].uid, later(2)),
        lambda: mongo_store.undelete_session("undelete", later(2)),
        lambda: mongo_store.reserve_answer(answer, LONG_AGO),
        lambda: mongo_store.put_snapshot(put),
        lambda: mongo_store.delete_snapshot(dropped.id),
    ]

    # A connection for each call: one that had to be made now would never carry its call.
    await asyncio.gather(*(mongo_store.ping() for _ in range(20 * len(calls))))
    own_mongod.pause()  # it reads the calls later, when nobody waits for the answers any more
    try:
        async with asyncio.timeout(8):
            results = await asyncio.gather(*(call() for call in calls), return_exceptions=True)
    finally:
        own_mongod.resume()
    assert outcomes(results, StoreAway) == (0, len(calls))
    results = await asyncio.gather(*(insist(call) for call in calls))

    assert results[0] is None
    assert (results[1].state, results[1].version) == (State.BUSY, 1)
    assert (results[2].run_count, results[3].run_count) == (1, 1)
    assert (results[4].deleted_at, results[5].uid, results[6]) == (later(2), gone.uid, None)
    assert (await mongo_store.list_moves(live[0].uid, ALL)).total_count == 2
    assert (await mongo_store.list_snapshots("u1", ALL)).items == [put]
    with pytest.raises(SnapshotNotFound):
        await mongo_store.delete_snapshot(dropped.id)


@pytest.mark.parametrize("driver", DRIVERS)
async def test_mongo_reads_a_session_that_an_older_gateway_wrote(
    mongod: Mongod,  # noqa: F811 - the fixture
    driver: Driver,
) -> None:
    with mongod.database() as uri, mongod.client() as client:
        store = MongoStore(uri, driver=driver)
        async with store.opened():
            session = await created(store)
            sessions = client[uri.rsplit("/", 1)[1]]["sessions"]
            sessions.update_one({"_id": session.uid}, {"$unset": dict.fromkeys(SAVED_FIELDS, "")})

            assert await store.get_session("demo") == session


async def test_mongo_lists_snapshots_from_an_index(mongod: Mongod) -> None:  # noqa: F811 - the fixture
    with mongod.database() as uri, mongod.client() as client:
        store = MongoStore(uri)
        async with store.opened():
            await store.put_snapshot(new_snapshot("u1"))
        for wanted, index in (({"place": "u1"}, "newest"), ({"loose": True}, "loose")):
            find = {"find": "snapshots", "filter": wanted, "sort": {"created_at": -1, "_id": -1}}
            plan = json.dumps(client[uri.rsplit("/", 1)[1]].command("explain", find)["queryPlanner"]["winningPlan"])
            assert f'"{index}"' in plan
            assert '"SORT"' not in plan


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_large_execution_that_is_half_written_is_not_seen(
    mongod: Mongod,  # noqa: F811 - the fixture
    driver: Driver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def away(*_: Any) -> None:
        raise StoreAway("no answer")

    noise = random.Random(7).randbytes(20_000_000).hex()  # noqa: S311 - no secret
    with mongod.database() as uri:
        store = MongoStore(uri, driver=driver)
        async with store.opened():
            session = await created(store)
            before = new_execution(session, status=Status.RUNNING)
            outputs = [{"output_type": "stream", "name": "stdout", "text": noise}]
            after = before.model_copy(update={"status": Status.OK, "outputs": outputs})
            await store.put_execution(before)

            with monkeypatch.context() as patch:
                patch.setattr(store, "_replace_execution", away)
                with pytest.raises(StoreAway):
                    await store.put_execution(after)

            assert await store.get_execution(session.uid, before.id) == before
            await store.put_execution(after)
            assert await store.get_execution(session.uid, before.id) == after


@pytest.mark.parametrize("driver", DRIVERS)
async def test_a_line_of_a_move_that_was_never_copied_is_copied_by_the_next_holder(
    mongod: Mongod,  # noqa: F811 - the fixture
    driver: Driver,
) -> None:
    with mongod.database() as uri, mongod.client() as client:
        lines = client[uri.rsplit("/", 1)[1]]["moves"]
        store = MongoStore(uri, driver=driver)
        async with store.opened():
            session = await created(store)
            await store.move_session(session.uid, Move(before=State.INIT, after=State.READY, at=later()))
            assert lines.count_documents({}) == 0  # as if its gateway had died here

            await store.claim_session(session.uid, "g1", LONG_AGO)

            assert lines.count_documents({}) == 2
            assert (await store.list_moves(session.uid, ALL)).total_count == 2


async def test_a_session_is_found_by_its_uid_until_it_is_deleted(store: Store) -> None:
    session = await created(store)

    assert await store.get_session_by_uid(session.uid) == session
    await store.delete_session(session.uid, later(1))
    with pytest.raises(SessionNotFound):
        await store.get_session_by_uid(session.uid)


async def test_an_execution_under_the_id_of_another_sessions_leaves_that_as_it_is(store: Store) -> None:
    session, other = await created(store), await created(store, "other")
    kept = new_execution(session)
    await store.put_execution(kept)

    await store.put_execution(new_execution(other).model_copy(update={"id": kept.id, "code": "other"}))

    assert (await store.get_execution(session.uid, kept.id)).code == kept.code
    with pytest.raises(ExecutionNotFound):
        await store.get_execution(other.uid, kept.id)
