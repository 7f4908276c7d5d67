"""A memory: what an agent has noted down, in every wording that it had; how it is asked for, and shown."""

from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from gateway.models.base import Answer, Moment, Request, Text, Utc
from gateway.models.pages import digest
from gateway.models.queries import Limit, PageQuery
from gateway.models.sessions import SessionId
from gateway.models.words import asked_words, counted, mark_name, names_in

MOST_CONTENT_BYTES = 131_072
MOST_TAGS = 64
MOST_ASKED_WORDS = 64

_MOST_PAST = 50  # wordings that a memory had before
_MOST_PAST_BYTES = 1_000_000  # of all of them, so that the whole fits into one document of any store


def _of_some_size(content: str) -> str:
    if not content.strip():
        raise ValueError("must hold more than blanks")
    size = len(content.encode())
    if size > MOST_CONTENT_BYTES:
        raise ValueError(f"holds {size:,} bytes; at most {MOST_CONTENT_BYTES:,} are kept")
    return content


def _split(tags: Any) -> Any:
    """A query has tags as `tags=a,b`, or as many `tags=a`."""
    return [tag for part in tags.split(",") if (tag := part.strip())] if isinstance(tags, str) else tags


def _few(tags: list[str]) -> list[str]:
    if len(tags) > MOST_TAGS:
        raise ValueError(f"holds {len(tags):,} tags; at most {MOST_TAGS} are kept")
    return list(dict.fromkeys(tags))


def _with_words(query: str) -> str:
    found = asked_words(query)
    if not found:
        raise ValueError("must hold a word to look for")
    if len(found) > MOST_ASKED_WORDS:
        raise ValueError(f"holds {len(found):,} different words; at most {MOST_ASKED_WORDS} are looked for")
    return query


Content = Annotated[Text, AfterValidator(_of_some_size)]
Kind = Annotated[Text, StringConstraints(min_length=1, max_length=64)]
Title = Annotated[Text, StringConstraints(min_length=1, max_length=256)]
Tag = Annotated[Text, StringConstraints(min_length=1, max_length=64, pattern=r"^[^,]*$")]
Tags = Annotated[list[Tag], BeforeValidator(_split), AfterValidator(_few)]
Confidence = Annotated[float, Field(ge=0, le=1)]
Question = Annotated[Text, StringConstraints(max_length=4000), AfterValidator(_with_words)]


class Wording(BaseModel):
    """What a memory said from one moment to another; `until` is None for what it says now."""

    model_config = ConfigDict(extra="ignore")

    type: str
    title: str | None = None
    content: str
    confidence: float
    tags: list[str] = []
    expires_at: Utc | None = None
    since: Utc
    until: Utc | None = None

    @property
    def text(self) -> str:
        """What it is found by."""
        return f"{self.title}\n{self.content}" if self.title else self.content

    def is_expired(self, at: datetime) -> bool:
        return self.expires_at is not None and self.expires_at <= at


class Memory(BaseModel):
    """The stored memory. `past` holds what it said before, oldest first, as far back as `known_since`."""

    model_config = ConfigDict(extra="ignore")

    id: str
    agent_uid: str
    agent_id: str
    window_id: str
    source_session_id: str | None = None
    created_at: Utc
    deleted_at: Utc | None = None
    version: int = 1
    now: Wording
    past: list[Wording] = []

    @property
    def known_since(self) -> datetime:
        return self.past[0].since if self.past else self.now.since

    def as_of(self, at: datetime) -> Wording | None:
        """What it said at a moment, if there was such a memory then, and it had not expired."""
        if at < self.created_at or (self.deleted_at is not None and self.deleted_at <= at):
            return None
        said = next(
            (one for one in (*self.past, self.now) if one.since <= at and (one.until is None or at < one.until)), None
        )
        return None if said is None or said.is_expired(at) else said

    def reworded(self, changes: dict[str, Any], at: datetime) -> "Memory":
        """The same memory with another wording from now on; a clock that was set back does not undo its order."""
        at = max(at, self.now.since)
        past = [*self.past, self.now.model_copy(update={"until": at})][-_MOST_PAST:]
        while sum(len(one.content.encode()) for one in past) > _MOST_PAST_BYTES:
            past = past[1:]
        said = self.now.model_copy(update={**changes, "since": at})
        return self.model_copy(update={"now": said, "past": past, "version": self.version + 1})


@dataclass(frozen=True, slots=True)
class Indexed:
    """What an index holds of a memory. `names` are of all that it ever said, `counts` and `length` of what it says."""

    names: list[str]
    counts: str
    length: int

    @classmethod
    def of(cls, memory: Memory) -> Self:
        counts, length = counted(memory.now.text)
        names = dict.fromkeys(names_in(counts))
        for past in memory.past:
            names |= dict.fromkeys(names_in(counted(past.text)[0]))
        for said in (memory.now, *memory.past):
            names[mark_name("t", said.type)] = None
            names |= dict.fromkeys(mark_name("g", tag) for tag in said.tags)
        return cls(list(names), counts, length)


