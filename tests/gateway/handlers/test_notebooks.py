"""Notebook out: a session's history as one. Notebook in: one that is run in a session cell by cell."""

import asyncio
import json
import re
from contextlib import asynccontextmanager
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.api import Api, Sse, events

PLOT = """
import matplotlib
matplotlib.use("module://matplotlib_inline.backend_inline")
import matplotlib.pyplot as plt
plt.plot([1, 2])
plt.show()
"""


def notebook(*cells: Any, **metadata: Any) -> dict[str, Any]:
    """A notebook of code cells, unless they are given as cells."""
    made = [cell if isinstance(cell, dict) else new_code_cell(cell) for cell in cells]
    return dict(new_notebook(cells=made, metadata=metadata))


def url(session_id: str, more: str = "") -> str:
    return f"/api/sessions/{session_id}/notebook{more}"


def texts(cell: dict[str, Any]) -> str:
    return "".join(output.get("text", "") for output in cell["outputs"])


@asynccontextmanager
async def streamed(api: Api, session_id: str, content: dict[str, Any], query: str = "") -> Any:
    path = url(session_id, f"?stream=true{query}")
    async with api.http.stream("POST", path, json=content) as answer:
        assert answer.status_code == 200, (await answer.aread()).decode()
        yield answer.headers["X-Series-Id"], events(answer)


async def until(found: Any, kind: str) -> Sse:
    event: Sse
    async for event in found:
        if event.kind == kind:
            return event
    raise AssertionError(f"no {kind}")


# Out


async def test_the_history_is_a_valid_notebook_that_runs_again_with_the_same_outputs(api: Api, session_id: str) -> None:
    for code in ("x = 20\nprint('hello')", "x + 22", "1 / 0", "import sys; print('oh', file=sys.stderr)", PLOT):
        await api.run(session_id, code)

    answer = await api.http.get(url(session_id))
    exported = answer.json()
    again = await api.post(url(f"{session_id}-2", "?stop_on_error=false"), exported)

    read = nbformat.reads(answer.text, as_version=4)
    nbformat.validate(read)
    assert answer.headers["Content-Type"] == "application/x-ipynb+json"
    assert f"{session_id}.ipynb" in answer.headers["Content-Disposition"]
    assert read.metadata.kernelspec == {"name": "python3", "display_name": "Python 3", "language": "python"}
    assert [cell.execution_count for cell in read.cells] == [1, 2, 3, 4, 5]
    assert read.cells[0].source == "x = 20\nprint('hello')"
    assert read.cells[0].outputs[0].text == "hello\n"
    assert read.cells[1].outputs[0].data["text/plain"] == "42"
    assert read.cells[2].outputs[0].ename == "ZeroDivisionError"
    assert read.cells[4].outputs[0].data["image/png"]
    assert [cell["outputs"] for cell in again["notebook"]["cells"]] == [cell.outputs for cell in read.cells]


async def test_an_empty_history_is_a_valid_notebook(api: Api, session_id: str) -> None:
    await api.create(id=session_id)

    exported = await api.get(url(session_id))

    nbformat.validate(exported)
    assert exported["cells"] == []


async def test_a_run_that_was_cut_short_tells_so_and_one_that_never_began_is_not_there(
    api: Api, session_id: str
) -> None:
    await api.run(session_id, "while True: pass", timeout=0.5)
    async with api.stream(session_id, "import time; time.sleep(60)") as found:
        await until(found, "start")
        queued = await api.post(f"/api/sessions/{session_id}/run", {"code": "never", "background": True}, 202)
        await api.call("DELETE", f"/api/sessions/{session_id}/executions/{queued['execution_id']}")
        await api.post(f"/api/sessions/{session_id}/interrupt")
        await until(found, "done")

    exported = await api.get(url(session_id))

    nbformat.validate(exported)
    assert ["".join(cell["source"]) for cell in exported["cells"]] == [
        "while True: pass",
        "import time; time.sleep(60)",
    ]
    assert [cell["outputs"][-1]["output_type"] for cell in exported["cells"]] == ["error", "error"]


async def test_outputs_that_nbformat_does_not_know_become_text(api: Api, session_id: str) -> None:
    bundle = "{'text/plain': 5, 'text/html': ['a', 1], 'application/x+json': {'a': 1}, 'application/json': None}"
    await api.run(session_id, f"from IPython.display import display\ndisplay({bundle}, raw=True)")

    exported = await api.get(url(session_id))

    nbformat.validate(exported)
    data = exported["cells"][0]["outputs"][0]["data"]
    assert (data["text/plain"], data["application/x+json"]) == (["5"], {"a": 1})


