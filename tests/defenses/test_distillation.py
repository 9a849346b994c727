from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from memdefense.corpus import Document, Redrawn
from memdefense.defense import Defense
from memdefense.defenses.distillation import Distillation, ReverseLoss, WordLoss, drawn, forward_kl, reverse_kl
from memdefense.errors import DataError, NotApplicable, SpecError
from memdefense.fit import fit, load_checkpoint
from memdefense.interval import wilson
from memdefense.lm import LM, Sampling
from memdefense.pipeline import defend
from memdefense.runner import Settings, prepare
from memdefense.store import Store
from memdefense.testing import check_defense, tiny_benchmark
from memdefense.train import Batch, TrainConfig, next_token_loss

if TYPE_CHECKING:
    from memdefense.lab import Lab

Method = Literal["word", "sequence", "reverse"]


@pytest.mark.parametrize("method", ["word", "sequence", "reverse"])
def test_contract(method: Method) -> None:
    check_defense(Distillation(method=method, temperature=2.0, written=8))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_both_divergences_are_torchs_own(temperature: float) -> None:
    source = torch.Generator().manual_seed(0)
    teacher, student = (3 * torch.randn(5, 7, 11, generator=source) for _ in range(2))
    p, q = (logits.div(temperature).softmax(-1) for logits in (teacher, student))
    factor = temperature**2
    forward, reverse = (float(f(teacher, student, temperature)) for f in (forward_kl, reverse_kl))
    assert forward == pytest.approx(factor * float(kl_div(q.log(), p, reduction="sum")), rel=1e-5)
    assert reverse == pytest.approx(factor * float(kl_div(p.log(), q, reduction="sum")), rel=1e-5)
    assert forward == pytest.approx(factor * float((p * (p / q).log()).sum()), rel=1e-5)
    assert abs(forward - reverse) > 1


def test_the_reverse_gradient_is_that_of_finite_differences() -> None:
    source = torch.Generator().manual_seed(1)
    teacher = torch.randn(2, 5, generator=source, dtype=torch.float64)
    student = torch.randn(2, 5, generator=source, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda logits: reverse_kl(teacher, logits, 1.5), (student,))


def batch_of(lm: LM, rows: int = 3, length: int = 32) -> Batch:
    ids = torch.randint(1, 320, (rows, length), generator=torch.Generator().manual_seed(2))
    labels, document = ids.clone(), torch.zeros_like(ids)
    labels[0, 20:], document[0, 20:] = -100, -1
    return Batch(ids, labels, document, torch.zeros_like(ids))


def test_word_by_word_is_half_of_each(tiny_lm: LM, tiny_llama: LM) -> None:
    batch = batch_of(tiny_lm)
    with torch.no_grad():
        total, count = WordLoss(tiny_llama, 1.0, 0.5, False)(tiny_lm.model, batch)
        nll, same = next_token_loss(tiny_lm.model, batch)
        learned = batch.labels[:, 1:] != -100
        p = tiny_llama.model(input_ids=batch.ids).logits[:, :-1].softmax(-1)[learned]
        q = tiny_lm.model(input_ids=batch.ids).logits[:, :-1].softmax(-1)[learned]
    assert int(count) == int(same) == 2 * 31 + 19
    assert float(total) == pytest.approx(0.5 * float(nll) + 0.5 * float((p * (p / q).log()).sum()), rel=1e-4)


