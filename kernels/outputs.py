"""What a kernel publishes while a cell runs, folded into the outputs of nbformat 4. No I/O."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kernels.messages import Message, weight_bytes

_RESERVE_BYTES = 1_000_000  # for the result and the error of a cell that has filled its limit
_LONGEST_ERROR = 100_000  # characters of a traceback line, a name or a value
_EACH_BYTES = 200  # about what an output takes that says nothing
_MOST_TIMES = 8  # the limit: what bundles may take in memory
_DEEPEST = 100  # levels of JSON in a bundle; pydantic, which writes and reads it, gives up below 200
_STREAMS = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: `kind` is what a stream calls it, `data` what it carries."""

    kind: str
    data: dict[str, Any]
    size_bytes: int


@dataclass(slots=True)
class _Shown:
    """A display that may be updated, and what it is charged for."""

    output: dict[str, Any]
    size_bytes: int


class Outputs:
    """The outputs of one run.

    Text of one stream in a row is one output; a display id updates what was shown under it;
    `clear_output(wait=True)` clears when the next output comes. What is kept stays within `limit_bytes`:
    text is cut, anything larger is left out, and `truncated` says so, also of what is malformed: anything that has the
    key may publish, user code too.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: list[dict[str, Any]] = []
        self._kept_bytes = 0
        self._weight_bytes = 0  # of bundles
        self._clear_next = False
        self._displays: dict[str, list[_Shown]] = {}
        self.truncated = False

    def as_nbformat(self) -> list[dict[str, Any]]:
        return [
            {**output, "text": "".join(output["text"])} if output["output_type"] == "stream" else output
            for output in self._kept
        ]

    def as_published(self) -> list[tuple[str, dict[str, Any]]]:
        """Type and content of messages that would put out the same; displays can still be updated."""
        ids = {id(one.output): display_id for display_id, shown in self._displays.items() for one in shown}
        told = []
        for kept, output in zip(self._kept, self.as_nbformat(), strict=True):
            content = content_of(output)
            if display_id := ids.get(id(kept)):
                content["transient"] = {"display_id": display_id}
            told.append((output["output_type"], content))
        return told

    def add(self, message: Message) -> Event | None:
        """Fold one IOPub message in; the event to pass on, None when it is of no interest or past the limit."""
        if message.cut:
            self.truncated = True
            return None
        match message.type:
            case "stream":
                return self._add_stream(message.content.get("name"), message.content.get("text"))
            case "display_data":
                return self._add_bundle("display", "display_data", message)
            case "execute_result":
                return self._add_bundle("result", "execute_result", message)
            case "update_display_data":
                return self._update_display(message)
            case "clear_output":
                return self._clear(bool(message.content.get("wait")))
            case "error":
                return self._add_error(message)
        return None

    def _room(self, *, reserve: int = 0) -> int:
        return self._limit_bytes + reserve - self._kept_bytes

    def _keep(self, output: dict[str, Any], size_bytes: int) -> None:
        self._kept.append(output)
        self._kept_bytes += size_bytes

    def _apply_pending_clear(self) -> None:
        if self._clear_next:
            self._clear_next = False
            self._kept.clear()
            self._displays.clear()
            self._kept_bytes = self._weight_bytes = 0

    def _add_stream(self, name: Any, text: Any) -> Event | None:
        if name not in _STREAMS or not isinstance(text, str):
            self.truncated = True
            return None
        self._apply_pending_clear()
        text, size_bytes = self._cut(text, self._room())
        if not text:
            return None
        last = self._kept[-1] if self._kept else None
        if last and last["output_type"] == "stream" and last["name"] == name:
            last["text"].append(text)
            self._kept_bytes += size_bytes
        else:
            self._keep({"output_type": "stream", "name": name, "text": [text]}, size_bytes)
        return Event(name, {"text": text}, size_bytes)

    def _cut(self, text: str, room: int) -> tuple[str, int]:
        """As much of a text as fits into `room` bytes, and its size."""
        size_bytes = len(text) if text.isascii() else len(text.encode(errors="replace"))
        if size_bytes <= max(0, room):
            return text, size_bytes
        self.truncated = True
        cut = text.encode(errors="replace")[: max(0, room)].decode(errors="ignore")
        return cut, max(0, room)

    def _add_bundle(self, kind: str, output_type: str, message: Message) -> Event | None:
        self._apply_pending_clear()
        size_bytes = len(message.content_bytes) + _EACH_BYTES
        if not self._fits(size_bytes) or not self._weighs(message):
            self.truncated = True
            return None
        data, metadata = self._bundle_of(message.content)
        event: dict[str, Any] = {"data": data, "metadata": metadata}
        if output_type == "execute_result":
            count = message.content.get("execution_count")
            event["execution_count"] = count if isinstance(count, int) else None
        output: dict[str, Any] = {"output_type": output_type, **event}
        self._keep(output, size_bytes)
        if display_id := _display_id(message.content):
            self._displays.setdefault(display_id, []).append(_Shown(output, size_bytes))
            event["display_id"] = display_id
        return Event(kind, event, size_bytes)

    def _fits(self, size_bytes: int) -> bool:
        return size_bytes <= self._room() or (
            size_bytes <= _RESERVE_BYTES // 10 and self._room(reserve=_RESERVE_BYTES) > 0
        )

    def _weighs(self, message: Message) -> bool:
        """Whether there is room for what a bundle is in memory, which may be many times as much as on the wire."""
        weight = weight_bytes(message.content_bytes)
        if self._weight_bytes + weight > _MOST_TIMES * self._limit_bytes:
            return False
        self._weight_bytes += weight
        return True

    def _bundle_of(self, content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Data and metadata; a note in their place if nobody could read, store or send them."""
        data, metadata = content.get("data"), content.get("metadata") or {}
        if flaw := _flaw_of(data, metadata):
            self.truncated = True
            return {"text/plain": f"<an output that can't be kept: {flaw}>"}, {}
        if metadata.get("truncated"):
            self.truncated = True
        return data or {}, metadata

    def _update_display(self, message: Message) -> Event | None:
        size_bytes = len(message.content_bytes) + _EACH_BYTES
        display_id = _display_id(message.content)
        shown = self._displays.get(display_id, [])
        grown = sum(size_bytes - one.size_bytes for one in shown)
        if grown > max(0, self._room()) or not self._weighs(message):
            self.truncated = True
            return None
        data, metadata = self._bundle_of(message.content)
        self._kept_bytes += grown
        for one in shown:
            one.output["data"], one.output["metadata"], one.size_bytes = data, metadata, size_bytes
        return Event("update_display", {"data": data, "metadata": metadata, "display_id": display_id}, size_bytes)

    def _clear(self, wait: bool) -> Event:
        self._clear_next = True
        if not wait:
            self._apply_pending_clear()
        return Event("clear_output", {"wait": wait}, 20)

    def _add_error(self, message: Message) -> Event | None:
        self._apply_pending_clear()
        room = self._room(reserve=_RESERVE_BYTES)
        if room < _EACH_BYTES:
            self.truncated = True
            return None
        error = error_of(message.content)
        size_bytes = _EACH_BYTES
        for name in ("ename", "evalue"):
            error[name], taken = self._cut(error[name], room - size_bytes)
            size_bytes += taken
        lines = []
        for line in error["traceback"]:
            cut, taken = self._cut(line, room - size_bytes)
            size_bytes += taken
            lines.append(cut)
        error["traceback"] = lines
        self._keep({"output_type": "error", **error}, size_bytes)
        return Event("error", error, size_bytes)


