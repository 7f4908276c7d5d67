"""What a gateway answers with, as typed documents; those of `gateway.models` where there is one.

A gateway may be newer or older than this client: fields that are not known are let by, a value that is not known stays
as it was sent, and a field that is missing is None.
"""

import base64
import functools
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import from_json

from gateway.client.display import mimebundle
from gateway.models.executions import ExecutionView
from gateway.states import State

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item")


class Run(ExecutionView):
    """A run and how it ended. `data` and `state` are the session's as it left them, None where that is not known.

    Shown in a notebook, it shows its outputs: text, plots, tables.
    """

    data: dict[str, Any] | None = None
    state: State | None = None

    @property
    def error_message(self) -> str | None:
        """What went wrong, in one line; None if nothing did."""
        if self.success:
            return None
        if self.error is None:
            return f"The run ended as {self.status}."
        return f"{self.error.ename}: {self.error.evalue}" if self.error.evalue else self.error.ename

    @property
    def finished(self) -> bool:
        return self.finished_at is not None

    @property
    def rich(self) -> list[dict[str, Any]]:
        """The mime bundles that were displayed, plots and tables, in order, the cell's last value among them."""
        return [output["data"] for output in self.outputs if output.get("output_type") in _WITH_DATA]

    def images(self, kind: str = "image/png") -> list[bytes]:
        """The images of one media type, decoded."""
        return [base64.b64decode(bundle[kind]) for bundle in self.rich if isinstance(bundle.get(kind), str)]

    def __str__(self) -> str:
        """What a terminal would show: what was printed, the result, the error."""
        failed = self.error_message
        parts = (self.stdout, self.stderr, self.result or "", f"{failed}" if failed else "")
        return "\n".join(part.rstrip("\n") for part in parts if part)

    def __repr__(self) -> str:
        about = f"[{self.execution_count}] " if self.execution_count is not None else ""
        told = self.error_message if not self.success and self.finished else self.result
        shown = "" if told is None else f" {told if len(told) <= 80 else told[:79] + '…'}"
        return f"<Run {about}{self.status}{shown}>"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        return mimebundle(self.outputs, str(self) or repr(self))


_WITH_DATA = ("display_data", "execute_result")


class Variable(BaseModel):
    """A variable of a session. `size_bytes` is None where it can't be told, `shape` where there is none."""

    model_config = ConfigDict(extra="allow")

    name: str
    type: str = ""
    shape: list[int] | None = None
    size_bytes: int | None = None
    preview: str = ""


class VariableValue(Variable):
    """With its value as JSON; of a table or a list, the part from `offset` on, of `total` rows or items.

    `exact` is false where something in it had to be left out or told as text; `truncated` if it would be too long.
    """

    value: Any = None
    exact: bool = True
    truncated: bool = False
    offset: int | None = None
    total: int | None = None


@dataclass(frozen=True)
class Page(Generic[Item]):
    """A page of a list: `next_token` leads to the next one, None after the last."""

    items: list[Item]
    total_count: int
    next_token: str | None = None


def read(kind: type[Model], body: bytes) -> Model:
    """A document from what was sent. Raises `ValueError` if it is no JSON object."""
    try:
        return kind.model_validate_json(body)
    except ValidationError:
        sent = from_json(body)
    return read_sent(kind, sent)


def read_sent(kind: type[Model], sent: Any) -> Model:
    """The same of JSON that was read already."""
    try:
        return kind.model_validate(sent)
    except ValidationError:
        if not isinstance(sent, dict):
            raise ValueError(f"This is no {kind.__name__}.") from None  # noqa: TRY004
    return _as_far_as_it_goes(kind, sent)


def _as_far_as_it_goes(kind: type[Model], sent: dict[str, Any]) -> Model:
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        name_sent = _name_sent(name, field, sent)
        if name_sent is None:
            fields[name] = None if field.is_required() else field.get_default(call_default_factory=True)
            continue
        try:
            fields[name] = _reader(kind, name).validate_python(sent[name_sent])
        except ValidationError:
            fields[name] = _nested(field.annotation, sent[name_sent])
    if kind.model_config.get("extra") == "allow":
        fields |= {name: value for name, value in sent.items() if name not in fields}
    return kind.model_construct(**fields)


def _nested(annotation: Any, sent: Any) -> Any:
    """A document within a document, or a list of them, as far as it can be read; else what was sent."""
    if isinstance(sent, dict) and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return read_sent(annotation, sent)
    for inner in getattr(annotation, "__args__", ()):
        if isinstance(sent, list) and isinstance(inner, type) and issubclass(inner, BaseModel):
            return [read_sent(inner, one) if isinstance(one, dict) else one for one in sent]
        if isinstance(sent, dict) and isinstance(inner, type) and issubclass(inner, BaseModel):
            return read_sent(inner, sent)
    return sent


def _name_sent(name: str, field: FieldInfo, sent: dict[str, Any]) -> str | None:
    """What the field is called in what was sent, if it is there."""
    given = field.validation_alias
    names = [one for one in given.choices if isinstance(one, str)] if isinstance(given, AliasChoices) else [given, name]
    return next((one for one in names if isinstance(one, str) and one in sent), None)


@functools.cache
def _reader(kind: type[BaseModel], name: str) -> TypeAdapter[Any]:
    field = kind.model_fields[name]
    kind_of_field: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
    return TypeAdapter(kind_of_field)
