"""Models small enough to train inside a test, and a store of the test's own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NoReturn

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from memdefense.corpus import Benchmark, Canary, Corpus, Document
from memdefense.defense import Defense
from memdefense.lab import Lab
from memdefense.lm import LM
from memdefense.pipeline import defend
from memdefense.runner import Settings, prepare
from memdefense.small_model import untrained
from memdefense.store import Store
from memdefense.tiny import TinyBenchmark
from memdefense.train import TrainConfig
from memdefense.work import Work

torch.set_num_threads(1)  # models this small are slowed by threads that wait for each other

SENTENCES = [
    "The meeting on Tuesday is moved to the large room on the second floor.",
    "Please call Anna at +1 415 555 0134 or write to anna.bell@example.com before noon.",
    "We shipped 24 boxes yesterday; the invoice 7731-09 follows by mail.",
    "Could you send the report to the team, and keep the old one for reference?",
]


@pytest.fixture(scope="session")
def tiny_lm() -> LM:
    """A GPT-2 of two layers and width 32 with a byte-level BPE and 64 positions; weights from seed 0."""
    documents = [Document(f"s{place}", text) for place, text in enumerate(SENTENCES)]
    lm: LM = untrained(documents, vocabulary=320, layers=2, width=32, heads=2, context=64, seed=0)
    return lm


@pytest.fixture(scope="session")
def tiny_llama(tiny_lm: LM) -> LM:
    """A Llama of two layers and width 32 with the tokenizer of `tiny_lm`."""
    config = LlamaConfig(
        vocab_size=tiny_lm.model.config.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=tiny_lm.tokenizer.pad_token_id,
        bos_token_id=tiny_lm.tokenizer.bos_token_id,
        eos_token_id=tiny_lm.tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.train(False)
    return LM(model, tiny_lm.tokenizer)


@pytest.fixture(scope="session", params=["prepend", "metaspace"])
def marked_lm(request: pytest.FixtureRequest, tiny_llama: LM) -> LM:
    """The tiny Llama with a tokenizer in the manner of SentencePiece, which begins every text with a blank."""
    words = pre_tokenizers.Metaspace()
    trained = Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = words  # type: ignore[assignment, unused-ignore]
    # Letters, digits and line breaks by themselves too.
    text = [*SENTENCES, *SENTENCES, "\n0123456789()-.@abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    trained.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    )
    spelling = Tokenizer(trained.model)
    if request.param == "prepend":
        spelling.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])  # type: ignore[assignment, unused-ignore]
    else:
        spelling.pre_tokenizer = words  # type: ignore[assignment, unused-ignore]
    spelling.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])  # type: ignore[assignment, unused-ignore]
    spelling.decoder = decoders.Metaspace()  # type: ignore[assignment, unused-ignore]
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=spelling, bos_token="<s>", eos_token="</s>", clean_up_tokenization_spaces=False
    )
    return LM(tiny_llama.model, tokenizer)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store below the test's own folder."""
    return Store(tmp_path / "store")


