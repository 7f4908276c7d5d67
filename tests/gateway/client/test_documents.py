"""What the client makes of answers: of other versions of the gateway, of refusals, and of outputs in a notebook."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from IPython.core.formatters import DisplayFormatter

import gateway.app  # noqa: F401 - brings every error that the gateway has
from gateway.client import AsyncGateway, AsyncSession, Run, Session
from gateway.client import errors as client_errors
from gateway.client.documents import read
from gateway.client.errors import CODES, refusal
from gateway.errors import GatewayError
from gateway.handlers.base import _STATUS
from gateway.models.sessions import SessionList, SessionView

ROOT = Path(__file__).parent.parent.parent.parent
NOT_OF_ITS_ROUTES = {  # Jupyter's API, the command line, or told to no caller
    "bad_format", "bad_type", "brought_back", "chunk_out_of_place", "expiry_moved", "holder_changed", "internal_error",
    "jupyter_session_not_found", "kernel_not_found", "key_changed", "lease_stale", "memory_changed",
    "no_such_checkpoint", "no_such_contents", "state_changed", "store_newer", "unsettled", "window_keys_unusable",
    "window_not_found",
}  # fmt: skip


def all_below(kind: type[GatewayError]) -> list[type[GatewayError]]:
    return [one for child in kind.__subclasses__() for one in (child, *all_below(child))]


def test_every_code_of_the_gateway_has_an_exception_of_its_own_below_that_of_its_status() -> None:
    of_kinds = {kind.code for kind in _STATUS}
    for kind in all_below(GatewayError):
        if kind.code in NOT_OF_ITS_ROUTES | of_kinds:
            continue
        status = next((status for parent, status in _STATUS.items() if issubclass(kind, parent)), 500)
        body = json.dumps({"error": "No.", "code": kind.code, "details": {"a": 1}, "request_id": "r"}).encode()

        raised = refusal(status, body, "7")

        assert type(raised) is CODES.get(kind.code), kind.code
        assert (raised.code, raised.status, raised.retry_after_s) == (kind.code, status, 7)


def test_what_is_not_known_is_raised_as_its_kind() -> None:
    newer = refusal(404, b'{"error": "No pond.", "code": "pond_not_found", "details": {}, "request_id": "r"}', None)
    assert (type(newer), newer.code, str(newer)) == (client_errors.NotFound, "pond_not_found", "No pond.")

    of_a_proxy = refusal(502, b"<html>Bad gateway</html>", None)
    assert (type(of_a_proxy), of_a_proxy.status, of_a_proxy.request_id) == (client_errors.GatewayError, 502, None)


async def test_documents_of_newer_and_older_gateways_are_read(session: AsyncSession) -> None:
    sent = json.loads((await session.info()).model_dump_json(by_alias=True))
    newer = {**sent, "state": "DREAMING", "mood": "good", "allowInternetAccess": True}
    newer["isolation"] = {"walls": ["dream"], "missing": [{"wall": "x", "reason": "y", "since": 3}], "depth": 3}
    del newer["saved_at"]

    document = read(SessionView, json.dumps(newer).encode())

    assert (document.id, str(document.state), document.saved_at) == (session.id, "DREAMING", None)
    assert document.allow_internet_access is True
    assert document.created_at == (session.document or document).created_at
    assert document.isolation is not None
    assert document.isolation.missing[0].reason == "y"
    listed = {"sessions": [newer], "count": 1, "total_count": 1, "next_token": None, "mood": "good"}
    assert str(read(SessionList, json.dumps(listed).encode()).sessions[0].state) == "DREAMING"
    with pytest.raises(ValueError, match="no SessionView"):
        read(SessionView, b'["not a document"]')


async def test_lists_are_gone_through_page_by_page(client: AsyncGateway) -> None:
    for number in range(5):
        await client.create(f"paged-{number}", labels={"paged": "yes"})

    found = [one.id async for one in client.list(labels={"paged": "yes"}, limit=2)]

    assert found == [f"paged-{number}" for number in (4, 3, 2, 1, 0)]
    second = await client.list(label_selector="paged", limit=2).page(2)
    assert ([one.id for one in second.items], second.total_count) == (["paged-2", "paged-1"], 5)
    assert await client.list(labels={"paged": "no"}).first() is None


def test_a_run_shows_its_plots_and_tables_in_a_notebook(blocking_session: Session) -> None:
    png = "from IPython.display import Image, HTML; import base64\nred = base64.b64decode('iVBORw0KGgo=')\n"
    plot = blocking_session.run(f"{png}Image(red, format='png')")
    several = blocking_session.run("print('<script>')\ndisplay(HTML('<table></table>'))\ndisplay(Image(red))\n1/0")
    formatter: Any = DisplayFormatter()  # its methods carry no types

    assert formatter.format(plot)[0]["image/png"].strip() == "iVBORw0KGgo="
    shown = formatter.format(several)[0]
    assert "&lt;script&gt;" in shown["text/html"]
    assert "<table></table>" in shown["text/html"]
    assert 'src="data:image/png;base64,iVBORw0KGgo="' in shown["text/html"]
    assert "\x1b" not in shown["text/html"]
    assert shown["text/plain"].endswith("ZeroDivisionError: division by zero")
    assert plot.images() == [b"\x89PNG\r\n\x1a\n"]
    assert formatter.format(blocking_session.run("'text'"))[0] == {"text/plain": "'text'"}
    assert isinstance(plot, Run)


def test_the_client_brings_neither_a_server_nor_a_store_with_it() -> None:
    unwanted = "'tornado', 'motor', 'pymongo', 'zmq', 'jupyter_client', 'IPython', 'typer', 'tqdm', 'gateway.services'"
    program = f"import sys, gateway.client, gateway.client.agb; print(sorted({{{unwanted}}} & set(sys.modules)))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout == "[]\n"


def test_the_synchronous_client_is_the_one_that_is_made_of_the_asynchronous_one() -> None:
    done = subprocess.run(
        [sys.executable, "deploy/sync_client.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
