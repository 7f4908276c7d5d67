"""What guardrails make of all that a kernel says, before anybody hears it.

Streams come in chunks: the end of one that may be the beginning of something waits for what comes next, or for the end
of its cell. A message keeps its id, so that who has heard it is not told again.
"""

import logging
from collections import OrderedDict, deque
from collections.abc import Sequence
from typing import Any

import orjson

from gateway.services.guardrail import Found, Guardrail
from kernels.messages import Message, received

log = logging.getLogger(__name__)

_MOST_RUNS = 1000
_MOST_MESSAGES = 10_000  # of one run, of which it is known what was done
_MOST_HELD = 1000  # streams whose end waits
_LONGEST_OPEN = 2**16  # characters of what reaches to the end of a stream, so far
_DEEPEST = 200
_UNTOUCHED = frozenset(
    ["status", "execute_input", "kernel_info_reply", "session_gateway_reply", "iopub_welcome", "comm_info_reply"]
)  # ours, or with nothing of a cell's making in them but its code
_BINARY = ("image/", "audio/", "video/", "font/", "application/pdf", "application/octet-stream")
_SMALLEST_CARD = 10**11  # of numbers in JSON, those are looked at that may be one
_UNREADABLE = {"status": "error", "ename": "Withheld", "evalue": "Too large for its guardrails.", "traceback": []}

Counts = dict[tuple[str, str], int]  # by guardrail and kind


class Tally:
    """What was done in which run. What a message has is counted once, also if it is read again in a journal."""

    def __init__(self) -> None:
        self._runs: OrderedDict[str, dict[str, Counts]] = OrderedDict()

    def note(self, run_id: str, msg_id: str, counts: Counts) -> None:
        run = self._runs.setdefault(run_id, {})
        if msg_id in run or len(run) < _MOST_MESSAGES:
            run[msg_id] = counts
        if len(self._runs) > _MOST_RUNS:
            self._runs.popitem(last=False)

    def of(self, run_id: str) -> dict[str, dict[str, int]]:
        """By guardrail, by kind."""
        total: dict[str, dict[str, int]] = {}
        for counts in self._runs.get(run_id, {}).values():
            for (guardrail, kind), count in counts.items():
                kinds = total.setdefault(guardrail, {})
                kinds[kind] = kinds.get(kind, 0) + count
        return total


class Redactor:
    """Replaces in texts, and in all texts of JSON, what guardrails find. One that fails lets nothing through."""

    def __init__(self, rules: Sequence[tuple[str, Guardrail]]) -> None:
        self._rules = rules

    def text(self, text: str, counts: Counts | None = None) -> str:
        return self.replaced(text, self.find(text), counts)

    def find(self, text: str) -> list[tuple[str, Found]]:
        """With the name of the guardrail, in order; nothing overlaps."""
        found: list[tuple[str, Found]] = []
        for name, rule in self._rules:
            try:
                found += [(name, one) for one in rule.find(text) if 0 <= one.start < one.end <= len(text)]
            except Exception:
                log.exception("Guardrail %s failed", name)
                return [(name, Found(0, len(text), "withheld", f"[withheld: guardrail {name} failed]"))]
        if len(self._rules) == 1:
            return found
        kept: list[tuple[str, Found]] = []
        for name, one in sorted(found, key=lambda each: (each[1].start, -each[1].end)):
            if not kept or one.start >= kept[-1][1].end:
                kept.append((name, one))
            elif one.end > kept[-1][1].end:
                before, last = kept[-1]
                kept[-1] = (before, Found(last.start, one.end, last.kind, last.instead))
        return kept

    def unfinished(self, text: str) -> int:
        try:
            return min((rule.unfinished(text) for _, rule in self._rules), default=len(text))
        except Exception:  # one of those that `find` may fail for, too
            log.exception("A guardrail failed")
            return len(text)

    @staticmethod
    def replaced(text: str, found: list[tuple[str, Found]], counts: Counts | None = None) -> str:
        if not found:
            return text
        pieces, at = [], 0
        for name, one in found:
            pieces += [text[at : one.start], one.instead]
            at = one.end
            if counts is not None:
                counts[name, one.kind] = counts.get((name, one.kind), 0) + 1
        return "".join([*pieces, text[at:]])

    def json(self, value: Any, counts: Counts | None = None, *, numbers: bool = False, depth: int = 0) -> Any:
        """The value itself if nothing in it changes. `numbers`: those that may be a card's become texts too."""
        if isinstance(value, str):
            return self.text(value, counts)
        if numbers and isinstance(value, int) and value >= _SMALLEST_CARD:
            text = str(value)
            return value if (told := self.text(text, counts)) == text else told
        if not isinstance(value, dict | list):
            return value
        if depth > _DEEPEST:
            return "[withheld: it is nested too deep]"
        if isinstance(value, list):
            items = [self.json(item, counts, numbers=numbers, depth=depth + 1) for item in value]
            return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
        pairs = [
            (self.text(key, counts), self.json(item, counts, numbers=numbers, depth=depth + 1))
            for key, item in value.items()
        ]
        changed = any(
            new is not item or told is not key
            for (told, new), (key, item) in zip(pairs, value.items(), strict=True)
        )  # fmt: skip
        return dict(pairs) if changed else value

    def bundle(self, data: Any, counts: Counts | None = None) -> Any:
        """Data by mime type: what is no text stays as it is."""
        if not isinstance(data, dict):
            return self.json(data, counts)
        told = {
            mime: value if _is_binary(mime) else self.json(value, counts, numbers=True) for mime, value in data.items()
        }
        return told if any(told[mime] is not value for mime, value in data.items()) else data