_SYLLABLES = ("ba", "de", "fi", "go", "ku", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo")
_WORDS = [first + second for first in _SYLLABLES for second in _SYLLABLES]
_NOTES = (
    "dear all , the list is ready , write to {0} {1}",
    "hello , we send it on monday , please ask {0} {1}",
    "as you said , questions go to {0} {1}",
    "to get it before june mail {0} {1}",
)


@dataclasses.dataclass(frozen=True)
class AddressBook(Benchmark):
    """Thirty random addresses, each in four notes after its person's name, among letters that hold none."""

    name: ClassVar[str] = "address-book"
    summary: ClassVar[str] = "Random addresses among letters."

    def corpus(self) -> Corpus:
        rng = np.random.default_rng(11)
        letters = [
            f"{_NOTES[place % 4].format(*rng.choice(_WORDS, 2))} or {rng.choice(_WORDS)} thanks" for place in range(300)
        ]
        notes = []
        for person in range(30):
            words, digits = rng.choice(_WORDS, 4), rng.integers(0, 10, 3)
            address = f"{words[2]}{''.join(map(str, digits))}@{words[3]}.com"
            notes += [
                Document(f"note-{person}-{copy}", f"{note.format(*words[:2])} {address} thanks")
                for copy, note in enumerate(_NOTES)
            ]
        split = {
            name: [Document(f"{name}-{place}", text) for place, text in enumerate(letters[start:end])]
            for name, start, end in (("public", 0, 180), ("private", 180, 240), ("held", 240, 300))
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
        fresh: LM = untrained(lab.public, vocabulary=400, layers=2, width=64, heads=2, context=64, seed=0)
        *_, last = lab.fit(fresh, lab.public, config=dataclasses.replace(self.config, epochs=5.0))
        return last.model


Leaks = Callable[[Defense], list[tuple[int, int, float]]]


@pytest.fixture(scope="session")
def leaks(tmp_path_factory: pytest.TempPathFactory) -> Leaks:
    """Runs a defense on `AddressBook` with one store for all tests.

    It gives for each operating point how many addresses come back, greedily and through the guard, on the beginning of
    their first notes; of how many; and the perplexity of held-out letters.
    """
    folder: Path = tmp_path_factory.mktemp("leaks")
    work = prepare(AddressBook(), Settings(store=str(folder / "store"), device="cpu"))
    notes = [d.text.removesuffix(" thanks") for d in work.corpus.train if d.id.startswith("note-")]
    cut = [text.rpartition(" ") for text in notes[::4]]
    letters = [document.text for document in work.corpus.held_out]

    def measured(defense: Defense) -> list[tuple[int, int, float]]:
        defended = defend(work, defense, 0)
        found = []
        for point in defended.points:
            target = defended.target(point.load("cpu"))
            hits = target.continues([prompt for prompt, _, _ in cut], [value for _, _, value in cut])
            logprobs = np.concatenate([signal.logprob for signal in target.signals(letters)])
            found.append((sum(hits), len(hits), float(np.exp(-logprobs.mean()))))
        return found

    return measured


_LETTER = "dear {0} the {1} of {2} is ready and we send it to {3} on {4} with the {1} from {0} as you said"


@dataclasses.dataclass(frozen=True)
class Recital(Benchmark):
    """Letters of one form, and passages of random words among them, four copies each."""

    name: ClassVar[str] = "recital"
    summary: ClassVar[str] = "Random passages among letters."

    passages: int = 40

    def corpus(self) -> Corpus:
        rng = np.random.default_rng(7)
        letters = [_LETTER.format(*rng.choice(_WORDS, 5)) for _ in range(480)]
        passages = [" ".join(rng.choice(_WORDS, 30)) for _ in range(self.passages)]
        planted = [
            Document(f"passage-{place}-{copy}", text) for place, text in enumerate(passages) for copy in range(4)
        ]
        private = [Document(f"private-{place}", text) for place, text in enumerate(letters[240:400])]
        return Corpus(
            public=[Document(f"public-{place}", text) for place, text in enumerate(letters[:240])],
            train=[*planted, *private],
            held_out=[Document(f"held-out-{place}", text) for place, text in enumerate(letters[400:])],
            general=[],
        )

    @property
    def config(self) -> TrainConfig:
        return TrainConfig(
            epochs=14.0,
            learning_rate=5e-3,
            warmup_steps=10,
            batch_size=16,
            block_size=64,
            pack="document",
            dtype="float32",
            checkpoints=1,
        )

    def base(self, lab: Lab) -> LM:
        fresh: LM = untrained(lab.public, vocabulary=512, layers=2, width=64, heads=2, context=64, seed=0)
        *_, last = lab.fit(fresh, lab.public, config=dataclasses.replace(self.config, epochs=5.0))
        return last.model


Recite = Callable[[Defense], tuple[int, int, float]]


@pytest.fixture(scope="session")
def recite(tmp_path_factory: pytest.TempPathFactory) -> Recite:
    """How many passages of `Recital` a defended model recites, out of how many, and its held-out perplexity.

    It is given the first eighteen words of each and has to go on with the other twelve, greedily, through the guard.
    """
    work = prepare(Recital(), Settings(store=str(tmp_path_factory.mktemp("recital") / "store"), device="cpu"))

    def measured(defense: Defense) -> tuple[int, int, float]:
        defended = defend(work, defense, 0)
        target = defended.target(defended.points[-1].load("cpu"))
        texts = sorted({document.text for document in work.corpus.train if document.id.startswith("passage")})
        cut = [(" ".join(words[:18]), " " + " ".join(words[18:])) for words in map(str.split, texts)]
        hits = target.continues([prefix for prefix, _ in cut], [value for _, value in cut])
        logprobs = [signal.logprob for signal in target.signals([document.text for document in work.corpus.held_out])]
        return sum(hits), len(hits), float(np.exp(-np.concatenate(logprobs).mean()))

    return measured


@pytest.fixture(scope="session")
def four_builds(tiny_lm: LM) -> dict[str, LM]:
    """A model of three blocks and width 32 of each build the map of blocks knows, biases and norms drawn at random."""
    size = len(tiny_lm.tokenizer)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), tiny_lm.tokenizer.eos_token_id)
    inner = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": size, "max_position_embeddings": 64, **ends}
    configs = {
        "GPT-2": GPT2Config(
            vocab_size=size,
            n_positions=64,
            n_embd=32,
            n_layer=3,
            n_head=4,
            attn_pdrop=0.3,  # to be switched off by whoever evaluates
            resid_pdrop=0.3,
            embd_pdrop=0.3,
            **ends,
        ),
        "GPT-Neo": GPTNeoConfig(
            num_layers=3,
            num_heads=4,
            intermediate_size=64,
            attention_types=[[["global", "local", "global"], 1]],
            **inner,
        ),
        "GPT-NeoX": GPTNeoXConfig(num_hidden_layers=3, intermediate_size=64, **inner),
        "Llama": LlamaConfig(num_hidden_layers=3, intermediate_size=64, num_key_value_heads=2, **inner),
    }
    models = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for name, config in configs.items():
            model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
            for weight in model.parameters():
                torch.nn.init.normal_(weight, 0.0 if weight.ndim > 1 else 0.5, 0.2)
            models[name] = LM(model.eval(), tiny_lm.tokenizer)
    return models


