"""Guardrails of the settings, of sessions and of keys, on every way in and every way out."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.api import Api
from tests.front_ends import front_end
from tests.gateways import gateway_process
from tests.keyed import Keyed, command, keyed_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRINTS_ONE = "print('bob@exam', end='', flush=True); print('ple.com is here', flush=True)"
_OWN = """
from gateway.services.guardrail import Found, Guardrail

class NoDoom(Guardrail):
    redacts = True

    def refusal(self, code):
        return "nothing is to be doomed." if "doom" in code else None

    def find(self, text):
        at = text.find("gloom")
        return [] if at < 0 else [Found(at, at + 5, "mood", "joy")]
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keyed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Keyed]:
    """With a guardrail of one's own beside it, as a package would bring it."""
    folder = tmp_path_factory.mktemp("guardrails")
    own = folder / "own"
    (own / "no_doom-1.dist-info").mkdir(parents=True)
    (own / "no_doom.py").write_text(_OWN)
    (own / "no_doom-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: no-doom\nVersion: 1\n")
    points = "[session_gateway.guardrails]\nno-doom = no_doom:NoDoom\n"
    (own / "no_doom-1.dist-info" / "entry_points.txt").write_text(points)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(own), prepend=":")
        async with keyed_gateway(folder / "data", pool_size=2) as started:
            yield started


@pytest_asyncio.fixture(loop_scope="module")
async def root(keyed: Keyed) -> AsyncIterator[Api]:
    yield keyed.root
    await keyed.root.call("DELETE", "/api/sessions")


async def audited(root: Api, session_id: str, action: str) -> list[Any]:
    found: list[Any] = (await root.get(f"/api/audit?session_id={session_id}&action={action}"))["audit"]
    return found


async def test_personal_data_is_told_on_no_way_out(keyed: Keyed, root: Api) -> None:
    made = await root.create(id="s", guardrails=["no-pii-exposure"])
    code = f"{PRINTS_ONE}\nmail = 'bob@example.com'\nmail"
    async with (
        front_end(keyed.url, made["jupyter"]["kernel_id"], query=f"&token={keyed.root_key}") as page,
        root.stream("s", code) as stream,
    ):
        told = [event async for event in stream]
        heard = (await page.has(lambda got: got.type == "execute_result")).content["data"]["text/plain"]
        failed, published = await page.run("print('+49 30 1234567'); raise ValueError(mail)")
    answer = told[-1].data
    elsewhere = [
        await root.get("/api/sessions/s/history"), await root.get("/api/sessions/s/notebook"),
        await root.get("/api/sessions/s/variables/mail"), await root.get("/api/sessions/s/variables"),
        await root.get("/api/sessions/s/logs"),
    ]  # fmt: skip

    outputs = json.dumps([[event.data for event in told if event.kind != "start"], published[-1].content, elsewhere])
    without_code = outputs.replace(json.dumps("mail = 'bob@example.com'")[1:-1], "")
    assert "bob@example.com" not in without_code
    assert "30 1234567'" in outputs  # code is kept as it was
    assert (answer["stdout"], answer["result"], heard) == ("[email] is here\n", "'[email]'", "'[email]'")
    assert answer["guardrails"] == [{"guardrail": "no-pii-exposure", "counts": {"email": 2}}]
    assert failed.content["evalue"] == "[email]"
    assert elsewhere[0]["history"][0]["error"]["evalue"] == "[email]"
    assert elsewhere[2]["value"] == "[email]"
    (second, first) = await audited(root, "s", "run")
    assert first["details"]["guardrails"] == {"no-pii-exposure": {"email": 2}}
    assert second["details"]["guardrails"]["no-pii-exposure"]["phone"] == 2  # its traceback shows the code


async def test_copies_of_a_session_have_its_guardrails(root: Api) -> None:
    await root.create(id="s", guardrails=["no-pii-exposure", "no-network"])
    await root.run("s", "mail = 'bob@example.com'")
    forked = await root.post("/api/sessions/s/duplicate", {"new_id": "fork"}, 201)
    remixed = await root.post("/api/sessions/s/remix", {"name": "r", "session_id": "remix", "state": False}, 201)

    told = await root.run("fork", "print(mail)")

    assert forked["guardrails"] == remixed["guardrails"] == ["no-pii-exposure", "no-network"]
    assert told["stdout"] == "[email]\n"


