"""Verbatim continuation against greedy decoding by hand, and its scores against counts."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from sacrebleu import sentence_bleu
from tokenizers import Tokenizer, processors
from transformers import PreTrainedTokenizerFast

from memdefense.attack import Outcome
from memdefense.attacks.verbatim import Verbatim
from memdefense.bench import Bench
from memdefense.corpus import Benchmark, Canary, Corpus, Document
from memdefense.defense import Defense
from memdefense.defenses.never_trained import NeverTrained
from memdefense.errors import MemdefenseError, NotApplicable, SpecError
from memdefense.lab import AttackLab, Lab
from memdefense.lm import LM
from memdefense.pipeline import defend, measure
from memdefense.registry import build
from memdefense.runner import Settings, prepare
from memdefense.small_model import untrained
from memdefense.store import Store
from memdefense.target import LocalTarget
from memdefense.testing import check_attack
from memdefense.train import TrainConfig

LEARNT = "Please call Anna at home and write to the team before noon today."
TRAIN = [
    Document("t0", LEARNT, "p0"),
    Document("t1", "We shipped 24 boxes yesterday and keep the old one there.", "p1"),
]
TRAIN += [Document("canary", "code AB-12 and more of the code AB-12 until the end", "c")]
HELD = [Document("h0", "The meeting on Tuesday is moved to the large room.", "q0"), Document("h1", "Short", "q1")]
CORPUS = Corpus((), TRAIN, HELD, canaries=[Canary("canary", ("canary",), "code ", "AB-12", 1, True)])
SMALL = Verbatim(prefix=4, length=8)


def lab_of(store: Store, base: LM) -> AttackLab:
    return AttackLab(
        Bench(store),
        who="test",
        seed=0,
        originals=TRAIN,
        public=(),
        config=TrainConfig(),
        base=base,
        curated=TRAIN,
        defended=None,
    )


@pytest.fixture(scope="module")
def memoriser(tiny_lm: LM) -> LM:
    """The tiny model after it has read the first document many times, and nothing else."""
    lm = tiny_lm.copy()
    ids = torch.tensor([lm.encode(LEARNT)])
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=1e-2)
    lm.model.train()
    for _ in range(80):
        optimizer.zero_grad()
        lm.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    lm.model.train(False)
    return lm


def greedy(lm: LM, ids: list[int], new: int) -> list[int]:
    ids = list(ids)
    for _ in range(new):
        with torch.inference_mode():
            ids.append(int(lm.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[-new:]


def test_exact_equals_greedy_decoding_by_hand(store: Store, memoriser: LM) -> None:
    lab = lab_of(store, memoriser)
    outcomes = {o.unit: o for o in SMALL.run(LocalTarget(memoriser), CORPUS, lab)}
    assert set(outcomes) == {"t0", "t1", "h0"}  # no canary, and nothing too short
    assert (lab.notes["too_short"], lab.notes["on_both_sides"]) == (1, 0)
    for document in (*TRAIN[:2], HELD[0]):
        ids = memoriser.encode(document.text)
        said = greedy(memoriser, ids[:4], 8)
        values = outcomes[document.id].values
        assert values["exact"] == float(said == ids[4:12])
        # Up to the first difference greedy decoding and the true text are one.
        run = next((place for place in range(8) if said[place] != ids[4 + place]), 8)
        assert values["run"] == run
        forced = [greedy(memoriser, ids[:place], 1)[0] == ids[place] for place in range(4, 12)]
        assert values["top"] == pytest.approx(np.mean(forced))
    assert outcomes["t0"].values["exact"] == 1
    assert outcomes["t1"].values["exact"] == outcomes["h0"].values["exact"] == 0


def test_texts_on_both_sides_are_not_too_short(store: Store, tiny_lm: LM) -> None:
    lab = lab_of(store, tiny_lm)
    corpus = dataclasses.replace(CORPUS, held_out=[*HELD, Document("h2", LEARNT, "q2")])
    assert {o.unit for o in SMALL.run(LocalTarget(tiny_lm), corpus, lab)} == {"t1", "h0"}
    assert (lab.notes["too_short"], lab.notes["on_both_sides"]) == (1, 2)


def test_near_is_bleu_of_what_is_generated(store: Store, memoriser: LM) -> None:
    lab = lab_of(store, memoriser)
    attack = dataclasses.replace(SMALL, near=True)
    outcomes = {o.unit: o for o in attack.run(LocalTarget(memoriser), CORPUS, lab)}
    for sample in lab.samples:
        text = next(d.text for d in (*TRAIN, *HELD) if d.id == sample["unit"])
        ids = memoriser.encode(text)
        assert sample["prompt"] == memoriser.decode(ids[:4])
        truth = memoriser.decode(ids[4:12])
        bleu = sentence_bleu(sample["continuation"].strip(), [truth.strip()]).score
        same = sample["continuation"].strip() == truth.strip()
        assert outcomes[sample["unit"]].values["near"] == float(bleu > 75 or same)
    assert outcomes["t0"].values["near"] == 1
    assert outcomes["h0"].values["near"] == 0
    # A guard that is silent is seen by near alone.
    silent = LocalTarget(memoriser).guarded(text=lambda prompts, said, again: [""] * len(said))
    guarded = {o.unit: o for o in attack.run(silent, CORPUS, lab)}
    assert (guarded["t0"].values["exact"], guarded["t0"].values["near"]) == (1, 0)


def test_a_prompt_ends_with_its_last_token_where_offsets_leave_out_blanks(store: Store, memoriser: LM) -> None:
    spelling = Tokenizer.from_str(memoriser.tokenizer.backend_tokenizer.to_str())
    spelling.post_processor = processors.ByteLevel(trim_offsets=True)  # type: ignore[assignment, unused-ignore]
    end = str(memoriser.tokenizer.eos_token)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=spelling, eos_token=end, pad_token=end, clean_up_tokenization_spaces=False
    )
    lm = LM(memoriser.model, tokenizer)
    ids = lm.encode(LEARNT)
    # A prefix before each word that has its blank in its first token: the blank is the continuation's.
    cuts = [n for n in range(1, 14) if lm.decode(ids[:n] + ids[n : n + 1])[len(lm.decode(ids[:n])) :].startswith(" ")]
    assert cuts
    for prefix in cuts:
        lab = lab_of(store, lm)
        attack = Verbatim(prefix=prefix, length=8, near=True)
        outcomes = {o.unit: o.values for o in attack.run(LocalTarget(lm), CORPUS, lab)}
        prompts = {sample["unit"]: sample["prompt"] for sample in lab.samples}
        assert prompts["t0"] == lm.decode(ids[:prefix])
        assert lm.encode(prompts["t0"]) == ids[:prefix]
        assert outcomes["t0"]["near"] == outcomes["t0"]["exact"] == 1, prefix
        assert all(values["near"] >= values["exact"] for values in outcomes.values())


def test_a_prompt_ends_before_a_letter_of_several_tokens(store: Store, tiny_lm: LM) -> None:
    text = "ab✓" + "cd" * 20
    ids = tiny_lm.encode(text)
    inside = next(n for n in range(1, len(ids)) if "\ufffd" in tiny_lm.decode(ids[:n]))
    corpus = dataclasses.replace(CORPUS, train=[Document("t", text, "p")])
    lab = lab_of(store, tiny_lm)
    list(Verbatim(prefix=inside, length=8, near=True).run(LocalTarget(tiny_lm), corpus, lab))
    assert {sample["unit"]: sample["prompt"] for sample in lab.samples}["t"] == "ab"


@pytest.mark.parametrize(
    ("attack", "corpus", "error"),
    [
        (Verbatim(prefix=40, length=40), CORPUS, NotApplicable),  # the context has 64
        (Verbatim(prefix=30, length=30), CORPUS, NotApplicable),
        (SMALL, Corpus((), TRAIN, ()), NotApplicable),
        (SMALL, Corpus((), TRAIN, HELD[1:]), NotApplicable),
    ],
)
def test_what_cannot_be_is_told(
    attack: Verbatim, corpus: Corpus, error: type[MemdefenseError], store: Store, tiny_lm: LM
) -> None:
    with pytest.raises(error):
        list(attack.run(LocalTarget(tiny_lm), corpus, lab_of(store, tiny_lm)))


@pytest.mark.parametrize("field", ["prefix", "length", "members"])
def test_fields_out_of_range_are_told_before_anything_runs(field: str) -> None:
    with pytest.raises(SpecError, match=f"verbatim:{field} is 0"):
        build("attacks", f"verbatim:{field}=0")


def test_leakage_is_the_excess_over_held_out_documents() -> None:
    outcomes = [
        Outcome(f"{member}{n}", f"{member}{n}", member, {"exact": float(n < hits), "run": 4.0 * (n < hits), "top": 0.5})
        for member, hits in ((True, 6), (False, 1))
        for n in range(10)
    ]
    scores = Verbatim(length=8).score(outcomes)
    assert scores.headline.value == pytest.approx((0.6 - 0.1) / (1 - 0.1))
    assert scores.beside["exact"].value == pytest.approx(0.6)
    assert scores.beside["chance"].value == pytest.approx(0.1)
    assert scores.beside["run"].value == pytest.approx(0.6 * 4 / 8)
    assert scores.beside["top_held_out"].value == pytest.approx(0.5)
    assert "near" not in scores.beside
    terms = Verbatim().terms(outcomes)
    assert np.mean([term.value for term in terms]) == pytest.approx(scores.headline.value)
    assert [term.side for term in terms] == ["members"] * 10 + ["others"] * 10


def test_contract() -> None:
    check_attack(Verbatim(prefix=6, length=6, near=True))


_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo")


@dataclasses.dataclass(frozen=True)
class Passages(Benchmark):
    """Passages of random words: eight to learn by heart, four copies each, and eight that were held out."""

    name: ClassVar[str] = "passages"
    summary: ClassVar[str] = "Random passages."

    def corpus(self) -> Corpus:
        rng = np.random.default_rng(3)
        words = [a + b for a in _SYLLABLES for b in _SYLLABLES]
        passages = [" ".join(rng.choice(words, 40)) for _ in range(80)]
        public = [Document(f"p{n}", text) for n, text in enumerate(passages[16:])]
        train = [Document(f"t{n}-{copy}", text, f"p{n}") for n, text in enumerate(passages[:8]) for copy in range(4)]
        held_out = [Document(f"h{n}", text, f"q{n}") for n, text in enumerate(passages[8:16])]
        return Corpus(public, train, held_out)

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(
            epochs=40.0,
            learning_rate=5e-3,
            warmup_steps=10,
            batch_size=8,
            block_size=64,
            pack="document",
            dtype="float32",
            checkpoints=1,
        )

    def base(self, lab: Lab) -> LM:
        lm: LM = untrained(lab.public, vocabulary=512, layers=2, width=64, heads=2, context=64, seed=0)
        return lm


@pytest.mark.slow
def test_passages_that_were_learnt_by_heart_are_recited_and_others_are_not(tmp_path: Path) -> None:
    work = prepare(Passages(), Settings(store=str(tmp_path), device="cpu"))
    attack = Verbatim(prefix=12, length=20)
    leakage = {}
    for defense in (Defense(), NeverTrained()):
        defended = defend(work, defense, 0)
        point = defended.points[-1]
        outcomes = measure(defended, point, attack, functools.partial(point.load, "cpu"))[0]
        leakage[defense.name] = attack.score(outcomes).headline
    assert leakage["never-trained"].value == 0
    assert leakage["none"].low > 0.3
