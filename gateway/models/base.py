"""What all models share: strict requests, UTC times, text that can be stored and sent."""

import re
import secrets
import string
import time
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
)

_BASE36 = string.digits + string.ascii_lowercase

_NUMBER = re.compile(r"[+-]?[\d_.]+(?:[eE][+-]?\d+)?")
_TIME: TypeAdapter[datetime] = TypeAdapter(datetime)


def now() -> datetime:
    return datetime.now(UTC)


def new_id(kind: str) -> str:
    """`<kind>_<unix ms>_<9 base36>`."""
    return f"{kind}_{time.time_ns() // 1_000_000}_{''.join(secrets.choice(_BASE36) for _ in range(9))}"


def iso(moment: datetime) -> str:
    """`2026-01-20T10:00:00.123456Z`: always UTC, always six decimals."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds")[:-6] + "Z"


def _aware(moment: datetime) -> datetime:
    if moment.tzinfo is UTC:
        return moment
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def told(text: str, most_characters: int = 1000) -> str:
    """A text from elsewhere as it can be stored and sent: lone surrogates escaped, NUL shown, and not too long."""
    text = text.encode(errors="backslashreplace").decode().replace("\0", "\\0")
    return text if len(text) <= most_characters else text[: most_characters - 1] + "…"


def _storable(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain a NUL character")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain a lone surrogate") from None
    return text


def _storable_tree(value: Any) -> Any:
    """The same promise for free JSON: every key and every string in it, at most 64 levels deep."""
    pending = [(value, 0)]
    while pending:
        item, depth = pending.pop()
        if depth > 64:
            raise ValueError("must not be nested deeper than 64 levels")
        if isinstance(item, str):
            _storable(item)
        elif isinstance(item, dict):
            for key in item:
                _storable(str(key))
            pending.extend((child, depth + 1) for child in item.values())
        elif isinstance(item, list):
            pending.extend((child, depth + 1) for child in item)
        elif isinstance(item, int) and not -(2**63) <= item < 2**63:
            raise ValueError("must not hold an integer beyond 64 bits")
        elif isinstance(item, float) and item - item != 0:
            raise ValueError("must not hold NaN or an infinity")
    return value


def _written_time(value: Any) -> Any:
    """Text is read here: in it, a number would be taken for seconds since 1970."""
    if not isinstance(value, str):
        return value
    if _NUMBER.fullmatch(value.strip()):
        raise ValueError("must be a time as ISO 8601 has it")
    try:
        return _TIME.validate_python(value)
    except ValidationError:
        return value  # what is wrong is told as of any other field


Utc = Annotated[datetime, AfterValidator(_aware), PlainSerializer(iso, return_type=str)]
Moment = Annotated[Utc, BeforeValidator(_written_time)]  # as a client gives it
Text = Annotated[str, AfterValidator(_storable)]
Json = Annotated[Any, BeforeValidator(_storable_tree)]
JsonMap = Annotated[dict[str, Any], BeforeValidator(_storable_tree)]


class Request(BaseModel):
    """What comes in from outside: an unknown field is refused, and named."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Answer(BaseModel):
    """What goes out."""

    model_config = ConfigDict(extra="ignore")
