"""The notebooks tell the truth: each is executed from top to bottom against a gateway, and shows what its text says."""

import json
import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.api import Api
from tests.gateways import GatewayProcess

NOTEBOOKS = sorted((Path(__file__).parent.parent.parent / "notebooks").glob("*.ipynb"))

slow = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]


class Executed:
    """A notebook that was run; a cell that raises fails the test."""

    def __init__(self, notebook: Any) -> None:
        self._cells = {cell.id: cell for cell in notebook.cells}

    def text(self, cell_id: str) -> str:
        """All that the cell printed, and its value."""
        outputs = self._cells[cell_id].outputs
        return "".join(one.get("text") or one.get("data", {}).get("text/plain", "") for one in outputs).strip()

    def pictures(self, cell_id: str) -> int:
        return sum("image/png" in one.get("data", {}) for one in self._cells[cell_id].outputs)


async def executed(name: str, gateway: GatewayProcess, folder: Path) -> Executed:
    (path,) = (path for path in NOTEBOOKS if path.stem == name)
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=60, resources={"metadata": {"path": str(folder)}})
    await client.async_execute(env={"GATEWAY_URL": gateway.url, "NO_PROXY": "127.0.0.1", "IPYTHONDIR": str(folder)})
    return Executed(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_which_would_grow_old(path: Path) -> None:
    notebook = json.loads(path.read_text())

    nbformat.validate(notebook)
    assert [cell for cell in notebook["cells"] if cell.get("outputs") or cell.get("execution_count")] == []
    assert notebook["cells"][0]["source"][0].startswith("# ")


class TestNotebooks:
    pytestmark = slow

    async def test_quickstart_creates_runs_plots_and_moves_files(
        self, gateway: GatewayProcess, api: Api, tmp_path: Path
    ) -> None:
        shown = await executed("quickstart", gateway, tmp_path)

        assert shown.text("create").endswith(("INIT", "READY"))
        assert "hello from the session" in shown.text("run")
        assert shown.text("remember") == "'42'"
        assert shown.text("error") == "error | ZeroDivisionError | division by zero\nvariables kept: True"
        assert shown.pictures("plot") == 1
        assert shown.text("upload") == "201 data/weather.csv"
        assert "Cairo" in shown.text("use")
        assert [line.split()[-1] for line in shown.text("list-files").splitlines()] == [
            "data", "data/weather.csv", "warm.json",
        ]  # fmt: skip
        assert "'Lima'" in shown.text("download")
        assert shown.text("stream") == "now: 3\nnow: 2\nnow: 1\ndone: ok"
        assert {line.split()[0] for line in shown.text("variables").splitlines()} >= {"x", "t", "weather"}
        assert shown.text("notebook").startswith("6 cells, the first one:\nx = 20")
        assert shown.text("delete") == "True"

    async def test_an_agents_loop_goes_on_after_its_session_slept(
        self, gateway: GatewayProcess, tmp_path: Path
    ) -> None:
        shown = await executed("agents_that_remember", gateway, tmp_path)

        before, after = (json.loads(shown.text(cell)) for cell in ("loop", "again"))
        assert (sum(before), sum(after)) == (20, 60)
        assert all(late >= early for early, late in zip(before, after, strict=True))
        assert after.index(max(after)) == 1  # the one that people like
        assert shown.text("sleep") == "'IDLE'"
        assert shown.text("wake").splitlines()[0] == "resumed: True | remembered: (3, 20, True)"
        assert re.findall(r"carried over: (\w+)", shown.text("wake")) == ["till"]
        assert shown.pictures("plot") == 1
        assert shown.text("diary").startswith("60 lines, ")
        assert re.findall(r"\w+ → \w+", shown.text("states"))[:2] == ["READY → IDLE", "IDLE → READY"]

    async def test_branches_go_their_own_ways_and_know_where_they_came_from(
        self, gateway: GatewayProcess, tmp_path: Path
    ) -> None:
        shown = await executed("branching", gateway, tmp_path)

        assert shown.text("template") == "'[0, 1, 4]'"
        assert re.findall(r"(\w), a \w+: (\w+) in", shown.text("duplicate")) == [("A", "fork"), ("B", "fork")]
        assert shown.text("same").splitlines() == ["('60 points, every second one held back', 60, 9)"] * 2
        line, cubic = (float(found) for found in re.findall(r"held back: ([\d.]+)", shown.text("ab")))
        assert cubic < line
        assert shown.pictures("ab-plot") == 1
        assert shown.text("untouched") == "'False'"
        assert shown.text("remix") == "'report' comes from 'B, a cubic': True\n(3, False)"
        assert shown.pictures("lineage") == 1
        assert shown.text("lineage-text").splitlines() == [
            "measurements", "    A, a line", "    B, a cubic", "        report",
        ]  # fmt: skip
        assert shown.text("delete").count("deleted") == 4

    async def test_a_front_end_and_an_agent_work_on_one_kernel(self, gateway: GatewayProcess, tmp_path: Path) -> None:
        shown = await executed("attach_from_jupyterlab", gateway, tmp_path)

        assert (shown.text("agent"), shown.text("kernels")) == ("'57'", "('python3', 'idle')")
        assert shown.pictures("person") == 1
        assert shown.text("fix") == "67"
        assert shown.text("see").splitlines() == [
            "the agent ran > print('best month:', df.month[df.sold.idxmax()], 'of', df.sold.tolist())",
            "and saw       > best month: Apr of [12, 15, 19, 21]",
        ]
        assert [line.split()[0] for line in shown.text("history").splitlines()] == ["api", "jupyter", "jupyter", "api"]
        assert "sales.csv" in shown.text("files")
        assert shown.text("close") == "'67'"

    async def test_under_load_every_run_is_answered_and_the_figures_are_drawn(
        self, gateway: GatewayProcess, tmp_path: Path
    ) -> None:
        shown = await executed("under_load", gateway, tmp_path)

        assert shown.text("density").startswith("16 sessions")
        each_mb, all_mb = (float(found) for found in re.findall(r"([\d.]+) MB", shown.text("memory")))
        assert 0 < each_mb < all_mb
        assert shown.pictures("density-plot") == shown.pictures("latency-plot") == 1
        found = re.findall(r"(\d+) clients: median +([\d.]+) ms, p99 +([\d.]+) ms, +(\d+)", shown.text("latency"))
        assert [int(clients) for clients, *_ in found] == [1, 2, 4, 8]
        assert all(0 < float(median) <= float(p99) and int(runs) > 0 for _, median, p99, runs in found)
        assert "truncated: True" in shown.text("noisy-cut")
        assert shown.text("delete") == "16"