@dataclass(frozen=True, slots=True)
class MemoryFilter:
    """Which memories of an agent; every part that is given must match, and of `tags` all.

    `at` is the moment as of which they are looked at; before `now` their wording of then counts, so that type and tags
    can be judged only by who reads them.
    """

    agent_uid: str
    at: datetime
    is_past: bool = False
    type: str | None = None
    tags: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    min_confidence: float | None = None

    @property
    def digest(self) -> str:
        return digest((self.agent_uid, self.type, self.tags, self.since, self.until, self.min_confidence))

    def takes(self, said: Wording) -> bool:
        fits = self.type in (None, said.type) and set(self.tags) <= set(said.tags)
        return fits and (self.min_confidence is None or said.confidence >= self.min_confidence)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A memory that holds one of the words that were asked for, as its index has it."""

    id: str
    created_at: datetime
    changed: bool  # it said something else before
    counts: str
    length: int


class Remember(Request):
    content: Content
    type: Kind = Field(default="fact", validation_alias=AliasChoices("type", "memory_type"))
    title: Title | None = None
    confidence: Confidence = 1.0
    tags: Tags = []
    source_session_id: SessionId | None = Field(
        default=None, validation_alias=AliasChoices("source_session_id", "source_session")
    )
    expires_at: Moment | None = None


class EditMemory(Request):
    """What is not named stays; `title` and `expires_at` may be null. An `expires_at` that has come ends it."""

    content: Content | None = None
    type: Kind | None = Field(default=None, validation_alias=AliasChoices("type", "memory_type"))
    title: Title | None = None
    confidence: Confidence | None = None
    tags: Tags | None = None
    expires_at: Moment | None = None


class _Which(Request):
    type: Kind | None = Field(default=None, validation_alias=AliasChoices("type", "memory_type"))
    tags: Tags = []
    since: Moment | None = None
    until: Moment | None = None
    as_of: Moment | None = None
    min_confidence: Confidence | None = None

    def filter(self, agent_uid: str, now: datetime) -> MemoryFilter:
        return MemoryFilter(
            agent_uid=agent_uid, at=min(self.as_of or now, now), is_past=self.as_of is not None and self.as_of < now,
            type=self.type, tags=tuple(self.tags), since=self.since, until=self.until,
            min_confidence=self.min_confidence,
        )  # fmt: skip


class Recall(_Which):
    """`min_score` is a share of the best that a memory could score; `as_of` asks for what was known at that time."""

    query: Question
    limit: Limit = 10
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.0


class Ask(_Which):
    question: Question = Field(validation_alias=AliasChoices("question", "query"))
    limit: Annotated[int, Field(ge=1, le=20)] = 5


class MemoriesQuery(PageQuery):
    type: Kind | None = Field(default=None, validation_alias=AliasChoices("type", "memory_type"))
    tags: Tags = []
    since: Moment | None = None
    until: Moment | None = None
    min_confidence: Confidence | None = None

    def filter(self, agent_uid: str, now: datetime) -> MemoryFilter:
        which = self.model_dump(include={"type", "since", "until", "min_confidence"})
        return MemoryFilter(agent_uid=agent_uid, at=now, tags=tuple(self.tags), **which)


class MemoryView(Answer):
    """`score` is there when it was recalled: 1 would be a memory that says nothing but what was asked, and often.

    `known_since` is how far back `as_of` finds it.
    """

    id: str
    memory_id: str
    agent_id: str
    type: str
    title: str | None
    content: str
    confidence: float
    tags: list[str]
    source_session_id: str | None
    window_id: str
    created_at: Utc
    updated_at: Utc
    expires_at: Utc | None
    known_since: Utc
    version: int
    score: float | None = None

    @classmethod
    def of(cls, memory: Memory, said: Wording | None = None, score: float | None = None) -> Self:
        said = said or memory.now
        return cls(
            **said.model_dump(exclude={"since", "until"}), updated_at=said.since, memory_id=memory.id, score=score,
            known_since=memory.known_since,
            **memory.model_dump(exclude={"now", "past", "deleted_at", "agent_uid"}),
        )  # fmt: skip


class Recalled(Answer):
    """Best first. `complete` is false when more memories hold the words than were looked at."""

    memories: list[MemoryView]
    count: int
    query: str
    as_of: Utc | None
    complete: bool


class MemoryList(Answer):
    memories: list[MemoryView]
    count: int
    total_count: int
    next_token: str | None


class MemoryDeleted(Answer):
    success: bool = True
    id: str
    deleted_at: Utc


class Citation(Answer):
    """`number` is how the answer calls it: [1]."""

    number: int
    memory_id: str
    title: str | None
    type: str
    excerpt: str
    confidence: float
    score: float
    created_at: Utc


class Answered(Answer):
    """`method` is how the answer was made: sentences of the memories themselves, or words of a language model.

    `fallback_reason` says why it is not of the model that is configured. `grounded`: some memory speaks of it.
    """

    question: str
    answer: str
    method: Literal["extractive", "model"]
    model: str | None = None
    fallback_reason: str | None = None
    grounded: bool
    citations: list[Citation]
