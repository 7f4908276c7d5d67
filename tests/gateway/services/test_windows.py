"""Windows: what tokens are worth, who decides when one is over, and which clock may be wrong."""

import asyncio
import base64
import json
import stat
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.config import Settings
from gateway.errors import Invalid, SessionNotFound
from gateway.models.access import LOCAL, Level
from gateway.models.agents import Window
from gateway.models.base import now as real_now
from gateway.models.sessions import Session, SessionAgent
from gateway.services import windows as windows_module
from gateway.services.access import Access
from gateway.services.agents import AgentService
from gateway.services.guardrails import Guardrails
from gateway.services.keys import KeyService
from gateway.services.live import Live
from gateway.services.window_keys import BadKeyFile, WindowInvalid, WindowKeys
from gateway.services.windows import OtherAgent, WindowExpired, WindowMissing, WindowService
from gateway.stores.sqlite import SqliteStore


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(tmp_path / "gateway.db")
    async with made.opened():
        yield made


@pytest.fixture
def keys(tmp_path: Path) -> WindowKeys:
    made = WindowKeys(tmp_path / "window-keys.json")
    made.prepare()
    return made


@pytest.fixture
def windows(store: SqliteStore, keys: WindowKeys, tmp_path: Path) -> WindowService:
    return WindowService(Settings(data_dir=tmp_path), store, AgentService(store), keys)


class Clock:
    """The time of day, which people and daemons set."""

    def __init__(self) -> None:
        self.at = datetime(2026, 1, 20, 10, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at

    def jump(self, hours: float) -> None:
        self.at += timedelta(hours=hours)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(windows_module, "now", made)
    return made


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    header, payload, signature = token.split(".")
    return json.loads(decoded(header)), json.loads(decoded(payload)), signature


def decoded(part: str) -> bytes:
    return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))


