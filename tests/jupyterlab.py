"""JupyterLab as people have it, on a gateway: its server, with folders of its own, and its page in a real browser.

The browser is Chromium as the system has it, which is not downloaded.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import nbformat.v4
import pytest
from playwright.async_api import BrowserContext, Locator, Page, Request, async_playwright, expect

PATIENCE_S = 60
_STOP_S = 10
TOKEN = "lab"

# What the environment of the tests has beside JupyterLab, and what would ask other hosts, is off.
_OFF = ["jupyter_mcp_server", "jupyter_server_fileid", "jupyter_server_nbmodel", "jupyter_server_ydoc"]
_OFF_IN_PAGE = [
    "@datalayer/jupyter-server-nbmodel", "@jupyter/collaboration-extension", "@jupyter/docprovider-extension"
]  # fmt: skip
_CONFIG = {
    "jupyter_server_config": {"ServerApp": {"jpserver_extensions": dict.fromkeys(_OFF, False)}},
    "jupyter_lab_config": {
        "LabApp": {
            "news_url": None,
            "check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
            "extension_manager": "readonly",
        }
    },
    "labconfig/page_config": {"disabledExtensions": dict.fromkeys(_OFF_IN_PAGE, True)},
}
_SETTINGS = {
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/completer-extension/manager": {"providerTimeout": PATIENCE_S * 1000},
    "@jupyterlab/console-extension/tracker": {"showAllKernelActivity": True},
}
_CHROMIUM = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip


def find_chromium() -> str:
    """Its path; without one a test is skipped, and fails where all is to be tested."""
    found = shutil.which("chromium")
    if found is None:
        lacking = "needs Chromium: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(lacking)
        pytest.skip(lacking)
    return found


@asynccontextmanager
async def running_browser(folder: Path) -> AsyncIterator[BrowserContext]:
    """A browser that nobody has used before."""
    async with async_playwright() as driver:
        context = await driver.chromium.launch_persistent_context(
            folder, executable_path=find_chromium(), headless=True, args=_CHROMIUM,
            viewport={"width": 1200, "height": 800},
        )  # fmt: skip
        context.set_default_timeout(PATIENCE_S * 1000)
        expect.set_options(timeout=PATIENCE_S * 1000)
        try:
            yield context
        finally:
            await context.close()


class Lab:
    """A JupyterLab server whose kernels are a gateway's."""

    def __init__(self, folder: Path, gateway_url: str) -> None:
        self.folder = folder
        self.notebooks = folder / "notebooks"
        self.url = ""
        self._gateway_url = gateway_url
        self._process: subprocess.Popen[bytes] | None = None

    async def __aenter__(self) -> "Lab":
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self.notebooks.mkdir(parents=True)
        for name, values in _CONFIG.items():
            self._write(f"config/{name}.json", values)
        for name, values in _SETTINGS.items():
            self._write(f"settings/{name}.jupyterlab-settings", values)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("GATEWAY_", "JUPYTER"))}
        env |= {f"JUPYTER_{name.upper()}_DIR": str(self.folder / name) for name in ("config", "data", "runtime")}
        env |= {"JUPYTERLAB_SETTINGS_DIR": str(self.folder / "settings")}
        env |= {"JUPYTERLAB_WORKSPACES_DIR": str(self.folder / "workspaces"), "JUPYTER_TOKEN": TOKEN}
        command = [sys.executable, "-m", "jupyter", "lab", f"--gateway-url={self._gateway_url}/jupyter"]
        options = ["--no-browser", "--allow-root", "--port=0", "--ip=127.0.0.1"]
        with open(self.folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                [*command, *options], env=env, cwd=self.notebooks, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        async with asyncio.timeout(PATIENCE_S):
            while not (found := list((self.folder / "runtime").glob("jpserver-*.json"))):
                assert self._process.poll() is None, self.log()
                await asyncio.sleep(0.1)
        self.url = str(json.loads(found[0].read_text())["url"]).rstrip("/")

    async def stop(self) -> None:
        """Which ends the kernels that it had open; it may wait long for one that the gateway has ended before."""
        if self._process is not None:
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, _STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def _write(self, path: str, values: object) -> None:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))

    def write_notebook(self, path: str, *cells: str, kernel: bool = True) -> None:
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        if kernel:
            made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(made, self.notebooks / path)

    @asynccontextmanager
    async def notebook(
        self, browser: BrowserContext, name: str, *cells: str, kernel: str | None = None
    ) -> AsyncIterator["NotebookPage"]:
        """A new notebook that is open in a tab of its own, its kernel idle; `kernel` is what a person then chooses."""
        self.write_notebook(f"{name}.ipynb", *cells, kernel=kernel is None)
        page = await browser.new_page()
        try:
            await page.goto(f"{self.url}/lab/workspaces/{name}/tree/{name}.ipynb?token={TOKEN}")
            opened = NotebookPage(page)
            if kernel is not None:
                await page.locator(".jp-Dialog select").select_option(label=kernel)
                await page.locator(".jp-Dialog .jp-mod-accept").click()
            await opened.shows_kernel("Python 3", "Idle")
            yield opened
        except BaseException:
            await page.screenshot(path=self.folder / f"{name}.png")
            raise
        finally:
            await page.close()


class NotebookPage:
    """A page of JupyterLab with one notebook."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.notebook = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")

    def cell(self, number: int) -> Locator:
        return self.notebook.locator(".jp-CodeCell").nth(number)

    def output(self, number: int) -> Locator:
        """All that the cell has put out."""
        return self.cell(number).locator(".jp-OutputArea-output")

    async def run(self, number: int) -> None:
        await self.cell(number).locator(".cm-content").click()
        await self.page.keyboard.press("Control+Enter")

    async def save(self) -> None:
        async with self.page.expect_response(lambda one: one.request.method == "PUT" and "/api/contents/" in one.url):
            await self.page.keyboard.press("Control+s")

    async def open_console(self) -> None:
        """A console of the notebook's kernel, which shows what others run; it is there again when the page is."""
        await self.cell(0).click(button="right")
        async with self.page.expect_request(_keeps_console):
            await self.page.get_by_text("New Console for Notebook").click()
        await expect(self.page.locator(".jp-CodeConsole")).to_be_visible()

    @property
    def console_output(self) -> Locator:
        """What the cells of others have put out."""
        return self.page.locator(".jp-CodeConsole-content .jp-OutputArea-output")

    async def press(self, command: str) -> None:
        """A button of the notebook's toolbar."""
        await self.notebook.locator(f'.jp-Toolbar [data-command="notebook:{command}"]').click()

    async def shows_kernel(self, name: str, state: str) -> None:
        await expect(self.page.locator("#jp-main-statusbar")).to_contain_text(f"{name} | {state}")
        if state in ("Idle", "Busy"):
            indicator = self.notebook.locator(".jp-Notebook-ExecutionIndicator")
            await expect(indicator).to_have_attribute("data-status", state.lower())

    async def shows_plot(self, number: int) -> None:
        """An image that has come, and is not all of one colour."""
        image = self.cell(number).locator(".jp-OutputArea-output img")
        await expect(image).to_be_visible()
        assert await image.evaluate(_COLOURS) > 2


def _keeps_console(request: Request) -> bool:
    return request.method == "PUT" and "/api/workspaces/" in request.url and "console:" in (request.post_data or "")


_COLOURS = """async image => {
    await image.decode();
    const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
    const drawing = canvas.getContext("2d");
    drawing.drawImage(image, 0, 0);
    const {data} = drawing.getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size;
}"""
