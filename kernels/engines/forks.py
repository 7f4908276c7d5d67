"""Which kernels can be forked from a process that is ready, and what that process must be like."""

import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from kernels.engine import Kernelspec
from kernels.engines.overlay import Interpreter

# What only a process that starts takes notice of. A session that sets any of it gets a process of its own.
_AT_START = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LANG", "LC_", "OMP_", "OPENBLAS_", "MKL_")

# What such a process gets of our own environment: nothing that may hold a secret, for each kernel could read it.
_PASSED_ON = ("LANG", "LANGUAGE", "LC_", "TZ", "LD_LIBRARY_PATH", "OPENBLAS_", "OMP_", "MKL_")


class Forks:
    """`size` kernels of each environment are kept ready; `preloads` are imported in all."""

    def __init__(self, size: int, preloads: tuple[str, ...]) -> None:
        self._size = size
        self._preloads = preloads
        self._env = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        self._env |= {"PATH": os.environ.get("PATH", os.defpath), "TMPDIR": tempfile.gettempdir()}

    def can(self, spec: Kernelspec, env: Mapping[str, str]) -> bool:
        """Whether a kernel of this kernelspec, with this environment, can be forked."""
        if not sys.platform.startswith("linux") or spec.language != "python" or not _is_ipykernel(spec.argv):
            return False
        return not any(name.startswith(_AT_START) for name in env)

    def order(self, spec: Kernelspec, interpreter: Interpreter, preloads: tuple[str, ...]) -> dict[str, Any]:
        """What the keeper needs to know of the process that forks it."""
        python = found_program(spec.argv[0]) or sys.executable
        return {
            "argv": [python, *spec.argv[1 : spec.argv.index("ipykernel_launcher") - 1]],
            "env": {**self._env, **spec.env},
            "preloads": list(dict.fromkeys((*self._preloads, *preloads))),
            "watched": [python, interpreter.executable, *interpreter.site_packages],
            "size": self._size,
        }


def found_program(name: str) -> str | None:
    """Like `shutil.which`, which takes its time also where there is nothing to look for."""
    return name if os.path.isabs(name) and os.access(name, os.X_OK) else shutil.which(name)


def _is_ipykernel(argv: tuple[str, ...]) -> bool:
    """Whether it is started as any other ipykernel: only then do we know how to be one."""
    if "ipykernel_launcher" not in argv:
        return False
    at = argv.index("ipykernel_launcher")
    return argv[at - 1] == "-m" and argv[at + 1 :] == ("-f", "{connection_file}")
