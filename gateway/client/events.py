"""The events of a run, and where one who follows them has got to: enough to go on after whatever cuts them off."""

import json
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from httpx2 import ServerSentEvent

from gateway.client.calls import Call, get, part
from gateway.client.documents import Run, read_sent
from gateway.client.errors import envelope_refusal

EventKind = Literal[
    "start", "stdout", "stderr", "display", "update_display", "clear_output", "result", "error", "input_request",
    "missed", "done",
]  # fmt: skip


@dataclass(frozen=True)
class Event:
    """One thing that a run has told.

    `text` is what was printed (`stdout`, `stderr`); `data` is as the gateway sent it, for `display` and `result` with a
    mime bundle in `data["data"]`. `missed` says that `data["count"]` events are kept no more; `done` brings the `run`
    with all outputs. `kind` may be another one, of a gateway that is newer.
    """

    kind: EventKind | str
    data: dict[str, Any]
    id: str = ""
    run: Run | None = None

    @property
    def text(self) -> str:
        text = self.data.get("text", "")
        return text if isinstance(text, str) else ""


@dataclass(slots=True)
class Position:
    """Where who follows a run has got to. `begin` is the call that begins it, None for one that others have begun."""

    session_id: str
    begin: Call | None = None
    execution_id: str | None = None
    last_id: str | None = None
    over: bool = False
    _printed: dict[str, int] = field(default_factory=dict)
    _shown: int = 0
    _resumed: bool = False

    @property
    def code(self) -> str | None:
        """Of the run that this begins; None is the stored one."""
        body = json.loads(self.begin.body or b"{}") if self.begin is not None else {}
        code = body.get("code")
        return code if isinstance(code, str) else None

    def next_call(self) -> Call:
        """What is sent to begin, or to go on after the last event."""
        if self.execution_id is None:
            assert self.begin is not None
            return self.begin
        path = f"/api/sessions/{part(self.session_id)}/executions/{part(self.execution_id)}/events"
        call = replace(get(path), waits=True)
        self._resumed = self._resumed or self.last_id is not None
        return call if self.last_id is None else call.with_headers(last_event_id=self.last_id)

    def begun_as(self, execution_id: str | None) -> None:
        """The gateway has told what the run is called, before its first event."""
        self.execution_id = self.execution_id or execution_id

    def take(self, sent: ServerSentEvent) -> list[Event]:
        """The events that one that was sent stands for. Raises the refusal of a run that could not begin."""
        if not sent.data:  # how long to wait before a retry, which nobody has to be told
            return []
        data = json.loads(sent.data)
        if sent.event == "refused":
            self.over = True
            raise envelope_refusal(data)
        if sent.event != "done" and self._is_known(sent.id):
            return []
        self.last_id = sent.id or self.last_id
        if sent.event == "done":
            return self.take_end(read_sent(Run, data), data, sent.id)
        if sent.event == "start":
            self.begun_as(data.get("execution_id"))
        elif sent.event in ("stdout", "stderr"):
            self._printed[sent.event] = self._printed.get(sent.event, 0) + len(data.get("text", ""))
        elif sent.event in ("display", "result"):
            self._shown += 1
        return [Event(sent.event, data, sent.id)]

    def take_end(self, run: Run, data: dict[str, Any] | None = None, event_id: str = "") -> list[Event]:
        """The last events of a run, of which this is the document."""
        self.over = True
        data = run.model_dump(mode="json") if data is None else data
        return [*(self._missing(run) if self._resumed else []), Event("done", data, event_id, run)]

    def _is_known(self, event_id: str) -> bool:
        """A gateway that was started again counts anew, to the same numbers, and may begin before the last one."""
        name, _, number = event_id.rpartition(":")
        last_name, _, last_number = (self.last_id or "").rpartition(":")
        if name != last_name or not (number.isdecimal() and last_number.isdecimal()):
            return False
        return int(number) <= int(last_number)

    def _missing(self, run: Run) -> list[Event]:
        """What a run has told that has ended while nobody followed it: of one of before, only its end is kept.

        Cleared outputs can't be told from those that came: then what is there is shorter, and nothing is missing.
        """
        found: list[Event] = []
        for name, text in (("stdout", run.stdout), ("stderr", run.stderr)):
            if rest := text[self._printed.get(name, 0) :]:
                found.append(Event(name, {"text": rest}))
        bundles = [one for one in run.outputs if one.get("output_type") in ("display_data", "execute_result")]
        for output in bundles[self._shown :]:
            kind = "result" if output["output_type"] == "execute_result" else "display"
            found.append(Event(kind, {name: value for name, value in output.items() if name != "output_type"}))
        return found
