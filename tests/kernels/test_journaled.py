"""Runs, told from a journal alone."""

from collections.abc import AsyncIterator
from typing import Any

from kernels.journal import Entry
from kernels.journaled import past_runs, retold
from kernels.messages import Wire

WIRE = Wire("key")
BUSY = ("status", {"execution_state": "busy"})
BEGUN = ("execute_input", {"code": "print('a')", "execution_count": 3})
IDLE = ("status", {"execution_state": "idle"})


def said(text: str) -> tuple[str, dict[str, Any]]:
    return "stream", {"name": "stdout", "text": text}


def message(what: tuple[str, dict[str, Any]], run_id: str = "run", wire: Wire = WIRE) -> tuple[bytes, ...]:
    return b"topic", *wire.request(*what, parent={"msg_id": run_id})[1]


async def journal(*messages: tuple[bytes, ...] | None) -> AsyncIterator[Entry]:
    """Entries of messages; None is one that was lost."""
    lost = 0
    for number, frames in enumerate(messages, start=1):
        if frames is None:
            lost += 1
        else:
            yield Entry(number, frames, lost)
            lost = 0


async def told(*messages: tuple[bytes, ...] | None) -> tuple[str, dict[str, Any] | None, bool]:
    """What is retold of the run: what it printed, its reply, whether something may be missing."""
    found = await retold(journal(*messages), WIRE, "run", output_limit_bytes=1000)
    printed = "".join(output.get("text", "") for output in found.outputs.as_nbformat())
    return printed, found.reply, found.outputs.truncated


async def test_a_run_is_told_from_its_own_messages_alone() -> None:
    printed, reply, truncated = await told(
        message(BEGUN, "other"), message(BUSY), message(BEGUN), message(said("other"), "other"), message(said("a\n")),
        message(said("forged"), wire=Wire("another key")), (b"no message",), (), message(IDLE, "other"), message(IDLE),
    )  # fmt: skip

    assert (printed, truncated) == ("a\n", True)  # of a message that was too large for the journal nothing is known
    assert reply is not None
    assert (reply["status"], reply["execution_count"]) == ("ok", 3)


async def test_a_run_that_failed_is_told_with_its_error() -> None:
    failed = ("error", {"ename": "E", "evalue": "v", "traceback": ["line"]})

    _, reply, _ = await told(message(BUSY), message(BEGUN), message(failed), message(IDLE))

    assert reply == {"status": "error", "ename": "E", "evalue": "v", "traceback": ["line"], "execution_count": 3}


async def test_a_run_without_an_end_has_no_reply() -> None:
    assert await told(message(BUSY), message(BEGUN), message(said("a"))) == ("a", None, False)


async def test_what_the_journal_has_lost_is_told_when_it_may_be_of_the_run() -> None:
    whole = [message(BEGUN), message(said("a")), message(IDLE)]

    assert (await told(None, *whole))[2] is False
    assert (await told(*whole, None, message(said("late"), "other")))[2] is False
    assert (await told(whole[0], None, *whole[1:]))[2] is True
    assert (await told(None, *whole[1:]))[2] is True


async def test_runs_are_listed_in_order_with_those_that_have_not_ended() -> None:
    entries = journal(
        message(BUSY, "info"), message(IDLE, "info"), message(BEGUN, "one"), message(IDLE, "one"),
        message(("execute_input", {"code": 5, "execution_count": "x"}), "two"), message(said("a"), "two"), (b"?",),
    )  # fmt: skip

    runs = await past_runs(entries, WIRE)

    assert [(run.run_id, run.code, run.execution_count, run.ended) for run in runs] == [
        ("one", "print('a')", 3, True),
        ("two", "", None, False),
    ]
    assert all(run.started_at is not None for run in runs)
