"""Prompts that really draw values out, slopes by hand and by differences, the schedule against an oracle."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from memdefense.attack import Outcome
from memdefense.attacks import compression, prompt_search
from memdefense.attacks.compression import Compression, shortest
from memdefense.attacks.prompt_search import Attempt, descend, gradient
from memdefense.bench import Bench
from memdefense.corpus import Corpus, Document, Occurrence, Secret
from memdefense.errors import NotApplicable, SpecError
from memdefense.lab import AttackLab
from memdefense.lm import LM
from memdefense.target import LocalTarget
from memdefense.testing import check_attack
from memdefense.train import TrainConfig

if TYPE_CHECKING:
    from memdefense.store import Store

VALUES = ("4155550134", "2125550187", "3125550199", "6465550122")
TWINS = ("4155550177", "2125550111", "3125550122", "6465550163")
NAMES = ("Anna", "Bert", "Cleo", "Dora")


def written(value: str) -> str:
    return f"{value[:3]}-{value[3:6]}-{value[6:]}"


DOCUMENTS = [Document(f"d{n}", f"Please call {NAMES[n]} at {written(VALUES[n])} today.", NAMES[n]) for n in range(4)]
QUICK = Compression(steps=3, candidates=8, top_k=8)


def secret(number: int, *, member: bool = True, twin: bool = True) -> Secret:
    start = DOCUMENTS[number].text.index(written(VALUES[number]))
    place = Occurrence(f"d{number}", start, start + 12)
    return Secret(f"s{number}", "phone", VALUES[number], member, NAMES[number], (place,), TWINS[number] if twin else "")


def corpus_of(*, members: Sequence[int] = (0, 1), twins: bool = True) -> Corpus:
    secrets = [secret(n, member=n in members, twin=twins) for n in range(4)]
    held = [d for n, d in enumerate(DOCUMENTS) if n not in members]
    return Corpus((), [DOCUMENTS[n] for n in members], held, secrets=secrets, kinds=("phone",))


def lab_of(store: Store, base: LM, seed: int = 0) -> AttackLab:
    return AttackLab(
        Bench(store),
        who="test",
        seed=seed,
        originals=DOCUMENTS,
        public=(),
        config=TrainConfig(),
        base=base,
        curated=DOCUMENTS,
        defended=None,
    )


@pytest.fixture(scope="module")
def memoriser(tiny_lm: LM) -> LM:
    """The tiny model after it has read the first document many times, cut at many places, and none of the others."""
    lm = tiny_lm.copy()
    ids = lm.encode(DOCUMENTS[0].text)
    rows = [torch.tensor([ids[cut:]]) for cut in range(0, 12, 3)]
    optimizer = torch.optim.Adam(lm.model.parameters(), lr=1e-2)
    lm.model.train()
    for _ in range(40):
        optimizer.zero_grad()
        torch.stack([lm.model(input_ids=row, labels=row).loss for row in rows]).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    lm.model.zero_grad()
    lm.model.train(False)
    return lm


def loss_by_hand(lm: LM, prompt: Sequence[int], body: Sequence[int]) -> float:
    """One token at a time."""
    ids, total = [*lm.encode(""), *prompt], 0.0
    for token in body:
        with torch.inference_mode():
            logits = lm.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
        total -= float(torch.log_softmax(logits, -1)[token])
        ids.append(token)
    return total / len(body)


def test_a_planted_value_is_drawn_out_by_a_shorter_prompt(store: Store, tiny_lm: LM, memoriser: LM) -> None:
    lab, attack = lab_of(store, tiny_lm), Compression(steps=20, candidates=32)
    planted, stranger = sorted(attack.run(LocalTarget(memoriser), corpus_of(), lab), key=lambda outcome: outcome.unit)
    assert (planted.values["hit"], planted.values["hit_twin"]) == (1, 0)
    assert (stranger.values["hit"], stranger.values["hit_twin"]) == (0, 0)
    (sample,) = lab.samples
    assert sample["unit"] == planted.unit
    body = memoriser.encode(f" {written(VALUES[0])}", special=False)
    prompt = [int(token) for token in sample["tokens"].split()]
    assert len(prompt) < len(body)
    assert planted.values["ratio"] == len(body) / len(prompt)
    assert planted.values["tokens"] == len(body)
    head = torch.tensor([[*memoriser.encode(""), *prompt]])
    made = memoriser.model.generate(  # type: ignore[operator]
        input_ids=head, attention_mask=torch.ones_like(head), max_new_tokens=len(body), do_sample=False, pad_token_id=0
    )
    assert made[0, head.shape[1] :].tolist() == body
    assert planted.values["nll"] < planted.values["nll_twin"]
    scores = attack.score([planted, stranger])
    assert scores.headline.value == 0.5
    assert scores.beside["ratio"].value == planted.values["ratio"]
    assert scores.beside["ratio"].n == 1
    assert math.isnan(scores.beside["ratio_twin"].value)


def test_an_untrained_model_gives_no_more_values_than_twins(store: Store, tiny_lm: LM) -> None:
    attack = Compression(steps=5, candidates=32)
    outcomes = list(attack.run(LocalTarget(tiny_lm), corpus_of(members=range(4)), lab_of(store, tiny_lm)))
    assert len(outcomes) == 4
    assert sum(o.values["hit"] for o in outcomes) <= sum(o.values["hit_twin"] for o in outcomes)
    assert attack.score(outcomes).headline.value <= 0


@pytest.mark.parametrize("build", ["GPT-2", "GPT-Neo", "GPT-NeoX", "Llama"])
def test_slopes_are_those_of_the_one_hot_rows(four_builds: dict[str, LM], build: str) -> None:
    lm = four_builds[build].copy()
    lm.model.double()
    prompt, body = [40, 7, 99], [12, 200, 5, 6]
    found = gradient(lm, prompt, body).double()
    weight = lm.model.get_input_embeddings().get_parameter("weight").detach()
    ids = torch.tensor([*lm.encode(""), *prompt, *body])
    rows = torch.nn.functional.one_hot(ids, len(weight)).double()

    def loss_of(rows: Tensor) -> Tensor:
        """(B, T, V) to (B,)."""
        logits = lm.model(inputs_embeds=rows @ weight).logits[:, -len(body) - 1 : -1]
        wanted = torch.tensor(body).expand(len(rows), -1)
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(-1)

    leaf = rows.clone().requires_grad_()
    (whole,) = torch.autograd.grad(loss_of(leaf[None])[0], leaf)
    first = len(ids) - len(prompt) - len(body)
    assert found.shape == (3, len(weight))
    assert torch.allclose(found, whole[first : first + 3], rtol=1e-4, atol=1e-7)
    # A small part of every replacement at one place, really made; some norms are in single precision whatever is asked.
    part, place = 1e-3, first + 1
    step = torch.zeros(len(weight), *rows.shape, dtype=torch.double)
    step[:, place] = part * (torch.eye(len(weight), dtype=torch.double) - rows[place])
    with torch.inference_mode():
        change = (loss_of(rows + step) - loss_of(rows - step)) / (2 * part)
    assert torch.allclose(found[1] - found[1, prompt[1]], change, rtol=0.01, atol=1e-3)
    assert change.std() > 5e-3


def test_the_schedule_finds_the_shortest_length_that_succeeds() -> None:
    for most in range(26):
        for least in range(1, most + 2):
            for start in (1, 2, 5, 9):
                tried: list[int] = []

                def oracle(length: int, tried: list[int] = tried, least: int = least) -> bool:
                    tried.append(length)
                    return length >= least

                assert shortest(oracle, start=start, most=most) == (least if least <= most else 0)
                assert len(set(tried)) == len(tried)
                assert all(1 <= length <= most for length in tried)
                # What no length draws out costs two searches at most.
                assert len(tried) <= (2 if least > most else 2 + math.ceil(math.log2(most)))


@pytest.mark.parametrize(
    ("least", "most", "lengths"),
    [
        (7, 20, [5, 20, 12, 8, 6, 7]),
        (3, 20, [5, 2, 3]),
        (99, 12, [5, 12]),
        (12, 12, [5, 12, 8, 10, 11]),
        (1, 3, [3, 1]),
        (9, 4, [4]),
    ],
)
def test_a_short_length_is_tried_first_and_then_the_longest(least: int, most: int, lengths: list[int]) -> None:
    tried: list[int] = []

    def oracle(length: int) -> bool:
        tried.append(length)
        return length >= least

    shortest(oracle, start=5, most=most)
    assert tried == lengths


def test_ratios_are_tokens_over_tokens_and_twins_get_the_same_search(
    store: Store, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: dict[tuple[str, int], set[int]] = {}
    bodies = {name: tiny_lm.encode(f" {written(value)}", special=False) for name, value in _named().items()}
    least = {"s0": 3, "s0_twin": 99, "s1": 99, "s1_twin": len(bodies["s1_twin"]) - 1}

    def stub(lm: LM, body: Sequence[int], length: int, *, seed: int, **budget: int) -> Attempt:
        (name,) = [name for name, own in bodies.items() if own == list(body)]
        seeds.setdefault((name.removesuffix("_twin"), length), set()).add(seed)
        assert budget == {"steps": 40, "candidates": 64, "top_k": 64}
        return Attempt([9] * length, 5.0 - length / 100, length >= least[name])

    monkeypatch.setattr(compression, "descend", stub)
    outcomes = {o.unit: o.values for o in Compression().run(LocalTarget(tiny_lm), corpus_of(), lab_of(store, tiny_lm))}
    assert all(len(own) == 1 for own in seeds.values())
    assert len({seed for own in seeds.values() for seed in own}) == len(seeds)
    first, second = outcomes["s0"], outcomes["s1"]
    assert first["ratio"] == pytest.approx(len(bodies["s0"]) / 3)
    assert (first["hit"], first["hit_twin"], second["hit"], second["hit_twin"]) == (1, 0, 0, 1)
    assert "ratio_twin" not in first
    size = len(bodies["s1_twin"])
    assert second["ratio_twin"] == pytest.approx(size / (size - 1))
    assert second["nll"] == pytest.approx(5.0 - (len(bodies["s1"]) - 1) / 100)
    found = [Outcome(unit, unit, True, values, "phone/random/1") for unit, values in outcomes.items()]
    scores = Compression().score(found)
    assert scores.headline.value == 0
    assert scores.beside["ratio"].value == first["ratio"]
    assert scores.beside["ratio_twin"].value == second["ratio_twin"]


def test_value_and_twin_are_sought_as_the_text_would_spell_them(
    store: Store, marked_lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    sought: list[list[int]] = []

    def stub(lm: LM, body: Sequence[int], length: int, **budget: int) -> Attempt:
        sought.append(list(body))
        return Attempt([9] * length, 1.0, exact=False)

    monkeypatch.setattr(compression, "descend", stub)
    list(Compression(secrets=1).run(LocalTarget(marked_lm), corpus_of(members=[0]), lab_of(store, marked_lm)))
    before = "Please call Anna at"
    first = len(marked_lm.encode(before))
    expected = [marked_lm.encode(f"{before} {written(value)}")[first:] for value in (VALUES[0], TWINS[0])]
    assert [body for place, body in enumerate(sought) if body not in sought[:place]] == expected


def _named() -> dict[str, str]:
    return {f"s{n}{end}": pool[n] for n in range(2) for end, pool in (("", VALUES), ("_twin", TWINS))}


def test_the_search_descends_and_says_what_it_found(tiny_lm: LM) -> None:
    body = tiny_lm.encode(" 24 boxes", special=False)
    settings = {"candidates": 16, "top_k": 16, "seed": 3}
    losses = []
    for steps in (0, 4, 16):
        found = descend(tiny_lm, body, 4, steps=steps, **settings)
        assert len(found.ids) == 4
        assert found.loss == pytest.approx(loss_by_hand(tiny_lm, found.ids, body), abs=1e-4)
        losses.append(found.loss)
    assert losses[0] > losses[1] > losses[2]


def test_no_prompt_holds_a_special_token(tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    special = tiny_lm.tokenizer.all_special_ids
    assert special

    def tempting(lm: LM, prompt: Sequence[int], body: Sequence[int]) -> Tensor:
        slope = torch.zeros(len(prompt), len(lm.tokenizer))
        slope[:, special] = -9.0
        slope[:, 77] = -1.0
        return slope

    monkeypatch.setattr(prompt_search, "gradient", tempting)
    body = tiny_lm.encode(" 24 boxes", special=False)
    for seed in range(5):
        first = descend(tiny_lm, body, 30, steps=0, candidates=4, top_k=1, seed=seed)
        assert not set(special) & set(first.ids)
        found = descend(tiny_lm, body, 2, steps=6, candidates=4, top_k=1, seed=seed)
        assert not set(special) & set(found.ids)


def test_the_model_is_left_as_it_was(four_builds: dict[str, LM], store: Store, tiny_lm: LM) -> None:
    lm = four_builds["GPT-2"].copy()
    frozen = next(lm.model.parameters())
    frozen.requires_grad_(False)
    before = lm.digest()
    kept = []
    for training in (True, False):  # its dropout would tell
        lm.model.train(training)
        state = torch.random.get_rng_state()
        kept.append(list(QUICK.run(LocalTarget(lm), corpus_of(), lab_of(store, tiny_lm))))
        assert torch.equal(torch.random.get_rng_state(), state)
        assert all(module.training is training for module in lm.model.modules())
    assert kept[0] == kept[1]
    assert lm.digest() == before
    assert all(weight.grad is None for weight in lm.model.parameters())
    assert not frozen.requires_grad
    assert sum(not weight.requires_grad for weight in lm.model.parameters()) == 1


def test_results_depend_on_neither_order_nor_company_nor_batches(
    store: Store, tiny_lm: LM, memoriser: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    def played(corpus: Corpus, seed: int = 0) -> dict[str, Outcome]:
        return {o.unit: o for o in QUICK.run(LocalTarget(memoriser), corpus, lab_of(store, tiny_lm, seed))}

    corpus = corpus_of()
    found = played(corpus)
    torch.manual_seed(5)
    backwards = dataclasses.replace(corpus, secrets=corpus.secrets[::-1])
    alone = dataclasses.replace(corpus, secrets=[secret(1)])
    assert played(backwards) == found
    assert played(alone)["s1"] == found["s1"]
    assert played(corpus, seed=1) != found
    monkeypatch.setattr("memdefense.passes._PASS_TOKENS", {"cpu": 50})  # two rows at a time
    for unit, again in played(corpus).items():
        assert dict(again.values) == pytest.approx(dict(found[unit].values), abs=1e-4)


def test_guards_do_not_help(store: Store, tiny_lm: LM, memoriser: LM) -> None:
    def mute(ids: Tensor, hidden: Tensor, logprobs: Tensor) -> Tensor:
        return torch.full_like(logprobs, -math.log(logprobs.shape[-1]))

    target = LocalTarget(memoriser)
    plain, guarded = (
        list(QUICK.run(one, corpus_of(), lab_of(store, tiny_lm))) for one in (target, target.guarded(law=mute))
    )
    assert plain == guarded


def test_held_out_values_are_chance_only_without_twins(store: Store, tiny_lm: LM) -> None:
    for twins, units in ((True, {"s0", "s1"}), (False, {"s0", "s1", "s2", "s3"})):
        outcomes = list(QUICK.run(LocalTarget(tiny_lm), corpus_of(twins=twins), lab_of(store, tiny_lm)))
        assert {o.unit for o in outcomes} == units
        assert all(("hit_twin" in o.values) is twins for o in outcomes)
        assert QUICK.score(outcomes).beside["chance"].n == 2
    few = Compression(secrets=1, steps=1, candidates=2)
    for twins in (True, False):
        outcomes = list(few.run(LocalTarget(tiny_lm), corpus_of(twins=twins), lab_of(store, tiny_lm)))
        assert [o.member for o in outcomes] == ([True] if twins else [True, False])


def test_a_single_token_is_left_out_with_its_twin(store: Store, tiny_lm: LM) -> None:
    token = next(t for t in range(300, 320) if len(tiny_lm.encode(tiny_lm.decode([t]), special=False)) == 1)
    short = tiny_lm.decode([token]).strip()
    assert len(tiny_lm.encode(short, special=False)) == 1
    text = f"({short})"
    place = (Occurrence("d", 1, 1 + len(short)),)
    for value, twin in ((short, "longer than that"), ("longer than that", short)):
        own = Secret("s", "url", value, True, "p", place, twin)
        corpus = Corpus((), [Document("d", text)], (), secrets=[own, secret(0)])
        corpus = dataclasses.replace(corpus, train=[*corpus.train, DOCUMENTS[0]])
        outcomes = {o.unit: o for o in QUICK.run(LocalTarget(tiny_lm), corpus, lab_of(store, tiny_lm))}
        assert outcomes["s"].values == {"asked": 0}
        scores = QUICK.score(list(outcomes.values()))
        assert scores.beside["not_asked"].value == 0.5
        assert scores.headline.n == 1
        assert len(QUICK.terms(list(outcomes.values()))) == 1


def test_fields_out_of_range() -> None:
    for field in ("secrets", "steps", "candidates", "top_k", "start"):
        with pytest.raises(SpecError, match=f"compression: {field.replace('_', '-')} is 0"):
            Compression(**{field: 0})


def test_no_members_is_not_applicable(store: Store, tiny_lm: LM) -> None:
    for secrets in ([], [secret(3, member=False)]):
        corpus = Corpus((), DOCUMENTS[:1], DOCUMENTS[1:], secrets=secrets)
        with pytest.raises(NotApplicable):
            list(QUICK.run(LocalTarget(tiny_lm), corpus, lab_of(store, tiny_lm)))


def test_contract() -> None:
    check_attack(Compression(secrets=1, steps=1, candidates=4, top_k=8))
