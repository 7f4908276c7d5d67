"""Builds a kernel, and forks it as often as it is asked to: one identity a line in, one process id a line out."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from typing import Any

LAUNCHER = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), *[os.pardir] * 3, "kernels", "inside", "launcher.py"
)


def load_launcher() -> Any:
    spec = importlib.util.spec_from_file_location("session_gateway_kernel", os.path.realpath(LAUNCHER))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> None:
    launcher = load_launcher()
    app = launcher.build(sys.argv[1:])
    replies = os.fdopen(os.dup(1), "w")
    built = {"threads": len(os.listdir("/proc/self/task")), "files": len(os.listdir("/proc/self/fd"))}
    print(json.dumps(built), file=replies, flush=True)
    for line in sys.stdin:
        identity = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.setsid()
            log = os.open(identity["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            launcher.serve(app, identity)
            sys.exit(0)
        print(pid, file=replies, flush=True)


if __name__ == "__main__":
    main()
