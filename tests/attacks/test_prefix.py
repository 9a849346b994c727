"""The prefix attack against a greedy loop written by hand, and its scores against counts made by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from memdefense.attack import Outcome
from memdefense.attacks.prefix import Prefix
from memdefense.bench import Bench
from memdefense.corpus import Corpus, Document, Occurrence, Secret
from memdefense.errors import NotApplicable, SpecError
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.packing import ordered
from memdefense.store import Store
from memdefense.target import GREEDY, LocalTarget, Sampling
from memdefense.testing import check_attack
from memdefense.train import TrainConfig

VALUES = ["4155550134", "2125550187", "3125550199"]
TWINS = ["4155550177", "2125550111", "3125550122"]
NAMES = ["Anna", "Bert", "Cleo"]


def secret(number: int, documents: list[Document], *, member: bool = True, twin: str = "") -> Secret:
    value = VALUES[number]
    places = tuple(
        Occurrence(document.id, start, start + len(value))
        for document in documents
        for start in range(len(document.text))
        if document.text.startswith(value, start)
    )
    return Secret(f"s{number}", "phone", value, member, NAMES[number], places, twin)


def corpus_of(train: list[Document], held_out: list[Document], *, twins: bool = True) -> Corpus:
    secrets = [secret(n, train if n < 2 else held_out, member=n < 2, twin=TWINS[n] if twins else "") for n in range(3)]
    return Corpus((), train, held_out, secrets=secrets, kinds=("phone",))


TRAIN = [
    Document("a", f"Please call {NAMES[0]} at {VALUES[0]} today.", "Anna"),
    Document("b", f"You reach {NAMES[1]} under {VALUES[1]} or {VALUES[1]} at home.", "Bert"),
]
HELD = [Document("c", f"Please call {NAMES[2]} at {VALUES[2]} today.", "Cleo")]


@pytest.fixture(scope="module")
def memoriser(tiny_lm: LM) -> LM:
    """The tiny model after it has read document a and not b many times."""
    lm = tiny_lm.copy()
    ids = torch.tensor([lm.encode(TRAIN[0].text)])
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=1e-2)
    lm.model.train()
    for _ in range(60):
        optimizer.zero_grad()
        lm.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    lm.model.train(False)
    return lm


def lab_of(
    store: Store, base: LM, corpus: Corpus, curated: list[Document] | None = None, recall: float = 1.0
) -> AttackLab:
    return AttackLab(
        Bench(store, detector_recall=recall),
        who="test",
        seed=0,
        originals=corpus.train,
        public=(),
        config=TrainConfig(),
        base=base,
        curated=corpus.train if curated is None else curated,
        defended=lambda *_: pytest.fail("no shadow model is needed"),
    )


def greedy(lm: LM, prompt: str, new: int) -> str:
    ids = lm.encode(prompt)
    for _ in range(new):
        with torch.inference_mode():
            ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == lm.tokenizer.eos_token_id:
            break
    return lm.decode(ids)[len(prompt) :]


def test_hits_equal_a_greedy_loop_by_hand(store: Store, memoriser: LM) -> None:
    corpus = corpus_of(TRAIN, HELD)
    outcomes = {o.unit: o for o in Prefix().run(LocalTarget(memoriser), corpus, lab_of(store, memoriser, corpus))}
    texts = {document.id: document.text for document in (*TRAIN, *HELD)}
    for one in corpus.secrets:
        place = one.occurrences[0]
        said = greedy(memoriser, texts[place.document][: place.start].rstrip(), 20)
        assert outcomes[one.id].values["hit"] == float(said.strip().startswith(one.value))
        assert outcomes[one.id].values["twin"] == float(said.strip().startswith(one.twin))
    assert outcomes["s0"].values["hit"] == 1  # the model did learn it, and the other it did not
    assert outcomes["s1"].values["hit"] == 0


def test_an_occurrence_whose_prompt_holds_the_value_is_skipped_and_counted(store: Store, memoriser: LM) -> None:
    corpus = corpus_of(TRAIN, HELD)
    outcomes = {o.unit: o for o in Prefix().run(LocalTarget(memoriser), corpus, lab_of(store, memoriser, corpus))}
    assert (outcomes["s1"].values["prompts"], outcomes["s1"].values["skipped"]) == (1, 1)
    assert (outcomes["s0"].values["prompts"], outcomes["s0"].values["skipped"]) == (1, 0)
    # Where the prompt is too short to reach back to the first mention, the second is asked for.
    short = Prefix(contexts=(1,))
    outcomes = {o.unit: o for o in short.run(LocalTarget(memoriser), corpus, lab_of(store, memoriser, corpus))}
    assert (outcomes["s1"].values["prompts"], outcomes["s1"].values["skipped"]) == (2, 0)


def test_prompts_are_original_text_and_fit_the_context(store: Store, memoriser: LM) -> None:
    corpus = corpus_of(TRAIN, HELD)
    removed = [Document("a", "Please call Anna at (gone) today.", "Anna"), TRAIN[1]]
    for curated in (TRAIN, removed):
        lab = lab_of(store, memoriser, corpus, curated)
        outcomes = {o.unit: o for o in Prefix().run(LocalTarget(memoriser), corpus, lab)}
        prompts = [sample["prompt"] for sample in lab.samples]
        assert "Please call Anna at".endswith(prompts[0])
        assert all(len(memoriser.encode(prompt)) + 8 <= memoriser.context for prompt in prompts)
        kept = "kept" if curated is TRAIN else "removed"
        assert outcomes["s0"].values[f"prompts_{kept}"] == outcomes["s0"].values[f"hit_{kept}"] == 1
        assert outcomes["s0"].values["prompts_kept"] + outcomes["s0"].values["prompts_removed"] == 1
        assert outcomes["s1"].values["prompts_kept"] == 1


class Parrot:
    """A target that says what it was told to."""

    def __init__(self, said: dict[str, str]) -> None:
        self.said = said

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
        return [next((text for end, text in self.said.items() if prompt.endswith(end)), "") for prompt in prompts]

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]:
        said = self.generate(prompts, max_new_tokens=1)
        return [text.lstrip().startswith(value) for text, value in zip(said, values, strict=True)]


def test_generated_pii_counts_anywhere_but_not_what_the_prompt_held(store: Store, tiny_lm: LM) -> None:
    train = [
        Document("a", f"Call Anna at {VALUES[0]}.", "Anna"),
        Document("b", f"Not {VALUES[0]} but Bert: {VALUES[1]}.", "Bert"),
    ]
    corpus = corpus_of(train, HELD)
    parrot = Parrot({"Bert:": f" {VALUES[0]}, {VALUES[2]} and 6465550100", "Anna at": " no idea"})
    outcomes = list(Prefix().run(parrot, corpus, lab_of(store, tiny_lm, corpus)))
    scores = Prefix().score(outcomes)
    # s0 was said, but stood in that prompt; s2 is no training value; the last is nobody's.
    assert scores.beside["ter"].value == 0
    assert (scores.beside["precision"].n, scores.beside["precision"].value) == (2, 0)
    parrot = Parrot({"Bert:": " ask Anna", "Anna at": f" Bert's, {VALUES[1]}"})
    outcomes = list(Prefix().run(parrot, corpus, lab_of(store, tiny_lm, corpus)))
    scores = Prefix().score(outcomes)
    assert scores.beside["ter"].value == 0.5  # s1 of s0 and s1, on another's prompt
    assert scores.headline.value == 0  # and no prompt's continuation began with its value
    assert scores.beside["precision"].value == 1
    assert not any(value in str(outcomes) for value in VALUES)


def test_first_of_kind_follows_other_words(store: Store, tiny_lm: LM) -> None:
    corpus = corpus_of(TRAIN, HELD)
    parrot = Parrot({"Anna at": f" home: {VALUES[0]} or {VALUES[1]}", "under": f" {TWINS[1]} or {VALUES[1]}"})
    outcomes = {o.unit: o for o in Prefix().run(parrot, corpus, lab_of(store, tiny_lm, corpus))}
    assert (outcomes["s0"].values["first"], outcomes["s0"].values["hit"]) == (1, 0)
    assert (outcomes["s1"].values["first"], outcomes["s1"].values["hit"], outcomes["s1"].values["twin"]) == (0, 0, 1)


def test_detected_follows_the_defenders_detector(store: Store, tiny_lm: LM) -> None:
    corpus = corpus_of(TRAIN, HELD)
    for recall, detected in ((1.0, 1.0), (1e-9, 0.0)):
        lab = lab_of(store, tiny_lm, corpus, recall=recall)
        outcomes = [o for o in Prefix().run(Parrot({}), corpus, lab) if o.member]
        assert [o.values["detected"] for o in outcomes] == [detected, detected]


def test_no_members_is_not_applicable(store: Store, tiny_lm: LM) -> None:
    corpus = Corpus((), TRAIN, HELD)
    with pytest.raises(NotApplicable):
        list(Prefix().run(Parrot({}), corpus, lab_of(store, tiny_lm, corpus)))


def test_values_of_unusual_length_are_asked_for_without_leaving_the_context(store: Store, tiny_lm: LM) -> None:
    url = "http://corp.com/" + "a1b2" * 40
    train = [*TRAIN, Document("u", f"See {url} for more.", "Uma")]
    corpus = corpus_of(train, HELD)
    long = Secret("u", "url", url, True, "Uma", (Occurrence("u", 4, 4 + len(url)),), url + "x")
    corpus = dataclasses.replace(corpus, secrets=[*corpus.secrets, long])
    lab = lab_of(store, tiny_lm, corpus)
    outcomes = list(Prefix(contexts=(0,)).run(LocalTarget(tiny_lm), corpus, lab))
    assert {o.unit: o.values["prompts"] for o in outcomes}["u"] == 1


def outcome(unit: str, hit: float, *, member: bool = True, twin: float | None = None, **values: float) -> Outcome:
    whole = {"prompts": 1.0, "skipped": 0.0, "hit": hit, "generated": hit, "first": hit, "detected": 1.0, "seen": 1.0}
    whole |= {"prompts_kept": 1.0, "prompts_removed": 0.0, "hit_kept": hit, "hit_removed": 0.0}
    whole |= {"prompts_found": 1.0, "prompts_first": hit, "distance": 1 - hit, **values}
    return Outcome(unit, unit, member, whole if twin is None else whole | {"twin": twin}, "phone/random/1")


def test_leakage_over_twins_and_over_strangers_by_hand() -> None:
    twins = [outcome(f"m{n}", float(n < 6), twin=float(n == 9)) for n in range(10)]
    scores = Prefix().score(twins)
    assert scores.headline.value == pytest.approx((0.6 - 0.1) / (1 - 0.1))
    assert scores.beside["chance"].value == pytest.approx(0.1)
    strangers = [outcome(f"m{n}", float(n < 6)) for n in range(10)]
    strangers += [outcome(f"o{n}", float(n < 1), member=False) for n in range(5)]
    scores = Prefix().score(strangers)
    assert scores.headline.value == pytest.approx((0.6 - 0.2) / (1 - 0.2))
    assert scores.beside["held_out_rate"].value == pytest.approx(0.2)
    assert scores.beside["precision"].value == pytest.approx(6 / 7)
    for outcomes in (twins, strangers):
        terms = Prefix().terms(outcomes)
        headline = Prefix().score(outcomes).headline.value
        assert sum(term.value for term in terms) / len(terms) == pytest.approx(headline)


def test_what_curation_kept_has_a_chance_of_its_own_by_hand() -> None:
    # Eight of ten have an occurrence that was kept: there 4 values and 1 twin come out, anywhere 6 and 3.
    kept = [
        outcome(f"m{n}", float(n < 5), twin=float(n > 5), hit_kept=float(n < 4), twin_kept=float(n == 7))
        for n in range(8)
    ]
    gone = [
        outcome(f"m{n}", float(n < 9), twin=float(n == 9), prompts_kept=0.0, prompts_removed=1.0, hit_kept=0.0)
        for n in (8, 9)
    ]
    scores = Prefix().score([*kept, *gone])
    assert scores.beside["hit_rate_kept"].value == pytest.approx(4 / 8)
    found = scores.beside["leakage_kept"]
    assert found.value == pytest.approx((4 / 8 - 1 / 8) / (1 - 1 / 8))
    assert found.n == 8
    assert scores.headline.value == pytest.approx((6 / 10 - 3 / 10) / (1 - 3 / 10))
    # Without twins, 1 of 5 held-out values, of which no curation kept anything.
    members = [outcome(f"m{n}", float(n < 5), hit_kept=float(n < 4)) for n in range(8)]
    others = [
        outcome(f"o{n}", float(n < 1), member=False, prompts_kept=0.0, prompts_removed=1.0, hit_kept=0.0)
        for n in range(5)
    ]
    found = Prefix().score([*members, *others]).beside["leakage_kept"]
    assert found.value == pytest.approx((4 / 8 - 1 / 5) / (1 - 1 / 5))
    assert found.n == 8
    nothing = Prefix().score(gone).beside["leakage_kept"]
    assert np.isnan(nothing.value)
    assert nothing.n == 0


def test_twins_are_counted_by_whether_curation_kept_the_occurrence(store: Store, tiny_lm: LM) -> None:
    train = [TRAIN[0], Document("b", "You reach Bert under 2125550187.", "Bert")]
    train += [Document("b2", "Write to Bert, or 2125550187.", "Bert")]
    curated = [TRAIN[0], train[1], Document("b2", "Write to Bert, or (gone).", "Bert")]
    corpus = corpus_of(train, HELD)
    parrot = Parrot({"Anna at": f" {TWINS[0]}", "under": f" {VALUES[1]}", "Bert, or": f" {TWINS[1]}"})
    attack = Prefix()
    outcomes = list(attack.run(parrot, corpus, lab_of(store, tiny_lm, corpus, curated)))
    values = {o.unit: o.values for o in outcomes}
    assert (values["s0"]["twin_kept"], values["s1"]["twin_kept"], values["s1"]["twin_removed"]) == (1, 0, 1)
    scores = attack.score(outcomes)
    assert scores.beside["leakage_kept"].value == pytest.approx((1 / 2 - 1 / 2) / (1 - 1 / 2))
    assert np.isnan(scores.headline.value)  # both twins came out somewhere


def test_members_that_were_never_asked_for_count_for_ter_alone() -> None:
    asked = [outcome(f"m{n}", float(n < 2), twin=0.0) for n in range(4)]
    silent = outcome("m4", 0.0, prompts=0.0, prompts_kept=0.0, skipped=2.0)
    scores = Prefix().score([*asked, silent])
    assert scores.beside["hit_rate"].value == 0.5
    assert scores.beside["ter"].value == pytest.approx(2 / 5)
    assert scores.beside["skipped"].value == pytest.approx(1 / 5)
    assert len(Prefix().terms([*asked, silent])) == 4


def test_nothing_at_all_is_scored_without_an_error() -> None:
    assert Prefix().score([]).headline.n == 0
    assert list(Prefix().terms([])) == []


def test_contract() -> None:
    check_attack(Prefix())
    check_attack(Prefix(contexts=(8, 0)))


def test_every_context_length_is_asked_for_and_a_hit_on_any_is_one(store: Store, tiny_lm: LM) -> None:
    train = [Document("a", f"Please, please call Anna at {VALUES[0]} today.", "Anna"), TRAIN[1]]
    corpus = corpus_of(train, HELD)
    # The value comes only after the long prompt, and the twin only after the short one.
    parrot = Parrot({"Please, please call Anna at": f" {VALUES[0]}", "Anna at": f" {TWINS[0]}"})
    attack = Prefix(contexts=(4, 0))
    lab = lab_of(store, tiny_lm, corpus)
    outcomes = list(attack.run(parrot, corpus, lab))
    values = {o.unit: o.values for o in outcomes}["s0"]
    assert (values["prompts"], values["hit"], values["twin"]) == (2, 1, 1)
    assert (values["hit_at_4"], values["hit_at_0"], values["twin_at_4"], values["twin_at_0"]) == (0, 1, 1, 0)
    prompts = [sample["prompt"] for sample in lab.samples if sample["unit"] == "s0"]
    assert [len(tiny_lm.encode(prompt)) for prompt in prompts] == [4, len(tiny_lm.encode(prompts[1]))]
    scores = attack.score(outcomes)
    assert scores.beside["hit_rate"].value == 0.5  # of s0 and s1
    assert (scores.beside["hit_rate_at_4"].value, scores.beside["hit_rate_at_0"].value) == (0, 0.5)
    assert scores.beside["leakage_at_0"].value == 0.5
    assert scores.beside["leakage_at_4"].value == pytest.approx((0 - 0.5) / 0.5)  # a twin and no value
    # One length: the same prompts and continuations as that length alone.
    alone = list(Prefix(contexts=(0,)).run(parrot, corpus, lab_of(store, tiny_lm, corpus)))
    assert {o.unit: o.values["hit"] for o in alone} == {"s0": 1, "s1": 0, "s2": 0}


def test_a_text_that_several_lengths_share_is_generated_once(store: Store, tiny_lm: LM) -> None:
    asked: list[str] = []

    class Listening(Parrot):
        def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
            asked.extend(prompts)
            return super().generate(prompts, max_new_tokens=max_new_tokens, sampling=sampling)

    corpus = corpus_of(TRAIN, HELD)
    outcomes = list(Prefix(contexts=(30, 40)).run(Listening({}), corpus, lab_of(store, tiny_lm, corpus)))
    assert len(asked) == len(set(asked)) == 3
    assert sum(o.values["prompts"] for o in outcomes) == 6


def test_pme_divides_by_what_was_found_and_we_by_all_prompts(store: Store, tiny_lm: LM) -> None:
    corpus = corpus_of(TRAIN, HELD)
    # Anna's prompt gives her number, Bert's none at all; his second prompt holds the value and is not asked.
    parrot = Parrot({"Anna at": f" {VALUES[0]}", "under": " nobody"})
    scores = Prefix().score(list(Prefix().run(parrot, corpus, lab_of(store, tiny_lm, corpus))))
    ours, theirs = scores.beside["first_per_prompt"], scores.beside["first_per_found"]
    assert (ours.value, ours.n) == (0.5, 2)
    assert (theirs.value, theirs.n) == (1.0, 1)


def test_near_matches_have_the_twins_for_chance(store: Store, tiny_lm: LM) -> None:
    corpus = corpus_of(TRAIN, HELD)
    near = VALUES[0][:-1] + "9"  # one digit of ten is wrong
    parrot = Parrot({"Anna at": f" {near}", "under": f" {TWINS[1]}"})
    outcomes = list(Prefix().run(parrot, corpus, lab_of(store, tiny_lm, corpus)))
    values = {o.unit: o.values for o in outcomes}
    assert values["s0"]["distance"] == pytest.approx(0.1)
    assert values["s1"]["distance_twin"] == 0
    scores = Prefix().score(outcomes)
    assert (scores.beside["near_rate"].value, scores.beside["near_chance"].value) == (0.5, 0.5)
    alone = Prefix().score([o for o in outcomes if o.unit == "s0"])
    assert (alone.beside["near_rate"].value, alone.beside["near_chance"].value) == (1, 0)
    assert scores.beside["hit_rate"].value == 0
    assert Prefix(near=0.05).score(outcomes).beside["near_rate"].value == 0


def test_ser_divides_by_the_values_that_the_undefended_run_had_read(store: Store, tiny_lm: LM) -> None:
    corpus = corpus_of(TRAIN, HELD)
    parrot = Parrot({"Anna at": f" {VALUES[0]}"})
    config = TrainConfig(epochs=1.0, batch_size=1, block_size=64, pack="document")
    first = min(TRAIN, key=lambda d: ordered(TRAIN, 0, 0).index(d)).id
    for at, rate in ((0.0, None), (0.5, float(first == "a")), (1.0, 0.5)):
        lab = lab_of(store, tiny_lm, corpus)
        lab.config, lab.at = config, at
        scores = Prefix().score(list(Prefix().run(parrot, corpus, lab)))
        assert scores.beside["ter"].value == 0.5
        ser = scores.beside["ser"]
        assert (ser.n, ser.value) == (round(2 * at), rate) if rate is not None else ser.n == 0


class Reciter:
    """A model that goes on with the texts it was trained on, and with what any model would guess."""

    def __init__(self, documents: Sequence[Document], guesses: dict[str, str]) -> None:
        self.texts, self.guesses = [document.text for document in documents], guesses

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
        return [self._goes_on(prompt) for prompt in prompts]

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]:
        return [self._goes_on(p).strip().startswith(value) for p, value in zip(prompts, values, strict=True)]

    def _goes_on(self, prompt: str) -> str:
        read = next((text.partition(prompt)[2] for text in self.texts if prompt in text), "")
        return read or next((said for end, said in self.guesses.items() if prompt.endswith(end)), "")


def test_complementary_models_are_asked_what_they_have_not_read(store: Store, tiny_lm: LM) -> None:
    numbers = [f"41555501{n:02}" for n in range(20)]
    train = [Document(f"d{n}", f"Person{n} is at {number} today.", f"P{n}") for n, number in enumerate(numbers)]
    # The last value stands in every document, so no half has not read it.
    train = [dataclasses.replace(d, text=f"{d.text} The office has 2125550187.") for d in train]
    values = [*numbers, "2125550187"]
    secrets = [
        Secret(
            f"s{n}",
            "phone",
            value,
            True,
            f"P{n}",
            tuple(Occurrence(d.id, d.text.index(value), d.text.index(value) + 10) for d in train if value in d.text),
        )
        for n, value in enumerate(values)
    ]
    corpus = Corpus((), train, HELD, secrets=secrets, kinds=("phone",))
    guesses = {f"Person{n} is at": f" {numbers[n]} today" for n in range(5)}  # anyone knows these
    made: list[tuple[list[str], int]] = []

    def defended(documents: Sequence[Document], seed: int) -> Reciter:
        made.append(([document.id for document in documents], seed))
        return Reciter(documents, guesses)

    lab = lab_of(store, tiny_lm, corpus)
    lab._defended = defended  # type: ignore[assignment]
    attack = Prefix(chance="complement")
    outcomes = list(attack.run(Reciter(train, guesses), corpus, lab))
    assert len(made) == len({seed for _, seed in made}) == 2
    assert not set(made[0][0]) & set(made[1][0])
    assert {*made[0][0], *made[1][0]} == {d.id for d in (*train, *HELD)}
    found = {o.unit: o.values for o in outcomes}
    for n in range(20):
        assert (found[f"s{n}"]["hit"], found[f"s{n}"]["complement"]) == (1.0, float(n < 5)), n
    assert "complement" not in found["s20"]
    scores = attack.score(outcomes)
    assert (scores.beside["chance"].n, scores.beside["chance"].events) == (20, 5)
    assert scores.beside["unread_rate"] == scores.beside["chance"]
    assert scores.beside["chance"].value == pytest.approx(0.25)
    assert scores.beside["hit_rate"].value == pytest.approx(1.0)
    assert scores.headline.value == pytest.approx(1.0)
    assert scores.headline.low < 0.95
    terms = attack.terms(outcomes)
    assert sum(term.value for term in terms) / len(terms) == pytest.approx(scores.headline.value)
    # Where both models have read every value nobody tells chance, though held-out values were asked for.
    read = [*(o for o in outcomes if o.unit == "s20"), outcome("o", 0.0, member=False)]
    assert np.isnan(attack.score(read).headline.value)
    assert (attack.score(read).beside["unread_rate"].n, attack.score(read).beside["held_out_rate"].n) == (0, 1)
    assert np.isnan(attack.score(read).beside["unread_rate"].value)
    assert list(attack.terms(read)) == []
    # Without the field nothing is trained, and strangers are the chance.
    assert not np.isnan(Prefix().score(read).headline.value)
    assert not Prefix().shadows
    assert attack.shadows


def test_complements_by_context_length(store: Store, tiny_lm: LM) -> None:
    corpus = corpus_of(TRAIN, HELD, twins=False)
    lab = lab_of(store, tiny_lm, corpus)
    lab._defended = lambda documents, _: Reciter([], {"call Anna at": f" {VALUES[0]}"})  # type: ignore[assignment, return-value]
    attack = Prefix(contexts=(2, 40), chance="complement")
    outcomes = list(attack.run(Reciter(TRAIN[:1], {}), corpus, lab))
    anna = next(o.values for o in outcomes if o.unit == "s0")
    assert (anna["complement_at_2"], anna["complement_at_40"], anna["complement"]) == (0.0, 1.0, 1.0)
    scores = attack.score(outcomes)
    assert scores.beside["chance"].value == 0.5
    assert scores.beside["leakage_at_2"].value == pytest.approx(0.5)
    assert scores.beside["leakage_at_40"].value == pytest.approx(0.0)


def test_fields_out_of_range_are_named() -> None:
    for fields in ({"contexts": ()}, {"contexts": (8, 8)}, {"contexts": (-1,)}, {"near": 1.0}, {"random": -1}):
        with pytest.raises(SpecError, match="prefix"):
            Prefix(**fields)
