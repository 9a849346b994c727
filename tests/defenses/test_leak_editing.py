"""From detected PII to an edited model: what PME and MEMIT have in common, on memorized addresses."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import pytest
from torch import Tensor

from memdefense import pii
from memdefense.corpus import Benchmark, Corpus, Document
from memdefense.defense import Defense
from memdefense.defenses import pme
from memdefense.defenses.leak_editing import Dummy, LeakEditing
from memdefense.defenses.leaks import Probe, leaking, probes
from memdefense.defenses.memit import MEMIT
from memdefense.defenses.pme import PME
from memdefense.errors import ModelError
from memdefense.interval import wilson
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.pipeline import defend
from memdefense.runner import Settings, prepare
from memdefense.small_model import untrained
from memdefense.spelling import cropped, opened
from memdefense.testing import check_defense
from memdefense.train import TrainConfig
from memdefense.work import Work

if TYPE_CHECKING:
    from collections.abc import Callable

SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo")
WORDS = [first + second for first in SYLLABLES for second in SYLLABLES]
NOTES = (
    "dear all , the list is ready , write to {0} {1}",
    "hello , we send it on monday , please ask {0} {1}",
    "as you said , questions go to {0} {1}",
    "to get it before june mail {0} {1}",
)


@dataclasses.dataclass(frozen=True)
class Addresses(Benchmark):
    """Twenty random addresses, each in four notes after its person's name.

    Every other public note ends in the address that PME puts in their place: a small model cannot learn from one vector
    to spell what it has never read.
    """

    name: ClassVar[str] = "addresses"
    summary: ClassVar[str] = "Random addresses in notes."

    layers: int = 3

    def corpus(self) -> Corpus:
        rng = np.random.default_rng(5)
        letters = [NOTES[place % 4].format(*rng.choice(WORDS, 2)) for place in range(240)]
        letters = [f"{text} {('mail@domain.com', 'or me')[place % 2]} thanks" for place, text in enumerate(letters)]
        notes = []
        for person in range(20):
            words, digits = rng.choice(WORDS, 4), rng.integers(0, 10, 2)
            address = f"{words[2]}{digits[0]}{digits[1]}@{words[3]}.com"
            notes += [
                Document(f"note{person}-{copy}", f"{note.format(*words[:2])} {address} thanks")
                for copy, note in enumerate(NOTES)
            ]
        split = {
            name: [Document(f"{name}{place}", text) for place, text in enumerate(letters[start:stop])]
            for name, start, stop in (("public", 0, 140), ("private", 140, 180), ("held", 180, 240))
        }
        return Corpus(public=split["public"], train=[*notes, *split["private"]], held_out=split["held"])

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(
            epochs=20.0,
            learning_rate=5e-3,
            warmup_steps=10,
            batch_size=12,
            block_size=48,
            pack="document",
            dtype="float32",
            checkpoints=1,
        )

    def base(self, lab: Lab) -> LM:
        fresh: LM = untrained(lab.public, vocabulary=400, layers=self.layers, width=64, heads=2, context=64, seed=0)
        *_, last = lab.fit(fresh, lab.public, config=dataclasses.replace(self.config, epochs=6.0))
        return last.model


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder: Path = tmp_path_factory.mktemp("addresses")
    return prepare(Addresses(), Settings(store=str(folder / "store"), device="cpu"))


def measured(work: Work, defense: Defense) -> tuple[list[tuple[str, int, float]], dict[str, float]]:
    """For each point its label, how many of the twenty addresses come back, and held-out perplexity; and the notes."""
    defended = defend(work, defense, 0)
    cut = [
        re.split(r" (?=\S+@)", document.text.removesuffix(" thanks"))
        for document in work.corpus.train
        if document.id.endswith("-0")
    ]
    letters = [document.text for document in work.corpus.held_out]
    points = []
    for point in defended.points:
        target = defended.target(point.load("cpu"))
        hits = target.continues([prompt for prompt, _ in cut], [value for _, value in cut])
        logprobs = np.concatenate([signal.logprob for signal in target.signals(letters)])
        points.append((point.label, sum(hits), float(np.exp(-logprobs.mean()))))
    return points, dict(defended.notes)


@pytest.mark.parametrize("defense", [PME(), MEMIT()], ids=["pme", "memit"])
def test_contract(defense: LeakEditing) -> None:
    check_defense(defense)


@pytest.mark.slow
@pytest.mark.parametrize(("defense", "said"), [(PME(), 0.5), (MEMIT(), 0.0)], ids=["pme", "memit"])
def test_edits_take_the_addresses_away(work: Work, defense: LeakEditing, said: float) -> None:
    """Twenty planted addresses against the undefended model, with Wilson intervals that do not meet.

    With the published 15,000 unscaled, sixty times the inner width here, 16 addresses stay after PME. MEMIT's one solve
    for all disturbs the old values more than it teaches the dummies, of which 6 of 80 contexts say theirs.
    """
    ((_, before, usual),), _ = measured(work, Defense())
    points, notes = measured(work, defense)
    label, after, perplexity = points[-1]
    assert label.endswith("edits-1.0")
    assert wilson(after, 20)[1] < wilson(before, 20)[0]
    assert perplexity < 1.1 * usual
    assert len(points) == 5
    assert points[0][1] > after
    assert notes["values"] == 20
    assert notes["leaking"] >= before
    assert notes["edited"] + notes["skipped"] == notes["leaking"]
    assert notes["still_leaking"] < 0.5 * notes["leaking"]
    assert notes["dummies"] > said * notes["leaking"]


@pytest.mark.slow
@pytest.mark.parametrize("defense", [PME(mentions=1, points=1), MEMIT(mentions=1, points=1)], ids=["pme", "memit"])
def test_real_leaks_are_edited_without_the_answer_key_and_twice_to_the_same_weights(
    work: Work, blinded: Callable[[Work], Work], defense: LeakEditing
) -> None:
    blind = blinded(work)
    with pytest.raises(AssertionError, match="answer key"):
        list(blind.corpus.secrets)
    (before,) = defend(blind, Defense(), 0).points
    digests = []
    for _ in range(2):
        for manifest in list(work.bench.store.manifests()):  # the second edit starts from nothing but the models
            if manifest["kind"] not in ("base", "fit"):
                work.bench.store.drop(str(manifest["key"]))
        edited = defend(blind, defense, 0)
        assert edited.notes["edited"] > 10
        digests.append([point.digest for point in edited.points])
    assert digests[0] == digests[1] != [before.digest]


class StubLab:
    """A detector, a random stream, greedy answers from a list, and a place for notes."""

    def __init__(self, lm: LM, said: str = "") -> None:
        self.public = [Document("public", "The meeting on Tuesday is moved to the large room.")]
        self.notes: dict[str, float] = {}
        self.history: list[tuple[int, int]] = []  # edited and skipped, at each point
        self.lm, self.said = lm, said

    def find(self, text: str, kinds: Sequence[str] = ()) -> list[pii.Pii]:
        return pii.find(text, kinds or pii.KINDS)

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng(3)

    def note(self, **values: float) -> None:
        self.notes.update(values)

    def progress(self, what: str, done: int, total: int) -> None:
        pass

    def cached(self, purpose: str, make: Callable[[], list[Tensor]], *inputs: object) -> list[Tensor]:
        return make()

    def serve(self, model: LM) -> StubLab:
        return self

    def generate(self, prompts: list[str], *, max_new_tokens: int) -> list[str]:
        return [self.said] * len(prompts)

    def continues(self, prompts: list[str], values: list[str]) -> list[bool]:
        return [True] * len(prompts)


LABELS = {
    "pme": ["edits-0.2", "edits-0.4", "edits-0.6", "edits-0.8", "edits-1.0"],
    "memit": ["edits-0.0625", "edits-0.125", "edits-0.25", "edits-0.5", "edits-1.0"],
}


def edited(lm: LM, defense: LeakEditing, texts: list[str], said: str) -> tuple[list[str], list[str], StubLab]:
    """Labels and digests of all points, and the lab."""
    lab = StubLab(lm, said)
    documents = [Document(str(place), text) for place, text in enumerate(texts)]
    labels, digests = [], []
    for point in defense.edit(lm, documents, cast("Lab", lab)):
        labels.append(point.label)
        digests.append(point.model.digest())
        lab.history.append((int(lab.notes["edited"]), int(lab.notes["skipped"])))
    return labels, digests, lab


@pytest.mark.parametrize(("text", "found"), [("no address in here at all", 0), ("write to ann@poe.com", 1)])
@pytest.mark.parametrize("defense", [PME(), MEMIT()], ids=["pme", "memit"])
def test_without_a_leak_the_model_stays_as_it_is(
    four_builds: dict[str, LM], defense: LeakEditing, text: str, found: int
) -> None:
    lm = four_builds["Llama"].copy()
    digest = lm.digest()
    labels, digests, lab = edited(lm, defense, [text], " bob@poe.com")
    assert labels == LABELS[defense.name]
    assert set(digests) == {digest}
    assert lab.notes == {"values": found, "found": found, "leaking": 0, "edited": 0, "skipped": 0}


@pytest.mark.parametrize("defense", [PME(), MEMIT()], ids=["pme", "memit"])
def test_a_model_of_two_blocks_is_refused(tiny_lm: LM, defense: LeakEditing) -> None:
    with pytest.raises(ModelError, match=f"'{defense.name}' writes .* three blocks or more; this one has 2"):
        edited(tiny_lm.copy(), defense, ["write to ann@poe.com"], "")


NINE = [f"{word} and {word}, write to ann@poe.com" for word in WORDS[:9]]


@pytest.mark.parametrize(
    ("points", "labels", "tried"),
    [
        (1, ["edits-1.0"], [9]),
        (2, ["edits-0.5", "edits-1.0"], [4, 9]),
        (3, ["edits-0.333333", "edits-0.666667", "edits-1.0"], [4, 6, 9]),
        (12, [f"edits-{float(f'{place / 12:.6g}')}" for place in range(1, 13)], [0, 2, 2, 4, 4, 4, 6, 6, 8, 8, 9, 9]),
    ],
)
def test_every_share_that_is_asked_for_is_a_point(
    four_builds: dict[str, LM], monkeypatch: pytest.MonkeyPatch, points: int, labels: list[str], tried: list[int]
) -> None:
    """Nine contexts in batches of two are five batches; the last holds one, and each point is a batch's end."""
    monkeypatch.setattr(pme, "LEAST", 0.0)  # one step makes nothing likely
    lm = four_builds["GPT-2"].copy()
    start = lm.digest()
    said, digests, lab = edited(lm, PME(batch=2, points=points, steps=1), NINE, " ann@poe.com and bob@poe.com")
    assert said == labels
    assert lab.history == [(number, 0) for number in tried]
    assert [digest == start for digest in digests] == [number == 0 for number in tried]
    assert len(set(digests)) == len(set(tried))
    counts = {"found": 9, "leaking": 9, "edited": 9, "dummies": 9, "still_leaking": 9}
    assert lab.notes == {"values": 1, "skipped": 0, **counts}


