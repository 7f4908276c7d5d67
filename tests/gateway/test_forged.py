"""A session may say anything on its kernel's sockets: gateway and keeper stay small, and neighbours are served.

The figure is that of the README: what gateway and keeper hold of all that is on its way to them.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psutil
import pytest
import pytest_asyncio

from tests.api import Api
from tests.gateways import GatewayProcess, gateway_process, keepers_of

MEBI = 2**20
BOUND = 100 * MEBI

ATTACKER = """
import json, threading, zmq
from jupyter_client.session import Session
kernel = get_ipython().kernel
iopub, shell = kernel.iopub_thread.socket, kernel._shell_socket
gateway = kernel.get_parent()['header']['session'].encode()
raw = Session(key=kernel.session.key, signature_scheme=kernel.session.signature_scheme)
def signed(kind, content, parent=None, metadata=b'{}'):
    header = raw.pack(raw.msg_header(kind))
    parts = [header, raw.pack(parent or kernel.get_parent()['header']), metadata, content]
    return [b'<IDS|MSG>', raw.sign(parts), *parts]
def publish(*message):
    iopub.send_multipart(message, copy=False)
big = bytes(300_000_000)
piece = bytes(100_000)
"""

ATTACKS = {
    "huge frames": "for _ in range(3): publish(big)",
    "a message of many parts": "publish(*[piece] * 5000)",
    "a message of a million empty parts": "publish(*[b''] * 1_000_000)",
    "large frames in small messages": "for _ in range(30): publish(bytes(30_000_000))",
    "a huge reply": "shell.send_multipart([gateway, big], copy=False)",
    "huge metadata": "publish(*signed('stream', b'{}', metadata=b'{\"a\":\"' + b'x' * 30_000_000 + b'\"}'))",
    "millions of lists": "publish(*signed('display_data', b'{\"data\":{\"a/b\":[' + b'[],' * 3_000_000 + b'[]]}}'))",
    "lists in lists": "publish(*signed('display_data', b'{\"data\":{\"a/b\":' + b'[' * 5_000_000))",
    "wide characters": "publish(*signed('stream', json.dumps({'name': 'stdout', 'text': 'x' * 30_000_000"
    " + chr(128512)}, ensure_ascii=False).encode()))",
    "nothing that can be read": "for n in range(200_000): publish(b'%d' % n)",
    "signed by nobody": "for n in range(50_000): publish(b'<IDS|MSG>', b'0' * 64, b'{}', b'{}', b'{}', b'{}')",
    "streams without end": "for n in range(100_000): publish(*signed('stream',"
    " b'{\"name\":\"stdout\",\"text\":\"xxxx\"}'))",
    "an end that is not": "publish(*signed('status', b'{\"execution_state\":\"idle\"}'))\nimport time; time.sleep(1)",
    "the end of all others": "for n in range(20_000): publish(*signed('status', b'{\"execution_state\":\"idle\"}',"
    " {'msg_id': str(n)}))",
}  # fmt: skip


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def attacked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """A gateway of its own, that has done what it does once already."""
    async with (
        gateway_process(tmp_path_factory.mktemp("forged") / "data", pool_size=1) as started,
        Api(started.url) as api,
    ):
        await api.run("neighbour", "kept = 1; print('x' * 9_000_000)")
        yield started


class Growth:
    """By how much processes have grown at most since this was made."""

    def __init__(self, *pids: int) -> None:
        self._processes = [psutil.Process(pid) for pid in pids]
        self._before = [one.memory_info().rss for one in self._processes]
        self.peaks = [0] * len(pids)

    def look(self) -> None:
        now = [one.memory_info().rss for one in self._processes]
        grown = [size - before for size, before in zip(now, self._before, strict=True)]
        self.peaks = [max(both) for both in zip(grown, self.peaks, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("attack", ATTACKS)
async def test_what_a_session_forges_is_bounded_and_neighbours_are_served(
    attacked: GatewayProcess, session_id: str, attack: str
) -> None:
    async with Api(attacked.url) as api:
        await api.run(session_id, ATTACKER)
        (keeper,) = keepers_of(attacked.data_dir)
        growth = Growth(attacked.pid, keeper.pid)

        burst = asyncio.create_task(api.run(session_id, ATTACKS[attack], timeout=30))
        async with asyncio.timeout(60):
            while not burst.done():
                async with asyncio.timeout(10):
                    assert (await api.run("neighbour", "kept"))["result"] == "1"
                growth.look()
                await asyncio.wait({burst}, timeout=0.02)
        answers: list[Any] = [await api.run(session_id, "1 + 1") for _ in range(2)]
        growth.look()

        assert max(growth.peaks) < BOUND, [peak // MEBI for peak in growth.peaks]
        assert answers[-1]["result"] == "2", (burst.result()["status"], answers)
        assert len(attacked.log()) < MEBI
        await api.call("DELETE", f"/api/sessions/{session_id}?purge=true")


async def test_a_hundred_thousand_prints_and_one_of_fifty_megabytes_lose_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Neither for the gateway nor for the journal: what was printed while there was no gateway is there."""
    folder = tmp_path_factory.mktemp("honest")
    async with gateway_process(
        folder / "data", pool_size=1, output_limit_bytes=120 * MEBI, journal_limit_bytes=256 * MEBI
    ) as gateway, Api(gateway.url) as api:  # fmt: skip
        many = await api.run("honest", "for n in range(100_000): print(n)")
        large = await api.run("honest", "print('x' * 50_000_000)")
        shown = await api.run("honest", "from IPython.display import HTML, display; display(HTML('<p>' * 15_000_000))")

        assert many["stdout"] == "".join(f"{n}\n" for n in range(100_000))
        assert large["stdout"] == "x" * 50_000_000 + "\n"
        assert len(shown["outputs"][0]["data"]["text/html"]) == 45_000_000
        assert not many["truncated"] | large["truncated"] | shown["truncated"]
