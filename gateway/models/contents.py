"""Jupyter's contents API: the model of a file, a notebook or a folder, and what may be asked for."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gateway.models.base import Answer, Text, Utc

ContentType = Literal["notebook", "file", "directory"]
ContentFormat = Literal["text", "base64", "json"]


class ContentsQuery(BaseModel):
    """What of a path is wanted. Clients add parameters of their own, such as one against caches: they are let by."""

    model_config = ConfigDict(extra="ignore")

    type: ContentType | None = None
    format: ContentFormat | None = None
    content: Annotated[int, Field(ge=0, le=1)] = 1
    hash: Annotated[int, Field(ge=0, le=1)] = 0


class _FromJupyter(BaseModel):
    """Clients send the whole model back; what says nothing to us is let by."""

    model_config = ConfigDict(extra="ignore")


class SaveContents(_FromJupyter):
    """`chunk` counts from 1 and is -1 for the last one; the file is there once that has come."""

    type: ContentType
    format: ContentFormat | None = None
    content: Any = None
    chunk: int | None = None


class NewContents(_FromJupyter):
    """Something new without a name, or a copy of `copy_from`."""

    copy_from: Text | None = None
    type: ContentType | None = None
    ext: Annotated[Text, Field(max_length=64, pattern=r"^[^/]*$")] = ""


class RenameContents(_FromJupyter):
    path: Text


class Contents(Answer):
    """One file, notebook or folder. `message` tells why a notebook is not valid, if it is not."""

    name: str
    path: str
    type: ContentType
    writable: bool
    created: Utc
    last_modified: Utc
    size: int | None = None
    mimetype: str | None = None
    format: ContentFormat | None = None
    content: Any = None
    hash: str | None = None
    hash_algorithm: str | None = None
    message: str | None = None


class Checkpoint(Answer):
    id: str
    last_modified: Utc


class JupyterError(BaseModel):
    """A refusal as Jupyter's clients read it; `code` is ours."""

    message: str
    reason: str | None
    code: str
    request_id: str
