"""Kernels as processes of this machine, started through a jupyter_client provisioner.

A place is a folder: `workspace/` (the session's files), `home/`, `overlay/` (what it installed). Logs are elsewhere.
Sockets are `ipc://` in a folder of the kernel's own: no port can collide, nobody else can connect.
"""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, TextIO
from uuid import uuid4

import psutil
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner as JupyterLocalProvisioner

from kernels.blobs import ObjectBlobs
from kernels.engine import Exit, Kernelspec, Launch, ProcessUsage, SetupStep, Snapshots
from kernels.engines import processes
from kernels.engines.logs import Log
from kernels.engines.overlay import Interpreter, Overlay, copy_environment, probe
from kernels.errors import StartFailed
from kernels.paths import delete_tree
from kernels.snapshots import LocalSnapshots
from kernels.workspace import LocalWorkspace

log = logging.getLogger(__name__)

_LAUNCHER = str(Path(__file__).parent.parent / "inside" / "launcher.py")
_CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
_MARK = "SESSION_GATEWAY_KERNEL"
_REMEMBERED_WORKSPACES = 2000
_PASSED_ON = (
    "LANG", "LANGUAGE", "LC_", "TZ", "TERM", "SSL_CERT_", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_", "NPM_CONFIG_",
    "NODE_EXTRA_CA_CERTS", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "LD_LIBRARY_PATH", "OPENBLAS_", "OMP_", "MKL_",
)  # fmt: skip


class LocalProvisioner(JupyterLocalProvisioner):
    """jupyter_client's own, told of the end of its process instead of asking ten times a second."""

    async def wait(self) -> int | None:
        if self.process is None:
            return 0
        code = await processes.exited(self.process)
        self.process = None
        return code


class LocalProcess:
    """A kernel process of this machine."""

    def __init__(
        self,
        launch: Launch,
        process: "subprocess.Popen[bytes]",
        connection: Mapping[str, Any],
        log: Log,
        log_start: int,
    ) -> None:
        self.kernel_id = launch.kernel_id
        self.connection = connection
        self.started_at = time.time()
        self.memory_limit_bytes = launch.limits.memory_bytes
        self._process = process
        self._log = log
        self._log_start = log_start
        self.mark = f"{_MARK}={launch.kernel_id}"
        self._oom_kills = processes.oom_kills()
        self._out_of_memory = False
        self._kill_reason: str | None = None
        self._waiting = asyncio.create_task(self._wait())

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return not self._waiting.done()

    async def _wait(self) -> Exit:
        await processes.unreaped_exit(self._process)
        await asyncio.to_thread(processes.end_family, self.pid, self.mark)
        return self._exit(self._process.wait())

    def _exit(self, code: int) -> Exit:
        if self._out_of_memory:
            return Exit(signal=signal.SIGKILL, out_of_memory=True, reason=self._kill_reason or "")
        if self._kill_reason is not None:
            return Exit(signal=signal.SIGKILL, reason=self._kill_reason)
        if code >= 0:
            return Exit(code=code, reason=f"The kernel exited with code {code}.")
        if -code == signal.SIGKILL and processes.oom_kills() > self._oom_kills:
            return Exit(signal=-code, out_of_memory=True, reason="Out of memory: the system killed the kernel.")
        return Exit(signal=-code, reason=f"The kernel was ended by signal {-code} ({processes.signal_name(-code)}).")

    async def ended(self) -> Exit:
        return await asyncio.shield(self._waiting)

    async def interrupt(self, since: float) -> None:
        if self.running:
            for pid in processes.group(self.pid):
                if pid == self.pid or processes.started_since(pid, since):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGINT)

    async def kill(self, reason: str) -> None:
        if self.running:
            if self._kill_reason is None:
                self._kill_reason = reason
            await asyncio.shield(asyncio.to_thread(processes.end_family, self.pid, self.mark))
            await self.ended()

    async def kill_for_memory(self, used_bytes: int) -> None:
        limit = self.memory_limit_bytes or 0
        self._out_of_memory = True
        await self.kill(f"Out of memory: the session used {used_bytes:,} bytes, its limit is {limit:,}.")

    async def kill_children(self, since: float) -> int:
        def end() -> int:
            others = (one for one in processes.family(self.pid, self.mark) if one.pid != self.pid)
            return processes.end(one for one in others if processes.started_since(one.pid, since))

        return await asyncio.to_thread(end) if self.running else 0

    async def printed(self, limit_bytes: int) -> str:
        try:
            return await asyncio.to_thread(self._log.tail, limit_bytes, self._log_start)
        except OSError:  # it is gone, or became something else
            return ""

    async def usage(self) -> ProcessUsage:
        if not self.running:
            return ProcessUsage(0.0, 0, 0)
        return ProcessUsage(*await asyncio.to_thread(processes.usage, self.pid))


