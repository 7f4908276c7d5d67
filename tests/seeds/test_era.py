"""Every command of the two ERA pages, run as the pages print them, by bash and curl, against a gateway of its own."""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.gateways import gateway_process

pytestmark = pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in ("bash", "curl", "jq")), reason="needs bash, curl and jq"
)

COMMENTED = "malformed"  # the page prints a body with a comment in it, which is not JSON

# The page has deleted this session two blocks before it duplicates it; each block is meant to stand for itself.
FIRST = {("era-session-management", 8): "curl -X POST $BASE/api/sessions/data-processor/undelete\n"}

# For each block of a page, what each of its calls must show: what the code printed, or the code of a refusal.
SESSION_MANAGEMENT: dict[int, list[Any]] = {
    0: [{"language": "python", "persistent": True}],
    1: [{"id": "my-data-processor"}],
    2: [{"id": "user-123-workspace", "metadata": {"version": "1.0", "environment": "production"}}],
    3: [{"id": "data-processor"}],
    4: ["Data initialized\n", "Data length: 1\n", "Data: [{'value': 42}, {'value': 99}]\n"],
    5: [{"id": "data-processor", "run_count": 3}],
    6: [{"success": True}],
    7: [{"count": 3}],
    8: [{"id": "data-processor"}, {"id": "data-processor-backup", "parent_id": "data-processor", "data": {
        "cloned_from": "data-processor", "purpose": "backup",
    }}],
    9: ["password123\n", COMMENTED],
    10: [],
    11: [{"id": "session-123", "data": {
        "user_id": "123", "purpose": "data-analysis", "created_at": "2024-10-23T10:00:00Z",
        "tags": ["production", "analytics"],
    }}],
    12: [{"success": True}] * 7,
    13: [{"id": "my-session"}],
    14: ["Template initialized\n", {"id": "user-123-workspace", "parent_id": "template-python"}],
    15: ["Collected 5 items\n", "Processed: [2, 4, 6, 8, 10]\n", "Total: 30\n"],
}  # fmt: skip

PERSISTENCE: dict[int, list[Any]] = {
    0: ["", "Counter: 1, Score: 10\n"],
    1: ["", "Config: {\"setting\": \"value\"}\n"],
    2: ["", None],
    3: ["session_exists", {"id": "my-session"}],
    4: ["", COMMENTED],
    5: ["", COMMENTED],
    6: ["", "API URL: https://api.example.com\n"],
    7: ["", "Log entries: 1\n", "Log entries: 2\n"],
    8: ["State: initialized\n", "Data collected. State: data_collected\n", "Average: 3.0. State: processed\n",
        "Workflow completed in 2 steps\n"],
    9: ["Computed and cached result\nResult: 499999500000\n", "Cached result: 499999500000\n"],
    10: ["Computed: 42\n",
         {"data": {"last_result": 42, "computation_count": 1, "updated_at": "2024-10-23T10:30:00Z"}}],
    11: ["Session initialized\n"],
    12: ["Initialized new data\n"],
    13: ["error"],  # the page's own mistake: the block before has stored a list, which has no `get`
}  # fmt: skip


@pytest.mark.parametrize(
    ("page", "expected"), [("era-session-management", SESSION_MANAGEMENT), ("era-persistence", PERSISTENCE)]
)
async def test_every_call_of_a_reference_page_works_as_it_shows(
    page: str, expected: dict[int, list[Any]], tmp_path: Path
) -> None:
    blocks = (Path(__file__).parent / f"{page}.sh").read_text().split("\n#### ")[1:]
    assert len(blocks) == len(expected)

    async with gateway_process(tmp_path / "data") as gateway:
        answers = [
            await asyncio.to_thread(run_block, FIRST.get((page, number), "") + block.partition("\n")[2], gateway.url)
            for number, block in enumerate(blocks)
        ]

    for number, found in enumerate(answers):
        assert len(found) == len(expected[number]), f"block {number}: {found}"
        for answer, wanted in zip(found, expected[number], strict=True):
            check(answer, wanted, f"block {number}")


def run_block(script: str, base: str) -> list[dict[str, Any]]:
    """The JSON answers of one block of commands, in order."""
    env = {"PATH": os.environ["PATH"], "BASE": base, "SESSION_ID": "data-processor", "USER_ID": "7", "no_proxy": "*"}
    shell = ["bash", "-c", f'curl() {{ command curl -sS "$@"; }}\n{script}']
    done = subprocess.run(shell, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr, done.stderr
    decoder, text, answers = json.JSONDecoder(), done.stdout, []
    while start := text.find("{") + 1:
        answer, end = decoder.raw_decode(text, start - 1)
        answers.append(answer)
        text = text[end:]
    return answers


def check(answer: dict[str, Any], wanted: Any, where: str) -> None:
    if isinstance(wanted, dict):
        shown = {name: answer.get(name) for name in wanted}
        assert shown == wanted, f"{where}: {answer}"
    elif wanted == COMMENTED:
        assert answer["code"] == "malformed"
        assert "line 2" in answer["error"] or "line 3" in answer["error"], f"{where}: {answer}"
    elif wanted == "session_exists":
        assert answer["code"] == wanted, f"{where}: {answer}"
    elif wanted == "error":
        assert answer["status"] == "error", f"{where}: {answer}"
    else:
        assert answer["status"] == "ok", f"{where}: {answer}"
        assert wanted is None or answer["stdout"] == wanted, f"{where}: {answer}"
