from __future__ import annotations

import dataclasses
import functools
import math
import sys
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import pytest
import torch
from torch import nn

from memdefense.bench import Bench
from memdefense.corpus import Document, Documents, Redrawn
from memdefense.defense import Defense, Stack
from memdefense.defenses import dp_sgd
from memdefense.defenses.dedup import Dedup
from memdefense.defenses.dp_decoding import DPDecoding
from memdefense.defenses.dp_plan import Plan, accountant_of, noise, plan, spent
from memdefense.defenses.dp_sgd import DPSGD
from memdefense.defenses.layered import Layered
from memdefense.defenses.pattern_filter import PatternFilter
from memdefense.defenses.pme import PME
from memdefense.defenses.refuse import Refuse
from memdefense.defenses.sani import SANI
from memdefense.defenses.scrub import Scrub
from memdefense.defenses.semdedup import SemDedup
from memdefense.defenses.unlearn import Unlearn
from memdefense.errors import ModelError, SpecError
from memdefense.interval import wilson
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.packing import ordered
from memdefense.pipeline import defend
from memdefense.runner import Settings, prepare
from memdefense.small_model import untrained
from memdefense.store import Store
from memdefense.target import LocalTarget, Target
from memdefense.testing import check_defense, tiny_benchmark
from memdefense.train import LoRA, TrainConfig

DOCUMENTS = [
    Document(f"d{place}", f"letter {place} goes out on day {place % 7}", f"a{place // 4}") for place in range(40)
]


def lab_of(folder: Path, documents: Documents = DOCUMENTS, base: LM | None = None, **training: object) -> Lab:
    config = TrainConfig(epochs=2, batch_size=4, block_size=32, dtype="float32", checkpoints=2)
    config = dataclasses.replace(config, **training)  # type: ignore[arg-type]
    bench = Bench(Store(folder / "store"))
    return Lab(bench, who="dp-sgd", seed=0, originals=documents, public=(), config=config, base=base)


def test_it_keeps_the_contract() -> None:
    check_defense(DPSGD(epochs=0.5))


def test_noise_against_the_gaussian_mechanism_by_formula() -> None:
    """Every unit in every batch: Renyi divergence a T / (2 s^2), turned into epsilon as in Canonne et al. 2020."""
    delta, steps = 1e-5, 20
    sigma = noise(4.0, delta, 1.0, steps, "rdp")
    orders = np.arange(1.1, 64, 0.1)
    renyi = orders * steps / (2 * sigma**2)
    epsilon = renyi + np.log1p(-1 / orders) - np.log(delta * orders) / (orders - 1)
    assert epsilon.min() == pytest.approx(4.0, rel=2e-3)


def test_noise_against_the_published_value() -> None:
    """Abadi et al. 2016: q 0.01, sigma 4, 10,000 steps and delta 1e-5 spend 1.26; later bounds less."""
    assert 3.0 < noise(1.26, 1e-5, 0.01, 10_000, "rdp") <= 4.0


def test_epsilon_spent_against_the_value_in_opacus_own_tests() -> None:
    """accountants_test.py of Opacus: 90 epochs at a rate of 0.04, with a noise of 1.5."""
    accountant = accountant_of("rdp")
    for _ in range(2250):
        accountant.step(noise_multiplier=1.5, sample_rate=0.04)
    assert spent(accountant, 1e-5) == pytest.approx(7.32911117143, abs=5e-8)


@pytest.mark.parametrize(("steps", "sigma"), [(2250, 1.416), (2000, 1.3562)])
def test_noise_against_the_values_in_opacus_own_tests(steps: int, sigma: float) -> None:
    """Epsilon 8 in accountants_test.py of Opacus, which compares four places."""
    assert noise(8.0, 1e-5, 0.04, steps, "rdp") == pytest.approx(sigma, abs=5e-5)


def test_noise_against_the_accountant_called_by_itself() -> None:
    from opacus.accountants import RDPAccountant

    sigma = noise(8.0, 1e-3, 0.1, 60, "rdp")
    accountant = RDPAccountant()
    for _ in range(60):
        accountant.step(noise_multiplier=sigma, sample_rate=0.1)
    assert 8.0 * 0.998 < accountant.get_epsilon(1e-3) <= 8.0


