"""Front ends that stay while their gateway is killed and started again: each message once, and nobody else's."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.api import Api
from tests.front_ends import FrontEnd, Got, front_end, text_of
from tests.gateways import GatewayProcess, gateway_process

pytestmark = pytest.mark.slow


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    async with gateway_process(tmp_path / "data") as started:
        yield started


async def kernel_of(own: GatewayProcess, session_id: str) -> str:
    async with Api(own.url) as api:
        return str((await api.create(id=session_id))["jupyter"]["kernel_id"])


async def drained(client: FrontEnd) -> list[Got]:
    """All that still comes to a client whose gateway is gone."""
    with pytest.raises(EOFError):
        await client.until(lambda got: False)
    return client.seen


async def test_a_front_end_gets_what_it_missed_each_message_once(own: GatewayProcess) -> None:
    kernel_id = await kernel_of(own, "lasting")
    code = "import time\nfor n in range(400):\n    print(n, flush=True); time.sleep(0.01)\n'ended'"
    async with front_end(own.url, kernel_id, session="stays") as before:
        msg_id = await before.execute(code)
        await before.until(lambda got: got.text.startswith("50"))
        await own.kill()
        seen = await drained(before)
    await own.start()
    async with front_end(own.url, kernel_id, session="stays") as after:
        after.seen = seen
        reply, published = await after.outcome(msg_id)
        again, _ = await after.run("n")

    assert reply.content["status"] == "ok"
    assert text_of(published) == "".join(f"{n}\n" for n in range(400))
    assert [one.content["data"]["text/plain"] for one in published if one.type == "execute_result"] == ["'ended'"]
    assert [one.parent["msg_id"] for one in after.seen if one.type == "execute_reply"] == [
        msg_id, again.parent["msg_id"],
    ]  # fmt: skip
    ids = [one.header["msg_id"] for one in after.seen]
    assert len(ids) == len(set(ids))


async def test_a_cell_that_ended_while_no_gateway_was_there_is_answered(own: GatewayProcess) -> None:
    kernel_id = await kernel_of(own, "lasting")
    async with front_end(own.url, kernel_id, session="stays") as before:
        await before.run("import time")
        msg_id = await before.execute("print('on', flush=True); time.sleep(0.5); 1 / 0")
        await before.until(lambda got: got.text == "on\n")
        await own.kill()
        seen = await drained(before)
    await asyncio.sleep(1)
    await own.start()
    async with front_end(own.url, kernel_id, session="stays") as after:
        after.seen = seen
        reply, published = await after.outcome(msg_id)

    assert (reply.content["status"], reply.content["ename"]) == ("error", "ZeroDivisionError")
    assert [one.type for one in published if one.type in ("stream", "error")] == ["stream", "error"]


async def test_one_that_was_away_gets_the_end_and_the_reply_of_a_cell_that_is_on_record(own: GatewayProcess) -> None:
    kernel_id = await kernel_of(own, "lasting")
    async with front_end(own.url, kernel_id, session="away") as before:
        await before.run("import time")
        msg_id = await before.execute("time.sleep(0.3); print('late'); 6 * 7")
        before.vanish()
    async with Api(own.url) as api:
        await api.run("lasting", "1")
        await api.get("/api/sessions/lasting/history")
    await own.kill()
    await own.start()
    async with front_end(own.url, kernel_id, session="away") as after:
        reply, published = await after.outcome(msg_id)

    assert (reply.content["status"], text_of(published)) == ("ok", "late\n")
    assert len([one for one in after.seen if one.type == "execute_reply"]) == 1


async def test_what_was_asked_and_answered_before_is_not_told_again_nor_to_others(own: GatewayProcess) -> None:
    kernel_id = await kernel_of(own, "lasting")
    async with (
        front_end(own.url, kernel_id, session="one") as one,
        front_end(own.url, kernel_id, session="other") as other,
    ):
        await one.run("x = 1")
        waiting = await one.execute("print('ask', flush=True); input('name? ')")
        await one.has(lambda got: got.type == "input_request")
        await other.has(lambda got: got.text == "ask\n")
        await own.kill()
        before = {"one": len(await drained(one)), "other": len(await drained(other))}
    await own.start()
    async with (
        front_end(own.url, kernel_id, session="other") as other,
        front_end(own.url, kernel_id, session="one") as one,
        front_end(own.url, kernel_id, session="new") as new,
    ):
        asked = await one.until(lambda got: got.type == "input_request")
        await other.send("input_reply", {"value": "not me"}, "stdin")
        await one.send("input_reply", {"value": "ann"}, "stdin")
        reply, published = await one.outcome(waiting)
        for client in (other, new):
            await client.until(lambda got: got.type == "execute_result")

    assert before["one"] > before["other"]
    assert (asked.content["prompt"], asked.parent["msg_id"]) == ("name? ", waiting)
    assert reply.content["status"] == "ok"
    assert published[-2].content["data"]["text/plain"] == "'ann'"
    assert [got.type for got in one.seen if got.channel == "shell"] == ["execute_reply"]
    assert {got.channel for client in (other, new) for got in client.seen} == {"iopub"}
    assert not [got for client in (one, other, new) for got in client.seen if got.text == "ask\n"]


async def test_a_cell_that_is_sent_again_after_a_kill_is_answered_from_the_record(own: GatewayProcess) -> None:
    kernel_id = await kernel_of(own, "lasting")
    async with front_end(own.url, kernel_id, session=None) as before:
        await before.run("n = 0")
        await before.run("n += 1\nprint('ran')", header={"msg_id": "again"})
        async with Api(own.url) as api:
            await api.get("/api/sessions/lasting/history")
        await own.kill()
    await own.start()
    async with front_end(own.url, kernel_id, session=None) as after:
        reply, published = await after.run("n += 1\nprint('ran')", header={"msg_id": "again"})
        _, counted = await after.run("n")

    assert (reply.content["status"], text_of(published)) == ("ok", "ran\n")
    assert [one.content["data"]["text/plain"] for one in counted if one.type == "execute_result"] == ["1"]


async def test_cells_that_had_not_begun_are_told_as_aborted(own: GatewayProcess) -> None:
    kernel_id = await kernel_of(own, "lasting")
    async with front_end(own.url, kernel_id, session="stays") as before:
        running = await before.execute("print('on', flush=True); import time; time.sleep(3)")
        waiting = await before.execute("never = 1")
        await before.until(lambda got: got.text == "on\n")
        async with Api(own.url) as api:
            await api.get("/api/sessions/lasting/history")
        await own.kill()
        seen = await drained(before)
    await own.start()
    async with front_end(own.url, kernel_id, session="stays") as after:
        after.seen = seen
        replies = [(await after.outcome(msg_id))[0].content["status"] for msg_id in (waiting, running)]
        _, published = await after.run("'never' in globals()")

    assert replies == ["aborted", "ok"]
    assert published[-2].content["data"]["text/plain"] == "False"


async def test_each_message_comes_once_through_several_kills_in_a_burst(own: GatewayProcess) -> None:
    kernel_id = await kernel_of(own, "lasting")
    code = (
        "import time\nfor n in range(60):\n    time.sleep(0.1)\n    for m in range(50): print(50 * n + m, flush=True)"
    )
    seen: list[Got] = []
    msg_id = ""
    for mark in (300, 1500):
        async with front_end(own.url, kernel_id, session="stays") as client:
            client.seen = seen
            msg_id = msg_id or await client.execute(code)
            await client.until(lambda got, mark=mark: f"{mark}\n" in got.text)  # type: ignore[misc]
            await own.kill()
            await drained(client)
        await own.start()
    async with front_end(own.url, kernel_id, session="stays") as client:
        client.seen = seen
        reply, published = await client.outcome(msg_id)

    assert reply.content["status"] == "ok"
    assert text_of(published) == "".join(f"{n}\n" for n in range(3000))
