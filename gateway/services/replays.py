"""A session's history, run again in a new session, run by run compared with what it was."""

import asyncio
from dataclasses import dataclass

from gateway.models.executions import Execution, ExecutionView, RunRequest, Status
from gateway.models.notebooks import SeriesStatus
from gateway.models.replays import Replay, ReplayCounts, ReplayedRun, ReplayRequest
from gateway.models.snapshots import RemixSession
from gateway.services.differences import difference
from gateway.services.history import ended_runs
from gateway.services.series import Series, SeriesService
from gateway.services.sessions import SessionService
from gateway.services.snapshots import SnapshotService
from gateway.stores.base import Store

_NOT_AGAIN = {
    Status.INTERRUPTED: "It was interrupted: nobody knows how far it would have come.",
    Status.DIED: "Its kernel died.",
}


@dataclass(slots=True)
class _Under:
    """A replay that is under way."""

    session_id: str
    source_id: str
    source_uid: str
    runs: list[ReplayedRun]
    series: Series

    def view(self) -> Replay:
        series, verdicts = self.series, [run.verdict for run in self.runs]
        counts = ReplayCounts(
            same=verdicts.count("same"), different=verdicts.count("different"),
            failed=verdicts.count("failed"), skipped=verdicts.count("skipped"),
        )  # fmt: skip
        return Replay(
            replay_id=series.id, session_id=self.session_id, source_session_id=self.source_id, status=series.status,
            reason=series.reason, same=series.status is SeriesStatus.OK and counts.same == len(verdicts),
            counts=counts, started_at=series.started_at, finished_at=series.finished_at, runs=self.runs,
        )  # fmt: skip


class ReplayService:
    def __init__(
        self, store: Store, sessions: SessionService, snapshots: SnapshotService, series: SeriesService
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._snapshots = snapshots
        self._series = series

    async def begin(self, session_id: str, request: ReplayRequest, caller: str) -> Series:
        """Make the new session, configured as the old one, and begin to run the history in it, oldest run first.

        What a run was given as `stdin` or `env` is not in the history: without it, it may fail.
        """
        uid = await self._sessions.uid_of(session_id)
        runs = [_again(run) async for run in ended_runs(self._store, uid)][::-1]
        child = RemixSession(
            name=f"Replay of {session_id}", session_id=request.session_id, files=request.files, state=False
        )
        made = await self._snapshots.remix(session_id, child, caller)
        series = self._series.new(uid, interactive=request.stream)
        series.keep_on = request.background
        under = _Under(made.session.id, session_id, uid, runs, series)
        series.view = under.view
        asked = {
            "session_id": made.session.id, "session_uid": made.session.uid, "runs": [run.execution_id for run in runs],
        }  # fmt: skip
        await self._series.begin(series, "replay", asked, lambda: self._run(under, request, caller))
        return series

    async def past(self, session_id: str, replay_id: str) -> Replay:
        """One that ended, or whose gateway did: as far as it came. Raises `SeriesNotFound`."""
        uid = await self._sessions.uid_of(session_id)
        series, kept = await self._series.past(uid, "replay", replay_id)
        under = _Under(kept.asked["session_id"], session_id, uid, [], series)
        for index, execution_id in enumerate(kept.asked["runs"]):
            before = await self._store.get_execution(uid, execution_id)
            run = _again(before)
            under.runs.append(run)
            if run.before in _NOT_AGAIN:
                run.verdict, run.reason = "skipped", _NOT_AGAIN[run.before]
                continue
            after = await self._series.past_run(kept.asked["session_uid"], replay_id, index)
            if after is not None and after.finished_at is not None:
                await asyncio.to_thread(_judge, run, before, after)
        verdicts = [run.verdict for run in under.runs]
        if None not in verdicts and kept.finished_at is None:
            series.status = SeriesStatus.ERROR if "failed" in verdicts else SeriesStatus.OK
            series.reason = None
        return under.view()

    async def _run(self, under: _Under, request: ReplayRequest, caller: str) -> bool:
        series = under.series
        for index, run in enumerate(under.runs):
            if not series.goes_on:
                break
            if run.before in _NOT_AGAIN:
                run.verdict, run.reason = "skipped", _NOT_AGAIN[run.before]
            else:
                before = await self._store.get_execution(under.source_uid, run.execution_id)
                again = RunRequest.model_construct(code=run.code, timeout=request.timeout or before.timeout_s)
                answer = await self._series.run(
                    series, under.session_id, again, caller, index=index, replayed=run.execution_id
                )
                await asyncio.to_thread(_judge, run, before, answer)
                if not series.goes_on and answer.status is Status.INTERRUPTED:
                    run.verdict, run.reason = "skipped", series.reason
            series.size_bytes += len(run.code) + len(run.diff or "")
            series.journal.add("run_done", run.model_copy())
            if run.verdict == "failed" and request.stop_on_error:
                series.reason = "A run failed; later ones were not run again."
                break
        return not any(run.verdict == "failed" for run in under.runs)


def _again(run: Execution) -> ReplayedRun:
    return ReplayedRun(execution_id=run.id, code=run.code, before=run.status, duration_ms_before=run.duration_ms)


def _judge(run: ReplayedRun, before: Execution, answer: ExecutionView) -> None:
    run.replayed_execution_id, run.after, run.duration_ms_after = (
        answer.execution_id, answer.status, answer.duration_ms,
    )  # fmt: skip
    run.diff = difference(before.outputs, before.started_at, answer.outputs, answer.started_at)
    if answer.status not in (Status.OK, before.status):
        run.verdict = "failed"
        run.reason = f"{answer.error.ename}: {answer.error.evalue}"[:1000] if answer.error else str(answer.status)
    else:
        run.verdict = "same" if run.diff is None and answer.status == before.status else "different"