async def test_a_page_shows_the_outputs_and_runs_no_script_and_asks_nobody(api: Api, session_id: str) -> None:
    await api.run(session_id, "print('hel' + 'lo'); '<b>' + 'x'")
    await api.run(session_id, PLOT)

    answer = await api.http.get(url(session_id, "?format=html"))

    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "hello" in answer.text
    assert "&lt;b&gt;x" in answer.text
    assert "data:image/png;base64," in answer.text
    policy = answer.headers["Content-Security-Policy"]
    assert "sandbox;" in policy
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert not re.search(r"https?:", policy)


async def test_a_script_holds_the_code_and_markdown_the_outputs_too(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 6\nprint(x * 7)")
    await api.run(session_id, PLOT)

    script = await api.http.get(url(session_id, "?format=script"))
    markdown = await api.http.get(url(session_id, "?format=markdown"))

    compile(script.text, "script", "exec")
    assert "x = 6\nprint(x * 7)" in script.text
    assert "42" not in script.text
    assert script.headers["Content-Disposition"].endswith(f"{session_id}.py")
    assert "```python\nx = 6" in markdown.text
    assert "    42\n" in markdown.text
    assert "](data:image/png;base64," in markdown.text


@pytest.mark.slow
async def test_another_language_is_told_and_exported_as_it_is(api: Api, session_id: str) -> None:
    await api.create(id=session_id, language="bash")
    await api.run(session_id, "echo hello")

    exported = await api.get(url(session_id))
    script = await api.http.get(url(session_id, "?format=script"))

    nbformat.validate(exported)
    assert exported["metadata"]["language_info"]["name"] == "bash"
    assert "echo hello" in script.text


async def test_no_notebook_comes_of_a_session_that_is_not_there_or_in_an_unknown_format(
    api: Api, session_id: str
) -> None:
    await api.get(url(session_id), 404)
    await api.create(id=session_id)

    refusal = await api.get(url(session_id, "?format=pdf"), 422)

    assert set(refusal["details"]) == {"format"}


# In


async def test_a_notebook_runs_cell_by_cell_in_the_session_and_comes_back_with_its_outputs(
    api: Api, session_id: str
) -> None:
    await api.run(session_id, "x = 40")

    ran = await api.post(url(session_id), notebook(new_markdown_cell("# Title"), "y = x + 1", "print('p')\ny + 1", " "))

    after = await api.run(session_id, "y")
    assert (ran["status"], ran["success"], ran["reason"]) == ("ok", True, None)
    assert [cell["index"] for cell in ran["cells"]] == [1, 2]
    assert [cell["execution_count"] for cell in ran["cells"]] == [2, 3]
    assert [cell["cell_type"] for cell in ran["notebook"]["cells"]] == ["markdown", "code", "code", "code"]
    assert texts(ran["notebook"]["cells"][2]) == "p\n"
    assert ran["notebook"]["cells"][2]["outputs"][1]["data"]["text/plain"] == "42"
    assert after["result"] == "41"
    nbformat.validate(ran["notebook"])
    kept = await api.get(f"/api/sessions/{session_id}/executions/{ran['cells'][1]['execution_id']}")
    assert kept["result"] == "42"


async def test_the_first_cell_that_fails_ends_it_unless_it_is_to_go_on(api: Api, session_id: str) -> None:
    content = notebook("print(1)", "1 / 0", "print(3)")

    stopped = await api.post(url(session_id), content)
    went_on = await api.post(url(session_id, "?stop_on_error=false"), content)

    assert (stopped["status"], stopped["success"]) == ("error", False)
    assert "Cell 1" in stopped["reason"]
    assert [cell["status"] for cell in stopped["cells"]] == ["ok", "error", None]
    assert stopped["cells"][1]["error"]["ename"] == "ZeroDivisionError"
    assert stopped["notebook"]["cells"][2]["outputs"] == []
    assert [cell["status"] for cell in went_on["cells"]] == ["ok", "error", "ok"]
    assert (went_on["status"], went_on["reason"]) == ("error", None)


async def test_tags_that_nbclient_knows_mean_the_same_here(api: Api, session_id: str) -> None:
    content = notebook(
        new_code_cell("1 / 0", metadata={"tags": ["raises-exception"]}),
        new_code_cell("print('never')", metadata={"tags": ["skip-execution"]}),
        "print('last')",
    )

    ran = await api.post(url(session_id), content)

    assert (ran["status"], [cell["status"] for cell in ran["cells"]]) == ("ok", ["error", "ok"])
    assert ran["notebook"]["cells"][1]["outputs"] == []


async def test_each_cell_has_the_time_that_it_is_given(api: Api, session_id: str) -> None:
    ran = await api.post(url(session_id, "?timeout=0.5"), notebook("x = 1", "while True: pass"))

    assert [cell["status"] for cell in ran["cells"]] == ["ok", "timeout"]
    assert (await api.run(session_id, "x"))["result"] == "1"


async def test_an_old_notebook_is_read_as_well(api: Api, session_id: str) -> None:
    cell = {"cell_type": "code", "input": ["print(1)"], "language": "python", "outputs": [], "metadata": {}}
    old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": [{"cells": [cell]}]}

    ran = await api.post(url(session_id), old)

    assert texts(ran["notebook"]["cells"][0]) == "1\n"


@pytest.mark.slow
async def test_a_session_that_is_made_for_a_notebook_has_its_kernel(api: Api, session_id: str) -> None:
    spec = {"name": "no-such-kernel", "display_name": "Bash", "language": "bash"}

    ran = await api.post(url(session_id), notebook("echo hello", kernelspec=spec))

    assert texts(ran["notebook"]["cells"][0]).strip() == "hello"
    assert (await api.get(f"/api/sessions/{session_id}"))["language"] == "bash"


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({"nbformat": 4, "cells": [{"cell_type": "code"}], "metadata": {}}, 400),
        ({"nbformat": 4, "cells": [{"cell_type": "code", "metadata": {}, "source": "1"}], "metadata": {}}, 422),
        ({"nbformat": 99, "cells": []}, 400),
        ({"cells": []}, 422),
        ([], 422),
        (notebook("a\0b"), 422),
    ],
)
async def test_what_is_no_notebook_is_refused_and_no_session_made(
    api: Api, session_id: str, content: Any, status: int
) -> None:
    refusal = await api.post(url(session_id), content, status)

    assert refusal["error"]
    await api.get(f"/api/sessions/{session_id}", 404)


