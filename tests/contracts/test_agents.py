"""What every store promises of agents and their windows."""

import asyncio
import uuid
from datetime import datetime, timedelta
from typing import Any

import pytest

from gateway.errors import AgentExists, AgentNotFound
from gateway.models.agents import Agent, Window
from gateway.models.pages import PageRequest
from gateway.stores.agents import ExpiryMoved, WindowNotFound
from gateway.stores.base import Store
from gateway.stores.mongo import MongoStore
from tests.contracts.test_store import (  # noqa: F401 - fixtures
    ALL,
    ODD,
    T0,
    later,
    no_socket_left_for_later_tests,
    outcomes,
    store,
)
from tests.mongod import Mongod, mongod  # noqa: F401 - a fixture

pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <socket\.socket:pytest.PytestUnraisableExceptionWarning"
)


def new_agent(agent_id: str = "bot", at: datetime = T0, **fields: Any) -> Agent:
    given: dict[str, Any] = {"name": agent_id, "created_by": "local", "created_at": at, "updated_at": at, **fields}
    return Agent(uid=uuid.uuid4().hex, id=agent_id, **given)


async def created(store: Store, agent_id: str = "bot", at: datetime = T0, **fields: Any) -> Agent:  # noqa: F811
    agent = new_agent(agent_id, at, **fields)
    await store.create_agent(agent)
    return agent


def new_window(agent: Agent, hours: float = 6, at: datetime = T0) -> Window:
    return Window(
        id=f"win_{uuid.uuid4().hex}", agent_id=agent.id, agent_uid=agent.uid, opened_by="local", started_at=at,
        expires_at=at + timedelta(hours=hours),
    )  # fmt: skip


async def opened(store: Store, agent: Agent, hours: float = 6, at: datetime = T0) -> Window:  # noqa: F811
    window = new_window(agent, hours, at)
    await store.open_window(window)
    return window


async def test_an_agent_comes_back_as_it_was_kept(store: Store) -> None:  # noqa: F811
    agent = await created(store, name="客服 бот", model="m", config=ODD, created_by="ключ")

    assert await store.get_agent("bot") == agent
    with pytest.raises(AgentNotFound):
        await store.get_agent("Bot")


async def test_of_two_agents_of_one_id_at_the_same_instant_one_is_refused(store: Store) -> None:  # noqa: F811
    agents = [new_agent() for _ in range(2)]

    results = await asyncio.gather(*map(store.create_agent, agents), return_exceptions=True)
    await store.create_agent(agents[0] if results[0] is None else agents[1])  # asked for again: no conflict with itself

    assert outcomes(results, AgentExists) == (1, 1)


async def test_agents_are_listed_newest_first_page_by_page_and_by_who_made_them(store: Store) -> None:  # noqa: F811
    for number in range(5):
        await created(store, f"a{number}", later(number), created_by="ann" if number % 2 else "bob")

    first = await store.list_agents(PageRequest(limit=3))
    second = await store.list_agents(PageRequest(limit=3, token=first.next_token))
    anns = await store.list_agents(ALL, "ann")

    assert [agent.id for agent in (*first.items, *second.items)] == ["a4", "a3", "a2", "a1", "a0"]
    assert (first.total_count, second.next_token) == (5, None)
    assert ([agent.id for agent in anns.items], anns.total_count) == (["a3", "a1"], 2)


async def test_an_update_changes_what_it_names(store: Store) -> None:  # noqa: F811
    agent = await created(store, model="m", config={"a": 1})

    changed = await store.update_agent(agent.uid, {"config": {"$b.c": [None]}, "model": None}, later())

    assert changed == await store.get_agent("bot")
    assert (changed.name, changed.model, changed.config, changed.updated_at) == ("bot", None, {"$b.c": [None]}, later())


async def test_a_deleted_agent_frees_its_id_and_can_be_brought_back_while_it_is_free(store: Store) -> None:  # noqa: F811
    first = await created(store)
    window = await opened(store, first)

    deleted = await store.delete_agent(first.uid, later())
    with pytest.raises(AgentNotFound):
        await store.get_agent("bot")
    second = await created(store, at=later(2))
    with pytest.raises(AgentExists):
        await store.undelete_agent("bot", later(3))
    await store.delete_agent(second.uid, later(4))
    await store.purge_agent(second.uid)
    back = await store.undelete_agent("bot", later(5))

    assert (deleted.deleted_at, back.uid, back.deleted_at) == (later(), first.uid, None)
    over = await store.get_window(window.id)
    assert (over.ended_at, over.end_reason) == (later(), "deleted")
    for missing in ("delete_agent", "update_agent"):
        with pytest.raises(AgentNotFound):
            await (store.delete_agent(second.uid, later()) if missing == "delete_agent" else
                   store.update_agent(second.uid, {}, later()))  # fmt: skip
    with pytest.raises(AgentNotFound):
        await store.undelete_agent("other", later())


