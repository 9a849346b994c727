"""Semantic deduplication: of texts that mean nearly the same, the first is kept."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from memdefense.corpus import Document, Documents
from memdefense.defense import Defense
from memdefense.errors import ModelError, SpecError

if TYPE_CHECKING:
    from torch import Tensor

    from memdefense.lab import Lab
    from memdefense.lm import LM
    from memdefense.train import TrainConfig

_SENTENCE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
# Public texts whose mean is subtracted; more would not move it.
_PUBLIC = 1000
# A CPU gains nothing from larger passes, and loses to its caches.
_BATCH_TOKENS = {"cpu": 2048}
# Texts compared at a time with all leaders before them: a matrix of (block, leaders).
_BLOCK = 512


@dataclasses.dataclass(frozen=True)
class SemDedup(Defense):
    """Documents whose embeddings point the same way as that of an earlier document are dropped before training.

    Exact and near deduplication compare words; here texts are compared by what a model makes of them, so that a
    passage written anew in other words can count as a copy. Clustering is greedy: in document order, a text joins the
    earlier leaders if its cosine with any of them is at least ``threshold``, and is dropped; else it becomes a leader.

    A stand-in [ours] for the semantic deduplication of arXiv 2508.14062, which publishes neither encoder nor
    threshold: 0.85 is ours too.

    Does not protect the copy that is kept, nor a value that recurs in texts of different content, which is what
    personal data mostly does.

    Deviates [ours]: everything. The encoder is named by a field and never chosen by what happens to be installed, so
    that one spec means one result. ``states`` is the mean over all tokens of the last hidden states of the model
    before the private text. Those of a small language model all point in nearly one direction, so the mean embedding
    of up to 1,000 public texts is subtracted from them (of the documents themselves where there is no public text);
    ``centre=false`` leaves that out. On the default benchmark, of 985 distinct documents, 26 are kept without the
    subtraction and 683 with it. ``sentence`` is all-MiniLM-L6-v2 through sentence-transformers, not centred.

    Attributes:
        threshold: cosine from which a text counts as a copy, above 0 and at most 1.
        encoder: what makes embeddings: ``states`` or ``sentence``.
        centre: whether the mean embedding is subtracted from ``states``.
        match_steps: trains for as many optimizer steps as without the defense.

    Raises:
        SpecError: an unknown encoder, or a threshold out of range.
        ModelError: ``encoder=sentence`` without its extra.
    """

    name: ClassVar[str] = "semdedup"
    summary: ClassVar[str] = "Drops documents whose embedding is close to that of an earlier one before training."
    paper: ClassVar[str] = "a stand-in for arXiv 2508.14062"
    family: ClassVar[str] = "data"
    protects_not: ClassVar[str] = "the copy that is kept, and values that recur in texts of different content"

    threshold: float = 0.85
    encoder: Literal["states", "sentence"] = "states"
    centre: bool = True
    match_steps: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise SpecError(f"semdedup: threshold is {self.threshold}; give a cosine above 0 and at most 1")

    def configure(self, config: TrainConfig, lab: Lab) -> TrainConfig:
        if not self.match_steps:
            return config
        from memdefense.packing import count_steps  # not at the top, since it loads torch

        return dataclasses.replace(config, steps=count_steps(config, lab.originals, lab.fresh(), seed=lab.seed))

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        first: dict[str, Document] = {}
        for document in documents:
            first.setdefault(document.text, document)  # what reads the same has no cosine below 1 but by rounding
        distinct = list(first.values())
        kept = [distinct[place] for place in leaders(self._embedded(distinct, lab), self.threshold)]
        lab.note(documents_dropped=len(documents) - len(kept), exact_copies=len(documents) - len(distinct))
        return kept

    def _embedded(self, documents: Documents, lab: Lab) -> Tensor:
        """The embeddings of the documents, float32 (N, width)."""
        texts = [document.text for document in documents]
        if self.encoder == "sentence":
            return _sentence_embeddings(texts, lab.device)
        lm = lab.fresh()
        states = lab.cached("embeddings", lambda: mean_states(lm, texts), lm, texts)
        if self.centre:
            public = [document.text for document in lab.public[:_PUBLIC]]
            common = lab.cached("embeddings", lambda: mean_states(lm, public), lm, public) if public else states
            states = states - common.mean(0)
        return states


def mean_states(lm: LM, texts: Sequence[str]) -> Tensor:
    """The mean of a model's last hidden states over all tokens of each text, float32 (N, width), on the CPU.

    A text longer than the context is read in windows; one without a token has the embedding of a separator.
    """
    import torch

    windows: list[tuple[int, list[int]]] = []
    for place, text in enumerate(texts):
        ids = lm.encode(text) or lm.separator()
        windows += [(place, ids[at : at + lm.context]) for at in range(0, len(ids), lm.context)]
    windows.sort(key=lambda window: len(window[1]))  # rows of one length share a batch: little padding
    total = torch.zeros(len(texts), lm.width, dtype=torch.float64)
    count = torch.zeros(len(texts), 1, dtype=torch.float64)
    with torch.inference_mode():
        while windows:
            rows = max(1, _BATCH_TOKENS.get(lm.device.type, 32768) // len(windows[-1][1]))
            batch, windows = windows[-rows:], windows[:-rows]
            longest = len(batch[-1][1])
            padded = torch.tensor([own + [0] * (longest - len(own)) for _, own in batch])  # (rows, longest)
            mask = torch.tensor([[1] * len(own) + [0] * (longest - len(own)) for _, own in batch])
            states = lm.model.base_model(
                input_ids=padded.to(lm.device), attention_mask=mask.to(lm.device), use_cache=False
            ).last_hidden_state  # (rows, longest, width)
            sums = (states.double().cpu() * mask[:, :, None]).sum(1)
            owner = torch.tensor([place for place, _ in batch])
            total.index_add_(0, owner, sums)
            count.index_add_(0, owner, mask.sum(1, keepdim=True).double())
    return (total / count).float()


def leaders(embeddings: Tensor, threshold: float) -> list[int]:
    """The rows whose cosine with every earlier leader is below ``threshold``: greedy leader clustering in row order.

    Args:
        embeddings: (N, width); a row of zeros is like no other.
        threshold: the cosine from which a row belongs to an earlier one.
    """
    import torch

    units = torch.nn.functional.normalize(embeddings.double(), dim=1)  # (N, width)
    chosen: list[int] = []
    for start in range(0, len(units), _BLOCK):
        block = units[start : start + _BLOCK]
        near = (block @ units[chosen].T >= threshold).any(1) if chosen else torch.zeros(len(block), dtype=torch.bool)
        among = block @ block.T >= threshold  # (block, block)
        for row in torch.nonzero(~near).flatten().tolist():
            if not near[row]:
                chosen.append(start + row)
                near |= among[row]
    return chosen


def _sentence_embeddings(texts: Sequence[str], device: str) -> Tensor:
    import torch

    if importlib.util.find_spec("sentence_transformers") is None:
        raise ModelError('semdedup: encoder=sentence needs an extra: pip install "memdefense[semantic]"')
    encoder: Any = importlib.import_module("sentence_transformers").SentenceTransformer(_SENTENCE_MODEL, device=device)
    encoded = encoder.encode(list(texts), batch_size=64, show_progress_bar=False, convert_to_tensor=True)
    return cast("Tensor", encoded).to("cpu", torch.float32)


__all__ = ["SemDedup", "leaders", "mean_states"]
