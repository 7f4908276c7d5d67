"""Notebooks as pages, scripts and Markdown, by nbconvert, in a process that is there for as long as that takes."""

import asyncio
import os
import sys
from dataclasses import dataclass
from typing import Any

from gateway.errors import GatewayError, TimedOut
from gateway.models.notebooks import NotebookFormat
from gateway.services import ipynb

_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "script": "text/plain; charset=utf-8",
    "markdown": "text/markdown; charset=utf-8",
}
_AT_ONCE = 2
_PATIENCE_S = 120
_PASSED_ON = ("PATH", "PYTHONPATH", "LANG", "LC_ALL")  # none of the gateway's settings


@dataclass(frozen=True, slots=True)
class Rendered:
    """`ending` is that of a file's name, with its dot."""

    content: bytes
    media_type: str
    ending: str


class Renderer:
    """A few at once: others wait."""

    def __init__(self) -> None:
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def render(self, notebook: dict[str, Any], format_: NotebookFormat, title: str) -> Rendered:
        """Everything is in the one file that comes out, images too. Raises `TimedOut`."""
        content = await asyncio.to_thread(ipynb.write, notebook)
        if format_ == "ipynb":
            return Rendered(content, "application/x-ipynb+json", ".ipynb")
        async with self._places:
            ending, _, converted = (await _converted(content, format_, title)).partition(b"\n")
        return Rendered(converted, _MEDIA_TYPES[format_], ending.decode())


async def _converted(content: bytes, format_: NotebookFormat, title: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "gateway.services.converter", format_, title,
        env={name: value for name, value in os.environ.items() if name in _PASSED_ON}, cwd="/",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_PATIENCE_S):
            converted, _ = await process.communicate(content)
    except TimeoutError:
        raise TimedOut(f"nbconvert took longer than {_PATIENCE_S} s.") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        raise GatewayError("nbconvert could not convert the notebook.")
    return converted
