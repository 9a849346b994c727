"""`begins` on the many ways a value is written, and on what only looks like it."""

from __future__ import annotations

import numpy as np
import pytest

from memdefense import pii
from memdefense.benchmarks.draws import Draws
from memdefense.benchmarks.mail_people import write
from memdefense.match import begins, edits, written_like

WRITTEN = [
    ("email", "ann.lee@corp.com", "ann.lee@corp.com"),
    ("email", "ann.lee@corp.com", "  <Ann.Lee@CORP.com>, and more"),
    ("email", "ann.lee@corp.com", "mailto:ann.lee@corp.com\nBest"),
    ("email", "ann.lee@corp.com", "ann.lee@corp.com. See you"),
    ("email", "ann.lee@corp.com", "ann.lee@corp.com- see you"),
    ("email", "ann.lee@corp.com", "ann.lee@\n> corp.com\nBest"),
    ("email", "ann.lee@corp.com", "ann.lee@corp.\ncom\nBest"),
    ("email", "ann.lee@corp.com", "ann dot lee at corp dot com\nBest"),
    ("email", "ann.lee@corp.com", "ann (dot) lee (at) corp (dot) com."),
    ("email", "ann.lee@corp.com", "ann [dot] lee [AT] corp [dot] com"),
    ("email", "ann.lee@corp.com", "ann.lee @ corp.com"),
    ("phone", "2125550187", " (212) 555-0187 or mail"),
    ("phone", "2125550187", "+1 212 555 0187"),
    ("phone", "2125550187", "1-212-555-0187 x12"),
    ("phone", "2125550187", "2 1 2 / 5 5 5 / 0 1 8 7"),
    ("phone", "2125550187", "(212) 555-\n> 0187\n> Regards"),
    ("phone", "2079460958", "+44 (0)20 7946 0958"),
    ("phone", "2079460958", "011 44 20 7946 0958"),
    ("phone", "2079460958", "020 7946 0958"),
    ("phone", "2079460958", " (020) 7946 0958, or"),
    *(("email", "ann.lee@corp.com", f"{before}ann.lee@corp.com") for before in "“”„‘’`«‹"),
    ("email", "ann.lee@corp.com", "\n- ann.lee@corp.com"),
    ("email", "ann.lee@corp.com", ": `ann.lee@corp.com`"),
    ("phone", "2125550187", "- “(212) 555-0187”"),
    ("ip", "10.1.2.3", ": 10.1.2.3"),
    ("account", "89370400440532013000", "“DE89370400440532013000”"),
    ("account", "123456789012", "1234-5678-9012"),
    ("account", "123456789012", "12 34 56 78 90 12."),
    ("account", "89370400440532013000", "DE89 3704 0044 0532 0130 00"),
    ("ssn", "123456789", "123-45-6789"),
    ("ip", "10.1.2.3", "10.1.2.3, port 80"),
    ("url", "http://corp.com/a", "HTTP://Corp.com/a."),
    ("person", "ann lee", "Ann Lee wrote"),
]
OTHERS = [
    ("email", "ann.lee@corp.com", "ann.lee@corp.com.au"),
    ("email", "ann.lee@corp.co", "ann.lee@corp.com"),
    ("email", "ann.lee@corp.com", "joann.lee@corp.com"),
    ("email", "ann.lee@corp.com", "mail ann.lee@corp.com"),
    ("email", "ann.lee@corp.com", "annxlee@corp.com"),
    ("phone", "2125550187", "(212) 555-018"),
    ("phone", "2125550187", "(212) 555-01875"),
    ("phone", "2125550187", "x 212 555 0187"),
    ("phone", "2125550187", "00 212 555 0187"),
    ("phone", "5550187", "0555 0187"),
    ("account", "123456789012", "0123456789012"),
    ("email", "ann.lee@corp.com", "-ann.lee@corp.com"),
    ("email", "ann.lee@corp.com", ": and ann.lee@corp.com"),
    ("account", "123456789012", "1234567890123"),
    ("account", "123456789012", "1 1234567 89012"),
    ("url", "http://corp.com/a", "http://corp.com/ab"),
    ("url", "http://corp.com/a", "http://corp.com/a?b=c"),
    ("ip", "10.1.2.3", "10.1.2.34"),
    ("person", "ann lee", "Ann Leeson wrote"),
    ("email", "ann.lee@corp.com", ""),
    ("email", "", "anything"),
]


