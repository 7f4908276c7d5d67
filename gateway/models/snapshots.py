"""A snapshot: a session's files, and with them its variables, as of one moment."""

from typing import Annotated, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints

from gateway.models.base import Answer, JsonMap, Request, Text, Utc
from gateway.models.labels import Labels
from gateway.models.sessions import Name, PositiveSeconds, SessionId, SessionView
from gateway.models.unsaved import ELLIPSIS, Unsaved, UnsavedVariable, bounded, cut

SnapshotKind = Literal["manual", "autosave", "hibernate", "stop", "duplicate", "import"]


class SkippedFile(BaseModel):
    """A file that could not be kept: a socket, a device, one that was gone before it was read."""

    path: Annotated[str, cut(1000)]
    reason: Annotated[str, cut(200)]


Skipped = Annotated[list[SkippedFile], bounded(lambda count: SkippedFile(path=ELLIPSIS, reason=f"and {count:,} more"))]


class CreateSnapshot(Request):
    """A snapshot of the session as it is now, or (unless it is not to `wait`) when the cell that runs has ended."""

    name: Name | None = None
    wait: bool = True


class RestoreSnapshot(Request):
    """Files and variables go back to what they were in a snapshot; one of the two may be left as it is."""

    snapshot_id: Annotated[Text, StringConstraints(min_length=1, max_length=128)]
    files: bool = True
    state: bool = True


Chosen = (
    bool | Annotated[list[Annotated[Text, StringConstraints(min_length=1, max_length=4096)]], Field(max_length=1000)]
)


class _CarriesOn(Request):
    """A new session that carries on from another one, as it is now or as it was in a snapshot.

    `files` and `state` are true for all of them, false for none, or lists: paths (folders with all in them), variables.
    """

    session_id: SessionId | None = Field(default=None, validation_alias=AliasChoices("session_id", "id", "new_id"))
    data: JsonMap | None = None
    metadata: JsonMap | None = None
    snapshot_id: Annotated[Text, StringConstraints(min_length=1, max_length=128)] | None = None
    files: Chosen = True
    state: Chosen = True
    wait: bool = True


class DuplicateSession(_CarriesOn):
    """A copy; `data` and `metadata` are merged over the source's, `labels` take the place of its own."""

    name: Name | None = None
    labels: Labels | None = None


class RemixSession(_CarriesOn):
    """A session that inherits from its parent what is not given here."""

    name: Name
    starting_prompt: Text | None = None
    agent_ids: Annotated[
        list[Annotated[Text, StringConstraints(min_length=1, max_length=256)]], Field(max_length=64)
    ] | None = None  # fmt: skip
    waiting_timeout_seconds: PositiveSeconds | None = None


class Snapshot(BaseModel):
    """The stored document; its bytes are kept under `place`, the session's uid or, brought in from outside, its own.

    `stored_bytes` is what it added to its place. One that is taken unasked is of the variables alone. `state_note` says
    why it holds no variables, or how they were saved.
    """

    model_config = ConfigDict(extra="ignore")

    id: str
    place: str
    session_id: str | None = None
    name: Annotated[str, cut(256)] | None = None
    kind: SnapshotKind
    created_at: Utc
    created_by: str = "local"
    size_bytes: int = 0
    stored_bytes: int = 0
    file_count: int = 0
    variable_count: int = 0
    unsaved: Unsaved = []
    skipped: Skipped = []
    has_files: bool = True
    has_state: bool = False
    state_note: Annotated[str, cut(1000)] | None = None
    parent_snapshot_id: str | None = None
    digest: str

    @property
    def is_loose(self) -> bool:
        """Whether it was brought in from outside and belongs to no session."""
        return self.kind == "import" and self.session_id is None


class KeptVariable(BaseModel):
    """A variable that is in a snapshot; `size` in bytes, of its own part."""

    name: Annotated[str, cut(200)]
    type: Annotated[str, cut(200)]
    size: int = 0


class SnapshotFacts(BaseModel):
    """What a manifest tells beside its files; it may come from anywhere."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, cut(256)] | None = None
    python: Annotated[str, cut(100)] | None = None
    packages: dict[str, Annotated[str, cut(100)]] = {}
    variables: list[KeptVariable] = []
    unsaved: Unsaved = []
    state_note: Annotated[str, cut(1000)] | None = None
    parent_snapshot_id: Annotated[str, cut(200)] | None = None


class DuplicateView(SessionView):
    """A session that was made from another one.

    `method`: its kernel was forked as it lived, or brought up from a snapshot, and then `method_reason` says why;
    `not_carried`: what the source had and this one has not.
    """

    method: Literal["fork", "snapshot"]
    method_reason: Annotated[str, cut(1000)] | None
    not_carried: Unsaved


class SnapshotView(Answer):
    """A snapshot as callers see it.

    `size_bytes`: all that it holds; `stored_bytes`: what keeping it took, for what an earlier one holds is shared.
    """

    id: str
    session_id: str | None
    name: str | None
    kind: SnapshotKind
    created_at: Utc
    created_by: str
    size_bytes: int
    stored_bytes: int
    file_count: int
    variable_count: int
    unsaved: list[UnsavedVariable]
    skipped: list[SkippedFile]
    has_files: bool
    has_state: bool
    state_note: str | None
    parent_snapshot_id: str | None
    digest: str

    @classmethod
    def of(cls, snapshot: Snapshot) -> Self:
        return cls.model_validate(snapshot, from_attributes=True)


class SnapshotList(Answer):
    snapshots: list[SnapshotView]
    count: int
    total_count: int
    next_token: str | None


class SnapshotDeleted(Answer):
    success: bool = True
    id: str
