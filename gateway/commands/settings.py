"""The settings that a command was given, or what is wrong with them."""

import os
import sys
from pathlib import Path
from tomllib import TOMLDecodeError
from typing import Any

import typer
from pydantic import ValidationError
from pydantic_settings import SettingsError

from gateway.config import Settings


def settings_of(given: dict[str, Any], config: Path | None = None) -> Settings:
    """Raises `Exit`, having told what is wrong."""
    if config is not None:
        os.environ["GATEWAY_CONFIG"] = str(config)
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        for one in error.errors():
            print(f"gateway: {'.'.join(map(str, one['loc']))}: {one['msg']}", file=sys.stderr)
    except SettingsError as error:
        print(f"gateway: {error}: it must be JSON", file=sys.stderr)
    except TOMLDecodeError as error:
        print(f"gateway: {os.environ.get('GATEWAY_CONFIG')}: {error}", file=sys.stderr)
    raise typer.Exit(2)
