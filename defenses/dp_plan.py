"""What a DP-SGD run fixes before its first step: its units, how often one is drawn, and how much noise that takes."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from memdefense.corpus import Documents, Redrawn
from memdefense.errors import ModelError, SpecError

if TYPE_CHECKING:
    from opacus.accountants import IAccountant

    from memdefense.lab import Lab
    from memdefense.lm import LM
    from memdefense.packing import Rows

_MOST_NOISE = 1e6  # where Opacus's search for the noise gives up


class Wanted(Protocol):
    """The fields of `dp-sgd` that a plan is made from."""

    @property
    def epsilon(self) -> float: ...
    @property
    def delta(self) -> float: ...
    @property
    def unit(self) -> Literal["document", "author"]: ...
    @property
    def epochs(self) -> float: ...
    @property
    def batch(self) -> int: ...
    @property
    def accountant(self) -> Literal["rdp", "prv"]: ...


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is fixed before the first step.

    Attributes:
        tables: the rows of each pass, one unit each; only the first where all of them are alike.
        rate: the chance that a unit is in a batch.
        sigma: the noise's standard deviation over the clipping norm.
        kept: the fraction of the run that a step stands for, of the steps that give an operating point.
        tokens_cut: the share of the documents' tokens that stand in no table.
    """

    tables: Sequence[Rows]
    steps: int
    rate: float
    sigma: float
    delta: float
    kept: Mapping[int, float]
    tokens_cut: float

    def rows(self, step: int) -> Rows:
        """The rows that step (from 1) draws from."""
        return self.tables[min(len(self.tables) - 1, int((step - 1) * self.rate))]

    @property
    def notes(self) -> dict[str, float]:
        """What belongs beside the result."""
        units = len(self.tables[0])
        return {
            "delta": self.delta,
            "sigma": self.sigma,
            "sample_rate": self.rate,
            "steps": self.steps,
            "units": units,
            "tokens_cut": self.tokens_cut,
        }


def plan(defense: Wanted, model: LM, documents: Documents, lab: Lab) -> Plan:
    """The rows, the rate and the noise of a run.

    Raises:
        SpecError: too few units, delta is not below 1 / N, or no noise reaches epsilon.
        ModelError: a block longer than the model's context.
    """
    from memdefense.packing import by_epoch, rows, step_at

    config = lab.config
    if config.block_size > model.context:
        raise ModelError(
            f"block size {config.block_size} is beyond the model's context of {model.context} tokens; "
            "lower --block-size"
        )
    once = dataclasses.replace(config, epochs=1.0, steps=0)
    passes = defense.epochs or config.epochs
    if config.steps and not defense.epochs:
        passes = config.steps * config.batch_size / len(rows(once, documents, model, seed=lab.seed))
    if not passes:
        raise SpecError("dp-sgd: nothing is trained in 0 epochs; set epochs")
    redrawn = isinstance(documents, Redrawn)
    # A document's row is the same in every pass; of an author's documents the pass's order brings others forward.
    needed = math.ceil(passes) if redrawn or defense.unit == "author" else 1
    alone = dataclasses.replace(once, pack=defense.unit, epochs=float(needed))
    tables = list(by_epoch(alone, documents, model, seed=lab.seed))
    units = len(tables[0])
    if units < 2 and not defense.delta:
        way = "name more authors, or take unit=document" if defense.unit == "author" else "give more documents"
        raise SpecError(
            f"dp-sgd: there is {units} unit ({defense.unit}) only, too few for the default delta of N ** -1.1, which "
            f"must be below 1 / N; {way}"
        )
    delta = defense.delta or units**-1.1
    if delta * units >= 1:
        raise SpecError(
            f"dp-sgd: delta {delta:.3g} is not below 1 / {units}, so that leaking one of the {units} units whole would "
            "be allowed; lower delta, or leave it at 0"
        )
    rate = min(1.0, (defense.batch or max(config.batch_size, round(units / 8))) / units)
    steps = max(1, round(passes / rate))
    fractions = (place / config.checkpoints for place in range(1, config.checkpoints + 1))
    kept = {step_at(steps, at): at for at in fractions}
    sigma = noise(defense.epsilon, delta, rate, steps, defense.accountant)
    whole = dataclasses.replace(once, pack="tokens", epochs=float(needed if redrawn else 1))
    cut = 1 - _tokens(tables) / _tokens(by_epoch(whole, documents, model, seed=lab.seed))
    return Plan(tables, steps, rate, sigma, delta, kept, cut)


def _tokens(tables: Iterable[Rows]) -> int:
    """How many tokens of the documents stand in some row."""
    columns = (table.columns for table in tables)
    places = [(own["document"].astype(np.int64) << 32 | own["offset"])[own["document"] >= 0] for own in columns]
    return len(np.unique(np.concatenate(places)))


def noise(epsilon: float, delta: float, rate: float, steps: int, accountant: str) -> float:
    """The least noise multiplier for which Opacus's accountant gives (epsilon, delta).

    Raises:
        SpecError: no noise is enough; the message gives the smallest epsilon that can be reached.
    """
    try:
        from opacus.accountants.utils import get_noise_multiplier
    except ImportError as error:
        raise SpecError('dp-sgd needs an extra: pip install "memdefense[dp]"') from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # orders at the end of their range, which are tried on the way
        try:
            found = get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant=accountant,
                epsilon_tolerance=epsilon / 1000,
            )
        except ValueError as error:
            least = accountant_of(accountant)
            least.history = [(_MOST_NOISE, rate, steps)]
            raise SpecError(
                f"dp-sgd: epsilon {epsilon} cannot be reached at delta {delta:.3g}; the smallest that the {accountant} "
                f"accountant can show is {spent(least, delta):.3g}"
            ) from error
    return float(found)


def accountant_of(name: str) -> IAccountant:
    """Opacus's accountant of that name, which has seen no step."""
    from opacus.accountants import create_accountant

    return create_accountant(name)


def spent(accountant: IAccountant, delta: float) -> float:
    """Epsilon after the steps an accountant has seen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(accountant.get_epsilon(delta))
