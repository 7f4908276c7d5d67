"""`gateway key` and `gateway access`, and who is let in when a gateway begins beyond loopback."""

import asyncio
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from gateway.handlers.rights import table
from gateway.handlers.routes import ROUTES
from tests.api import Api
from tests.gateway.test_main import refused
from tests.gateways import gateway_process
from tests.keyed import bearer, command, first_key


async def keys(data_dir: Path, *words: str) -> Any:
    code, out, told = await command("key", *words, "--data-dir", str(data_dir))
    assert code == 0, told
    return json.loads(out) if "--json" in words else out.strip()


async def test_keys_are_made_and_kept_without_a_gateway(tmp_path: Path) -> None:
    data_dir = tmp_path / "new" / "data"

    made = await keys(data_dir, "create", "root", "--role", "admin", "--json")
    bot = await keys(data_dir, "create", "bot", "--role", "agent", "--expires-in-days", "1")

    assert stat.S_IMODE(os.stat(data_dir).st_mode) == 0o700
    listed = await keys(data_dir, "ls", "--json")
    assert [one["name"] for one in listed["keys"]] == ["bot", "root"]
    assert listed["keys"][0]["agent_id"] == "bot"
    assert bot.startswith("sgw_")
    assert made["key"] not in await keys(data_dir, "ls")
    new = await keys(data_dir, "rotate", made["id"], "--overlap", "5")
    assert new.split("_")[1] == made["key"].split("_")[1]
    await keys(data_dir, "revoke", made["id"])
    assert made["id"] not in await keys(data_dir, "ls")
    assert "revoked" in await keys(data_dir, "ls", "--revoked")


@pytest.mark.parametrize(
    "words", [("create", "a b"), ("create", "x", "--role", "root"), ("create", "x", "--agent-id", "y")]
)
async def test_what_makes_no_sense_is_told_and_makes_nothing(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, out, told = await command("key", *words, "--data-dir", str(tmp_path / "data"))

    assert (code, out) == (2, "")
    assert "Traceback" not in told
    assert not (tmp_path / "data").exists()


async def test_an_unknown_key_is_told(tmp_path: Path) -> None:
    for words in (("revoke", "key_none"), ("rotate", "key_none")):
        code, out, told = await command("key", *words, "--data-dir", str(tmp_path / "data"))

        assert (code, out, told) == (1, "", "gateway: No key 'key_none'.\n")


async def test_a_gateway_that_runs_hears_of_keys_from_the_command_line(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway, Api(gateway.url) as api:
        await api.get("/api/sessions", 200)

        made = await first_key(tmp_path / "data")

        await asked_until(api, 401)
        await api.get("/api/sessions", 200, headers=bearer(made["key"]))
        await keys(tmp_path / "data", "revoke", made["id"])
        await asked_until(api, 200)


async def asked_until(api: Api, status: int) -> None:
    async with asyncio.timeout(10):
        while (await api.http.get("/api/sessions")).status_code != status:
            await asyncio.sleep(0.1)


async def test_the_table_of_rights_is_printed() -> None:
    assert await command("access") == (0, table(ROUTES), "")


@pytest.mark.parametrize("options", [("--host", "0.0.0.0"), ("--behind-tls",)])  # noqa: S104
async def test_where_others_reach_it_a_gateway_without_keys_says_how_to_make_one(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    code, words = await refused(tmp_path, *options)

    assert code == 1
    assert "gateway key create admin --role admin --data-dir" in words
    assert str(tmp_path / "refused") in words


async def test_with_keys_it_asks_for_tls_in_front(tmp_path: Path) -> None:
    await first_key(tmp_path / "refused")

    code, words = await refused(tmp_path, "--host", "0.0.0.0")  # noqa: S104

    assert code == 1
    assert "--behind-tls" in words
    assert "--insecure" in words


async def test_behind_tls_keys_are_asked_for_and_the_proxy_is_believed(tmp_path: Path) -> None:
    made = await first_key(tmp_path / "data")
    seen = {"Host": "gateway.example", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
    proxied = gateway_process(tmp_path / "data", behind_tls="true", isolation="none")
    async with proxied as gateway, Api(gateway.url) as api:
        await api.get("/api/sessions", 401, headers=seen)
        document = await api.post("/api/sessions", {"session_id": "x"}, 201, headers=seen | bearer(made["key"]))
        wrong = bearer(f"sgw_{16 * '0'}_{64 * '0'}")
        elsewhere = seen | {"X-Forwarded-For": "203.0.113.8"}
        statuses = {(await api.http.get("/api/sessions", headers=elsewhere | wrong)).status_code for _ in range(30)}
        await api.get("/api/sessions", 429, headers=elsewhere | wrong)
        await api.get("/api/sessions", 401, headers=seen | wrong)  # guesses of the one are not those of the other
        await api.call("DELETE", f"/api/keys/{made['id']}", expect=200, headers=seen | bearer(made["key"]))
        await api.get("/api/sessions", 401, headers=seen)  # also when the last one is gone
    assert document["resource_url"] == "https://gateway.example/api/sessions/x"
    assert statuses == {401, 429}
