"""A session of the gateway, as one works with it."""

# Made of asynchronous/sessions.py by deploy/sync_client.py: change that.

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from gateway.client.calls import delete, get, given, part, patch, post, put
from gateway.client.documents import Page, Run, read
from gateway.client.errors import ClientError
from gateway.client.events import Position
from gateway.client.synchronous.executions import Execution, RunStream, checked, run_pages, stop_unnamed
from gateway.client.synchronous.files import Files
from gateway.client.synchronous.pages import Pages
from gateway.client.synchronous.snapshots import Snapshots
from gateway.client.synchronous.transport import Transport
from gateway.client.synchronous.variables import Variables
from gateway.client.synchronous.waiting import Cancelled
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


class Session:
    """One session. Making this object asks nothing of the gateway: most calls bring a session into being.

    `files`, `snapshots` and `variables` are what it has. `document` is what was last seen of it, if anything was;
    `info()` looks anew.
    """

    def __init__(self, transport: Transport, session_id: str, document: SessionView | None = None) -> None:
        self._transport = transport
        self._path = f"/api/sessions/{part(session_id)}"
        self.id = session_id
        self.document = document
        self.files = Files(transport, session_id)
        self.snapshots = Snapshots(transport, session_id)
        self.variables = Variables(transport, session_id)

    def __repr__(self) -> str:
        state = f" {self.document.state}" if self.document is not None else ""
        return f"<Session {self.id!r}{state} at {self._transport.url}>"

    # Running code

    def run(
        self, code: str | None = None, *, timeout: float | None = None, env: Mapping[str, str] | None = None,
        stdin: str | None = None, update_data: Mapping[str, Any] | None = None, store_history: bool = True,
        check: bool = False,
    ) -> Run:  # fmt: skip
        """Run code (without any, the stored code) and wait for its end, through restarts of the gateway too.

        `timeout` is in seconds. Code that fails is a result: look at `run.success`, or have `check` raise `RunFailed`.
        Whoever stops waiting (Ctrl-C, a cancelled task) interrupts the run.
        """
        body = _run_body(code, timeout, env, stdin, update_data, store_history)
        try:
            run = self._transport.ask(Run, post(f"{self._path}/run", body))
        except Cancelled:
            with suppress(ClientError):  # what is to be raised is that the caller has stopped it
                stop_unnamed(self._transport, self.id, code)
            raise
        return checked(run) if check else run

    def stream(
        self, code: str | None = None, *, timeout: float | None = None, env: Mapping[str, str] | None = None,
        stdin: str | None = None, update_data: Mapping[str, Any] | None = None, store_history: bool = True,
    ) -> RunStream:  # fmt: skip
        """Run code and get its outputs as they come. It begins with the first event that is asked for.

        A cell that asks for input without `stdin` sends `input_request`, which `answer()` answers.
        """
        body = _run_body(code, timeout, env, stdin, update_data, store_history)
        return RunStream(self._transport, Position(self.id, begin=post(f"{self._path}/stream", body)))

    def start(
        self, code: str | None = None, *, timeout: float | None = None, env: Mapping[str, str] | None = None,
        stdin: str | None = None, update_data: Mapping[str, Any] | None = None, store_history: bool = True,
    ) -> Execution:  # fmt: skip
        """Run code in the background."""
        body = _run_body(code, timeout, env, stdin, update_data, store_history) | {"background": True}
        begun = self._transport.ask(Accepted, post(f"{self._path}/run", body))
        return self.execution(begun.execution_id)

    def execution(self, execution_id: str) -> Execution:
        """A run that was begun earlier, or by somebody else."""
        return Execution(self._transport, self.id, execution_id)

    def executions(self, *, limit: int = 100) -> Pages[Run]:
        """Runs, newest first; `limit` is how many are fetched at once."""
        return run_pages(self._transport, self.id, {"limit": limit})

    def history(self, *, limit: int = 100, include_deleted: bool = False) -> Pages[Run]:
        """Every run that was recorded, newest first."""

        def parse(body: bytes) -> Page[Run]:
            found = read(_History, body)
            return Page(found.history, found.total_count, found.next_token)

        query = {"limit": limit, "include_deleted": include_deleted or None}
        return Pages(self._transport, f"{self._path}/history", query, parse)

    def answer(self, text: str) -> None:
        """Answer a cell that waits in `input()`. Raises `Conflict` if none does."""
        self._transport.ask(Success, post(f"{self._path}/input", {"text": text}))

    def interrupt(self) -> Interrupted:
        """Interrupt what runs; what is queued is run after it."""
        return self._transport.ask(Interrupted, post(f"{self._path}/interrupt"))

    def restart(self, *, fresh: bool = False) -> SessionView:
        """Restart the kernel with its saved variables, or `fresh`, without any. Files are kept."""
        body = {"state": "fresh" if fresh else "saved"}
        return self._seen(SessionView, post(f"{self._path}/restart", body))

    def wake(self) -> SessionView:
        """Have the kernel running, with the saved variables; a run does that by itself."""
        return self._seen(SessionView, post(f"{self._path}/wake"))

    def hibernate(self) -> SessionView:
        """Save the variables and end the kernel. Raises `Conflict` while code runs."""
        return self._seen(SessionView, post(f"{self._path}/hibernate"))

    # The document

    def info(self) -> SessionView:
        """The document as it is now. Raises `SessionNotFound`."""
        return self._seen(SessionView, get(self._path))

    def update(
        self, *, name: str | None = None, labels: Mapping[str, str | None] | None = None,
        data: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None,
        waiting_timeout_seconds: float | None = None, default_timeout: float | None = None, replace: bool = False,
    ) -> SessionView:  # fmt: skip
        """Change what is given. Maps are merged, and a None in one removes its key; or they are replaced."""
        body = given(
            name=name, labels=labels, data=data, metadata=metadata, waiting_timeout_seconds=waiting_timeout_seconds,
            default_timeout=default_timeout,
        )  # fmt: skip
        return self._seen(SessionView, put(self._path, body) if replace else patch(self._path, body))

    def delete(self, *, purge: bool = False) -> Deleted:
        """Stop the kernel and delete the session; `undelete` brings it back, unless `purge` removes it for good."""
        call = delete(self._path, purge=purge or None)
        return self._transport.ask(Deleted, call, lambda: Deleted(id=self.id, deleted_at=now()))

    def undelete(self) -> SessionView:
        """Bring the last session of this id that was deleted back, with its files and variables."""
        return self._seen(SessionView, post(f"{self._path}/undelete"))

    def labels(self) -> dict[str, str]:
        return (self._transport.ask(LabelMap, get(f"{self._path}/labels"))).root

    def set_labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Replace all labels."""
        return (self._transport.ask(LabelMap, put(f"{self._path}/labels", dict(labels)))).root

    def grants(self) -> dict[str, GrantLevel]:
        """Who else may do what: the name of a key, or `agent:ID` → `read`, `run` or `write`."""
        return (self._transport.ask(Grants, get(f"{self._path}/grants"))).root

    def set_grants(self, grants: Mapping[str, GrantLevel]) -> dict[str, GrantLevel]:
        """Replace all grants."""
        return (self._transport.ask(Grants, put(f"{self._path}/grants", dict(grants)))).root

    def code(self) -> str:
        """The stored code, which a run without code runs. Raises `NotFound` if none is."""
        return (self._transport.ask(CodeView, get(f"{self._path}/code"))).code

    def set_code(self, code: str) -> None:
        self._transport.ask(CodeView, put(f"{self._path}/code", {"code": code}))

    # Sessions that come of it

    def duplicate(
        self, new_id: str | None = None, *, name: str | None = None, labels: Mapping[str, str] | None = None,
        data: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None,
        snapshot_id: str | None = None, files: Which | None = None, state: Which | None = None,
    ) -> "Session":  # fmt: skip
        """A new session with all files and variables of this one as of now, or as of a snapshot.

        `data` and `metadata` are merged over those of this one. Its `document` is a `DuplicateView`: how it was made,
        and what could not be carried over. `files` and `state` may name paths and variables, or be False.
        """
        body = given(
            session_id=new_id, name=name, labels=labels, data=data, metadata=metadata, snapshot_id=snapshot_id,
            files=files, state=state,
        )  # fmt: skip
        made = self._transport.ask(DuplicateView, post(f"{self._path}/duplicate", body))
        return Session(self._transport, made.id, made)

    def remix(
        self, name: str, new_id: str | None = None, *, starting_prompt: str | None = None,
        agent_ids: list[str] | None = None, waiting_timeout_seconds: float | None = None,
        data: Mapping[str, Any] | None = None, metadata: Mapping[str, Any] | None = None,
        snapshot_id: str | None = None, files: Which | None = None, state: Which | None = None,
    ) -> "Session":  # fmt: skip
        """A new session that inherits configuration, files and variables, as far as nothing else is given."""
        body = given(
            name=name, session_id=new_id, starting_prompt=starting_prompt, agent_ids=agent_ids,
            waiting_timeout_seconds=waiting_timeout_seconds, data=data, metadata=metadata, snapshot_id=snapshot_id,
            files=files, state=state,
        )  # fmt: skip
        made = self._transport.ask(DuplicateView, post(f"{self._path}/remix", body))
        return Session(self._transport, made.id, made)

    def children(self, *, limit: int = 100) -> "Pages[Session]":
        """Sessions that were duplicated or remixed from this one, newest first."""
        return session_pages(self._transport, f"{self._path}/children", {"limit": limit})

    def replay(
        self, new_id: str | None = None, *, files: bool = True, stop_on_error: bool = False,
        timeout: float | None = None,
    ) -> Replay:  # fmt: skip
        """Run the history again in a new session, and tell run by run whether the same came out."""
        body = given(session_id=new_id, files=files, stop_on_error=stop_on_error, timeout=timeout)
        return self._transport.ask(Replay, post(f"{self._path}/replay", body))

    # Looking inside

    def states(self, *, limit: int = 100) -> Pages[Move]:
        """Every move from one state to another, newest first."""

        def parse(body: bytes) -> Page[Move]:
            found = read(MoveList, body)
            return Page(found.states, found.total_count, found.next_token)

        return Pages(self._transport, f"{self._path}/states", {"limit": limit}, parse)

    def metrics(self) -> SessionMetrics:
        """What it uses: bytes, seconds, processes."""
        return self._transport.ask(SessionMetrics, get(f"{self._path}/metrics"))

    def logs(self, source: Literal["kernel", "setup"] = "kernel", *, limit_bytes: int = 100_000) -> LogView:
        """The end of what the kernel, or the setup, has written beside its cells."""
        return self._transport.ask(LogView, get(f"{self._path}/logs", source=source, limit_bytes=limit_bytes))

    def complete(self, code: str, cursor_pos: int | None = None) -> dict[str, Any]:
        """What the code could go on with at the cursor, as Jupyter tells it: `matches`, `cursor_start` …"""
        return self._reply("complete", given(code=code, cursor_pos=cursor_pos))

    def inspect(self, code: str, cursor_pos: int | None = None, *, detail_level: Literal[0, 1] = 0) -> dict[str, Any]:
        """About the name at the cursor, as Jupyter tells it: `found`, `data`."""
        return self._reply("inspect", given(code=code, cursor_pos=cursor_pos, detail_level=detail_level))

    def is_complete(self, code: str) -> str:
        """`complete`, `incomplete`, `invalid` or `unknown`."""
        return str((self._reply("is_complete", {"code": code})).get("status", "unknown"))

    def notebook(self, format: NotebookFormat = "ipynb") -> bytes:  # noqa: A002
        """The history as a notebook, or as a page, a script or Markdown."""
        return self._transport.send(get(f"{self._path}/notebook", format=format))

    def run_notebook(
        self, notebook: Mapping[str, Any] | bytes | str, *, stop_on_error: bool = True, timeout: float | None = None,
    ) -> NotebookRun:  # fmt: skip
        """Run a notebook cell by cell; `timeout` is for each cell. A failing cell is a result."""
        call = post(
            f"{self._path}/notebook", notebook if isinstance(notebook, Mapping) else None, stop_on_error=stop_on_error,
            timeout=timeout,
        )  # fmt: skip
        if not isinstance(notebook, Mapping):
            call = call.with_body(notebook.encode() if isinstance(notebook, str) else notebook)
        return self._transport.ask(NotebookRun, call)

    def _reply(self, what: str, body: dict[str, Any]) -> dict[str, Any]:
        return (self._transport.ask(KernelReply, post(f"{self._path}/{what}", body))).model_dump()

    def _seen(self, kind: type[SessionView], call: Any) -> SessionView:
        self.document = self._transport.ask(kind, call)
        return self.document


class _History(HistoryList):
    history: list[Run]  # type: ignore[assignment]


def session_pages(transport: Transport, path: str, query: dict[str, Any]) -> Pages[Session]:
    """A list of sessions, each with its document."""

    def parse(body: bytes) -> Page[Session]:
        found = read(SessionList, body)
        sessions = [Session(transport, one.id, one) for one in found.sessions]
        return Page(sessions, found.total_count, found.next_token)

    return Pages(transport, path, query, parse)


def _run_body(
    code: str | None, timeout_s: float | None, env: Mapping[str, str] | None, stdin: str | None,
    update_data: Mapping[str, Any] | None, store_history: bool,
) -> dict[str, Any]:  # fmt: skip
    body = given(code=code, timeout=timeout_s, env=env, stdin=stdin, update_data=update_data)
    return body if store_history else body | {"store_history": False}
