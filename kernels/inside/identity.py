"""Makes a fork of a built kernel a certain session's: as if the session's own interpreter had been started."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import site
import subprocess
import sys
import time
import uuid
from typing import Any

_AT_START = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "LANG", "LC_", "OMP_", "OPENBLAS_", "MKL_", "NUMEXPR_", "ZMQ_")
"""What is read only when a process starts, or a library is loaded."""


def why_not_forked(identity: dict[str, Any], started_with: dict[str, str]) -> str | None:
    """What only an ordinary start honours, if this session has some of it."""
    env: dict[str, str] = identity["env"]
    for name in {*env, *started_with}:
        if name.startswith(_AT_START) and env.get(name) != started_with.get(name):
            return name
    overlay = identity["overlay"]
    profile = os.path.join(_ipython_dir(env), "profile_default")
    for folder, endings in (
        (profile, (".py", ".json")),
        (os.path.join(profile, "startup"), (".py", ".ipy")),
        (os.path.join(overlay["root"], "etc", "ipython"), (".py", ".json")),
    ):
        with contextlib.suppress(OSError):
            for name in os.listdir(folder):
                if name.endswith(endings):
                    return os.path.join(folder, name)
    for name in ("sitecustomize", "usercustomize"):
        for ending in (".py", ""):
            if os.path.exists(path := os.path.join(overlay["site_packages"], f"{name}{ending}")):
                return path
    return None


def start_anew(identity: dict[str, Any], launcher: str) -> None:
    """Become an ordinarily started kernel. Does not return."""
    os.chdir(identity["cwd"])
    python = identity["overlay"]["python"]
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    os.execve(python, [python, *flags, launcher, "-f", identity["connection_file"]], identity["env"])  # noqa: S606


def _ipython_dir(env: dict[str, str]) -> str:
    return env.get("IPYTHONDIR") or os.path.join(env.get("HOME", "/"), ".ipython")


def take_on(app: Any, identity: dict[str, Any], launcher: str) -> None:
    """Environment, place, packages and randomness."""
    os.environ.clear()
    os.environ.update(app.added_to_environ)
    os.environ.update(identity["env"])
    time.tzset()
    os.chdir(identity["cwd"])
    sys.argv[:] = [launcher, "-f", identity["connection_file"]]
    use_overlay(**identity["overlay"])
    forget_process()
    _take_place(app, identity)
    renew(app)


def use_overlay(root: str, python: str, site_packages: str) -> None:
    """The paths that `python` would have, started with a script whose folder is not among them."""
    sys.executable = python
    if hasattr(sys, "orig_argv"):
        sys.orig_argv[:] = [python, *sys.argv]
    sys.prefix = sys.exec_prefix = root
    library = os.path.dirname(os.__file__)
    archive = os.path.join(os.path.dirname(library), f"python{sys.version_info[0]}{sys.version_info[1]}.zip")
    own = [it for it in sys.path if it == archive or (f"{it}/".startswith(f"{library}/") and "-packages" not in it)]
    sys.path[:] = ["", *own]
    site.PREFIXES[:] = [root]
    site.ENABLE_USER_SITE = False
    site.addsitedir(site_packages)
    sysconfig: Any = sys.modules.get("sysconfig")
    if sysconfig is not None:
        sysconfig._PREFIX = sysconfig._EXEC_PREFIX = root
        sysconfig._CONFIG_VARS = None
        sysconfig._CONFIG_VARS_INITIALIZED = False
    if (spawn := sys.modules.get("multiprocessing.spawn")) is not None:
        spawn.set_executable(python)


def forget_process() -> None:
    """What modules remember of the process that they were imported in, and of its environment."""
    forgotten: dict[str, dict[str, Any]] = {
        "tempfile": {"tempdir": None, "_name_sequence": None},
        "platform": {"_uname_cache": None},
        "uuid": {"_node": None, "_last_timestamp": None, "_last_timestamp_v7": None},
        "psutil": {"_pmap": {}},
    }
    for name, attributes in forgotten.items():
        for attribute, value in attributes.items():
            if hasattr(module := sys.modules.get(name), attribute):
                setattr(module, attribute, value)
    if (cache := sys.modules.get("parso.cache")) is not None:
        cache._default_cache_path = cache._get_default_cache_path()  # type: ignore[attr-defined]
    if (settings := sys.modules.get("jedi.settings")) is not None:
        cache_home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        settings.cache_directory = os.path.expanduser(os.path.join(cache_home, "jedi"))  # type: ignore[attr-defined]
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        current = process.current_process()
        current._config["authkey"] = process.AuthenticationString(os.urandom(32))
        current.__dict__.pop("_ident", None)


def reseed() -> None:
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _take_place(app: Any, identity: dict[str, Any]) -> None:
    shell = app.shell
    folder = _ipython_dir(identity["env"])
    app.ipython_dir = shell.ipython_dir = folder
    app.profile_dir._location_isset = False
    app.profile_dir.location = os.path.join(folder, "profile_default")
    if hasattr(shell, "_db"):
        shell._db = None
    shell.home_dir = identity["env"].get("HOME", "/")
    shell.starting_dir = os.getcwd()
    shell.history_manager.dir_hist[:] = [importlib.import_module("pathlib").Path.cwd()]
    shell.init_environment()


def renew(app: Any, *, reseeded: bool = True) -> None:
    """A process's and a kernel's own: numbers, names, randomness."""
    if reseeded:
        reseed()
    kernel, session, pid = app.kernel, app.session, os.getpid()
    session.pid = pid
    session.session = str(uuid.uuid4())
    session.message_count = 0
    session.digest_history.clear()
    kernel.ident = str(uuid.uuid4())
    kernel.shell.displayhook.topic = kernel._topic("execute_result")
    for stream in (sys.stdout, sys.stderr):
        stream._master_pid = pid  # type: ignore[union-attr]