async def test_a_stream_tells_of_each_cell_as_it_runs_and_ends_with_the_whole(api: Api, session_id: str) -> None:
    async with streamed(api, session_id, notebook("print('a')", "print('b')\n1 + 1")) as (_, found):
        told = [event async for event in found]

    kinds = [event.kind for event in told]
    assert kinds == ["cell", "stdout", "cell_done", "cell", "stdout", "result", "cell_done", "done"]
    assert [event.data["index"] for event in told[:-1]] == [0, 0, 0, 1, 1, 1, 1]
    assert told[4].data["text"] == "b\n"
    assert told[-1].data["status"] == "ok"
    assert texts(told[-1].data["notebook"]["cells"][1]) == "b\n"


async def test_a_client_that_was_cut_off_goes_on_where_it_was(api: Api, session_id: str) -> None:
    content = notebook("print('a')", f"print(input({'?'!r}))", "print('c')")
    async with streamed(api, session_id, content) as (run_id, found):
        seen = await until(found, "input_request")

    headers = {"Last-Event-ID": seen.id}
    async with api.events(url(session_id, f"/{run_id}/events"), headers=headers) as found:
        await api.post(f"/api/sessions/{session_id}/input", {"text": "b"})
        rest = [event async for event in found]

    printed = "".join(event.data["text"] for event in rest if event.kind == "stdout")
    assert (printed.split(), rest[-1].kind) == (["b", "c"], "done")


@pytest.mark.slow
async def test_one_that_everybody_has_left_is_stopped(api: Api, session_id: str) -> None:
    content = notebook("print('begun', flush=True); import time; time.sleep(60)", "x = 1")
    async with streamed(api, session_id, content) as (run_id, found):
        await until(found, "stdout")

    async with asyncio.timeout(20):
        while (left := await api.get(url(session_id, f"/{run_id}")))["finished_at"] is None:
            await asyncio.sleep(0.2)

    assert (left["status"], [cell["status"] for cell in left["cells"]]) == ("interrupted", ["interrupted", None])
    assert left["reason"]


