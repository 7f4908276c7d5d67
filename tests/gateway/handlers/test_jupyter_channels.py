"""A kernel's websocket: both framings, several clients, who is answered, who comes back, who is too slow."""

import ast
import asyncio
import sqlite3
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError

from tests.api import Api
from tests.front_ends import FrontEnd, Got, front_end, text_of
from tests.gateways import GatewayProcess, gateway_process

COMM = "get_ipython().kernel.comm_manager.register_target('t', lambda comm, _: comm.on_msg(lambda m: comm.send(m['content']['data'], buffers=m['buffers'])))"  # noqa: E501


async def kernel_of(api: Api, session_id: str) -> str:
    return str((await api.create(id=session_id))["jupyter"]["kernel_id"])


def result(published: list[Got]) -> str:
    return next(str(one.content["data"]["text/plain"]) for one in published if one.type == "execute_result")


def shown(client: FrontEnd) -> list[str]:
    """What it has been shown, in order."""
    return [got.content["data"]["text/plain"] for got in client.seen if got.type == "display_data"]


def cells_seen(client: FrontEnd) -> list[str]:
    """Those that have ended."""
    return [
        got.parent["msg_id"]
        for got in client.seen
        if got.state == "idle" and got.parent.get("msg_type") == "execute_request"
    ]


async def until_idle(client: FrontEnd, msg_id: str) -> None:
    await client.has(lambda got: got.state == "idle" and got.parent.get("msg_id") == msg_id)


@pytest.mark.parametrize("v1", [True, False])
async def test_a_cell_runs_and_is_answered_in_either_framing(api: Api, session_id: str, v1: bool) -> None:
    async with front_end(api.url, await kernel_of(api, session_id), v1=v1) as client:
        reply, published = await client.run("print('größer')\n6 * 7")

    assert (reply.type, reply.channel, reply.content["status"]) == ("execute_reply", "shell", "ok")
    assert [one.type for one in published if one.type != "status"] == ["execute_input", "stream", "execute_result"]
    assert (text_of(published), result(published)) == ("größer\n", "42")
    assert [one.state for one in published if one.state] == ["busy", "idle"]


@pytest.mark.parametrize("v1", [True, False])
async def test_comms_carry_buffers_both_ways(api: Api, session_id: str, v1: bool) -> None:
    data = bytes(range(256)) * 10
    async with front_end(api.url, await kernel_of(api, session_id), v1=v1) as client:
        await client.run(COMM)
        await client.send("comm_open", {"comm_id": "c", "target_name": "t", "data": {}})
        await client.send("comm_msg", {"comm_id": "c", "data": {"n": 1}}, buffers=(data, b"", b"x"))
        echoed = await client.until(lambda got: got.type == "comm_msg")

    assert (echoed.content["data"], echoed.buffers) == ({"n": 1}, [data, b"", b"x"])