class _Held:
    """The end of a stream, with the message that it came with and the two characters before it."""

    __slots__ = ("before", "message", "text")

    def __init__(self) -> None:
        self.text, self.before = "", ""
        self.message: Message | None = None


class Sieve:
    """Of one kernel, or of one reading of its journal."""

    def __init__(self, redactor: Redactor, tally: Tally) -> None:
        self._redactor = redactor
        self._tally = tally
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()
        self._over: deque[str] = deque(maxlen=100)  # cells that have ended; their threads may go on

    def take(self, message: Message) -> Sequence[Message]:
        kind = message.type
        if kind == "status":
            return self._status(message)
        if kind in _UNTOUCHED or message.cut:
            return [message]
        content = message.content
        if not content and len(message.content_bytes) > 2:
            return [_with(message, _UNREADABLE)]
        if kind == "stream" and isinstance(content.get("text"), str):
            return self._stream(message, content)
        counts: Counts = {}
        told = {
            name: self._redactor.bundle(value, counts) if name == "data" else self._redactor.json(value, counts)
            for name, value in content.items()
        }
        if counts and message.parent_id and not kind.endswith("_reply"):  # a reply says what was said already
            self._tally.note(message.parent_id, message.id, counts)
        return [message if all(told[name] is content[name] for name in content) else _with(message, told)]

    def rest(self) -> Sequence[Message]:
        """What is held back, when nothing more comes."""
        return [told for key in list(self._held) for told in self._let_go(key)]

    def _status(self, message: Message) -> Sequence[Message]:
        if message.content.get("execution_state") != "idle":
            return [message]
        self._over.append(message.parent_id or "")
        freed = [key for key in self._held if key[0] in self._over]
        return [*(told for key in freed for told in self._let_go(key)), message]

    def _stream(self, message: Message, content: dict[str, Any]) -> Sequence[Message]:
        key = (message.parent_id or "", str(content.get("name")))
        held = self._held.setdefault(key, _Held())
        text, skip = held.before + held.text + content["text"], len(held.before)
        found = [one for one in self._redactor.find(text) if one[1].end > skip]
        cut = max(skip, min(self._redactor.unfinished(text), len(text)))
        for _, one in found:
            if one.start < cut < one.end:
                may_go_on = one.end == len(text) and one.end - one.start < _LONGEST_OPEN
                cut = max(skip, one.start) if may_go_on else one.end
        told = self._told(text[:cut], [one for one in found if one[1].end <= cut], skip, message, message.id)
        held.text, held.before, held.message = text[cut:], text[max(0, cut - 2) : cut], message
        freed: list[Message] = []
        while len(self._held) > _MOST_HELD:
            freed += self._let_go(next(iter(self._held)))
        if told == content["text"]:
            return [*freed, message]
        return [*freed, _with(message, {**content, "text": told})] if told else freed

    def _told(
        self, text: str, found: list[tuple[str, Found]], skip: int, message: Message, noted_as: str
    ) -> str:  # fmt: skip
        counts: Counts = {}
        moved = [
            (name, Found(max(0, one.start - skip), one.end - skip, one.kind, one.instead)) for name, one in found
        ]  # fmt: skip
        told = self._redactor.replaced(text[skip:], moved, counts)
        if counts and message.parent_id:
            self._tally.note(message.parent_id, noted_as, counts)
        return told

    def _let_go(self, key: tuple[str, str]) -> list[Message]:
        held = self._held.pop(key)
        if not held.text or held.message is None:
            return []
        text, skip = held.before + held.text, len(held.before)
        found = [one for one in self._redactor.find(text) if one[1].end > skip]
        told = self._told(text, found, skip, held.message, f"{held.message.id}+")
        return [_with(held.message, {"name": key[1], "text": told})]


def _with(message: Message, content: dict[str, Any]) -> Message:
    header, parent, metadata, _, *buffers = message.parts
    return received([header, parent, metadata, orjson.dumps(content), *buffers])


def _is_binary(mime: str) -> bool:
    return mime.startswith(_BINARY) and mime != "image/svg+xml"