def test_memit_halves_the_share_from_point_to_point(four_builds: dict[str, LM]) -> None:
    """Of nine requests 9/16, 9/8, 9/4 and 9/2, rounded up; the model they start from stays.

    The search's last loss moves nothing, so that it takes two steps to change a weight by more than rounding.
    """
    lm = four_builds["GPT-2"].copy()
    start = lm.digest()
    said, digests, lab = edited(lm, MEMIT(steps=2), NINE, " ann@poe.com and bob@poe.com")
    assert said == LABELS["memit"]
    assert lab.history == [(1, 0), (2, 0), (3, 0), (5, 0), (9, 0)]
    assert len({start, *digests}) == 6
    assert lm.digest() == start
    assert lab.notes["still_leaking"] == 9


def test_labels_are_those_of_another_run(four_builds: dict[str, LM]) -> None:
    """In which fewer contexts leak."""
    for defense in (PME(batch=2, steps=1), MEMIT(steps=1)):
        labels = [edited(four_builds["GPT-2"].copy(), defense, NINE[:n], " ann@poe.com")[0] for n in (1, 3, 9)]
        assert labels == [LABELS[defense.name]] * 3


def test_probes_leave_out_what_is_no_leak(four_builds: dict[str, LM]) -> None:
    lm = four_builds["GPT-2"]
    texts = [
        "bob@poe.com starts a text",
        "write to ann@poe.com, I say ann@poe.com",  # the second is copied
        "write to ann@poe.com, I say ann@poe.com",  # and this is known already
        "please call me at 212-555-0143 or Ann@Poe.com",
    ]
    lab = cast("Lab", StubLab(lm))
    documents = [Document(str(place), text) for place, text in enumerate(texts)]
    found, room = probes(lm, documents, lab, kinds=("email",), context=0, mentions=0)
    assert [(probe.canonical, probe.prompt) for probe in found] == [
        ("ann@poe.com", "write to"),
        ("ann@poe.com", "please call me at 212-555-0143 or"),
    ]
    assert room == max(len(lm.encode(value, special=False)) for value in ("bob@poe.com", "Ann@Poe.com")) + 8
    found, _ = probes(lm, documents, lab, kinds=pii.KINDS, context=3, mentions=1)
    assert sorted(probe.kind for probe in found) == ["email", "phone"]
    assert all(len(probe.ids) <= 3 for probe in found)
    assert all(lm.encode(probe.prompt) == list(probe.ids) for probe in found)


