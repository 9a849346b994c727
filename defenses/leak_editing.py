"""The frame of PME and MEMIT: attack one's own model, edit what leaks, and give points at growing shares of it."""

from __future__ import annotations

import dataclasses
import itertools
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from memdefense import pii
from memdefense.architecture import Block, blocks_of
from memdefense.defense import Defense, Point
from memdefense.errors import ModelError, SpecError
from memdefense.spelling import continued

from .editing import second_moments
from .leaks import Probe, leaking, probes
from .value_search import Request, longest_tail

if TYPE_CHECKING:
    from torch import Tensor

    from memdefense.corpus import Documents
    from memdefense.lab import Lab
    from memdefense.lm import LM

LEAST = 0.1  # a request whose target never gets this likely is skipped
_DUMMIES = {
    "email": " mail@domain.com",
    "phone": " phone_number",
    "account": " account_number",
    "ssn": " ssn_number",
    "ip": " ip_address",
    "url": " www.domain.com",
    "person": " John Doe",
    "location": " Anytown",
    "organization": " organization_name",
    "group": " group_name",
    "identifier": " identifier",
}
_RIDGE, _INNER = 15_000.0, 8_192  # as published, and the neurons of GPT-Neo 1.3B, for which it was


class Dummy(NamedTuple):
    """What a context is made to say: how it is written, with a space before it, and its kind and canonical form."""

    text: str
    key: tuple[str, str]


class Edited(NamedTuple):
    """A model of which some requests are edited: how many, and of how many that were tried."""

    model: LM
    edited: int
    tried: int


