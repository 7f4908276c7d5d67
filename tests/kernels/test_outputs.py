"""What a cell shows, as it arrives: each kind of output through a real kernel."""

import base64
import json
import subprocess
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.session import Session

from kernels.messages import Message
from kernels.outputs import Outputs
from tests.api import Api
from tests.gateway.services.test_executions import collected


def checked(answer: Any) -> list[dict[str, Any]]:
    """The outputs of a run, which any notebook reader must take."""
    outputs: list[dict[str, Any]] = answer["outputs"]
    cell = {"cell_type": "code", "id": "one", "metadata": {}, "source": "", "execution_count": 1, "outputs": outputs}
    nbformat.validate({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [cell]})
    return outputs


async def shown(api: Api, session_id: str, code: str) -> list[dict[str, Any]]:
    answer = await api.run(session_id, code)
    assert answer["error"] is None, answer["error"]
    return checked(answer)


# Text


async def test_bytes_that_are_no_utf_8_are_shown_as_well_as_they_can_be(api: Api, session_id: str) -> None:
    answer = await api.run(session_id, "import os\n_ = os.write(1, b'a\\xff\\xfeb \\xc3\\xa9\\n')")
    half = await api.run(session_id, "print('half \\ud800 pair')")
    whole = await api.run(session_id, "_ = os.write(1, 'é€😀'.encode() * 100_000)")

    assert answer["stdout"] == "a\ufffd\ufffdb é\n"
    assert half["stdout"] == "half ? pair\n"
    assert whole["stdout"] == "é€😀" * 100_000


async def test_colours_and_controls_arrive_as_they_are(api: Api, session_id: str) -> None:
    text = "\x1b[31mred\x1b[0m\r50%\r100%\x08\x07\x00\n"

    answer = await api.run(session_id, f"import sys; _ = sys.stdout.write({text!r})")

    assert answer["stdout"] == text


async def test_what_other_programs_print_belongs_to_their_cell(api: Api, session_id: str) -> None:
    for n in range(30):
        answer = await api.run(session_id, f"import os; _ = os.system('echo out {n}; echo err {n} >&2')")

        assert (answer["stdout"], answer["stderr"]) == (f"out {n}\n", f"err {n}\n")


async def test_the_output_of_a_shell_line_is_shown(api: Api, session_id: str) -> None:
    answer = await api.run(session_id, "!echo shell\nlines = !echo one; echo two\nlines")

    assert answer["stdout"].replace("\r", "") == "shell\n"
    assert answer["result"] == "['one', 'two']"


async def test_stdout_and_stderr_keep_their_order(api: Api, session_id: str) -> None:
    code = "import sys\nfor n in range(200): print(n, file=(sys.stdout, sys.stderr)[n % 2])"

    outputs = await shown(api, session_id, code)

    assert [(one["name"], one["text"]) for one in outputs] == [
        (("stdout", "stderr")[n % 2], f"{n}\n") for n in range(200)
    ]


async def test_text_and_displays_keep_their_order(api: Api, session_id: str) -> None:
    code = "from IPython.display import display\nfor n in range(5): print(n); display(n)\n'end'"

    outputs = await shown(api, session_id, code)

    kinds = [one["output_type"] for one in outputs]
    assert kinds == ["stream", "display_data"] * 5 + ["execute_result"]


# Mime bundles


@pytest.mark.parametrize(
    ("code", "mime", "expected"),
    [
        ("HTML('<b>bold</b>')", "text/html", "<b>bold</b>"),
        ("Latex(r'$\\frac{1}{2}$')", "text/latex", "$\\frac{1}{2}$"),
        ("Markdown('# Title')", "text/markdown", "# Title"),
        (
            "SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')",
            "image/svg+xml",
            '<svg xmlns="http://www.w3.org/2000/svg"/>',
        ),
        ("JSON({'a': [1, None, 'x']})", "application/json", {"a": [1, None, "x"]}),
        ("Javascript('1')", "application/javascript", "1"),
    ],
)
async def test_a_rich_value_is_shown_whole(api: Api, session_id: str, code: str, mime: str, expected: Any) -> None:
    [output] = await shown(api, session_id, f"from IPython.display import *\n{code}")

    assert output["output_type"] == "execute_result"
    assert output["data"][mime] == expected
    assert "text/plain" in output["data"]


async def test_a_picture_arrives_byte_for_byte(api: Api, session_id: str) -> None:
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40).decode()

    code = f"""
import base64
from IPython.display import Image, display
display(Image(data=base64.b64decode({png!r}), format='png'))
"""
    [output] = await shown(api, session_id, code)

    assert base64.b64decode(output["data"]["image/png"]) == base64.b64decode(png)


