"""JSON of executions with much text, in pieces: a text is escaped where it fits the cache, and never copied whole."""

from collections.abc import Iterator
from typing import Any

from pydantic_core import to_json

from gateway.models.executions import Execution, ExecutionView

LARGE_CHARACTERS = 1024 * 1024
_PIECE_CHARACTERS = 256 * 1024


def text_size(outputs: list[dict[str, Any]]) -> int:
    """Characters of all streams."""
    return sum(len(output["text"]) for output in outputs if output["output_type"] == "stream")


def execution_pieces(execution: Execution) -> Iterator[bytes]:
    """The same as `execution.model_dump_json()`, in another order."""
    yield execution.model_dump_json(exclude={"outputs"})[:-1].encode()
    yield from _outputs(execution.outputs, _escaped_texts(execution.outputs))
    yield b"}"


def view_pieces(view: ExecutionView) -> Iterator[bytes]:
    """The same as `view.model_dump_json()`, in another order."""
    texts = _escaped_texts(view.outputs)
    yield view.model_dump_json(exclude={"outputs", "stdout", "stderr"})[:-1].encode()
    for name in ("stdout", "stderr"):
        yield f',"{name}":"'.encode()
        for output, text in zip(view.outputs, texts, strict=True):
            if output["output_type"] == "stream" and output["name"] == name:
                yield from text
        yield b'"'
    yield from _outputs(view.outputs, texts)
    yield b"}"


def _outputs(outputs: list[dict[str, Any]], texts: list[list[bytes]]) -> Iterator[bytes]:
    yield b',"outputs":['
    for number, (output, text) in enumerate(zip(outputs, texts, strict=True)):
        if number:
            yield b","
        if output["output_type"] == "stream":
            yield b'{"output_type":"stream","name":' + to_json(output["name"]) + b',"text":"'
            yield from text
            yield b'"}'
        else:
            yield to_json(output)
    yield b"]"


def _escaped_texts(outputs: list[dict[str, Any]]) -> list[list[bytes]]:
    """The text of each stream as JSON has it, without its quotes; nothing for other outputs."""
    return [_escaped(output["text"]) if output["output_type"] == "stream" else [] for output in outputs]


def _escaped(text: str) -> list[bytes]:
    return [to_json(text[at : at + _PIECE_CHARACTERS])[1:-1] for at in range(0, len(text), _PIECE_CHARACTERS)]
