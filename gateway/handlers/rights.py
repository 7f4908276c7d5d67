"""The table of rights, route by role, made from what each operation needs: there is no second source."""

from collections.abc import Iterable
from typing import Any

from gateway.models.access import Level, Need

_WHOSE = {
    Level.READ: "own, granted `read`",
    Level.RUN: "own, granted `run`",
    Level.WRITE: "own, granted `write`",
    Level.OWN: "own",
}
_OF_AGENTS = {**_WHOSE, Level.READ: "own, assigned, granted `read`", Level.RUN: "own, assigned, granted `run`"}
_HEAD = """\
# Who may do what

Made by `gateway access`. Without keys, on loopback, the one local caller is an admin. A grant includes the lesser ones
(`write`, `run`, `read`). A session that a caller may not see answers 404, as one that is not there does; what it sees
but may not do is 403. Lists hold what the caller may see. An admin may do all of it.

"""


def table(routes: Iterable[tuple[str, type[Any]]]) -> str:
    """Markdown: a line for each operation, a column for each role but admin."""
    lines = ["| | needs | user | agent | viewer | no key |", "|---|---|---|---|---|---|"]
    for path, handler in routes:
        for method, operation in handler.operations.items():
            need = operation.needs
            cells = [rights(need, role) or "no" for role in ("user", "agent", "viewer", "nobody")]
            lines.append(f"| `{method} {path}` | {need} | {' | '.join(cells)} |")
    return _HEAD + "".join(f"{line}\n" for line in lines)


def rights(need: Need, role: str) -> str:
    """Of which sessions an operation may be asked, or "yes"; empty for none."""
    if need is Need.OPEN:
        return "yes"
    if role == "nobody" or need is Need.ADMIN:
        return ""
    if need is Need.KEY:
        return "yes"
    if need in (Need.AGENT_READ, Need.AGENT, Need.AGENT_OR_MAKE):
        if role == "viewer" and need is not Need.AGENT_READ:
            return ""
        own = "itself" if role == "agent" else "own agents"
        return f"{own}, new" if need is Need.AGENT_OR_MAKE and role == "user" else own
    if need is Need.AGENT_UNDELETE:
        return "own agents" if role == "user" else ""
    if need is Need.MONITOR:
        return "yes" if role == "viewer" else ""
    if role == "viewer":
        return _WHOSE[Level.READ] if need is Need.READ else ""
    if need is Need.MAKE:
        return "yes"
    if need is Need.UNDELETE:
        return "own"
    whose = (_OF_AGENTS if role == "agent" else _WHOSE)[need.level]
    return f"{whose}, new" if need is Need.RUN_OR_MAKE else whose
