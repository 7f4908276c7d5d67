"""A live duplicate has everything that its source has, as it is; what it can't have is refused by name."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.kernels.inside.conftest import Start
from tests.kernels.inside.kernels import Client

Duplicate = Callable[..., Client]


@pytest.fixture
def duplicate(context: "zmq.Context[Any]", folder: Path) -> Iterator[Duplicate]:
    with ExitStack() as stack:

        def make(source: Client, name: str = "copy") -> Client:
            copy = source.duplicate(context, folder / name)
            stack.callback(copy.kill)
            return copy

        yield make


@pytest.mark.parametrize(
    ("setup", "check", "found"),
    [
        ("g = (n for n in range(9)); next(g)", "next(g), next(g)", "(1, 2)"),
        ("f = lambda x: x + 1", "f(1)", "2"),
        ("def make():\n n = [1]\n def inner(): n.append(len(n)); return n\n return inner\nf = make()", "f()", "[1, 1]"),
        ("import numpy as np; a = np.arange(6).reshape(2, 3)[:, ::-1]; b = a.base", "a.base is b", "True"),
        ("class A:\n  n = 1\na = A(); A.n = 2", "a.n, type(a) is A", "(2, True)"),
        ("import functools\n@functools.cache\ndef f(x): print('called'); return x\n_ = f(1)", "f(1)", "1"),
        ("import random; random.seed(3); x = random.random(); random.seed(3)", "random.random() == x", "True"),
        ("import sys; out = sys.stdout", "print('said', file=out); out is sys.stdout", "said\nTrue"),
        ("ip = get_ipython()", "ip is get_ipython()", "True"),
        ("import asyncio; loop = asyncio.get_running_loop()", "loop is asyncio.get_running_loop()", "True"),
        ("async def f(): await asyncio.sleep(0.01); return 1\nimport asyncio", "await f()", "1"),
        ("1 + 1", "_1, In[1], len(In)", "(2, '1 + 1', 3)"),
        ("import contextvars; v = contextvars.ContextVar('v'); _ = v.set(5)", "v.get()", "5"),
        ("import tempfile; f = tempfile.TemporaryFile()\nf.close()", "f.closed", "True"),
        ("pass", "import os; os.system('echo from below')\n1", "from below\n1"),
        ("pass", "import os, sys; sys.prefix == os.environ['VIRTUAL_ENV'] and 'copy' in sys.prefix", "True"),
        ("import os; os.environ['MINE'] = '1'", "os.environ['MINE'], 'copy' in os.environ['HOME']", "('1', True)"),
        ("import os; os.mkdir('sub'); os.chdir('sub')", "os.getcwd()[-19:]", "'copy/workspace/sub'"),
    ],
)
@pytest.mark.parametrize("start", ["forked"], indirect=True)
def test_a_copy_is_exact(setup: str, check: str, found: str, start: Start, duplicate: Duplicate) -> None:
    source = start()
    source.run(setup)

    assert duplicate(source).run(check).replace("'/copy", "'copy") == found


def test_an_ordinarily_started_kernel_is_copied_too(start: Start, duplicate: Duplicate) -> None:
    source = start()
    source.run("x = 1")

    assert duplicate(source).run("x, x") == "(1, 1)"


@pytest.mark.parametrize("start", ["forked"], indirect=True)
def test_the_source_goes_on_as_if_nothing_had_happened(start: Start, duplicate: Duplicate) -> None:
    source = start()
    source.run("import random; random.seed(1); x = random.random(); random.seed(1); g = (n for n in range(9))")

    duplicate(source).run("next(g), random.random()")

    assert source.run("import os\nos.system('echo still')\nnext(g), random.random() == x") == "still\n(0, True)"
    assert "ChildProcessError" in source.run("os.waitpid(-1, 0)")


@pytest.mark.parametrize("start", ["forked"], indirect=True)
def test_each_copy_writes_its_own_file(start: Start, duplicate: Duplicate) -> None:
    source = start()
    source.run("f = open('notes', 'w'); f.write('both '); f.flush(); f.write('and '); r = open('notes')")

    copy = duplicate(source)

    write = "_ = f.write('{}'); f.close(); print(r.read())"
    second = duplicate(copy, "second")
    assert source.run(write.format("source")) == "both and source\n"
    assert copy.run(write.format("copy")) == "both and copy\n"
    assert second.run(write.format("second")) == "both and second\n"


@pytest.mark.parametrize("start", ["forked"], indirect=True)
def test_copies_of_copies_outlive_their_sources(start: Start, duplicate: Duplicate) -> None:
    chain = [start()]
    chain[0].run("g = (n for n in range(99))")
    for number in range(4):
        chain[-1].run("_ = next(g)")
        chain.append(duplicate(chain[-1], f"copy{number}"))
    for it in chain[:-1]:
        it.kill()

    assert chain[-1].run("print('here'); next(g)") == "here\n4"


@pytest.mark.slow
@pytest.mark.parametrize("start", ["forked"], indirect=True)
def test_twenty_copies_live_after_their_source_was_killed(start: Start, duplicate: Duplicate) -> None:
    source = start()
    source.run("g = (n for n in range(9)); shared = []")
    copies = [duplicate(source, f"copy{number}") for number in range(20)]
    source.kill()

    found = [copy.run(f"shared.append({number}); next(g), shared") for number, copy in enumerate(copies)]

    assert found == [f"(0, [{number}])" for number in range(20)]


@pytest.mark.parametrize(
    ("setup", "kind", "name"),
    [
        ("import threading, time\nthreading.Thread(None, time.sleep, 'mine', (99,)).start()", "Thread", "mine"),
        ("import asyncio; t = asyncio.ensure_future(asyncio.sleep(99))", "Task", "sleep"),
        ("import subprocess; p = subprocess.Popen(['sleep', '99'])", "process", ""),
        ("import socket; s = socket.socket()", "socket", ""),
        ("import os; p = os.pipe()", "pipe", ""),
        ("import mmap; m = mmap.mmap(-1, 100)", "mmap", ""),
        ("import tempfile; f = tempfile.NamedTemporaryFile()", "file", ""),
        ("import sys, types\nsys.modules['cupy'] = types.ModuleType('cupy')", "GPU", "CuPy"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("start", ["forked"], indirect=True)
def test_what_a_copy_can_not_have_is_refused(setup: str, kind: str, name: str, start: Start, folder: Path) -> None:
    source = start()
    source.run(setup)

    answer = source.ask_for_duplicate(str(folder / "nobody"))

    assert kind in {it["type"] for it in answer["refused"]}
    assert name in [it["name"] for it in answer["refused"]] or not name
    assert all(it["reason"] for it in answer["refused"])
    assert source.run("1") == "1"


def test_a_cell_that_runs_is_waited_for(start: Start, folder: Path) -> None:
    source = start()
    source.send("shell", "execute_request", {"code": "import time; print('begun', flush=True); time.sleep(60)"})
    source.said("begun")

    request = {"action": "duplicate", "address": str(folder / "nobody"), "wait_s": 0.1}
    answer = source.ask("control", "session_gateway_request", request)

    assert answer["ename"] == "Busy"
