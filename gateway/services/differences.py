"""Whether two runs put out the same, but for addresses, times and the ids that libraries make up. No I/O."""

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Callable
from datetime import date, datetime
from difflib import unified_diff
from typing import Any

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,16}\b")
_ID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|\b[0-9a-f]{32}\b|(?<=T_)[0-9a-f]{5}(?=[_\"\s])")
_MOMENT = re.compile(r"\b(\d{4}-\d\d-\d\d)(?:[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?(?![\d-])")
_CLOCK = re.compile(r"(?<![\d:.])\d{1,2}:\d\d:\d\d(?:[.,]\d+)?(?![\d:])")
_DURATION = re.compile(
    r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)? ?(?:ns|µs|μs|us|ms|s|sec|secs|seconds?|min|minutes?|hours?)\b"
    r"(?: ?± ?\d+(?:\.\d+)? ?(?:ns|µs|μs|us|ms|s))?"
)
_UNIX = re.compile(r"(?<![\w.])\d{10}(?:\d{3}){0,3}(?:\.\d+)?(?![\w])")
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_NEAR_S = 86_400.0
_MOST_LINES = 2000  # of what is compared line by line: beyond that it would take too long
_MOST_DIFF = 20_000  # characters

Moment = datetime | None


def difference(
    before: list[dict[str, Any]], before_at: Moment, after: list[dict[str, Any]], after_at: Moment
) -> str | None:
    """A unified diff of what two runs put out (as nbformat has it), None if it is the same.

    Dates and Unix times count as times where they are within a day of when their run began: others are data.
    """
    old, new = _told(before, before_at), _told(after, after_at)
    if old == new:
        return None
    lines = unified_diff(old[:_MOST_LINES], new[:_MOST_LINES], "before", "after", lineterm="", n=2)
    text = "\n".join(lines) or f"They differ after line {_MOST_LINES}."
    return text if len(text) <= _MOST_DIFF else text[: _MOST_DIFF - 1] + "…"


def _told(outputs: list[dict[str, Any]], at: Moment) -> list[str]:
    """What was put out, line by line. Which stream came first is chance, so each is told as a whole."""
    lines: list[str] = []
    for name in ("stdout", "stderr"):
        text = "".join(one["text"] for one in outputs if one["output_type"] == "stream" and one["name"] == name)
        if text:
            lines += [f"[{name}]", *_plain(text, at).splitlines()]
    for output in outputs:
        if output["output_type"] == "error":
            lines += ["[error]", *_plain(f"{output['ename']}: {output['evalue']}", at).splitlines()]
        elif output["output_type"] != "stream":
            for media_type, value in sorted(output["data"].items()):
                lines += [f"[{output['output_type']} {media_type}]", *_value_lines(media_type, value, at)]
    return lines


def _value_lines(media_type: str, value: Any, at: Moment) -> list[str]:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, indent=1)
    if media_type.partition("/")[0] in ("image", "audio", "video") and media_type != "image/svg+xml":
        try:
            raw = base64.b64decode(text)
        except (binascii.Error, ValueError):
            raw = text.encode(errors="replace")
        return [f"{len(raw)} bytes, sha256 {hashlib.sha256(raw).hexdigest()[:16]}"]
    return _plain(text, at).splitlines()


def _plain(text: str, at: Moment) -> str:
    text = _ADDRESS.sub("<address>", _ANSI.sub("", text))
    text = _ID.sub("<id>", text)
    text = _DURATION.sub("<duration>", text)
    if at is not None:
        text = _UNIX.sub(_near_unix(at), _MOMENT.sub(_near_date(at), text))
    return _CLOCK.sub("<time>", text)


def _near_unix(at: datetime) -> Callable[[re.Match[str]], str]:
    moment = at.timestamp()

    def replaced(found: re.Match[str]) -> str:
        whole = found[0].partition(".")[0]
        seconds = float(found[0]) / 10 ** (len(whole) - 10)
        return "<time>" if abs(seconds - moment) <= _NEAR_S else found[0]

    return replaced


def _near_date(at: datetime) -> Callable[[re.Match[str]], str]:
    def replaced(found: re.Match[str]) -> str:
        try:
            days = abs((date.fromisoformat(found[1]) - at.date()).days)
        except ValueError:
            return found[0]
        return "<time>" if days <= 1 else found[0]

    return replaced
