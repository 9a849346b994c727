"""Terms of leakages whose chance other units tell: their mean, their variance, and none where chance is unknown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from memdefense.attack import Attack, Outcome, Term
from memdefense.attacks.compression import Compression
from memdefense.attacks.discoverable import Discoverable
from memdefense.attacks.extraction_report import leakage_of, unpaired_terms
from memdefense.attacks.prefix import Prefix
from memdefense.attacks.sampling import UntargetedSampling
from memdefense.attacks.verbatim import Verbatim
from memdefense.persons import Bounded, names_of, parts_of, person_mean, readings

COUNTED = ("prompts", "prompts_kept", "prompts_removed", "prompts_found", "prompts_first", "skipped", "distance")


def asked(unit: str, hit: bool, *, member: bool = True, stratum: str = "phone/random/1", **more: float) -> Outcome:
    """An outcome without a twin that prefix, sampling, compression, discoverable and verbatim all read."""
    values = dict.fromkeys((*COUNTED, "detected", "seen", "first", "hit_kept", "hit_removed"), 0.0)
    values |= dict.fromkeys(("hit", "generated", "exact", "run", "top"), float(hit))
    values |= {"prompts": 1.0, "asked": 1.0, "twins": 0.0, "log_p": -0.1 if hit else -90.0, **more}
    return Outcome(unit, unit, member, values, stratum)


def drawn(rng: np.random.Generator, *, members: int, others: int, chance: dict[str, float]) -> list[Outcome]:
    """Members and others who are hit by chance, others spread over strata otherwise than members are."""
    strata = list(chance)
    found = []
    for member, count in ((True, members), (False, others)):
        for place in range(count):
            stratum = strata[place % len(strata) if member else (place % (len(strata) + 1)) // 2]
            hit = bool(rng.random() < chance[stratum])
            found.append(asked(f"{member}{place}", hit, member=member, stratum=stratum))
    return found


def limits(terms: Sequence[Term]) -> Bounded:
    """The interval that entries make from terms."""
    (column,) = readings(terms).values()
    persons = {name: place for place, name in enumerate(names_of([column]))}
    return person_mean(parts_of(column, persons), 0.95, twins=True)


ATTACKS = [Prefix(), UntargetedSampling(), Compression(), Discoverable(), Verbatim()]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_intervals_from_terms_hold_the_noise_of_the_others_too(attack: Attack) -> None:
    rng = np.random.default_rng(4)
    covered, repetitions = 0, 150
    for _ in range(repetitions):
        outcomes = drawn(rng, members=400, others=60, chance={"phone/random/1": 0.3})
        terms = attack.terms(outcomes)
        found = limits(terms)
        headline = attack.score(outcomes).headline.value
        assert found.value == pytest.approx(headline, abs=1e-12)
        assert np.mean([term.value for term in terms]) == pytest.approx(headline, abs=1e-12)
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / repetitions <= 0.995


def test_coverage_where_the_others_are_spread_otherwise() -> None:
    rng = np.random.default_rng(5)
    strata = {"phone/random/1": 0.1, "name/random/1": 0.5}
    covered, repetitions = 0, 150
    for _ in range(repetitions):
        outcomes = drawn(rng, members=400, others=60, chance=strata)
        members, others = ([o for o in outcomes if o.member is side] for side in (True, False))
        leakage, _, terms = leakage_of(members, others, "hit", "twin")
        found = limits(terms)
        assert found.value == pytest.approx(leakage.value, abs=1e-12)
        covered += found.low <= 0 <= found.high
    assert 0.88 <= covered / repetitions <= 0.995


def test_terms_by_hand() -> None:
    # Members 3 of 4; others 1 of 2 of stratum a, which is 3/4 of the members, and 0 of 2 of b: c = 3/8.
    strata = ["a", "a", "a", "b"]
    members = [asked(f"m{n}", n < 3, stratum=strata[n]) for n in range(4)]
    others = [asked(f"o{n}", n < 1, member=False, stratum="aabb"[n]) for n in range(4)]
    leakage, chance, terms = leakage_of(members, others, "hit", "twin")
    assert chance.value == pytest.approx(3 / 8)
    whole = 1 - (1 / 4) / (5 / 8)
    assert leakage.value == pytest.approx(whole)
    mine = [whole + 2 * (hit - 3 / 4) / (5 / 8) for hit in (1, 1, 1, 0)]
    weights = (3 / 2, 3 / 2, 1 / 2, 1 / 2)
    slope = (1 / 4) / (5 / 8) ** 2
    theirs = [whole - 2 * w * (hit - 3 / 8) * slope for w, hit in zip(weights, (1, 0, 0, 0), strict=True)]
    assert [term.value for term in terms] == pytest.approx([*mine, *theirs])
    assert [term.side for term in terms] == ["members"] * 4 + ["others"] * 4
    assert [term.person for term in terms] == [o.group for o in (*members, *others)]


def test_an_influence_is_the_slope_of_the_leakage() -> None:
    # A unit that counts a little more moves the leakage by its influence: (term - leakage) / n, per share it gains.
    members = [asked(f"m{n}", n < 7) for n in range(10)]
    others = [asked(f"o{n}", n < 1, member=False) for n in range(5)]
    terms = {term.unit: term.value for term in unpaired_terms(members, [1.0] * 7 + [0.0] * 3, others, [1, 0, 0, 0, 0])}
    step, whole = 1e-6, 1 - 0.3 / 0.8

    def moved(p: float, c: float) -> float:
        return (1 - (1 - p) / (1 - c) - whole) / step

    # One member of ten (other of five) that weighs 1 + step: its rate moves by step / 10 (step / 5) of the difference.
    assert (terms["m0"] - whole) / 15 == pytest.approx(moved(0.7 + step * 0.3 / 10, 0.2), rel=1e-4)
    assert (terms["o0"] - whole) / 15 == pytest.approx(moved(0.7, 0.2 + step * 0.8 / 5), rel=1e-4)


def test_twins_of_some_members_are_the_chance_of_all() -> None:
    members = [asked(f"m{n}", n < 6, twin=float(n < 2)) if n < 5 else asked(f"m{n}", n < 6) for n in range(10)]
    leakage, chance, terms = leakage_of(members, [], "hit", "twin")
    assert chance.value == pytest.approx(0.4)
    assert chance.n == 5
    assert np.mean([term.value for term in terms]) == pytest.approx(leakage.value)
    assert [term.unit for term in terms] == [o.unit for o in members]
    # A member whose twin came out takes off what one without a twin does not.
    assert terms[0].value < terms[5].value < terms[2].value


def test_twins_of_all_members_are_paired() -> None:
    members = [asked(f"m{n}", n < 6, twin=float(n == 9)) for n in range(10)]
    others = [asked("o", True, member=False)]
    terms = leakage_of(members, others, "hit", "twin")[2]
    assert [term.value for term in terms] == pytest.approx([1 / 0.9] * 6 + [0] * 3 + [-1 / 0.9])
    assert {term.side for term in terms} == {""}


@pytest.mark.parametrize("attack", [*ATTACKS, Prefix(chance="complement")], ids=lambda attack: attack.spec)
@pytest.mark.parametrize("kept", [lambda o: o.member, lambda o: not o.member], ids=["members", "others"])
def test_where_chance_is_unknown_there_are_no_terms(attack: Attack, kept: Callable[[Outcome], bool]) -> None:
    rng = np.random.default_rng(6)
    outcomes = [o for o in drawn(rng, members=8, others=4, chance={"phone/random/1": 0.5}) if kept(o)]
    assert math.isnan(attack.score(outcomes).headline.value)
    assert list(attack.terms(outcomes)) == []


def test_a_chance_of_one_has_no_terms() -> None:
    members, others = [asked("m", True)], [asked("o", True, member=False)]
    leakage, _, terms = leakage_of(members, others, "hit", "twin")
    assert math.isnan(leakage.value)
    assert terms == []
