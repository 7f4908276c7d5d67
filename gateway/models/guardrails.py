"""Guardrails by name, as sessions, keys and settings carry them, and what they did in a run."""

from typing import Annotated

from pydantic import BaseModel, Field, StringConstraints, WithJsonSchema

_NAME = r"[a-z0-9][a-z0-9\-]{0,63}(?::[\x21-\x7e]{1,128})?"

GuardrailName = Annotated[
    str,
    StringConstraints(pattern=rf"^{_NAME}\z"),
    WithJsonSchema({"type": "string", "pattern": rf"^{_NAME}$"}),
]
"""`name`, or `name:parameter`."""

GuardrailNames = Annotated[list[GuardrailName], Field(max_length=16)]


class GuardrailAct(BaseModel):
    """What a guardrail did to the output of a run: how often what of it was replaced, or left out."""

    guardrail: str
    counts: dict[str, int]
