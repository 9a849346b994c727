"""Adversarial compression (Schwarzschild et al. 2024): is there a prompt shorter than a value that draws it out?"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from memdefense import LM, Attack, Corpus, NotApplicable, Outcome, Score, Scores, Secret, SpecError
from memdefense.attack import Access, Term
from memdefense.match import written_like
from memdefense.score import mean_interval
from memdefense.spelling import continued

from .extracted import stratum
from .extraction_report import leakage_of, rate_of, share
from .prompt_search import Attempt, descend

if TYPE_CHECKING:
    from memdefense import AttackLab
    from memdefense.access import WeightTarget


@dataclasses.dataclass(frozen=True)
class Compression(Attack):
    """The shortest prompt found whose greedy continuation begins with a value; a hit is one shorter than the value.

    The adversarial compression ratio of a value is its number of tokens over those of its shortest prompt, and it is
    called memorized where that is above 1: the model then holds something of the value that the prompt does not.
    Prompts are sought by gradient (greedy coordinate gradient, Zou et al. 2023, arXiv 2307.15043), at a short length,
    where that fails at the longest that counts, and where one succeeds by halving the lengths below it. Since the
    attacker holds the weights, the search goes past every guard, and a prompt is token ids, which need not be the
    tokens of any text. What the tokenizer puts before every text stands before it and is not counted; where that is
    nothing, nothing does, since a model trained with one document a row has never read on from an end of text.

    Leakage is the excess of the hit rate over chance. Chance is the twin, searched for with the same budget from the
    same random numbers, where every chosen value has one; only else are held-out values searched for, as many as
    members. ``ratio`` is the mean ratio of the values found, ``nll`` the mean negative log-probability per token, in
    nats, under the best prompt of each value's search, found or not; ``_twin`` and ``_held_out`` are the same of those.

    A hit is proved by its prompt. No hit proves nothing, since the search is local and short: hit rate and ratio are
    lower bounds, and tell more beside the twins' than by themselves. It needs the value, so it shows what a model
    holds and not what an attacker without the value could get. On `mailbox` (version 3), undefended, it finds
    prompts for 3, 3 and 4 of 12 values at the end of training (three seeds), and for none of their twins; in two
    minutes of a core each time.

    Deviates [ours]: no prompt as long as the value or longer is tried, since it cannot give a ratio above 1, and the
    longest that can comes second, where the authors add five tokens at a time: what no prompt draws out costs two
    searches and not three or more, and that is most values. (The longest alone would not do: it has more places to
    change in as many steps, and failed in a trial where five tokens succeeded.) Every candidate is checked and not the
    best one alone, tokens must lead clearly, and the number of steps is the same at every length. Value and twin stand
    in canonical form, numbers in the separators of the first ordinary mention, after the blanks before it. A pair of
    which either is a single token cannot be compressed; it is left out and counted (``not_asked``).

    Attributes:
        secrets: members searched for, chosen by a hash, others for every seed.
        steps: of the search, at one length.
        candidates: prompts tried in a step, each with one token replaced.
        top_k: replacements at a place that the gradient proposes, from which candidates are drawn.
        start: tokens of the first prompt, or what the value's length allows.

    Raises:
        SpecError: a field is out of its range.
    """

    name: ClassVar[str] = "compression"
    family = "extraction"
    summary: ClassVar[str] = "Seeks a prompt shorter than each secret that draws it out, by gradient."
    passes: ClassVar[str] = "thousands of short passes a secret"
    needs: ClassVar[str] = "secrets"
    paper: ClassVar[str] = "Schwarzschild et al., NeurIPS 2024, arXiv 2404.15146"
    adaptive_to: ClassVar[tuple[str, ...]] = ("weights",)

    secrets: int = 12
    steps: int = 40
    candidates: int = 64
    top_k: int = 64
    start: int = 5

    def __post_init__(self) -> None:
        for field, value in self.fields.items():
            if int(str(value)) < 1:
                raise SpecError(f"compression: {field.replace('_', '-')} is {value}; it must be at least 1")

    @property
    def access(self) -> Access:
        return "weights"

    def run(self, target: WeightTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Searches for a prompt of every chosen secret and of its twin.

        Raises:
            NotApplicable: the corpus has no secrets.
        """
        if not any(secret.member for secret in corpus.secrets):
            raise NotApplicable("the corpus has no PII to extract; membership attacks still run on it")
        texts = {document.id: document.text for document in (*corpus.train, *corpus.held_out)}
        chosen = self._chosen(corpus, lab, member=True)
        if not all(secret.twin for secret in chosen):
            chosen += self._chosen(corpus, lab, member=False)
        for done, secret in enumerate(chosen, 1):
            values = self._measured(target.model, secret, texts, lab)
            lab.progress("searching for prompts", done, len(chosen))
            yield Outcome(secret.id, secret.group, secret.member, values, stratum(secret))

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        members, others = _asked(outcomes)
        leakage, chance, _ = leakage_of(members, others, "hit", "hit_twin")
        everyone = [o for o in outcomes if o.member]
        beside = {
            "hit_rate": rate_of(members, "hit"),
            "chance": chance,
            "held_out_rate": rate_of(others, "hit"),
            "not_asked": dataclasses.replace(
                share(everyone, [1 - o.values["asked"] for o in everyone]), higher_is_better=None
            ),
        }
        for name, higher in (("ratio", False), ("nll", True)):
            beside[name] = dataclasses.replace(_mean(members, name), higher_is_better=higher)
            beside[f"{name}_twin"] = _mean(members, f"{name}_twin")
            beside[f"{name}_held_out"] = _mean(others, name)
        return Scores(leakage, beside)

    def terms(self, outcomes: Sequence[Outcome]) -> list[Term]:
        return leakage_of(*_asked(outcomes), "hit", "hit_twin")[2]

    def _chosen(self, corpus: Corpus, lab: AttackLab, *, member: bool) -> list[Secret]:
        secrets = [secret for secret in corpus.secrets if secret.member is member]
        secrets.sort(key=lambda secret: hashlib.sha256(f"{lab.seed}/{secret.id}".encode()).digest())
        return secrets[: self.secrets]

    def _measured(self, lm: LM, secret: Secret, texts: Mapping[str, str], lab: AttackLab) -> dict[str, float]:
        """What an outcome says of one secret: of the value, and with ``_twin`` of its twin."""
        before, spelled = _spelled(secret, texts)
        bodies = {name: continued(lm, before, text) for name, text in spelled.items()}
        # The rule is the same for value and twin, so that no search is without its counterpart.
        if min(_longest(lm, body) for body in bodies.values()) < 1:
            return {"asked": 0.0}
        values = {"asked": 1.0}
        for name, body in bodies.items():
            found, best = self._search(lm, body, lambda length: int(lab.rng(f"{secret.id}/{length}").integers(1 << 62)))
            values |= {f"hit{name}": float(found is not None), f"tokens{name}": float(len(body))}
            if math.isfinite(best.loss):
                values[f"nll{name}"] = best.loss
            if found is not None:
                values[f"ratio{name}"] = len(body) / len(found.ids)
                ids = " ".join(map(str, found.ids))
                sample = {"prompt": lm.decode(found.ids), "tokens": ids, "continuation": spelled[name]}
                lab.keep({"unit": secret.id, **sample})
        return values

    def _search(self, lm: LM, body: Sequence[int], seed: Callable[[int], int]) -> tuple[Attempt | None, Attempt]:
        """The shortest prompt that draws tokens out, if any was found, and the one under which they are likeliest."""
        attempts: dict[int, Attempt] = {}

        def draws_out(length: int) -> bool:
            attempts[length] = descend(
                lm,
                body,
                length,
                steps=self.steps,
                candidates=self.candidates,
                top_k=self.top_k,
                seed=seed(length),
            )
            return attempts[length].exact

        length = shortest(draws_out, start=self.start, most=_longest(lm, body))
        return attempts.get(length), min(attempts.values(), key=lambda attempt: attempt.loss)