class Bigram(nn.Module):
    """Logits that hang on the last token alone: a row of a table."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(table)

    def forward(self, input_ids: Tensor, past_key_values: None = None, use_cache: bool = False) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids], past_key_values=None)


def softmax(logits: np.ndarray) -> np.ndarray:
    shares: np.ndarray = np.exp(logits) / np.exp(logits).sum()
    return shares


def test_word_by_word_by_hand() -> None:
    """The temperature is in the divergence, as is its square, and not in the next-token loss, which alpha weighs."""
    student, teacher = np.random.default_rng(0).normal(size=(2, 5, 5)) * 2
    ids, document = torch.tensor([[0, 3, 1, 4], [2, 2, 0, 0]]), torch.tensor([[0, 0, 0, 0], [1, 1, -1, -1]])
    batch = Batch(ids, ids.masked_fill(document < 0, -100), document, torch.zeros_like(ids))
    told = cast(LM, SimpleNamespace(model=Bigram(torch.tensor(teacher))))
    total, count = WordLoss(told, 2.0, 0.3, False)(Bigram(torch.tensor(student)), batch)
    expected = 0.0
    for before, token in ((0, 3), (3, 1), (1, 4), (2, 2)):
        p, q = softmax(teacher[before] / 2), softmax(student[before] / 2)
        nll = -np.log(softmax(student[before])[token])
        expected += 0.3 * nll + 0.7 * 2**2 * (p * np.log(p / q)).sum()
    assert int(count) == 4
    assert float(total.detach()) == pytest.approx(expected, rel=1e-5)


def test_reverse_by_hand() -> None:
    """A student that is sure of the next number, modulo 7, and a teacher that is sure of the last."""
    student, teacher = np.random.default_rng(1).normal(size=(2, 7, 7))
    for token in range(7):
        student[token, (token + 1) % 7] += 40
        teacher[token, (token - 1) % 7] += 40
    ids = torch.tensor([[0, 5, 5, 2, 6, 1], [3, 3, 0, 4, 4, 4]])
    batch = Batch(ids, ids, torch.tensor([[0] * 6, [1] * 6]), torch.zeros_like(ids))
    told = cast(LM, SimpleNamespace(model=Bigram(torch.tensor(teacher))))
    cuts = set()
    for seed in range(8):
        torch.manual_seed(seed)
        total, count = ReverseLoss(told, 2.0, 3, 4, False)(Bigram(torch.tensor(student)), batch)
        cut = int(count) // 2 - 2  # of what is cut and three more, all but the last predict
        expected = 0.0
        for row in ids.tolist():
            last = row[cut - 1]
            for before in [*row[:cut], (last + 1) % 7, (last + 2) % 7]:
                p, q = softmax(teacher[before] / 2), softmax(student[before] / 2)
                expected += 2**2 * (q * np.log(q / p)).sum()
        assert float(total.detach()) == pytest.approx(expected, rel=1e-5)
        cuts.add(cut)
    assert cuts <= {1, 2, 3, 4}
    assert len(cuts) > 1


@pytest.mark.parametrize("build", ["GPT-2", "Llama"])
def test_in_bfloat16_every_weight_has_a_gradient(tiny_lm: LM, tiny_llama: LM, build: str) -> None:
    """Though the same weights were cast before, without a graph, for what the student writes."""
    student, teacher = (tiny_lm.copy(), tiny_llama) if build == "GPT-2" else (tiny_llama.copy(), tiny_lm)
    with torch.autocast("cpu", torch.bfloat16):
        total, _ = ReverseLoss(teacher, 1.0, 8, 24, True)(student.model, batch_of(tiny_lm))
    total.backward()  # type: ignore[no-untyped-call, unused-ignore]
    for name, weight in student.model.named_parameters():
        assert weight.grad is not None, name
        assert float(weight.grad.abs().max()) > 0, name


def test_a_student_like_its_teacher_has_nothing_to_learn(tiny_lm: LM) -> None:
    loss = ReverseLoss(tiny_lm, 1.0, 8, 24, False)
    total, count = loss(tiny_lm.model, batch_of(tiny_lm))
    assert float(total.detach()) == pytest.approx(0, abs=1e-4)
    assert int(count) % 3 == 0 or int(count) % 2 == 0  # without the first row where it ends before the cut
    assert int(count) >= 2 * 8


def test_what_is_drawn_follows_the_models_own_law(tiny_lm: LM) -> None:
    prompt = torch.tensor([[5, 6, 7]]).repeat(4000, 1)
    torch.manual_seed(0)
    tokens = drawn(tiny_lm.model, prompt, torch.rand(4000, 2))
    with torch.no_grad():
        first = tiny_lm.model(input_ids=prompt[:1]).logits[0, -1].softmax(-1)
    counts = torch.bincount(tokens[:, 0], minlength=len(first)).float()
    expected = 4000 * first
    assert float(((counts - expected) ** 2 / expected).sum()) < len(first) + 5 * (2 * len(first)) ** 0.5
    assert tokens.shape == (4000, 2)
    assert not tiny_lm.model.training


def test_a_row_is_drawn_by_its_own_numbers_alone(tiny_lm: LM) -> None:
    prompts, chance = torch.arange(1, 13).view(4, 3), torch.rand(4, 5, generator=torch.Generator().manual_seed(0))
    whole = drawn(tiny_lm.model, prompts, chance)
    parts = [drawn(tiny_lm.model, prompts[part], chance[part]) for part in (slice(0, 1), slice(1, 4))]
    assert torch.equal(torch.cat(parts), whole)
    last = tiny_lm.model.config.vocab_size - 1
    assert drawn(tiny_lm.model, prompts, torch.ones(4, 1)).max() <= last


def test_a_model_that_fails_while_it_draws_goes_on_in_training(tiny_lm: LM) -> None:
    student = tiny_lm.copy().model.train()
    with pytest.raises(IndexError):
        drawn(student, torch.tensor([[10**6]]), torch.rand(1, 2))
    assert student.training


def test_micro_batches_change_no_number(tiny_lm: LM, tiny_llama: LM, tmp_path: Path) -> None:
    documents = [Document(f"d{n}", "The report is ready. " * (1 + n % 4)) for n in range(8)]
    config = TrainConfig(
        steps=6, learning_rate=1e-3, batch_size=4, block_size=32, pack="document", dtype="float32", checkpoints=1
    )
    loss = ReverseLoss(tiny_llama, 1.0, 8, 20, False)
    runs = [
        fit(tiny_lm, documents, tmp_path / f"{size}", config=config, seed=0, loss=loss, micro_batch=size)[0][0]
        for size in (0, 1, 3)
    ]
    whole, *others = (load_checkpoint(run, tiny_lm).model.state_dict() for run in runs)
    for other in others:
        for name, weight in whole.items():
            torch.testing.assert_close(other[name], weight, atol=1e-5, rtol=1e-4, msg=name)


def test_a_step_keeps_its_draws_until_it_is_done(tiny_lm: LM, tiny_llama: LM) -> None:
    loss, batch = copy.deepcopy(ReverseLoss(tiny_llama, 1.0, 8, 24, False)), batch_of(tiny_lm)
    assert loss.teacher is tiny_llama
    torch.manual_seed(0)
    found = []
    for done in (False, True, True):
        total, count = loss(tiny_lm.model, batch)
        found.append((float(total.detach()), int(count)))
        loss.commit(done)
    assert found[0] == found[1] != found[2]


def test_an_interrupted_run_draws_the_same_again(tiny_lm: LM, tiny_llama: LM, tmp_path: Path) -> None:
    documents = [Document(f"d{n}", f"The report {n} on room {n % 7} is ready for the team at noon.") for n in range(8)]
    config = TrainConfig(
        steps=6, learning_rate=5e-3, batch_size=4, block_size=32, pack="document", dtype="float32", checkpoints=3
    )
    loss = ReverseLoss(tiny_llama, 1.0, 8, 16, False)
    whole = fit(tiny_lm, documents, tmp_path / "whole", config=config, seed=0, loss=loss)[0]

    def interrupt(done: int, _: int) -> None:
        if done == 5:  # the newest checkpoint is of step 4
            raise KeyboardInterrupt

    folder = tmp_path / "broken"
    with pytest.raises(KeyboardInterrupt):
        fit(tiny_lm, documents, folder, config=config, seed=0, loss=loss, progress=interrupt)
    torch.manual_seed(5)  # of another process
    parts = fit(tiny_lm, documents, folder, config=config, seed=0, loss=loss)[0]
    for one, other in zip(whole, parts, strict=True):
        assert load_checkpoint(one, tiny_lm).digest() == load_checkpoint(other, tiny_lm).digest()


def test_rows_that_all_end_before_the_cut_teach_nothing(tiny_lm: LM) -> None:
    batch = batch_of(tiny_lm)
    batch.document[:, 1:] = -1
    total, count = ReverseLoss(tiny_lm, 1.0, 8, 24, False)(tiny_lm.model, batch)
    total.backward()  # type: ignore[no-untyped-call, unused-ignore]
    assert float(total.detach()) == int(count) == 0


@pytest.mark.parametrize("kind", ["word", "reverse"])
def test_a_student_comes_closer_to_its_teacher(tiny_lm: LM, tmp_path: Path, kind: str) -> None:
    documents = [Document(f"d{n}", f"The report {n} on room {n % 7} is ready for the team at noon.") for n in range(24)]
    config = TrainConfig(steps=40, learning_rate=5e-3, batch_size=8, block_size=32, dtype="float32", checkpoints=1)
    teacher = load_checkpoint(fit(tiny_lm, documents, tmp_path / "teacher", config=config, seed=0)[0][0], tiny_lm)
    loss = WordLoss(teacher, 1.0, 0.0, False) if kind == "word" else ReverseLoss(teacher, 1.0, 8, 24, False)
    runs = [fit(tiny_lm, documents, tmp_path / f"{n}", config=config, seed=0, loss=loss)[0][0] for n in range(2)]
    students = [load_checkpoint(run, tiny_lm) for run in runs]
    assert students[0].digest() == students[1].digest()
    batch = Batch(*(torch.tensor([teacher.encode(documents[0].text)[:24]]) for _ in range(4)))
    with torch.no_grad():
        theirs = teacher.model(input_ids=batch.ids).logits
        before, after = (float(forward_kl(theirs, m.model(input_ids=batch.ids).logits)) for m in (tiny_lm, students[0]))
    assert after < 0.3 * before


def test_the_student_that_is_handed_out_is_smaller(store: Store) -> None:
    work = prepare(tiny_benchmark(), Settings(store=str(store.folder), device="cpu"))
    defended = defend(work, Distillation(), 0)
    for point in defended.points:
        student = point.load("cpu")
        assert student.width == work.base.width // 2
        assert student.model.config.num_hidden_layers == 1  # of three
        assert student.parameters() < 0.5 * work.base.parameters()
    assert defended.notes["student_share"] == student.parameters() / work.base.parameters()


class StubLab:
    """Serves the teacher itself; the config's block is 32 tokens."""

    config = TrainConfig(block_size=32)

    def serve(self, model: LM) -> object:
        from memdefense.target import LocalTarget

        return LocalTarget(model)

    def rng(self, purpose: str) -> object:
        return np.random.default_rng(0)


