"""Kernels that were built before a fork are what ordinarily started ones are, and each is its own."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.kernels.inside.conftest import Start
from tests.kernels.inside.kernels import Forked

FACTS = """
import json, os, site, subprocess, sys, sysconfig, threading
print(json.dumps({
    "path": sys.path, "prefixes": [sys.prefix, sys.exec_prefix, sys.base_prefix], "executable": sys.executable,
    "argv": sys.argv[1:], "cwd": os.getcwd(), "environ": dict(os.environ), "purelib": sysconfig.get_path("purelib"),
    "prefixes of site": site.PREFIXES, "user site": site.ENABLE_USER_SITE,
    "names": sorted(globals()), "in": len(In), "out": Out, "count": get_ipython().execution_count,
    "ipython": [get_ipython().ipython_dir, get_ipython().profile_dir.location, get_ipython().starting_dir],
    "main": sys.modules["__main__"].__dict__ is globals(), "threads": threading.active_count(),
    "child": subprocess.check_output([sys.executable, "-c", "import sys; print(sys.prefix)"], text=True),
}))
"""


only_forked = pytest.mark.parametrize("start", ["forked"], indirect=True)


@only_forked
def test_a_fork_finds_what_an_ordinary_start_finds(start: Start, folder: Path) -> None:
    one = json.loads(start("a").run(FACTS).replace(str(folder / "a"), "PLACE"))

    other = json.loads(start("b", way="ordinary").run(FACTS).replace(str(folder / "b"), "PLACE"))

    assert one == other


def test_a_built_kernel_has_one_thread_and_no_sockets(zygote: Forked) -> None:
    assert zygote.built["threads"] == 1
    assert zygote.built["files"] <= 6


@only_forked
def test_two_forks_have_nothing_in_common_that_is_drawn_by_lot(start: Start) -> None:
    code = "import os, random, tempfile, uuid\nprint(random.random(), uuid.uuid4(), uuid.uuid1(), tempfile.mktemp())"
    one, other = (start(name).run(code).split() for name in ("a", "b"))

    assert not set(one) & set(other)


@only_forked
def test_a_user_s_own_configuration_is_honoured(start: Start, folder: Path) -> None:
    startup = folder / "home" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "mine.py").write_text("mine = 42")

    assert start(IPYTHONDIR=str(folder / "home")).run("mine") == "42"


@only_forked
def test_what_python_reads_only_at_its_start_is_honoured(start: Start) -> None:
    assert start(PYTHONHASHSEED="0").run("import sys; sys.flags.hash_randomization") == "0"


def test_all_that_is_written_arrives(start: Start) -> None:
    quiet = "import os, sys, warnings\nwarnings.simplefilter('ignore')\n"  # Python 3.12 warns of forks
    code = "print('a'); os.system('echo b'); print('c', file=sys.stderr)\n"

    assert sorted(
        start().run(f"{quiet}{code}if (pid := os.fork()) == 0: print('d'); os._exit(0)\n_ = os.waitpid(pid, 0)")
    ) == (sorted("a\nb\nc\nd\n"))


def test_text_comes_while_a_cell_runs(start: Start) -> None:
    client = start()
    code = "import time; print('early'); time.sleep(60)"
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
    client.send("shell", "execute_request", content)

    assert client.wait_for("stream")["text"] == "early\n"


def test_the_heart_beats_while_a_cell_runs(start: Start) -> None:
    client = start()
    client.send("shell", "execute_request", {"code": "import time; time.sleep(60)"})

    assert client.beats()
    assert client.beats()


def test_an_interrupt_loses_nothing_that_was_printed(start: Start) -> None:
    client = start()
    code = "n = 0\nprint('start', flush=True)\nwhile True: n += 1; print(n)"
    msg_id = client.send("shell", "execute_request", {"code": code})
    said = ""
    while not said:
        message = client._receive("iopub", 10)
        said += message["content"].get("text", "")
    os.kill(client.pid, signal.SIGINT)
    while (message := client._receive("iopub", 10))["content"].get("execution_state") != "idle":
        said += message["content"].get("text", "")

    assert client.reply("shell", msg_id)["ename"] == "KeyboardInterrupt"
    printed = said.split()[1:]
    assert [int(it) for it in printed] == list(range(1, len(printed) + 1))
    assert int(client.run("n")) - len(printed) in (0, 1)


def test_a_failure_refuses_what_had_come_and_nothing_else(start: Start) -> None:
    client = start()
    content = {"silent": False, "store_history": True, "allow_stdin": False, "stop_on_error": True}
    cells = ["import time; time.sleep(0.2); 1 / 0", "1", "2"]
    ids = [client.send("shell", "execute_request", {"code": code, **content}) for code in cells]

    assert [client.reply("shell", it)["status"] for it in ids] == ["error", "aborted", "aborted"]
    assert client.run("3") == "3"


def test_a_subshell_answers_while_a_cell_runs(start: Start) -> None:
    client = start()
    client.send("shell", "execute_request", {"code": "import time; busy = True; print('begun'); time.sleep(60)"})
    client.wait_for("stream")
    created = client.ask("control", "create_subshell_request", {})

    assert client.run("busy", subshell_id=created["subshell_id"]) == "True"
    assert client.ask("control", "list_subshell_request", {})["subshell_id"] == [created["subshell_id"]]
    assert client.ask("control", "delete_subshell_request", {"subshell_id": created["subshell_id"]})["status"] == "ok"


def test_the_debugger_starts_when_it_is_asked_for(start: Start) -> None:
    client = start()
    request = {"type": "request", "seq": 1, "command": "initialize", "arguments": {"adapterID": "", "clientID": ""}}

    answer = client.ask("control", "debug_request", request)

    assert answer["success"], answer


def test_a_shutdown_runs_exit_handlers_and_ends_the_process(start: Start, folder: Path) -> None:
    client = start()
    client.run("import atexit; _ = atexit.register(lambda: open('bye', 'w').close())")

    client.ask("control", "shutdown_request", {"restart": False})

    until = time.monotonic() + 10
    while not (folder / "one" / "workspace" / "bye").exists():
        assert time.monotonic() < until