def content_of(output: dict[str, Any]) -> dict[str, Any]:
    """Of the message that an output, as nbformat has it, came as."""
    return {name: value for name, value in output.items() if name != "output_type"}


def error_of(content: dict[str, Any]) -> dict[str, Any]:
    """Name, value and traceback of an error message, each line within bounds."""
    lines = content.get("traceback")
    return {
        "ename": _line(content.get("ename")),
        "evalue": _line(content.get("evalue")),
        "traceback": [_line(line) for line in lines[:1000]] if isinstance(lines, list) else [],
    }


def _line(text: Any) -> str:
    return text[:_LONGEST_ERROR] if isinstance(text, str) else ""


def _display_id(content: dict[str, Any]) -> str:
    transient = content.get("transient")
    display_id = transient.get("display_id") if isinstance(transient, dict) else None
    return display_id if isinstance(display_id, str) else ""


def _flaw_of(data: Any, metadata: Any) -> str | None:
    """Why a bundle can't be kept, None if it can."""
    if not isinstance(data, dict):
        return "its data is not a mime bundle"
    if not isinstance(metadata, dict):
        return "its metadata is not an object"
    level: list[Any] = [data, metadata]
    for _ in range(_DEEPEST):
        below = [child for item in level for child in _children(item) if isinstance(child, dict | list | float)]
        if not all(math.isfinite(child) for child in below if isinstance(child, float)):
            return "it holds a number that JSON does not have"
        level = [child for child in below if not isinstance(child, float)]
        if not level:
            return None
    return f"it is nested deeper than {_DEEPEST} levels"


def _children(item: Any) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item