def test_the_teacher_continues_every_piece(tiny_lm: LM) -> None:
    text = "Please call Anna at noon or write before the meeting on Tuesday about the invoice and the boxes. " * 2
    ids = tiny_lm.encode(text, special=False)
    written = Distillation(method="sequence", prompt=8)._written(
        tiny_lm, [Document("a", text), Document("b", "noon")], cast("Lab", StubLab())
    )
    assert {document.id for document in written} == {f"a/{start}" for start in range(0, len(ids) - 8, 32)}
    for document in written:
        start = int(document.id.partition("/")[2])
        prompt = tiny_lm.decode(ids[start : start + 8])
        assert document.text.startswith(prompt)
        assert document.text != prompt
        assert document.text not in text  # an untrained teacher writes nothing of the private text
    with pytest.raises(DataError, match="no document is longer than a prompt of 8"):
        Distillation(prompt=8)._written(tiny_lm, [Document("b", "noon")], cast("Lab", StubLab()))
    with pytest.raises(SpecError, match="below the 32 tokens"):
        Distillation(prompt=32)._written(tiny_lm, [Document("a", text)], cast("Lab", StubLab()))


def test_what_is_redrawn_in_every_epoch_is_not_continued_once(tiny_lm: LM) -> None:
    """The other methods read each epoch's own text, as any training does."""
    documents = [Document("a", "Please call Anna at noon.")]
    redrawn = Redrawn(documents, lambda epoch: documents)
    with pytest.raises(NotApplicable, match="redrawn in every epoch; take method=word or method=reverse"):
        Distillation(method="sequence").train(tiny_lm, redrawn, cast("Lab", None))
    for method in ("word", "reverse"):
        with pytest.raises(AttributeError, match="fit"):  # it goes on to train the teacher
            Distillation(method=method).train(tiny_lm, redrawn, cast("Lab", None))


