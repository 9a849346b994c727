"""A smaller model of the same family: its tokenizer and kind of block, fewer layers and a narrower hidden state."""

from __future__ import annotations

import torch

from memdefense.errors import ModelError, SpecError
from memdefense.lm import LM


def smaller(lm: LM, shrink: int, *, seed: int) -> LM:
    """An untrained model whose width and number of layers are those of ``lm`` divided by ``shrink``.

    The number of heads shrinks alike, to the nearest one that divides the new width and leaves heads of an even size,
    which rotary positions need; vocabulary, context and everything else stay.

    Args:
        lm: the larger model, which is not touched.
        shrink: the divisor, at least 1; layers are rounded down.
        seed: of the weights.

    Raises:
        SpecError: ``shrink`` is below 1: a sibling is never larger.
        ModelError: the model is too small for it, or its configuration does not say how large it is.
    """
    if shrink < 1:
        raise SpecError(f"shrink is {shrink}; it must be at least 1, since a sibling is never larger than its model")
    config = lm.model.config
    layers, width, heads = (
        int(getattr(config, name, 0) or 0) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    kind = type(lm.model).__name__
    if not layers or not width or not heads:
        raise ModelError(f"the configuration of {kind} does not give layers, width and heads; it has no sibling here")
    if layers < shrink or width % shrink or width // shrink < 2:
        raise ModelError(
            f"a {kind} of {layers} layers and width {width} cannot be shrunk by {shrink}: at least one layer must be "
            f"left, and the width must be a multiple of {shrink}; use a smaller shrink"
        )
    given = {name: value for name, value in config.to_dict().items() if name not in ("architectures", "model_type")}
    new = dict(zip(("layers", "width", "heads"), (layers // shrink, width // shrink, 0), strict=True))
    # Two values share a key and value head where there are fewer of these.
    groups = heads // int(given.get("num_key_value_heads") or heads)
    new["heads"] = _heads(new["width"], round(heads / shrink), groups)
    for name, value in {
        "num_hidden_layers": new["layers"],
        "hidden_size": new["width"],
        "num_attention_heads": new["heads"],
        "num_key_value_heads": max(1, new["heads"] // groups),
        "head_dim": new["width"] // new["heads"],
        "intermediate_size": int(given.get("intermediate_size") or 0) // shrink,
        "n_inner": int(given.get("n_inner") or 0) // shrink,
    }.items():
        own = type(config).attribute_map.get(name, name)
        if given.get(own) is not None:
            given[own] = value
    if given.get("attention_types") is not None:  # GPT-Neo: [[kinds, times]]
        given["attention_types"] = [[list(config.attention_layers[: new["layers"]]), 1]]
        given.pop("attention_layers", None)
    if given.get("layer_types") is not None:
        given["layer_types"] = given["layer_types"][: new["layers"]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = type(lm.model)(type(config)(**given))
    model.train(False)
    return LM(model, lm.tokenizer).to(str(lm.device))


def _heads(width: int, wanted: int, groups: int) -> int:
    """The number of heads nearest to ``wanted`` that splits the width and is a multiple of ``groups``."""
    fits = [n for n in range(1, width + 1) if width % n == 0 and width // n % 2 == 0 and n % groups == 0]
    if not fits:
        raise ModelError(f"no number of heads splits a width of {width} and goes with {groups} heads a key")
    return min(fits, key=lambda n: (abs(n - wanted), n))


__all__ = ["smaller"]