async def test_code_that_is_refused_is_refused_whichever_way_it_comes(keyed: Keyed, root: Api) -> None:
    made = await root.create(id="s", guardrails=["no-doom"])
    doom = {"code": "x = 'doom'"}
    notebook = {"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [
        {"cell_type": "code", "id": "a", "metadata": {}, "source": doom["code"], "outputs": [], "execution_count": None}
    ]}  # fmt: skip
    refused = [
        await root.post("/api/sessions/s/run", doom, 403),
        await root.post("/api/sessions/s/run", {**doom, "background": True}, 403),
        await root.post("/api/sessions/s/stream", doom, 403),
    ]
    await root.call("PUT", "/api/sessions/s/code", doom)
    refused.append(await root.post("/api/sessions/s/run", {}, 403))
    ran = await root.post("/api/sessions/s/notebook", notebook)
    async with front_end(keyed.url, made["jupyter"]["kernel_id"], query=f"&token={keyed.root_key}") as page:
        cell, _ = await page.run(doom["code"])
        silent, _ = await page.run("1", user_expressions={"x": doom["code"]})
        beside, _ = await page.outcome(await page.send("execute_request", {**doom, "silent": False}, channel="control"))
        arguments = {"expression": "doom", "context": "repl"}
        debug = {"type": "request", "seq": 1, "command": "evaluate", "arguments": arguments}
        debugged, _ = await page.outcome(await page.send("debug_request", debug, channel="control"))
    fine = await root.run("s", "x = 1; print('gloom')")

    for one in refused:
        assert (one["code"], one["details"]) == ("guardrail", {"guardrail": "no-doom"})
        assert one["error"] == "Guardrail no-doom: nothing is to be doomed."
    assert (ran["success"], ran["reason"]) == (False, "Guardrail no-doom: nothing is to be doomed.")
    for reply in (cell, silent, beside, debugged):
        assert (reply.content["status"], reply.content["ename"]) == ("error", "GuardrailRefused")
    assert (fine["stdout"], fine["execution_count"]) == ("joy\n", 1)
    noted = await audited(root, "s", "guardrail")
    assert [(one["outcome"], one["details"]["guardrail"]) for one in noted] == [("denied", "no-doom")] * 9


async def test_a_setup_is_code_too(root: Api) -> None:
    refused = await root.post("/api/sessions", {"guardrails": ["no-doom"], "setup": {"commands": ["echo doom"]}}, 403)

    assert refused["details"] == {"guardrail": "no-doom"}


async def test_a_session_without_network_reaches_none_though_it_asks_for_it(root: Api) -> None:
    made = await root.create(id="s", guardrails=["no-network"], allowInternetAccess=True)
    asks = "import socket; s = socket.socket(); s.settimeout(5); s.connect(('127.0.0.1', {port}))"
    port = root.url.rsplit(":", 1)[1]

    told = await root.run("s", asks.format(port=port))

    assert made["guardrails"] == ["no-network"]
    assert told["error"]["ename"] in ("ConnectionRefusedError", "OSError")
    assert (await root.create(id="open", allowInternetAccess=True))["guardrails"] == []
    assert (await root.run("open", asks.format(port=port)))["status"] == "ok"


@pytest.mark.slow
async def test_where_the_network_can_not_be_kept_away_nothing_runs(tmp_path: Path) -> None:
    async with (
        gateway_process(tmp_path / "data", isolation="none", guardrails='["no-network"]') as gateway,
        Api(gateway.url) as api,
    ):
        refused = await api.post("/api/sessions/s/run", {"code": "1"}, 403)
        state = (await api.get("/api/sessions/s"))["state"]

    assert (refused["code"], refused["details"]) == ("guardrail", {"guardrail": "no-network"})
    assert state == "ERROR"


async def test_output_is_cut_at_the_least_of_the_limits_that_hold(keyed: Keyed, root: Api) -> None:
    alice = await keyed.key("alice", guardrails=["max-output:2000"])
    async with keyed.api(alice["key"]) as api:
        await api.create(id="s", guardrails=["max-output:5k"])
        own = await api.run("s", "print('x' * 100_000)")
    others = await root.run("s", "print('x' * 100_000)")

    assert [len(one["stdout"]) for one in (own, others)] == [2000, 2000]  # what made it had that limit
    assert own["truncated"]
    assert own["guardrails"] == [{"guardrail": "max-output", "counts": {"cut": 1}}]


async def test_so_many_runs_are_let_in_of_a_session_and_of_a_key(keyed: Keyed, root: Api) -> None:
    alice = await keyed.key("alice", guardrails=["rate-limiting:2/h"])
    bobs = await keyed.key("bob")
    async with keyed.api(alice["key"]) as api, keyed.api(bobs["key"]) as bob:
        await bob.create(id="s", guardrails=["rate-limiting:3/h"])
        await bob.call("PUT", "/api/sessions/s/grants", {"alice": "run"})
        for _ in range(2):
            await api.run("s", "1")
        mine = await api.http.post("/api/sessions/s/run", json={"code": "1"})
        await bob.run("s", "1")
        theirs = await bob.post("/api/sessions/s/run", {"code": "1"}, 429)

    assert (mine.status_code, mine.json()["details"]) == (429, {"guardrail": "rate-limiting"})
    assert "no more than 2 runs in 3600 s" in mine.json()["error"]
    assert 1700 <= int(mine.headers["Retry-After"]) <= 1800
    assert (theirs["code"], theirs["details"]) == ("rate_limited", {"guardrail": "rate-limiting"})