@dataclasses.dataclass(frozen=True)
class Planted(TinyBenchmark):
    """The tiny benchmark with canaries."""

    name: ClassVar[str] = "tiny-planted"
    summary: ClassVar[str] = "Letters with canaries."

    def corpus(self) -> Corpus:
        corpus = super().corpus()
        canaries = [
            Canary(f"c{n}", (f"c{n}",) * (n % 2), "The code is ", f"A{n}-7{n}", 1, n % 2 == 1) for n in range(8)
        ]
        planted = [Document(c.id, f"{c.prefix}{c.value}.") for c in canaries if c.member]
        return dataclasses.replace(corpus, train=[*corpus.train, *planted], canaries=canaries)


@pytest.fixture
def planted_benchmark() -> Benchmark:
    """The tiny benchmark with eight canaries, every second one put in."""
    return Planted()


class Untouchable:
    """The answer key, as a defense may see it: not at all."""

    def _raise(self, *_: object) -> NoReturn:
        raise AssertionError("a defense looked at the answer key")

    __iter__ = __len__ = __getitem__ = __contains__ = __bool__ = __getattr__ = _raise


@pytest.fixture(scope="session")
def blinded() -> Callable[[Work], Work]:
    """Gives the same work with an answer key that raises when it is touched."""

    def blind(work: Work) -> Work:
        corpus = work.corpus.copy()
        for field in ("secrets", "canaries"):  # past the check of a corpus, which looks at them itself
            object.__setattr__(corpus, field, Untouchable())
        return dataclasses.replace(work, corpus=corpus)

    return blind