def encoded(part: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")


async def test_a_token_names_agent_window_and_expiry_and_opens_its_window(windows: WindowService) -> None:
    window, token = await windows.activate("bot", 2, "local")

    header, claims, _ = parts(token)
    assert header["alg"] == "HS256"
    assert (claims["sub"], claims["win"], claims["exp"]) == ("bot", window.id, int(window.expires_at.timestamp()))
    assert await windows.opened(token) == await windows.opened_for("bot", token) == window
    with pytest.raises(OtherAgent):
        await windows.opened_for("other", token)
    with pytest.raises(WindowMissing):
        await windows.opened(None)


@pytest.mark.filterwarnings("ignore::jwt.warnings.InsecureKeyLengthWarning")
async def test_a_token_that_is_forged_in_any_way_is_refused(
    windows: WindowService, keys: WindowKeys, tmp_path: Path
) -> None:
    _, token = await windows.activate("bot", None, "local")
    foreign = WindowKeys(tmp_path / "other" / "keys.json")
    foreign.prepare()
    header, claims, signature = parts(token)
    key_id, secret = header["kid"], keys._keys()[0].secret
    stranger = foreign.sign((await windows.activate("bot2", None, "local"))[0])

    forged = [
        f"{encoded(header | {'alg': 'none'})}.{encoded(claims)}.",
        f"{encoded({'alg': 'none', 'typ': 'JWT'})}.{encoded(claims)}.{signature}",
        f"{encoded(header | {'alg': 'NONE'})}.{encoded(claims)}.",
        f"{encoded(header)}.{encoded(claims | {'exp': claims['exp'] + 1})}.{signature}",
        f"{encoded(header)}.{encoded(claims | {'sub': 'admin'})}.{signature}",
        stranger,
        f"{encoded(header)}.{'.'.join(stranger.split('.')[1:])}",
        jwt.encode(claims, secret, "HS512", headers={"kid": key_id}),
        jwt.encode(claims, b"\0" * 32, "HS256", headers={"kid": key_id}),
        jwt.encode(claims, secret, "HS256"),
        jwt.encode(claims, secret, "HS256", headers={"kid": "../../etc/passwd"}),
        jwt.encode(claims | {"iss": "elsewhere"}, secret, "HS256", headers={"kid": key_id}),
        jwt.encode({name: claims[name] for name in ("iss", "sub", "exp")}, secret, "HS256", headers={"kid": key_id}),
        jwt.encode(claims | {"win": ["x"]}, secret, "HS256", headers={"kid": key_id}),
        token + "x" * 5000,
        *(token[:length] for length in range(1, len(token), 7)),
        *(f"{token[:at]}{'A' if token[at] != 'A' else 'B'}{token[at + 1 :]}" for at in range(0, len(token) - 1, 11)),
    ]

    for one in forged:
        with pytest.raises(WindowInvalid) as refused:
            await windows.opened(one)
        assert refused.value.code == "window_invalid"
        assert len(one) < 20 or one not in refused.value.sentence
    await windows.opened(token)


@given(
    st.one_of(
        st.text(min_size=1), st.builds(".".join, st.lists(st.text("abcXYZ019-_=", max_size=9), min_size=2, max_size=4))
    )
)
@example("a.b.c")
@example("\ud800.é.\0")
def test_no_text_at_all_is_a_token(ring: WindowKeys, text: str) -> None:
    with pytest.raises(WindowInvalid):
        ring.window_id(text)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> WindowKeys:
    made = WindowKeys(tmp_path_factory.mktemp("ring") / "window-keys.json")
    made.prepare()
    return made


async def test_the_stores_expiry_decides_so_the_old_token_lives_on_after_an_extension(
    windows: WindowService, clock: Clock
) -> None:
    window, old = await windows.activate("bot", 1, "local")

    extended, new = await windows.extend(window, 6)
    clock.jump(6.5)  # past what the old token says itself

    assert extended.expires_at == window.expires_at + timedelta(hours=6)
    assert parts(old)[1]["exp"] < clock.at.timestamp() < parts(new)[1]["exp"]
    assert await windows.opened(old) == await windows.opened(new) == extended
    clock.jump(1)
    for token in (old, new):
        with pytest.raises(WindowExpired):
            await windows.opened(token)


async def test_a_window_that_was_refused_once_stays_over_when_the_clock_is_set_back(
    windows: WindowService, clock: Clock
) -> None:
    window, token = await windows.activate("bot", 1, "local")
    clock.jump(2)
    with pytest.raises(WindowExpired):
        await windows.opened(token)

    clock.jump(-2)

    with pytest.raises(WindowExpired):
        await windows.opened(token)
    with pytest.raises(WindowExpired):
        await windows.extend(window, 1)


async def test_a_clock_that_is_set_back_makes_no_token_one_of_the_future(windows: WindowService, clock: Clock) -> None:
    _, token = await windows.activate("bot", 1, "local")

    clock.jump(-24)

    assert (await windows.opened(token)).agent_id == "bot"


async def test_a_window_that_the_sweep_ended_stays_over_when_the_clock_is_set_back(
    windows: WindowService, clock: Clock
) -> None:
    _, token = await windows.activate("bot", 1, "local")
    clock.jump(1)
    await windows.end_expired()

    clock.jump(-1)

    with pytest.raises(WindowExpired):
        await windows.opened(token)


async def test_a_superseded_token_is_refused_as_expired(windows: WindowService) -> None:
    _, old = await windows.activate("bot", None, "local")

    _, new = await windows.activate("bot", None, "local")

    with pytest.raises(WindowExpired) as refused:
        await windows.opened(old)
    assert refused.value.code == "window_expired"
    await windows.opened(new)


async def test_a_window_lasts_no_longer_than_the_settings_let_it(
    store: SqliteStore, keys: WindowKeys, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, window_hours=2, window_longest_hours=5)
    windows = WindowService(settings, store, AgentService(store), keys)
    window, _ = await windows.activate("bot", None, "local")
    assert window.expires_at - window.started_at == timedelta(hours=2)

    window, _ = await windows.extend(window, None)
    with pytest.raises(Invalid, match=r"extend_hours: .* 5 hours in all; this one can still be extended by 1\."):
        await windows.extend(window, 1.5)
    with pytest.raises(Invalid, match="duration_hours"):
        await windows.activate("other", 6, "local")

    window, _ = await windows.extend(window, 1)
    assert window.expires_at - window.started_at == timedelta(hours=5)


async def test_extensions_at_once_all_count(windows: WindowService) -> None:
    window, _ = await windows.activate("bot", 6, "local")

    await asyncio.gather(*(windows.extend(window, 6) for _ in range(8)))

    found = await windows._store.get_window(window.id)
    assert found.expires_at - found.started_at == timedelta(hours=54)


async def test_an_agent_may_use_sessions_that_it_is_assigned_to_or_made_and_no_others(windows: WindowService) -> None:
    window, _ = await windows.activate("bot", None, "local")
    inside = replace(LOCAL, agent_id=window.agent_id, window_id=window.id)
    store = windows._store
    keys, guardrails = KeyService(store, lambda work: work.close()), Guardrails(Settings(), print)
    access = Access(Settings(), store, Live.__new__(Live), keys, guardrails)
    at = real_now()

    def session(created_by: str, *agent_ids: str) -> Session:
        agents = [SessionAgent(id=agent_id) for agent_id in agent_ids]
        return Session(
            uid=uuid.uuid4().hex, id="s", name="s", created_by=created_by, agents=agents, created_at=at, updated_at=at
        )

    def check(one: Session) -> None:
        access.require(inside, Level.RUN, one, SessionNotFound(one.id))

    check(session("local", "other", "bot"))
    check(session("agent:bot"))
    for foreign in (session("local"), session("local", "Bot", "bot2"), session("bot"), session("agent:bot2")):
        with pytest.raises(SessionNotFound):
            check(foreign)


def a_window(number: int = 1) -> Window:
    at = real_now()
    return Window(
        id=f"win_{number}", agent_id="bot", agent_uid="0", opened_by="local", started_at=at,
        expires_at=at + timedelta(hours=1),
    )  # fmt: skip


def test_the_key_ring_is_for_its_owner_alone_and_made_once(tmp_path: Path) -> None:
    path = tmp_path / "window-keys.json"
    first, second = WindowKeys(path), WindowKeys(path)

    first.prepare()
    second.prepare()

    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert second.window_id(first.sign(a_window())) == "win_1"
    path.chmod(0o640)
    with pytest.raises(BadKeyFile, match="chmod 600"):
        WindowKeys(path).prepare()


def test_tokens_live_on_while_their_key_is_in_the_ring(keys: WindowKeys, tmp_path: Path) -> None:
    running = WindowKeys(tmp_path / "window-keys.json")  # as of a gateway that serves meanwhile
    tokens = []
    for number in range(4):
        tokens.append(running.sign(a_window(number)))
        assert keys.rotate(kept=3) == parts(running.sign(a_window()))[0]["kid"]

    assert [running.window_id(token) for token in tokens[2:]] == ["win_2", "win_3"]
    for token in tokens[:2]:
        with pytest.raises(WindowInvalid, match="rotated out"):
            running.window_id(token)


@pytest.mark.parametrize("broken", ["", "{}", '{"keys": []}', '{"keys": [{"id": "a", "secret": "00", "made_at": ""}]}'])
def test_a_broken_key_ring_is_never_taken_for_a_new_one(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "window-keys.json"
    path.write_text(broken)
    path.chmod(0o600)

    with pytest.raises(BadKeyFile):
        WindowKeys(path).prepare()
    assert path.read_text() == broken


async def test_rotations_at_once_lose_no_key(keys: WindowKeys, tmp_path: Path) -> None:
    rings = [WindowKeys(tmp_path / "window-keys.json") for _ in range(8)]

    made = await asyncio.gather(*(asyncio.to_thread(ring.rotate, 20) for ring in rings))

    kept = {one["id"] for one in json.loads((tmp_path / "window-keys.json").read_text())["keys"]}
    assert set(made) < kept
    assert len(kept) == 9
