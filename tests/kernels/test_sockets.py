"""Sockets on the event loop, with a real peer on a thread of its own."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import zmq

from kernels.sockets import Socket


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def echo(context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path) -> Iterator[str]:
    """The address of a peer that sends everything back, until it is sent `end`."""
    address = f"ipc://{tmp_path}/echo"
    peer = context.socket(zmq.ROUTER)
    peer.set_hwm(0)
    peer.bind(address)

    def answer() -> None:
        while (frames := peer.recv_multipart())[-1] != b"end":
            peer.send_multipart(frames)
        peer.close()

    thread = threading.Thread(target=answer)
    thread.start()
    yield address
    with context.socket(zmq.DEALER) as last:
        last.connect(address)
        last.send(b"end")
        thread.join()


def connected(context: "zmq.Context[zmq.Socket[bytes]]", address: str) -> "zmq.Socket[bytes]":
    raw = context.socket(zmq.DEALER)
    raw.linger = 0
    raw.set_hwm(0)
    raw.connect(address)
    return raw


async def test_no_answer_is_missed_however_sends_and_answers_meet(
    context: "zmq.Context[zmq.Socket[bytes]]", echo: str
) -> None:
    count, heard, all_heard = 2000, [], asyncio.Event()

    def take(frames: Sequence[bytes]) -> None:
        heard.append(int(frames[0]))
        if len(heard) == count:
            all_heard.set()

    socket = Socket(connected(context, echo), take, lambda error: None)
    for number in range(count):
        socket.send([str(number).encode()])
        if number % 7 == 0:
            await asyncio.sleep(0)

    async with asyncio.timeout(20):
        await all_heard.wait()
    assert heard == list(range(count))
    socket.close()


async def test_what_breaks_while_a_message_is_taken_is_told_once_and_ends_the_reading(
    context: "zmq.Context[zmq.Socket[bytes]]", echo: str
) -> None:
    told: list[Exception] = []
    broken = asyncio.Event()

    def take(frames: Sequence[bytes]) -> None:
        raise ZeroDivisionError

    def broke(error: Exception) -> None:
        told.append(error)
        broken.set()

    socket = Socket(connected(context, echo), take, broke)
    for _ in range(3):
        socket.send([b"x"])

    async with asyncio.timeout(20):
        await broken.wait()
    await asyncio.sleep(0.05)
    assert [type(error) for error in told] == [ZeroDivisionError]
    socket.close()
