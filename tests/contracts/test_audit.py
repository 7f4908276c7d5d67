"""What every store promises of the audit log: one chain, searched page by page, and tampering shows."""

import asyncio
import json
import sqlite3
import uuid
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gateway.errors import BadPageToken
from gateway.models.audit import BEGIN_ID, AuditFilter, AuditLine, ChainedLine, hash_of
from gateway.models.pages import PageRequest
from gateway.services.audit import AuditService, Verdict
from gateway.stores import sqlite_schema
from gateway.stores.base import Store
from gateway.stores.mongo import MongoStore
from gateway.stores.sqlite import SqliteStore
from tests.contracts.test_keys import store  # noqa: F401 - a fixture
from tests.contracts.test_store import T0
from tests.mongod import Mongod, mongod  # noqa: F401 - a fixture

pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <socket\.socket:pytest.PytestUnraisableExceptionWarning"
)


def line(number: int, **fields: Any) -> AuditLine:
    plain = {"id": f"a{number:04}", "at": T0 + timedelta(seconds=number), "actor": "alice", "action": "run"}
    return AuditLine.model_validate(plain | {"outcome": "ok", "request_id": f"r{number}", "remote": "::1"} | fields)


async def all_of(kept: Store) -> list[ChainedLine]:
    return [one async for one in kept.read_audit()]


async def verdict_of(kept: Store, known: str | None = None) -> Verdict:
    return await AuditService(kept).verify(known)


async def test_each_line_is_bound_to_the_one_before(store: Store) -> None:  # noqa: F811
    await store.append_audit([line(0), line(1)])
    await store.append_audit([line(2, details={"ä": [1.5, None, "\ud83d\ude00"]})])

    begin, *links = await all_of(store)
    assert [one.number for one in links] == [2, 3, 4]
    assert [one.previous for one in links] == [begin.hash, links[0].hash, links[1].hash]
    assert all(one.hash == hash_of(one.fields, one.number or 0, one.previous or "") for one in links)
    assert await verdict_of(store) == Verdict(4, 0, f"4:{links[-1].hash}", None)


async def test_lines_are_found_by_all_that_they_are_searched_by(store: Store) -> None:  # noqa: F811
    odd = line(7, actor="bob", session_id="s", action="PUT /x", outcome="404", key_id="k", agent_id="a")
    await store.append_audit([line(number) for number in range(5)] + [odd])

    for name in ("actor", "session_id", "action", "outcome", "request_id", "key_id", "agent_id"):
        found = await store.list_audit(AuditFilter(**{name: getattr(odd, name)}), PageRequest())
        assert [one.line for one in found.items] == [odd], name
    span = AuditFilter(since=line(1).at, until=line(3).at)
    assert [one.line.id for one in (await store.list_audit(span, PageRequest())).items] == ["a0002", "a0001"]
    assert [one.line.id async for one in store.read_audit(span)] == ["a0001", "a0002"]


