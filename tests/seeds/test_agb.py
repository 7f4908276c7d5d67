"""The program of AGB's page about sessions, run with its imports changed and nothing else."""

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from gateway.client.agb import AGB, CreateSessionParams
from gateway.client.patience import Patience
from tests.gateways import gateway_process

PROGRAM = Path(__file__).parent / "agb_sessions.py.txt"
IMPORTS = re.compile(r"^from agb(?:\.session_params)? import", re.MULTILINE)


async def test_the_program_of_the_page_runs_with_its_imports_changed(tmp_path: Path) -> None:
    program = IMPORTS.sub("from gateway.client.agb import", PROGRAM.read_text())
    async with gateway_process(tmp_path / "data") as gateway:
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, timeout=60,
            env=os.environ | {"GATEWAY_URL": gateway.url}, check=False,
        )  # fmt: skip

        assert done.stderr == ""
        made, *lines = done.stdout.splitlines()
        kept, labelled = made.removeprefix("Session created: "), lines[-2].removeprefix("Session ID: ")
        assert kept.startswith("sess_")
        assert labelled.startswith("sess_")
        assert lines == [
            f"Session ID: {kept}",
            f"Resource URL: {gateway.url}/api/sessions/{kept}",
            "Total sessions: 1",
            "This page: 1",
            f"Session ID: {kept}",
            "Total: 0",
            "Next token: ",
            "Set labels: True ",
            "{'project': 'demo', 'environment': 'production'}",
            f"Session ID: {labelled}",
            "Deleted: True ",
        ]

        agb = AGB(url=gateway.url)
        left = await asyncio.to_thread(agb.list, {"project": "demo", "environment": "testing"})
        agb.gateway.close()
        assert left.session_ids == [labelled]


def test_the_program_is_the_one_of_the_page() -> None:
    program = PROGRAM.read_text()

    calls = re.findall(r"\b(?:agb|session)(?:\.code)?\.(\w+)\(", program)
    assert calls == [
        "create", "run_code", "delete", "create", "info", "list", "list", "create", "set_labels", "get_labels", "list",
        "delete",
    ]  # fmt: skip


async def test_what_goes_wrong_is_in_the_result_and_not_raised(tmp_path: Path) -> None:
    async with gateway_process(tmp_path / "data") as gateway:
        agb = AGB(url=gateway.url, patience=Patience(lasts_s=0))

        def calls() -> None:
            created = agb.create(CreateSessionParams(labels={"no good": "x"}))
            assert (created.success, created.session) == (False, None)
            assert "no good" in created.error_message
            assert created.request_id
            session = agb.create().session
            assert session is not None
            failed = session.code.run_code("print(1)\n1/0", "python")
            assert (failed.success, failed.error_message) == (False, "ZeroDivisionError: division by zero")
            assert failed.result == "1\n"
            other = session.code.run_code("1", "javascript")
            assert (other.success, other.error_message) == (False, "This session runs python, not javascript.")
            assert agb.delete(session).success
            again = agb.delete(session)
            assert (again.success, again.error_message) == (False, f"No session {session.session_id!r}.")
            assert not session.info().success
            assert not session.get_labels().success
            assert not agb.get(session.session_id).success

        await asyncio.to_thread(calls)
        await gateway.kill()
        gone = await asyncio.to_thread(agb.list)
        assert not gone.success
        assert gone.error_message.startswith(f"No gateway answers at {gateway.url}")
        agb.gateway.close()
