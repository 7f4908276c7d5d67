"""`gateway window-keys`: the keys that tokens of agents' windows are signed with."""

import sys
from typing import Annotated

import typer

from gateway.commands.settings import settings_of
from gateway.commands.stores import Config, DataDir
from gateway.errors import GatewayError
from gateway.services.window_keys import KEPT, WindowKeys

app = typer.Typer(no_args_is_help=True, help="The keys that tokens of agents' windows are signed with.")


@app.callback()
def window_keys() -> None:
    """Has typer ask for a command by name, also while there is but one."""


@app.command()
def rotate(
    keep: Annotated[
        int, typer.Option(min=1, max=100, help="Keys in the ring, the new one among them; 1 ends every open window.")
    ] = KEPT,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Sign with a new key from now on, also in gateways that run; older keys stay for the tokens that they signed."""
    path = settings_of({"data_dir": data_dir}, config).window_key_file
    try:
        key_id = WindowKeys(path).rotate(keep)
    except GatewayError as error:
        print(f"gateway: {error.sentence}", file=sys.stderr)
        raise typer.Exit(1) from None
    except OSError as error:
        print(f"gateway: {path} can't be used: {error.strerror}", file=sys.stderr)
        raise typer.Exit(1) from None
    print(f"{path}: new tokens are signed with the key {key_id}; the ring holds at most {keep}.")
