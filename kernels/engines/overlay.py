"""A session's own environment, laid over the one that its kernelspec names.

A virtual environment without copies: its interpreter is a link, what is installed goes into its own
`site-packages`, and the kernel environment's packages are seen behind them but never written to.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from kernels.errors import StartFailed

_PROBE = """
import json, os, sys, sysconfig
paths = sysconfig.get_paths()
print(json.dumps({
    "executable": os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable),
    "version": "%d.%d" % sys.version_info[:2],
    "full_version": "%d.%d.%d" % sys.version_info[:3],
    "site_packages": sorted({paths["purelib"], paths["platlib"]}),
}))
"""

_PIP = '#!/bin/sh\nexec "$(dirname "$0")/python" -m pip "$@"\n'


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What a kernelspec's Python is: its real executable, version and packages."""

    executable: str
    version: str
    full_version: str
    site_packages: tuple[str, ...]


def probe(python: str) -> Interpreter:
    """Ask an interpreter what it is. Raises `StartFailed`."""
    try:
        answer = subprocess.run(
            [python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StartFailed(f"The interpreter {python!r} does not start: {error}") from None
    found = json.loads(answer.stdout)
    return Interpreter(**{**found, "site_packages": tuple(found["site_packages"])})


class Overlay:
    """The environment of one place."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.bin = root / "bin"
        self.python = self.bin / "python"
        self.node = root / "node"

    def prepare(self, interpreter: Interpreter) -> None:
        """Make it, or make it anew for another interpreter; what is installed in it stays."""
        marker = self.root / "pyvenv.cfg"
        home = os.path.dirname(interpreter.executable)
        config = (
            f"home = {home}\ninclude-system-site-packages = false\nversion = {interpreter.full_version}\n"
            f"kernel-environment = {os.pathsep.join(interpreter.site_packages)}\n"
        )
        if marker.exists() and marker.read_text() == config:
            return
        site_packages = self.root / "lib" / f"python{interpreter.version}" / "site-packages"
        site_packages.mkdir(parents=True, exist_ok=True)
        self.bin.mkdir(exist_ok=True)
        for name, target in (("python", interpreter.executable), ("python3", "python")):
            link = self.bin / name
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        for name in ("pip", "pip3"):
            script = self.bin / name
            script.write_text(_PIP)
            script.chmod(0o755)
        (site_packages / "_kernel_environment.pth").write_text("\n".join(interpreter.site_packages) + "\n")
        marker.write_text(config)

    def env(self) -> dict[str, str]:
        """What makes a process use this environment."""
        path = os.environ.get("PATH", os.defpath)
        return {
            "VIRTUAL_ENV": str(self.root),
            "PATH": os.pathsep.join([str(self.bin), str(self.node / "node_modules" / ".bin"), path]),
            "NODE_PATH": str(self.node / "node_modules"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
