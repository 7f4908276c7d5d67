"""Servers of others, started beside ours."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2

_START_S = 60


@asynccontextmanager
async def serving(folder: Path, name: str, *command: str) -> AsyncIterator[tuple[int, int]]:
    """The port and pid of a Jupyter server that is started by `python -m`, once it answers, until the block is left.

    `{port}` in its command is a free one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [one.replace("{port}", str(port)) for one in command]
    with open(folder / f"{name}.log", "wb") as log:
        process = subprocess.Popen([sys.executable, "-m", *arguments], stdout=log, stderr=log, cwd=folder)
    try:
        url = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=url, trust_env=False) as http, asyncio.timeout(_START_S):
            while True:
                assert process.poll() is None, (folder / f"{name}.log").read_text()
                with contextlib.suppress(httpx2.HTTPError):
                    if (await http.get("/api")).is_success:
                        break
                await asyncio.sleep(0.1)
        yield port, process.pid
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