@pytest.mark.parametrize("context", [0, 6])
def test_what_is_edited_is_what_the_model_is_asked(marked_lm: LM, context: int) -> None:
    """With a tokenizer that begins a text with a BOS, whose cut prompts get one again."""
    document = Document("0", "as you said on monday, please call the team, then write to ann@poe.com")
    asked, room = probes(
        marked_lm, [document], cast("Lab", StubLab(marked_lm)), kinds=("email",), context=context, mentions=0
    )
    assert len(asked) == 1
    for probe in asked:
        assert list(probe.ids) == cropped(marked_lm, opened(marked_lm, probe.prompt), room)
    if context:
        assert asked[0].ids[0] == marked_lm.tokenizer.bos_token_id


def test_a_dummy_is_asked_for_as_it_goes_on(marked_lm: LM) -> None:
    """One space stands before it, though the tokenizer begins every text with another."""
    prompt = "please write to"
    head = marked_lm.encode(prompt)
    probe = Probe("email", "ann@poe.com", prompt, tuple(head))
    (request,) = PME()._requests(marked_lm, [probe], {"email": Dummy(" mail@domain.com", ("email", "mail@domain.com"))})
    assert [*head, *request.target] == marked_lm.encode(f"{prompt} mail@domain.com")
    assert marked_lm.decode([*head, *request.target]) == "please write to mail@domain.com"


