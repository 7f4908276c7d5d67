"""What is sent to a gateway, before anything is sent: calls are data, so that a call can be made again as it was."""

import json
import os
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

DEFAULT_URL = "http://127.0.0.1:8888"


@dataclass(frozen=True, slots=True)
class Call:
    """One request. `repeatable`: to send it twice does no more than to send it once.

    `waits`: its answer may take as long as code runs, so that silence says nothing.
    """

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    repeatable: bool = True
    waits: bool = False

    def with_headers(self, **headers: str) -> "Call":
        """`last_event_id` is sent as `Last-Event-ID`: HTTP does not mind how a name is written."""
        return replace(self, headers=self.headers | {name.replace("_", "-"): value for name, value in headers.items()})

    def with_body(self, body: bytes) -> "Call":
        return replace(self, body=body)


def get(path: str, /, **query: Any) -> Call:
    return Call("GET", path, query_of(query))


def put(path: str, body: Any) -> Call:
    return Call("PUT", path, body=encoded(body), headers=_JSON)


def patch(path: str, body: Any) -> Call:
    return Call("PATCH", path, body=encoded(body), headers=_JSON)


def delete(path: str, /, **query: Any) -> Call:
    return Call("DELETE", path, query_of(query))


def post(path: str, body: Any = None, /, *, key: str | None = None, **query: Any) -> Call:
    """Under a key of its own, so that it can be sent again and is done once; `key` is for callers with their own."""
    headers = {**_JSON, "Idempotency-Key": key or uuid4().hex}
    return Call("POST", path, query_of(query), encoded({} if body is None else body), headers, waits=True)


def post_once(path: str, body: Any = None) -> Call:
    """A POST that the gateway keeps no answer of: it is not sent again once it may have arrived."""
    return Call("POST", path, body=encoded({} if body is None else body), headers=_JSON, repeatable=False, waits=True)


def given(**fields: Any) -> dict[str, Any]:
    """Those that are given; None is nothing."""
    return {name: value for name, value in fields.items() if value is not None}


def encoded(body: Any) -> bytes:
    """JSON; models are written as the gateway reads them. Raises `ValueError` for what JSON has no words for."""
    return json.dumps(body, allow_nan=False, separators=(",", ":"), default=_plain).encode()


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if isinstance(value, datetime):
        return written(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "tolist"):  # numpy's numbers and arrays
        return value.tolist()
    raise TypeError(f"{type(value).__name__} can't be sent as JSON.")


def written(moment: datetime) -> str:
    """In UTC; a moment without a time zone is one of this machine's, as everywhere in Python."""
    return moment.astimezone(UTC).isoformat()


def file_body(content: str | bytes) -> Any:
    """A file within a JSON body."""
    return content if isinstance(content, str) else {"encoding": "base64", "content": b64encode(content).decode()}


def query_of(given: Mapping[str, Any]) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in given.items():
        if value is None:
            continue
        if isinstance(value, bool):
            query[name] = str(value).lower()
        elif isinstance(value, dict):
            query[name] = json.dumps(value)
        elif isinstance(value, list | tuple):
            query[name] = ",".join(map(str, value))
        elif isinstance(value, datetime):
            query[name] = written(value)
        else:
            query[name] = str(value)
    return query


def part(name: str) -> str:
    """A name as one part of a path. Raises `ValueError` for an empty one, which would name something else."""
    if not name:
        raise ValueError("An id must not be empty.")
    return _undotted(quote(name, safe=":"))


def file_part(path: str) -> str:
    """A file's path as the end of a URL's; the gateway judges it, so that nothing here may resolve its dots."""
    if not path.strip("/"):
        raise ValueError("A file's path must not be empty.")
    return "/".join(_undotted(quote(one, safe="")) for one in path.split("/"))


def _undotted(quoted: str) -> str:
    return quoted.replace(".", "%2E") if quoted in (".", "..") else quoted


def address(url: str | None) -> str:
    """Where the gateway is: as given, or `GATEWAY_URL`, or this machine. Raises `ValueError` for what is no address."""
    found = (url or os.environ.get("GATEWAY_URL") or DEFAULT_URL).rstrip("/")
    parts = urlsplit(found)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{found!r} is not the address of a gateway, such as {DEFAULT_URL}.")
    return found


def secret(key: str | None) -> str | None:
    return key or os.environ.get("GATEWAY_KEY") or None


def is_on_this_machine(url: str) -> bool:
    """Where no proxy has anything to say."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


_JSON = {"Content-Type": "application/json"}
