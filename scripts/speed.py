"""Measures what is asked of speed, and prints it as JSON, with each limit and whether it is kept on this machine.

Parts: training, prefix, membership, beginnings, many, bootstrap, archive, detector, defenses, startup; all by default.
"""

from __future__ import annotations

import dataclasses
import email.message
import functools
import json
import math
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import click
import numpy as np
import torch

from memdefense import GREEDY, LM, AttackLab, Corpus, Document, LocalTarget, LogprobTarget, TrainConfig, pii
from memdefense.attacks import membership_scores
from memdefense.attacks.mia import MIA
from memdefense.bench import Bench
from memdefense.benchmarks.enron import Enron
from memdefense.benchmarks.mailbox import Mailbox
from memdefense.defenses.dp_sgd import DPSGD
from memdefense.defenses.pme import PME
from memdefense.defenses.sani import SANI
from memdefense.fit import fit
from memdefense.lab import Lab
from memdefense.memory import peak, reset_peak
from memdefense.packing import Rows, rows
from memdefense.passes import batches, pad
from memdefense.remember import remembered
from memdefense.roc import auc_interval
from memdefense.small_model import untrained
from memdefense.store import Store
from memdefense.train import precision

REPEATS = 3


PARTS = (
    "training",
    "prefix",
    "membership",
    "beginnings",
    "many",
    "bootstrap",
    "archive",
    "detector",
    "defenses",
    "startup",
)
# Part and number: the least or the most that is asked for.
LEAST = {
    ("training", "ratio"): 0.95,
    ("prefix", "times_faster"): 5.0,
    ("prefix", "identical"): 1.0,
    ("archive", "megabytes_per_second"): 5.0,
}
MOST = {
    ("membership", "all_scores_times_a_bare_pass"): 1.15,
    ("bootstrap", "units_seconds"): 2.0,
    ("bootstrap", "persons_seconds"): 2.0,
    ("defenses", "dp_sgd_times_an_epoch"): 3.0,
    ("defenses", "sani_repair_times_an_epoch"): 1.2,
    ("defenses", "pme_seconds_per_100"): 60.0,
    ("startup", "help_seconds"): 0.5,
}


@click.command(help=__doc__)
@click.argument("chosen", nargs=-1, type=click.Choice(PARTS), metavar="[PART]...")
def main(chosen: tuple[str, ...]) -> None:
    """Runs the parts named, or all."""
    parts: dict[str, Callable[[], dict[str, float]]] = {name: globals()[name] for name in chosen or PARTS}
    found = {name: {key: round(value, 4) for key, value in part().items()} for name, part in parts.items()}
    limits = {
        f"{part} {name}": {"limit": limit, "kept": sign * found[part][name] >= sign * limit}
        for sign, asked in ((1, LEAST), (-1, MOST))
        for (part, name), limit in asked.items()
        if part in found
    }
    made = {"threads": torch.get_num_threads(), "dtype": precision("auto", "cpu")}
    print(json.dumps({**made, **found, "limits": limits}, indent=1))


def training() -> dict[str, float]:
    """Tokens per second of `fit` beside a bare loop over the same rows, in turn; the medians of several pairs."""
    documents = Mailbox(documents=600).corpus().public
    lm = untrained(documents, vocabulary=2048, layers=4, width=264, heads=4, context=256, seed=0)
    config = TrainConfig(steps=30, batch_size=16, block_size=256, learning_rate=1e-3, checkpoints=1)
    data = rows(config, documents, lm, seed=0)
    ours, bare = [], []
    for _ in range(REPEATS):
        bare.append(_bare_loop(lm, data, config))
        with tempfile.TemporaryDirectory() as folder:
            ticks = _fit_ticks(lm, documents, Path(folder), config)
        # From the end of the fifth step to the end of the last but one: neither warm-up nor the checkpoint's writing.
        ours.append((len(ticks) - 6) * config.batch_size * config.block_size / (ticks[-2] - ticks[4]))
    middle = REPEATS // 2
    best_pair = sorted(a / b for a, b in zip(ours, bare, strict=True))[middle]
    return {
        "parameters": float(lm.parameters()),
        "lab_tokens_per_second": sorted(ours)[middle],
        "bare_tokens_per_second": sorted(bare)[middle],
        "ratio": best_pair,
    }


def _fit_ticks(lm: LM, documents: Sequence[Document], folder: Path, config: TrainConfig) -> list[float]:
    ticks: list[float] = []
    fit(lm, documents, folder, config=config, seed=0, progress=lambda *_: ticks.append(time.perf_counter()))
    return ticks


