import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from jupyter_client.manager import AsyncKernelManager

from tests.kernels.inside.checkpoint_cases import CASES, Case

CHILD = Path(__file__).with_name("checkpoint_child.py")
LAUNCHER = Path(__file__).parents[3] / "kernels" / "inside" / "launcher.py"
pytestmark = pytest.mark.slow  # also: one case of the table, ctypes structures, is not exact on 3.13 yet

PYTHON = os.environ.get("CHECKPOINT_TEST_PYTHON", sys.executable)
"""Another interpreter for the sessions: one with more libraries, or an older one."""

MB = 1_000_000


class Sessions:
    """Sessions that live for one request each, in processes of their own."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process = process
        self.folder = folder / "checkpoint"
        self.workspace = folder / "workspace"
        self.workspace.mkdir()

    def save(self, code: str, **more: Any) -> dict[str, Any]:
        """Run cells in a fresh session and dump it; the report."""
        return self._report(self.ask("save", code, **more))

    def restore(self, check: str, **more: Any) -> dict[str, Any]:
        """Load the checkpoint into a fresh session, and run cells that must not fail; the report."""
        return self._report(self.ask("restore", check, **more))

    def ask(self, action: str, code: str, **more: Any) -> dict[str, Any]:
        request = {"action": action, "code": code, "folder": str(self.folder), "workspace": str(self.workspace), **more}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def _report(self, answer: dict[str, Any]) -> dict[str, Any]:
        assert answer["error"] is None, answer["error"]
        assert "refused" not in answer, answer["refused"]
        report: dict[str, Any] = answer["report"]
        return report


@contextmanager
def started_child() -> Iterator["subprocess.Popen[str]"]:
    """The process of which every session is a fork."""
    with subprocess.Popen(
        [PYTHON, "-W", "ignore", str(CHILD)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture(scope="module")
def child() -> Iterator["subprocess.Popen[str]"]:
    with started_child() as process:
        yield process


@pytest.fixture
def sessions(child: "subprocess.Popen[str]", tmp_path: Path) -> Sessions:
    return Sessions(child, tmp_path)


@pytest.fixture(scope="module")
def libraries() -> frozenset[str]:
    """Those of the libraries in the table that sessions have."""
    names = sorted({case.needs for case in CASES if case.needs})
    code = "import importlib.util as u, json, sys; print(json.dumps([n for n in sys.argv[1:] if u.find_spec(n)]))"
    found = subprocess.run([PYTHON, "-c", code, *names], check=True, capture_output=True, text=True)
    return frozenset(json.loads(found.stdout))


def need(library: str, libraries: frozenset[str]) -> None:
    if library and library not in libraries:
        pytest.skip(f"{library} is not installed for {PYTHON}")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_session_comes_back_or_says_what_did_not(case: Case, sessions: Sessions, libraries: frozenset[str]) -> None:
    need(case.needs, libraries)

    saved = sessions.save(case.setup)
    restored = sessions.ask("restore", case.check)

    told = saved["unsaved"] + restored["report"]["failed"]
    found = "reported" if told else "warned" if saved["warnings"] else "exact"
    if case.outcome == "deep" and told:  # how deep a recursion may go is up to the interpreter
        return
    assert restored["error"] is None, restored["error"]
    assert found == case.outcome or case.outcome in ("any", "deep"), (told, saved["warnings"])


def test_what_is_left_out_is_named_with_its_type_and_reason(sessions: Sessions) -> None:
    saved = sessions.save("a = (i for i in []); b = a; c = [a]; d = c; good = 1")

    reason = "Python can't save a generator where it stands"
    lost = {(it["name"], it["type"], it["reason"], it["part"]) for it in saved["unsaved"]}
    whole, part = ("generator", reason, False), ("generator", reason, True)
    assert lost == {("a", *whole), ("b", *whole), ("c", *part), ("d", *part)}
    assert [it["name"] for it in saved["variables"]] == ["good", "c", "d"]


def test_one_bad_object_costs_nobody_else(sessions: Sessions) -> None:
    code = "shared = [1]\nclass Bad:\n    def __setstate__(self, s): raise ValueError('no')\n"
    many = "\n".join(f"v{i} = [shared, {i}]" for i in range(50))
    saved = sessions.save(f"{code}bad = Bad(); bad.l = shared; bad.own = own = [2]\n{many}\nlast = [own]")

    restored = sessions.restore("assert all(globals()[f'v{i}'] == [shared, i] for i in range(50)) and last[0] is own")

    assert saved["unsaved"] == []
    assert [(it["name"], it["type"], it["reason"]) for it in restored["failed"]] == [("bad", "Bad", "ValueError: no")]


def test_a_package_that_is_missing_costs_only_what_is_made_with_it(sessions: Sessions) -> None:
    (sessions.workspace / "lib").mkdir()
    (sessions.workspace / "lib" / "rare.py").write_text("class Rare: pass\ndef f(): pass")
    use = "import sys; sys.path.append('lib'); import rare; sys.path.pop()"
    sessions.save(f"{use}\nr = rare.Rare(); x = [1]; both = [r, x]; f = rare.f; y = x")
    (sessions.workspace / "lib" / "rare.py").unlink()

    restored = sessions.restore(
        "assert y is x and both[1] is x\ntry: both[0].a\nexcept RuntimeError: pass\nelse: assert 0"
    )

    lost = {it["name"] for it in restored["failed"] if not it["part"]}
    assert {"r", "f", "rare"} <= lost
    assert not lost & {"x", "y", "both"}


def test_what_went_wrong_while_dumping_is_taken_back(sessions: Sessions) -> None:
    bad = "class Bad(dict):\n    def __reduce__(self): return dict, (), None, None, iter([1, 2])\nbad = [a, Bad()]"
    saved = sessions.save(f"a = [1]; b = [a]\n{bad}\nc = [bad, a]; d = [b]")

    sessions.restore("assert b[0] is a and d[0] is b and 'bad' not in globals()")

    assert {it["name"] for it in saved["unsaved"]} == {"bad", "c"}


def test_the_session_goes_on_unchanged_after_a_dump(sessions: Sessions) -> None:
    sessions.save(
        "import threading\nl = [1]; it = iter(l); lock = threading.Lock(); lock.acquire(); g = (i for i in [5])",
        after="assert next(it) == 1 and lock.locked() and next(g) == 5",
    )


def test_only_the_chosen_variables(sessions: Sessions) -> None:
    sessions.save("a = 1; b = 2; c = 3")

    restored = sessions.restore(
        "assert a == 1 and b == 'mine' and 'c' not in globals()", names=["a"], first="b = 'mine'"
    )

    assert [it["name"] for it in restored["variables"]] == ["a"]


def test_a_second_generation(sessions: Sessions) -> None:
    sessions.save("class A: pass\na = A(); a.g = (i for i in []); n = 0\ndef f():\n    global n\n    n += 1\nf()")
    again = "import sys\ncp = sys.modules['session_gateway_inside.checkpoint']\n"
    folder = str(sessions.folder) + "-2"

    sessions.restore(
        f"f(); {again}report = cp.dump(get_ipython(), {folder!r}); assert report['unsaved'][0]['name'] == 'a'"
    )

    sessions.folder = Path(folder)
    sessions.restore("f(); assert n == 3 and type(a) is A")


@pytest.mark.parametrize(
    "damage",
    [
        "state.json is missing",
        "segments.bin is short",
        "buffers.bin is short",
        "a bit has flipped",
        "state.json is short",
    ],
)
def test_a_damaged_checkpoint_is_refused_and_changes_nothing(sessions: Sessions, damage: str) -> None:
    sessions.save("x = 1; y = bytearray(100_000); z = [x, 'some text']")
    name = "segments.bin" if damage == "a bit has flipped" else damage.split()[0]
    path = sessions.folder / name
    data = bytearray(path.read_bytes())
    if damage == "a bit has flipped":
        data[len(data) // 2] ^= 1
    if damage == "buffers.bin is short":
        data += b"x"  # the buffers may be empty, so it is made too long
    path.write_bytes(data if "bit" in damage or "buffers" in damage else data[:-5])
    if "missing" in damage:
        path.unlink()

    answer = sessions.ask("restore", "assert 'x' not in globals() and mine == 5", first="mine = 5")

    assert answer["error"] is None, answer["error"]
    assert "checkpoint" in answer["refused"]


def test_a_newer_format_is_refused(sessions: Sessions) -> None:
    sessions.save("x = 1")
    path = sessions.folder / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))

    answer = sessions.ask("restore", "assert 'x' not in globals()")

    assert answer["error"] is None
    assert "format 99" in answer["refused"]


def test_a_large_array_streams_out_and_is_mapped_back(sessions: Sessions, libraries: frozenset[str]) -> None:
    need("numpy", libraries)
    growth = (
        "import resource\ndef peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "import numpy as np; a = np.ones(300_000_000 // 8); s = a[5:]; before = peak()"
    )

    saved = sessions.save(growth, after=f"assert peak() - before < {100 * MB}, peak() - before")
    sessions.restore(
        "resident = int(open('/proc/self/statm').read().split()[1]) * 4096\n"
        f"assert resident < {200 * MB}, resident\na[7] = 5; assert s[2] == 5 and a.sum() == a.size + 4"
    )

    sizes = {it["name"]: it["size"] for it in saved["variables"]}
    assert sizes["a"] > 299 * MB
    assert sizes["s"] < MB


def test_an_interrupt_leaves_no_checkpoint_behind(sessions: Sessions) -> None:
    code = "class Slow:\n    def __reduce__(self): raise KeyboardInterrupt\ns = [Slow()]"

    answer = sessions.ask("save", code)

    assert "KeyboardInterrupt" in answer["error"]
    assert "state.json is missing" in sessions.ask("restore", "")["refused"].replace("`", "")


class RealKernel:
    """A kernel as the gateway starts it."""

    def __init__(self, manager: AsyncKernelManager, client: Any) -> None:
        self.manager = manager
        self._client = client

    async def run(self, code: str) -> str:
        texts: list[str] = []

        def note(message: dict[str, Any]) -> None:
            content = message["content"]
            texts.append(content.get("text", "") or "\n".join(content.get("traceback", [])))

        reply = await self._client.execute_interactive(code, timeout=60, output_hook=note)
        assert reply["content"]["status"] == "ok", "".join(texts)
        return "".join(texts)


@pytest_asyncio.fixture
async def start_kernel(tmp_path: Path) -> AsyncIterator[Any]:
    started: list[RealKernel] = []

    async def start() -> RealKernel:
        manager = AsyncKernelManager()
        assert manager.kernel_spec is not None
        manager.kernel_spec.argv = [PYTHON, str(LAUNCHER), "-f", "{connection_file}"]
        await manager.start_kernel(cwd=str(tmp_path))
        client = manager.client()
        client.start_channels()
        await client.wait_for_ready(timeout=60)
        kernel = RealKernel(manager, client)
        started.append(kernel)
        await kernel.run(
            "import importlib, sys, types\np = types.ModuleType('session_gateway_inside')\n"
            f"p.__path__ = [{str(LAUNCHER.parent)!r}]; sys.modules[p.__name__] = p\n"
            "importlib.import_module('session_gateway_inside.checkpoint'); del p, importlib, sys, types"
        )
        return kernel

    yield start
    for kernel in started:
        kernel._client.stop_channels()
        await kernel.manager.shutdown_kernel(now=True)


IN_KERNEL = "__import__('sys').modules['session_gateway_inside.checkpoint']"


async def test_real_kernels_hand_on_a_session(start_kernel: Any, tmp_path: Path) -> None:
    first = await start_kernel()
    await first.run(
        "import sys\ncounter = 1\ndef bump():\n    global counter\n    counter += 1\nclass A: pass\na = A()"
    )
    await first.run("out = sys.stdout; ip = get_ipython(); [a]")
    report = await first.run(f"print({IN_KERNEL}.dump(get_ipython(), {str(tmp_path / 'c')!r}))")

    second = await start_kernel()
    loaded = await second.run(f"print({IN_KERNEL}.load(get_ipython(), {str(tmp_path / 'c')!r}))")

    assert "'unsaved': []" in report
    assert "'failed': []" in loaded
    await second.run("bump(); assert counter == 2 and type(a) is A and ip is get_ipython() and out is sys.stdout")
    assert await second.run("print('seen', file=out); assert Out[3][0] is a and 'class A' in In[2]") == "seen\n"


async def test_a_forked_copy_of_a_real_kernel_saves_while_it_goes_on(start_kernel: Any, tmp_path: Path) -> None:
    kernel = await start_kernel()
    await kernel.run("l = []\nfor i in range(30_000): l = [l]\nnumbers = list(range(1000))")
    folder = str(tmp_path / "c")
    await kernel.run(
        "import os\npid = os.fork()\nif pid == 0:\n"
        f"    try: {IN_KERNEL}.dump(get_ipython(), {folder!r})\n    finally: os._exit(0)\n"
        "numbers.append('later'); assert os.waitpid(pid, 0)[1] == 0"
    )

    other = await start_kernel()
    await other.run(f"report = {IN_KERNEL}.load(get_ipython(), {folder!r})")

    await other.run("assert numbers == list(range(1000)) and not report['failed']")
