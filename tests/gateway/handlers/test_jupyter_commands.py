"""Commands of Jupyter's that run a notebook, as people type them, with the gateway's kernels."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import nbformat.v4
import pytest

from tests.api import Api

pytestmark = pytest.mark.slow

MANAGER = "jupyter_server.gateway.managers.GatewayKernelManager"

# `jupyter execute` has no option for a gateway, nor for the class of its kernels: its configuration is Python.
EXECUTE_CONFIG = """
from functools import partial

import nbclient.cli
from jupyter_server.gateway.managers import GatewayKernelManager

nbclient.cli.NotebookClient = partial(nbclient.cli.NotebookClient, kernel_manager_class=GatewayKernelManager)
"""


@pytest.fixture
def notebook(tmp_path: Path) -> Path:
    cells = ["import os\nprint(os.environ['ERA_SESSION'])", "6 * 7", "1 / 0"]
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path = tmp_path / "a.ipynb"
    nbformat.write(made, path)
    return path


async def jupyter(api: Api, folder: Path, *command: str, **more: str) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")}
    env |= {"JUPYTER_GATEWAY_URL": f"{api.url}/jupyter", "JUPYTER_CONFIG_DIR": str(folder / "config"), **more}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jupyter", *command, cwd=folder, env=env, stderr=asyncio.subprocess.PIPE
    )
    _, printed = await process.communicate()
    assert process.returncode == 0, printed.decode()


def outputs_of(path: Path) -> list[Any]:
    return [cell.outputs for cell in nbformat.read(path, as_version=4).cells]


async def test_nbconvert_executes_a_notebook_on_the_gateway_and_leaves_no_session(api: Api, notebook: Path) -> None:
    options = ["--to=notebook", "--execute", "--allow-errors", "--output=done"]
    await jupyter(
        api, notebook.parent, "nbconvert", *options, f"--ExecutePreprocessor.kernel_manager_class={MANAGER}", "a.ipynb"
    )

    printed, result, failed = outputs_of(notebook.parent / "done.ipynb")
    assert (printed[0].text, result[0].data["text/plain"], failed[0].ename) == ("true\n", "42", "ZeroDivisionError")
    assert (await api.get("/api/sessions"))["sessions"] == []


async def test_jupyter_execute_runs_a_notebook_on_the_gateway_and_leaves_no_session(api: Api, notebook: Path) -> None:
    config = notebook.parent / "config" / "jupyter_execute_config.py"
    config.parent.mkdir()
    config.write_text(EXECUTE_CONFIG)

    # The folder of the notebook, as a path that JSON has not, is what the manager would send otherwise.
    command = ["execute", "--inplace", "--allow-errors", "a.ipynb"]
    await jupyter(api, notebook.parent, *command, KERNEL_WORKING_DIR=str(notebook.parent))

    printed, result, failed = outputs_of(notebook)
    assert (printed[0].text, result[0].data["text/plain"], failed[0].ename) == ("true\n", "42", "ZeroDivisionError")
    assert (await api.get("/api/sessions"))["sessions"] == []