async def test_a_key_uses_only_sessions_with_what_it_has_on_outputs_and_those_that_it_makes_have_it(
    keyed: Keyed, root: Api
) -> None:
    alice = await keyed.key("alice")
    careful = await keyed.key("alice", guardrails=["no-pii-exposure", "max-output:5k"])
    watcher = await keyed.key("alice", role="viewer", guardrails=["no-pii-exposure"])
    async with (
        keyed.api(alice["key"]) as api, keyed.api(careful["key"]) as guarded, keyed.api(watcher["key"]) as watching,
    ):  # fmt: skip
        kernel = (await api.create(id="open"))["jupyter"]["kernel_id"]
        await api.create(id="covered", guardrails=["no-pii-exposure"])
        refused = [
            await guarded.post("/api/sessions/open/run", {"code": "1"}, 403),
            await guarded.get("/api/sessions/open/history", 403),
            await watching.get("/api/sessions/open/history", 403),
            await guarded.post("/api/sessions/open/duplicate", {}, 403),
            await guarded.call("DELETE", f"/jupyter/api/kernels/{kernel}", expect=403),
        ]
        fine = await guarded.run("covered", PRINTS_ONE)
        made = await guarded.run("made-by-a-run", PRINTS_ONE)
        once = await guarded.post("/api/execute", {"language": "python", "code": PRINTS_ONE})
        started = await guarded.post("/jupyter/api/kernels", {}, 201)
        listed = (await guarded.get("/api/sessions"))["sessions"]
        await watching.get("/api/sessions/covered/history")

    assert {(one["code"], one["details"]["guardrail"]) for one in refused[:4]} == {("guardrail", "no-pii-exposure")}
    assert "no-pii-exposure" in refused[4]["message"]
    assert [one["stdout"] for one in (fine, made, once)] == ["[email] is here\n"] * 3
    of_new = {one["id"]: one["guardrails"] for one in listed}
    assert of_new["made-by-a-run"] == ["no-pii-exposure", "max-output:5k"]
    of_jupyter = next(one for one in listed if one["jupyter"]["kernel_id"] == started["id"])
    assert of_jupyter["guardrails"] == ["no-pii-exposure", "max-output:5k"]
    assert (careful["guardrails"], alice["guardrails"]) == (["no-pii-exposure", "max-output:5k"], [])


@pytest.mark.slow
async def test_what_is_not_there_is_refused_with_what_there_is(keyed: Keyed, root: Api, tmp_path: Path) -> None:
    known = "max-output, no-doom, no-network, no-pii-exposure, rate-limiting"
    session = await root.post("/api/sessions", {"guardrails": ["no-fun"]}, 422)
    key = await root.post("/api/keys", {"name": "x", "guardrails": ["no-fun"]}, 422)
    wrong = [
        (await root.post("/api/sessions", {"guardrails": [name]}, 422))["details"]["guardrails"]
        for name in ("max-output:lots", "rate-limiting:0/m", "no-network:please", "no-pii-exposure:shoe-size")
    ]
    admin = await root.post("/api/keys", {"name": "x", "role": "admin", "guardrails": ["no-network"]}, 422)
    code, _, words = await command("serve", "--port", "0", "--data-dir", str(tmp_path), env=_with('["no-fun"]'))

    for one in (session, key):
        assert one["details"] == {"guardrails": f"no guardrail 'no-fun'; there are {known}."}
    assert wrong[0].startswith("'max-output:lots' must be a number of bytes")
    assert wrong[1:] == [
        "'rate-limiting:0/m' must be a number of runs a second, minute or hour, such as 30/m.",
        "'no-network:please' takes no parameter.",
        "'no-pii-exposure:shoe-size' does not know 'shoe-size'; there are email, phone, card, id.",
    ]
    assert "without guardrails" in admin["error"]
    assert code != 0
    assert "GATEWAY_GUARDRAILS: guardrails: no guardrail 'no-fun'" in words


def _with(guardrails: str) -> dict[str, str]:
    return {**os.environ, "GATEWAY_GUARDRAILS": guardrails}


@pytest.mark.slow
async def test_what_was_said_while_no_gateway_was_there_passes_too(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data", guardrails='["no-pii-exposure"]') as gateway:
        async with Api(gateway.url) as api:
            made = await api.create(id="s")
            slow = "import time\nprint('ann@example.com')\ntime.sleep(3)\nprint('bob@exam', end='', flush=True)\n"
            run = await api.post("/api/sessions/s/run", {"code": f"{slow}print('ple.com')", "background": True}, 202)
            async with front_end(gateway.url, made["jupyter"]["kernel_id"], session="page") as page:
                await page.has(lambda got: "[email]" in got.text)
        await gateway.kill()
        await gateway.start()
        async with Api(gateway.url) as api:
            async with front_end(gateway.url, made["jupyter"]["kernel_id"], session="page") as page:
                later = await page.has(lambda got: got.type == "stream")
            told = await api.get(f"/api/sessions/s/executions/{run['execution_id']}")
            while told["finished_at"] is None:
                told = await api.get(f"/api/sessions/s/executions/{run['execution_id']}")

    assert told["stdout"] == "[email]\n[email]\n"
    assert told["guardrails"] == [{"guardrail": "no-pii-exposure", "counts": {"email": 2}}]
    assert "example" not in later.text