@pytest.mark.parametrize(("kind", "value", "text"), WRITTEN)
def test_written_forms_are_the_value(kind: str, value: str, text: str) -> None:
    assert begins(text, kind, value)


@pytest.mark.parametrize(("kind", "value", "text"), OTHERS)
def test_other_values_are_not(kind: str, value: str, text: str) -> None:
    assert not begins(text, kind, value)


@pytest.mark.parametrize("kind", ["email", "phone", "account"])
def test_every_form_of_the_synthetic_mail_is_read_and_no_other_value_is(kind: str) -> None:
    draws = Draws("test", 0, kind)
    values = {
        "email": ["ann_lee@corp.com", "a.b.lee@corp.net"],
        "phone": ["2125550187", "3125550188"],
        "account": ["123456789012", "123456789013"],
    }[kind]
    for form in ("plain", "wrapped", "at-dot" if kind == "email" else "split"):
        for fold in ("\n", "\n> "):
            for _ in range(10):
                text = " " + write(kind, values[0], form, fold, draws) + "\nKind regards"
                assert begins(text, kind, values[0]), (form, text)
                assert not begins(text, kind, values[1]), (form, text)


def test_whatever_the_detector_finds_begins_with_its_own_canonical_form() -> None:
    rng = np.random.default_rng(0)
    shapes = {"email": "a.b@c.com", "phone": "(212) 555-0187", "ssn": "123-45-6789", "ip": "10.1.2.3"}
    for kind, shape in shapes.items():
        for _ in range(20):
            written = pii.fake(kind, shape, rng)
            assert begins(f" {written}\n", kind, pii.canonical(kind, written)), kind


def levenshtein(a: str, b: str) -> int:
    """By recursion, as it is defined."""
    if not a or not b:
        return len(a) + len(b)
    return min(levenshtein(a[1:], b) + 1, levenshtein(a, b[1:]) + 1, levenshtein(a[1:], b[1:]) + (a[0] != b[0]))


def test_edits_equal_the_nearest_beginning_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(40):
        value = "".join(rng.choice(list("abc"), rng.integers(2, 5)))
        text = "".join(rng.choice(list("abcd"), rng.integers(0, 6)))
        fewest = min(levenshtein(value, text[:size]) for size in range(len(text) + 1))
        if not begins(text, "person", value):
            assert edits(text, "person", value) == pytest.approx(fewest / len(value)), (value, text)


@pytest.mark.parametrize(
    ("kind", "value", "text", "wrong"),
    [
        ("phone", "2125550187", " (212) 555-0187, or", 0),
        ("phone", "2125550187", " (212) 555-0188 or 2125550187", 1),
        ("phone", "2125550187", "+1 212 555 0178", 1),  # the beginning 212555017 lacks one digit
        ("phone", "2079460958", "020 7946 0957", 1),
        ("phone", "2125550187", "tomorrow at 2125550187", 10),  # the beginning counts
        ("email", "ann.lee@corp.com", " Ann.Leigh@corp.com", 3),
        ("email", "ann.lee@corp.com", "", 16),
    ],
)
def test_edits_of_written_values(kind: str, value: str, text: str, wrong: int) -> None:
    assert edits(text, kind, value) == pytest.approx(wrong / len(value))


def test_a_value_takes_the_separators_of_another() -> None:
    assert written_like("+1 (212) 555-0187", "phone", "3125550199") == "+1 (312) 555-0199"
    assert written_like("1234-5678-9012", "account", "999888777666") == "9998-8877-7666"
    assert written_like("555-0187", "phone", "3125550199") == "3125550199"  # no room for it
    assert written_like("Ann.Lee@corp.com", "email", "bo@corp.com") == "bo@corp.com"
