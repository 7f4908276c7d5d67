"""Kernels of this machine: other languages, and what is left of them when they end."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import psutil
import pytest
import pytest_asyncio

from kernels import processes
from kernels.children import Child, MemoryWatch, Order, connection_at
from kernels.engine import Launch, SetupStep
from kernels.engines.local import LocalEngine
from kernels.engines.overlay import Overlay, probe
from kernels.errors import StartFailed
from kernels.intake import Intake
from kernels.kernel import running
from kernels.logs import LIMIT_BYTES, Log
from tests.api import Api
from tests.gateway.services.test_executions import collected, marked, marker, peak_growth, started, text_of  # noqa: F401
from tests.gateways import GatewayProcess, gateway_process

MEBI = 2**20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def polyglot(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[GatewayProcess]:
    """A gateway that finds a kernelspec for bash."""
    prefix = tmp_path_factory.mktemp("prefix")
    install = [sys.executable, "-m", "bash_kernel.install", "--prefix", str(prefix)]
    await asyncio.to_thread(subprocess.run, install, check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(prefix / "share" / "jupyter"))
        async with gateway_process(tmp_path_factory.mktemp("polyglot") / "data") as started_:
            yield started_


@pytest.fixture
async def bash(polyglot: GatewayProcess, session_id: str) -> AsyncIterator[Api]:
    """A client of a gateway on which the session speaks bash."""
    async with Api(polyglot.url) as api:
        await api.create(session_id=session_id, language="bash")
        yield api


async def test_a_bash_session_keeps_its_state(bash: Api, session_id: str) -> None:
    first = await bash.run(session_id, "name=Ada; cd /tmp; echo hello $name")
    second = await bash.run(session_id, "echo $name; pwd")
    document = await bash.get(f"/api/sessions/{session_id}")

    assert (first["status"], first["stdout"]) == ("ok", "hello Ada\n")
    assert second["stdout"] == "Ada\n/tmp\n"
    assert (document["language"], document["kernel"]) == ("bash", "bash")


async def test_a_kernel_is_chosen_by_its_name_too(polyglot: GatewayProcess) -> None:
    async with Api(polyglot.url) as api:
        created = await api.create(kernel="bash")
        answer = await api.post("/api/execute", {"language": "bash", "code": "echo $ERA_LANGUAGE"})

    assert created["language"] == "bash"
    assert answer["stdout"] == "bash\n"


async def test_a_failing_command_is_an_error(bash: Api, session_id: str) -> None:
    answer = await bash.run(session_id, "ls /nowhere/at/all")

    assert (answer["status"], answer["exit_code"]) == ("error", 1)
    assert "nowhere" in answer["stdout"] + answer["stderr"]


async def test_a_timeout_of_bash_keeps_its_variables(bash: Api, session_id: str, marker: str) -> None:  # noqa: F811
    await bash.run(session_id, "x=41")

    answer = await bash.run(session_id, f"sh -c 'sleep 600; : {marker}'", timeout=2)
    after = await bash.run(session_id, "echo $((x + 1))")

    assert (answer["status"], answer["exit_code"]) == ("timeout", 124)
    assert marked(marker) == []
    assert answer["state_kept"] is (after["stdout"] == "42\n"), (answer, after)


async def test_bash_can_be_interrupted(bash: Api, session_id: str) -> None:
    await bash.run(session_id, "x=41")
    async with bash.stream(session_id, "echo go; sleep 600") as stream:
        await started(stream)

        ended = False
        while not ended:  # bash loses an interrupt that comes just before it waits for its command
            ended = (await bash.post(f"/api/sessions/{session_id}/interrupt", {}))["ended"]
        events = await collected(stream)

    assert events[-1].kind == "done"
    assert events[-1].data["duration_ms"] < 30_000
    assert (await bash.run(session_id, "echo $((x + 1))"))["stdout"] == "42\n"


async def test_an_environment_for_one_run_is_refused_where_it_is_not_offered(bash: Api, session_id: str) -> None:
    refused = await bash.post(f"/api/sessions/{session_id}/run", {"code": "echo $A", "env": {"A": "b"}}, 422)

    assert "environment" in refused["error"]
    assert (await bash.run(session_id, "echo fine"))["stdout"] == "fine\n"


async def test_a_flood_from_bash_is_cut(polyglot: GatewayProcess, bash: Api, session_id: str) -> None:
    answer, growth = await peak_growth(
        polyglot, bash.run(session_id, "head -c 60000000 /dev/zero | tr '\\0' x | fold -w 1000")
    )

    assert answer["truncated"]
    assert growth < 150 * MEBI
    assert (await bash.run(session_id, "echo after"))["stdout"] == "after\n"


# Processes


async def test_a_process_is_dated_by_the_clock_that_stamps_it() -> None:
    before = time.time()
    process = subprocess.Popen(["sleep", "60"])
    try:
        assert processes.started_since(process.pid, before)
        assert not processes.started_since(process.pid, time.time() + 0.1)
    finally:
        process.kill()
        process.wait()
    assert not processes.started_since(process.pid, before)


async def test_a_family_is_found_by_its_mark_even_far_from_home(tmp_path: Path) -> None:
    env = {**os.environ, "MARK_OF_THIS_TEST": "abc"}
    far = subprocess.Popen(["setsid", "sh", "-c", "sleep 60 & wait"], env=env)
    try:
        async with asyncio.timeout(10):
            while len(processes.family(None, "MARK_OF_THIS_TEST=abc")) < 2:
                await asyncio.sleep(0.01)
        assert processes.end_family(None, "MARK_OF_THIS_TEST=abc") >= 2
        assert processes.family(None, "MARK_OF_THIS_TEST=abcd") == []
    finally:
        far.kill()
        far.wait()


async def test_exits_are_told_without_polling() -> None:
    process = subprocess.Popen(["sh", "-c", "exit 7"])

    assert await processes.exited(process) == 7


async def test_use_of_memory_counts_shared_pages_once() -> None:
    code = """
