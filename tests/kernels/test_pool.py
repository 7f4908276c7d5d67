"""Kernels that wait for nobody yet: how many there are, and when there are none."""

import asyncio
import ctypes
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from kernels import pool
from kernels.engines.forks import Forks
from kernels.engines.local import LocalEngine
from kernels.engines.overlay import probe
from kernels.errors import StartFailed
from kernels.inherited import Kin
from kernels.pool import Pools, Wanted
from kernels.zygote import be_subreaper

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can fork kernels")

_PR_SET_CHILD_SUBREAPER = 36


@pytest.fixture(autouse=True)
def subreaper() -> Iterator[None]:
    assert be_subreaper()
    yield
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


@pytest.fixture
def wanted(tmp_path: Path) -> Wanted:
    spec = LocalEngine(tmp_path / "data").kernelspecs()["python3"]
    return Wanted.of(Forks(2, ()).order(spec, probe(spec.argv[0]), ()))


@asynccontextmanager
async def opened(home: Path) -> AsyncIterator[Pools]:
    async with asyncio.TaskGroup() as tasks:
        pools = Pools(home, tasks)
        try:
            yield pools
        finally:
            await pools.end()


@pytest.fixture
def ours(subreaper: None) -> Callable[[], list[psutil.Process]]:
    """Our children, but for those that were there before the test."""
    before = set(psutil.Process().children())
    return lambda: [one for one in psutil.Process().children() if one not in before]


async def until(holds: Any) -> None:
    async with asyncio.timeout(30):
        while not holds():
            await asyncio.sleep(0.02)


async def test_as_many_as_wanted_are_ready_and_all_end_with_the_pool(
    tmp_path: Path, wanted: Wanted, ours: Callable[[], list[psutil.Process]]
) -> None:
    async with opened(tmp_path) as pools:
        pools.of(wanted)
        await until(lambda: len(pools.pids) == 3)

        forked = await pools.take(wanted)
        assert forked is not None
        await until(lambda: len(pools.pids) == 4)

        assert forked.running
        await forked.discard()

    assert ours() == []


async def test_nothing_is_ready_while_memory_is_short_and_one_that_is_wanted_is_still_forked(
    tmp_path: Path, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as pools:
        pools.of(wanted)
        await until(lambda: len(pools.pids) == 3)

        monkeypatch.setattr(pool, "_LEAST_FREE", 1.0)
        await until(lambda: len(pools.pids) == 1)
        forked = await pools.take(wanted)

        assert forked is not None
        await forked.discard()


async def test_what_nobody_uses_ends_and_comes_back_when_it_is_wanted(
    tmp_path: Path, wanted: Wanted, monkeypatch: pytest.MonkeyPatch, ours: Callable[[], list[psutil.Process]]
) -> None:
    monkeypatch.setattr(pool, "_EMPTY_AFTER_S", 0.5)
    monkeypatch.setattr(pool, "_END_AFTER_S", 3.0)
    async with opened(tmp_path) as pools:
        kept = pools.of(wanted)
        await until(lambda: kept.zygote is not None)
        await until(lambda: kept.zygote is None and ours() == [])

        forked = await pools.take(wanted)

        assert forked is not None
        await forked.discard()


async def test_an_interpreter_that_does_not_start_is_tried_again_later_and_later(
    tmp_path: Path, wanted: Wanted, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = tmp_path / "tries"
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho >> {tries}; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(pool, "_FIRST_PAUSE_S", 0.1)
    told = {"argv": [str(python)], "env": {"PATH": os.defpath}, "preloads": [], "watched": [], "size": 2}

    async with opened(tmp_path) as pools:
        assert await pools.take(Wanted.of(told)) is None
        await until(lambda: len(tries.read_text()) >= 4)
        assert await pools.take(Wanted.of(told)) is None

    assert len(tries.read_text()) < 8


def test_no_user_of_the_host_is_two_sessions() -> None:
    kin = Kin()
    taken = [kin.take_uid(range(1000, 1003)) for _ in range(3)]

    with pytest.raises(StartFailed, match="All 3 users"):
        kin.take_uid(range(1000, 1003))
    kin.give_back(taken[1])

    assert sorted(uid for uid in taken if uid is not None) == [1000, 1001, 1002]
    assert kin.take_uid(range(1000, 1003)) == taken[1]
    assert kin.take_uid(range(0)) is None