async def test_a_widgets_bundle_is_kept_whole(api: Api, session_id: str) -> None:
    view = {"version_major": 2, "version_minor": 0, "model_id": "abc"}
    bundle = {
        "application/vnd.jupyter.widget-view+json": view,
        "application/x-own+json": {"deep": [{"a": 1}]},
        "text/plain": "w",
    }
    metadata = {"application/x-own+json": {"width": 3}}

    [output] = await shown(
        api, session_id, f"from IPython.display import display\ndisplay({bundle!r}, raw=True, metadata={metadata!r})"
    )

    assert output["data"] == bundle
    assert output["metadata"] == metadata


async def test_a_display_that_is_updated_shows_its_last_value(api: Api, session_id: str) -> None:
    code = "from IPython.display import display\nh = display('first', display_id=True)\nprint('x')\nh.update('second')"

    outputs = await shown(api, session_id, code)
    async with api.stream(session_id, code) as stream:
        events = await collected(stream)

    assert [one.get("data", {}).get("text/plain") for one in outputs] == ["'second'", None]
    updates = [event.data for event in events if event.kind == "update_display"]
    [display] = [event.data for event in events if event.kind == "display"]
    assert updates[0]["display_id"] == display["display_id"]


@pytest.mark.parametrize(("wait", "expected"), [("False", "after\n"), ("True", "after\n")])
async def test_cleared_output_is_gone(api: Api, session_id: str, wait: str, expected: str) -> None:
    code = f"from IPython.display import clear_output\nprint('before')\nclear_output(wait={wait})\nprint('after')"

    answer = await api.run(session_id, code)

    assert answer["stdout"] == expected


async def test_output_that_waits_to_be_cleared_stays_when_nothing_follows(api: Api, session_id: str) -> None:
    answer = await api.run(
        session_id, "from IPython.display import clear_output\nprint('last')\nclear_output(wait=True)"
    )

    assert answer["stdout"] == "last\n"


async def test_a_display_whose_repr_fails_does_not_fail_the_session(api: Api, session_id: str) -> None:
    answer = await api.run(session_id, "class Bad:\n  def __repr__(self): raise ValueError('no repr')\nBad()")

    assert answer["status"] == "error"
    assert "no repr" in str(answer["outputs"])
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"


# Errors


async def test_a_chain_of_exceptions_is_told_in_full(api: Api, session_id: str) -> None:
    code = "try: 1 / 0\nexcept ZeroDivisionError as error: raise ValueError('outer') from error"

    answer = await api.run(session_id, code)

    [output] = checked(answer)
    assert (answer["status"], answer["exit_code"]) == ("error", 1)
    assert (answer["error"]["ename"], answer["error"]["evalue"]) == ("ValueError", "outer")
    told = "".join(answer["error"]["traceback"])
    assert "ZeroDivisionError" in told
    assert "direct cause" in told
    assert output["output_type"] == "error"


@pytest.mark.parametrize("code", ["import sys; sys.exit(4)", "raise SystemExit('bye')", "exit()", "quit(1)"])
async def test_an_exit_ends_the_cell_and_not_the_session(api: Api, session_id: str, code: str) -> None:
    await api.run(session_id, "x = 41")

    answer = await api.run(session_id, code)
    after = await api.run(session_id, "import time; time.sleep(0.3); x + 1")

    assert answer["state_kept"] is (after["result"] == "42")
    assert after["result"] == "42", answer


async def test_a_syntax_error_is_told(api: Api, session_id: str) -> None:
    answer = await api.run(session_id, "print('never')\nif True print(1)")

    assert answer["error"]["ename"] == "SyntaxError"
    assert answer["stdout"] == ""


async def test_await_works_at_the_top(api: Api, session_id: str) -> None:
    answer = await api.run(session_id, "import asyncio\nawait asyncio.sleep(0.01)\nasync def f(): return 42\nawait f()")

    assert answer["result"] == "42"


async def test_warnings_go_to_stderr(api: Api, session_id: str) -> None:
    answer = await api.run(session_id, "import warnings, logging; warnings.warn('careful'); logging.warning('logged')")

    assert "careful" in answer["stderr"]
    assert "logged" in answer["stderr"]


# Libraries


