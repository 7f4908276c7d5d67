"""A run's outputs as one mime bundle, which is what a notebook asks an object for."""

import html
import re
from typing import Any

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_PRE = '<pre style="margin:0;white-space:pre-wrap">'


def mimebundle(outputs: list[dict[str, Any]], text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Data and metadata. A single rich output is passed on as it is; several are put below one another as HTML."""
    shown = [output for output in outputs if _is_shown(output)]
    if len(shown) == 1 and "data" in shown[0]:
        data = dict(shown[0]["data"])
        return data | {"text/plain": data.get("text/plain", text)}, dict(shown[0].get("metadata") or {})
    plain = {"text/plain": text}
    if not any(set(output.get("data", ())) - {"text/plain"} for output in shown):
        return plain, {}
    return plain | {"text/html": "\n".join(_as_html(output) for output in shown)}, {}


def plain(text: str) -> str:
    """Text without the escape sequences that colour a terminal, or would do it harm."""
    return _ANSI.sub("", text)


def _is_shown(output: dict[str, Any]) -> bool:
    if output.get("output_type") == "stream":
        return bool(output.get("text"))
    return output.get("output_type") in ("display_data", "execute_result", "error")


def _as_html(output: dict[str, Any]) -> str:
    """HTML and SVG are the session's own, as they are in any notebook; whatever is text is shown as text."""
    match output["output_type"]:
        case "stream":
            return _pre(output["text"])
        case "error":
            return _pre("\n".join(output.get("traceback") or [f"{output.get('ename')}: {output.get('evalue')}"]))
    data, metadata = output["data"], output.get("metadata") or {}
    for kind in ("text/html", "image/svg+xml"):
        if isinstance(data.get(kind), str):
            return f"<div>{data[kind]}</div>"
    for kind in _IMAGES:
        if isinstance(data.get(kind), str):
            return _image(kind, data[kind], metadata.get(kind) or {})
    for kind in ("text/markdown", "text/latex"):
        if isinstance(data.get(kind), str):
            return _pre(data[kind])
    return _pre(str(data.get("text/plain", "")))


def _image(kind: str, content: str, metadata: dict[str, Any]) -> str:
    size = "".join(
        f' {side}="{int(metadata[side])}"'
        for side in ("width", "height")
        if isinstance(metadata.get(side), int | float)
    )
    return f'<img src="data:{kind};base64,{html.escape("".join(content.split()))}"{size}>'


def _pre(text: str) -> str:
    return f"{_PRE}{html.escape(plain(text))}</pre>"
