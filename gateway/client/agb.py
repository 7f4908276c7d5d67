"""For programs that were written for AGB: they run with their imports changed, and nothing else.

    from gateway.client.agb import AGB, CreateSessionParams

As there, calls raise nothing for what goes wrong at the gateway: what they return says so in `success` and
`error_message`. The address is `GATEWAY_URL`, the key `GATEWAY_KEY`, or what `AGB` is given.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gateway.client.documents import Run
from gateway.client.errors import ClientError, GatewayError
from gateway.client.patience import Patience
from gateway.client.synchronous.gateway import Gateway
from gateway.client.synchronous.sessions import Session


@dataclass
class CreateSessionParams:
    """`image_id` names one of the gateway's images; one that it does not have stands for its default."""

    image_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """How a call went; `error_message` is empty if it went well."""

    success: bool = True
    error_message: str = ""
    request_id: str = ""


@dataclass
class OperationResult(Result):
    data: dict[str, Any] = field(default_factory=dict)


@dataclass
class DeleteResult(Result):
    pass


@dataclass
class SessionResult(Result):
    session: "AgbSession | None" = None


@dataclass
class SessionListResult(Result):
    """A page of the ids of active sessions, newest first; `total_count` is of all."""

    session_ids: list[str] = field(default_factory=list)
    total_count: int = 0
    next_token: str = ""
    max_results: int = 0


@dataclass
class CodeResult(Result):
    """`result` is what the code printed, then the value of its last line. `run` tells all."""

    result: str = ""
    run: Run | None = None


class AGB:
    """A gateway."""

    def __init__(self, api_key: str | None = None, *, url: str | None = None, patience: Patience | None = None) -> None:
        self.gateway = Gateway(url, api_key, patience=patience)

    def create(self, params: CreateSessionParams | None = None) -> SessionResult:
        params = params or CreateSessionParams()
        try:
            made = self.gateway.create(image_id=params.image_id, labels=params.labels or None)
        except ClientError as error:
            return SessionResult(**_failed(error))
        return SessionResult(session=AgbSession(made))

    def get(self, session_id: str) -> SessionResult:
        try:
            return SessionResult(session=AgbSession(self.gateway.get(session_id)))
        except ClientError as error:
            return SessionResult(**_failed(error))

    def list(
        self, labels: Mapping[str, str] | None = None, page: int | None = None, limit: int | None = None
    ) -> SessionListResult:
        """The ids of active sessions with all of these labels; pages are counted from 1."""
        limit = 10 if limit is None else limit
        try:
            found = self.gateway.list(labels=labels or None, limit=limit).page(page)
        except ClientError as error:
            return SessionListResult(**_failed(error))
        ids = [session.id for session in found.items]
        return SessionListResult(
            session_ids=ids, total_count=found.total_count, next_token=found.next_token or "", max_results=limit
        )

    def delete(self, session: "AgbSession") -> DeleteResult:
        return session.delete()


class AgbSession:
    """A session; `session` is the same with all that it can do."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.session_id = session.id
        self.code = AgbCode(session)

    def __repr__(self) -> str:
        return f"<AgbSession {self.session_id!r}>"

    def info(self) -> OperationResult:
        try:
            return OperationResult(data=self.session.info().model_dump(by_alias=True, mode="json"))
        except ClientError as error:
            return OperationResult(**_failed(error))

    def set_labels(self, labels: Mapping[str, str]) -> OperationResult:
        """Replace all labels."""
        try:
            return OperationResult(data=dict(self.session.set_labels(labels)))
        except ClientError as error:
            return OperationResult(**_failed(error))

    def get_labels(self) -> OperationResult:
        try:
            return OperationResult(data=dict(self.session.labels()))
        except ClientError as error:
            return OperationResult(**_failed(error))

    def delete(self) -> DeleteResult:
        try:
            self.session.delete()
        except ClientError as error:
            return DeleteResult(**_failed(error))
        return DeleteResult()


class AgbCode:
    """Running code in a session."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def run_code(self, code: str, language: str = "python", timeout_s: float = 60) -> CodeResult:
        """Run code of the session's language, which its image decides."""
        try:
            document = self._session.document or self._session.info()
            if language.lower() != document.language.lower():
                return CodeResult(False, f"This session runs {document.language}, not {language}.")
            run = self._session.run(code, timeout=timeout_s)
        except ClientError as error:
            return CodeResult(**_failed(error))
        return CodeResult(run.success, run.error_message or "", result=f"{run.stdout}{run.result or ''}", run=run)


def _failed(error: ClientError) -> dict[str, Any]:
    request_id = error.request_id if isinstance(error, GatewayError) else None
    return {"success": False, "error_message": str(error), "request_id": request_id or ""}
