"""Gives an ordinary user's process the right to put up walls, and becomes a program that has it.

`python -I -S enter.py PATHS ARGV…`, with PATHS as a JSON list: read-only from then on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys

_beside = importlib.util.spec_from_file_location("confine", os.path.join(os.path.dirname(__file__), "confine.py"))
assert _beside is not None
assert _beside.loader is not None
confine = importlib.util.module_from_spec(_beside)
_beside.loader.exec_module(confine)

if __name__ == "__main__":
    confine.beside("walls").enter(dict.fromkeys(json.loads(sys.argv[1]), "ro"))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606 - no shell is wanted
