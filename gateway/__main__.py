"""The command line: `gateway serve`, `gateway doctor`, `gateway key …`, `gateway window-keys …`, `gateway audit …` …"""

import asyncio
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import structlog
import typer

from gateway.app import CannotStart
from gateway.app import serve as serve_gateway
from gateway.commands import access, audit, keys, window_keys
from gateway.commands.settings import settings_of
from gateway.config import Settings
from gateway.doctor import examine

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(window_keys.app, name="window-keys")
app.add_typer(keys.app, name="key")
app.add_typer(audit.app, name="audit")
app.command("access")(access.show)


@app.callback()
def root() -> None:
    """An execution gateway that remembers: sessions of live Jupyter kernels over REST."""


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 picks one and prints it.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder for everything that is kept.")] = None,
    store: Annotated[str | None, typer.Option(help="sqlite:///PATH or mongodb://…")] = None,
    config: Annotated[
        Path | None, typer.Option(envvar="GATEWAY_CONFIG", help="TOML file with settings.", exists=True, dir_okay=False)
    ] = None,
    isolation: Annotated[
        str | None, typer.Option(help="strict, best-effort or none: what must stand between sessions and this host.")
    ] = None,
    behind_tls: Annotated[
        bool | None, typer.Option("--behind-tls", help="A proxy with TLS is all that reaches this port.")
    ] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Serve beyond loopback without keys, or without TLS.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = None,
) -> None:
    """Serve until SIGTERM. The first line on stdout says where, once it is ready."""
    given: dict[str, Any] = {
        "host": host, "port": port, "data_dir": data_dir, "store": store, "isolation": isolation,
        "behind_tls": behind_tls, "insecure": insecure, "log_level": log_level,
    }  # fmt: skip
    settings = settings_of(given, config)
    _log_to_stderr(settings)
    try:
        asyncio.run(serve_gateway(settings, lambda line: print(line, flush=True)))
    except CannotStart as error:
        print(f"gateway: {error}", file=sys.stderr)
        raise typer.Exit(1) from None


@app.command()
def doctor(
    data_dir: Annotated[Path | None, typer.Option(help="The folder that the gateway will use.")] = None,
    host: Annotated[str | None, typer.Option(help="The address that it will listen on.")] = None,
    isolation: Annotated[str | None, typer.Option(help="strict, best-effort or none.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Tell what this host can give a gateway, and how to get what is missing. Ends with 1 if it could not serve."""
    given = {"data_dir": data_dir, "host": host, "isolation": isolation}
    settings = settings_of(given)
    findings = asyncio.run(examine(settings))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        print(*findings, sep="\n")
    if any(finding.needed and not finding.fine for finding in findings):
        raise typer.Exit(1)


def _log_to_stderr(settings: Settings) -> None:
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    console = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(),
        exception_formatter=structlog.dev.plain_traceback,  # the rich one would log values, code and secrets among them
    )
    renderer = console if settings.log_format == "console" else structlog.processors.JSONRenderer()
    last = [] if settings.log_format == "console" else [structlog.processors.format_exc_info]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last, renderer],
        )
    )
    logging.basicConfig(level=settings.log_level, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(max(logging.INFO, logging.getLogger().level))


def main() -> None:
    app()


if __name__ == "__main__":
    main()
