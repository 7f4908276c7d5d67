"""Runs sessions for the tests of checkpoints: each in a fork of this process, which knows IPython and nothing else.

Reads one JSON request a line, answers with one JSON line.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import traceback
import types
import warnings
from typing import Any

INSIDE = os.path.join(os.path.dirname(os.path.abspath(__file__)), *[os.pardir] * 3, "kernels", "inside")


def load_checkpoint() -> Any:
    """As the launcher does it: by its path, since a kernel can't import our packages."""
    package = types.ModuleType("session_gateway_inside")
    package.__path__ = [os.path.abspath(INSIDE)]
    sys.modules[package.__name__] = package
    return importlib.import_module("session_gateway_inside.checkpoint")


def run(shell: Any, cells: str) -> str | None:
    for cell in cells.split("\n---\n"):
        result = shell.run_cell(cell, store_history=True)
        error = result.error_before_exec or result.error_in_exec
        if error is not None:
            return "".join(traceback.format_exception(type(error), error, error.__traceback__))[-3000:]
    return None


def work(request: dict[str, Any]) -> dict[str, Any]:
    from IPython.core.interactiveshell import InteractiveShell

    os.chdir(request["workspace"])
    sys.path[0] = ""
    checkpoint = load_checkpoint()
    shell: Any = InteractiveShell.instance()
    checkpoint.remember_start(shell)
    answer: dict[str, Any] = {}
    if request["action"] == "save":
        answer["error"] = run(shell, request["code"])
        if answer["error"] is None:
            before = os.environ.copy(), sys.getrecursionlimit(), list(warnings.filters)
            answer["report"] = checkpoint.dump(shell, request["folder"])
            if before != (os.environ.copy(), sys.getrecursionlimit(), list(warnings.filters)):
                answer["error"] = "dumping has changed the process"
            else:
                answer["error"] = run(shell, request.get("after", ""))
    else:
        run(shell, request.get("first", ""))
        try:
            answer["report"] = checkpoint.load(shell, request["folder"], request.get("names"))
        except checkpoint.CheckpointError as error:
            answer["refused"] = str(error)
        answer["error"] = run(shell, request["code"])
        answer["names"] = [name for name in shell.user_ns if not name.startswith("_")]
    return answer


def main() -> None:
    import IPython.core.interactiveshell  # noqa: F401 - known to all forks

    replies = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)
    for line in sys.stdin:
        request = json.loads(line)
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(read_end)
            signal.alarm(60)
            try:
                answer = work(request)
            except BaseException:
                answer = {"error": traceback.format_exc()[-3000:]}
            with os.fdopen(write_end, "w") as file:
                json.dump(answer, file)
            os._exit(0)
        os.close(write_end)
        with os.fdopen(read_end) as file:
            text = file.read()
        _, status = os.waitpid(pid, 0)
        replies.write((text or json.dumps({"error": f"the process died with status {status}"})) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
