"""What is taken for personal data, what is not, and how much of a text's end waits for more."""

import time

import pytest

from gateway.services.pii import find, luhn, unfinished


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("alice@example.com", "email"),
        ("a.b+c%d@sub.example.co.uk", "email"),
        ("alice%40example.com", "email"),
        ("4111 1111 1111 1111", "card"),
        ("4111-1111-1111-1111", "card"),
        ("378282246310005", "card"),
        ("2222405343248877", "card"),
        ("+49 30 1234567", "phone"),
        ("0049 30 1234567", "phone"),
        ("+1 (555) 123-4567", "phone"),
        ("(555) 123-4567", "phone"),
        ("555.123.4567", "phone"),
        ("123-45-6789", "id"),
        ("DE89 3704 0044 0532 0130 00", "id"),
        ("GB29NWBK60161331926819", "id"),
        ("AB 12 34 56 C", "id"),
        ("12345678Z", "id"),
    ],
)
def test_personal_data_is_found_whole_wherever_it_stands(text: str, kind: str) -> None:
    for before, after in [
        ("", ""),
        ("It is ", "."),
        ('{"x": "', '"}'),
        ("\x1b[32m'", "'\x1b[39m\n"),
        ("<td>", "</td>"),
    ]:
        (one,) = find(f"{before}{text}{after}")
        assert (one.kind, one.start, one.end) == (kind, len(before), len(before) + len(text))


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",  # no card: its check digit is another
        "0000 0000 0000 0000",
        "1732516800123456789",  # nanoseconds
        "1732516800123",
        "3.14159265358979",
        "192.168.100.200",
        "2026-01-20T10:00:00.123456Z",
        "550e8400-e29b-41d4-a716-446655440000",
        "12345678-1234-1234-1234-123456789012",
        "a4111111111111111",
        "100 200 300 400 500",
        "[0.1, 0.22, 0.333]",
        "user@host",
        "@decorator",
        "1e-4111111111111111",
        "000-12-3456",
        "DE88370400440532013000",
        "v1.2.3-4567",
        "torch==2.9.1+cu128",
    ],
)
def test_what_only_looks_alike_is_left_alone(text: str) -> None:
    assert find(text) == []
    assert find(f"x = {text}\n") == []


def test_a_colour_inside_a_number_hides_nothing() -> None:
    text = "card \x1b[36m4111\x1b[0m111111111111."

    (one,) = find(text)

    assert text[one.start : one.end] == "4111\x1b[0m111111111111"


def test_only_the_kinds_that_are_asked_for_are_found() -> None:
    assert [one.kind for one in find("a@example.com, +49 30 1234567", ("phone",))] == ["phone"]


@pytest.mark.parametrize(
    ("text", "waits"),
    [
        ("done\n", ""),
        ("It is alice@exam", "alice@exam"),
        ("card 4111 1111 ", "4111 1111 "),
        ("call (555) 1", "(555) 1"),
        ("GB29 NWBK 6016 ", "GB29 NWBK 6016 "),
        (".....", ""),
        ("50 %|#####", ""),
    ],
)
def test_what_may_become_something_waits(text: str, waits: str) -> None:
    assert text[unfinished(text) :] == waits


def test_no_more_waits_than_anything_takes() -> None:
    assert len("a" * 100_000) - unfinished("a" * 100_000) <= 320


def test_the_check_digit_of_a_card_decides() -> None:
    assert [luhn(f"411111111111111{digit}") for digit in range(10)].count(True) == 1


@pytest.mark.parametrize("piece", ["a", "1", "1 ", "a.", "x@", "a@b.", "(555) ", "+1 23 ", "GB29 ", "\x1b[0m1"])
def test_no_text_takes_long(piece: str) -> None:
    """Patterns that go back and forth would take minutes for these."""
    text = piece * (200_000 // len(piece))
    began = time.process_time()

    find(text)

    assert time.process_time() - began < 3
