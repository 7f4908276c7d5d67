"""`jupyter-mcp-server`, as its users run it: an agent's own program starts it, and talks to it over stdio."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp_types import ImageContent, TextContent

from tests.api import Api

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]

PROGRAM = Path(sys.executable).parent / "jupyter-mcp-server"
DRAWING = "import matplotlib.pyplot as plt; plt.plot([1, 2]); plt.show()"


class Agent:
    def __init__(self, session: ClientSession) -> None:
        self._session = session

    async def call(self, tool: str, **arguments: Any) -> list[Any]:
        answer = await self._session.call_tool(tool, arguments)
        assert not answer.is_error, answer
        return list(answer.content)

    async def text(self, tool: str, **arguments: Any) -> str:
        return "".join(one.text for one in await self.call(tool, **arguments) if isinstance(one, TextContent))

    async def rows(self, tool: str, **arguments: Any) -> list[list[str]]:
        """Of the table that a tool answers with."""
        return [line.split("\t") for line in (await self.text(tool, **arguments)).splitlines() if "\t" in line][1:]


@asynccontextmanager
async def agent(api: Api, folder: Path) -> AsyncIterator[Agent]:
    env = {**os.environ, "JUPYTER_URL": f"{api.url}/jupyter", "JUPYTER_TOKEN": "abc"}
    with open(folder / "mcp.log", "w") as log:
        server = StdioServerParameters(command=str(PROGRAM), args=[], env=env)
        async with stdio_client(server, errlog=log) as (read, write), ClientSession(read, write) as session:
            await session.initialize()
            yield Agent(session)


async def test_an_mcp_client_runs_code_in_its_own_kernel_and_in_a_sessions(
    api: Api, session_id: str, tmp_path: Path
) -> None:
    kernel_id = (await api.create(id=session_id))["jupyter"]["kernel_id"]
    await api.run(session_id, "x = 41; open('found.ipynb', 'w').write('{}')")

    async with agent(api, tmp_path) as client:
        kernels = {row[0]: row[1:4] for row in await client.rows("list_kernels")}
        ((_, _, own_id, status, _),) = await client.rows("list_notebooks")
        files = await client.rows("list_files", path=session_id)
        own = await client.text("execute_code", code="made_here = 6 * 7; made_here")
        ran = await client.text("execute_code", code="y = x + 1; print('printed'); y", kernel_id=kernel_id)
        failed = await client.text("execute_code", code="1 / 0", kernel_id=kernel_id)
        drawn = await client.call("execute_code", code=DRAWING, kernel_id=kernel_id)
        own_session = (await api.get(f"/jupyter/api/kernels/{own_id}"))["session_id"]
        assert (await api.run(own_session, "made_here"))["result"] == own == "42"

    assert kernels == {one: ["python3", "Python 3", "python"] for one in (kernel_id, own_id)}
    assert status == "alive"
    assert [row[:2] for row in files] == [[f"{session_id}/found.ipynb", "notebook"]]
    assert ran == "printed\n42"
    assert "ZeroDivisionError: division by zero" in failed
    assert [type(one) for one in drawn] == [ImageContent]
    assert (await api.run(session_id, "y"))["result"] == "42"
    history = (await api.get(f"/api/sessions/{session_id}/history"))["history"]
    assert [one["source"] for one in history] == ["api", "jupyter", "jupyter", "jupyter", "api"]
