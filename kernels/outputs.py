"""What a kernel publishes while a cell runs, folded into the outputs of nbformat 4. No I/O."""

import json
from dataclasses import dataclass
from typing import Any

from kernels.messages import Message

_RESERVE_BYTES = 1_000_000  # for the result and the error of a cell that has filled its limit
_LONGEST_ERROR = 100_000  # characters of a traceback line, a name or a value


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: `kind` is what a stream calls it, `data` what it carries."""

    kind: str
    data: dict[str, Any]
    size_bytes: int


class Outputs:
    """The outputs of one run.

    Text of one stream in a row is one output; a display id updates what was shown under it;
    `clear_output(wait=True)` clears when the next output comes. What is kept stays within `limit_bytes`:
    text is cut, anything larger is left out, and `truncated` says so.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._kept: list[dict[str, Any]] = []
        self._kept_bytes = 0
        self._clear_next = False
        self._displays: dict[str, list[dict[str, Any]]] = {}
        self.truncated = False

    def as_nbformat(self) -> list[dict[str, Any]]:
        return [
            {**output, "text": "".join(output["text"])} if output["output_type"] == "stream" else output
            for output in self._kept
        ]

    def add(self, message: Message) -> Event | None:
        """Fold one IOPub message in; the event to pass on, None when it is of no interest or past the limit."""
        match message.type:
            case "stream":
                return self._add_stream(str(message.content["name"]), str(message.content["text"]))
            case "display_data":
                return self._add_bundle("display", "display_data", message)
            case "execute_result":
                return self._add_bundle("result", "execute_result", message)
            case "update_display_data":
                return self._update_display(message)
            case "clear_output":
                return self._clear(bool(message.content.get("wait")))
            case "error":
                return self._add_error(message.content)
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
            self._kept_bytes = 0

    def _add_stream(self, name: str, text: str) -> Event | None:
        self._apply_pending_clear()
        text, size_bytes = self._cut(text)
        if not text:
            return None
        last = self._kept[-1] if self._kept else None
        if last and last["output_type"] == "stream" and last["name"] == name:
            last["text"].append(text)
            self._kept_bytes += size_bytes
        else:
            self._keep({"output_type": "stream", "name": name, "text": [text]}, size_bytes)
        return Event(name, {"text": text}, size_bytes)

    def _cut(self, text: str) -> tuple[str, int]:
        size_bytes = len(text) if text.isascii() else len(text.encode(errors="replace"))
        room = max(0, self._room())
        if size_bytes <= room:
            return text, size_bytes
        self.truncated = True
        cut = text.encode(errors="replace")[:room].decode(errors="ignore")
        return cut, room

    def _add_bundle(self, kind: str, output_type: str, message: Message) -> Event | None:
        self._apply_pending_clear()
        content = message.content
        size_bytes = len(message.content_bytes)
        if not self._fits(size_bytes) or content.get("metadata", {}).get("truncated"):
            self.truncated = True
            if not self._fits(size_bytes):
                return None
        output: dict[str, Any] = {"output_type": output_type, "data": content["data"], "metadata": content["metadata"]}
        if output_type == "execute_result":
            output["execution_count"] = content.get("execution_count")
        self._keep(output, size_bytes)
        event: dict[str, Any] = {key: output[key] for key in ("data", "metadata", "execution_count") if key in output}
        if display_id := content.get("transient", {}).get("display_id"):
            self._displays.setdefault(display_id, []).append(output)
            event["display_id"] = display_id
        return Event(kind, event, size_bytes)

    def _fits(self, size_bytes: int) -> bool:
        return size_bytes <= self._room() or (
            size_bytes <= _RESERVE_BYTES // 10 and self._room(reserve=_RESERVE_BYTES) > 0
        )

    def _update_display(self, message: Message) -> Event | None:
        content = message.content
        size_bytes = len(message.content_bytes)
        display_id = content.get("transient", {}).get("display_id", "")
        shown = self._displays.get(display_id, [])
        for output in shown:
            grown = size_bytes - len(json.dumps(output["data"], default=str))
            if grown > 0 and grown > self._room():
                self.truncated = True
                return None
            self._kept_bytes += grown
            output["data"], output["metadata"] = content["data"], content["metadata"]
        data = {"data": content["data"], "metadata": content["metadata"], "display_id": display_id}
        return Event("update_display", data, size_bytes)

    def _clear(self, wait: bool) -> Event:
        self._clear_next = True
        if not wait:
            self._apply_pending_clear()
        return Event("clear_output", {"wait": wait}, 20)

    def _add_error(self, content: dict[str, Any]) -> Event:
        self._apply_pending_clear()
        error = error_of(content)
        self._keep({"output_type": "error", **error}, 0)
        return Event("error", error, sum(len(line) for line in error["traceback"]))


def error_of(content: dict[str, Any]) -> dict[str, Any]:
    """Name, value and traceback of an error message, each line within bounds."""
    lines = content.get("traceback") or []
    return {
        "ename": str(content.get("ename", ""))[:_LONGEST_ERROR],
        "evalue": str(content.get("evalue", ""))[:_LONGEST_ERROR],
        "traceback": [str(line)[:_LONGEST_ERROR] for line in lines[:1000]],
    }
