"""Membership inference on documents or authors: scores of one pass over each text, dearer ones on request."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np

from memdefense import Attack, Corpus, DataError, Document, NotApplicable, Outcome, Scores, SpecError
from memdefense.attack import Access, Term

from . import membership_scores as scored
from .circles import circle_of
from .membership_evidence import (
    Evidence,
    Gathering,
    Sides,
    by_hash,
    longest_rest,
    of_shared_tokens,
    public_frequencies,
    sides,
    slices,
)
from .membership_report import membership, membership_terms
from .model_free import bags, model_free

if TYPE_CHECKING:
    from memdefense import AttackLab, LogprobTarget

ScoreName = Literal[
    "loss",
    "zlib",
    "lowercase",
    "min-k",
    "min-k++",
    "reference",
    "dc-pdd",
    "recall",
    "con-recall",
    "neighbourhood",
    "samia",
]
SCORES: tuple[ScoreName, ...] = get_args(ScoreName)
USUAL = SCORES[:7]
"""What is computed where nothing is named: one pass over the text, one over its lower case, one by the base model."""

_NEEDS: Mapping[ScoreName, tuple[str, ...]] = {
    "lowercase": ("own", "lower"),
    "reference": ("own", "before"),
    "dc-pdd": ("own", "log_frequency"),
    "recall": ("own", "after_others"),
    "con-recall": ("own", "after_others", "after_members"),
    "neighbourhood": ("own", "near"),
    "samia": ("said",),
}
# A neighbour drawn from the attacked model itself is the text it knows by heart again.
_OF_THE_BASE: frozenset[ScoreName] = frozenset({"reference", "neighbourhood"})


@dataclasses.dataclass(frozen=True)
class MIA(Attack):
    """Was this document trained on? Larger scores say yes. Leakage is 2 AUC - 1 of the score named, signed.

    Read from the text's own signals: ``loss``, the mean log-likelihood LL (Yeom et al. 2018); ``zlib``, LL / compressed
    bytes (Carlini et al. 2021); ``min-k``, the mean of the lowest k of the token log-probabilities (Shi et al. 2024);
    ``min-k++``, the same of (log p - mean) / std over the vocabulary (Zhang et al. 2025); ``dc-pdd``, the mean over
    first occurrences of min(.01, -p log f) (Zhang et al. 2024), f from public text. With one more pass each:
    ``lowercase``, LL(x) / LL(lower x) turned (Carlini et al. 2021); ``reference``, LL - LL of the model before the
    private text. On request: ``recall`` (Xie et al. 2024) and ``con-recall`` (Wang et al. 2025), with known non-members
    or members before the text; ``neighbourhood`` (Mattern et al. 2023), dear by its many copies; ``samia`` (Kaneko et
    al. 2024), sampled continuations, which needs text alone. `membership_scores` has the formulas. A row's
    headline is named beforehand, not chosen after the fact; entries choose score and sign on other seeds or persons.

    ``auc_model_free`` is a classifier that sees the texts and no model. Where its interval lies above 0.5 the split
    itself gives members away, and no membership number of the benchmark can be trusted. Texts without a predicted
    token, and those that stand on both sides, are left out and counted in the notes. Intervals are over circles of
    documents that share an author or a secret, not over documents. A TPR at an FPR that fewer than ten non-members
    stand for is no number; ``threshold_at_10%`` is the least headline score that is called a member. Whether one
    document was trained on cannot be told where near-copies of it were; and where whole persons were put on one side,
    as on `mailbox`, a text is told by what the others of its side taught as well, so that this is no measure of what a
    single document did (that is `shadow`'s).

    All but samia read log-probabilities, so a filter of text hides nothing from them; a guard that changes the
    distribution of the next token is read as it answers.

    Deviates [ours]: f is Laplace-smoothed and of the public text; the prefixes of recall and con-recall are ``shots``
    documents chosen by a hash, with an empty line between them, cut to their last half a context where they and the
    text do not fit, and of a longer text both scores read the beginning alone, with and without the prefix; no shot is
    evaluated; neighbours are drawn from the base model, which sees what stands before a token and not what follows;
    samia draws 1-grams' recall from 5 samples of the 50 most probable tokens, each as long as the longest second half
    there is.

    Attributes:
        headline: the score that leakage and TPR are of.
        scores: what is computed beside it; none named is all of the usual ones, and dc-pdd only with public text.
        unit: what is a member: a document, or an author, whose score is the mean over the documents asked about.
        k: the share of tokens of min-k and min-k++.
        gamma: what con-recall multiplies the log-likelihood after members with.
        members: how many training documents are scored at most, chosen by a hash; canary documents are left out.
        shots: documents in a prefix of recall and con-recall.
        neighbours: copies of a text for neighbourhood, each with 15 % of the tokens drawn anew.
        samples: continuations of a text for samia.

    Raises:
        SpecError: a field is out of its range.
    """

    name: ClassVar[str] = "mia"
    family = "membership"
    two_sided: ClassVar[bool] = True
    summary: ClassVar[str] = "Membership of documents or authors: seven scores, five of one pass, and four dearer ones."
    passes: ClassVar[str] = "1 pass, 1 lowercase, 1 of the base"
    needs: ClassVar[str] = "base model, non-members"
    paper: ClassVar[str] = "Yeom 2018; Carlini 2021; Shi 2024; Zhang 2025; Zhang 2024; Xie 2024; Mattern 2023"
    adaptive_to: ClassVar[tuple[str, ...]] = ("generation",)

    headline: ScoreName = "reference"
    scores: tuple[ScoreName, ...] = ()
    unit: Literal["document", "author"] = "document"
    k: float = 0.2
    gamma: float = 0.5
    members: int = 500
    shots: int = 5
    neighbours: int = 10
    samples: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.k <= 1:
            raise SpecError(f"mia:k is {self.k}; it is a share of the tokens, above 0 and at most 1")
        if not 0 <= self.gamma < math.inf:
            raise SpecError(f"mia:gamma is {self.gamma}; it must be at least 0, and finite")
        for name in ("members", "shots", "neighbours", "samples"):
            if getattr(self, name) < 1:
                raise SpecError(f"mia:{name} is {getattr(self, name)}; it must be at least 1")

    @property
    def access(self) -> Access:
        return "logprobs" if "own" in self._needs(self._asked) else "text"

    @property
    def _asked(self) -> tuple[ScoreName, ...]:
        return tuple(name for name in SCORES if name == self.headline or name in (self.scores or USUAL))

    def without_base(self) -> MIA | None:
        """Without the scores that compare with the base model, and with ``loss`` where reference is the headline."""
        if self.headline == "neighbourhood":
            return None
        if not _OF_THE_BASE & set(self._asked):
            return self
        # To name dc-pdd would demand public text of a corpus that may have none.
        kept = set(self.scores or USUAL) - _OF_THE_BASE - (set() if self.scores else {"dc-pdd"})
        headline: ScoreName = "loss" if self.headline == "reference" else self.headline
        return dataclasses.replace(self, headline=headline, scores=tuple(n for n in SCORES if n in kept | {headline}))

    def run(self, target: LogprobTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Scores documents.

        Raises:
            NotApplicable: nothing was held out, or one side is empty once what cannot be compared is left out.
            DataError: dc-pdd was named and there is no public text, or ``shots`` leave no document to evaluate.
        """
        names = self._asked
        if "dc-pdd" in names and not lab.public:
            if "dc-pdd" in (self.headline, *self.scores):
                raise DataError("dc-pdd needs public text to count tokens in, and the corpus has none")
            names = tuple(name for name in names if name != "dc-pdd")
        two = sides(corpus, self.members)
        gathering, shots = self._gathering(names, two, lab)
        documents: list[Document] = []
        values: list[dict[str, float]] = []
        short = 0
        for some in (*slices(two.members), *slices(two.others)):
            found = gathering.of([document.text for document in some], target, lab)
            for document, evidence in zip(some, found, strict=True):
                if document.id in two.left_out or document.text in shots:
                    continue
                if "own" in gathering.needs and not len(evidence.own.logprob):
                    short += 1  # a text of one token has nothing that was predicted
                    continue
                documents.append(document)
                values.append({name: self._score(name, evidence) for name in names})
        lab.note(on_both_sides=two.shared, without_a_predicted_token=short, shots=len(shots))
        trained = {document.id for document in two.members}
        inside = [document.id in trained for document in documents]
        for member, side in ((True, "member"), (False, "non-member")):
            if member not in inside:
                raise NotApplicable(f"no {side} is left to score: {short} texts of one token, which nothing predicts")
        yield from self._outcomes(corpus, documents, values, inside, lab)

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return membership(outcomes, self._found(outcomes), self.headline)

    def terms(self, outcomes: Sequence[Outcome]) -> list[Term]:
        return membership_terms(outcomes, self.headline, self._found(outcomes))

    def _found(self, outcomes: Sequence[Outcome]) -> list[str]:
        """The scores that outcomes hold."""
        found = outcomes[0].values if outcomes else {}
        return [name for name in SCORES if name in found or name == self.headline]

    def _needs(self, names: Sequence[ScoreName]) -> frozenset[str]:
        return frozenset(need for name in names for need in _NEEDS.get(name, ("own",)))

    def _gathering(self, names: Sequence[ScoreName], two: Sides, lab: AttackLab) -> tuple[Gathering, frozenset[str]]:
        """What is asked for, and the texts that stand before others and are not evaluated."""
        needs = self._needs(names)
        usable = {"after_others": [d for d in two.others if d.id not in two.left_out], "after_members": two.members}
        chosen = {
            need: [document.text for document in by_hash(side, "shots/")[: self.shots]] if need in needs else []
            for need, side in usable.items()
        }
        for need, side in usable.items():
            if need in needs and len(side) <= self.shots:
                raise DataError(
                    f"mia:shots is {self.shots}, and of {len(side)} documents none would be left to evaluate; lower it"
                )
        before = {need: "".join(text + "\n\n" for text in texts) for need, texts in chosen.items()}
        frequency = public_frequencies(lab) if "log_frequency" in needs else np.zeros(0)
        gathering = Gathering(
            needs,
            before["after_others"],
            before["after_members"],
            self.neighbours,
            self.samples,
            # One number for all texts, since a longer continuation recalls more of any truth.
            longest_rest([*two.members, *two.others], lab) if "said" in needs else 0,
            frequency,
            lab.rng("neighbours"),
        )
        return gathering, frozenset(text for texts in chosen.values() for text in texts)

    def _score(self, name: ScoreName, found: Evidence) -> float:
        return _FORMULAS[name](self, found)

    def _outcomes(
        self,
        corpus: Corpus,
        documents: Sequence[Document],
        values: Sequence[Mapping[str, float]],
        labels: Sequence[bool],
        lab: AttackLab,
    ) -> Iterator[Outcome]:
        circle = circle_of(corpus)
        around = [circle[document.id] for document in documents]
        blind = model_free(bags([document.text for document in documents]), labels, around)
        units: dict[str, list[int]] = {}
        for row, document in enumerate(documents):
            units.setdefault(document.id if self.unit == "document" else _author(document), []).append(row)
        # By all that they wrote, and not by what was drawn to be asked about: who wrote on both sides is neither.
        wrote = [{_author(document) for document in side} for side in (corpus.train, corpus.held_out)]
        mixed = set.intersection(*wrote) & units.keys() if self.unit == "author" else set()
        for unit, rows in units.items():
            if unit in mixed:
                continue
            mean = {name: float(np.mean([values[row][name] for row in rows])) for name in values[rows[0]]}
            mean["model_free"] = float(np.mean([blind[row] for row in rows]))
            yield Outcome(unit, around[rows[0]], labels[rows[0]], mean)
        if self.unit == "author":
            lab.note(authors_on_both_sides=len(mixed))


def _con_recall(own: MIA, found: Evidence) -> float:
    logprob, others, members = of_shared_tokens(found.own, found.after_others, found.after_members, behind=found.behind)
    return scored.con_recall(logprob, others, members, own.gamma)


_FORMULAS: Mapping[ScoreName, Callable[[MIA, Evidence], float]] = {
    "loss": lambda own, e: scored.loss(e.own.logprob),
    "zlib": lambda own, e: scored.zlib(e.own.logprob, e.text),
    "lowercase": lambda own, e: scored.lowercase(e.own.logprob, e.lower.logprob),
    "min-k": lambda own, e: scored.min_k(e.own.logprob, own.k),
    "min-k++": lambda own, e: scored.min_k_plus_plus(e.own.logprob, e.own.mean, e.own.std, own.k),
    "reference": lambda own, e: scored.reference(e.own.logprob, e.before.logprob),
    "dc-pdd": lambda own, e: scored.dc_pdd(
        e.own.logprob, e.own.tokens[len(e.own.tokens) - len(e.own.logprob) :], e.log_frequency
    ),
    "recall": lambda own, e: scored.recall(*of_shared_tokens(e.own, e.after_others, behind=e.behind)),
    "con-recall": _con_recall,
    "neighbourhood": lambda own, e: scored.neighbourhood(e.own.logprob, [one.logprob for one in e.near]),
    "samia": lambda own, e: scored.samia(e.said, e.truth, 1),
}


def _author(document: Document) -> str:
    return document.author or document.id
