"""Membership and memorization measured with shadow models: the defended training again, on halves of the text."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from memdefense import Attack, Corpus, NotApplicable, Outcome, Score, Scores, SpecError
from memdefense.attack import Access, Term
from memdefense.interval import design_effect, t_quantile

from .circles import circle_of
from .membership_report import membership, membership_terms
from .model_free import bags, model_free
from .shadow_pool import Reading, Unit, pool_of, read, units_of
from .shadow_scores import Bools, Floats, counterfactual, cross_validated, lira, lira_offline, rmia
from .shadow_tuning import tuned_a

if TYPE_CHECKING:
    from memdefense import AttackLab, LogprobTarget

MEMBERSHIP = ("lira", "lira-offline", "rmia", "rmia-offline")


@dataclasses.dataclass(frozen=True)
class Shadow(Attack):
    """Was this text trained on, judged by models that were and models that were not?

    A pool of models goes through the whole defended pipeline, each on a half of the training and held-out text: a coin
    per text, so that every text is in half of the pool. The attacker thus knows the defense, and this is the adaptive
    membership attack against all of them. The pool is read at the operating point that is attacked.

    Each model of the pool is attacked in turn by the others, as in both papers, but for the one that was trained on
    what it was not: by nothing but its own coin is a text a member of that model or not. With ``attacked=model`` it is
    the defended model itself, as `memdefense attack` does with a model that is brought: it saw all of the training text
    and none of the held-out text, where a model of the pool saw half of either, so that a text is also told by what
    *other* texts of its side taught, such as those of persons who write to each other. On `mailbox` that is most of
    what is told: DP-SGD at epsilon 8, which bounds what one document does, has an AUC of 0.99 by rmia then, and 0.62 by
    the coins (0.69 and 0.54 by lira). No statistic includes the model that is attacked.

    ``lira`` and ``lira-offline`` (Carlini et al. 2022) compare the mean token logit log p / (1 - p) with its normal
    distribution among the models that were trained on the text, and that were not; ``rmia`` and ``rmia-offline``
    (Zarifzadeh et al. 2024) compare the text's likelihood ratio with those of held-out texts that the model was not
    trained on, which are set aside for it and evaluated by none of the scores. Their leakage is 2 AUC - 1, signed, as
    of mia, and as there the score that tells most counts. One pool serves all seeds, so that this choice is made where
    it is read; with 800 texts and nothing to find it adds 0.01. TPR at low FPR stands beside, of the headline, and of
    pairs of a model and a text; rmia's is coarse, since a text that dominates all of its few z is tied with others.

    Two are properties of the pool, and need no attacked model: ``counterfactual`` memorization (Zhang et al. 2021) is
    the accuracy, token by token, with the text in training less that without it; its mean over texts is the leakage.
    ``cross-validated`` memorization (van den Burg & Williams 2021) is log mean p(text) with less the same without, in
    nats per text; its leakage is the mean of 1 - exp(-nats per token), the share of a token's probability that would be
    gone without the text [ours]. Both may be below 0, by noise. TPR is of lira then.

    Deviates [ours]: fields are means over tokens; p(x) of rmia is their geometric mean, since the product of a text's
    tokens depends on its length above all, and beside it any ``a`` below 1 drowns the offline average. LiRA's variances
    are pooled over texts, IN and OUT apart. The leakage is that of models trained on less text than the defended one,
    whose utility stands beside it (see below). Texts that stand on both sides, canaries and copies are left out. The
    pool is the same for all seeds of a run, which saves its cost; intervals hold the noise of coins and persons, and
    not what a training does to all texts alike. A model that was trained on all that is set aside for rmia is not
    attacked.

    Cost: ``models`` trainings on about 2/3 as much text for every defense that changes training; defenses on the
    weights or at generation share those of the undefended model. Fewer cost less and see less. In a simulation in which
    a text's field is one standard deviation higher with it in training, AUC is 0.62 with 4 models, 0.70 with 8, 0.73
    with 16 and 0.76, the most there is, with 64 (lira), 0.69, 0.73, 0.75 and 0.76 (lira-offline), and 0.71, 0.74, 0.75
    and 0.75 (rmia).

    Attributes:
        attacked: each model of the ``pool`` in turn, or the defended ``model``.
        headline: the score that leakage is of, named beforehand.
        models: in the pool: an even number, at least 4.
        unit: whose membership is asked for, and the coin is tossed for: a ``document``, or an ``author``.
        members: how many units of the training text are scored at most, chosen by a hash.
        population: the share of the held-out units set aside for rmia.
        gamma: of rmia.
        a: of rmia-offline.
        tune: chooses ``a`` on the first of the models that attack instead, which then is not used for rmia-offline.
        pool: another number tosses other coins.

    Raises:
        SpecError: a field is out of its range.
    """

    name: ClassVar[str] = "shadow"
    family = "membership"
    summary: ClassVar[str] = "LiRA, RMIA and memorization from half-split models that went through the same defense."
    passes: ClassVar[str] = "8 trainings, 1 pass each"
    needs: ClassVar[str] = "the defense again, non-members"
    paper: ClassVar[str] = "Carlini 2022, arXiv 2112.03570; Zarifzadeh 2024, arXiv 2312.03262; Zhang 2021"
    adaptive_to: ClassVar[tuple[str, ...]] = ("data", "training", "weights", "generation")

    attacked: Literal["pool", "model"] = "pool"
    headline: Literal["lira", "lira-offline", "rmia", "rmia-offline", "counterfactual", "cross-validated"] = "lira"
    models: int = 8
    unit: Literal["document", "author"] = "document"
    members: int = 500
    population: float = 0.25
    gamma: float = 1.0
    a: float = 1.0
    tune: bool = False
    pool: int = 0

    def __post_init__(self) -> None:
        if self.models < 4 or self.models % 2 or self.models > 512:
            raise SpecError(f"shadow: models is {self.models}; give an even number from 4 to 512")
        if self.tune and self.models < 6 and self.attacked == "pool":
            raise SpecError("shadow: tune needs 6 models or more, since of 4 only 2 attack one of them; raise models")
        if self.members < 1 or not 0 < self.population < 1 or not 0 < self.gamma < math.inf or not 0 <= self.a <= 1:
            raise SpecError(
                f"shadow: members {self.members}, population {self.population}, gamma {self.gamma}, a {self.a}: at "
                "least one member, a share between 0 and 1, a gamma above 0 and an a from 0 to 1"
            )

    @property
    def access(self) -> Access:
        return "logprobs"

    @property
    def shadows(self) -> bool:
        return True

    def of_brought(self) -> Shadow:
        return dataclasses.replace(self, attacked="model")

    def run(self, target: LogprobTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Trains the pool, or takes it from the store, and scores every unit, once for each model that is attacked.

        Raises:
            NotApplicable: too few units were held out, or no member or non-member has a predicted token.
        """
        everyone, both = units_of(corpus, self.unit)
        others = _hashed([unit for unit in everyone if not unit.member])
        if len(others) < 2:
            raise NotApplicable("fewer than two texts are held out, so there are no non-members to tell apart")
        aside = max(1, round(self.population * len(others)))
        units = [*_hashed([unit for unit in everyone if unit.member])[: self.members], *others]
        dealt = pool_of(corpus, self.unit, self.models, self.pool)
        own = read(target, units)
        known = np.isfinite(own.mean)
        z = np.arange(len(units)) >= len(units) - aside
        for member, side in ((True, "member"), (False, "non-member")):  # told before eight models are trained
            if not any(unit.member == member for unit, there in zip(units, known & ~z, strict=True) if there):
                raise NotApplicable(f"no {side} is left to score: none has a token that the model can predict")
        pool = []
        for number in range(self.models):
            pool.append(read(dealt.target(number, lab), units).of(known))
            lab.progress("shadow models", number + 1, self.models)
        inside = dealt.inside[:, [dealt.places[unit.key] for unit in units]][:, known]
        lab.note(shadow_models=self.models, population=int((z & known).sum()), units_on_both_sides=both)
        lab.note(units_dropped=int((~known).sum()))  # of one token, which nothing predicts, or impossible under a guard
        asked = [unit for unit, there in zip(units, known, strict=True) if there]
        told = _Asked(asked, z[known], corpus)
        if self.attacked == "model":
            found, a = self._told(own.of(known), pool, inside, told.aside)
            attacks = [("", np.array([unit.member for unit in asked]), found, a)]
        else:
            attacks = []
            for number, one in enumerate(pool):
                if inside[number, told.aside].all():
                    continue  # there is no text that is known not to be a member, which rmia compares with
                # Without its own pair, so that every text is in half of those that are left, whatever the coin of this
                # one: one model more on the side of non-members is a smaller error there, which tells of the coin.
                left = [other for other in range(self.models) if other // 2 != number // 2]
                found, a = self._told(one, [pool[k] for k in left], inside[left], told.aside & ~inside[number])
                attacks.append((f"/{number}", inside[number], found, a))
        if not attacks:
            raise NotApplicable("each model was trained on all held-out text that is set aside for rmia; hold out more")
        lab.note(rmia_a=float(np.mean([a for *_, a in attacks])), models_attacked=len(attacks))
        whole, right = (np.stack([getattr(one, name) for one in pool]) for name in ("whole", "accuracy"))
        memorized = {
            "counterfactual": counterfactual(right, inside),
            "cross-validated": cross_validated(whole, inside),
            "tokens": own.of(known).tokens,
        }
        for mark, labels, found, _ in attacks:
            yield from told.outcomes(mark, labels, {**found, **memorized})

    def _told(self, own: Reading, pool: Sequence[Reading], inside: Bools, z: Bools) -> tuple[dict[str, Floats], float]:
        """Every membership score of the units, and the ``a`` of rmia-offline."""
        logit, mean = (np.stack([getattr(one, name) for one in pool]) for name in ("logit", "mean"))
        a, first = (tuned_a(mean, inside, z), 1) if self.tune else (self.a, 0)
        return {
            "lira": lira(own.logit, logit, inside),
            "lira-offline": lira_offline(own.logit, logit, inside),
            "rmia": rmia(own.mean, mean, inside, z, gamma=self.gamma),
            "rmia-offline": rmia(own.mean, mean[first:], inside[first:], z, gamma=self.gamma, a=a),
        }, a

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        groups = [outcome.group for outcome in outcomes]
        scores = membership(outcomes, MEMBERSHIP, self._membership)
        headline = scores.headline
        if self._membership != self.headline:
            headline = _mean([term.value for term in self.terms(outcomes)], groups)
        beside = {
            "counterfactual": _mean([outcome.values["counterfactual"] for outcome in outcomes], groups),
            "cross_validated_nats": _mean([outcome.values["cross-validated"] for outcome in outcomes], groups),
        }
        return Scores(headline, {**scores.beside, **beside})

    def terms(self, outcomes: Sequence[Outcome]) -> list[Term]:
        if self.headline == "counterfactual":
            return [Term(o.unit, o.group, o.values["counterfactual"]) for o in outcomes]
        if self.headline == "cross-validated":
            per_token = [o.values["cross-validated"] / o.values["tokens"] for o in outcomes]
            return [Term(o.unit, o.group, 1 - math.exp(-nats)) for o, nats in zip(outcomes, per_token, strict=True)]
        return membership_terms(outcomes, self.headline, MEMBERSHIP)

    @property
    def _membership(self) -> str:
        """The membership score that TPR is of."""
        return self.headline if self.headline in MEMBERSHIP else MEMBERSHIP[0]


class _Asked:
    """The units that are asked for, and whom they belong to.

    Attributes:
        aside: (U,) which of them are evaluated by no score.
    """

    def __init__(self, units: Sequence[Unit], aside: Bools, corpus: Corpus) -> None:
        self.aside = aside
        self._units = [unit for unit, is_z in zip(units, aside, strict=True) if not is_z]
        circle = circle_of(corpus)
        self._around = [circle[unit.documents[0].id] for unit in self._units]
        self._bags = bags(["\n".join(document.text for document in unit.documents) for unit in self._units])

    def outcomes(self, mark: str, member: Bools, found: dict[str, Floats]) -> Iterator[Outcome]:
        """What one attacked model gave away, each (U,) over all units, those set aside included."""
        labels = member[~self.aside].tolist()
        columns = {name: column[~self.aside] for name, column in found.items()}
        columns["model_free"] = model_free(self._bags, labels, self._around)
        for row, unit in enumerate(self._units):
            # The log-probabilities are float32: six digits are theirs.
            values = {name: float(f"{column[row]:.6g}") for name, column in columns.items()}
            yield Outcome(unit.id + mark, self._around[row], labels[row], values)


def _hashed(units: Sequence[Unit]) -> list[Unit]:
    """The units in an order that depends on their ids alone."""
    return sorted(units, key=lambda unit: hashlib.sha256(unit.id.encode()).digest())


def _mean(values: Sequence[float], groups: Sequence[str]) -> Score:
    """A mean with Student's t limits, persons as clusters."""
    persons = len(set(groups))
    if persons < 2:
        return Score(float(np.mean(values)) if values else math.nan, math.nan, math.nan, len(values), False)
    error = float(np.std(values, ddof=1)) * math.sqrt(design_effect(values, groups) / len(values))
    value, half = float(np.mean(values)), t_quantile(persons - 1, 0.95) * error
    return Score(value, value - half, value + half, len(values), False)
