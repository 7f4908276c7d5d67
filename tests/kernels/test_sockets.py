"""Sockets on the event loop, with real peers: libzmq's, and such as say whatever they like."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import zmq

from kernels import intake as intakes
from kernels.intake import Intake
from kernels.sockets import Socket, Unread
from kernels.zmtp import Cut, framed

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x06\x05READY"
MEBI = 2**20


class Heard:
    """What has come on a socket."""

    def __init__(self) -> None:
        self.messages: list[list[bytes]] = []
        self.broken: list[Exception] = []
        self._changed = asyncio.Event()

    def take(self, messages: list[list[bytes]]) -> None:
        self.messages += messages
        self._changed.set()

    def broke(self, error: Exception) -> None:
        self.broken.append(error)
        self._changed.set()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not true():
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def context() -> Iterator["zmq.Context[zmq.Socket[bytes]]"]:
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def echo(context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path) -> Iterator[str]:
    """The path of a peer that sends everything back, until it is sent `end`."""
    address = f"{tmp_path}/echo"
    peer = context.socket(zmq.ROUTER)
    peer.set_hwm(0)
    peer.bind(f"ipc://{address}")

    def answer() -> None:
        while (frames := peer.recv_multipart())[-1] != b"end":
            peer.send_multipart(frames)
        peer.close()

    thread = threading.Thread(target=answer)
    thread.start()
    yield address
    with context.socket(zmq.DEALER) as last:
        last.connect(f"ipc://{address}")
        last.send(b"end")
        thread.join()


@contextmanager
def peer(path: Path, *talks: Callable[[socket.socket], None]) -> Iterator[str]:
    """The path of something that listens there, and says on each connection that comes what one of these says."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()

        def serve() -> None:
            for talk in talks:
                with suppress(OSError), listening.accept()[0] as connection:
                    talk(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield str(path)
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(20)


def says(*pieces: bytes) -> Callable[[socket.socket], None]:
    def talk(connection: socket.socket) -> None:
        for piece in (GREETING, READY, *pieces):
            connection.sendall(piece)
        connection.recv(MEBI)
        while connection.recv(MEBI):  # until the other side has enough
            pass

    return talk


def frame(size: int, *, more: bool = False, content: bytes = b"") -> bytes:
    return bytes([3 if more else 2]) + size.to_bytes(8) + content


async def test_no_answer_is_missed_however_sends_and_answers_meet(echo: str) -> None:
    count, heard = 2000, Heard()
    client = Socket(echo, "DEALER", Intake(), heard.take, heard.broke, identity=b"me")

    for number in range(count):
        client.send([str(number).encode(), b""])
        if number % 7 == 0:
            await asyncio.sleep(0)

    await heard.until(lambda: len(heard.messages) == count)
    assert heard.messages == [[str(number).encode(), b""] for number in range(count)]
    client.close()


async def test_what_was_sent_before_there_was_a_peer_arrives_when_it_comes(
    context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path
) -> None:
    heard = Heard()
    client = Socket(f"{tmp_path}/late", "DEALER", Intake(), heard.take, heard.broke)
    client.send([b"early", b"x" * 300])
    await asyncio.sleep(0.05)

    with context.socket(zmq.ROUTER) as late:
        late.bind(f"ipc://{tmp_path}/late")
        frames = await asyncio.to_thread(late.recv_multipart)

    assert frames[1:] == [b"early", b"x" * 300]
    client.close()


async def test_messages_of_any_size_come_whole_over_unix_sockets_and_tcp(
    context: "zmq.Context[zmq.Socket[bytes]]", tmp_path: Path
) -> None:
    sizes = [0, 1, 255, 256, 16_000, 16_385, 49_000, 70_000, 300_000, 5_000_000]
    sent = [[b"topic", bytes([number]) * size, b"", b"end"] for number, size in enumerate(sizes)]
    with context.socket(zmq.XPUB) as publisher:
        publisher.sndhwm = 0
        port = publisher.bind_to_random_port("tcp://127.0.0.1")
        publisher.bind(f"ipc://{tmp_path}/pub")
        for address in (("127.0.0.1", port), f"{tmp_path}/pub"):
            heard = Heard()
            subscriber = Socket(address, "SUB", Intake(), heard.take, heard.broke)
            assert await asyncio.to_thread(publisher.recv) == b"\x01"
            for message in sent:
                await asyncio.to_thread(publisher.send_multipart, message)
            await heard.until(lambda: len(heard.messages) == len(sent))  # noqa: B023
            assert heard.messages == sent
            subscriber.close()
            assert await asyncio.to_thread(publisher.recv) == b"\x00"


async def test_a_message_that_is_too_large_passes_by_and_the_next_ones_come(tmp_path: Path) -> None:
    small = framed([b"small"])
    hostile = [
        framed([b"head", b"parent"])[:-8] + b"\x01\x06parent" + frame(3 * MEBI, content=bytes(3 * MEBI)),
        b"".join(frame(MEBI // 2, more=True, content=bytes(MEBI // 2)) for _ in range(8)) + b"\x00\x00",
        b"\x01\x00" * 100_000 + b"\x00\x00",
        frame(1 << 40),  # it never ends
    ]
    with peer(tmp_path / "peer", says(*(part for one in hostile for part in (one, small)))) as address:
        heard = Heard()
        subscriber = Socket(address, "SUB", Intake(2 * MEBI), heard.take, heard.broke)
        await heard.until(lambda: len(heard.messages) == 6)

        assert [type(message) for message in heard.messages] == [Cut, list] * 3
        assert heard.messages[0] == [b"head", b"parent"]
        assert heard.messages[1::2] == [[b"small"]] * 3
        subscriber.close()


async def test_who_holds_room_for_a_large_message_and_does_not_get_on_makes_way_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intakes, "PATIENCE_S", 0.2)
    whole = frame(MEBI, content=bytes(MEBI))
    with (
        peer(tmp_path / "slow", says(whole[:-1])) as slow_address,
        peer(tmp_path / "other", says(whole, framed([b"next"]))) as other_address,
    ):
        intake, slow, other = Intake(MEBI), Heard(), Heard()
        first = Socket(slow_address, "SUB", intake, slow.take, slow.broke)
        await asyncio.sleep(0.1)
        second = Socket(other_address, "SUB", intake, other.take, other.broke)

        await other.until(lambda: len(other.messages) == 2)

        assert [len(message[0]) for message in other.messages] == [MEBI, 4]
        assert slow.messages == []
        first.close()
        second.close()


@pytest.mark.parametrize(
    "garbage",
    [b"HTTP/1.1 200 OK\r\n\r\n" + bytes(64), b"\xff" + bytes(8) + b"\x7f\x01\x00" + bytes(52), b"\x88" * 200],
    ids=["another protocol", "an old one", "an unknown kind of frame"],
)
async def test_what_says_no_zmtp_is_left_and_tried_again(tmp_path: Path, garbage: bytes) -> None:
    def talk(connection: socket.socket) -> None:
        connection.sendall(GREETING + garbage if garbage[0] == 0x88 else garbage)
        while connection.recv(MEBI):
            pass

    heard = Heard()
    with peer(tmp_path / "peer", talk, talk, says(framed([b"at last"]))) as address:
        subscriber = Socket(address, "SUB", Intake(), heard.take, heard.broke)
        await heard.until(lambda: bool(heard.messages))

        assert heard.messages == [[b"at last"]]
        assert heard.broken == []
        subscriber.close()


async def test_a_peer_that_never_reads_is_given_up(tmp_path: Path) -> None:
    over = threading.Event()

    def waits(connection: socket.socket) -> None:
        over.wait(20)

    with peer(tmp_path / "peer", waits) as address:
        heard = Heard()
        client = Socket(address, "DEALER", Intake(), heard.take, heard.broke)
        for _ in range(70):
            client.send([bytes(MEBI)])

        assert [type(error) for error in heard.broken] == [Unread]
        assert client.closed
        over.set()


async def test_what_breaks_while_a_message_is_taken_is_told_once_and_ends_the_reading(echo: str) -> None:
    heard = Heard()

    def take(messages: list[list[bytes]]) -> None:
        raise ZeroDivisionError

    client = Socket(echo, "DEALER", Intake(), take, heard.broke)
    for _ in range(3):
        client.send([b"x"])

    await heard.until(lambda: bool(heard.broken))
    await asyncio.sleep(0.05)
    assert [type(error) for error in heard.broken] == [ZeroDivisionError]
    client.close()