def test_the_teacher_draws_at_its_temperature(tiny_lm: LM) -> None:
    drawn_with: list[Sampling] = []

    class Writer:
        def generate(self, prompts: list[str], *, max_new_tokens: int, sampling: Sampling) -> list[str]:
            drawn_with.append(sampling)
            return ["" for _ in prompts]

    class WriterLab(StubLab):
        def serve(self, model: LM) -> object:
            return Writer()

    text = "Please call Anna at noon or write before the meeting on Tuesday about the invoice and the boxes. " * 2
    teaching = Distillation(method="sequence", prompt=8, temperature=0.5)
    teaching._written(tiny_lm, [Document("a", text)], cast("Lab", WriterLab()))
    assert drawn_with
    for sampling in drawn_with:
        assert sampling == Sampling(0.5, seed=sampling.seed)  # and no other limit


def test_values_out_of_range_are_refused() -> None:
    with pytest.raises(SpecError, match="cannot be larger than its teacher"):
        Distillation(shrink=0)
    with pytest.raises(SpecError, match="temperature must be above 0"):
        Distillation(temperature=0.0)
    with pytest.raises(SpecError, match="did you mean 'reverse'"):
        Distillation(method=cast("Method", "revers"))


@pytest.mark.slow
def test_a_student_of_its_teachers_size_recites_less(recite: Callable[[Defense], tuple[int, int, float]]) -> None:
    plain, plain_of, before = recite(Defense())
    hits, of, after = recite(Distillation(shrink=1, method="reverse"))  # not smaller, so distillation itself
    assert wilson(plain, plain_of)[0] > 0.8  # 40 of 40
    assert wilson(hits, of)[1] < 0.3  # 0 of 40
    assert after < 1.1 * before
