"""A session's history, run again in a new session and compared."""

from typing import Literal

from gateway.models.base import Answer, Request, Utc
from gateway.models.executions import Status
from gateway.models.notebooks import SeriesStatus
from gateway.models.sessions import PositiveSeconds, SessionId

Verdict = Literal["same", "different", "failed", "skipped"]


class ReplayRequest(Request):
    """`session_id` names the new session; with `files` it begins with those of the old one as they are now.

    `timeout` is for each run, in seconds, in place of the one that it had.
    """

    session_id: SessionId | None = None
    files: bool = True
    stop_on_error: bool = False
    stream: bool = False
    background: bool = False
    timeout: PositiveSeconds | None = None


class ReplayedRun(Answer):
    """One run and the same code run again.

    `diff` is a unified diff of what both put out, in which addresses and times are ignored; `reason` says why it was
    skipped, or how it failed.
    """

    execution_id: str
    replayed_execution_id: str | None = None
    code: str
    verdict: Verdict | None = None
    reason: str | None = None
    diff: str | None = None
    before: Status
    after: Status | None = None
    duration_ms_before: float | None = None
    duration_ms_after: float | None = None


class ReplayCounts(Answer):
    same: int
    different: int
    failed: int
    skipped: int


class Replay(Answer):
    """`session_id` is the new session, `source_session_id` the one whose history it runs; `same` if all came out so."""

    replay_id: str
    session_id: str
    source_session_id: str
    status: SeriesStatus
    reason: str | None
    same: bool
    counts: ReplayCounts
    started_at: Utc
    finished_at: Utc | None
    runs: list[ReplayedRun]
