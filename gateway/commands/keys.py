"""`gateway key`: keys without a key, for whoever may read and write the store.

It goes to the store itself, so it needs no gateway that runs, and none is in its way: SQLite's log lets one more
process write, and gateways look again within seconds.
"""

import getpass
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar
from uuid import uuid4

import typer
from pydantic import ValidationError

from gateway.commands.stores import Config, DataDir, StoreUri, in_the_store
from gateway.config import Settings
from gateway.models.access import ApiKey, CreateKey, KeyList, KeyMade, KeyView, Role
from gateway.models.audit import AuditLine
from gateway.models.base import now
from gateway.models.pages import PageRequest
from gateway.services.keys import KeyService
from gateway.stores.base import Store

app = typer.Typer(no_args_is_help=True, help="Make, list, rotate and revoke API keys.")

AsJson = Annotated[bool, typer.Option("--json", help="For machines.")]

T = TypeVar("T")
_DAY_S = 24 * 3600
_WHO = "command line"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Who it is for. Keys of one name are one caller.")],
    role: Annotated[Role, typer.Option(help="What it may do.")] = Role.USER,
    agent_id: Annotated[str | None, typer.Option(help="With the role agent; the name, if it is left out.")] = None,
    expires_in_days: Annotated[float | None, typer.Option(min=0.0001, help="From now on.")] = None,
    requests_per_second: Annotated[float | None, typer.Option(help="More are refused.")] = None,
    burst: Annotated[int | None, typer.Option(help="Requests that may come at once.")] = None,
    most_sessions: Annotated[int | None, typer.Option(help="That it may own at once.")] = None,
    most_kernels: Annotated[int | None, typer.Option(help="Of its sessions that run at once.")] = None,
    cpu_seconds_per_day: Annotated[float | None, typer.Option(help="Of processors, by its sessions (UTC).")] = None,
    disk_bytes: Annotated[int | None, typer.Option(help="Of files in its sessions.")] = None,
    guardrail: Annotated[list[str] | None, typer.Option(help="For all that it does, such as no-network.")] = None,
    data_dir: DataDir = None,
    store: StoreUri = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a key. Its secret is printed this once, and kept nowhere."""
    seconds = None if expires_in_days is None else expires_in_days * _DAY_S
    try:
        request = CreateKey(
            name=name, role=role, agent_id=agent_id, expires_in_seconds=seconds, guardrails=guardrail or [],
            requests_per_second=requests_per_second, burst=burst, most_sessions=most_sessions,
            most_kernels=most_kernels, cpu_seconds_per_day=cpu_seconds_per_day, disk_bytes=disk_bytes,
        )  # fmt: skip
    except ValidationError as error:
        for one in error.errors():
            print(f"gateway: {'.'.join(map(str, one['loc'])) or 'key'}: {one['msg']}", file=sys.stderr)
        raise typer.Exit(2) from None
    made = _with_keys(data_dir, store, config, lambda keys: keys.create(request, _WHO), "key.create")
    _tell(made, as_json=as_json, note=f"{made.id}: {made.role} {made.name}. Keep it: it is not shown again.")


@app.command("ls")
def list_(
    revoked: Annotated[bool, typer.Option("--revoked", help="Those that were revoked, too.")] = False,
    data_dir: DataDir = None,
    store: StoreUri = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List keys, newest first."""

    async def all_of(keys: KeyService) -> list[ApiKey]:
        found: list[ApiKey] = []
        page = await keys.list(PageRequest(1000), include_revoked=revoked)
        while True:
            found += page.items
            if page.next_token is None:
                return found
            page = await keys.list(PageRequest(1000, page.next_token), include_revoked=revoked)

    found = _with_keys(data_dir, store, config, all_of)
    if as_json:
        views = [KeyView.of(key) for key in found]
        print(KeyList(keys=views, count=len(views), total_count=len(views), next_token=None).model_dump_json(indent=2))
        return
    for key in found:
        expires = f"until {key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "for ever"
        used = f"used {key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never used"
        state = "revoked" if key.revoked_at else expires
        print(f"{key.id}  {key.role:6}  {key.name}  {state}  {used}")


@app.command()
def rotate(
    key_id: str,
    overlap: Annotated[float, typer.Option(min=0, help="Seconds for which the old secret stays good.")] = 3600,
    data_dir: DataDir = None,
    store: StoreUri = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Give a key a new secret."""
    made = _with_keys(data_dir, store, config, lambda keys: keys.rotate(key_id, overlap), "key.rotate")
    _tell(
        made,
        as_json=as_json,
        note=f"{made.id}: the old secret is good until {made.former_until:%Y-%m-%d %H:%M:%S} UTC.",
    )


@app.command()
def revoke(key_id: str, data_dir: DataDir = None, store: StoreUri = None, config: Config = None) -> None:
    """Revoke a key for good. Gateways refuse it within seconds, and cut off what it has under way."""
    revoked = _with_keys(data_dir, store, config, lambda keys: keys.revoke(key_id), "key.revoke")
    print(f"{revoked.id}: {revoked.name} has no such key any more.", file=sys.stderr)


def _tell(made: KeyMade, *, as_json: bool, note: str) -> None:
    print(made.model_dump_json(indent=2) if as_json else made.key)
    if not as_json:
        print(note, file=sys.stderr)


def _with_keys(
    data_dir: Path | None, store: str | None, config: Path | None, work: Callable[[KeyService], Awaitable[T]],
    action: str | None = None,
) -> T:  # fmt: skip
    """`action`: what the audit log calls it. Raises `Exit`, having told what is wrong."""

    async def told(kept: Store) -> T:
        done = await work(KeyService(kept, lambda noting: noting.close()))  # uses are noted where keys are used
        if action is not None and isinstance(done, ApiKey | KeyView):
            await kept.append_audit([_line(action, done)])
        return done

    return in_the_store(data_dir, store, config, told, _make_folder)


def _make_folder(settings: Settings) -> None:
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)


def _line(action: str, key: ApiKey | KeyView) -> AuditLine:
    details = {"id": key.id, "name": key.name, "role": key.role, "user": getpass.getuser()}
    return AuditLine(id=uuid4().hex, at=now(), actor=_WHO, action=action, outcome="ok", request_id="", details=details)
