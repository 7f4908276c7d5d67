"""Makes the synchronous client of the asynchronous one, which is the one that is written by hand.

usage: python deploy/sync_client.py [--check]: with --check nothing is written, and it ends with 1 if something would be
"""

import re
import subprocess
import sys
from pathlib import Path

CLIENT = Path(__file__).resolve().parent.parent / "gateway" / "client"
BY_HAND = ("__init__.py", "waiting.py")

_SORT = ["check", "--fix", "--select", "I", "--quiet", "--config", "lint.isort.known-first-party = ['gateway']"]
CHANGES = [
    (r"\basync (def|with|for)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\basynccontextmanager\b", "contextmanager"),
    (r"\b__a(enter|exit|iter|next)__\b", r"__\1__"),
    (r"\bStopAsyncIteration\b", "StopIteration"),
    (r"\b(?:aclose|aread|aiter_raw|aiter|anext)\b", lambda match: match[0][1:]),
    (r"gateway\.client\.asynchronous", "gateway.client.synchronous"),
    (r"  # noqa: ASYNC109", ""),
]


def synchronous(source: str, name: str) -> str:
    for pattern, instead in CHANGES:
        source = re.sub(pattern, instead, source)
    docstring, rest = source.split("\n", 1)
    if not docstring.endswith('"""') or docstring == '"""':
        raise SystemExit(f"{name}: its first line must be a docstring.")
    return ruff(f"{docstring}\n\n# Made of asynchronous/{name} by deploy/sync_client.py: change that.\n{rest}", name)


def ruff(source: str, name: str) -> str:
    """Sorted and formatted, as everything is."""
    file = str(CLIENT / "synchronous" / name)
    for command in (_SORT, ["format"]):
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", file, "-"],
            input=source, capture_output=True, text=True, check=True,
        )  # fmt: skip
        source = done.stdout
    return source


def main() -> None:
    check = sys.argv[1:] == ["--check"]
    stale = []
    made = {one.name for one in (CLIENT / "asynchronous").glob("*.py")} - set(BY_HAND)
    for name in sorted(made):
        target = CLIENT / "synchronous" / name
        source = synchronous((CLIENT / "asynchronous" / name).read_text(), name)
        if not target.exists() or target.read_text() != source:
            stale.append(name)
            if not check:
                target.write_text(source)
    for target in sorted((CLIENT / "synchronous").glob("*.py")):
        if target.name not in made and target.name not in BY_HAND:
            stale.append(target.name)
            if not check:
                target.unlink()
    if check and stale:
        sys.exit(f"Run deploy/sync_client.py: {', '.join(stale)} would change.")


if __name__ == "__main__":
    main()
