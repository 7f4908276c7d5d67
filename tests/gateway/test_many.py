"""Five hundred sessions that come, run and go leave this machine as it was."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from kernels import cgroups
from tests.api import Api
from tests.gateways import GatewayProcess, below_keepers, gateway_process, keepers_of

SESSIONS = 500
AT_ONCE = 20
SPARES = 4


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[GatewayProcess]:
    async with gateway_process(tmp_path / "data", pool_size=SPARES, start_concurrency=AT_ONCE) as started:
        yield started


def left(gateway: GatewayProcess) -> dict[str, int]:
    """How much there is of all that a session has."""
    (keeper,) = keepers_of(gateway.data_dir)
    announced = json.loads(next((gateway.data_dir / "keepers").glob("*.json")).read_text())
    hierarchy, _ = cgroups.found()
    owner = f"{keeper.pid}-"
    groups = [] if hierarchy is None else [
        group for folder in set(hierarchy.folders.values())
        for one in (folder / cgroups.PARENT).glob(f"{owner}*") for group in one.iterdir() if group.is_dir()
    ]  # fmt: skip
    folders = ("sessions", "logs", "journals", "kernels", "exchange", "snapshots", "unborn")
    return {
        "processes": len(below_keepers(gateway.data_dir)),
        "groups": len(groups),
        "sockets and runtime folders": len(list(Path(announced["runtime"]).iterdir())),
        "mounts": len(Path(f"/proc/{keeper.pid}/mounts").read_text().splitlines()),
        "descriptors of the keeper": keeper.num_fds(),
        "descriptors of the gateway": psutil.Process(gateway.pid).num_fds(),
        "places of temporary files": len([name for name in os.listdir("/tmp") if name.startswith("session-gateway-")]),  # noqa: S108
        **{name: len(list((gateway.data_dir / name).glob("*"))) for name in folders},
    }


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_500_sessions_are_created_run_and_deleted_and_nothing_of_them_is_left(gateway: GatewayProcess) -> None:
    async with Api(gateway.url) as api:

        async def one(number: int) -> None:
            session_id = f"one-of-many-{number}"
            await api.run(session_id, f"import subprocess; mine = {number}; open('mine', 'w').write('{number}')")
            answer = await api.run(session_id, "p = subprocess.Popen(['sleep', '600']); mine, open('mine').read()")
            assert answer["result"] == f"({number}, '{number}')"
            await api.call("DELETE", f"/api/sessions/{session_id}?purge=true")

        async def some(numbers: range) -> None:
            for number in numbers:
                await one(number)

        await asyncio.gather(*(some(range(n, 2 * AT_ONCE, AT_ONCE)) for n in range(AT_ONCE)))
        await settled(gateway, {})
        before = left(gateway)
        await asyncio.gather(*(some(range(n, SESSIONS, AT_ONCE)) for n in range(AT_ONCE)))

        after = await settled(gateway, before)
        assert {name: (before[name], count) for name, count in after.items() if count > before[name]} == {}
        assert (await api.get("/api/sessions"))["sessions"] == []


async def settled(gateway: GatewayProcess, before: dict[str, int]) -> dict[str, int]:
    """What is left when nothing changes any more, or as little as before; what was deleted may take a moment to go."""
    seen: list[dict[str, int]] = []
    async with asyncio.timeout(60):
        while True:
            now = left(gateway)
            if before and all(count <= before[name] for name, count in now.items()):
                return now
            if seen[-20:].count(now) == 20:
                return now
            seen.append(now)
            await asyncio.sleep(0.25)