async def test_both_sides_see_each_others_variables_and_outputs(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        await api.run(session_id, "df = [1, 2, 3]\nprint('from REST')")
        await client.until(lambda got: got.text == "from REST\n")
        _, published = await client.run("sum(df)")

    history = (await api.get(f"/api/sessions/{session_id}/history"))["history"]
    assert result(published) == "6"
    assert [(one["source"], one["code"], one["status"]) for one in history] == [
        ("jupyter", "sum(df)", "ok"), ("api", "df = [1, 2, 3]\nprint('from REST')", "ok"),
    ]  # fmt: skip
    assert history[0]["result"] == "6"


async def test_runs_of_both_sides_take_turns_and_do_not_mix(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    code = "import time\nfor _ in range(5):\n    print({!r}, flush=True); time.sleep(0.01)"
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(front_end(api.url, kernel_id)) for _ in range(3)]
        asked = [(client, str(n), await client.execute(code.format(str(n)))) for n, client in enumerate(clients)]
        answers = await asyncio.gather(*(api.run(session_id, code.format(f"rest {n}")) for n in range(3)))
        outcomes = [(name, await client.outcome(msg_id)) for client, name, msg_id in asked]

    assert [answer["stdout"] for answer in answers] == [f"rest {n}\n" * 5 for n in range(3)]
    assert [text_of(published) for _, (_, published) in outcomes] == [f"{name}\n" * 5 for name, _ in outcomes]


async def test_each_client_gets_its_own_replies_and_all_that_is_published(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with front_end(api.url, kernel_id) as one, front_end(api.url, kernel_id) as other:
        await one.run("1 + 1")
        await other.run("2 + 2")
        await one.until(lambda got: got.type == "execute_result" and got.content["data"]["text/plain"] == "4")

    assert [got.parent["session"] for got in one.seen if got.type == "execute_reply"] == [one.session]
    assert [got.parent["session"] for got in other.seen if got.type == "execute_reply"] == [other.session]


async def test_input_is_asked_of_the_client_that_runs_the_cell(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with front_end(api.url, kernel_id) as one, front_end(api.url, kernel_id) as other:
        msg_id = await one.execute("input('name? ')")
        asked = await one.until(lambda got: got.type == "input_request")
        await other.send("input_reply", {"value": "not me"}, "stdin")
        await one.send("input_reply", {"value": "ann"}, "stdin")
        _, published = await one.outcome(msg_id)
        await other.until(lambda got: got.type == "execute_result")

    assert (asked.channel, asked.content["prompt"], result(published)) == ("stdin", "name? ", "'ann'")
    assert not [got for got in other.seen if got.channel == "stdin"]


async def test_input_of_a_front_ends_cell_may_be_given_over_rest(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        msg_id = await client.execute("input()")
        await client.until(lambda got: got.type == "input_request")
        await api.post(f"/api/sessions/{session_id}/input", {"text": "agent"})
        assert result((await client.outcome(msg_id))[1]) == "'agent'"


async def test_kernel_info_is_answered_while_a_cell_runs_and_the_kernel_stays_busy(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        running = await client.execute("import time; print('on', flush=True); time.sleep(60)")
        await client.until(lambda got: got.text == "on\n")

        reply, _ = await client.outcome(await client.send("kernel_info_request", {}))
        await client.has(lambda got: got.state == "busy" and not got.parent)

        assert (reply.channel, reply.content["implementation"]) == ("shell", "ipython")
        await client.send("interrupt_request", {}, "control")
        assert (await client.outcome(running))[0].content["ename"] == "KeyboardInterrupt"


async def test_an_interrupt_on_the_control_channel_ends_the_cell_and_those_that_wait(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        cells = [await client.execute(code) for code in ("print('on', flush=True); import time; time.sleep(60)", "1")]
        await client.until(lambda got: got.text == "on\n")
        interrupt, _ = await client.outcome(await client.send("interrupt_request", {}, "control"))
        replies = [(await client.outcome(cell))[0].content for cell in cells]

    history = (await api.get(f"/api/sessions/{session_id}/history"))["history"]
    assert (interrupt.type, interrupt.channel) == ("interrupt_reply", "control")
    assert (replies[0]["ename"], replies[1]) == ("KeyboardInterrupt", {"status": "aborted"})
    assert {one["status"] for one in history} == {"interrupted"}


async def test_after_a_cell_that_fails_only_the_clients_own_cells_are_not_run(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with front_end(api.url, kernel_id) as one, front_end(api.url, kernel_id) as other:
        blocking = await other.execute("import time; time.sleep(0.5)")
        failing, waiting = await one.execute("1 / 0"), await one.execute("mine = 1")
        await one.until(lambda got: got.state == "busy")
        others = await other.execute("theirs = 1")
        statuses = [(await client.outcome(cell))[0].content["status"] for client, cell in (
            (other, blocking), (one, failing), (one, waiting), (other, others),
        )]  # fmt: skip
        goes_on = [await one.execute("1 / 0", stop_on_error=False), await one.execute("'mine' in globals()")]
        (_, _), (_, published) = [await one.outcome(cell) for cell in goes_on]

    assert statuses == ["ok", "error", "aborted", "ok"]
    assert result(published) == "False"


async def test_a_silent_cell_is_not_in_the_history(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        reply, published = await client.run("quiet = 1", silent=True)
        await client.run("quiet")

    history = (await api.get(f"/api/sessions/{session_id}/history"))["history"]
    assert reply.content["status"] == "ok"
    assert {one.type for one in published} == {"status"}
    assert [one["code"] for one in history] == ["quiet"]


async def test_completion_history_and_inspection_go_to_the_kernel(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        await client.run("something_long = 1")
        ask: dict[str, dict[str, Any]] = {
            "complete_request": {"code": "something_l", "cursor_pos": 11},
            "inspect_request": {"code": "something_long", "cursor_pos": 5, "detail_level": 0},
            "is_complete_request": {"code": "for x in y:"},
            "history_request": {"hist_access_type": "tail", "n": 1, "raw": True, "output": False},
            "comm_info_request": {},
        }
        replies = {
            name: (await client.outcome(await client.send(name, content)))[0].content for name, content in ask.items()
        }

    assert replies["complete_request"]["matches"] == ["something_long"]
    assert replies["inspect_request"]["found"]
    assert replies["is_complete_request"]["status"] == "incomplete"
    assert replies["history_request"]["history"] == [[0, 1, "something_long = 1"]]
    assert {reply["status"] for reply in replies.values()} == {"ok", "incomplete"}


async def test_what_was_run_before_a_sleep_can_be_searched_after_it(api: Api, session_id: str) -> None:
    search = {"hist_access_type": "search", "pattern": "x*", "unique": True, "raw": True, "output": True}
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        for code in ("x = 1", "y = 2", "x + 1", "x = 1"):
            await client.run(code)
        await api.post(f"/api/sessions/{session_id}/hibernate")
        await client.run("'awake'")
        reply, _ = await client.outcome(await client.send("history_request", search))

    assert [[line, source] for _, line, (source, _) in reply.content["history"]] == [[3, "x + 1"], [4, "x = 1"]]


async def test_what_cells_printed_is_where_ipython_keeps_it(api: Api, session_id: str) -> None:
    await api.run(session_id, "for n in range(3): print(n)")
    await api.run(session_id, "import sys\nprint('out'); print('err', file=sys.stderr); print('out'); 42")
    kept = "[[(o.output_type, ''.join(o.bundle.get('stream', []))) for o in get_ipython().history_manager.outputs[n]]"

    answer = await api.run(session_id, f"{kept} for n in (1, 2)]")

    assert ast.literal_eval(answer["result"]) == [
        [("out_stream", "0\n1\n2\n")],
        [("out_stream", "out\n"), ("err_stream", "err\n"), ("out_stream", "out\n"), ("execute_result", "")],
    ]


async def test_a_subshell_runs_a_cell_while_another_runs(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        await client.run("import threading; done = threading.Event()")
        main = await client.execute("done.wait(30)")
        created, _ = await client.outcome(await client.send("create_subshell_request", {}, "control"))
        subshell = {"subshell_id": created.content["subshell_id"]}
        reply, _ = await client.run("done.set()", header=subshell)
        _, published = await client.outcome(main)

    assert (reply.content["status"], result(published)) == ("ok", "True")


async def test_a_subshells_cell_is_on_record_and_its_outputs_are_its_own(api: Api, session_id: str) -> None:
    code = "for n in range(5):\n    print({0!r}, n, flush=True); time.sleep(0.02)\n{0!r}"
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        await client.run("import time")
        created, _ = await client.outcome(await client.send("create_subshell_request", {}, "control"))
        main = await client.execute(code.format("main"))
        beside = await client.execute(code.format("beside"), header={"subshell_id": created.content["subshell_id"]})
        published = {name: (await client.outcome(cell))[1] for name, cell in (("main", main), ("beside", beside))}

    for name, cell in (("main", main), ("beside", beside)):
        run = await api.get(f"/api/sessions/{session_id}/executions/{cell}")
        assert run["stdout"] == text_of(published[name]) == "".join(f"{name} {n}\n" for n in range(5))
        assert (run["source"], run["status"], run["result"]) == ("jupyter", "ok", f"'{name}'")
    assert (await api.get(f"/api/sessions/{session_id}"))["run_count"] == 3


async def test_a_subshells_cell_that_fails_or_asks_is_told_to_its_own_client(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with front_end(api.url, kernel_id) as client, front_end(api.url, kernel_id) as other:
        created, _ = await client.outcome(await client.send("create_subshell_request", {}, "control"))
        subshell = {"subshell_id": created.content["subshell_id"]}
        asking = await client.execute("name = input('name? ')", header=subshell)
        await client.until(lambda got: got.type == "input_request")
        await other.send("input_reply", {"value": "not me"}, "stdin")
        await client.send("input_reply", {"value": "ann"}, "stdin")
        await client.outcome(asking)
        failed, _ = await client.run("1 / 0", header=subshell)
        _, published = await client.run("name")

    history = (await api.get(f"/api/sessions/{session_id}/history"))["history"]
    assert result(published) == "'ann'"
    assert failed.content["ename"] == "ZeroDivisionError"
    assert [one["status"] for one in history] == ["ok", "error", "ok"]
    assert history[1]["error"]["ename"] == "ZeroDivisionError"


async def test_a_cell_on_the_control_channel_is_on_record(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        content = {"code": "hidden = 1", "silent": False, "store_history": True}
        reply, _ = await client.outcome(await client.send("execute_request", content, "control"))

    history = (await api.get(f"/api/sessions/{session_id}/history"))["history"]
    assert (reply.channel, reply.content["status"]) == ("control", "ok")
    assert [(one["code"], one["source"]) for one in history] == [("hidden = 1", "jupyter")]


@pytest.mark.parametrize(
    "content",
    [{}, {"code": 5}, {"code": "1", "user_expressions": 5}, {"code": "1", "silent": {"deep": None}}, {"code": "x\0"}],
)
async def test_a_cell_that_no_kernel_can_read_is_answered_and_holds_up_nobody(
    api: Api, session_id: str, content: dict[str, Any]
) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        reply, _ = await client.outcome(await client.send("execute_request", content))
        answer = await api.run(session_id, "1 + 1")

    assert reply.content["status"] in ("ok", "error")
    assert answer["result"] == "2"


@pytest.mark.parametrize("v1", [True, False])
async def test_what_is_nested_too_deep_harms_nobody(api: Api, session_id: str, v1: bool) -> None:
    kernel_id = await kernel_of(api, session_id)
    await api.run(session_id, "x = 41")
    deep: Any = 0
    for _ in range(900):
        deep = [deep]
    async with front_end(api.url, kernel_id, v1=v1) as client:
        msg_id = await client.send("execute_request", {"code": "1", "user_expressions": {"a": deep}})
        if v1:
            assert (await client.outcome(msg_id))[0].content["status"] == "error"
        else:
            with pytest.raises(EOFError):
                await client.until(lambda got: False)

    assert (await api.run(session_id, "x + 1"))["result"] == "42"


@pytest.mark.parametrize(
    "header",
    [{"version": "x"}, {"version": 5}, {"session": 5}, {"subshell_id": ["a"]}, {"username": []},
     {"msg_id": "x" * 129}, {"msg_id": 5}],
)  # fmt: skip
async def test_a_header_that_a_kernel_would_drop_ends_the_connection(
    api: Api, session_id: str, header: dict[str, Any]
) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        await client.execute("1", header=header)
        with pytest.raises(EOFError) as closed:
            await client.until(lambda got: False)

    assert closed.value.args[0] == 1007
    assert (await api.run(session_id, "1 + 1"))["result"] == "2"


async def test_no_message_of_a_client_is_taken_for_an_answer_to_what_somebody_else_runs(
    api: Api, session_id: str
) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with (
        front_end(api.url, kernel_id) as client,
        api.stream(session_id, "print('on', flush=True)\ninput()\nprint('ended')") as events,
    ):
        async for event in events:
            if event.kind == "input_request":
                begun = await client.has(lambda got: got.text == "on\n")
                forged = {"msg_id": begun.parent["msg_id"]}
                await client.send("comm_close", {"comm_id": "none"}, "control", **forged)
                await client.send("kernel_info_request", {}, "control", **forged)
                await client.execute("1", header=forged)
                await client.outcome(await client.send("kernel_info_request", {}, "control"))
                await api.post(f"/api/sessions/{session_id}/input", {"text": ""})

    assert (event.data["status"], event.data["stdout"]) == ("ok", "on\nended\n")


async def test_what_no_kernel_knows_or_no_channel_takes_leaves_the_session_as_it_was(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        await client.send("nonsense_request", {})
        await client.send("kernel_info_request", {}, "stdin")
        refused, _ = await client.outcome(await client.send("execute_request", {"code": "1"}, "stdin"))
        await client.outcome(await client.send("kernel_info_request", {}))

    assert refused.content["status"] == "error"
    assert (await api.post(f"/api/sessions/{session_id}/hibernate"))["state"] == "IDLE"


async def test_a_token_is_in_no_log(gateway: GatewayProcess, api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    token = f"secret{session_id}"
    async with front_end(api.url, kernel_id, query=f"&token={token}") as client:
        await client.run("1")
        await client.socket.write_message("garbage")
        with pytest.raises(EOFError):
            await client.until(lambda got: False)
    with pytest.raises(HTTPClientError):
        async with front_end(api.url, "none", query=f"&token={token}"):
            pass
    for path in ("kernels", "kernels/none", "contents/none", "nothing"):
        answer = await api.http.get(f"/jupyter/api/{path}?token={token}")
        assert token not in answer.text

    assert token not in gateway.log()


async def test_the_debugger_answers_on_the_control_channel(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        content = {"type": "request", "command": "debugInfo", "seq": 1, "arguments": {}}
        reply, _ = await client.outcome(await client.send("debug_request", content, "control"))

    assert (reply.channel, reply.content["success"]) == ("control", True)


async def test_the_gateways_own_requests_are_not_for_clients_nor_shown_to_them(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        await api.get(f"/api/sessions/{session_id}/variables")
        content = {"action": "delete", "name": "x"}
        reply, _ = await client.outcome(await client.send("session_gateway_request", content, "control"))

    assert (reply.content["status"], reply.content["ename"]) == ("error", "Denied")
    assert {got.parent.get("session") for got in client.seen} <= {client.session, None}


async def test_a_client_that_vanishes_and_comes_back_gets_each_message_once(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    code = "import time\nfor n in range(200):\n    print(n, flush=True); time.sleep(0.005)"
    async with front_end(api.url, kernel_id, session="same") as before:
        msg_id = await before.execute(code)
        await before.until(lambda got: got.text.startswith("20"))
        before.socket.close()
        with pytest.raises(EOFError):
            await before.until(lambda got: False)
    await asyncio.sleep(0.3)
    async with front_end(api.url, kernel_id, session="same") as after:
        after.seen = before.seen
        reply, published = await after.outcome(msg_id)

    assert reply.content["status"] == "ok"
    assert text_of(published) == "".join(f"{n}\n" for n in range(200))


async def test_a_reply_that_came_while_its_client_was_away_is_kept(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with front_end(api.url, kernel_id, session="away") as before:
        await before.run("import time")
        msg_id = await before.execute("time.sleep(0.3); 'late'")
        before.vanish()
    answer = await api.run(session_id, "1")
    async with front_end(api.url, kernel_id, session="away") as after:
        _, published = await after.outcome(msg_id)

    assert (answer["status"], result(published)) == ("ok", "'late'")


async def test_a_client_that_comes_back_takes_the_place_of_its_old_connection(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with (
        front_end(api.url, kernel_id, session="twice") as old,
        front_end(api.url, kernel_id, session="twice") as new,
    ):
        with pytest.raises(EOFError) as closed:
            await old.until(lambda got: False)
        assert result((await new.run("1 + 1"))[1]) == "2"
        assert (await api.get(f"/jupyter/api/kernels/{kernel_id}"))["connections"] == 1
    assert closed.value.args[0] == 4000


async def test_a_new_client_is_told_what_the_cell_that_runs_has_put_out(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    code = "h = display('old', display_id=True)\nprint('before', flush=True)\ninput()\nh.update('new')\nprint('after')"
    async with front_end(api.url, kernel_id) as first:
        msg_id = await first.execute(code)
        await first.until(lambda got: got.type == "input_request")
        async with front_end(api.url, kernel_id) as late:
            await late.until(lambda got: got.text == "before\n")
            await first.send("input_reply", {"value": "x"}, "stdin")
            await late.until(lambda got: got.state == "idle" and got.parent["msg_id"] == msg_id)

    told = [one for one in late.about(msg_id) if one.type != "status"]
    types = ["execute_input", "display_data", "stream", "update_display_data", "stream"]
    assert ([one.type for one in told], told[0].content["code"]) == (types, code)
    assert text_of(told) == "before\nafter\n"
    assert told[1].content["transient"] == told[3].content["transient"]


async def test_a_new_client_is_told_of_a_run_over_rest_likewise(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    code = "print('before', flush=True)\ninput()"
    async with api.stream(session_id, code) as events:
        async for event in events:
            if event.kind == "input_request":
                break
        async with front_end(api.url, kernel_id) as late:
            told = await late.until(lambda got: got.text == "before\n")
            await api.post(f"/api/sessions/{session_id}/input", {"text": "x"})
            ended = await late.until_state("idle")

    assert told.parent["msg_id"] == ended.parent["msg_id"]


async def test_what_came_before_a_client_has_spoken_comes_on_its_next_connection_too(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with front_end(api.url, kernel_id, session="twice") as unheeded:
        await api.run(session_id, "print('once')")
        await unheeded.until(lambda got: got.text == "once\n")
        async with front_end(api.url, kernel_id, session="twice") as heeded:
            await heeded.until(lambda got: got.text == "once\n")


async def test_of_two_connections_the_one_that_was_made_later_stays_whichever_asks_first(
    api: Api, session_id: str
) -> None:
    path = f"/jupyter/api/kernels/{await kernel_of(api, session_id)}/channels?session_id=twice"
    reader, writer = await asyncio.open_connection(api.http.base_url.host, api.http.base_url.port)
    async with front_end(api.url, path.split("/")[4], session="twice") as later:
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
        )
        answer = await reader.readuntil(b"\r\n\r\n")
        closing = await reader.readexactly(4)
        _, published = await later.run("1 + 1")
        writer.close()

    assert b" 101 " in answer.splitlines()[0]
    assert (closing[0], int.from_bytes(closing[2:])) == (0x88, 4000)
    assert result(published) == "2"


async def test_a_kernel_that_is_asked_something_while_a_cell_runs_is_still_busy(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with front_end(api.url, kernel_id) as client, front_end(api.url, kernel_id) as other:
        await client.execute("input()")
        await client.until(lambda got: got.type == "input_request")
        await other.outcome(await other.send("create_subshell_request", {}, "control"))

        await client.until(lambda got: got.state == "idle")
        assert (await client.until(lambda got: got.state is not None)).state == "busy"
        await client.send("input_reply", {"value": "x"}, "stdin")
        await client.until_state("idle")


async def test_a_client_without_a_session_id_begins_anew(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with front_end(api.url, kernel_id, session=None) as before:
        await before.run("print('before')")
    async with front_end(api.url, kernel_id, session=None) as after:
        await after.run("print('after')")
    assert text_of(after.seen) == "after\n"


async def test_a_kernel_that_dies_is_answered_for_and_started_again(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        await client.run("x = 1")
        reply, published = await client.run("import os; os._exit(3)")
        await client.until_state("restarting")
        await client.until_state("starting")
        await client.until_state("idle")
        again, _ = await client.run("1")

    assert (reply.content["status"], reply.content["ename"]) == ("error", "KernelDied")
    assert [one.content["ename"] for one in published if one.type == "error"] == ["KernelDied"]
    assert again.content["status"] == "ok"
    assert (await api.get(f"/api/sessions/{session_id}"))["state"] == "READY"


async def test_attaching_wakes_a_session_that_sleeps(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    await api.run(session_id, "x = 41")
    await api.post(f"/api/sessions/{session_id}/hibernate")

    async with front_end(api.url, kernel_id) as client:
        await client.until_state("idle")
        assert (await api.get(f"/api/sessions/{session_id}"))["state"] == "READY"
        assert result((await client.run("x + 1"))[1]) == "42"


async def test_a_front_end_stays_while_its_session_sleeps_and_wakes_it_with_a_cell(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        await client.run("x = 41")
        await api.post(f"/api/sessions/{session_id}/hibernate")
        _, published = await client.run("x + 1")

    states = [one.state for one in client.seen if one.state]
    assert result(published) == "42"
    assert "dead" not in states
    assert "shutdown_reply" not in {one.type for one in client.seen}


async def test_a_restart_over_rest_is_seen_by_front_ends(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        await client.run("x = 1")
        await api.post(f"/api/sessions/{session_id}/restart", {"state": "fresh"})
        await client.until_state("starting")
        await client.until_state("idle")
        assert result((await client.run("'x' in globals()"))[1]) == "False"


async def test_a_session_that_is_deleted_is_dead_to_its_front_ends(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        await client.run("x = 1")
        await api.call("DELETE", f"/api/sessions/{session_id}", expect=200)
        await client.until_state("dead")
        with pytest.raises(EOFError, match="deleted"):
            await client.until(lambda got: False)


@pytest.mark.parametrize("restart", [True, False])
async def test_a_shutdown_request_restarts_or_ends_the_kernel(api: Api, session_id: str, restart: bool) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with front_end(api.url, kernel_id) as client:
        await client.run("x = 1")
        reply, _ = await client.outcome(await client.send("shutdown_request", {"restart": restart}, "control"))
        await client.until_state("starting" if restart else "dead")
        if restart:
            assert result((await client.run("'x' in globals()"))[1]) == "False"
        else:
            with pytest.raises(EOFError):
                await client.until(lambda got: False)
            await api.get(f"/jupyter/api/kernels/{kernel_id}", 404)
            assert (await api.run(session_id, "x"))["result"] == "1"
    assert reply.content == {"status": "ok", "restart": restart}


async def test_a_page_from_elsewhere_is_refused(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)

    with pytest.raises(HTTPClientError) as refused:
        async with front_end(api.url, kernel_id, origin="https://evil.example"):
            pass
    async with front_end(api.url, kernel_id, origin=api.url, query="&token=abc") as client:
        assert (await client.run("1"))[0].content["status"] == "ok"
    assert refused.value.code == 403


async def test_an_unknown_kernel_and_a_plain_get_are_refused(api: Api, session_id: str) -> None:
    with pytest.raises(HTTPClientError) as refused:
        async with front_end(api.url, "1b4e28ba-2fa1-11d2-883f-0016d3cca427"):
            pass
    assert refused.value.code == 404
    assert (
        "websocket"
        in (await api.get(f"/jupyter/api/kernels/{await kernel_of(api, session_id)}/channels", 400))["message"]
    )


@pytest.mark.parametrize(
    "frame", ["no json", "{}", '{"header": {"msg_id": "x", "msg_type": "y"}, "channel": "no"}', b"x"]
)
async def test_what_is_no_message_ends_the_connection_with_a_reason(
    api: Api, session_id: str, frame: str | bytes
) -> None:
    async with front_end(api.url, await kernel_of(api, session_id), v1=isinstance(frame, bytes)) as client:
        await client.socket.write_message(frame, binary=isinstance(frame, bytes))
        with pytest.raises(EOFError) as closed:
            await client.until(lambda got: False)
    assert closed.value.args[0] == 1007
    assert closed.value.args[1]


async def test_a_request_that_is_sent_again_runs_once(api: Api, session_id: str) -> None:
    async with front_end(api.url, await kernel_of(api, session_id)) as client:
        await client.run("n = 0")
        for _ in range(2):
            await client.execute("n += 1", header={"msg_id": "same"})
        await client.outcome("same")
        assert result((await client.run("n"))[1]) == "1"


@pytest.mark.parametrize("session", ["same", "other", None])
async def test_a_cell_that_is_sent_again_on_another_connection_is_answered_and_not_run_again(
    api: Api, session_id: str, session: str | None
) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with front_end(api.url, kernel_id, session="same") as before:
        await before.run("n = 0")
        await before.run("n += 1\nprint('ran')\nn", header={"msg_id": f"again-{session_id}"})
    async with front_end(api.url, kernel_id, session=session) as after:
        reply, published = await after.run("n += 1\nprint('ran')\nn", header={"msg_id": f"again-{session_id}"})
        _, counted = await after.run("n")

    outputs = [one.type for one in published if one.type in ("stream", "execute_result")]
    assert (reply.content["status"], reply.content["execution_count"]) == ("ok", 2)
    assert result(counted) == "1"
    assert outputs == ([] if session == "same" else ["stream", "execute_result"])


async def test_a_cell_that_is_sent_again_while_it_runs_is_answered_when_it_ends(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with front_end(api.url, kernel_id) as before:
        await before.run("n = 0")
        await before.execute("print('on', flush=True); input(); n += 1", header={"msg_id": f"again-{session_id}"})
        await before.until(lambda got: got.type == "input_request")
        before.vanish()
    async with front_end(api.url, kernel_id) as after:
        await after.execute("n += 1", header={"msg_id": f"again-{session_id}"})
        await after.outcome(await after.send("kernel_info_request", {}))
        await api.post(f"/api/sessions/{session_id}/input", {"text": ""})
        reply, _ = await after.outcome(f"again-{session_id}")
        _, counted = await after.run("n")

    assert (reply.content["status"], result(counted)) == ("ok", "1")


async def test_a_frame_past_the_limit_ends_the_connection_and_nothing_else(tmp_path: Path, session_id: str) -> None:
    async with gateway_process(tmp_path / "data", body_limit_bytes=100_000) as own, Api(own.url) as api:
        kernel_id = await kernel_of(api, session_id)
        async with front_end(own.url, kernel_id) as other, front_end(own.url, kernel_id) as client:
            await client.execute("x = 1")
            await client.execute(f"x = {'1' * 200_000}")
            with pytest.raises(EOFError) as closed:
                await client.until(lambda got: False)
            assert result((await other.run("x"))[1]) == "1"
    assert closed.value.args[0] in (1009, None)


async def test_a_slow_client_is_sent_away_and_holds_up_nobody(tmp_path: Path, session_id: str) -> None:
    async with (
        gateway_process(tmp_path / "data", front_end_buffer_bytes=4_000_000) as gateway,
        Api(gateway.url) as api,
    ):
        kernel_id = await kernel_of(api, session_id)
        async with (
            front_end(gateway.url, kernel_id, session="slow") as slow,
            front_end(gateway.url, kernel_id) as quick,
        ):
            await slow.run("1")
            texts = [text_of((await quick.run("print('x' * 1_000_000)"))[1]) for _ in range(30)]
            with pytest.raises(EOFError) as closed:
                await slow.until(lambda got: False)
        async with front_end(gateway.url, kernel_id, session="slow") as back:
            await back.until(lambda got: "left out" in got.text)
            assert (await back.run("1"))[0].content["status"] == "ok"

    assert {len(text) for text in texts} == {1_000_001}
    assert closed.value.args[0] == 4013


async def test_outputs_past_the_limit_of_a_cell_are_cut_and_that_is_told(tmp_path: Path, session_id: str) -> None:
    async with gateway_process(tmp_path / "data", output_limit_bytes=10_000) as gateway, Api(gateway.url) as api:
        async with front_end(gateway.url, await kernel_of(api, session_id)) as client:
            _, published = await client.run("print('x' * 100_000)")
        (run,) = (await api.get(f"/api/sessions/{session_id}/history"))["history"]

    assert "past its limit" in text_of(published)
    assert len(text_of(published)) < 11_000
    assert run["truncated"]


@pytest.mark.slow
async def test_a_burst_reaches_quick_and_slow_clients_of_a_kernel_whole_and_in_order(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    code = "from IPython.display import display\nfor n in range(10_000): display({'text/plain': str(n)}, raw=True)"
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(front_end(api.url, kernel_id, v1=v1)) for v1 in (True, False, True)]
        *quick, slow = clients
        msg_id = await quick[0].execute(code)
        await asyncio.gather(*(until_idle(client, msg_id) for client in quick))
        await slow.until(lambda got: got.type == "display_data")  # it has read nothing until the others were done
        await until_idle(slow, msg_id)

    expected = [str(n) for n in range(10_000)]
    assert [shown(client) for client in clients] == [expected] * 3


@pytest.mark.slow
async def test_fifty_front_ends_of_ten_kernels_each_see_all_cells_of_theirs_and_nothing_else(api: Api) -> None:
    kernels = [await kernel_of(api, f"crowded-{n}") for n in range(10)]
    async with AsyncExitStack() as stack:
        crowd = [
            (number, seat, await stack.enter_async_context(front_end(api.url, kernel_id, v1=seat % 2 == 0)))
            for number, kernel_id in enumerate(kernels)
            for seat in range(5)
        ]
        await asyncio.gather(*(
            client.run(f"for n in range(10): print('{number} {seat}', n, flush=True)") for number, seat, client in crowd
        ))  # fmt: skip
        for _, _, client in crowd:
            while len(cells_seen(client)) < 5:
                await client.next()
        assert [(await api.get(f"/jupyter/api/kernels/{one}"))["connections"] for one in kernels] == [5] * 10

    for number, seat, client in crowd:
        expected = ["".join(f"{number} {any_seat} {n}\n" for n in range(10)) for any_seat in range(5)]
        assert sorted(text_of(client.about(msg_id)) for msg_id in cells_seen(client)) == expected
        replies = [got.parent["session"] for got in client.seen if got.type == "execute_reply"]
        assert replies == [client.session], f"{number} {seat}"
        assert len({got.header["msg_id"] for got in client.seen}) == len(client.seen)


async def test_a_cell_goes_on_without_its_front_end_and_is_on_record(api: Api, session_id: str) -> None:
    kernel_id = await kernel_of(api, session_id)
    async with front_end(api.url, kernel_id) as client:
        await client.run("import time")
        await client.execute("time.sleep(0.3); print('ended')")
        client.vanish()
    await api.run(session_id, "1")

    history = (await api.get(f"/api/sessions/{session_id}/history"))["history"]
    assert [(one["source"], one["stdout"]) for one in history][:2] == [("api", ""), ("jupyter", "ended\n")]


@pytest.mark.slow
@pytest.mark.parametrize("on_record", [True, False])
async def test_a_cell_of_a_front_end_survives_the_gateway_also_before_it_is_on_record(
    tmp_path: Path, on_record: bool
) -> None:
    async with gateway_process(tmp_path / "data") as own, Api(own.url) as api:
        async with front_end(own.url, await kernel_of(api, "lasting")) as client:
            await client.run("import time")
            msg_id = await client.execute("print('on', flush=True)\ntime.sleep(3)\nprint('ended')")
            await client.until(lambda got: got.text == "on\n")
            if on_record:
                await api.get(f"/api/sessions/lasting/executions/{msg_id}", 200)
                await api.get("/api/sessions/lasting/history", 200)  # which waits for what is to be written
            await own.kill()
        if not on_record:
            with closing(sqlite3.connect(own.data_dir / "gateway.sqlite")) as store, store:
                store.execute("DELETE FROM executions WHERE id = ?", (msg_id,))
        await own.start()
        await api.run("lasting", "1")

        run = await api.get(f"/api/sessions/lasting/executions/{msg_id}")
    assert (run["source"], run["status"], run["stdout"]) == ("jupyter", "ok", "on\nended\n")
