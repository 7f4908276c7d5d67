"""What is cut off by kill -9 of the gateway, its kernels, or both, at any of its stages, has happened or has not."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.api import Api
from tests.gateways import inits_of, kernels_of, spares_of

ROOT = Path(__file__).parent.parent.parent
LOOK = "import os; x, open('f').read()[:3], os.path.exists('g')"
ONE, TWO = "('one', 'one', False)", "('two', 'two', True)"
MAKE_TWO = "x = 'two'; open('f', 'w').write('two'); open('g', 'w').write('g')"


class Staged:
    """One gateway after another on one data folder; each may be ordered to strike."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._folder = folder
        self._process = process
        self.api: Api

    async def start(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"serve\n")
        self._process.stdin.flush()
        async with asyncio.timeout(60):
            line = (await asyncio.to_thread(self._process.stdout.readline)).decode()
        assert line.startswith("Listening on "), (self._folder / "log").read_text()
        self.api = Api(line.removeprefix("Listening on ").strip())

    def order(self, attempt: str, stage: int, victim: str) -> None:
        (self._folder / "struck").unlink(missing_ok=True)
        new = self._folder / "order.new"
        new.write_text(f"{attempt} {stage} {victim}")
        new.rename(self._folder / "order")

    def struck(self) -> str | None:
        """The stage at which the ordered strike has come; there is no order any more."""
        (self._folder / "order").unlink()
        with contextlib.suppress(FileNotFoundError):
            return (self._folder / "struck").read_text()
        return None


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[Staged]:
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gateway.staged", str(folder)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=ROOT,
        )  # fmt: skip
    gateway = Staged(folder, process)
    try:
        await gateway.start()
        yield gateway
    finally:
        await gateway.api.__aexit__()
        process.send_signal(signal.SIGSTOP)  # no more gateways
        serving = psutil.Process(process.pid).children()
        process.kill()
        for one in serving:
            one.terminate()
        await asyncio.to_thread(psutil.wait_procs, serving)
        await asyncio.to_thread(process.communicate)


async def result_of(api: Api, session_id: str, code: str) -> str:
    """The run may meet a kernel whose end nobody has noticed yet."""
    answer = await api.run(session_id, code)
    if answer["status"] == "died":
        answer = await api.run(session_id, code)
    assert answer["status"] == "ok", (answer["error"], answer)
    return str(answer["result"])


async def is_whole(api: Api, copy: str) -> bool:
    """If it lacks something, it has to say that it has started afresh."""
    answer = await api.run(copy, LOOK)
    if answer["status"] == "died":
        answer = await api.run(copy, LOOK)
    whole: bool = answer["result"] == TWO
    assert whole or answer["fresh_start"], answer
    return whole


async def prepare(api: Api, action: str, attempt: int) -> str:
    """All is `two`, and saved; something that does not matter is not, if the action is to save it."""
    await api.run("a", MAKE_TWO)
    saved = ""
    if action == "wake":
        await api.post("/api/sessions/a/hibernate")
    else:
        saved = (await api.post("/api/sessions/a/snapshots", {}, 201))["id"]
    if action in ("snapshots", "hibernate"):
        await api.run("a", f"z = {attempt}")
    await api.get("/api/sessions/a/states")  # which waits for what is written behind the answers
    return saved


async def act(api: Api, action: str, body: Any) -> None:
    """Until it is over, with what goes on behind its answer."""
    await api.http.post(f"/api/sessions/a/{action.partition(' ')[0]}", json=body)
    async with asyncio.timeout(60):
        for session_id in ("a", body.get("new_id", "a")):
            while (await api.http.get(f"/api/sessions/{session_id}")).json().get("state") in ("INIT", "BUSY"):
                await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victims", [["gateway"], ["kernel", "both"]], ids=["gateway", "kernel or both"])
@pytest.mark.parametrize("action", ["snapshots", "duplicate", "duplicate saved", "hibernate", "wake", "restore"])
async def test_what_is_cut_off_at_any_of_its_stages_has_happened_or_not(
    action: str, victims: list[str], tmp_path: Path
) -> None:
    stages = []
    async with staged(tmp_path) as gateway:
        await gateway.api.run("a", "x = 'one'; open('f', 'w').write('one' * 1000)")
        first = await gateway.api.post("/api/sessions/a/snapshots", {}, 201)
        for stage in count(1):
            api = gateway.api
            saved = await prepare(api, action, stage)
            copy = f"copy-{stage}"
            bodies = {
                "duplicate": {"new_id": copy},
                "duplicate saved": {"new_id": copy, "snapshot_id": saved},
                "restore": {"snapshot_id": first["id"]},
            }
            body = bodies.get(action, {})

            victim = victims[stage % len(victims)]
            gateway.order(copy, stage, victim)
            with contextlib.suppress(httpx2.TransportError):
                await act(api, action, body)
            name = gateway.struck()
            if name is None:
                break
            stages.append(name)
            if victim != "kernel":
                await api.__aexit__()
                await gateway.start()
                api = gateway.api

            seen = await result_of(api, "a", LOOK)
            assert seen == TWO or (action == "restore" and seen == ONE), stages
            if (await api.http.get(f"/api/sessions/{copy}")).is_success:
                made_live = action == "duplicate" and victim != "gateway"  # and ended before anything of it was saved
                assert await is_whole(api, copy) or made_live, stages
                await api.call("DELETE", f"/api/sessions/{copy}?purge=true")
            assert not list((tmp_path / "data" / "unborn").glob("*")), stages
        for snapshot in (await api.get("/api/sessions/a/snapshots"))["snapshots"]:
            archive = await api.http.get(f"/api/sessions/a/snapshots/{snapshot['id']}/archive")
            assert archive.is_success, archive.text
    assert len(stages) >= 3


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victim", ["keeper", "source", "copy"])
async def test_a_live_duplicate_that_is_cut_off_at_any_of_its_steps_leaves_a_whole_copy_or_none(
    victim: str, tmp_path: Path
) -> None:
    stages = []
    async with staged(tmp_path) as gateway:
        api = gateway.api
        await api.run("a", "x = 1")
        for stage in count(1):
            await prepare(api, "duplicate", stage)
            copy = f"copy-{stage}"
            gateway.order(copy, stage, victim)
            await act(api, "duplicate", {"new_id": copy})
            name = gateway.struck()
            if name is None:
                break
            stages.append(name)

            assert await result_of(api, "a", LOOK) == TWO, stages
            if (await api.http.get(f"/api/sessions/{copy}")).is_success:
                assert await result_of(api, copy, LOOK) == TWO, stages
                await api.call("DELETE", f"/api/sessions/{copy}?purge=true")
            await nothing_is_left_but_one_kernel(tmp_path / "data")
    assert {"_offer", "_arrived", "_tell", "_heard", "_taken_in", "_duplicate"} <= set(stages)


async def nothing_is_left_but_one_kernel(data_dir: Path) -> None:
    """Soon: no kernel, first process or socket of a copy, and no folder of one that was to be."""
    async with asyncio.timeout(30):
        while True:
            kernels, inits = kernels_of(data_dir), inits_of(data_dir)
            spares = [one for one in spares_of(data_dir) if one.name() == "kernel"]
            runtimes = [Path(json.loads(file.read_text())["runtime"]) for file in (data_dir / "keepers").glob("*.json")]
            offered = [path for runtime in runtimes for path in runtime.glob("*/c*") if path.is_socket()]
            unborn = list((data_dir / "unborn").glob("*"))
            if len(kernels) == 1 and len(inits) <= 1 + len(spares) and not offered and not unborn:
                return
            await asyncio.sleep(0.1)
