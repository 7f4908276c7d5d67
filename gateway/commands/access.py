"""`gateway access`: which role may do what on every route, from the very table that requests are checked by."""

from gateway.handlers.rights import table
from gateway.handlers.routes import ROUTES


def show() -> None:
    """Print the table of rights: route by role, as Markdown."""
    print(table(ROUTES), end="")