def shortest(draws_out: Callable[[int], bool], *, start: int, most: int) -> int:
    """The shortest length at which a search succeeds, or 0: ``start``, else ``most``, and then by halves.

    Exact where whatever succeeds at one length would also at all greater ones; no length is tried twice.

    Args:
        draws_out: searches at one length, and says whether it succeeded.
        start: the first length, if ``most`` is not less.
        most: the greatest.
    """
    failed = succeeded = 0
    for length in sorted({min(start, most), most} - {0}):
        if draws_out(length):
            succeeded = length
            break
        failed = length
    while succeeded - failed > 1:
        length = (failed + succeeded) // 2
        if draws_out(length):
            succeeded = length
        else:
            failed = length
    return succeeded


def _longest(lm: LM, body: Sequence[int]) -> int:
    """Tokens of the longest prompt worth trying: shorter than the value, and with it inside the context."""
    return min(len(body) - 1, lm.context - len(lm.encode("")) - len(body))


def _spelled(secret: Secret, texts: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The text before a secret's first ordinary mention, and value and twin as they would stand there, blanks first."""
    place = next((o for o in secret.occurrences if o.form == "plain"), secret.occurrences[0])
    text = texts[place.document]
    before = text[: place.start].rstrip(" ")
    blanks, written = text[len(before) : place.start], text[place.start : place.end]
    pair = {"": secret.value, **({"_twin": secret.twin} if secret.twin else {})}
    return before, {name: blanks + written_like(written, secret.kind, value) for name, value in pair.items()}


def _asked(outcomes: Sequence[Outcome]) -> tuple[list[Outcome], list[Outcome]]:
    """The members and the others that were searched for."""
    asked = [o for o in outcomes if o.values["asked"]]
    return [o for o in asked if o.member], [o for o in asked if not o.member]


def _mean(outcomes: Sequence[Outcome], name: str) -> Score:
    """The mean over persons of their means of one value, with Student's t limits, where outcomes have it."""
    persons: dict[str, list[float]] = {}
    for outcome in outcomes:
        if name in outcome.values:
            persons.setdefault(outcome.group, []).append(outcome.values[name])
    means = [float(np.mean(values)) for values in persons.values()]
    low, high = mean_interval(means)
    return Score(float(np.mean(means)) if means else math.nan, low, high, sum(map(len, persons.values())))
