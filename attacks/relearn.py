"""Prefix extraction after a little more training on a small part of the private text: does the rest come back?"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

from memdefense import Attack, Corpus, Document, NotApplicable, Outcome, Scores, SpecError
from memdefense.attack import Access, Term

from .prefix import Prefix

if TYPE_CHECKING:
    from memdefense import AttackLab
    from memdefense.access import WeightTarget


@dataclasses.dataclass(frozen=True)
class Relearn(Attack):
    """Trains a few steps on some of the private documents, then asks as `prefix` does for the secrets in none of them.

    What editing and unlearning hide is often still in the weights, and a little of the same text is enough to lay it
    open. This is the attack of one who knows that; it needs the weights, and so bypasses every guard. The part is all
    documents of some authors, chosen by a hash and the same for every defense. A secret that occurs in it is left out,
    however it is written there, so that nothing is counted which the attacker brought along.

    What the same steps do to the model before the private text stands in the row of never-trained, and what they do
    to an undefended one in that of none: only what lies above the first has come back, and had not been learned anew.

    Paper: Hu et al. 2025, arXiv 2406.13356. Deviates [ours]: they relearn on a small part of the forget set or on
    public text near it; here the part belongs to whole authors, training is the benchmark's own (optimiser, schedule,
    rows) at a lower rate, and the secrets that are left are the rarer ones, since a value that many documents hold is
    likely in the part.

    Attributes:
        share: of the private documents, at least one author's.
        steps: of the optimiser.
        learning_rate: at its peak; 0 is a tenth of the benchmark's. At the whole of it a small part drives out what the
            model knew of the rest: a tiny model that gave 80 % of its values gave none after 20 steps.

    Raises:
        SpecError: a field is out of its range.
    """

    name: ClassVar[str] = "relearn"
    family = "extraction"
    summary: ClassVar[str] = "Trains a few steps on a part of the private text, then asks for the rest as prefix does."
    passes: ClassVar[str] = "1 short training, 1 generation"
    needs: ClassVar[str] = "secrets"
    paper: ClassVar[str] = "Hu et al., ICLR 2025, arXiv 2406.13356"
    adaptive_to: ClassVar[tuple[str, ...]] = ("weights",)

    share: float = 0.1
    steps: int = 20
    learning_rate: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or self.steps < 1 or not 0 <= self.learning_rate < float("inf"):
            raise SpecError(
                f"relearn: share {self.share}, steps {self.steps}, learning rate {self.learning_rate}: share lies "
                "between 0 and 1, there is at least one step, and the rate is not negative"
            )

    @property
    def access(self) -> Access:
        return "weights"

    def run(self, target: WeightTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Trains, and asks for every secret that is not in the part.

        Raises:
            NotApplicable: as `Prefix.run`; every secret is in the part.
        """
        part = self.part(corpus)
        known = {document.id for document in part}
        brought = {s.id for s in corpus.secrets if any(place.document in known for place in s.occurrences)}
        members = {secret.id for secret in corpus.secrets if secret.member}
        if members and members <= brought:
            raise NotApplicable(
                f"every secret stands in the part that is trained on ({len(part)} of {len(corpus.train)} documents, "
                "whole authors), so that none is left to ask for; it takes more authors, or a lower relearn:share"
            )
        config = dataclasses.replace(
            lab.config,
            steps=self.steps,
            checkpoints=1,
            warmup_steps=0,
            learning_rate=self.learning_rate or lab.config.learning_rate / 10,
        )
        *_, last = lab.fit(target.model, part, config=config)
        lab.note(documents_relearned=len(part), secrets_left_out=len(brought))
        for outcome in Prefix().run(lab.serve(last.model), corpus, lab):
            if outcome.unit not in brought:
                yield outcome

    def part(self, corpus: Corpus) -> list[Document]:
        """The documents that are trained on; canaries are nobody's mail, and stay out."""
        planted = corpus.planted
        private = [d for d in corpus.train if d.id not in planted]
        whose: dict[str, list[Document]] = {}
        for document in private:
            whose.setdefault(document.author or document.id, []).append(document)
        part: list[Document] = []
        for author in sorted(whose, key=lambda name: hashlib.sha256(f"relearn/{name}".encode()).digest()):
            if not part or len(part) + len(whose[author]) <= self.share * len(private):
                part += whose[author]
        return part

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return Prefix().score(outcomes)

    def terms(self, outcomes: Sequence[Outcome]) -> Sequence[Term]:
        return Prefix().terms(outcomes)