@pytest.fixture(scope="module")
def science() -> str:
    """The name of a kernelspec whose environment has numpy, pandas and matplotlib."""
    for name, found in KernelSpecManager().get_all_specs().items():
        argv = found["spec"]["argv"]
        if found["spec"].get("language") == "python":
            check = subprocess.run([argv[0], "-c", "import numpy, pandas, matplotlib"], capture_output=True)
            if check.returncode == 0:
                return name
    pytest.skip("needs a Python kernelspec with numpy, pandas and matplotlib: deploy/setup.sh makes one")


async def test_a_plot_is_a_picture_of_modest_size(api: Api, session_id: str, science: str) -> None:
    await api.create(session_id=session_id, kernel=science)
    await api.run(session_id, "import matplotlib.pyplot as plt", timeout=90)

    drawn = await api.run(session_id, "plt.plot([1, 4, 9]); plt.title('é'); plt.show()", timeout=60)
    vector = await api.run(
        session_id, "%config InlineBackend.figure_formats = ['svg']\n_ = plt.plot([1, 2])", timeout=60
    )

    [picture] = [one for one in checked(drawn) if one["output_type"] == "display_data"]
    png = base64.b64decode(picture["data"]["image/png"])
    assert png.startswith(b"\x89PNG")
    assert len(png) < 200_000
    assert any("<svg" in one.get("data", {}).get("image/svg+xml", "") for one in checked(vector))


async def test_a_table_is_shown_as_text_and_html(api: Api, session_id: str, science: str) -> None:
    await api.create(session_id=session_id, kernel=science)

    answer = await api.run(
        session_id, "import pandas\npandas.DataFrame({'name': ['Ada', 'Bob'], 'n': [1, 2]})", timeout=90
    )

    [output] = checked(answer)
    assert "<table" in output["data"]["text/html"]
    assert "Ada" in answer["result"]


# Folding, without a kernel


def message(msg_type: str, content: dict[str, Any]) -> Message:
    session = Session(key=b"")
    made = session.msg(msg_type, content)
    return Message(
        session.unpack, [session.pack(made[part]) for part in ("header", "parent_header", "metadata", "content")]
    )


def raw(msg_type: str, content: bytes) -> Message:
    """A message whose content need not be JSON."""
    session = Session(key=b"")
    header = session.pack(session.msg(msg_type)["header"])
    return Message(session.unpack, [header, b"{}", b"{}", content])


def test_text_is_cut_in_the_middle_of_no_character() -> None:
    outputs = Outputs(limit_bytes=10)

    outputs.add(message("stream", {"name": "stdout", "text": "éééééé"}))

    assert outputs.truncated
    assert outputs.as_nbformat() == [{"output_type": "stream", "name": "stdout", "text": "ééééé"}]


def test_a_result_is_kept_after_text_has_filled_the_limit() -> None:
    outputs = Outputs(limit_bytes=1000)

    outputs.add(message("stream", {"name": "stdout", "text": "x" * 5000}))
    outputs.add(message("execute_result", {"data": {"text/plain": "42"}, "metadata": {}, "execution_count": 1}))

    assert outputs.truncated
    assert [one["output_type"] for one in outputs.as_nbformat()] == ["stream", "execute_result"]


def test_an_update_of_a_display_that_is_not_there_is_passed_on_alone() -> None:
    outputs = Outputs(limit_bytes=1000)

    event = outputs.add(message("update_display_data", {"data": {}, "metadata": {}, "transient": {"display_id": "x"}}))

    assert event is not None
    assert event.kind == "update_display"
    assert outputs.as_nbformat() == []


def test_a_display_that_is_updated_without_end_stays_within_the_limit() -> None:
    outputs = Outputs(limit_bytes=10_000)
    shown_as = {"metadata": {}, "transient": {"display_id": "x"}}
    outputs.add(message("display_data", {"data": {"text/plain": ""}, **shown_as}))

    for n in range(100):
        outputs.add(message("update_display_data", {"data": {"text/plain": "y" * n * 1000}, **shown_as}))

    assert outputs.truncated
    assert len(json.dumps(outputs.as_nbformat())) < 10_000


def test_errors_without_end_stay_within_the_limit_and_its_reserve() -> None:
    outputs = Outputs(limit_bytes=100_000)
    error = {"ename": "E", "evalue": "v" * 90_000, "traceback": ["é" * 90_000] * 5}

    for _ in range(400):
        outputs.add(message("error", error))
        outputs.add(message("error", {}))

    assert outputs.truncated
    assert 500_000 < len(json.dumps(outputs.as_nbformat(), ensure_ascii=False).encode()) < 1_300_000
    assert outputs.as_nbformat()[0]["evalue"] == error["evalue"]