import os, time
hoard = bytearray(b'x' * 50_000_000)
for _ in range(2):
    os.fork() or time.sleep(60)
print('ready', flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        await asyncio.to_thread(process.stdout.readline)
        summed = processes.usage(process.pid)[1]
        assert 50_000_000 < processes.shared_memory_bytes(process.pid) <= summed
    finally:
        processes.end(psutil.Process(process.pid).children(recursive=True))
        process.kill()
        process.wait()
        process.communicate()


# What a session may do to its own place, and to its logs


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[LocalEngine]:
    made = LocalEngine(tmp_path)
    async with made.opened():
        yield made


def launch(engine: LocalEngine, **changes: Any) -> Launch:
    return Launch(kernel_id=str(uuid4()), place="place", spec=engine.kernelspecs()["python3"], **changes)


async def start(engine: LocalEngine) -> None:
    async with engine.start(launch(engine)):
        pass


async def set_up(engine: LocalEngine) -> None:
    await engine.run_setup(launch(engine), [SetupStep("command", ("true",))])


@pytest.mark.parametrize("name", ["kernel", "setup"])
@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
async def test_a_log_that_became_something_else_stops_nobody(
    engine: LocalEngine, tmp_path: Path, name: Literal["kernel", "setup"], kind: str
) -> None:
    log, elsewhere = tmp_path / "logs" / "place" / f"{name}.log", tmp_path / "elsewhere"
    log.parent.mkdir(parents=True)
    {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda path: os.symlink(elsewhere, path)}[kind](log)

    async with asyncio.timeout(10):
        with pytest.raises(StartFailed, match="log"):
            await (set_up(engine) if name == "setup" else start(engine))
        assert await engine.log("place", name, 100) == ""

    assert not elsewhere.exists()


async def test_logs_are_not_in_the_place_and_go_with_it(engine: LocalEngine, tmp_path: Path) -> None:
    await engine.run_setup(launch(engine), [SetupStep("command", ("echo first",))])
    await engine.run_setup(launch(engine), [SetupStep("command", ("echo second",))])

    told = await engine.log("place", "setup", 1000)
    inside = list((tmp_path / "sessions" / "place").rglob("*.log"))
    await engine.remove("place")

    assert told == "$ command echo second\nsecond\n"
    assert inside == []
    assert await engine.log("place", "setup", 1000) == ""
    assert not (tmp_path / "logs" / "place").exists()


def test_a_log_that_has_grown_too_long_keeps_its_end(tmp_path: Path) -> None:
    log = Log(tmp_path / "logs" / "a.log")
    with log.opened() as output:
        output.write("x" * LIMIT_BYTES + "the end\n")

    with log.opened() as output:
        output.write("more\n")

    assert log.path.stat().st_size < LIMIT_BYTES / 2
    assert log.tail(13) == "the end\nmore\n"
    assert log.tail(1000, start=log.path.stat().st_size - 5) == "more\n"


@pytest.mark.parametrize("planted", ["pyvenv.cfg", "bin", "bin/pip", "lib", "lib/{python}/site-packages"])
@pytest.mark.parametrize("kind", ["pipe", "link"])
async def test_an_overlay_is_made_without_following_what_was_planted_in_it(
    tmp_path: Path, planted: str, kind: str
) -> None:
    interpreter = probe(sys.executable)
    overlay, elsewhere = Overlay(tmp_path / "overlay"), tmp_path / "elsewhere"
    path = overlay.root / planted.format(python=f"python{interpreter.version}")
    path.parent.mkdir(parents=True)
    elsewhere.mkdir()
    (elsewhere / "pip").write_text("kept")
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(elsewhere / "pip" if path.suffix or path.name == "pip" else elsewhere)

    async with asyncio.timeout(10):
        await asyncio.to_thread(overlay.prepare, interpreter)

    assert os.listdir(elsewhere) == ["pip"]
    assert (elsewhere / "pip").read_text() == "kept"
    assert os.access(overlay.bin / "pip", os.X_OK)
    assert sorted(os.listdir(overlay.bin)) == ["pip", "pip3", "python", "python3"]
    assert not (overlay.root / "pyvenv.cfg").is_symlink()
    assert await processes.exited(subprocess.Popen([overlay.python, "-c", "import pytest"])) == 0


async def test_a_place_that_can_not_be_removed_is_told_and_stays_forgotten(
    engine: LocalEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = await engine.workspace("place", None)
    deep = tmp_path / "sessions" / "place" / "home" / "read-only"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    deep.chmod(0o500)

    with monkeypatch.context() as patch:
        patch.setattr("kernels.trash.put_away", stays)
        with pytest.raises(OSError, match="it stays"):
            await engine.remove("place")
    await engine.remove("place")

    assert not (tmp_path / "sessions" / "place").exists()
    assert await engine.workspace("place", None) is not workspace


def stays(folder: Path, target: Path) -> None:
    raise OSError("it stays")


async def test_only_what_this_start_printed_is_quoted(engine: LocalEngine, tmp_path: Path) -> None:
    with Log(tmp_path / "logs" / "place" / "kernel.log").opened() as output:
        output.write("from an earlier start\n")
    intake = Intake()

    with pytest.raises(StartFailed, match="no-such-codec") as failed:
        async with running(engine, launch(engine, env={"PYTHONIOENCODING": "no-such-codec"}), intake, 60):
            pass

    assert "from an earlier start" not in str(failed.value)
    assert "no-such-codec" not in failed.value.sentence


async def test_the_watch_over_memory_survives_what_nobody_foresaw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, calls = processes.usage, 0

    def fails_at_first(pid: int, init_pid: int | None = None) -> tuple[float, int, int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("nobody foresaw this")
        return usage(pid, init_pid)

    monkeypatch.setattr(processes, "usage", fails_at_first)
    hoard = [sys.executable, "-c", "import time; hoard = b'x' * 50_000_000; time.sleep(600)"]
    order = Order("hoarder", hoard, dict(os.environ), str(tmp_path), str(tmp_path / "logs" / "log"), 10_000_000, 0, {})
    child = Child(order, connection_at(tmp_path / "folder", "hoard"), tmp_path / "folder")
    await child.launch()
    watching = asyncio.create_task(MemoryWatch({child.id: child}).watch())
    async with asyncio.timeout(30):
        exit_ = await child.ended()
    watching.cancel()
    await asyncio.wait({watching})

    assert calls > 1
    assert exit_.out_of_memory


def test_a_kernelspec_that_comes_changes_or_goes_is_seen_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    engine = LocalEngine(tmp_path / "data")
    folder = tmp_path / "jupyter" / "kernels" / "mine"
    assert "mine" not in engine.kernelspecs()

    folder.mkdir(parents=True)
    for name in ("first", "second name"):
        spec = {"argv": ["mine", "{connection_file}"], "display_name": name, "language": "mine"}
        (folder / "kernel.json").write_text(json.dumps(spec))
        assert engine.kernelspecs()["mine"].display_name == name
    shutil.rmtree(folder)

    assert "mine" not in engine.kernelspecs()
