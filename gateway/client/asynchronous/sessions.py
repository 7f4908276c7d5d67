"""A session of the gateway, as one works with it."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from gateway.client.asynchronous.executions import AsyncExecution, AsyncRunStream, checked, run_pages, stop_unnamed
from gateway.client.asynchronous.files import AsyncFiles
from gateway.client.asynchronous.pages import AsyncPages
from gateway.client.asynchronous.snapshots import AsyncSnapshots
from gateway.client.asynchronous.transport import AsyncTransport
from gateway.client.asynchronous.variables import AsyncVariables
from gateway.client.asynchronous.waiting import Cancelled
from gateway.client.calls import delete, get, given, part, patch, post, put
from gateway.client.documents import Page, Run, read
from gateway.client.errors import ClientError
from gateway.client.events import Position
from gateway.models.access import GrantLevel, Grants
from gateway.models.base import now
from gateway.models.executions import Accepted, HistoryList, Interrupted
from gateway.models.notebooks import NotebookFormat, NotebookRun
from gateway.models.queries import KernelReply, LogView, SessionMetrics, Success
from gateway.models.replays import Replay
from gateway.models.sessions import (
    CodeView,
    Deleted,
    LabelMap,
    Move,
    MoveList,
    SessionList,
    SessionView,
)  # fmt: skip
from gateway.models.snapshots import DuplicateView

Which = bool | list[str]


class AsyncSession:
    """One session. Making this object asks nothing of the gateway: most calls bring a session into being.

    `files`, `snapshots` and `variables` are what it has. `document` is what was last seen of it, if anything was;
    `info()` looks anew.
    """

    def __init__(self, transport: AsyncTransport, session_id: str, document: SessionView | None = None) -> None:
        self._transport = transport
        self._path = f"/api/sessions/{part(session_id)}"
        self.id = session_id
        self.document = document
        self.files = AsyncFiles(transport, session_id)
        self.snapshots = AsyncSnapshots(transport, session_id)
        self.variables = AsyncVariables(transport, session_id)

    def __repr__(self) -> str:
        state = f" {self.document.state}" if self.document is not None else ""
        return f"<Session {self.id!r}{state} at {self._transport.url}>"

    # Running code

    async def run(
        self, code: str | None = None, *, timeout: float | None = None, env: Mapping[str, str] | None = None,  # noqa: ASYNC109
        stdin: str | None = None, update_data: Mapping[str, Any] | None = None, store_history: bool = True,
        check: bool = False,
    ) -> Run:  # fmt: skip
        """Run code (without any, the stored code) and wait for its end, through restarts of the gateway too.

        `timeout` is in seconds. Code that fails is a result: look at `run.success`, or have `check` raise `RunFailed`.
        Whoever stops waiting (Ctrl-C, a cancelled task) interrupts the run.
        """
        body = _run_body(code, timeout, env, stdin, update_data, store_history)
        try:
            run = await self._transport.ask(Run, post(f"{self._path}/run", body))
        except Cancelled:
            with suppress(ClientError):  # what is to be raised is that the caller has stopped it
                await stop_unnamed(self._transport, self.id, code)
            raise
        return checked(run) if check else run

    def stream(
        self, code: str | None = None, *, timeout: float | None = None, env: Mapping[str, str] | None = None,
        stdin: str | None = None, update_data: Mapping[str, Any] | None = None, store_history: bool = True,
    ) -> AsyncRunStream:  # fmt: skip
        """Run code and get its outputs as they come. It begins with the first event that is asked for.

        A cell that asks for input without `stdin` sends `input_request`, which `answer()` answers.
        """
        body = _run_body(code, timeout, env, stdin, update_data, store_history)
        return AsyncRunStream(self._transport, Position(self.id, begin=post(f"{self._path}/stream", body)))

    async def start(
        self, code: str | None = None, *, timeout: float | None = None, env: Mapping[str, str] | None = None,  # noqa: ASYNC109
        stdin: str | None = None, update_data: Mapping[str, Any] | None = None, store_history: bool = True,
    ) -> AsyncExecution:  # fmt: skip
        """Run code in the background."""
        body = _run_body(code, timeout, env, stdin, update_data, store_history) | {"background": True}
        begun = await self._transport.ask(Accepted, post(f"{self._path}/run", body))
        return self.execution(begun.execution_id)

    def execution(self, execution_id: str) -> AsyncExecution:
        """A run that was begun earlier, or by somebody else."""
        return AsyncExecution(self._transport, self.id, execution_id)

    def executions(self, *, limit: int = 100) -> AsyncPages[Run]:
        """Runs, newest first; `limit` is how many are fetched at once."""
        return run_pages(self._transport, self.id, {"limit": limit})

    def history(self, *, limit: int = 100, include_deleted: bool = False) -> AsyncPages[Run]:
        """Every run that was recorded, newest first."""

        def parse(body: bytes) -> Page[Run]:
            found = read(_History, body)
            return Page(found.history, found.total_count, found.next_token)

        query = {"limit": limit, "include_deleted": include_deleted or None}
        return AsyncPages(self._transport, f"{self._path}/history", query, parse)

    async def answer(self, text: str) -> None:
        """Answer a cell that waits in `input()`. Raises `Conflict` if none does."""
        await self._transport.ask(Success, post(f"{self._path}/input", {"text": text}))

    async def interrupt(self) -> Interrupted:
        """Interrupt what runs; what is queued is run after it."""
        return await self._transport.ask(Interrupted, post(f"{self._path}/interrupt"))

    async def restart(self, *, fresh: bool = False) -> SessionView:
        """Restart the kernel with its saved variables, or `fresh`, without any. Files are kept."""
        body = {"state": "fresh" if fresh else "saved"}
        return await self._seen(SessionView, post(f"{self._path}/restart", body))

    async def wake(self) -> SessionView:
        """Have the kernel running, with the saved variables; a run does that by itself."""
        return await self._seen(SessionView, post(f"{self._path}/wake"))

    async def hibernate(self) -> SessionView:
        """Save the variables and end the kernel. Raises `Conflict` while code runs."""
        return await self._seen(SessionView, post(f"{self._path}/hibernate"))

    # The document

    async def info(self) -> SessionView:
        """The document as it is now. Raises `SessionNotFound`."""
        return await self._seen(SessionView, get(self._path))

    async def update(
        self, *, name: str | None = None, labels: Mapping[str, str | None] | None = None,
        data: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None,
        waiting_timeout_seconds: float | None = None, default_timeout: float | None = None, replace: bool = False,
    ) -> SessionView:  # fmt: skip
        """Change what is given. Maps are merged, and a None in one removes its key; or they are replaced."""
        body = given(
            name=name, labels=labels, data=data, metadata=metadata, waiting_timeout_seconds=waiting_timeout_seconds,
            default_timeout=default_timeout,
        )  # fmt: skip
        return await self._seen(SessionView, put(self._path, body) if replace else patch(self._path, body))

    async def delete(self, *, purge: bool = False) -> Deleted:
        """Stop the kernel and delete the session; `undelete` brings it back, unless `purge` removes it for good."""
        call = delete(self._path, purge=purge or None)
        return await self._transport.ask(Deleted, call, lambda: Deleted(id=self.id, deleted_at=now()))

    async def undelete(self) -> SessionView:
        """Bring the last session of this id that was deleted back, with its files and variables."""
        return await self._seen(SessionView, post(f"{self._path}/undelete"))

    async def labels(self) -> dict[str, str]:
        return (await self._transport.ask(LabelMap, get(f"{self._path}/labels"))).root

    async def set_labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Replace all labels."""
        return (await self._transport.ask(LabelMap, put(f"{self._path}/labels", dict(labels)))).root

    async def grants(self) -> dict[str, GrantLevel]:
        """Who else may do what: the name of a key, or `agent:ID` → `read`, `run` or `write`."""
        return (await self._transport.ask(Grants, get(f"{self._path}/grants"))).root

    async def set_grants(self, grants: Mapping[str, GrantLevel]) -> dict[str, GrantLevel]:
        """Replace all grants."""
        return (await self._transport.ask(Grants, put(f"{self._path}/grants", dict(grants)))).root

    async def code(self) -> str:
        """The stored code, which a run without code runs. Raises `NotFound` if none is."""
        return (await self._transport.ask(CodeView, get(f"{self._path}/code"))).code

    async def set_code(self, code: str) -> None:
        await self._transport.ask(CodeView, put(f"{self._path}/code", {"code": code}))

    # Sessions that come of it

    async def duplicate(
        self, new_id: str | None = None, *, name: str | None = None, labels: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None,
        snapshot_id: str | None = None, files: Which | None = None, state: Which | None = None,
    ) -> "AsyncSession":  # fmt: skip
        """A new session with all files and variables of this one as of now, or as of a snapshot.

        `data` and `metadata` are merged over those of this one. Its `document` is a `DuplicateView`: how it was made,
        and what could not be carried over. `files` and `state` may name paths and variables, or be False.
        """
        body = given(
            session_id=new_id, name=name, labels=labels, data=data, metadata=metadata, snapshot_id=snapshot_id,
            files=files, state=state,
        )  # fmt: skip
        made = await self._transport.ask(DuplicateView, post(f"{self._path}/duplicate", body))
        return AsyncSession(self._transport, made.id, made)

    async def remix(
        self, name: str, new_id: str | None = None, *, starting_prompt: str | None = None,
        agent_ids: list[str] | None = None, waiting_timeout_seconds: float | None = None,
        data: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None,
        snapshot_id: str | None = None, files: Which | None = None, state: Which | None = None,
    ) -> "AsyncSession":  # fmt: skip
        """A new session that inherits configuration, files and variables, as far as nothing else is given."""
        body = given(
            name=name, session_id=new_id, starting_prompt=starting_prompt, agent_ids=agent_ids,
            waiting_timeout_seconds=waiting_timeout_seconds, data=data, metadata=metadata, snapshot_id=snapshot_id,
            files=files, state=state,
        )  # fmt: skip
        made = await self._transport.ask(DuplicateView, post(f"{self._path}/remix", body))
        return AsyncSession(self._transport, made.id, made)

    def children(self, *, limit: int = 100) -> "AsyncPages[AsyncSession]":
        """Sessions that were duplicated or remixed from this one, newest first."""
        return session_pages(self._transport, f"{self._path}/children", {"limit": limit})

    async def replay(
        self, new_id: str | None = None, *, files: bool = True, stop_on_error: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> Replay:  # fmt: skip
        """Run the history again in a new session, and tell run by run whether the same came out."""
        body = given(session_id=new_id, files=files, stop_on_error=stop_on_error, timeout=timeout)
        return await self._transport.ask(Replay, post(f"{self._path}/replay", body))

    # Looking inside

    def states(self, *, limit: int = 100) -> AsyncPages[Move]:
        """Every move from one state to another, newest first."""

        def parse(body: bytes) -> Page[Move]:
            found = read(MoveList, body)
            return Page(found.states, found.total_count, found.next_token)

        return AsyncPages(self._transport, f"{self._path}/states", {"limit": limit}, parse)

    async def metrics(self) -> SessionMetrics:
        """What it uses: bytes, seconds, processes."""
        return await self._transport.ask(SessionMetrics, get(f"{self._path}/metrics"))

    async def logs(self, source: Literal["kernel", "setup"] = "kernel", *, limit_bytes: int = 100_000) -> LogView:
        """The end of what the kernel, or the setup, has written beside its cells."""
        return await self._transport.ask(LogView, get(f"{self._path}/logs", source=source, limit_bytes=limit_bytes))

    async def complete(self, code: str, cursor_pos: int | None = None) -> dict[str, Any]:
        """What the code could go on with at the cursor, as Jupyter tells it: `matches`, `cursor_start` …"""
        return await self._reply("complete", given(code=code, cursor_pos=cursor_pos))

    async def inspect(
        self, code: str, cursor_pos: int | None = None, *, detail_level: Literal[0, 1] = 0
    ) -> dict[str, Any]:
        """About the name at the cursor, as Jupyter tells it: `found`, `data`."""
        return await self._reply("inspect", given(code=code, cursor_pos=cursor_pos, detail_level=detail_level))

    async def is_complete(self, code: str) -> str:
        """`complete`, `incomplete`, `invalid` or `unknown`."""
        return str((await self._reply("is_complete", {"code": code})).get("status", "unknown"))

    async def notebook(self, format: NotebookFormat = "ipynb") -> bytes:  # noqa: A002
        """The history as a notebook, or as a page, a script or Markdown."""
        return await self._transport.send(get(f"{self._path}/notebook", format=format))

    async def run_notebook(
        self, notebook: Mapping[str, Any] | bytes | str, *, stop_on_error: bool = True, timeout: float | None = None,  # noqa: ASYNC109
    ) -> NotebookRun:  # fmt: skip
        """Run a notebook cell by cell; `timeout` is for each cell. A failing cell is a result."""
        call = post(
            f"{self._path}/notebook", notebook if isinstance(notebook, Mapping) else None, stop_on_error=stop_on_error,
            timeout=timeout,
        )  # fmt: skip
        if not isinstance(notebook, Mapping):
            call = call.with_body(notebook.encode() if isinstance(notebook, str) else notebook)
        return await self._transport.ask(NotebookRun, call)

    async def _reply(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        return (await self._transport.ask(KernelReply, post(f"{self._path}/{what}", body))).model_dump()

    async def _seen(self, kind: type[SessionView], call: Any) -> SessionView:
        self.document = await self._transport.ask(kind, call)
        return self.document


class _History(HistoryList):
    history: list[Run]  # type: ignore[assignment]


def session_pages(transport: AsyncTransport, path: str, query: dict[str, Any]) -> AsyncPages[AsyncSession]:
    """A list of sessions, each with its document."""

    def parse(body: bytes) -> Page[AsyncSession]:
        found = read(SessionList, body)
        sessions = [AsyncSession(transport, one.id, one) for one in found.sessions]
        return Page(sessions, found.total_count, found.next_token)

    return AsyncPages(transport, path, query, parse)


def _run_body(
    code: str | None, timeout_s: float | None, env: Mapping[str, str] | None, stdin: str | None,
    update_data: Mapping[str, Any] | None, store_history: bool,
) -> dict[str, Any]:  # fmt: skip
    body = given(code=code, timeout=timeout_s, env=env, stdin=stdin, update_data=update_data)
    return body if store_history else body | {"store_history": False}