@dataclasses.dataclass(frozen=True)
class LeakEditing(Defense):
    """Edits after which the contexts that leak a detected value give a fixed dummy of its kind.

    Attributes:
        kinds: the kinds of PII that are edited; empty for all that the detector finds.
        context: tokens of a value's prefix; 0 is as many as the model takes.
        mentions: of each value that are tried at most, drawn at random; 0 is all.
        dummy: what contexts are made to say: the ``published`` text, or of each kind the value that most ``public``
            documents hold, where any does.
        points: operating points, each at its share of the requests; the last is all of them.
        ridge: how much the keys of public text weigh; C is a mean over tokens. 0 scales the published 15,000 by width.
        passages: public documents behind C at most.
        cap: the Frobenius norm of one edit's change, as a share of the matrix's own; 0 is no cap.

    Raises:
        SpecError: a field is out of its range.
    """

    kinds: tuple[str, ...] = ()
    context: int = 0
    mentions: int = 0
    dummy: Literal["published", "public"] = "published"
    points: int = 5
    ridge: float = 0.0
    passages: int = 100_000
    cap: float = 0.0

    def __post_init__(self) -> None:
        pii.check_kinds(self.kinds, self.name)
        least = {"context": 0, "mentions": 0, "cap": 0, "points": 1, "passages": 1}
        for field, low in least.items():
            if not low <= getattr(self, field) < float("inf"):
                raise SpecError(f"{self.name}: {field} is {getattr(self, field)}; it must be at least {low}")
        if self.context == 1:
            raise SpecError(f"{self.name}: context is 1; a prefix has at least 2 tokens, and 0 is as many as fit")
        if not 0 <= self.ridge < float("inf"):
            raise SpecError(f"{self.name}: ridge is {self.ridge}; it cannot be negative, and 0 is the published one")

    @abstractmethod
    def layers(self, blocks: int) -> Sequence[int]:
        """The blocks that are edited, of so many; z* is sought at the last of them."""

    @property
    @abstractmethod
    def shares(self) -> Sequence[float]:
        """The share of the requests at each operating point; they grow, and the last is 1."""

    @abstractmethod
    def edits(
        self, model: LM, blocks: Sequence[Block], requests: Sequence[Request], moments: Sequence[Tensor], lab: Lab
    ) -> Iterator[Edited]:
        """Edits the model, in place or a copy, and gives one state for each of `shares`.

        Args:
            model: the model that leaks.
            blocks: all of its blocks.
            requests: at least one, in the order of the documents.
            moments: of the down-projection's inputs, for each of `layers`.
            lab: for progress and random choices.
        """

    def weight(self, inner: int) -> float:
        """The ridge that counts for a feed-forward part of so many neurons.

        The mean of k^T C^-1 k over public text is ``inner``, so what a ridge does depends on their ratio alone.
        """
        return self.ridge or _RIDGE * inner / _INNER

    def openings(self, model: LM) -> Sequence[str]:
        """Texts that each context is also put behind."""
        return ()

    def edit(self, model: LM, documents: Documents, lab: Lab) -> Iterator[Point]:
        """Attacks the model and edits what leaks.

        Raises:
            ModelError: the model has fewer than three blocks, or blocks of an unknown build.
        """
        blocks = blocks_of(model.model)
        if len(blocks) < 3:
            raise ModelError(
                f"'{self.name}' writes into several blocks and leaves the last alone, so it needs a model of three "
                f"blocks or more; this one has {len(blocks)}"
            )
        layers = self.layers(len(blocks))
        tried, room = probes(model, documents, lab, kinds=self.kinds, context=self.context, mentions=self.mentions)
        dummies = self._dummies(lab)
        asked = [probe for probe in tried if (probe.kind, probe.canonical) not in {d.key for d in dummies.values()}]
        leaks = [probe for probe, out in zip(asked, leaking(model, asked, lab, new_tokens=room), strict=True) if out]
        values = len({(probe.kind, probe.canonical) for probe in asked})
        lab.note(values=values, found=len(asked), leaking=len(leaks), edited=0, skipped=0)
        # By the share asked for, so that points of runs in which more or less leaks are compared with each other.
        labels = [f"edits-{float(f'{share:.6g}')}" for share in self.shares]
        if not leaks:
            yield from (Point(label, 1.0, model) for label in labels)
            return
        moments = second_moments(model, blocks, layers, lab.public or documents, lab, passages=self.passages)
        requests = self._requests(model, leaks, dummies)
        for label, state in zip(labels, self.edits(model, blocks, requests, moments, lab), strict=True):
            lab.note(edited=state.edited, skipped=state.tried - state.edited)
            if label == labels[-1]:
                self._note_outcome(state.model, leaks, dummies, lab, room)
            yield Point(label, 1.0, state.model)

    def _dummies(self, lab: Lab) -> dict[str, Dummy]:
        """What is said instead of each kind."""
        found = {kind: Dummy(text, (kind, text.strip())) for kind, text in _DUMMIES.items()}
        if self.dummy == "public":
            spread: Counter[Dummy] = Counter()
            for document in lab.public:
                spread.update({Dummy(f" {hit.value}", (hit.kind, hit.canonical)) for hit in lab.find(document.text)})
            for dummy, _ in sorted(spread.items(), key=lambda own: (own[1], own[0].text)):
                found[dummy.key[0]] = dummy  # the last of its kind is the most common
        return found

    def _note_outcome(
        self, model: LM, leaks: Sequence[Probe], dummies: Mapping[str, Dummy], lab: Lab, room: int
    ) -> None:
        prompts, texts = [probe.prompt for probe in leaks], [dummies[probe.kind].text for probe in leaks]
        lab.note(
            dummies=sum(lab.serve(model).continues(prompts, texts)),
            still_leaking=sum(leaking(model, leaks, lab, new_tokens=room)),
        )

    def _requests(self, model: LM, leaks: Sequence[Probe], dummies: Mapping[str, Dummy]) -> list[Request]:
        openings = self.openings(model)
        requests = []
        for probe in leaks:
            target = tuple(continued(model, probe.prompt, dummies[probe.kind].text))
            room = model.context - longest_tail(model, target)
            behind = [_behind(model, opening, probe, room) for opening in openings]
            requests.append(Request((probe.ids[-room:], *behind), target))
        return requests


def _behind(model: LM, opening: str, probe: Probe, room: int) -> tuple[int, ...]:
    """The tokens of a probe's prompt behind an opening, of which the prompt's first are left out to fit the room.

    The last token is the probe's own: where the two texts would share it, they are read apart.
    """
    head, whole = model.encode(opening.rstrip()), model.encode(opening + probe.prompt)
    if whole[-1] != probe.ids[-1]:
        whole = head + model.encode(probe.prompt, special=False)
    shared = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(head, whole, strict=False)))
    start = min(shared, room // 2)
    return (*whole[:start], *whole[max(start, len(whole) - room + start) :])


__all__ = ["LEAST", "Edited", "LeakEditing"]
