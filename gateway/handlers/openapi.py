"""The OpenAPI 3.1 document, made from the routes and the pydantic models: there is no second source."""

import re
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.handlers.base import Operation
from gateway.models.access import Need

_REF = "#/components/schemas/{model}"
_ERRORS = {
    400: "It can't be read", 401: "No key, or not a good one", 403: "Not for this caller",
    404: "There is no such thing", 409: "Not as things stand",
    413: "Too large", 415: "Not JSON", 422: "A field does not hold what it must", 429: "Too much at once",
    503: "Something that is needed is away", 504: "It took too long",
}  # fmt: skip
_IN_PATH: dict[str, dict[str, Any]] = {
    "session_id": {
        "type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.:\-]{0,127}$", "examples": ["data-processor"],
    },
    "agent_id": {
        "type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9_.:\-]{0,127}$", "examples": ["continuous-bot"],
    },
}  # fmt: skip


_SECURITY: dict[str, dict[str, Any]] = {
    "key": {
        "type": "http",
        "scheme": "bearer",
        "description": "An API key. Without keys, on loopback, none is asked for",
    },
    "token": {"type": "apiKey", "in": "query", "name": "token", "description": "The same key, as Jupyter's clients do"},
}
_IDEMPOTENCY_KEY: dict[str, Any] = {
    "name": "Idempotency-Key", "in": "header", "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": r"^[!-~]+$"},
    "description": "A repeated request answers with the first answer, for 24 hours",
}  # fmt: skip
_NEEDS = {
    Need.OPEN: "Needs no key.",
    Need.KEY: "Needs a key; shows what its holder may see.",
    Need.MONITOR: "Needs a key of the role admin or viewer.",
    Need.MAKE: "Needs a key that may have sessions: not a viewer's.",
    Need.READ: "Needs to own the session, or a grant of `read`.",
    Need.RUN: "Needs to own the session, or a grant of `run`.",
    Need.RUN_OR_MAKE: "Needs to own the session, or a grant of `run`; a session that nobody has is made.",
    Need.COPY: "Needs to own the session, or a grant of `run`; the new one is the caller's.",
    Need.WRITE: "Needs to own the session, or a grant of `write`.",
    Need.OWN: "Needs to own the session.",
    Need.UNDELETE: "Needs to have owned the session.",
    Need.AGENT_READ: "Needs to have made the agent, or to be it.",
    Need.AGENT: "Needs to have made the agent, or to be it; a viewer may not.",
    Need.AGENT_OR_MAKE: "Needs to have made the agent, or to be it; one that nobody has is made.",
    Need.AGENT_UNDELETE: "Needs to have made the agent; a viewer may not.",
    Need.ADMIN: "Needs a key of the role admin.",
}


def document(routes: Iterable[tuple[str, type[Any]]]) -> dict[str, Any]:
    """The whole document for routes, given as path and handler."""
    routes = list(routes)
    models = _models((op, handler.refusal_model) for _, handler in routes for op in handler.operations.values())
    schemas, definitions = models_json_schema(models, ref_template=_REF, by_alias=True)
    refs = dict(schemas)
    paths: dict[str, Any] = {}
    for path, handler in routes:
        parameters = [
            {"name": name, "in": "path", "required": True, "schema": _IN_PATH.get(name, {"type": "string"})}
            for name in re.findall(r"\{(\w+)\}", path)
        ]
        operations = {
            method.lower(): _operation(path, method, operation, refs, refs[handler.refusal_model, "serialization"])
            for method, operation in handler.operations.items()
        }
        if "post" in operations and handler.takes_idempotency_key:
            operations["post"].setdefault("parameters", []).append(_IDEMPOTENCY_KEY)
        paths[path] = operations | ({"parameters": parameters} if parameters else {})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Session Gateway",
            "version": version("session-gateway"),
            "description": "Sessions of live Jupyter kernels that remember. "
            "`/api/v0` and `/api/v2` are other names of `/api`.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": definitions.get("$defs", {}), "securitySchemes": _SECURITY},
    }


def _models(operations: Iterable[tuple[Operation, type[BaseModel]]]) -> list[tuple[type[BaseModel], Any]]:
    found: dict[tuple[type[BaseModel], str], None] = {}
    for operation, refusal in operations:
        found[refusal, "serialization"] = None
        answered = operation.answer if isinstance(operation.answer, tuple) else (operation.answer,)
        answers = [(answer, "serialization") for answer in (*answered, *operation.also_answers.values())]
        for part, mode in ((operation.body, "validation"), *answers):
            if isinstance(part, type):
                found[part, mode] = None
    return list(found)


def _operation(path: str, method: str, operation: Operation, refs: dict[Any, Any], refused: Any) -> dict[str, Any]:
    parts = [part for part in path.split("/") if part]
    described: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{method.lower()}_{path.strip('/')}").strip("_"),
        "summary": operation.summary,
        "description": _NEEDS[operation.needs],
        "security": _security(path, operation.needs),
        "tags": [next((part for part in parts[1:] if not part.startswith("{")), "service")],
        "responses": _responses(operation, refs, refused),
    }
    if operation.query is not None:
        described["parameters"] = _query_parameters(operation.query)
    if operation.body is not None:
        described["requestBody"] = {
            "required": operation.body_required and not isinstance(operation.body, str),
            "content": _content(operation.body, "validation", refs),
        }
    return described


def _security(path: str, need: Need) -> list[dict[str, list[str]]]:
    if need is Need.OPEN:
        return []
    """The empty one stands for a gateway that has no keys, and asks for none."""
    schemes: list[dict[str, list[str]]] = [{"key": []}, {}]
    return [*schemes, {"token": []}] if path.startswith("/jupyter/") else schemes


def _responses(operation: Operation, refs: dict[Any, Any], refused: Any) -> dict[str, Any]:
    fine: dict[str, Any] = {"description": operation.summary}
    if operation.answer is not None:
        fine["content"] = _content(operation.answer, "serialization", refs)
    responses = {str(operation.status): fine}
    refusal = {"application/json": {"schema": refused}}
    for status, why in {**_ERRORS, **operation.also}.items():
        if status == 401 and operation.needs is Need.OPEN:
            continue
        content = refusal if status >= 400 else {}
        if answer := operation.also_answers.get(status):
            content = _content(answer, "serialization", refs)
        responses.setdefault(str(status), {"description": why} | ({"content": content} if content else {}))
    return dict(sorted(responses.items()))


def _content(
    part: type[BaseModel] | str | tuple[type[BaseModel] | str, ...], mode: str, refs: dict[Any, Any]
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for one in part if isinstance(part, tuple) else (part,):
        if isinstance(one, type):
            content["application/json"] = {"schema": refs[one, mode]}
        else:
            content[one] = (
                {"schema": {"type": "string"}} if one.startswith("text/") and one != "text/event-stream" else {}
            )
    return content


def _query_parameters(query: type[BaseModel]) -> list[dict[str, Any]]:
    schema = query.model_json_schema(ref_template=_REF)
    definitions = schema.get("$defs", {})
    parameters = []
    for name, field in schema.get("properties", {}).items():
        parameters.append({"name": name, "in": "query", "required": False, "schema": _inlined(field, definitions)})
    return parameters


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """A parameter's schema without references; a null has no spelling in a query."""
    if isinstance(schema, list):
        return [_inlined(one, definitions) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    if "anyOf" in schema:
        options = [one for one in schema["anyOf"] if one != {"type": "null"}]
        if len(options) == 1:
            return _inlined(options[0], definitions)
    return {key: _inlined(value, definitions) for key, value in schema.items() if key not in ("default", "title")}
