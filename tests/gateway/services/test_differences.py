"""What counts as the same output: addresses and times may differ, data may not."""

import base64
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from gateway.services.differences import difference

BEFORE = datetime(2026, 1, 20, 10, 0, 0, 123456, tzinfo=UTC)
AFTER = BEFORE + timedelta(days=40, hours=5)


def stream(text: str, name: str = "stdout") -> dict[str, Any]:
    return {"output_type": "stream", "name": name, "text": text}


def bundle(**data: Any) -> dict[str, Any]:
    named = {name.replace("_", "/"): value for name, value in data.items()}
    return {"output_type": "display_data", "data": named, "metadata": {}}


def differ(before: str, after: str) -> str | None:
    return difference([stream(before)], BEFORE, [stream(after)], AFTER)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("<object at 0x7f785346f7a0>", "<object at 0x7f0123456789>"),
        (f"{BEFORE.timestamp()}", f"{AFTER.timestamp()}"),
        (f"{int(BEFORE.timestamp() * 1000)}", f"{int(AFTER.timestamp() * 1000)}"),
        (f"{int(BEFORE.timestamp() * 10**9)}", f"{int(AFTER.timestamp() * 10**9)}"),
        (f"{BEFORE.isoformat()}", f"{AFTER.isoformat()}"),
        (f"{BEFORE:%Y-%m-%d %H:%M:%S}", f"{AFTER:%Y-%m-%d %H:%M:%S}"),
        (f"{BEFORE:%Y-%m-%d}", f"{AFTER:%Y-%m-%d}"),
        ("at 10:00:01.5", "at 9:59:59"),
        ("took 1.23 s", "took 4.56 s"),
        ("12.3 ms ± 4.56 µs per loop", "9.8 ms ± 1.2 ms per loop"),
        ("CPU times: user 3.2 ms, sys: 1 ms\nWall time: 5 s", "CPU times: user 9 ms, sys: 2 ms\nWall time: 17 ms"),
        ("1ba1b2bb-fea1-4189-8f8c-b49d89079a4b", "2ba1b2bb-fea1-4189-8f8c-b49d89079a4c"),
        ("\x1b[31mred\x1b[0m", "red"),
    ],
)
def test_addresses_times_and_made_up_ids_are_ignored(before: str, after: str) -> None:
    assert differ(before, after) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a", "b"),
        ("1", "2"),
        ("1700000000", "1700000001"),
        ("2020-01-01", "2020-01-02"),
        ("2020-01-01 00:00:00", "2020-01-02 00:00:00"),
        ("ratio 16:9", "ratio 4:3"),
        ("0x1f", "0x2f"),
        ("version 1.2.3", "version 1.2.4"),
        ("5 items", "6 items"),
        ("x", "x\ny"),
    ],
)
def test_data_is_not_even_if_it_looks_like_a_time(before: str, after: str) -> None:
    assert differ(before, after) is not None


def test_the_difference_is_told_line_by_line() -> None:
    told = differ("same\nold\nend", "same\nnew\nend")

    assert told is not None
    assert told.splitlines()[:2] == ["--- before", "+++ after"]
    assert told.splitlines()[-3:] == ["-old", "+new", " end"]


def test_which_stream_came_first_is_no_difference_but_which_one_it_was_is() -> None:
    mixed = [stream("a\n"), stream("x\n", "stderr"), stream("b\n")]
    apart = [stream("x\n", "stderr"), stream("a\nb\n")]

    assert difference(mixed, BEFORE, apart, AFTER) is None
    assert difference([stream("a")], BEFORE, [stream("a", "stderr")], AFTER) is not None


def test_errors_are_the_same_by_name_and_words_whatever_the_traceback() -> None:
    def error(evalue: str, line: str) -> list[dict[str, Any]]:
        return [{"output_type": "error", "ename": "ValueError", "evalue": evalue, "traceback": [line]}]

    assert difference(error("bad at 0x7f785346f7a0", "a"), BEFORE, error("bad at 0x7f785346f7b0", "b"), AFTER) is None
    assert difference(error("bad", "a"), BEFORE, error("worse", "a"), AFTER) is not None


def test_pictures_are_compared_byte_by_byte_and_told_by_their_digest() -> None:
    one, two = (base64.b64encode(raw).decode() for raw in (b"one", b"two"))

    assert difference([bundle(image_png=one)], BEFORE, [bundle(image_png=f"{one}\n")], AFTER) is None
    told = difference([bundle(image_png=one)], BEFORE, [bundle(image_png=two)], AFTER)
    assert told is not None
    assert "3 bytes, sha256" in told
    assert one not in told


def test_json_is_compared_as_what_it_says() -> None:
    before, after = bundle(application_json={"a": 1, "b": [2]}), bundle(application_json={"b": [2], "a": 1})

    assert difference([before], BEFORE, [after], AFTER) is None


def test_a_result_and_a_display_are_not_the_same() -> None:
    shown = bundle(text_plain="1")

    assert difference([shown], BEFORE, [{**shown, "output_type": "execute_result"}], AFTER) is not None


def test_a_difference_stays_small_however_much_there_is() -> None:
    before, after = ("\n".join(f"{prefix}{n}" for n in range(100_000)) for prefix in "ab")

    told = differ(before, after)

    assert told is not None
    assert len(told) <= 20_000


def test_a_difference_far_down_is_found() -> None:
    same = "\n".join(["x"] * 5000)

    assert differ(f"{same}\na", f"{same}\nb") == "They differ after line 2000."
