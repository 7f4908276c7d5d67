"""A session's own environment, laid over the one that its kernelspec names.

A virtual environment without copies: its interpreter is a link, what is installed goes into its own
`site-packages`, and the kernel environment's packages are seen behind them but never written to.
"""

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from kernels.copies import copy_tree
from kernels.engine import Skipped
from kernels.errors import StartFailed
from kernels.logs import open_regular

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
_MARKER = "pyvenv.cfg"
_MOST_READ = 65_536
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


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
        answer = subprocess.run([python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=30, check=True)
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

    def site_packages(self, interpreter: Interpreter) -> Path:
        """Where what is installed in it is."""
        return self.root / "lib" / f"python{interpreter.version}" / "site-packages"

    def prepare(self, interpreter: Interpreter) -> None:
        """Make it, or make it anew for another interpreter; what is installed in it stays. Raises `StartFailed`.

        The session's processes can put anything in here: links in our way are replaced, never followed.
        """
        home = os.path.dirname(interpreter.executable)
        config = (
            f"home = {home}\ninclude-system-site-packages = false\nversion = {interpreter.full_version}\n"
            f"kernel-environment = {os.pathsep.join(interpreter.site_packages)}\n"
        )
        try:
            with _folder(self.root) as root:
                if _read(root, _MARKER) == config:
                    return
            with _folder(self.root, "lib", f"python{interpreter.version}", "site-packages") as site_packages:
                _write(site_packages, "_kernel_environment.pth", "\n".join(interpreter.site_packages) + "\n")
            with _folder(self.root, "bin") as programs:
                _link(programs, "python", interpreter.executable)
                _link(programs, "python3", "python")
                for name in ("pip", "pip3"):
                    _write(programs, name, _PIP, mode=0o755)
            with _folder(self.root) as root:
                _write(root, _MARKER, config)
        except OSError as error:
            raise StartFailed(f"The session's environment can't be made: {error}") from None

    def env(self) -> dict[str, str]:
        """What makes a process use this environment."""
        path = os.environ.get("PATH", os.defpath)
        return {
            "VIRTUAL_ENV": str(self.root),
            "PATH": os.pathsep.join([str(self.bin), str(self.node / "node_modules" / ".bin"), path]),
            "NODE_PATH": str(self.node / "node_modules"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }


def copy_environment(source: Path, target: Path) -> None:
    """What is installed at one place, and its home, at another one; programs there start their own interpreter."""
    for name in ("overlay", "home"):
        with suppress(FileNotFoundError):
            copy_folder(source / name, target / name)
    _point_programs(source / "overlay", target / "overlay")


def copy_folder(source: Path, target: Path) -> list[Skipped]:
    """All of a folder as another one, which is made or empty. Raises `FileNotFoundError` if there is none."""
    with ExitStack() as stack:
        old = os.open(source, _FOLDER)
        stack.callback(os.close, old)
        target.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = os.open(target, _FOLDER)
        stack.callback(os.close, new)
        return copy_tree(old, new)


def _point_programs(source: Path, target: Path) -> None:
    """A program's first lines name the interpreter that it was installed for."""
    old, new = os.fsencode(source), os.fsencode(target)
    with suppress(FileNotFoundError), _folder(target, "bin") as programs:
        for name in os.listdir(programs):
            try:
                fd = open_regular(name, os.O_RDWR, programs)
            except OSError:
                continue
            with open(fd, "r+b") as program:
                text = program.read(_MOST_READ)
                if text.startswith(b"#!") and old in text and not program.read(1):
                    program.seek(0)
                    program.write(text.replace(old, new))
                    program.truncate()


@contextmanager
def _folder(overlay: Path, *names: str) -> Iterator[int]:
    """A folder of an overlay, opened; made where there is none, or something else."""
    fd = os.open(overlay.parent, _FOLDER)
    try:
        for name in (overlay.name, *names):
            below = _open_or_make(name, fd)
            os.close(fd)
            fd = below
        yield fd
    finally:
        os.close(fd)


def _open_or_make(name: str, folder: int) -> int:
    try:
        return os.open(name, _FOLDER, dir_fd=folder)
    except NotADirectoryError:  # a link to a folder is none
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass
    os.mkdir(name, 0o755, dir_fd=folder)
    return os.open(name, _FOLDER, dir_fd=folder)


def _read(folder: int, name: str) -> str | None:
    """The beginning of a small file; None if there is no such file."""
    try:
        fd = open_regular(name, os.O_RDONLY, folder)
    except OSError:
        return None
    with open(fd, encoding="utf-8", errors="replace") as text:
        return text.read(_MOST_READ)


def _write(folder: int, name: str, text: str, mode: int = 0o644) -> None:
    with _placed(folder, name) as new:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=folder)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)


def _link(folder: int, name: str, target: str) -> None:
    with _placed(folder, name) as new:
        os.symlink(target, new, dir_fd=folder)


@contextmanager
def _placed(folder: int, name: str) -> Iterator[str]:
    """A name for what is to be made; what is called `name` already has its place taken when the block is left."""
    if not _is_there(name, folder):
        yield name
        return
    new = f".{name}-{secrets.token_hex(8)}"
    yield new
    os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)


def _is_there(name: str, folder: int) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True
