"""Circles: what they join, and that intervals of membership are over them."""

from __future__ import annotations

import numpy as np

from memdefense.attack import Outcome
from memdefense.attacks.circles import circle_of, circles
from memdefense.attacks.membership_report import membership
from memdefense.benchmarks.mailbox import Mailbox
from memdefense.corpus import Document, Occurrence, Secret


def test_circles_join_those_who_share_an_author_or_a_secret() -> None:
    documents = [Document(f"d{n}", "text", author) for n, author in enumerate(["x", "x", "y", "z", "w", "v"])]
    shared = Secret("s", "phone", "1", True, "", (Occurrence("d2", 0, 1), Occurrence("d3", 0, 1)))
    found = circles(documents, [shared])
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert len(set(found)) == 4
    # One circle of more than half of all: authors alone.
    everybody = Secret("s", "phone", "1", True, "", tuple(Occurrence(f"d{n}", 0, 1) for n in range(6)))
    assert circles(documents, [everybody]) == ["x", "x", "y", "z", "w", "v"]


def test_every_document_of_mailbox_has_a_circle_of_one_side() -> None:
    corpus = Mailbox().corpus()
    circle = circle_of(corpus)
    inside, outside = ({circle[d.id] for d in side} for side in (corpus.train, corpus.held_out))
    assert len(circle) == len(corpus.train) + len(corpus.held_out)
    assert not inside & outside
    assert len(set(circle.values())) < 0.6 * len({d.author for d in (*corpus.train, *corpus.held_out)})


def test_scores_that_are_of_circles_alone_cover_chance_about_as_often_as_they_should() -> None:
    rng = np.random.default_rng(1)
    kept = {"circle": 0, "document": 0}
    for _ in range(200):
        outcomes: dict[str, list[Outcome]] = {name: [] for name in kept}
        for number in range(44):
            hard = float(rng.normal())
            for one in range(int(rng.integers(1, 30))):
                score = hard + 0.3 * float(rng.normal())
                for name, group in (("circle", f"c{number}"), ("document", f"c{number}/{one}")):
                    values = {"loss": score, "model_free": 0.0}
                    outcomes[name].append(Outcome(f"{number}/{one}", group, number % 4 > 0, values))
        for name, found in outcomes.items():
            leakage = membership(found, ["loss"], "loss").headline
            kept[name] += leakage.low <= 0 <= leakage.high
    assert kept["circle"] > 170
    assert kept["document"] < 100
