"""Notebooks as bytes: read, checked and written. No I/O; a large notebook takes a while, so call it in a thread."""

import json
from typing import Any
from uuid import uuid4

import nbformat
from nbformat.reader import reads

from gateway.errors import Malformed

_VERSION = 4


class NotANotebook(Malformed):
    code = "not_a_notebook"


def read(text: str | bytes) -> tuple[dict[str, Any], str | None]:
    """A notebook as nbformat 4 has it, and why it is not valid if it is not. Raises `NotANotebook`."""
    try:
        notebook: dict[str, Any] = nbformat.convert(reads(text), _VERSION)  # type: ignore[no-untyped-call]
        return notebook, flaw_of(notebook)
    except Exception as error:  # it may hold anything anywhere
        raise NotANotebook(f"It can't be read as a notebook: {_sentence(error)}") from None


def taken(content: Any) -> tuple[dict[str, Any], str | None]:
    """The same for a notebook that came as JSON."""
    if not isinstance(content, dict):
        raise NotANotebook("content: must be a notebook.", field="content")
    return read(json.dumps(content))


def write(notebook: dict[str, Any]) -> bytes:
    """What a file holds: lines apart, so that people can compare versions; nothing that only a front end believes."""
    text: str = nbformat.writes(nbformat.from_dict(notebook))  # type: ignore[no-untyped-call]
    return (text + "\n").encode()


def empty() -> dict[str, Any]:
    return {"cells": [], "metadata": {}, "nbformat": _VERSION, "nbformat_minor": 5}


def flaw_of(notebook: dict[str, Any]) -> str | None:
    """Why it is not valid, None if it is. Cells without an id of their own are given one."""
    if notebook.get("nbformat_minor", 0) >= 5:
        _name_cells(notebook["cells"])
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        return f"Notebook validation failed: {_sentence(error)}"
    return None


def _name_cells(cells: list[dict[str, Any]]) -> None:
    seen: set[str] = set()
    for cell in cells:
        if cell.get("id") in seen or "id" not in cell:
            cell["id"] = uuid4().hex[:8]
        seen.add(cell["id"])


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:500]
