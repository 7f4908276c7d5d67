"""`gateway audit`: the audit log, proved and exported by whoever may read the store. It needs no gateway that runs."""

import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError

from gateway.app import CannotStart
from gateway.commands.stores import Config, DataDir, StoreUri, in_the_store
from gateway.config import Settings
from gateway.models.audit import AuditQuery
from gateway.services.audit import AuditService, Verdict

app = typer.Typer(no_args_is_help=True, help="Prove that the audit log was not changed, and export it.")

T = TypeVar("T")


@app.command()
def verify(
    expect: Annotated[
        str | None, typer.Option(help="A head that was printed before, NUMBER:HASH: it must be in the chain still.")
    ] = None,
    data_dir: DataDir = None,
    store: StoreUri = None,
    config: Config = None,
) -> None:
    """Go through the whole chain. Ends with 1 at the first line that does not fit, and names it.

    The head that is printed, kept elsewhere, shows later whether the end was cut off: give it back with --expect.
    """

    async def proved(audit: AuditService) -> Verdict:
        return await audit.verify(expect)

    verdict = _with_audit(data_dir, store, config, proved)
    if verdict.flaw is not None:
        print(f"gateway: {verdict.flaw}", file=sys.stderr)
        raise typer.Exit(1)
    print(f"{verdict.lines} lines fit. Head: {verdict.head or 'none'}")
    if verdict.before:
        print(f"{verdict.before} older lines were written before there was a chain; since it began they are unchanged.")


@app.command()
def export(
    since: Annotated[str | None, typer.Option("--from", help="ISO 8601; within the span.")] = None,
    until: Annotated[str | None, typer.Option("--to", help="ISO 8601; not within the span.")] = None,
    actor: Annotated[str | None, typer.Option()] = None,
    action: Annotated[str | None, typer.Option()] = None,
    session_id: Annotated[str | None, typer.Option()] = None,
    data_dir: DataDir = None,
    store: StoreUri = None,
    config: Config = None,
) -> None:
    """Print the lines as JSON, oldest first, each with its place in the chain."""
    given = {"from": since, "to": until, "actor": actor, "action": action, "session_id": session_id}
    try:
        query = AuditQuery.model_validate({name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        for one in error.errors():
            print(f"gateway: {'.'.join(map(str, one['loc'])) or 'audit'}: {one['msg']}", file=sys.stderr)
        raise typer.Exit(2) from None

    async def printed(audit: AuditService) -> None:
        async for line in audit.export(query.filter):
            sys.stdout.write(line)

    _with_audit(data_dir, store, config, printed)


def _with_audit(
    data_dir: Path | None, store: str | None, config: Path | None, work: Callable[[AuditService], Awaitable[T]]
) -> T:
    """Raises `Exit`, having told what is wrong."""
    return in_the_store(data_dir, store, config, lambda kept: work(AuditService(kept)), _must_be_there)


def _must_be_there(settings: Settings) -> None:
    path = settings.store_uri.removeprefix("sqlite:///")
    if path != settings.store_uri and not Path(path).exists():
        raise CannotStart(f"{path} is not there.")
