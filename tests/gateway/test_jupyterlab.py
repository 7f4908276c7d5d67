"""`jupyter lab --gateway-url=…/jupyter` in a real browser: what people do there, and what agents do meanwhile."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext, expect

from tests.api import Api
from tests.gateways import gateway_process
from tests.jupyterlab import PATIENCE_S, Lab, running_browser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

PLOT = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()"


@dataclass(frozen=True)
class Desk:
    """All that a person and an agent have before them."""

    lab: Lab
    browser: BrowserContext
    api: Api

    def notebook(self, name: str, *cells: str, kernel: str | None = None) -> Any:
        return self.lab.notebook(self.browser, name, *cells, kernel=kernel)

    async def session_id(self) -> str:
        """Of the one session that there is."""
        (session,) = (await self.api.get("/api/sessions"))["sessions"]
        return str(session["id"])

    async def output_of_the_run(self, wanted: str) -> None:
        """Wait until the run under way has put this out."""
        (run,) = (await self.api.get(f"/api/sessions/{await self.session_id()}/executions"))["executions"]
        async with self.api.events(
            f"/api/sessions/{run['session_id']}/executions/{run['execution_id']}/events"
        ) as seen:
            async for event in seen:
                if wanted in str(event.data):
                    return


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole_desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    folder = tmp_path_factory.mktemp("jupyterlab")
    async with (
        running_browser(folder / "browser") as browser,
        gateway_process(folder / "data") as gateway,
        Lab(folder / "lab", gateway.url) as lab,
        Api(gateway.url) as api,
    ):
        yield Desk(lab, browser, api)


@pytest_asyncio.fixture(loop_scope="module")
async def desk(whole_desk: Desk) -> AsyncIterator[Desk]:
    """Without any session."""
    yield whole_desk
    await whole_desk.api.call("DELETE", "/api/sessions", expect=200)


async def test_a_notebook_runs_shows_its_plot_and_asks_no_other_host(desk: Desk) -> None:
    asked: set[str | None] = set()
    desk.browser.on("request", lambda request: asked.add(urlsplit(request.url).hostname))

    async with desk.notebook("plot", "x = 20\nprint('printed')", "x * 2 + 2", PLOT) as page:
        for number in range(3):
            await page.run(number)

        await expect(page.output(0)).to_have_text("printed\n")
        await expect(page.output(1)).to_have_text("42")
        await page.shows_plot(2)
    history = (await desk.api.get(f"/api/sessions/{await desk.session_id()}/history"))["history"]
    assert [(run["source"], run["status"]) for run in history] == [("jupyter", "ok")] * 3
    assert asked - {None} == {"127.0.0.1"}


async def test_input_is_asked_and_answered_in_the_page(desk: Desk) -> None:
    async with desk.notebook("input", "name = input('Who? ')\nprint('Hello,', name)") as page:
        await page.run(0)
        await page.cell(0).locator(".jp-Stdin-input").fill("Ada")
        await page.page.keyboard.press("Enter")

        await expect(page.output(0).last).to_have_text("Hello, Ada\n")


async def test_tab_completes_what_the_kernel_knows(desk: Desk) -> None:
    async with desk.notebook("completion", "a_name_that_is_long = 'completed'", "") as page:
        await page.run(0)
        await expect(page.cell(0).locator(".jp-InputPrompt")).to_have_text("[1]:")
        await page.cell(1).locator(".cm-content").click()
        await page.page.keyboard.type("a_name_th")
        await expect(page.cell(1).locator(".jp-mod-completer-enabled")).to_be_visible()
        await page.page.keyboard.press("Tab")
        await expect(page.page.locator(".jp-Completer-match")).to_have_text("a_name_that_is_long")
        await page.page.keyboard.press("Enter")
        await expect(page.cell(1).locator(".cm-content")).to_have_text("a_name_that_is_long")
        await page.run(1)

        await expect(page.output(1)).to_have_text("'completed'")


async def test_a_slider_that_is_moved_in_the_page_moves_in_python_and_the_other_way_round(desk: Desk) -> None:
    cells = ["import ipywidgets\ns = ipywidgets.IntSlider(7)\ns", "s.value", "s.value = 42"]
    async with desk.notebook("slider", *cells) as page:
        await page.run(0)
        handle, readout = page.cell(0).locator(".noUi-handle"), page.cell(0).locator(".widget-readout")
        await expect(readout).to_have_text("7")

        await handle.focus()
        await page.page.keyboard.press("ArrowRight")
        await expect(readout).to_have_text("8")
        await page.run(1)
        await expect(page.output(1)).to_have_text("8")

        await page.run(2)
        await expect(readout).to_have_text("42")


async def test_the_buttons_interrupt_and_restart(desk: Desk) -> None:
    cells = ["x = 1\nprint('going')\nwhile True: pass", "print(x)", "'x' in globals()"]
    async with desk.notebook("buttons", *cells) as page:
        await page.run(0)
        await expect(page.output(0)).to_have_text("going\n")
        await page.shows_kernel("Python 3", "Busy")
        await page.press("interrupt-kernel")
        await expect(page.output(0).last).to_contain_text("KeyboardInterrupt")
        await page.run(1)
        await expect(page.output(1)).to_have_text("1\n")

        await page.press("restart-kernel")
        async with page.page.expect_response("**/restart*"):
            await page.page.locator(".jp-Dialog .jp-mod-accept").click()
        await page.shows_kernel("Python 3", "Idle")
        await page.run(2)

        await expect(page.output(2)).to_have_text("False")


async def test_a_page_that_is_loaded_again_while_a_cell_runs_shows_all_that_the_cell_has_put_out(desk: Desk) -> None:
    cells = ["import pathlib, time\nfor step in range(3):\n    print('step', step, flush=True)\n"
             "    while not pathlib.Path(f'go{step}').exists(): time.sleep(0.02)\nprint('done')"]  # fmt: skip
    async with desk.notebook("reload", *cells) as page:
        files = f"/api/sessions/{await desk.session_id()}/files"
        await page.open_console()
        await page.run(0)
        await expect(page.output(0)).to_have_text("step 0\n")
        await page.save()

        await page.page.goto("about:blank")
        await desk.api.http.put(f"{files}/go0", content=b"")
        await desk.output_of_the_run("step 1")
        await page.page.go_back()
        await page.shows_kernel("Python 3", "Busy")
        await expect(page.console_output).to_have_text("step 0\nstep 1\n")
        await desk.api.http.put(f"{files}/go1", content=b"")
        await desk.api.http.put(f"{files}/go2", content=b"")

        await expect(page.console_output).to_have_text("step 0\nstep 1\nstep 2\ndone\n")
        await page.shows_kernel("Python 3", "Idle")


async def test_what_an_agent_sets_over_rest_is_plotted_in_the_notebook(desk: Desk) -> None:
    async with desk.notebook("agent", "import matplotlib.pyplot as plt\ndf.plot()\nplt.show()") as page:
        session_id = await desk.session_id()
        await desk.api.run(session_id, "import pandas\ndf = pandas.DataFrame({'a': [1, 3, 2]})")

        await page.run(0)

        await page.shows_plot(0)
        assert (await desk.api.run(session_id, "len(plt.get_fignums()), list(df.a)"))["result"] == "(0, [1, 3, 2])"


async def test_a_notebook_is_opened_on_the_session_in_which_an_agent_has_been_at_work(desk: Desk) -> None:
    await desk.api.run("sales", "import pandas\ndf = pandas.DataFrame({'a': [1, 3, 2]})")
    cell = "import matplotlib.pyplot as plt\ndf.plot()\nplt.show()\nseen = True"
    async with desk.notebook("sales", cell, kernel="Session sales") as page:
        await page.run(0)

        await page.shows_plot(0)
    assert (await desk.api.run("sales", "seen"))["result"] == "True"
    assert await desk.session_id() == "sales"


async def test_what_an_agent_runs_is_shown_beside_the_notebook(desk: Desk) -> None:
    async with desk.notebook("beside", "1") as page:
        await page.open_console()
        await desk.api.run(await desk.session_id(), f"print('from an agent')\n{PLOT}")

        await expect(page.console_output.first).to_have_text("from an agent\n")
        await expect(page.console_output.locator("img")).to_be_visible()


async def test_a_session_that_sleeps_wakes_for_a_cell_and_has_its_variables(desk: Desk) -> None:
    async with desk.notebook("asleep", "x = 41", "x + 1") as page:
        session = f"/api/sessions/{await desk.session_id()}"
        await page.run(0)
        await expect(page.cell(0).locator(".jp-InputPrompt")).to_have_text("[1]:")
        async with asyncio.timeout(PATIENCE_S):
            while (slept := await desk.api.http.post(f"{session}/hibernate")).status_code == 409:
                await asyncio.sleep(0.1)  # the page asks more of the kernel once a cell has run
        assert slept.json()["state"] == "IDLE"
        await page.shows_kernel("Python 3", "Idle")

        await page.run(1)

        await expect(page.output(1)).to_have_text("42")
        assert (await desk.api.get(session))["state"] == "READY"


async def test_a_session_that_is_deleted_over_rest_is_shown_as_gone(desk: Desk) -> None:
    async with desk.notebook("deleted", "1") as page:
        await desk.api.call("DELETE", f"/api/sessions/{await desk.session_id()}")

        await expect(page.page.locator("#jp-main-statusbar")).to_contain_text(re.compile(r"\| (Dead|Disconnected)"))
