"""Membership inference on documents: six scores from one pass over each text, and a baseline that has no model."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from memdefense import Attack, Corpus, Document, NotApplicable, Outcome, Score, Scores, Signals
from memdefense.attack import Access, Term
from memdefense.roc import auc, auc_interval, placements, tpr_at_fpr
from memdefense.score import rate

from .model_free import circles, model_free

if TYPE_CHECKING:
    from memdefense import AttackLab, LogprobTarget

SCORES = ("loss", "zlib", "lowercase", "min-k", "min-k++", "reference")


@dataclasses.dataclass(frozen=True)
class MIA(Attack):
    """Was this document trained on? Larger scores say yes. Leakage is 2 AUC - 1 of the score named, signed.

    ``loss`` (Yeom et al. 2018) is the mean log-likelihood LL; ``zlib`` LL / compressed bytes and ``lowercase``
    LL(x) / LL(lower x) turned so that larger is a member (Carlini et al. 2021); ``min-k`` the mean of the lowest k %
    of the token log-probabilities (Shi et al. 2024); ``min-k++`` the same of (log p - mean) / std over the vocabulary
    (Zhang et al. 2025); ``reference`` LL - LL of the model before the private text. All but lowercase and reference
    come from one pass; what reference subtracts is kept in the store. The headline score is named beforehand, not
    chosen after the fact.

    ``auc_model_free`` is a classifier that sees the texts and no model. Where its interval lies above 0.5 the split
    itself gives members away, and no membership number of the benchmark can be trusted.

    Attributes:
        headline: the score that leakage and TPR are of.
        k: the share of tokens of min-k and min-k++.
        members: how many training documents are scored at most, chosen by a hash; canary documents are left out.
    """

    name: ClassVar[str] = "mia"
    family = "membership"
    summary: ClassVar[str] = "Membership of documents by loss, zlib, lowercase, min-k, min-k++ and reference."
    paper: ClassVar[str] = "Yeom 2018; Carlini 2021; Shi 2024; Zhang 2025"
    headline: Literal["loss", "zlib", "lowercase", "min-k", "min-k++", "reference"] = "reference"
    k: float = 0.2
    members: int = 500

    @property
    def access(self) -> Access:
        return "logprobs"

    def run(self, target: LogprobTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Scores documents.

        Raises:
            NotApplicable: nothing was held out.
        """
        if not corpus.held_out:
            raise NotApplicable("the corpus holds no documents out, so there are no non-members to tell apart")
        planted = {canary.document for canary in corpus.canaries}
        inside = [d for d in corpus.train if d.text.strip() and d.id.partition("#")[0] not in planted]
        inside = sorted(inside, key=lambda d: hashlib.sha256(d.id.encode()).digest())[: self.members]
        documents = [*inside, *(d for d in corpus.held_out if d.text.strip())]
        texts = [document.text for document in documents]
        own = target.signals(texts)
        lower = target.signals([text.lower() for text in texts])
        base = lab.cached("reference log-likelihoods", lambda: _likelihoods(lab, texts), lab.base, documents)
        labels = [True] * len(inside) + [False] * (len(documents) - len(inside))
        around = circles(documents, corpus.secrets)
        blind = model_free(texts, labels, around)
        names = sorted(set(around))
        for row, document in enumerate(documents):
            if not len(own[row].logprob):
                continue  # a text of one token has nothing that was predicted
            values = scores_of(document.text, own[row], lower[row], reference=base[row], k=self.k)
            values |= {"model_free": float(blind[row]), "circle": float(names.index(around[row]))}
            yield Outcome(document.id, _author(document), labels[row], values)

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        labels = [outcome.member for outcome in outcomes]
        groups = [outcome.group for outcome in outcomes]
        areas = {name: _area(outcomes, name, labels, groups) for name in SCORES}
        # What a classifier learns of one document of a circle it cannot use on another: circles are its clusters.
        around = [f"{outcome.values['circle']:g}" for outcome in outcomes]
        areas["model_free"] = _area(outcomes, "model_free", labels, around)
        head = areas[self.headline]
        leakage = Score(2 * head.value - 1, 2 * head.low - 1, 2 * head.high - 1, head.n, False)
        beside = {f"auc_{name}": area for name, area in areas.items()}
        if not any(labels) or all(labels):
            return Scores(leakage, beside)
        column = [outcome.values[self.headline] for outcome in outcomes]
        for fpr, name in ((0.1, "10%"), (0.01, "1%"), (0.001, "0.1%")):
            found = tpr_at_fpr(column, labels, fpr)
            accused = [value >= found.threshold for value in column]
            hits, alarms = (
                rate(
                    [a for a, is_in in zip(accused, labels, strict=True) if is_in == side],
                    [g for g, is_in in zip(groups, labels, strict=True) if is_in == side],
                )
                for side in (True, False)
            )
            beside[f"tpr_at_{name}_fpr"] = hits if found.resolvable else dataclasses.replace(hits, value=float("nan"))
            beside[f"realised_fpr_at_{name}"] = dataclasses.replace(alarms, higher_is_better=None)
        return Scores(leakage, beside)

    def terms(self, outcomes: Sequence[Outcome]) -> list[Term]:
        labels = [outcome.member for outcome in outcomes]
        placed = placements([outcome.values[self.headline] for outcome in outcomes], labels)
        members = [outcome for outcome in outcomes if outcome.member]
        return [
            Term(o.unit, o.group, 2 * float(place) - 1) for o, place in zip(members, placed, strict=len(placed) > 0)
        ]


def scores_of(text: str, own: Signals, lower: Signals, *, reference: float, k: float) -> dict[str, float]:
    """The six scores of one text; at least one token whatever k.

    Args:
        text: the text.
        own: of the text.
        lower: of the text in lower case.
        reference: the mean log-likelihood of the text under the model before the private text.
        k: the share of tokens of min-k and min-k++.
    """
    logprob = own.logprob.astype(np.float64)
    mean = float(logprob.mean())
    lowest = max(1, int(k * len(logprob)))
    standard = (logprob - own.mean) / np.maximum(own.std, 1e-6)
    lower_mean = float(lower.logprob.mean()) if len(lower.logprob) else mean
    return {
        "loss": mean,
        "zlib": mean / len(zlib.compress(text.encode("utf-8", "replace"))),
        "lowercase": -mean / min(lower_mean, -1e-9),
        "min-k": float(np.sort(logprob)[:lowest].mean()),
        "min-k++": float(np.sort(standard)[:lowest].mean()),
        "reference": mean - reference,
    }


def _likelihoods(lab: AttackLab, texts: Sequence[str]) -> list[float]:
    found = lab.serve(lab.base).signals(texts)
    return [float(one.logprob.astype(np.float64).mean()) if len(one.logprob) else 0.0 for one in found]


def _author(document: Document) -> str:
    return document.author or document.id


def _area(outcomes: Sequence[Outcome], name: str, labels: Sequence[bool], groups: Sequence[str]) -> Score:
    column = [outcome.values[name] for outcome in outcomes]
    low, high = auc_interval(column, labels, groups=groups, resamples=200)
    return Score(auc(column, labels), low, high, len(column), None if name == "model_free" else False)
