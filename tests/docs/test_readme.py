"""README tells the truth: its commands are run, in order, as they are printed."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateways import gateway_process

ROOT = Path(__file__).parent.parent.parent


def blocks() -> list[str]:
    return re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_first_block_is_the_script_that_sets_up_and_serves() -> None:
    assert blocks()[0] == "deploy/run.sh\n"

    assert os.access(ROOT / "deploy" / "run.sh", os.X_OK)


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
async def test_every_command_of_the_readme_works(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    async with gateway_process(tmp_path / "data") as gateway:
        script = 'set -e\ncurl() { command curl --fail -sS "$@"; echo; }\n' + "\n".join(blocks()[1:])

        done = await asyncio.to_thread(
            subprocess.run,
            ["bash", "-c", script.replace("http://127.0.0.1:8888", gateway.url).replace(".venv/bin", str(programs))],
            cwd=tmp_path, env=os.environ | {"GATEWAY_DATA_DIR": str(tmp_path / "data")},
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip

    assert done.returncode == 0, done.stderr
    for shown in (
        '"stdout":"hello\\n"',
        '"result":"42"',
        "event: done",
        "a,b",
        '"name": "x"',
        '"success":true,"reason":null',
        '"same":true',
        '"code":"sum(range(10))"',
        "given",
        "sum: 6",
        "copied: [1, 2, 3]",
        '"parent_id":"demo"',
        '"stdout":"20\\n"',
        '"kind":"import"',
        '"answer":"The customer wants deliveries in the morning. [1]","method":"extractive"',
        '"time_remaining_minutes":7',
        '"isolation":{"walls":',
        "wall capabilities",
        "run by 42",
        '{"bob":"read","agent:helper":"run"}',
        '"session_id":"hers"}]',
        "user    alice",
        '"actor":"alice"',
        "lines fit. Head: ",
        "Write to [email]",
    ):
        assert shown in done.stdout, f"{shown} in {done.stdout}"
    assert (tmp_path / "demo.tar.zst").read_bytes().startswith(b"\x28\xb5\x2f\xfd")