class LocalEngine:
    """Runs kernels on this machine, under a data folder."""

    def __init__(self, data_dir: Path, blobs_url: str = "") -> None:
        self._places = data_dir / "sessions"
        self._records = data_dir / "kernels"
        self._logs = data_dir / "logs"
        self._runtime: Path | None = None
        self._specs: dict[str, Kernelspec] = {}
        self._interpreters: dict[str, Interpreter] = {}
        self._running: dict[str, LocalProcess] = {}
        self._marks: set[str] = set()  # of kernels and setups
        self._workspaces: dict[str, tuple[int | None, LocalWorkspace]] = {}  # each knows what it holds, for its quota
        blobs = ObjectBlobs.at(blobs_url) if blobs_url else None
        self.snapshots: Snapshots = LocalSnapshots(data_dir / "snapshots", self._known_workspace, blobs)

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Everything that the engine needs while it is used; ends every kernel when left."""
        self._places.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._records.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Paths of sockets hold at most 107 bytes, so they can't be under the data folder.
        self._runtime = Path(tempfile.mkdtemp(prefix="sg-", dir=_short_temp()))
        watching = asyncio.create_task(self._watch_memory())
        try:
            yield
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
            for process in list(self._running.values()):
                await process.kill("The gateway stopped.")
            shutil.rmtree(self._runtime, ignore_errors=True)

    def kernelspecs(self) -> Mapping[str, Kernelspec]:
        self._specs = {
            name: _kernelspec(name, found["spec"], found["resource_dir"])
            for name, found in KernelSpecManager().get_all_specs().items()
        }
        return self._specs

    @asynccontextmanager
    async def start(self, launch: Launch) -> AsyncIterator[LocalProcess]:
        assert self._runtime is not None, "the engine must be opened first"
        folder = self._runtime / launch.kernel_id.replace("-", "")[:12]
        folder.mkdir(mode=0o700)
        try:
            with self._recorded(launch.kernel_id, folder):
                process = await self._launch(launch, folder)
                try:
                    self._running[launch.kernel_id] = process
                    yield process
                finally:
                    await process.kill("It was ended.")
                    self._running.pop(launch.kernel_id, None)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _recorded(self, mark: str, folder: Path | None = None) -> Iterator[None]:
        """What runs under a mark is written down meanwhile, so that another process can end it after our death."""
        record = self._records / f"{mark}.json"
        record.write_text(json.dumps({"mark": mark, "folder": str(folder) if folder else None}))
        self._marks.add(mark)
        try:
            yield
        finally:
            self._marks.discard(mark)
            record.unlink(missing_ok=True)

    async def _launch(self, launch: Launch, folder: Path) -> LocalProcess:
        connection = {
            "transport": "ipc",
            "ip": str(folder / "k"),
            "key": uuid4().hex + uuid4().hex,
            "signature_scheme": "hmac-sha256",
            "kernel_name": launch.spec.name,
            **{f"{name}_port": number for number, name in enumerate(_CHANNELS, start=1)},
        }
        connection_file = folder / "kernel.json"
        connection_file.touch(mode=0o600)
        connection_file.write_text(json.dumps(connection))
        place, env = await self._prepare(launch)
        argv = [part.replace("{connection_file}", str(connection_file)) for part in self._argv(launch)]
        provisioner = LocalProvisioner(
            kernel_id=launch.kernel_id,
            kernel_spec=KernelSpec(argv=argv, resource_dir=launch.spec.resource_dir),
        )
        kernel_log = self._log(launch.place, "kernel")
        with _for_start(kernel_log.opened()) as output:
            log_start = os.fstat(output.fileno()).st_size
            try:
                keywords = await provisioner.pre_launch(env=env, cwd=str(place / "workspace"))
                keywords.update(stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
                await provisioner.launch_kernel(keywords.pop("cmd"), **keywords)
            except OSError as error:
                raise StartFailed(f"The kernel {launch.spec.name!r} does not start: {error}") from None
        assert provisioner.process is not None
        return LocalProcess(launch, provisioner.process, connection, kernel_log, log_start)

    async def _prepare(self, launch: Launch) -> tuple[Path, dict[str, str]]:
        """The folder of a place and the environment of its processes, made where they are missing."""
        place = self._place(launch.place)
        for name in ("workspace", "home"):
            (place / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        env = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        env["PATH"] = os.environ.get("PATH", os.defpath)
        env.update(
            HOME=str(place / "home"),
            IPYTHONDIR=str(place / "home" / ".ipython"),
            TMPDIR=tempfile.gettempdir(),
        )
        if launch.spec.language == "python":
            interpreter = await self._interpreter(launch.spec)
            overlay = Overlay(place / "overlay")
            await asyncio.to_thread(overlay.prepare, interpreter)
            env.update(overlay.env())
        env.update(launch.spec.env)
        env.update(launch.env)
        env[_MARK] = launch.kernel_id
        return place, env

    def _argv(self, launch: Launch) -> list[str]:
        argv = list(launch.spec.argv)
        if launch.spec.language == "python" and "ipykernel_launcher" in argv:
            at = argv.index("ipykernel_launcher")
            python = str(Overlay(self._place(launch.place) / "overlay").python)
            return [python, *argv[1 : at - 1], _LAUNCHER, *argv[at + 1 :]]
        return argv

    async def _interpreter(self, spec: Kernelspec) -> Interpreter:
        python = shutil.which(spec.argv[0]) or sys.executable
        if python not in self._interpreters:
            self._interpreters[python] = await asyncio.to_thread(probe, python)
        return self._interpreters[python]

    def _place(self, place: str) -> Path:
        return self._places / place

    async def workspace(self, place: str, disk_bytes: int | None) -> LocalWorkspace:
        root = self._place(place) / "workspace"
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        known = self._workspaces.get(place)
        if known is None or known[0] != disk_bytes:
            while len(self._workspaces) >= _REMEMBERED_WORKSPACES:
                del self._workspaces[next(iter(self._workspaces))]
            known = self._workspaces[place] = disk_bytes, LocalWorkspace(root, disk_bytes)
        return known[1]

    async def _known_workspace(self, place: str) -> LocalWorkspace:
        known = self._workspaces.get(place)
        return await self.workspace(place, known[0] if known is not None else None)

    async def copy_environment(self, source: str, target: str) -> None:
        await copy_environment(self._place(source), self._place(target))

    async def remove(self, place: str) -> None:
        await self.snapshots.remove(place)
        if (known := self._workspaces.pop(place, None)) is not None:
            await known[1].remove()
        for folder in (self._places, self._logs):
            await asyncio.to_thread(_delete_tree, folder / place)

    def _log(self, place: str, name: Literal["kernel", "setup"]) -> Log:
        return Log(self._logs / place / f"{name}.log")

    async def log(self, place: str, name: Literal["kernel", "setup"], limit_bytes: int) -> str:
        try:
            return await asyncio.to_thread(self._log(place, name).tail, limit_bytes)
        except OSError as error:
            log.warning("The %s log of %s can't be read: %s", name, place, error)
            return ""

    async def run_setup(self, launch: Launch, steps: list[SetupStep]) -> Exit:
        place, env = await self._prepare(launch)
        overlay = Overlay(place / "overlay")
        exit_ = Exit(code=0)
        with _for_start(self._log(launch.place, "setup").opened(anew=True)) as output:
            for step in steps:
                exit_ = await self._run_step(step, overlay, place, env, output)
                if exit_.code != 0:
                    break
        return exit_

    async def _run_step(
        self, step: SetupStep, overlay: Overlay, place: Path, env: dict[str, str], output: TextIO
    ) -> Exit:
        match step.kind:
            case "pip":
                argv = [str(overlay.python), "-m", "pip", "install", "--no-input", *step.arguments]
            case "npm":
                overlay.node.mkdir(parents=True, exist_ok=True)
                argv = ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(overlay.node), *step.arguments]
            case "command":
                argv = ["/bin/sh", "-c", *step.arguments]
        name = f"{step.kind} {' '.join(step.arguments)}"
        print(f"$ {name}", file=output, flush=True)
        mark = uuid4().hex
        with self._recorded(mark):
            try:
                process = subprocess.Popen(
                    argv, cwd=place / "workspace", env={**env, _MARK: mark}, stdin=subprocess.DEVNULL,
                    stdout=output, stderr=output, start_new_session=True,
                )  # fmt: skip
            except OSError as error:
                print(f"{argv[0]}: {error.strerror}", file=output, flush=True)
                return Exit(code=127, reason=f"setup: {name!r} can't be run: {argv[0]}: {error.strerror}")
            try:
                await processes.unreaped_exit(process)
            finally:
                await asyncio.shield(asyncio.to_thread(processes.end_family, process.pid, f"{_MARK}={mark}"))
                code = process.wait()
        return Exit(code=code, reason="" if code == 0 else f"setup: {name!r} ended with {code}")

    async def end_orphans(self) -> int:
        return await asyncio.to_thread(self._end_orphans)

    def _end_orphans(self) -> int:
        count = 0
        for record in self._records.glob("*.json"):
            with contextlib.suppress(ValueError, KeyError, OSError):
                found = json.loads(record.read_text())
                count += bool(processes.end_family(None, f"{_MARK}={found['mark']}"))
                if found["folder"] is not None:
                    shutil.rmtree(found["folder"], ignore_errors=True)
                    os.rmdir(os.path.dirname(found["folder"]))  # once it is empty
            record.unlink(missing_ok=True)
        return count

    def abandon(self) -> None:
        """End every kernel and setup without waiting for anything: this process is about to end too."""
        for process in self._running.values():
            processes.end_family(process.pid, process.mark)
        for mark in self._marks:
            processes.end_family(None, f"{_MARK}={mark}")
        if self._runtime is not None:
            shutil.rmtree(self._runtime, ignore_errors=True)

    async def _watch_memory(self) -> None:
        """End kernels that use more than they may; those that use CPU are looked at often, idle ones seldom."""
        seen: dict[str, float] = {}
        turn = 0
        while True:
            await asyncio.sleep(0.25)
            turn += 1
            for kernel_id, process in list(self._running.items()):
                if process.memory_limit_bytes is None or not process.running:
                    continue
                try:
                    await self._check_memory(process, process.memory_limit_bytes, seen, always=turn % 20 == 0)
                except psutil.Error:  # it is gone
                    pass
                except Exception:
                    log.exception("The memory of kernel %s could not be looked at", kernel_id)
            seen = {kernel_id: used for kernel_id, used in seen.items() if kernel_id in self._running}

    async def _check_memory(
        self, process: LocalProcess, limit_bytes: int, seen: dict[str, float], *, always: bool
    ) -> None:
        times = psutil.Process(process.pid).cpu_times()
        used = times.user + times.system
        if seen.get(process.kernel_id) == used and not always:
            return
        seen[process.kernel_id] = used
        _, memory_bytes, _ = processes.usage(process.pid)
        if memory_bytes > limit_bytes:
            memory_bytes = await asyncio.to_thread(processes.shared_memory_bytes, process.pid)
        if memory_bytes > limit_bytes:
            await process.kill_for_memory(memory_bytes)


def _kernelspec(name: str, spec: dict[str, Any], resource_dir: str) -> Kernelspec:
    return Kernelspec(
        name=name,
        display_name=spec.get("display_name", name),
        language=spec.get("language", "").lower(),
        argv=_with_our_python(tuple(spec.get("argv", ()))),
        env=spec.get("env", {}),
        interrupt_mode=spec.get("interrupt_mode", "signal"),
        metadata=spec.get("metadata", {}),
        resource_dir=resource_dir,
    )


def _with_our_python(argv: tuple[str, ...]) -> tuple[str, ...]:
    """A kernelspec that says just `python` means the interpreter that its package was installed with."""
    ours = {"python", "python3", f"python{sys.version_info[0]}.{sys.version_info[1]}"}
    return (sys.executable, *argv[1:]) if argv and argv[0] in ours else argv


def _short_temp() -> str:
    """The system's folder for temporary files, `/tmp` if that one's path is too long for sockets."""
    folder = tempfile.gettempdir()
    return folder if len(folder) <= 60 else "/tmp"  # noqa: S108 - a private folder is made in it


@contextlib.contextmanager
def _for_start(opening: AbstractContextManager[TextIO]) -> Iterator[TextIO]:
    """An opened log. Raises `StartFailed` when it can't be opened."""
    with contextlib.ExitStack() as stack:
        try:
            output = stack.enter_context(opening)
        except OSError as error:
            raise StartFailed(f"The session's log can't be written: {error.strerror}") from None
        yield output


def _delete_tree(path: Path) -> None:
    """Raises `OSError` if something of it stays."""
    with contextlib.suppress(FileNotFoundError):
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            delete_tree(os.fsencode(path.name), folder)
        finally:
            os.close(folder)
