"""Kernels as processes of this machine, kept by a process that outlives us.

A place is a folder: `workspace/` (the session's files), `home/`, `overlay/` (what it installed). Logs are elsewhere.
Sockets are `ipc://` in a folder of the kernel's own: no port can collide, nobody else can connect.
"""

import asyncio
import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TextIO
from uuid import uuid4

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.provisioning.local_provisioner import LocalProvisioner as JupyterLocalProvisioner

from kernels import processes
from kernels.blobs import ObjectBlobs
from kernels.engine import Exit, Kept, Kernelspec, Launch, Limits, SetupStep, Skipped, Snapshots
from kernels.engines.confinement import Confined, Confinement, Isolation
from kernels.engines.forks import Forks, found_program
from kernels.engines.keepers import KEEPER_ENDED, Keepers, KeptProcess
from kernels.engines.overlay import Interpreter, Overlay, copy_environment, copy_folder, probe
from kernels.errors import KernelGone, KernelsError, NoSpace, StartFailed
from kernels.exchanges import Exchanges
from kernels.journal import DEFAULT_BYTES, Entry, JournalReader
from kernels.keeper import Folders, version, write_whole
from kernels.logs import Log
from kernels.processes import MARK
from kernels.snapshots import LocalSnapshots
from kernels.threads import in_thread
from kernels.trash import Trash
from kernels.workspace import LocalWorkspace

log = logging.getLogger(__name__)

_LAUNCHER = str(Path(__file__).parent.parent / "inside" / "launcher.py")
_READ_BYTES = 2**18
_LOOKS_FOR_EXIT = 50
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


