"""What guardrails make of a kernel's messages: across chunks, in every kind of output, and when one of them fails."""

import itertools
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.services.guardrail import Found, Guardrail, NoPiiExposure
from gateway.services.sieve import Redactor, Sieve, Tally
from kernels.messages import Message, made

RUN = {"msg_id": "run-1"}


class Secrets(Guardrail):
    """One's own: the word."""

    redacts = True

    def find(self, text: str) -> Iterable[Found]:
        at = text.find("hunter2")
        return [] if at < 0 else [Found(at, at + 7, "password", "***")]


class Broken(Secrets):
    def find(self, text: str) -> Iterable[Found]:
        raise RuntimeError("It never works.")


class Bench:
    def __init__(self, *rules: tuple[str, Guardrail]) -> None:
        self.tally = Tally()
        self.sieve = Sieve(Redactor(rules or (("no-pii-exposure", NoPiiExposure(None)),)), self.tally)

    def say(self, msg_type: str, content: dict[str, Any], parent: dict[str, Any] | None = None) -> list[Message]:
        return list(self.sieve.take(made(msg_type, content, session="kernel", parent=parent or RUN)))

    def stream(self, text: str, name: str = "stdout", parent: dict[str, Any] | None = None) -> str:
        return text_of(self.say("stream", {"name": name, "text": text}, parent))

    def idle(self, parent: dict[str, Any] | None = None) -> str:
        return text_of(self.say("status", {"execution_state": "idle"}, parent))


def text_of(messages: list[Message]) -> str:
    return "".join(one.content["text"] for one in messages if one.type == "stream")


@given(st.lists(st.integers(0, 200), max_size=8))
def test_wherever_a_stream_is_cut_nothing_of_it_slips_through(cuts: list[int]) -> None:
    text = "Ask alice@example.com, or +49 30 1234567 (card 4111 1111 1111 1111). Id 123-45-6789!\nDone... 100 %"
    places = [0, *sorted({min(cut, len(text)) for cut in cuts}), len(text)]
    bench = Bench()

    heard = "".join(bench.stream(text[a:b]) for a, b in itertools.pairwise(places)) + bench.idle()

    assert heard == "Ask [email], or [phone] (card [card]). Id [id]!\nDone... 100 %"
    assert bench.tally.of("run-1") == {"no-pii-exposure": {"email": 1, "phone": 1, "card": 1, "id": 1}}


def test_other_outputs_between_two_halves_do_not_help() -> None:
    bench = Bench()

    heard = bench.stream("bob@exam") + bench.stream("a warning\n", "stderr")
    (shown,) = bench.say("display_data", {"data": {"text/plain": "a plot"}, "metadata": {}})
    heard += bench.stream("ple.com\n")

    assert heard == "a warning\n[email]\n"
    assert shown.content["data"] == {"text/plain": "a plot"}


def test_what_waits_is_let_go_when_its_own_cell_ends_and_not_before() -> None:
    bench = Bench()

    assert bench.stream("bob@exam") == ""
    assert bench.idle({"msg_id": "another"}) == ""
    assert bench.idle() == "bob@exam"
    assert bench.stream("late@exam") == ""  # of a thread that goes on
    assert bench.idle({"msg_id": "another"}) == "late@exam"


def test_a_kernel_that_ends_leaves_nothing_behind() -> None:
    bench = Bench()
    assert bench.stream("half a wor") == "half a "
    assert text_of(list(bench.sieve.rest())) == "wor"
    assert list(bench.sieve.rest()) == []


def test_lines_go_through_as_they_are_written() -> None:
    bench = Bench()
    whole = made("stream", {"name": "stdout", "text": "a line\n"}, session="kernel", parent=RUN)

    assert [bench.stream(text) for text in ("1/3\r", "2/3\r", "...", ".", "done\n")] == [
        "1/3\r",
        "2/3\r",
        "...",
        ".",
        "done\n",
    ]
    assert list(bench.sieve.take(whole)) == [whole]


BOB = {"data": {"text/plain": "bob@example.com"}}
TOLD = {"data": {"text/plain": "[email]"}}


@pytest.mark.parametrize(
    ("msg_type", "content", "told"),
    [
        ("execute_result", BOB, TOLD),
        (
            "display_data",
            {"data": {"application/json": {"bob@example.com": [4111111111111111, 5]}, "image/png": "a@example.com"}},
            {"data": {"application/json": {"[email]": ["[card]", 5]}, "image/png": "a@example.com"}},
        ),
        ("update_display_data", BOB, TOLD),
        (
            "error",
            {"ename": "E", "evalue": "no bob@example.com", "traceback": ["\x1b[31mE\x1b[0m: bob@example.com"]},
            {"ename": "E", "evalue": "no [email]", "traceback": ["\x1b[31mE\x1b[0m: [email]"]},
        ),
        ("execute_reply", {"status": "error", "evalue": "bob@example.com"}, {"status": "error", "evalue": "[email]"}),
        (
            "execute_reply",
            {"payload": [BOB], "user_expressions": {"x": BOB}},
            {"payload": [TOLD], "user_expressions": {"x": TOLD}},
        ),
        (
            "comm_msg",
            {"comm_id": "c1", "data": {"state": {"v": BOB}}},
            {"comm_id": "c1", "data": {"state": {"v": TOLD}}},
        ),
        ("input_request", {"prompt": "bob@example.com? "}, {"prompt": "[email]? "}),
        ("inspect_reply", {"found": True, **BOB}, {"found": True, **TOLD}),
    ],
)
def test_every_kind_of_output_is_looked_through(msg_type: str, content: dict[str, Any], told: dict[str, Any]) -> None:
    said = made(msg_type, content, session="kernel", parent=RUN)

    (heard,) = Bench().sieve.take(said)

    assert heard.content == told
    assert (heard.id, heard.parent, heard.type) == (said.id, said.parent, said.type)


def test_code_and_states_are_no_outputs() -> None:
    bench = Bench()
    for msg_type in ("execute_input", "status"):
        said = made(msg_type, {"code": "'bob@example.com'", "execution_state": "busy"}, session="kernel", parent=RUN)
        assert list(bench.sieve.take(said)) == [said]


def test_the_same_message_read_again_from_a_journal_is_counted_once() -> None:
    bench = Bench()
    said = made("error", {"evalue": "bob@example.com"}, session="kernel", parent=RUN)

    bench.sieve.take(said)
    Sieve(Redactor((("no-pii-exposure", NoPiiExposure(None)),)), bench.tally).take(said)

    assert bench.tally.of("run-1") == {"no-pii-exposure": {"email": 1}}


def test_ones_own_guardrail_sees_whole_lines() -> None:
    bench = Bench(("secrets", Secrets(None)), ("no-pii-exposure", NoPiiExposure(None)))

    heard = bench.stream("pw hun") + bench.stream("ter2 of bob@exa") + bench.stream("mple.com\nnext")

    assert heard == "pw *** of [email]\n"
    assert bench.idle() == "next"


def test_a_guardrail_that_fails_lets_nothing_through() -> None:
    bench = Bench(("broken", Broken(None)))

    assert bench.stream("hunter2\n") == "[withheld: guardrail broken failed]"
    (shown,) = bench.say("execute_result", {"data": {"text/plain": "hunter2"}})
    assert shown.content["data"] == {"text/plain": "[withheld: guardrail broken failed]"}
