"""The clients that people have, against the gateway: each does what it does with Jupyter's own."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import nbformat.v4
import pytest
from jupyter_kernel_client import JupyterKernelClient

from tests.api import Api

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]

NOTEBOOK = "jupyter_server.gateway.managers.GatewayKernelManager"


@pytest.fixture
async def notebook(tmp_path: Path) -> Path:
    cells = [
        "x = 20\nprint('printed')",
        "x * 2 + 2",
        "from IPython.display import display, HTML\ndisplay(HTML('<b>b</b>'))",
    ]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    path = tmp_path / "a.ipynb"
    nbformat.write(made, path)
    return path


async def test_jupyter_kernel_client_runs_code_and_lists_variables(api: Api) -> None:
    def work() -> tuple[Any, ...]:
        client = JupyterKernelClient(server_url=f"{api.url}/jupyter", token="abc", client_kwargs={"timeout": 1})
        client.start()
        try:
            ran, failed = client.execute("x = 5\nprint('hello')\nx + 1"), client.execute("1 / 0")
            names = [one["name"] for one in client.list_variables()]
            client.interrupt()
            client.restart()
            return ran, failed, names, client.execute("'x' in globals()")
        finally:
            client.stop()

    ran, failed, names, restarted = await asyncio.to_thread(work)

    assert ran["outputs"][0]["text"] == "hello\n"
    assert ran["outputs"][1]["data"]["text/plain"] == "6"
    assert failed["outputs"][0]["ename"] == "ZeroDivisionError"
    assert names == ["x"]
    assert restarted["outputs"][0]["data"]["text/plain"] == "False"


async def test_jupyter_kernel_client_attaches_to_the_session_of_an_agent(api: Api, session_id: str) -> None:
    kernel_id = (await api.create(id=session_id))["jupyter"]["kernel_id"]
    await api.run(session_id, "df = [1, 2, 3]")

    def work() -> Any:
        url, about = f"{api.url}/jupyter", {"timeout": 1}
        with JupyterKernelClient(server_url=url, token="abc", kernel_id=kernel_id, client_kwargs=about) as client:
            return client.execute("sum(df)")

    ran = await asyncio.to_thread(work)

    assert ran["outputs"][0]["data"]["text/plain"] == "6"
    assert (await api.run(session_id, "df"))["result"] == "[1, 2, 3]"


async def test_nbclient_executes_a_notebook_through_jupyter_servers_gateway_client(api: Api, notebook: Path) -> None:
    script = f"""
import sys, nbclient, nbformat
from jupyter_server.gateway.gateway_client import GatewayClient
GatewayClient.instance().url = {f"{api.url}/jupyter"!r}
GatewayClient.instance().init_connection_args()
notebook = nbformat.read({str(notebook)!r}, as_version=4)
nbclient.NotebookClient(notebook, kernel_name="python3", kernel_manager_class={NOTEBOOK!r}, timeout=60).execute()
nbformat.write(notebook, {str(notebook)!r})
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", script, stderr=asyncio.subprocess.PIPE)
    _, printed = await process.communicate()

    assert process.returncode == 0, printed.decode()
    outputs = [cell.outputs for cell in nbformat.read(notebook, as_version=4).cells]
    assert outputs[0][0]["text"] == "printed\n"
    assert outputs[1][0]["data"]["text/plain"] == "42"
    assert outputs[2][0]["data"]["text/html"] == "<b>b</b>"
    assert await api.get("/jupyter/api/kernels") == []


async def test_jupyter_server_serves_the_gateways_kernels_as_its_own(api: Api, session_id: str, tmp_path: Path) -> None:
    kernel_id = (await api.create(id=session_id))["jupyter"]["kernel_id"]
    await api.run(session_id, "x = 41")
    command = [
        sys.executable, "-m", "jupyter_server", f"--GatewayClient.url={api.url}/jupyter", "--port=0", "--no-browser",
        "--allow-root", "--IdentityProvider.token=abc", f"--ServerApp.root_dir={tmp_path}", "--ServerApp.sock=",
    ]  # fmt: skip
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, cwd=tmp_path)
    try:
        assert process.stderr is not None
        async with asyncio.timeout(60):
            while b"http://" not in (line := await process.stderr.readline()) or b"token=" not in line:
                assert line, "Jupyter Server ended"
        url = line.decode().split()[-1].partition("/tree")[0].partition("/?")[0].partition("/lab")[0].rstrip("/")
        async with Api(url) as server:
            headers = {"Authorization": "token abc"}
            specs = await server.get("/api/kernelspecs", headers=headers)
            logo = await server.http.get(specs["kernelspecs"]["python3"]["resources"]["logo-64x64"], headers=headers)
            opened = await server.post(
                "/api/sessions", {"path": "a.ipynb", "name": "a", "type": "notebook", "kernel": {"id": kernel_id}},
                201, headers=headers,
            )  # fmt: skip
        ran = await api.run(session_id, "x + 1")
    finally:
        process.terminate()  # which ends the kernels that it had open
        await process.communicate()

    again = await api.run(session_id, "x + 2")
    assert (again["result"], again["resumed"]) == ("43", True)
    assert (logo.status_code, opened["kernel"]["id"], ran["result"]) == (200, kernel_id, "42")
