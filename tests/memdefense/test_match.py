"""`begins` on the many ways a value is written, and on what only looks like it."""

from __future__ import annotations

import numpy as np
import pytest

from memdefense import pii
from memdefense.benchmarks.draws import Draws
from memdefense.benchmarks.mail_people import write
from memdefense.match import begins

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