def subsampled(sigma: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon of the subsampled Gaussian mechanism, by Mironov, Talwar & Zhang 2019 for whole orders.

    At a whole order alpha the Renyi divergence is log A / (alpha - 1), with A the sum over k of C(alpha, k)
    (1 - q)^(alpha - k) q^k exp((k^2 - k) / (2 sigma^2)). The least over whole orders alone is an upper bound.
    """
    found = []
    for alpha in range(2, 101):
        terms = [
            math.log(math.comb(alpha, k))
            + (alpha - k) * math.log1p(-rate)
            + k * math.log(rate)
            + (k * k - k) / (2 * sigma**2)
            for k in range(alpha + 1)
        ]
        renyi = steps * float(np.logaddexp.reduce(terms)) / (alpha - 1)
        found.append(renyi + math.log1p(-1 / alpha) - math.log(delta * alpha) / (alpha - 1))
    return min(found)


@pytest.mark.parametrize(("epsilon", "batch"), [(0.5, 0), (1.0, 0), (1.0, 20)])
def test_the_noise_of_a_plan_against_the_subsampled_gaussian_by_formula(
    epsilon: float, batch: int, tmp_path: Path, tiny_lm: LM
) -> None:
    """At these budgets the best order is above ten, where Opacus tries whole orders too: the bound is then its own."""
    planned = plan(DPSGD(epsilon=epsilon, delta=1e-5, batch=batch), tiny_lm, DOCUMENTS, lab_of(tmp_path))
    assert (planned.rate, planned.steps) == ((0.5, 4) if batch else (0.125, 16))
    spent = [subsampled(factor * planned.sigma, planned.rate, planned.steps, 1e-5) for factor in (1, 0.9)]
    assert 0.98 * epsilon < spent[0] <= epsilon
    assert spent[1] > 1.02 * epsilon


@pytest.mark.slow
def test_the_numerical_accountant_is_tighter() -> None:
    assert 0.8 < noise(8.0, 1e-3, 0.1, 60, "prv") / noise(8.0, 1e-3, 0.1, 60, "rdp") < 1


def test_a_step_is_the_clipped_sum_plus_known_noise_over_the_expected_batch() -> None:
    weight = nn.Parameter(torch.zeros(3, 2))
    planned = Plan(cast(Any, [[None] * 40]), 1, 0.25, 1.5, 1e-3, {}, 0.0)
    noisy = dp_sgd._noisy(torch.optim.SGD([weight], lr=1.0), 0.2, planned, 7, torch.device("cpu"))
    clipped = torch.arange(6.0).view(3, 2)
    for step in range(2):
        before = weight.detach().clone()
        weight.grad = clipped.clone()
        noisy.step()
        noisy.zero_grad(set_to_none=True)
        generator = torch.Generator().manual_seed(7)
        drawn = [torch.normal(0.0, 1.5 * 0.2, (3, 2), generator=generator) for _ in range(step + 1)][-1]
        torch.testing.assert_close(weight.detach(), before - (clipped + drawn) / 10)


@pytest.mark.parametrize("micro_batch", [3, 64])
def test_a_whole_step_without_noise_is_that_of_single_examples(
    micro_batch: int, tmp_path: Path, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Documents one by one by autograd, clipped, added up and over the expected batch of 20, then one step of AdamW.

    With its own small epsilon AdamW's first step is the gradient's sign, which would hide every mistake of scale.
    """
    true = dp_sgd._noisy
    monkeypatch.setattr(torch.optim, "AdamW", functools.partial(torch.optim.AdamW, eps=0.1))
    monkeypatch.setattr(
        dp_sgd, "_noisy", lambda made, clip, plan, *rest: true(made, clip, dataclasses.replace(plan, sigma=0.0), *rest)
    )
    texts = [document.text + " and back again" * (place % 6) for place, document in enumerate(DOCUMENTS)]
    given = [dataclasses.replace(document, text=text) for document, text in zip(DOCUMENTS, texts, strict=True)]
    lab = lab_of(tmp_path, given, checkpoints=1, weight_decay=0.1)
    chance = lab.rng("dp-sgd/sampling").random(40)
    drawn = [document for document, one in zip(ordered(given, lab.seed, 0), chance, strict=True) if one < 0.5]
    assert len(drawn) not in (0, 20)

    model = tiny_lm.copy().model
    weights = list(model.parameters())
    singles = []
    for document in drawn:
        ids = torch.tensor([[*tiny_lm.encode(document.text), *tiny_lm.separator()][:32]])
        singles.append(torch.autograd.grad(model(input_ids=ids, labels=ids).loss, weights))
    norms = [float(torch.cat([part.flatten() for part in own]).norm()) for own in singles]
    clip = float(np.median(norms))
    assert min(norms) < 0.99 * clip < 1.01 * clip < max(norms)
    for place, weight in enumerate(weights):
        parts = [own[place] * min(1.0, clip / norm) for own, norm in zip(singles, norms, strict=True)]
        weight.grad = torch.stack(parts).sum(0) / 20
    torch.optim.AdamW(weights, lr=0.5, weight_decay=0.1).step()

    defense = DPSGD(epochs=0.5, batch=20, clip=clip, learning_rate=0.5, micro_batch=micro_batch)
    (point,) = defense.train(tiny_lm, given, lab)
    assert lab.notes["steps"] == 1
    assert lab.notes["clipped"] == pytest.approx(np.mean(np.array(norms) > clip), abs=1.5 / len(drawn))
    for (name, found), weight in zip(point.model.model.named_parameters(), weights, strict=True):
        torch.testing.assert_close(found, weight, rtol=0, atol=1e-5, msg=name)


def test_batches_are_drawn_unit_by_unit(tmp_path: Path, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[int]] = []
    monkeypatch.setattr(dp_sgd._Step, "__call__", lambda self, rows, drawn: batches.append(drawn))
    lab = lab_of(tmp_path)
    *_, last = DPSGD(batch=2, epochs=20).train(tiny_lm, DOCUMENTS, lab)
    sizes = np.array([len(drawn) for drawn in batches])
    steps, rate = 400, 2 / 40
    assert len(sizes) == steps == lab.notes["steps"]
    assert lab.notes["sample_rate"] == pytest.approx(rate)
    spread = math.sqrt(40 * rate * (1 - rate))
    assert abs(sizes.mean() - 2) < 5 * spread / math.sqrt(steps)
    assert abs(sizes.std() / spread - 1) < 5 / math.sqrt(2 * steps)
    assert (sizes == 0).sum() > 0  # and such a step still moves the weights, by noise
    each = np.bincount([unit for drawn in batches for unit in drawn], minlength=40)
    assert abs(each - steps * rate).max() < 5 * math.sqrt(steps * rate)
    assert last.model.digest() != tiny_lm.digest()


def test_notes_tell_what_was_spent(tmp_path: Path, tiny_lm: LM) -> None:
    lab = lab_of(tmp_path)
    before = tiny_lm.digest()
    points = list(DPSGD(epsilon=4).train(tiny_lm, DOCUMENTS, lab))
    assert tiny_lm.digest() == before
    assert [(point.label, point.at) for point in points] == [("0.5", 0.5), ("1.0", 1.0)]
    assert lab.notes["epsilon"] == lab.notes["epsilon_1.0"] <= 4
    assert 0 < lab.notes["epsilon_0.5"] < lab.notes["epsilon_1.0"]
    assert lab.notes["delta"] == pytest.approx(40**-1.1)
    assert lab.notes["units"] == 40
    assert lab.notes["steps"] == 16  # 2 epochs in batches of an eighth
    assert lab.notes["claim_void"] == 0
    assert lab.cost["tokens"] > 0


def test_an_author_is_one_unit(tmp_path: Path, tiny_lm: LM) -> None:
    planned = plan(DPSGD(unit="author"), tiny_lm, DOCUMENTS, lab_of(tmp_path))
    assert len(planned.tables[0]) == 10
    assert planned.delta == pytest.approx(10**-1.1)


def test_every_pass_brings_other_documents_of_an_author_forward(tmp_path: Path, tiny_lm: LM) -> None:
    lab = lab_of(tmp_path, epochs=2.5)
    planned = plan(DPSGD(unit="author"), tiny_lm, DOCUMENTS, lab)
    assert len(planned.tables) == 3
    seen: set[tuple[int, int]] = set()
    for epoch, table in enumerate(planned.tables):
        first: dict[str, int] = {}
        for document in ordered(DOCUMENTS, lab.seed, epoch):
            first.setdefault(document.author, DOCUMENTS.index(document))
        assert table.columns["document"][:, 0].tolist() == list(first.values())
        columns = (table.columns[name][table.columns["document"] >= 0].tolist() for name in ("document", "offset"))
        seen |= set(zip(*columns, strict=True))
    assert [planned.tables.index(planned.rows(step)) for step in (1, 2, planned.steps)] == [0, 0, 2]
    tokens = sum(len(tiny_lm.encode(document.text)) + 1 for document in DOCUMENTS)
    assert planned.notes["tokens_cut"] == pytest.approx(1 - len(seen) / tokens)
    assert 0 < planned.tokens_cut < plan(DPSGD(unit="author", epochs=1), tiny_lm, DOCUMENTS, lab).tokens_cut < 1
    alone = plan(DPSGD(), tiny_lm, DOCUMENTS, lab)
    assert (len(alone.tables), alone.tokens_cut) == (1, 0)


@pytest.mark.parametrize("defense", [Dedup(match_steps=True), SemDedup(match_steps=True)])
def test_matched_steps_draw_as_many_units_as_without_deduplication(
    defense: Dedup | SemDedup, tmp_path: Path, tiny_lm: LM
) -> None:
    lab = lab_of(tmp_path, base=tiny_lm, epochs=4)
    plain = plan(DPSGD(), tiny_lm, DOCUMENTS, lab)
    lab.config = defense.configure(lab.config, lab)
    left = plan(DPSGD(), tiny_lm, DOCUMENTS[::2], lab)
    draws, expected = (made.steps * made.rate * len(made.tables[0]) for made in (left, plain))
    assert expected == 4 * 40
    assert draws == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("what", ["changed", "fewer", "redrawn", "nameless"])
def test_the_claim_is_void_where_the_text_is_not_the_original(what: str, tmp_path: Path, tiny_lm: LM) -> None:
    defense, lab = DPSGD(epochs=0.25), lab_of(tmp_path)
    given: Documents = DOCUMENTS
    if what == "changed":
        given = [dataclasses.replace(DOCUMENTS[0], text="something else"), *DOCUMENTS[1:]]
    elif what == "fewer":
        given = DOCUMENTS[1:]
    elif what == "redrawn":
        given = Redrawn(DOCUMENTS, lambda epoch: DOCUMENTS)
    else:
        given = [dataclasses.replace(document, author="") for document in DOCUMENTS]
        defense, lab = DPSGD(epochs=0.25, unit="author"), lab_of(tmp_path, given)
    list(defense.train(tiny_lm, given, lab))
    assert lab.notes["claim_void"] == 1
    assert lab.notes["documents_missing"] == (what == "fewer")
    assert lab.notes["authors_missing"] == (40 if what == "nameless" else 0)


@dataclasses.dataclass(frozen=True)
class Recite(Defense):
    """A guard that is handed the private documents, as every guard is, and could serve them."""

    name: ClassVar[str] = "recite"
    family: ClassVar[str] = "training"

    def guard(self, target: Target, documents: Documents, lab: Lab) -> Target:
        return target


@pytest.mark.parametrize("other", [SANI(), PME(), Unlearn(), Recite(), Stack((PatternFilter(), Recite()))])
def test_the_claim_is_void_beside_what_takes_private_text_up_after_training(other: Defense) -> None:
    assert Stack((DPSGD(), other)).beside(()) == {"claim_void": 1}
    assert Stack((other, Stack((Refuse(), DPSGD())))).beside(()) == {"claim_void": 1}


@pytest.mark.parametrize("other", [Dedup(), SemDedup(), Scrub(), Layered()])
def test_the_claim_is_void_behind_a_curation_even_of_nothing(other: Defense) -> None:
    assert Stack((other, DPSGD())).beside(()) == {"claim_void": 1}


@pytest.mark.parametrize("other", [Defense(), PatternFilter(), DPDecoding(), Refuse()])
def test_the_claim_is_not_void_beside_what_reads_no_private_text_after_training(other: Defense) -> None:
    assert Stack((DPSGD(), other)).beside(()) == Stack((SANI(), other)).beside(()) == {}


def test_the_row_of_a_stack_that_edits_says_that_the_claim_is_void(tmp_path: Path) -> None:
    work = prepare(tiny_benchmark(), Settings(store=str(tmp_path), device="cpu"))
    defense = DPSGD(epochs=0.25)
    for other, void in ((SANI(epochs=1), 1), (PatternFilter(), 0)):
        for _ in range(2):  # the second time from the store
            notes = defend(work, Stack((defense, other)), 0).notes
            assert (notes["claim_void"], notes["epsilon"] > 0) == (void, True)
    assert defend(work, defense, 0).notes["claim_void"] == 0


def test_adapters_alone_are_trained(tmp_path: Path, tiny_lm: LM) -> None:
    *_, last = DPSGD(epochs=0.5).train(tiny_lm, DOCUMENTS, lab_of(tmp_path, lora=LoRA(rank=2)))
    moved = {
        name
        for (name, new), old in zip(last.model.model.named_parameters(), tiny_lm.model.parameters(), strict=True)
        if not torch.equal(new, old)
    }
    assert moved == {
        f"transformer.h.{place}.{layer}.weight"
        for place in range(2)
        for layer in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }


def test_weights_that_do_not_move_are_an_error(tmp_path: Path, tiny_lm: LM) -> None:
    with pytest.raises(ModelError, match="did not move"):
        list(DPSGD(epochs=0.25, learning_rate=1e-30).train(tiny_lm, DOCUMENTS, lab_of(tmp_path, weight_decay=0.0)))


def test_documents_without_any_gradient_are_an_error_though_noise_moves_the_weights(
    tmp_path: Path, tiny_lm: LM
) -> None:
    dead = tiny_lm.copy()
    for weight in dead.model.parameters():
        weight.data.zero_()
    with pytest.raises(ModelError, match=r"the gradients of all \d+ examples drawn so far are zero"):
        list(DPSGD(epochs=0.125).train(dead, DOCUMENTS, lab_of(tmp_path)))  # one step


def test_the_loss_of_a_row_is_the_mean_over_its_tokens_by_hand(tiny_lm: LM) -> None:
    """Rows of six, three and one token, padded on the right to six."""
    rows = [[5, 9, 2, 40, 9, 11], [7, 30, 8], [6]]
    ids = torch.tensor([row + [0] * (6 - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (6 - len(row)) for row in rows])
    for positions in (True, False):
        step = dp_sgd._Step(DPSGD(), tiny_lm.model, {}, positions, half=False)
        with torch.inference_mode():
            found = step._losses(ids, labels)
            for row, loss in zip(rows, found.tolist(), strict=True):
                said = torch.log_softmax(tiny_lm.model(input_ids=torch.tensor([row])).logits[0].double(), -1)
                each = [-float(said[place, row[place + 1]]) for place in range(len(row) - 1)]
                assert loss == pytest.approx(sum(each) / len(each) if each else 0.0, abs=1e-5)


def test_what_cannot_be_is_refused(tmp_path: Path, tiny_lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match="unit cannot be 'documents'"):
        DPSGD(unit=cast(Any, "documents"))
    with pytest.raises(SpecError, match="epsilon is 0"):
        DPSGD(epsilon=0)
    with pytest.raises(SpecError, match="epsilon 1000 is beyond 100"):
        DPSGD(epsilon=1000)
    with pytest.raises(SpecError, match="delta must be below 1"):
        DPSGD(delta=1)
    with pytest.raises(SpecError, match=r"delta 0\.5 is not below 1 / 40"):
        plan(DPSGD(delta=0.5), tiny_lm, DOCUMENTS, lab_of(tmp_path))
    one = [dataclasses.replace(document, author="ann") for document in DOCUMENTS]
    with pytest.raises(SpecError, match=r"there is 1 unit \(author\) only, too few .*, or take unit=document"):
        plan(DPSGD(unit="author"), tiny_lm, one, lab_of(tmp_path, one))
    with pytest.raises(SpecError, match=r"there is 1 unit \(document\) only, too few .*; give more documents"):
        plan(DPSGD(), tiny_lm, one[:1], lab_of(tmp_path, one[:1]))
    with pytest.raises(SpecError, match=r"epsilon 0\.001 cannot be reached .* the smallest .* is 0\.1"):
        plan(DPSGD(epsilon=0.001, delta=1e-6), tiny_lm, DOCUMENTS, lab_of(tmp_path))
    with pytest.raises(ModelError, match="beyond the model's context of 64"):
        plan(DPSGD(), tiny_lm, DOCUMENTS, lab_of(tmp_path, block_size=65))
    monkeypatch.setitem(sys.modules, "opacus.accountants.utils", None)
    with pytest.raises(SpecError, match=r'pip install "memdefense\[dp\]"'):
        plan(DPSGD(), tiny_lm, DOCUMENTS, lab_of(tmp_path))


@pytest.mark.slow
def test_copied_canaries_are_extracted_without_it_and_not_with_it(tmp_path: Path) -> None:
    """Ten codes of four letters, sixteen copies each, asked for by what stands before them.

    Twelve epochs, epsilon 8 for one document: for a code in sixteen of them the guarantee says nothing, and it is not
    found all the same. Utility is the mean loss on unseen letters: it must learn something of what plain training does.
    """
    rng = np.random.default_rng(0)

    def letter(words: str, place: int) -> str:
        name, thing, day = (rng.choice(choice) for choice in (_NAMES, _THINGS, _DAYS))
        return words.format(name=name, thing=thing, day=day, place=place % 100, code=_code(rng))

    public = [Document(f"p{i}", letter(_NOTE, i)) for i in range(300)]
    unseen = [letter(_LETTER, i) for i in range(60)]
    codes = [_code(rng) for _ in range(10)]
    openings = [f"The code of vault {place} is" for place in range(10)]
    planted = [f"{opening} {code}." for opening, code in zip(openings, codes, strict=True) for _ in range(16)]
    private = [Document(f"t{i}", text) for i, text in enumerate([*(letter(_LETTER, i) for i in range(160)), *planted])]
    fresh = untrained(public, vocabulary=400, layers=2, width=64, heads=2, context=64, seed=0)
    lab = lab_of(
        tmp_path, private, epochs=12, batch_size=8, block_size=64, learning_rate=3e-3, checkpoints=1, pack="document"
    )
    *_, base = lab.fit(fresh, public, config=dataclasses.replace(lab.config, epochs=3))
    *_, plain = lab.fit(base.model, private)
    *_, defended = DPSGD().train(base.model, private, lab)
    found, loss = {}, {}
    for name, point in {"before": base, "plain": plain, "dp": defended}.items():
        target = LocalTarget(point.model, 0)
        found[name] = sum(target.continues(openings, [f" {code}" for code in codes]))
        loss[name] = float(-np.concatenate([signal.logprob for signal in target.signals(unseen)]).mean())
    assert found["before"] == 0, (found, loss)
    assert wilson(found["plain"], 10)[0] > wilson(found["dp"], 10)[1], (found, loss)
    assert loss["dp"] < loss["before"] - 0.1 * (loss["before"] - loss["plain"]), (found, loss)


_LETTER = "To {name}: the {thing} is ready on {day}. The code of case {place} is {code}. Greetings"
_NOTE = "On {day} {name} asked again: where is the {thing}? Look at shelf {place}, the code is {code}."
_NAMES = ("Ann", "Bert", "Cleo", "Dora", "Emil", "Fay")
_THINGS = ("contract", "invoice", "sample", "report", "pump")
_DAYS = ("Monday", "Tuesday", "Friday")


def _code(rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 4))
