"""Labels, and the selectors that filter by them."""

import pytest
from pydantic import TypeAdapter, ValidationError

from gateway.errors import Invalid
from gateway.models.labels import Labels, Operator, Requirement, parse_json_filter, parse_selector

_LABELS = {"project": "demo", "env": "test", "example.com/tier": "front end"}


def test_a_selector_reads_every_form_of_the_grammar() -> None:
    assert parse_selector("project=demo, env in (test,prod) ,team!=backend,tier,!legacy,a==b,x notin (y)") == (
        Requirement("project", Operator.IN, ("demo",)),
        Requirement("env", Operator.IN, ("test", "prod")),
        Requirement("team", Operator.NOT_IN, ("backend",)),
        Requirement("tier", Operator.EXISTS),
        Requirement("legacy", Operator.ABSENT),
        Requirement("a", Operator.IN, ("b",)),
        Requirement("x", Operator.NOT_IN, ("y",)),
    )


def test_a_selector_reads_keys_with_dots_and_slashes() -> None:
    assert parse_selector("example.com/tier.name=front end") == (
        Requirement("example.com/tier.name", Operator.IN, ("front end",)),
    )


def test_a_value_may_hold_an_equals_sign() -> None:
    assert parse_selector("a=b=c") == (Requirement("a", Operator.IN, ("b=c",)),)


@pytest.mark.parametrize("text", ["", "  "])
def test_an_empty_selector_asks_for_nothing(text: str) -> None:
    assert parse_selector(text) == ()


def test_a_key_named_like_an_operator_is_a_key() -> None:
    assert parse_selector("in,notin in (in)") == (
        Requirement("in", Operator.EXISTS),
        Requirement("notin", Operator.IN, ("in",)),
    )


@pytest.mark.parametrize(
    "text",
    [
        "a=", "=a", "a,", ",a", "a in ()", "a in (b", "a in b", "!", "!a=b", "a b", "-a", "a in (b,)",
        "a/b/c", "Caps/a", "a=" + "x" * 257, "a" * 64, "a,,b", "a\0",
    ],
)  # fmt: skip
def test_a_selector_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="label_selector"):
        parse_selector(text)


@pytest.mark.timeout(5)
def test_a_hostile_selector_is_answered_at_once() -> None:
    with pytest.raises(Invalid):
        parse_selector("a in (" + " " * 50_000 + "!")


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("project=demo", True),
        ("project=other", False),
        ("missing=demo", False),
        ("project!=demo", False),
        ("project!=other", True),
        ("missing!=demo", True),
        ("env in (prod,test)", True),
        ("env notin (prod,test)", False),
        ("missing notin (a)", True),
        ("example.com/tier", True),
        ("missing", False),
        ("!missing", True),
        ("!env", False),
    ],
)
def test_a_requirement_matches_as_kubernetes_would(text: str, matches: bool) -> None:
    assert all(requirement.matches(_LABELS) for requirement in parse_selector(text)) is matches


def test_a_json_filter_asks_for_all_of_its_labels() -> None:
    assert parse_json_filter('{"project": "demo", "a.b/c": "d,e"}') == (
        Requirement("project", Operator.IN, ("demo",)),
        Requirement("a.b/c", Operator.IN, ("d,e",)),
    )


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": ""}', '{"": "a"}', '{"a": "\\u0000"}', '"a"'])
def test_a_json_filter_that_is_no_map_of_labels_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="labels"):
        parse_json_filter(text)


def test_labels_are_checked_one_by_one_and_counted() -> None:
    labels = TypeAdapter(Labels)

    assert labels.validate_python({f"k{n}": "v" for n in range(64)})
    for wrong in ({f"k{n}": "v" for n in range(65)}, {"": "v"}, {"k": ""}, {"k": "\ud800"}, {"k\n": "v"}):
        with pytest.raises(ValidationError):
            labels.validate_python(wrong)
