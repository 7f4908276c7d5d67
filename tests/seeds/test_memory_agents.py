"""The program of the memory-agent page, run unchanged but for `base`."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

from tests.agents import ActiveAgent
from tests.api import Api
from tests.gateways import gateway_process

PROGRAM = Path(__file__).parent / "memory_agent.py.txt"
ONE_ROUND = """
import time
rounds = iter(range({rounds}))
def sleep(seconds):
    assert seconds == 300
    if next(rounds, None) is None:
        raise SystemExit("the clock cut the loop short")
time.sleep = sleep
"""


async def test_the_program_of_the_page_works_as_it_stands_and_extends_its_window(tmp_path: Path) -> None:
    program = PROGRAM.read_text()
    assert program.count("http://localhost:8000") == 1
    # A window of half an hour: the program finds it to be short at its first look, and not at the second.
    async with gateway_process(tmp_path / "data", window_hours=0.5) as gateway, Api(gateway.url) as api:
        script = ONE_ROUND.format(rounds=2) + program.replace("http://localhost:8000", gateway.url)

        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
        )

        assert done.stderr.strip() == "the clock cut the loop short"
        assert done.stdout == "Session extended\n"
        agent = await api.get("/api/agents/continuous-bot")
        assert agent["status"] == "active"
        again = await ActiveAgent.of(api, "continuous-bot")
        listed = await again.call("GET", "memories")
        assert [(one["content"], one["type"]) for one in listed["memories"]] == [("...", "fact")] * 3


def test_the_program_is_the_one_of_the_page() -> None:
    calls = re.findall(r'f"\{base\}(/[^"]*)"', PROGRAM.read_text())

    assert calls == [
        "/agents/{agent_id}/activate", "/agents/{agent_id}/remember", "/session/current", "/session/extend",
    ]  # fmt: skip