class LocalEngine:
    """Runs kernels on this machine, under a data folder."""

    def __init__(
        self,
        data_dir: Path,
        blobs_url: str = "",
        *,
        journal_bytes: int = DEFAULT_BYTES,
        keeper_version: str | None = None,
        fork_server: bool = True,
        pool_size: int = 2,
        preloads: tuple[str, ...] = (),
        isolation: Isolation = "best-effort",
        readable: Iterable[Path] = (),
    ) -> None:
        """Python kernels are forked where that is possible, and `pool_size` of each environment kept ready.

        Kernels of other languages can't wait ready: their folder and environment are given when a process starts.
        """
        data_dir = data_dir.absolute()
        self._places = data_dir / "sessions"
        self._logs = data_dir / "logs"
        self._trash = Trash(data_dir / "trash")
        self._folders = Folders(data_dir)
        self._keepers = Keepers(self._folders, keeper_version or version())
        self._journal_bytes = journal_bytes
        self._confinement = Confinement(isolation, readable)
        self._passed_on = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON)}
        self._passed_on["PATH"] = os.environ.get("PATH", os.defpath)
        self._forks = Forks(pool_size, preloads) if fork_server else None
        self._specs: dict[str, Kernelspec] = {}
        self._specs_seen: object = None
        self._spec_manager = KernelSpecManager()
        self._interpreters: dict[str, Interpreter] = {}
        self._ours: dict[str, KeptProcess] = {}
        self._marks: set[str] = set()  # of setups
        self._workspaces: dict[str, tuple[int | None, LocalWorkspace]] = {}  # each knows what it holds, for its quota
        blobs = ObjectBlobs.at(blobs_url) if blobs_url else None
        self._exchanges = Exchanges(data_dir / "exchange")
        self.snapshots: Snapshots = LocalSnapshots(
            data_dir / "snapshots", self._known_workspace, blobs, exchanges=self._exchanges
        )

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Everything that the engine needs while it is used; ends every kernel that is ours when left.

        Raises `WallsMissing`, `StartFailed`.
        """
        self._places.mkdir(parents=True, exist_ok=True, mode=0o700)
        await self._confinement.look(self._places)
        self._folders.make()
        async with self._trash.opened(), self._keepers.opened():
            await self._keepers.starter()
            try:
                yield
            finally:
                await asyncio.gather(*(process.kill("The gateway stopped.") for process in self._ours.values()))

    def kernelspecs(self) -> Mapping[str, Kernelspec]:
        """Read anew when one has come, gone or been changed: finding them all takes Jupyter many milliseconds."""
        manager = self._spec_manager
        seen = [_spec_files(folder) for folder in manager.kernel_dirs]
        if seen != self._specs_seen:
            self._specs_seen = seen
            self._specs = {
                name: _kernelspec(name, found["spec"], found["resource_dir"])
                for name, found in manager.get_all_specs().items()
            }
        return self._specs

    @asynccontextmanager
    async def start(self, launch: Launch) -> AsyncIterator[KeptProcess]:
        place, env = await self._prepare(launch)
        order = await self._order(launch, place, env)
        keeper = await self._keepers.starter()
        starting = keeper.start(launch.kernel_id, launch.spec.name, order)
        async with self._commanded(await self._come(starting)) as process:
            yield process

    async def _come(self, starting: "asyncio.Future[KeptProcess]") -> KeptProcess:
        """What a keeper was asked for. Raises `StartFailed`."""
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:  # what was ordered comes, and must not stay
            with contextlib.suppress(KernelsError):
                await self._settled(await starting)
            raise
        except StartFailed:
            raise
        except KernelsError as error:
            raise StartFailed(str(error)) from None

    async def _order(self, launch: Launch, place: Path, env: dict[str, str]) -> dict[str, Any]:
        provisioner = LocalProvisioner(
            kernel_id=launch.kernel_id,
            kernel_spec=KernelSpec(argv=self._argv(launch), resource_dir=launch.spec.resource_dir),
        )
        ready = await provisioner.pre_launch(env=env, cwd=str(place / "workspace"))
        confined = await self._confined(launch)
        return {
            "kernel_id": launch.kernel_id,
            "argv": ready["cmd"],
            "env": ready["env"],
            "cwd": ready["cwd"],
            "log": str(self._log(launch.place, "kernel").path),
            "memory_bytes": launch.limits.memory_bytes,
            "cpus": launch.limits.cpu,
            "pids": launch.limits.pids,
            "disk_bytes": launch.limits.disk_bytes,
            "disk_paths": [str(place / name) for name in ("workspace", "home", "overlay")],
            "state_paths": [str(self._exchanges.at(launch.place, "out"))],
            "journal_bytes": self._journal_bytes,
            "about": {"place": launch.place, "spec": asdict(launch.spec), "limits": asdict(launch.limits)},
            "fork": await self._fork(launch),
            "confine": {"plan": confined.plan, "behind": confined.behind, "missing": confined.missing},
        }

    async def _fork(self, launch: Launch) -> dict[str, Any] | None:
        """What a kernel can be forked from; None if it has to be started the ordinary way."""
        if self._forks is None or not self._forks.can(launch.spec, launch.env):
            return None
        interpreter = await self._interpreter(launch.spec)
        overlay = Overlay(self._place(launch.place) / "overlay")
        plan = self._confinement.plan(launch.spec, launch.network, await self._read_to_run(launch.spec))
        return self._forks.order(launch.spec, interpreter, launch.preloads) | {
            "plan": plan,
            "overlay": {
                "root": str(overlay.root),
                "python": str(overlay.python),
                "site_packages": str(overlay.site_packages(interpreter)),
            },
        }

    async def _confined(self, launch: Launch) -> Confined:
        place = self._place(launch.place)
        folders = [place / name for name in ("workspace", "home", "overlay")]
        trees = {str(path): "rw" for path in (*folders, self._exchanges.at(launch.place, "out")) if path.exists()}
        trees[str(self._exchanges.at(launch.place, "in"))] = "ro"
        return self._confinement.of(launch, await self._read_to_run(launch.spec), trees)

    async def _read_to_run(self, spec: Kernelspec) -> list[Path]:
        """Interpreters and programs, whose folders a kernel must be able to read."""
        if spec.language == "python":
            interpreter = await self._interpreter(spec)
            return [Path(found_program(spec.argv[0]) or sys.executable), Path(interpreter.executable)]
        program = found_program(spec.argv[0]) if spec.argv else None
        return [Path(program)] if program is not None else []

    async def prepare(
        self, spec: Kernelspec, network: Literal["none", "host"] = "host", preloads: tuple[str, ...] = ()
    ) -> None:
        if self._forks is not None and self._forks.can(spec, {}):
            try:
                plan = self._confinement.plan(spec, network, await self._read_to_run(spec))
                fork = self._forks.order(spec, await self._interpreter(spec), preloads) | {"plan": plan}
                await (await self._keepers.starter()).ask("prepare", fork=fork)
            except KernelsError as error:
                log.warning("Kernels of %r are not made ready: %s", spec.name, error)

    @asynccontextmanager
    async def duplicate(
        self, source: str, launch: Launch, fork: Callable[[str], Awaitable[object]]
    ) -> AsyncIterator[KeptProcess]:
        original = self._ours.get(source)
        keeper = original.keeper if original is not None else None
        if original is None or keeper is None:
            raise StartFailed(f"The kernel {source!r} is not there.")
        self._confinement.check_copy()
        place, env = await self._prepare(launch, filled=False)
        order = await self._order(launch, place, env)
        try:
            told = await keeper.ask("offer", source=source, order=order, kernel_name=launch.spec.name)
        except StartFailed:
            raise
        except KernelsError as error:
            raise StartFailed(str(error)) from None
        try:
            await fork(told["address"])
            await self._prepare(launch)
        except BaseException:
            with contextlib.suppress(KernelsError):
                await asyncio.shield(keeper.ask("withdraw", kernel_id=launch.kernel_id))
            raise
        async with self._commanded(await self._come(keeper.duplicate(launch.kernel_id))) as process:
            yield process

    @asynccontextmanager
    async def adopt(self, kernel_id: str) -> AsyncIterator[KeptProcess]:
        async with self._commanded(await self._adopted(kernel_id)) as process:
            yield process

    async def _adopted(self, kernel_id: str) -> KeptProcess:
        for _ in range(_LOOKS_FOR_EXIT):
            record = await asyncio.to_thread(self._record, kernel_id)
            if record["exit"] is not None:
                return KeptProcess(kernel_id, record, None)
            keeper = self._keepers.find(record["keeper"])
            if keeper is None:
                break
            with contextlib.suppress(KernelGone):
                return await asyncio.shield(keeper.adopt(kernel_id))
            await asyncio.sleep(0.02)  # it has just ended: how is being written down
        raise KernelGone(f"The kernel {kernel_id!r} is there no more, nor is its keeper.")

    @asynccontextmanager
    async def _commanded(self, process: KeptProcess) -> AsyncIterator[KeptProcess]:
        """A process that is ours until the block is left; then it ends, and what is kept of it goes."""
        self._ours[process.kernel_id] = process
        try:
            yield process
        finally:
            try:
                await self._settled(process)
            finally:
                self._ours.pop(process.kernel_id, None)

    async def _settled(self, process: KeptProcess) -> None:
        await process.kill("It was ended.")
        if not await process.forget() and not process.taken:
            await asyncio.to_thread(self._folders.forget, process.kernel_id)

    def _record(self, kernel_id: str) -> dict[str, Any]:
        """Raises `KernelGone`."""
        try:
            found: dict[str, Any] = json.loads(self._folders.record(kernel_id).read_text())
        except (OSError, ValueError):
            raise KernelGone(f"The kernel {kernel_id!r} is not there.") from None
        return found

    async def kept(self) -> list[Kept]:
        return await asyncio.to_thread(self._kept)

    def _kept(self) -> list[Kept]:
        found = []
        for file in sorted(self._folders.records.glob("*.json")):
            with contextlib.suppress(KernelGone, KeyError, TypeError):
                record = self._record(file.stem)
                if file.stem not in self._ours and record.get("about") is not None:
                    found.append(_kept(file.stem, record))
        return found

    async def journal(self, kernel_id: str, after: int = 0) -> AsyncIterator[Entry]:
        reader = JournalReader(self._folders.journals / kernel_id, after)
        try:
            while entries := await asyncio.to_thread(reader.read, _READ_BYTES):
                for entry in entries:
                    yield entry
        finally:
            reader.close()

    @contextlib.contextmanager
    def _recorded(self, mark: str) -> Iterator[None]:
        """A setup is written down while it runs, so that another process can end it after our death."""
        write_whole(self._folders.record(mark), {"mark": mark})
        self._marks.add(mark)
        try:
            yield
        finally:
            self._marks.discard(mark)
            self._folders.record(mark).unlink(missing_ok=True)

    async def _prepare(self, launch: Launch, *, filled: bool = True) -> tuple[Path, dict[str, str]]:
        """The folder of a place and the environment of its processes, made where they are missing.

        With `filled` off its environment is an empty folder, for what is copied to it later.
        """
        place = self._place(launch.place)
        env = dict(self._passed_on)
        env.update(
            HOME=str(place / "home"),
            IPYTHONDIR=str(place / "home" / ".ipython"),
            TMPDIR=tempfile.gettempdir(),
        )
        interpreter = overlay = None
        if launch.spec.language == "python":
            interpreter = await self._interpreter(launch.spec)
            overlay = Overlay(place / "overlay")
            env.update(overlay.env())
        await asyncio.to_thread(self._make_place, launch.place, overlay, interpreter if filled else None)
        if self._confinement.confines:
            env["TMPDIR"] = "/tmp"  # noqa: S108 - its own
        env.update(launch.spec.env)
        env.update(launch.env)
        env[MARK] = launch.kernel_id
        return place, env

    def _make_place(self, place: str, overlay: Overlay | None, interpreter: Interpreter | None) -> None:
        for name in ("workspace", "home"):
            (self._place(place) / name).mkdir(parents=True, exist_ok=True, mode=0o700)
        if overlay is not None and interpreter is not None:
            overlay.prepare(interpreter)
        elif overlay is not None:
            overlay.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._exchanges.make(place)

    def _argv(self, launch: Launch) -> list[str]:
        argv = list(launch.spec.argv)
        if launch.spec.language == "python" and "ipykernel_launcher" in argv:
            at = argv.index("ipykernel_launcher")
            python = str(Overlay(self._place(launch.place) / "overlay").python)
            return [python, *argv[1 : at - 1], _LAUNCHER, *argv[at + 1 :]]
        return argv

    async def _interpreter(self, spec: Kernelspec) -> Interpreter:
        python = found_program(spec.argv[0]) or sys.executable
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
        await in_thread(copy_environment, self._place(source), self._place(target))

    async def copy_files(self, source: str, target: str) -> list[Skipped]:
        try:
            return await in_thread(copy_folder, self._place(source) / "workspace", self._place(target) / "workspace")
        except OSError as error:
            raise NoSpace(f"The files can't be copied: {error.strerror}.") from None

    async def remove(self, place: str) -> None:
        await self.snapshots.remove(place)
        if (known := self._workspaces.pop(place, None)) is not None:
            await known[1].remove()
        await asyncio.to_thread(self._remove, place)

    def _remove(self, place: str) -> None:
        """At once for everybody; that the disk gets it back takes its time. Raises `OSError` if something stays."""
        self._exchanges.remove(place)
        for folder in (self._places, self._logs):
            self._trash.take(folder / place)

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
        confined = await self._confined(launch)
        with _for_start(self._log(launch.place, "setup").opened(anew=True)) as output:
            for step in steps:
                exit_ = await self._run_step(step, overlay, place, launch, confined, env, output)
                if exit_.code != 0:
                    break
        return exit_

    async def _run_step(
        self, step: SetupStep, overlay: Overlay, place: Path, launch: Launch, confined: Confined, env: dict[str, str],
        output: TextIO,
    ) -> Exit:  # fmt: skip
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
        workspace = place / "workspace"
        with self._recorded(mark):
            async with self._confinement.setup(confined, argv, workspace, launch) as walled:
                try:
                    process = subprocess.Popen(
                        walled, cwd=workspace if walled is argv else "/", env={**env, MARK: mark},
                        stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
                    )  # fmt: skip
                except OSError as error:
                    print(f"{argv[0]}: {error.strerror}", file=output, flush=True)
                    return Exit(code=127, reason=f"setup: {name!r} can't be run: {argv[0]}: {error.strerror}")
                try:
                    await processes.unreaped_exit(process)
                finally:
                    await asyncio.shield(asyncio.to_thread(processes.end_family, process.pid, f"{MARK}={mark}"))
                    code = process.wait()
        return Exit(code=code, reason="" if code == 0 else f"setup: {name!r} ended with {code}")

    async def end_orphans(self) -> int:
        return await asyncio.to_thread(self._end_orphans)

    def _end_orphans(self) -> int:
        count = 0
        for file in self._folders.records.glob("*.json"):
            record: dict[str, Any] = {}
            with contextlib.suppress(KernelGone):
                record = self._record(file.stem)
            if file.stem in self._marks or file.stem in self._ours:
                continue
            if record.get("exit") is not None or self._keepers.find(record.get("keeper")) is not None:
                continue
            count += bool(processes.end_family(None, f"{MARK}={file.stem}"))
            if record.get("about") is None:
                file.unlink(missing_ok=True)
            else:
                write_whole(file, {**record, "exit": asdict(Exit(reason=KEEPER_ENDED))})
        return count

    def abandon(self) -> None:
        """End every kernel and setup without waiting for anything: this process is about to end too."""
        for keeper in self._keepers.running():
            keeper.abandon()
        for process in self._ours.values():
            if not process.taken:
                processes.end_family(process.pid, process.mark)
        for mark in self._marks:
            processes.end_family(None, f"{MARK}={mark}")


def _kept(kernel_id: str, record: dict[str, Any]) -> Kept:
    about, exit_ = record["about"], record["exit"]
    spec = about["spec"]
    return Kept(
        kernel_id=kernel_id,
        place=about["place"],
        spec=Kernelspec(**{**spec, "argv": tuple(spec["argv"])}),
        started_at=record["started_at"],
        limits=Limits(**about["limits"]),
        exit=Exit(**exit_) if exit_ is not None else None,
    )


def _spec_files(folder: str) -> list[tuple[str, int, int]]:
    """The kernelspecs in a folder, as far as must be known to see that they have changed."""
    found = []
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):
            with contextlib.suppress(OSError):
                about = os.stat(os.path.join(folder, name, "kernel.json"))
                found.append((name, about.st_mtime_ns, about.st_size))
    return found


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


@contextlib.contextmanager
def _for_start(opening: AbstractContextManager[TextIO]) -> Iterator[TextIO]:
    """An opened log. Raises `StartFailed` when it can't be opened."""
    with contextlib.ExitStack() as stack:
        try:
            output = stack.enter_context(opening)
        except OSError as error:
            raise StartFailed(f"The session's log can't be written: {error.strerror}") from None
        yield output
