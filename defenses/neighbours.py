"""A datastore of what a model thinks before each token of some documents, and which tokens came after the nearest."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from memdefense.laws import Caught
from memdefense.passes import Window, batches, pad, windows

if TYPE_CHECKING:
    from memdefense.corpus import Document
    from memdefense.lm import LM

# Queries and keys whose distances are worked on at a time: they stay in a core's cache, where a matrix product is three
# times as fast as one that writes them all to memory.
_QUERIES = 512
_KEYS = 1024
# Keys compared by the nearest of them first.
_GROUP = 8
# Numbers gathered at a time, of the keys that remain.
_GATHERED = 1 << 20


@dataclasses.dataclass(frozen=True)
class Items:
    """Every token of some documents as something to predict, and the contexts it is predicted from.

    A context is all that the model reads before the token: the document from its start, or from that of a window where
    it is longer than the model's. What reads the same is one context, whatever document it stands in.

    Attributes:
        lengths: tokens of each document, its separator included; documents of one id count once.
        context: (items,) the number of the context before each token, documents end to end; -1 for their first tokens,
            before which there is nothing.
        token: (items,) the tokens.
        places: of each context, the window it is read in and the place of its last token there.
        windows: what the model has to read.
    """

    lengths: list[int]
    context: Tensor
    token: Tensor
    places: list[tuple[int, int]]
    windows: list[Window]

    @classmethod
    def of(cls, lm: LM, documents: Sequence[Document]) -> Items:
        """The items of documents, in the order in which `fit` numbers them."""
        end = lm.separator()
        texts = [lm.encode(text) + end for text in {document.id: document.text for document in documents}.values()]
        tree: dict[tuple[int, int], int] = {}  # (node, token) -> node; the root is 0
        numbers: dict[int, int] = {}  # node -> context
        places: list[tuple[int, int]] = []
        read: list[Window] = []
        context: list[int] = []
        for ids in texts:
            own = [-1] * len(ids)
            for piece in windows(len(read), [], ids, lm.context):
                node, fresh = 0, len(places)
                for at, token in enumerate(piece.ids):
                    if at >= piece.scored:
                        number = numbers.setdefault(node, len(places))
                        own[piece.place + at] = number
                        if number == len(places):
                            places.append((len(read), at - 1))
                    node = tree.setdefault((node, token), len(tree) + 1)
                if len(places) > fresh:
                    read.append(piece)
            context += own
        tokens = torch.tensor([token for ids in texts for token in ids])
        return cls([len(ids) for ids in texts], torch.tensor(context), tokens, places, read)

    @torch.inference_mode()
    def states(self, lm: LM, stride: int = 1) -> Tensor:
        """What enters the output embedding after each context, or each ``stride``-th: float32 (contexts, width)."""
        wanted: dict[int, list[tuple[int, int]]] = {}  # window -> rows and places
        for row, (window, at) in enumerate(self.places[::stride]):
            wanted.setdefault(window, []).append((row, at))
        numbers = list(wanted)
        states = torch.zeros(len(self.places[::stride]), lm.width)
        caught = Caught(lm.model)
        try:
            for rows in batches(lm, [len(self.windows[number].ids) for number in numbers]):
                ids, mask = pad([self.windows[numbers[row]].ids for row in rows], left=False)
                lm.model(input_ids=ids.to(lm.device), attention_mask=mask.to(lm.device), use_cache=False)
                for place, row in enumerate(rows):
                    to, where = map(list, zip(*wanted[numbers[row]], strict=True))
                    states[to] = caught.hidden[place, where].float().cpu()
        finally:
            caught.remove()
        return states


@dataclasses.dataclass(frozen=True)
class Datastore:
    """Contexts by the state the model is in after them, and how often each token followed.

    The neighbours of a state are the ``k`` contexts whose states lie nearest, each with all that followed it: of
    contexts that read the same, all or none are among them, so that no tie is broken by rounding. A neighbour at
    Euclidean distance d counts for exp(-d^2 / temperature), times how often its token followed.

    Attributes:
        keys: (contexts, width) float32.
        start: (contexts + 1,) where the tokens of each context begin.
        token: (entries,) tokens by context, in rising order.
        count: (entries,) how often each followed, float32.
    """

    keys: Tensor
    start: Tensor
    token: Tensor
    count: Tensor

    @classmethod
    def of(cls, states: Tensor, items: Items, stride: int = 1) -> Datastore:
        """The store of some items.

        Args:
            states: of every ``stride``-th context.
            items: what is stored.
            stride: contexts between two that are stored.
        """
        stored = (items.context >= 0) & (items.context % stride == 0)
        vocabulary = int(items.token.max()) + 1
        code = items.context[stored] // stride * vocabulary + items.token[stored]
        entries, count = torch.unique(code, return_counts=True)
        start = torch.searchsorted(entries, torch.arange(len(states) + 1) * vocabulary)
        return cls(states, start, entries % vocabulary, count.float())

    def tensors(self) -> Mapping[str, Tensor]:
        """All of it, for the lab's cache."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def to(self, device: torch.device) -> Datastore:
        """The same on another device."""
        return Datastore(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @functools.cached_property
    def _squares(self) -> Tensor:
        return self.keys.square().sum(1)

    def nearest(self, states: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The ``k`` nearest contexts of each state: squared distances and numbers, (N, k) each, by exact search."""
        k = min(k, len(self.keys))
        square, number = [], []
        for queries in torch.split(states.float(), _QUERIES):
            candidates = self._candidates(queries, k)
            step = max(1, _GATHERED // (candidates.shape[1] * self.keys.shape[1]))
            for query, found in zip(torch.split(queries, step), torch.split(candidates, step), strict=True):
                # Anew from the differences: of near points the products leave little but rounding.
                exact = (query[:, None] - self.keys[found]).square().sum(2)
                least = exact.topk(k, 1, largest=False)
                square.append(least.values)
                number.append(found.gather(1, least.indices))
        return torch.cat(square), torch.cat(number)

    def _candidates(self, queries: Tensor, k: int) -> Tensor:
        """Contexts among which the ``k`` nearest of each query are: (N, candidates).

        They are in the ``k`` groups of keys whose least distances are smallest, which is far less to compare, and to
        keep, than all.
        """
        whole = len(self.keys) // _GROUP * _GROUP
        if whole <= k * _GROUP:
            return torch.arange(len(self.keys), device=queries.device).expand(len(queries), -1)
        buffer = torch.empty(len(queries) * _KEYS, device=queries.device)
        least, first, apart = [], [], []
        for start in range(0, whole, _KEYS):
            keys, squares = self.keys[start : min(start + _KEYS, whole)], self._squares[start : start + _KEYS]
            groups = len(keys) // _GROUP  # group j has keys j, j + groups, j + 2 groups, ... of these
            out = buffer[: len(queries) * len(keys)].view(len(queries), len(keys))
            # Less the query's own square.
            torch.addmm(squares[: len(keys)], queries, keys.T, alpha=-2, out=out)
            least.append(out.view(len(queries), _GROUP, groups).amin(1))
            first.append(torch.arange(start, start + groups, device=queries.device))
            apart.append(torch.full((groups,), groups, device=queries.device))
        chosen = torch.cat(least, 1).topk(k, 1, largest=False, sorted=False).indices
        inside = torch.arange(_GROUP, device=queries.device)
        found = torch.cat(first)[chosen][:, :, None] + torch.cat(apart)[chosen][:, :, None] * inside
        rest = torch.arange(whole, len(self.keys), device=queries.device).expand(len(queries), -1)
        return torch.cat([found.flatten(1), rest], 1)

    def probabilities(self, states: Tensor, k: int, temperature: float, vocabulary: int) -> Tensor:
        """The neighbours' distribution of the next token after each state: (N, vocabulary)."""
        square, number = self.nearest(states, k)
        weight = torch.exp((square[:, :1] - square) / temperature).flatten()  # of d^2, less the row's least
        first, many = self.start[number.flatten()], (self.start[number + 1] - self.start[number]).flatten()
        owner = torch.repeat_interleave(torch.arange(len(many), device=many.device), many)  # one per entry
        entry = torch.arange(len(owner), device=many.device) - (many.cumsum(0) - many)[owner] + first[owner]
        said = torch.zeros(len(states), vocabulary, device=states.device)
        place = (owner // square.shape[1], self.token[entry])
        said.index_put_(place, weight[owner] * self.count[entry], accumulate=True)
        return said / said.sum(1, keepdim=True)

    def left_out(
        self, items: Items, states: Tensor, k: int, temperature: float, *, stride: int = 1, copies: bool = True
    ) -> Tensor:
        """What the neighbours give each item's token once the item itself is taken away: (items,), NaN without context.

        Args:
            items: what the store was made of.
            states: of all their contexts.
            k: neighbours.
            temperature: of their weights, in units of squared distance.
            stride: with which the store was made.
            copies: whether other items after the same context are neighbours; without, the whole context is taken away.
        """
        known = torch.nonzero(items.context >= 0).flatten()
        context, token = items.context[known], items.token[known]
        square, number = self.nearest(states, k + 1)
        vocabulary = int(items.token.max()) + 1
        owner = torch.repeat_interleave(torch.arange(len(self.keys)), self.start.diff())
        code = owner * vocabulary + self.token  # rises with the entry
        whole = torch.zeros(len(self.keys)).index_add_(0, owner, self.count)
        given = torch.full((len(items.context),), torch.nan)
        for part in torch.split(torch.arange(len(known)), 1 << 16):
            near, apart = number[context[part]], square[context[part]]  # (n, k + 1)
            itself = near * stride == context[part][:, None]
            gone = itself.float() if copies else itself * whole[near]
            counted = whole[near] - gone
            used = (counted > 0) & ((counted > 0).cumsum(1) <= k)
            wanted = near * vocabulary + token[part][:, None]
            entry = torch.searchsorted(code, wanted).clamp_max(len(code) - 1)
            agreeing = torch.where(code[entry] == wanted, self.count[entry], 0.0)
            agreeing = agreeing - itself.float() if copies else agreeing.masked_fill(itself, 0.0)
            nearest = apart.masked_fill(~used, torch.inf).amin(1, keepdim=True)
            weight = torch.exp((nearest - apart) / temperature).masked_fill(~used, 0.0)
            given[known[part]] = (weight * agreeing).sum(1) / (weight * counted).sum(1)
        return given
