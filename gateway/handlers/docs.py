"""The OpenAPI document, and a page that shows it without asking any other host."""

import json
import secrets
from importlib.resources import files

from gateway.handlers.base import ApiHandler, Operation
from gateway.models.access import Need

_POLICY = "default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'"


class OpenApiHandler(ApiHandler):
    """GET /api/openapi.json"""

    takes_any_query = True
    operations = {"GET": Operation("This document", "application/json", needs=Need.OPEN)}

    def get(self) -> None:
        self.send_json(json.dumps(self.application.settings["openapi"]))


class DocsHandler(ApiHandler):
    """GET /docs: the document as a page; it works without any other host."""

    takes_any_query = True
    operations = {"GET": Operation("The API as a page", "text/html", needs=Need.OPEN)}

    def get(self) -> None:
        nonce = secrets.token_urlsafe(16)
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", _POLICY.format(nonce=nonce))
        page = files("gateway.handlers").joinpath("docs.html").read_text(encoding="utf-8")
        self.finish(page.replace("{{nonce}}", nonce))


class HomeHandler(ApiHandler):
    """GET /: for now the way to the docs."""

    takes_any_query = True
    operations = {"GET": Operation("The way in", "text/html", 302, needs=Need.OPEN)}

    def get(self) -> None:
        self.redirect("/docs")
