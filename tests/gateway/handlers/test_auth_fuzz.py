"""Whatever is sent in place of a key lets nobody in, and is no fault of the gateway."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.config import Settings
from gateway.errors import Exhausted, Unauthenticated
from gateway.models.access import CreateKey
from gateway.services.access import Access
from gateway.services.guardrails import Guardrails
from gateway.services.keys import KeyService
from gateway.services.live import Live
from gateway.stores.sqlite import SqliteStore
from tests.keyed import Keyed, ask_raw, keyed_gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Keyed]:
    async with keyed_gateway(tmp_path_factory.mktemp("fuzz") / "data", pool_size=0) as started:
        yield started


@pytest.fixture(scope="module")
def url(keyed: Keyed) -> str:
    return keyed.url


@given(value=st.binary(max_size=200), name=st.sampled_from([b"Authorization", b"authorization", b"X-Session-Token"]))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_in_a_header_lets_nobody_in_and_breaks_nothing(url: str, name: bytes, value: bytes) -> None:
    request = (
        b"GET /api/sessions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n" + name + b": " + value + b"\r\n\r\n"
    )

    status = asyncio.run(ask_raw(url, request))

    assert status == b"" or status.split()[1] in (b"400", b"401", b"429"), status


mutations = st.sampled_from(
    [
        lambda key, n: key[:n] + key[n + 1 :],
        lambda key, n: key[:n],
        lambda key, n: key[:n] + ("0" if key[n] != "0" else "1") + key[n + 1 :],
        lambda key, n: key[:n] + key[n].swapcase() + key[n + 1 :] if key[n].isalpha() else key + "0",
        lambda key, n: key[:n] + "\0" + key[n:],
        lambda key, n: key[:n] + "\uff10" + key[n + 1 :],
        lambda key, n: f"{key}{key[:n]} ",
        lambda key, n: key[n:] + key[:n] if n else f" {key}",
    ]
)


@given(
    tokens=st.lists(
        st.one_of(st.text(max_size=120), st.from_regex(r"sgw_[0-9a-f]{16}_[0-9a-f]{64}", fullmatch=True)), max_size=30
    ),
    changes=st.lists(st.tuples(mutations, st.integers(0, 84)), max_size=30),
    remote=st.one_of(st.ip_addresses().map(str), st.text(max_size=20)),
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nothing_but_the_key_itself_is_taken_for_it(
    tmp_path: Path, tokens: list[str], changes: list[Any], remote: str
) -> None:
    async def attack() -> None:
        store = SqliteStore(tmp_path / "keys.sqlite")
        async with store.opened():
            keys = KeyService(store, lambda work: work.close())
            access = Access(Settings(), store, Live.__new__(Live), keys, Guardrails(Settings(), print))
            key = (await keys.create(CreateKey(name="alice"), "root")).key
            guesses = [*tokens, *(change(key, number) for change, number in changes)]
            for guess in guesses:
                with pytest.raises((Unauthenticated, Exhausted)):
                    await access.enter(guess, remote)
            assert (await access.enter(key, "elsewhere")).name == "alice"

    asyncio.run(attack())
