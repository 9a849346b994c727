"""Options of the command line: what several commands share, and what becomes of those that were given."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

STORE = click.option("--store", default="", help="[default: $MEMDEFENSE_STORE or ~/.cache/memdefense]")


def config_file(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Reads a TOML or JSON file of option names; what stands on the command line wins."""
    if not value:
        return value
    import json
    import tomllib

    path = Path(value)
    try:
        text = path.read_text(encoding="utf-8")
        given = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise click.UsageError(f"cannot read --config {path}: {error.strerror}") from error
    except ValueError as error:
        raise click.UsageError(f"--config {path} is no {path.suffix[1:].upper() or 'TOML'}: {error}") from error
    if not isinstance(given, dict):
        raise click.UsageError(f"--config {path} holds no options by name")
    from memdefense.errors import hint

    known = {option.name: option for option in ctx.command.params if option.name}
    for name, content in given.items():
        option = known.get(name.replace("-", "_"))
        if option is None or option.name == "config":
            raise click.UsageError(
                f"{path} has an unknown key '{name}'{hint(name, [k.replace('_', '-') for k in known])}"
            )
        many = isinstance(content, list)
        text = ",".join(str(item) for item in content) if many and not getattr(option, "multiple", False) else content
        ctx.default_map = {
            **(ctx.default_map or {}),
            str(option.name): [text] if getattr(option, "multiple", False) and not many else text,
        }
    return value


def many(*names: str, default: str, help: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """An option of names that may be repeated or stand in a comma list."""
    return click.option(*names, multiple=True, default=(default,), show_default=True, help=help)


def store_folder(folder: str) -> Path:
    """The store that was asked for, or the usual one."""
    return Path(folder or os.environ.get("MEMDEFENSE_STORE") or "~/.cache/memdefense").expanduser()


def benchmark_of(given: Mapping[str, Any]) -> Any:
    """The spec that was given, or a benchmark of the user's own data."""
    if given["data"] and given["benchmark"]:
        raise click.UsageError("--data is a benchmark of its own (jsonl); leave out --benchmark, or put data= into it")
    if given["data"]:
        from memdefense import registry

        # Not through a spec, which a comma in a path would break.
        fields = {"data": given["data"], "text_field": given["text_field"], "author_field": given["author_field"]}
        return registry.build("benchmarks", "jsonl", **fields)[0]
    return str(given["benchmark"] or "mailbox")


def training_of(given: Mapping[str, Any]) -> dict[str, object]:
    """The training flags that were given, by the fields of `memdefense.train.TrainConfig`."""
    names = {"train_batch_size": "batch_size"}
    chosen: dict[str, object] = {
        names.get(name, name): given[name]
        for name in ("epochs", "learning_rate", "block_size", "train_batch_size", "checkpoints", "dtype")
        if given[name] is not None
    }
    if given["peft"]:
        from memdefense.train import LoRA

        targets = tuple(filter(None, given["lora_targets"].split(",")))
        chosen["lora"] = LoRA(given["lora_rank"], given["lora_alpha"], targets=targets)
    return chosen


def batch_size_of(text: str) -> int:
    """Sequences per pass; 0 is for the program to choose."""
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise click.UsageError(f"--batch-size is '{text}'; write a whole number, or auto")
    return int(text)