async def test_an_owner_brings_back_the_last_that_it_made_and_learns_of_no_others(store: Store) -> None:  # noqa: F811
    anns = await created(store, created_by="ann")
    await store.delete_agent(anns.uid, later(1))
    bobs = await created(store, created_by="bob", at=later(2))

    with pytest.raises(AgentNotFound):
        await store.undelete_agent("bot", later(3), "carol")
    for owner in ("ann", "bob", None):
        with pytest.raises(AgentExists):
            await store.undelete_agent("bot", later(3), owner)
    await store.delete_agent(bobs.uid, later(4))

    assert (await store.undelete_agent("bot", later(5), "ann")).uid == anns.uid


async def test_a_new_window_takes_the_place_of_the_old_one(store: Store) -> None:  # noqa: F811
    agent = await created(store)

    old, new = await opened(store, agent), await opened(store, agent, at=later())

    assert await store.get_window(new.id) == new
    assert (await store.get_agent("bot")).window == new
    with pytest.raises(WindowNotFound):
        await store.get_window(old.id)


async def test_of_many_windows_opened_at_once_one_is_left(store: Store) -> None:  # noqa: F811
    agent = await created(store)
    windows = [new_window(agent) for _ in range(8)]

    await asyncio.gather(*map(store.open_window, windows))

    found = await asyncio.gather(*(store.get_window(window.id) for window in windows), return_exceptions=True)
    assert outcomes(found, WindowNotFound) == (1, 7)


async def test_an_expiry_moves_only_from_where_it_is(store: Store) -> None:  # noqa: F811
    window = await opened(store, await created(store))
    moves = [later(3600 * hours) for hours in (7, 8, 9)]

    results = await asyncio.gather(
        *(store.move_expiry(window.id, window.expires_at, after) for after in moves), return_exceptions=True
    )

    assert outcomes(results, ExpiryMoved) == (1, 2)
    assert (await store.get_window(window.id)).expires_at in moves


async def test_two_equal_extensions_at_once_are_not_taken_for_one(store: Store) -> None:  # noqa: F811
    window = await opened(store, await created(store))
    after = window.expires_at + timedelta(hours=6)

    results = await asyncio.gather(
        *(store.move_expiry(window.id, window.expires_at, after) for _ in range(2)), return_exceptions=True
    )

    assert outcomes(results, ExpiryMoved) == (1, 1)


async def test_a_window_that_is_over_stays_as_it_ended(store: Store) -> None:  # noqa: F811
    window = await opened(store, await created(store))

    first = await store.end_window(window.id, later(), "deactivated")
    again = await store.end_window(window.id, later(9), "superseded")

    assert first == again == await store.get_window(window.id)
    assert (first.ended_at, first.end_reason) == (later(), "deactivated")
    with pytest.raises(ExpiryMoved):
        await store.move_expiry(window.id, window.expires_at, window.expires_at + timedelta(hours=1))
    with pytest.raises(WindowNotFound):
        await store.end_window("win_other", later(), "expired")


async def test_windows_whose_time_has_come_are_ended_and_no_others(store: Store) -> None:  # noqa: F811
    short = await opened(store, await created(store, "short"), hours=1)
    long = await opened(store, await created(store, "long"), hours=2)

    await store.end_expired(later(3600))

    ended = await store.get_window(short.id)
    assert (ended.ended_at, ended.end_reason) == (later(3600), "expired")
    assert await store.get_window(long.id) == long
    late = await store.end_window(long.id, later(3 * 3600), "deactivated")
    assert late.end_reason == "expired"


async def test_windows_are_found_by_the_ids_of_agents_deleted_ones_too(store: Store) -> None:  # noqa: F811
    gone, here = await created(store, "gone"), await created(store, "here")
    windows = [await opened(store, gone), await opened(store, here)]
    await created(store, "never")
    await store.delete_agent(gone.uid, later())

    found = await store.list_windows(["gone", "here", "never", "unknown"])

    assert {window.id for window in found} == {window.id for window in windows}
    assert {window.agent_id for window in found if window.ended_at is None} == {"here"}
    assert await store.list_windows([]) == []


async def test_a_window_is_opened_for_no_agent_that_is_deleted(store: Store) -> None:  # noqa: F811
    agent = await created(store)
    await store.delete_agent(agent.uid, later())

    with pytest.raises(AgentNotFound):
        await store.open_window(new_window(agent))


@pytest.mark.external_service
async def test_of_windows_that_two_gateways_open_at_once_one_is_left(mongod: Mongod) -> None:  # noqa: F811
    with mongod.database() as uri:
        one, two = MongoStore(uri), MongoStore(uri, driver="pymongo")
        async with one.opened(), two.opened():
            agent = await created(one)
            windows = [new_window(agent) for _ in range(20)]

            await asyncio.gather(*(
                (one if number % 2 else two).open_window(window) for number, window in enumerate(windows)
            ))  # fmt: skip

            seen = [
                await asyncio.gather(*(side.get_window(window.id) for window in windows), return_exceptions=True)
                for side in (one, two)
            ]
    left = [[found.id for found in side if isinstance(found, Window)] for side in seen]
    assert len(left[0]) == 1
    assert left[0] == left[1]
