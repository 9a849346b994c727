"""Signals once: a target's answer about the tokens of a text is computed in one pass and read from the store after.

`remembered` wraps a target so that nobody who asks notices. Perplexity, membership, discoverable extraction and the
verbatim check ask for the signals of much the same texts: the first pays for the pass, the others read. So do defenses
that guard text alone: under such a guard signals are those of the weights.

What holds of the numbers. A shard of signals is one pass over exactly the texts its key names, in an order of their
own, so whoever asks for the same set gets the same bits, in any order of asking, also after an interruption. What is
in the store is never computed again, so a run repeated on its store gives the same bits too. A text that was first met
in another set, though, was padded with other neighbours, and its sums differ in the last bits (about 1e-6 nats) from
those it would have got in this one, as they do for another batch size or number of threads. So callers ask for whole
splits: the held-out texts in one call, the members in another.

A shard holds digests and numbers. Token ids are among the numbers, so it is as private as the texts; the store is.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from memdefense.access import GREEDY, PLAIN, Law, Sampling, Signals, Target, TextGuard
from memdefense.recipe import Parts, code_of, digest

if TYPE_CHECKING:
    from memdefense.lm import LM
    from memdefense.store import Artifact, Store

_KIND = "signals"
# Fewer texts than this are answered by a pass of their own: looking them up and writing them down would cost more.
_FEWEST = 8
# A shard's texts and characters at most; a million characters are some 6 MB of signals.
_TEXTS, _CHARACTERS = 1 << 13, 1 << 22
_COLUMNS = {"tokens": np.int32, "logprob": np.float32, "mean": np.float32, "std": np.float32, "rank": np.int32}
_WHOLE = "tokens"  # of every token; the others are of those that were predicted

Asked = tuple[str, str | None]
"""A text, and what stood before it."""


def remembered(target: Target, store: Store, identity: Parts, replay: Callable[[float], None]) -> Remembered:
    """The same target, whose signals are kept.

    Args:
        target: what is asked where the store has no answer.
        store: where the answers are.
        identity: all that decides them: the digest of the weights, the guard and what it was made from, the device and
            the versions of libraries. The dtype and the code of targets are added here.
        replay: told of the seconds that a pass took whose numbers are used again, so that an attack's cost does not
            depend on who came first.
    """
    code = [code_of(type(target)), code_of("memdefense.target"), code_of(__name__)]
    return Remembered(target, store, {**identity, "code": code, "dtype": str(target.model.model.dtype)}, replay)


@dataclasses.dataclass(frozen=True)
class Remembered:
    """A target whose signals are kept; made by `remembered`."""

    behind: Target
    store: Store
    identity: Parts
    replay: Callable[[float], None]

    @property
    def model(self) -> LM:
        return self.behind.model

    def generate(self, prompts: Sequence[str], *, max_new_tokens: int, sampling: Sampling = GREEDY) -> list[str]:
        return self.behind.generate(prompts, max_new_tokens=max_new_tokens, sampling=sampling)

    def continues(self, prompts: Sequence[str], values: Sequence[str]) -> list[bool]:
        return self.behind.continues(prompts, values)

    def guarded(
        self, *, law: Law | None = None, text: TextGuard | None = None, sampling: Sampling | None = None
    ) -> Target:
        """Behind one more guard. What it makes of signals has no name and is not kept; a text guard leaves them."""
        behind = self.behind.guarded(law=law, text=text, sampling=sampling)
        return behind if law or sampling else dataclasses.replace(self, behind=behind)

    def unfiltered(self) -> Target:
        return dataclasses.replace(self, behind=self.behind.unfiltered())

    def filtered(self, prompts: Sequence[str], continuations: Sequence[str], *, max_new_tokens: int) -> list[str]:
        return self.behind.filtered(prompts, continuations, max_new_tokens=max_new_tokens)

    def signals(
        self, texts: Sequence[str], *, contexts: Sequence[str] | None = None, sampling: Sampling = PLAIN
    ) -> list[Signals]:
        """As the target's own. Memory beyond the answer itself is a shard's, however many texts there are."""
        if len(texts) < _FEWEST:
            return self.behind.signals(texts, contexts=contexts, sampling=sampling)
        before: Sequence[str | None] = [None] * len(texts) if contexts is None else contexts
        names = [_name(text, context) for text, context in zip(texts, before, strict=True)]
        asked = dict(zip(names, zip(texts, before, strict=True), strict=True))
        parts = {**self.identity, "sampling": dataclasses.asdict(sampling)}
        family = digest(parts)
        found: dict[bytes, Signals] = {}
        for artifact in self.store.family(_KIND, family):
            if len(found) < len(asked):
                self._take(artifact, asked.keys() - found.keys(), found)
        for some in _shards({name: item for name, item in asked.items() if name not in found}):
            made = False

            def maker(folder: Path, some: Mapping[bytes, Asked] = some) -> Mapping[str, object]:
                nonlocal made
                made = True
                return self._pass(folder, some, sampling)

            own = {**parts, "texts": digest([name.hex() for name in some])}
            artifact = self.store.make(_KIND, own, maker, family=family)
            self._take(artifact, some.keys(), found, replayed=not made)
        return [found[name] for name in names]

    def _pass(self, folder: Path, some: Mapping[bytes, Asked], sampling: Sampling) -> dict[str, object]:
        """One pass over some texts, written into a shard; what its manifest says of it."""
        started = time.monotonic()
        contexts = [context for _, context in some.values() if context is not None]
        said = self.behind.signals([text for text, _ in some.values()], contexts=contexts or None, sampling=sampling)
        _write(folder, list(some), said)
        return {"seconds": time.monotonic() - started, "texts": len(some)}

    def _take(
        self, artifact: Artifact, wanted: Iterable[bytes], found: dict[bytes, Signals], *, replayed: bool = True
    ) -> None:
        """Adds to ``found`` what a shard holds of the wanted texts."""
        taken = _read(artifact, set(wanted))
        found.update(taken)
        if replayed:
            share = len(taken) / int(str(artifact.facts["texts"]))
            self.replay(float(str(artifact.facts["seconds"])) * share)


def _name(text: str, context: str | None) -> bytes:
    whole = hashlib.sha256()
    for part in (text,) if context is None else (text, context):
        data = part.encode("utf-8", "surrogatepass")
        whole.update(len(data).to_bytes(8, "little"))
        whole.update(data)
    return whole.digest()[:16]


def _shards(missing: Mapping[bytes, Asked]) -> Iterator[dict[bytes, Asked]]:
    """Texts of similar length together, the longest first; what an interruption left falls into the same shards."""
    size = {name: len(text) + len(context or "") for name, (text, context) in missing.items()}
    shard: dict[bytes, Asked] = {}
    room = _CHARACTERS
    for name in sorted(missing, key=lambda name: (-size[name], name)):
        if shard and (size[name] > room or len(shard) == _TEXTS):
            yield shard
            shard, room = {}, _CHARACTERS
        shard[name] = missing[name]
        room -= size[name]
    if shard:
        yield shard


def _write(folder: Path, names: Sequence[bytes], said: Sequence[Signals]) -> None:
    from safetensors.numpy import save_file

    columns = {
        name: np.concatenate([getattr(one, name) for one in said] or [np.zeros(0)]).astype(kind)
        for name, kind in _COLUMNS.items()
    }
    ends = np.cumsum([(len(one.tokens), len(one.logprob)) for one in said], axis=0, dtype=np.int64)
    np.save(folder / "names.npy", np.frombuffer(b"".join(names), np.uint8).reshape(-1, 16))
    save_file({**columns, "ends": ends}, folder / "signals.safetensors")


def _read(artifact: Artifact, wanted: set[bytes]) -> dict[bytes, Signals]:
    from safetensors.numpy import load_file

    names: npt.NDArray[np.uint8] = np.load(artifact.file("names.npy"))
    rows = {name: row for row, line in enumerate(names) if (name := line.tobytes()) in wanted}
    if not rows:
        return {}
    columns = load_file(artifact.file("signals.safetensors"))
    ends = np.concatenate([np.zeros((1, 2), np.int64), columns["ends"]])
    found = {}
    for name, row in rows.items():
        (start, first), (end, last) = ends[row], ends[row + 1]
        own = {c: columns[c][start:end] if c == _WHOLE else columns[c][first:last] for c in _COLUMNS}
        found[name] = Signals(
            own["tokens"].astype(np.int64),
            own["logprob"].copy(),  # not a view, which would hold on to the whole shard
            own["mean"].copy(),
            own["std"].copy(),
            own["rank"].astype(np.int64),
        )
    return found


__all__ = ["Remembered", "remembered"]
