"""The OpenAPI document and the page that shows it."""

import re
from html.parser import HTMLParser
from typing import Any

from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.handlers.routes import ROUTES
from tests.api import Api


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of its scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.found and self.found[-1][0] == "script":
            self.scripts += data


async def test_the_document_is_valid_openapi(api: Api) -> None:
    document = await api.get("/api/openapi.json")

    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"].startswith("3.1")


async def test_every_route_and_method_is_in_the_document_and_nothing_else(api: Api) -> None:
    document = await api.get("/api/openapi.json")

    described = {
        (path, method) for path, item in document["paths"].items() for method in item if method != "parameters"
    }
    assert described == {(route.path, method.lower()) for route in ROUTES for method in route.handler.operations}


async def test_every_operation_says_what_it_does_takes_and_answers(api: Api) -> None:
    document = await api.get("/api/openapi.json")

    names: list[str] = []
    for path, item in document["paths"].items():
        in_path = {one["name"] for one in item.get("parameters", [])}
        assert in_path == set(re.findall(r"\{(\w+)\}", path))
        for operation in (one for method, one in item.items() if method != "parameters"):
            names.append(operation["operationId"])
            assert operation["summary"]
            assert operation["tags"]
            assert any(status < "400" for status in operation["responses"])
            assert "422" in operation["responses"]
    assert len(names) == len(set(names))


async def test_no_pattern_is_one_that_only_python_reads(api: Api) -> None:
    def patterns(part: Any) -> list[str]:
        if isinstance(part, list):
            return [one for item in part for one in patterns(item)]
        if not isinstance(part, dict):
            return []
        own = [part["pattern"]] if isinstance(part.get("pattern"), str) else []
        return own + [one for item in part.values() for one in patterns(item)]

    found = patterns(await api.get("/api/openapi.json"))

    assert found
    for pattern in found:
        assert not re.search(r"\\[zZA]|\(\?P", pattern)


async def test_the_page_asks_no_other_host_for_anything(api: Api) -> None:
    answer = await api.http.get("/docs")

    page = Elements(answer.text)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert not re.search(r"(?i)https?:|//[a-z0-9-]+\.[a-z]", answer.text)
    assert not [tag for tag, attributes in page.found if tag in ("link", "iframe", "img") or "src" in attributes]


async def test_the_page_runs_only_its_own_script_and_inserts_text_as_text(api: Api) -> None:
    first, second = await api.http.get("/docs"), await api.http.get("/docs")

    page, policy = Elements(first.text), first.headers["Content-Security-Policy"]
    nonces = {attributes.get("nonce") for tag, attributes in page.found if tag in ("script", "style")}
    nonce = str(nonces.pop())
    assert not nonces
    assert "default-src 'none'" in policy
    assert f"'nonce-{nonce}'" in policy
    assert "unsafe" not in policy
    assert nonce not in second.text
    assert "{{nonce}}" not in first.text
    assert not [
        attributes
        for _, attributes in page.found
        if "style" in attributes or any(n.startswith("on") for n in attributes)
    ]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", page.scripts)


async def test_the_way_in_leads_to_the_page(api: Api) -> None:
    answer = await api.http.get("/")

    assert (answer.status_code, answer.headers["Location"]) == (302, "/docs")
