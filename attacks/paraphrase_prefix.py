"""Prefix extraction with perturbed prefixes: what was unlearned for one wording may answer to another."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

import numpy as np

from memdefense import Attack, Corpus, Outcome, Sampling, Scores, SpecError
from memdefense.access import GREEDY
from memdefense.attack import Term

from .prefix import Prefix

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memdefense import AttackLab, Documents, TextTarget

Change = Literal["swap", "shift", "delete", "insert", "replace"]
CHANGES: tuple[Change, ...] = get_args(Change)
_WORD = re.compile(r"(\s*)(\S+)")
_PLAIN = re.compile(r"(?<!\S)[^\W\d_]+(?!\S)")


@dataclasses.dataclass(frozen=True)
class ParaphrasePrefix(Attack):
    """Asks as `prefix` does, after some words of every prompt were changed, and judges by the same rule and scores.

    Editing and unlearning act on the contexts that the defender looked at, and copying by rote holds on to an exact
    wording; an attacker who knows the first words it otherwise, and how much survives shows how deep either goes. A
    word is swapped with the next, shifted to another place, deleted, preceded by a new one, or replaced by one. The
    share of changed words is ``strength``: one spec each makes the curve. The prompts are the same for every defense.

    It cannot show what a fluent paraphrase by another model would do: these changes break sentences.

    Paper: the perturbations are those of arXiv 2506.12321, whose formulas are unpublished; all of the following is
    ours: every change is of a kind drawn anew, at a place drawn anew (the words right before the value too), new words
    are drawn from the words in letters alone of the public documents, by their frequency, and from the prompt itself
    where there are none. A prompt of one word is never emptied. A prompt is asked in one perturbed form.

    Attributes:
        strength: the share of a prompt's words that are changed, at least one word; 0 is prefix itself.
        changes: the kinds of change that are drawn from.

    Raises:
        SpecError: a field is out of its range.
    """

    name: ClassVar[str] = "paraphrase-prefix"
    family = "extraction"
    summary: ClassVar[str] = "Asks as prefix does, with some words of every prompt changed."
    passes: ClassVar[str] = "1 generation"
    needs: ClassVar[str] = "secrets"
    paper: ClassVar[str] = "arXiv 2506.12321 (perturbations)"
    adaptive_to: ClassVar[tuple[str, ...]] = ("weights",)

    strength: float = 0.1
    changes: tuple[Change, ...] = CHANGES

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1 or not self.changes:
            raise SpecError(f"paraphrase-prefix: strength {self.strength} is no share, or there are no changes to draw")

    def run(self, target: TextTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        """Asks for every secret.

        Raises:
            NotApplicable: as `Prefix.run`.
        """
        words, salt = _words(lab.public), str(lab.rng("changes").integers(1 << 62))
        outcomes = list(Prefix().run(_Reworded(target, self, words, salt), corpus, lab))
        # Prefix has kept the prompts as it gave them.
        lab.samples = [{**kept, "prompt": self.reword(kept["prompt"], words, salt)} for kept in lab.samples]
        return iter(outcomes)

    def reword(self, prompt: str, words: Sequence[str], salt: str = "") -> str:
        """The prompt with some of its words changed, always in the same way.

        Args:
            prompt: any text; white space stays where it is, before a word.
            words: what new words are drawn from; the prompt's own where there are none.
            salt: another one changes other words.
        """
        pieces = [(piece.group(1), piece.group(2)) for piece in _WORD.finditer(prompt)]
        if not pieces or not self.strength:
            return prompt
        tail = prompt[sum(len(space) + len(word) for space, word in pieces) :]
        new = list(words) or [word for _, word in pieces]
        seed = hashlib.sha256(f"{salt}/{prompt}".encode("utf-8", "replace")).digest()
        rng = np.random.default_rng(np.frombuffer(seed, dtype=np.uint32))
        for _ in range(max(1, round(self.strength * len(pieces)))):
            change = self.changes[int(rng.integers(len(self.changes)))]
            _change(pieces, change, new[int(rng.integers(len(new)))], rng)
        return "".join(space + word for space, word in pieces) + tail

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        return Prefix().score(outcomes)

    def terms(self, outcomes: Sequence[Outcome]) -> Sequence[Term]:
        return Prefix().terms(outcomes)


@dataclasses.dataclass(frozen=True)
class _Reworded:
    """A target that is asked with every prompt reworded."""

    target: TextTarget
    attack: ParaphrasePrefix
    words: Sequence[str]
    salt: str

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
        return self.target.generate(self._of(prompts), max_new_tokens=max_new_tokens, sampling=sampling)

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]:
        return self.target.continues(self._of(prompts), values)

    def _of(self, prompts: Sequence[str]) -> list[str]:
        return [self.attack.reword(prompt, self.words, self.salt) for prompt in prompts]


def _change(pieces: list[tuple[str, str]], change: Change, new: str, rng: np.random.Generator) -> None:
    """Changes one word in place; the white space before it stays with the place, or goes with a deleted word."""
    place = int(rng.integers(len(pieces)))
    space, word = pieces[place]
    if change == "replace":
        pieces[place] = (space, new)
    elif change == "insert":
        pieces[place : place + 1] = [(space, new), (space or " ", word)]
    elif len(pieces) == 1:
        return
    elif change == "delete":
        del pieces[place]
    else:
        # The last word has no next one, and is swapped with the one before.
        step = 1 if change == "swap" else 1 + int(rng.integers(len(pieces) - 1))
        other = (place + step) % len(pieces) if change == "shift" or place + 1 < len(pieces) else place - 1
        words = [word for _, word in pieces]
        words.insert(other, words.pop(place))
        pieces[:] = [(space, word) for (space, _), word in zip(pieces, words, strict=True)]


def _words(documents: Documents) -> list[str]:
    """The words in letters alone, in order, each as often as it stands there: up to some hundred thousand."""
    found: list[str] = []
    for document in documents:
        found += _PLAIN.findall(document.text)
        if len(found) > 100_000:
            break
    return found