def _bare_loop(lm: LM, data: Rows, config: TrainConfig) -> float:
    model = lm.copy().model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    bf16 = precision("auto", "cpu") == "bfloat16"
    ticks = []
    for start in range(0, len(data), config.batch_size):
        ids = data.__getitems__(list(range(start, start + config.batch_size)))["ids"]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]).float(), ids[:, 1:].reshape(-1)
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ticks.append(time.perf_counter())
    return (len(ticks) - 6) * config.batch_size * config.block_size / (ticks[-2] - ticks[4])


def prefix() -> dict[str, float]:
    """Prompts per second of `generate` in batches beside one prompt at a time; results must be equal."""
    corpus = Mailbox(documents=300).corpus()
    lm = untrained(corpus.public, vocabulary=2048, layers=4, width=192, heads=3, context=256, seed=0)
    prompts = [document.text[: len(document.text) // 2] for document in corpus.train[:128]]
    target = LocalTarget(lm)
    started = time.perf_counter()
    batched = target.generate(prompts, max_new_tokens=24)
    middle = time.perf_counter()
    single = [_one(lm, prompt) for prompt in prompts]
    ended = time.perf_counter()
    continues = time.perf_counter()
    target.continues(prompts, ["(212) 555-0187"] * len(prompts))
    return {
        "batched_prompts_per_second": len(prompts) / (middle - started),
        "single_prompts_per_second": len(prompts) / (ended - middle),
        "times_faster": (ended - middle) / (middle - started),
        "identical": float(batched == single),
        "continues_prompts_per_second": len(prompts) / (time.perf_counter() - continues),
    }


def _one(lm: LM, prompt: str) -> str:
    ids = torch.tensor([lm.encode(prompt)[-(lm.context - 24) :]])
    out = lm.model.generate(  # type: ignore[operator]
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=GREEDY.temperature > 0, pad_token_id=0
    )
    new = out[0, ids.shape[1] :].tolist()
    eos = lm.tokenizer.eos_token_id
    return lm.decode(new[: new.index(eos)] if eos in new else new)


def membership() -> dict[str, float]:
    """All one-pass membership scores beside one bare forward pass over the same texts, sorted and batched alike.

    ``cold`` is with an empty store: tokens, pass, signals, writing them down, reading them back, scores. ``warm`` is a
    second measure that asks about the same texts.
    """
    corpus = Mailbox(documents=600).corpus()
    lm = untrained(corpus.public, vocabulary=2048, layers=4, width=192, heads=3, context=256, seed=0)
    # Copies of one text are passed over once, and longer ones in pieces: neither would be the same pass.
    encoded = {document.text: lm.encode(document.text) for document in corpus.train}
    texts = [text for text, own in encoded.items() if len(own) <= lm.context]
    ids = sorted((encoded[text] for text in texts), key=len, reverse=True)
    # An attack counts them once for all models of a tokenizer, and takes them from the store after that.
    public = [lm.encode(document.text) for document in corpus.public]
    frequency = membership_scores.log_frequencies(public, lm.model.config.get_text_config().vocab_size)
    seconds = dict.fromkeys(("bare", "signals", "cold", "warm"), math.inf)
    for _ in range(REPEATS):
        with tempfile.TemporaryDirectory() as folder:
            kept = remembered(LocalTarget(lm), Store(Path(folder)), {"model": ""}, lambda spent: None)
            parts: dict[str, Callable[[], object]] = {
                "bare": functools.partial(_bare_pass, lm, ids),
                "signals": functools.partial(LocalTarget(lm).signals, texts),
                "cold": functools.partial(_scored, kept, texts, frequency),
                "warm": functools.partial(_scored, kept, texts, frequency),
            }
            for name, part in parts.items():
                started = time.perf_counter()
                part()
                seconds[name] = min(seconds[name], time.perf_counter() - started)
    tokens = sum(len(row) for row in ids)
    return {
        "signals_tokens_per_second": tokens / seconds["signals"],
        "times_a_bare_pass": seconds["signals"] / seconds["bare"],
        "all_scores_times_a_bare_pass": seconds["cold"] / seconds["bare"],
        "warm_times_a_bare_pass": seconds["warm"] / seconds["bare"],
    }


def _bare_pass(lm: LM, ids: list[list[int]]) -> None:
    with torch.inference_mode():
        for batch in batches(lm, [len(row) for row in ids]):
            padded, mask = pad([ids[row] for row in batch], left=False)
            lm.model(input_ids=padded, attention_mask=mask, use_cache=False)


def _scored(target: LogprobTarget, texts: list[str], frequency: membership_scores.Floats) -> list[list[float]]:
    return [
        [
            membership_scores.loss(one.logprob),
            membership_scores.zlib(one.logprob, text),
            membership_scores.min_k(one.logprob, 0.2),
            membership_scores.min_k_plus_plus(one.logprob, one.mean, one.std, 0.2),
            membership_scores.dc_pdd(one.logprob, one.tokens[len(one.tokens) - len(one.logprob) :], frequency),
        ]
        for text, one in zip(texts, target.signals(texts), strict=True)
    ]


def beginnings() -> dict[str, float]:
    """What `exposure` asks, 128 codes behind each of ten contexts, beside the same rows read whole."""
    corpus = Mailbox(documents=300).corpus()
    lm = untrained(corpus.public, vocabulary=2048, layers=4, width=192, heads=3, context=256, seed=0)
    contexts = [document.text[:200].rstrip() for document in corpus.train[:10]]
    codes = [f" {number:04d}-{7 * number:04d}" for number in range(128)]
    asked = [(context, code) for context in contexts for code in codes]
    before, after = [context for context, _ in asked], [code for _, code in asked]
    target = LocalTarget(lm)
    seconds, off = {"shared": math.inf, "whole": math.inf}, 0.0
    for _ in range(REPEATS):
        started = time.perf_counter()
        shared = target.signals(after, contexts=before)
        middle = time.perf_counter()
        whole = target.signals([context + code for context, code in asked])
        ended = time.perf_counter()
        seconds = {
            "shared": min(seconds["shared"], middle - started),
            "whole": min(seconds["whole"], ended - middle),
        }
        for one, other in zip(shared, whole, strict=True):
            off = max(off, float(np.abs(one.logprob - other.logprob[-len(one.logprob) :]).max()))
    return {
        "codes_per_second": len(asked) / seconds["shared"],
        "times_faster": seconds["whole"] / seconds["shared"],
        "equal_to_a_ten_thousandth_of_a_nat": float(off < 1e-4),
    }


def many() -> dict[str, float]:
    """Memory of a membership run over 100,000 texts. The target is the base model: what is subtracted is stored."""
    lines = [
        f"Note {n}: the {n % 97} boxes of room {n % 1013} are ready for {n * 7919 % 100_003}." for n in range(100_000)
    ]
    corpus = Corpus(
        (),
        [Document(f"t{n}", text) for n, text in enumerate(lines[::2])],
        [Document(f"h{n}", text) for n, text in enumerate(lines[1::2])],
    )
    public = [Document(f"p{n}", text) for n, text in enumerate(lines[:500])]
    lm = untrained(public, vocabulary=512, layers=2, width=32, heads=2, context=64, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        lab = AttackLab(
            Bench(Store(Path(folder))),
            who="speed",
            seed=0,
            originals=corpus.train,
            public=public,
            config=TrainConfig(),
            base=lm,
            curated=corpus.train,
            defended=None,
        )
        target = lab.serve(lm)
        reset_peak("cpu")
        before, started = peak("cpu"), time.perf_counter()
        outcomes = list(MIA(members=len(lines)).run(target, corpus, lab))
        seconds = time.perf_counter() - started
        stored = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "texts": float(len(outcomes)),
        "seconds": seconds,
        "megabytes_beside_the_corpus": (peak("cpu") - before) / 1e6,
        "megabytes_stored": stored / 1e6,
    }


def bootstrap() -> dict[str, float]:
    """Seconds of an AUC's interval by 1,000 resamples of 20,000 scores, of units alone and of persons of four each."""
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=20_000), rng.random(20_000) < 0.5
    persons = [f"p{i // 4}" for i in range(len(scores))]
    found = {"units_seconds": math.inf, "persons_seconds": math.inf}
    for _ in range(REPEATS):
        for name, groups in (("units_seconds", None), ("persons_seconds", persons)):
            started = time.perf_counter()
            auc_interval(scores, labels, groups=groups, resamples=1000)
            found[name] = min(found[name], time.perf_counter() - started)
    return found


def archive() -> dict[str, float]:
    """Megabytes of raw mail per second from a tarball to a corpus, on synthetic mail of the Enron archive's sizes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "mail.tar.gz"
        messages, size = _archive_of(path, Mailbox(documents=24000).corpus().train)
        started = time.perf_counter()
        corpus = Enron(data=str(path), documents=1000).corpus()
        seconds = time.perf_counter() - started
        return {
            "messages": float(messages),
            "megabytes": size / 1e6,
            "megabytes_per_second": size / 1e6 / seconds,
            "opened": float(corpus.counts["opened"]),
            "train": float(len(corpus.train)),
        }


def _archive_of(path: Path, documents: Sequence[Document]) -> tuple[int, int]:
    """Writes messages of three documents each, with headers of their own; returns how many, and their bytes."""
    size = 0
    bundles = [documents[start : start + 3] for start in range(0, len(documents), 3)]
    with tarfile.open(path, "w:gz") as out:
        for number, bundle in enumerate(bundles):
            sender = bundle[0].author
            mail = email.message.EmailMessage()
            mail["Message-ID"] = f"<{number}.{sender}@example.invalid>"
            mail["From"] = f"{sender}@example.invalid"
            mail["Subject"] = f"note {number}"
            for field in ("From", "To", "cc", "bcc", "Folder", "Origin", "FileName"):
                mail[f"X-{field}"] = f"{field} of {sender}, as the exporting program wrote it"
            mail.set_content("\n".join(document.text for document in bundle))
            raw = mail.as_bytes().replace(b"\n", b"\r\n")
            entry = tarfile.TarInfo(f"maildir/{sender}/inbox/{number}.")
            entry.size = len(raw)
            size += len(raw)
            out.addfile(entry, BytesIO(raw))
    return len(bundles), size


def detector() -> dict[str, float]:
    """Megabytes of text per second of `pii.find`, and its recall and precision by kind against the answer key."""
    corpus = Mailbox(documents=3000).corpus()
    documents = [*corpus.train, *corpus.held_out]
    size = sum(len(document.text.encode()) for document in documents)
    pii.find(documents[0].text)  # loads what it needs
    started = time.perf_counter()
    found = {(d.id, one.start, one.end, one.kind) for d in documents for one in pii.find(d.text)}
    seconds = time.perf_counter() - started
    known = {(o.document, o.start, o.end, s.kind): o.form for s in corpus.secrets for o in s.occurrences}
    told = {"megabytes_per_second": size / 1e6 / seconds}
    for kind in corpus.kinds:
        there = {place for place in known if place[-1] == kind}
        plain = {place for place in there if known[place] == "plain"}
        said = {place for place in found if place[-1] == kind}
        told[f"{kind}_recall"] = len(said & there) / len(there)
        told[f"{kind}_recall_of_plain_forms"] = len(said & plain) / len(plain)
        told[f"{kind}_precision"] = len(said & there) / len(said)
    return told


def defenses() -> dict[str, float]:
    """DP-SGD's and SANI's epochs beside one of plain training, and PME's requests, on the default model."""
    mailbox = Mailbox()
    corpus = mailbox.corpus()
    config = dataclasses.replace(mailbox.config, epochs=1.0, checkpoints=1)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Store(Path(folder)), "cpu")

        def lab(who: str) -> Lab:
            return Lab(bench, who=who, seed=0, originals=corpus.train, public=corpus.public, config=config, base=base)

        base: LM | None = None
        base = mailbox.base(lab("base"))
        plain, private, repaired, edited = (lab(who) for who in ("plain", "dp-sgd", "sani", "pme"))
        *_, tuned = plain.fit(base, corpus.train)
        started = time.perf_counter()
        list(DPSGD().train(base, corpus.train, private))  # one expected pass as well
        noised = time.perf_counter() - started
        started = time.perf_counter()
        list(SANI(epochs=2).edit(tuned.model.copy(), corpus.train, repaired))
        repair = (time.perf_counter() - started) / 2
        epoch = plain.cost["train_seconds"]
        *_, learned = plain.fit(base, corpus.train[:150], config=dataclasses.replace(config, epochs=20.0))
        started = time.perf_counter()
        list(PME().edit(learned.model.copy(), corpus.train[:150], edited))
        requests = edited.notes["edited"] + edited.notes["skipped"]
        return {
            "plain_epoch_seconds": epoch,
            "dp_sgd_epoch_seconds": noised,
            "sani_repair_epoch_seconds": repair,
            "dp_sgd_times_an_epoch": noised / epoch,
            "sani_repair_times_an_epoch": repair / epoch,
            "pme_requests": requests,
            "pme_seconds_per_100": 100 * (time.perf_counter() - started) / max(1.0, requests),
        }


def startup() -> dict[str, float]:
    """Seconds of ``memdefense --help`` and ``import memdefense``, the best of several."""
    help_ = [sys.executable, "-m", "memdefense", "--help"]
    import_ = [sys.executable, "-c", "import memdefense"]
    return {"help_seconds": _timed(help_), "import_seconds": _timed(import_)}


def _timed(command: list[str]) -> float:
    best = math.inf
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        best = min(best, time.perf_counter() - started)
    return best


if __name__ == "__main__":
    main()