async def test_pages_are_newest_first_and_bound_to_their_filter(store: Store) -> None:  # noqa: F811
    await store.append_audit([line(number, at=T0 + timedelta(seconds=number // 3)) for number in range(10)])
    alices = AuditFilter(actor="alice")

    pages, token = [], None
    while True:
        page = await store.list_audit(alices, PageRequest(4, token))
        pages.append([one.line.id for one in page.items])
        token = page.next_token
        if token is None:
            break
        foreign = token
    assert [one for page_ in pages for one in page_] == [f"a{number:04}" for number in reversed(range(10))]
    assert page.total_count == 10
    with pytest.raises(BadPageToken):
        await store.list_audit(AuditFilter(actor="bob"), PageRequest(4, foreign))


@pytest.mark.external_service
async def test_gateways_on_one_database_write_one_chain(mongod: Mongod) -> None:  # noqa: F811
    uri = mongod.uri(f"test_{uuid.uuid4().hex}")
    one, other = MongoStore(uri), MongoStore(uri, driver="pymongo")
    async with one.opened(), other.opened():

        async def write(kept: Store, first: int) -> None:
            for start in range(first, first + 200, 10):
                await kept.append_audit([line(number) for number in range(start, start + 10)])

        await asyncio.gather(write(one, 0), write(other, 1000))

        verdict = await verdict_of(one)
        assert (verdict.lines, verdict.flaw) == (401, None)


def changed(path: Path, *statements: str) -> None:
    """As who can write to the file may, once the triggers are gone."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TRIGGER IF EXISTS audit_is_not_changed")
        connection.execute("DROP TRIGGER IF EXISTS audit_is_not_deleted")
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE audit SET line = json_set(line, '$.actor', 'mallory') WHERE sequence = 3", "Line 3 (id 'a0001'"),
        ("DELETE FROM audit WHERE sequence = 3", "Line 3 is missing"),
        ("UPDATE audit SET id = 'hidden' WHERE sequence = 3", "Line 3 (id 'a0001'"),
        ("UPDATE audit SET sequence = NULL WHERE sequence = 3", "A line without a number (id 'a0001')"),
        ("UPDATE audit SET hash = previous WHERE sequence = 3", "Line 3 (id 'a0001'"),
        ("DELETE FROM audit WHERE sequence = 1", "Line 1 is missing"),
    ],
)
async def test_who_changes_the_file_is_found_out(tmp_path: Path, statement: str, named: str) -> None:
    kept = SqliteStore(tmp_path / "gateway.db")
    async with kept.opened():
        await kept.append_audit([line(number) for number in range(5)])
        changed(tmp_path / "gateway.db", statement)

        verdict = await verdict_of(kept)

    assert verdict.flaw is not None
    assert verdict.flaw.startswith(named)


async def test_a_chain_that_was_cut_off_is_found_out_by_a_head_from_before(tmp_path: Path) -> None:
    kept = SqliteStore(tmp_path / "gateway.db")
    async with kept.opened():
        await kept.append_audit([line(number) for number in range(5)])
        head = (await verdict_of(kept)).head
        changed(tmp_path / "gateway.db", "DELETE FROM audit WHERE sequence > 3")

        cut = await verdict_of(kept, head)
        await kept.append_audit([line(number) for number in range(10, 15)])  # as if nothing had been
        grown = await verdict_of(kept, head)

        assert (await verdict_of(kept)).flaw is None
    assert cut.flaw == grown.flaw == f"{head} is not in the chain any more."


async def test_the_file_itself_refuses_to_change_a_line(tmp_path: Path) -> None:
    kept = SqliteStore(tmp_path / "gateway.db")
    async with kept.opened():
        await kept.append_audit([line(0)])

    with closing(sqlite3.connect(tmp_path / "gateway.db")) as connection:
        for statement in ("UPDATE audit SET line = '{}'", "DELETE FROM audit"):
            with pytest.raises(sqlite3.IntegrityError, match="audit lines are never"):
                connection.execute(statement)


async def test_lines_from_before_the_chain_are_told_and_guarded_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "gateway.db"
    migrations = sqlite_schema._MIGRATIONS
    chain = next(number for number, steps in enumerate(migrations) if "sequence INTEGER" in steps[0])
    with monkeypatch.context() as before:
        before.setattr(sqlite_schema, "_MIGRATIONS", migrations[:chain])
        with closing(sqlite_schema.connect_writer(path, 1)) as old:
            for number in range(3):
                one = line(number)
                old.execute(
                    "INSERT INTO audit (id, at, line) VALUES (?, ?, ?)", (one.id, "2026", one.model_dump_json())
                )
            old.execute("UPDATE audit SET at = json_extract(line, '$.at')")

    kept = SqliteStore(path)
    async with kept.opened():
        await kept.append_audit([line(10)])
        verdict, lines = await verdict_of(kept), await all_of(kept)
        changed(path, "UPDATE audit SET line = json_set(line, '$.actor', 'mallory') WHERE id = 'a0001'")
        after = await verdict_of(kept)

    assert (verdict.lines, verdict.before, verdict.flaw) == (2, 3, None)
    assert [one.fields["id"] for one in lines] == ["a0000", "a0001", "a0002", BEGIN_ID, "a0010"]
    assert after.flaw == "What was written before the chain was changed: there were 3 lines."


@pytest.mark.external_service
async def test_in_mongodb_lines_from_before_the_chain_are_found_and_guarded(mongod: Mongod) -> None:  # noqa: F811
    kept = MongoStore(mongod.uri(f"test_{uuid.uuid4().hex}"))
    async with kept.opened():
        audit = kept._collection("audit")
        old = [line(number) for number in range(3)]
        await audit.insert_many(
            [
                {"_id": one.id, "at": one.model_dump(mode="json")["at"], "order": n, "line": one.model_dump_json()}
                for n, one in enumerate(old)
            ]
        )
        await kept.append_audit([line(10)])

        found = await kept.list_audit(AuditFilter(request_id="r1"), PageRequest())
        verdict = await verdict_of(kept)
        eves = json.dumps(line(10, actor="eve").model_dump(mode="json"))
        await audit.update_one({"_id": "a0001"}, {"$set": {"actor": "mallory"}})
        hidden = await verdict_of(kept)
        await audit.update_one({"_id": "a0010"}, {"$set": {"line": eves}})
        forged = await verdict_of(kept)

    assert [one.line.id for one in found.items] == ["a0001"]
    assert (verdict.lines, verdict.before, verdict.flaw) == (2, 3, None)
    assert hidden.flaw is not None
    assert "'a0001'" in hidden.flaw
    assert forged.flaw is not None