def test_updates_that_are_not_ascii_give_nothing_back() -> None:
    outputs = Outputs(limit_bytes=10_000)
    shown_as = {"data": {"text/plain": "é" * 1000}, "metadata": {}, "transient": {"display_id": "x"}}
    outputs.add(message("display_data", shown_as))

    for _ in range(100):
        outputs.add(message("update_display_data", shown_as))
    outputs.add(message("stream", {"name": "stdout", "text": "x" * 20_000}))

    assert outputs.truncated
    assert len(outputs.as_nbformat()[1]["text"]) < 10_000


DEEP = b'{"data": {"application/json": ' + b"[" * 300 + b"]" * 300 + b'}, "metadata": {}}'


@pytest.mark.parametrize("kind", ["display_data", "execute_result", "update_display_data"])
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (DEEP, "deeper than 100"),
        (b'{"data": {}, "metadata": {"a": ' + b"[" * 120 + b"]" * 120 + b"}}", "deeper than 100"),
        (b'{"data": [1], "metadata": {}}', "not a mime bundle"),
        (b'{"metadata": {}}', "not a mime bundle"),
        (b'{"data": {}, "metadata": 1}', "not an object"),
        (b'{"data": {"application/json": [NaN]}, "metadata": {}}', "number"),
        (b"[1, 2]", "not a mime bundle"),
        (b"no json", "not a mime bundle"),
        (b"[" * 9_000 + b"]" * 9_000, "not a mime bundle"),
        (b'{"data": {"a": ' + b"9" * 5000 + b"}}", "not a mime bundle"),
    ],
)
def test_a_bundle_that_nobody_could_read_is_replaced_by_a_note(kind: str, content: bytes, why: str) -> None:
    outputs = Outputs(limit_bytes=100_000)

    event = outputs.add(raw(kind, content))

    assert event is not None
    assert outputs.truncated
    assert why in event.data["data"]["text/plain"]
    assert event.data["metadata"] == {}


@pytest.mark.parametrize("kind", ["stream", "display_data", "execute_result", "error", "clear_output", "status", ""])
@pytest.mark.parametrize(
    "content",
    [
        b"null",
        b'{"name": "stdout\\nevent: done", "text": "x"}',
        b'{"name": ["stdout"], "text": "x"}',
        b'{"name": "stdout", "text": {"a": 1}}',
        b'{"ename": {}, "evalue": 1, "traceback": 5}',
        b'{"traceback": "ab", "ename": "\\ud800"}',
        b'{"traceback": [[], null, "line"]}',
        b'{"data": {}, "metadata": null, "transient": {"display_id": []}, "execution_count": [[]]}',
        b'{"data": {}, "metadata": {}, "transient": 7, "wait": [1]}',
    ],
)
def test_whatever_a_message_holds_its_outputs_are_those_of_a_notebook(kind: str, content: bytes) -> None:
    outputs = Outputs(limit_bytes=100_000)

    outputs.add(raw(kind, content))

    kept = checked({"outputs": outputs.as_nbformat()})
    assert all(one["name"] in ("stdout", "stderr") for one in kept if one["output_type"] == "stream")


async def test_json_that_is_too_deep_leaves_the_session_readable(api: Api, session_id: str) -> None:
    code = """
from IPython.display import display
deep = []
for _ in range(300): deep = [deep]
display({"application/json": deep}, raw=True)
print("after")
"""
    answer = await api.run(session_id, code)
    found = await api.get(f"/api/sessions/{session_id}/executions")

    assert answer["truncated"]
    assert "nested deeper" in checked(answer)[0]["data"]["text/plain"]
    assert answer["stdout"] == "after\n"
    assert found["executions"][0]["outputs"] == answer["outputs"]


@pytest.mark.parametrize(("levels", "kept"), [(90, True), (110, False)])
async def test_json_that_is_kept_can_be_stored_listed_and_streamed(
    api: Api, session_id: str, levels: int, kept: bool
) -> None:
    code = f"""
from IPython.display import display
deep = []
for _ in range({levels}): deep = [deep]
display({{"application/json": deep}}, raw=True)
"""
    async with api.stream(session_id, code) as stream:
        events = await collected(stream)
    found = await api.get(f"/api/sessions/{session_id}/executions")

    assert events[-1].kind == "done"
    assert ("application/json" in events[1].data["data"]) is kept
    assert found["executions"][0]["outputs"] == events[-1].data["outputs"]