async def test_one_in_the_background_goes_on_alone_and_tells_how_it_stands(api: Api, session_id: str) -> None:
    begun = await api.post(url(session_id, "?background=true"), notebook("x = 6", "input()", "x * 7"), 202)
    async with api.events(url(session_id, f"/{begun['run_id']}/events")) as found:
        await until(found, "input_request")
        meanwhile = await api.get(url(session_id, f"/{begun['run_id']}"))
        await api.post(f"/api/sessions/{session_id}/input", {"text": ""})
        done = await until(found, "done")

    assert begun["status"] == "running"
    assert [cell["status"] for cell in meanwhile["cells"]] == ["ok", None, None]
    assert done.data["cells"][2]["status"] == "ok"
    assert await api.get(url(session_id, f"/{begun['run_id']}")) == done.data


async def test_one_is_stopped_in_mid_cell(api: Api, session_id: str) -> None:
    content = notebook("x = 1", "import time; time.sleep(60)", "x = 2")
    begun = await api.post(url(session_id, "?background=true"), content, 202)
    async with api.events(url(session_id, f"/{begun['run_id']}/events")) as found:
        await until(found, "cell_done")
        await until(found, "cell")

        stopped = await api.call("DELETE", url(session_id, f"/{begun['run_id']}"))

    assert [cell["status"] for cell in stopped["cells"]] == ["ok", "interrupted", None]
    assert (stopped["status"], stopped["reason"]) == ("interrupted", "It was stopped.")
    assert (await api.run(session_id, "x"))["result"] == "1"


async def test_runs_of_others_come_in_between_the_cells(api: Api, session_id: str) -> None:
    begun = await api.post(url(session_id, "?background=true"), notebook("input(); x = 1", "x"), 202)
    async with api.events(url(session_id, f"/{begun['run_id']}/events")) as found:
        await until(found, "input_request")
        other = asyncio.ensure_future(api.run(session_id, "x = x + 1"))
        async with asyncio.timeout(20):
            while (await api.get(f"/api/sessions/{session_id}/executions"))["count"] < 2:
                await asyncio.sleep(0.05)
        await api.post(f"/api/sessions/{session_id}/input", {"text": ""})
        done = await until(found, "done")

    assert (await other)["status"] == "ok"
    assert done.data["notebook"]["cells"][1]["outputs"][0]["data"]["text/plain"] == "2"


async def test_a_repeated_idempotency_key_runs_a_notebook_once(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 0")
    content, headers = notebook("x += 1"), {"Idempotency-Key": session_id}

    first = await api.post(url(session_id), content, headers=headers)
    second = await api.post(url(session_id), content, headers=headers)

    assert first == second
    assert (await api.run(session_id, "x"))["result"] == "1"


async def test_a_stream_under_a_key_that_is_cut_off_is_not_run_twice(api: Api, session_id: str) -> None:
    await api.run(session_id, "x = 0")
    content, headers = notebook("x += 1; input()", "x += 1"), {"Idempotency-Key": session_id}
    async with api.http.stream("POST", url(session_id, "?stream=true"), json=content, headers=headers) as answer:
        await until(events(answer), "input_request")

    await api.post(f"/api/sessions/{session_id}/input", {"text": ""})
    again = await api.post(url(session_id, "?stream=true"), content, headers=headers)

    assert (again["status"], [cell["status"] for cell in again["cells"]]) == ("ok", ["ok", "ok"])
    assert (await api.run(session_id, "x"))["result"] == "2"


async def test_another_sessions_run_is_not_found(api: Api, session_id: str) -> None:
    ran = await api.post(url(session_id), notebook("1"))
    await api.create(id=f"{session_id}-2")

    refusal = await api.get(url(f"{session_id}-2", f"/{ran['run_id']}"), 404)

    assert refusal["code"] == "series_not_found"


@pytest.mark.slow
async def test_outputs_that_would_make_a_notebook_too_large_are_left_out_and_told(api: Api, session_id: str) -> None:
    content = notebook(*["print('x' * 9_000_000)"] * 5)

    ran = await api.post(url(session_id), content)
    exported = json.loads((await api.http.get(url(session_id))).content)

    assert ran["truncated"] is True
    assert [cell["truncated"] for cell in ran["cells"]] == [False, False, False, True, True]
    assert ran["cells"][4]["execution_id"] in texts(ran["notebook"]["cells"][4])
    lengths = [sum(len(part) for part in cell["outputs"][0]["text"]) for cell in exported["cells"]]
    assert [length > 9_000_000 for length in lengths] == [False, False, True, True, True]
    whole = await api.get(f"/api/sessions/{session_id}/executions/{ran['cells'][4]['execution_id']}")
    assert len(whole["stdout"]) == 9_000_001