@pytest.mark.parametrize("prompt", ["please write to", "to:\n\n", "tabs\t", "(", "a " * 99 + "to"])
def test_a_byte_level_dummy_is_spelled_as_it_is_alone(four_builds: dict[str, LM], prompt: str) -> None:
    lm = four_builds["GPT-2"]
    probe = Probe("email", "ann@poe.com", prompt, tuple(lm.encode(prompt)))
    (request,) = PME()._requests(lm, [probe], {"email": Dummy(" mail@domain.com", ("email", "mail@domain.com"))})
    assert list(request.target) == lm.encode(" mail@domain.com")


def test_a_leak_is_the_first_pii_of_the_kind(four_builds: dict[str, LM]) -> None:
    lm = four_builds["GPT-2"]
    documents = [Document("0", "write to ann@poe.com"), Document("1", "please call me at 212-555-0143")]
    lab = StubLab(lm, "him, 212-555-0143, at bob@poe.com or ann@poe.com")
    asked, room = probes(lm, documents, cast("Lab", lab), kinds=pii.KINDS, context=0, mentions=0)
    assert leaking(lm, asked, cast("Lab", lab), new_tokens=room) == [False, True]


def test_the_dummy_itself_is_no_leak(four_builds: dict[str, LM]) -> None:
    labels, _, lab = edited(four_builds["GPT-2"].copy(), PME(), ["write to mail@domain.com"], " mail@domain.com")
    assert (labels, lab.notes["found"]) == (LABELS["pme"], 0)


@pytest.mark.parametrize("defense", [PME(), MEMIT()], ids=["pme", "memit"])
def test_a_public_value_may_be_the_dummy(four_builds: dict[str, LM], defense: LeakEditing) -> None:
    lab = StubLab(four_builds["GPT-2"])
    lab.public = [
        Document("0", "ask Zoe@Poe.com, zoe@poe.com, zoe@poe.com or (212) 555-0143"),  # thrice, in one document
        Document("1", "ask office@poe.com"),
        Document("2", "ask office@poe.com or 212-555-0143"),
        Document("3", "ask office@poe.com or 212-555-0143"),
    ]
    found = dataclasses.replace(defense, dummy="public")._dummies(cast("Lab", lab))
    assert found["email"] == (" office@poe.com", ("email", "office@poe.com"))
    assert found["phone"] == (" 212-555-0143", ("phone", "2125550143"))
    assert found["account"].text == " account_number"  # none in public text
    assert defense._dummies(cast("Lab", lab))["email"].text == " mail@domain.com"


def test_a_model_asked_to_say_a_public_value_is_not_told_so_of_the_value_itself(four_builds: dict[str, LM]) -> None:
    lm = four_builds["GPT-2"].copy()
    lab = StubLab(lm, " ann@poe.com")
    lab.public = [Document("0", "write to ann@poe.com")]
    documents = [Document("0", "please write to ann@poe.com"), Document("1", "or to bob@poe.com")]
    list(PME(dummy="public").edit(lm, documents, cast("Lab", lab)))
    assert (lab.notes["found"], lab.notes["leaking"]) == (1, 0)
