"""Notebooks as pages, scripts and Markdown, by nbconvert, which takes half a second to import: only when asked for."""

from dataclasses import dataclass
from typing import Any

import nbformat
from traitlets.config import Config

from gateway.models.notebooks import NotebookFormat
from gateway.services import ipynb

_MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "script": "text/plain; charset=utf-8",
    "markdown": "text/markdown; charset=utf-8",
}


@dataclass(frozen=True, slots=True)
class Rendered:
    """`ending` is that of a file's name, with its dot."""

    content: bytes
    media_type: str
    ending: str


def render(notebook: dict[str, Any], format_: NotebookFormat, title: str) -> Rendered:
    """Everything is in the one file that comes out, images too. It takes a while: call it in a thread."""
    if format_ == "ipynb":
        return Rendered(ipynb.write(notebook), "application/x-ipynb+json", ".ipynb")
    from nbconvert.exporters.base import get_exporter

    config = Config(ExtractOutputPreprocessor={"enabled": False})  # it puts images into files of their own
    exporter = get_exporter(format_)(config=config)
    node = nbformat.from_dict(notebook)
    text, resources = exporter.from_notebook_node(node, resources={"metadata": {"name": title}})
    return Rendered(text.encode(), _MEDIA_TYPES[format_], resources["output_extension"])
