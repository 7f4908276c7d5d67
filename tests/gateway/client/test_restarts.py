"""A gateway that is killed and started again under its clients: they get their results, and the code ran once."""

import asyncio
import socket
from pathlib import Path

import pytest

from gateway.client import AsyncGateway, Gateway, Patience, Run, Unreachable
from tests.gateways import gateway_process

COUNTED = """
import time, pathlib
with open("count", "a") as file: file.write("x")
print("before")
while not pathlib.Path("go").exists(): time.sleep(0.02)
print("after")
6 * 7
"""


@pytest.mark.slow
async def test_who_waits_for_a_run_gets_its_result_although_the_gateway_is_killed_and_started_again(
    tmp_path: Path,
) -> None:
    async with gateway_process(tmp_path / "data") as gateway, AsyncGateway(gateway.url) as client:
        blocking = Gateway(gateway.url)
        for name in ("blocking", "awaited", "streamed", "background"):
            await client.create(name)
        told: list[str] = []

        async def stream() -> Run:
            events = client.session("streamed").stream(COUNTED)
            async for event in events:
                told.append(event.text)  # noqa: PERF401 - as they come
            return await events.result()

        begun = await client.session("background").start(COUNTED)
        running = [
            asyncio.create_task(asyncio.to_thread(blocking.session("blocking").run, COUNTED)),
            asyncio.create_task(client.session("awaited").run(COUNTED)),
            asyncio.create_task(stream()),
            asyncio.create_task(begun.wait()),
        ]
        names = ("blocking", "awaited", "streamed", "background")
        async with asyncio.timeout(30):
            while not all([await has_begun(client, name) for name in names]) or "before\n" not in told:
                await asyncio.sleep(0.05)

        await gateway.kill()
        await gateway.start()

        for name in names:
            await client.session(name).files.write_text("go", "")
        async with asyncio.timeout(60):
            runs = await asyncio.gather(*running)
        assert [(run.status, run.stdout, run.result) for run in runs] == [("ok", "before\nafter\n", "42")] * 4
        assert [await client.session(name).files.read_text("count") for name in names] == ["x"] * 4
        assert "".join(told) == "before\nafter\n"
        blocking.close()


async def has_begun(client: AsyncGateway, name: str) -> bool:
    return "count" in [file.path for file in await client.session(name).files.list()]


async def test_a_gateway_that_does_not_come_back_is_told_of_once_patience_is_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}"

    async with AsyncGateway(url, patience=Patience(lasts_s=0.5)) as client:
        with pytest.raises(Unreachable, match=rf"No gateway answers at {url} \(\d+ attempts\)"):
            await client.create("x")
    with Gateway(url, patience=Patience(lasts_s=0)) as blocking, pytest.raises(Unreachable, match=r"answers at [^(]*$"):
        blocking.create("x")
