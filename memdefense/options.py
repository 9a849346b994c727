"""Options of the command line: what several commands share, and what becomes of those that were given."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from memdefense.settings import Settings

STORE = click.option("--store", default="", help="[default: $MEMDEFENSE_STORE or ~/.cache/memdefense]")


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def _all(*options: Decorator) -> Decorator:
    """Several options as one decorator, in the order written."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


TEXT = _all(
    click.option(
        "-b", "--benchmark", default="", help="A benchmark spec, such as mailbox or enron:data=PATH. [default: mailbox]"
    ),
    click.option("--data", default="", help="Your own text: JSONL, CSV, Parquet, text file or folder."),
    click.option("--text-field", default="text", show_default=True, help="The text's field in --data."),
    click.option("--author-field", default="", help="The author's field in --data."),
)
MODEL = _all(
    click.option("-m", "--model", default="", help="Hub id or folder of a causal LM. [default: the benchmark's own]"),
    click.option("--revision", default="", help="Branch, tag or commit of a hub model."),
)
TRAINING = _all(
    click.option("--epochs", type=click.FloatRange(0), help="Passes over the private text."),
    click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="Peak learning rate."),
    click.option("--block-size", type=click.IntRange(8), help="Tokens per training row."),
    click.option("--train-batch-size", type=click.IntRange(1), help="Rows per optimizer step."),
    click.option("--checkpoints", type=click.IntRange(1), help="Operating points per training run. [default: 5]"),
    click.option("--dtype", type=click.Choice(["auto", "float32", "bfloat16"]), help="Of training's matrix products."),
    click.option("--peft", type=click.Choice(["lora"]), help="Train adapters instead of all weights."),
    click.option("--lora-rank", type=click.IntRange(1), help="With --peft lora. [default: 16]"),
    click.option("--lora-alpha", type=click.IntRange(1), help="With --peft lora. [default: 32]"),
    click.option("--lora-targets", default="", help="Module names, comma-separated. [default: all linear layers]"),
    click.option(
        "--detector", default="patterns", show_default=True, help="Finds PII for the defender; see list detectors."
    ),
    click.option(
        "--detector-recall",
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        show_default=True,
        help="Drops values from the defender's detector.",
    ),
    click.option(
        "--edit-at",
        type=click.Choice(["last", "all"]),
        default="last",
        show_default=True,
        help="Which training points are edited.",
    ),
    click.option(
        "--micro-batch", type=click.IntRange(0), default=0, help="Rows per training pass. [default: the whole batch]"
    ),
)
MACHINE = _all(
    click.option("--device", default="", help="cpu or cuda. [default: the best there is]"),
    click.option(
        "--store", default="", help="Where artifacts are kept. [default: $MEMDEFENSE_STORE or ~/.cache/memdefense]"
    ),
)


def config_file(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """Reads a TOML or JSON file of option names; what stands on the command line wins."""
    if not value:
        return value
    import json
    import tomllib

    path = Path(value)
    if path.suffix not in (".toml", ".json"):
        raise click.UsageError(f"--config takes a .toml or a .json file of option names, not {path}")
    try:
        text = path.read_text(encoding="utf-8")
        given = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except OSError as error:
        raise click.UsageError(f"cannot read --config {path}: {error.strerror}") from error
    except ValueError as error:
        raise click.UsageError(f"--config {path} is no {path.suffix[1:].upper()}: {error}") from error
    if not isinstance(given, dict):
        raise click.UsageError(f"--config {path} holds no options by name")
    from memdefense.errors import hint

    known = {option.name: option for option in ctx.command.params if option.name}
    for param in ctx.command.params:  # --defense is --defenses too, here as on the command line
        known |= {flag.strip("-").replace("-", "_"): param for flag in param.opts if flag.startswith("--")}
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


def logs(*, verbose: bool) -> None:
    """What is told beside results: warnings, and with ``verbose`` what is done and why."""
    logging.basicConfig(level=logging.DEBUG if verbose else logging.WARNING, format="%(levelname)s: %(message)s")
    for library in ("filelock", "fsspec", "asyncio", "urllib3", "matplotlib"):  # their own business, by the line
        logging.getLogger(library).setLevel(logging.WARNING)
    if not verbose:
        for noisy in ("transformers", "accelerate", "datasets", "peft", "filelock"):
            logging.getLogger(noisy).setLevel(logging.ERROR)


def many(*names: str, default: str, help: str) -> Decorator:
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


def settings_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `memdefense.settings.Settings` that decide what is trained, and where."""
    if given["revision"] and not given["model"]:
        raise click.UsageError("--revision is of a hub model, and none was named; name it with --model")
    return {
        "model": given["model"],
        "revision": given["revision"],
        "training": training_of(given),
        "store": given["store"],
        "device": given["device"],
        "micro_batch": given["micro_batch"],
        "detector": given["detector"],
        "detector_recall": given["detector_recall"],
        "edit_all": given["edit_at"] == "all",
    }


def run_of(given: Mapping[str, Any]) -> tuple[Any, str, str, Settings]:
    """Benchmark, defenses, attacks and settings of ``memdefense run``."""
    from memdefense.settings import Settings

    settings = Settings(
        **settings_of(given),
        seeds=tuple(given["seed"]) or tuple(range(given["seeds"])),
        output=given["output"],
        batch_size=batch_size_of(given["batch_size"]),
        general_text=given["general_text"],
        limit=given["limit"],
        log_samples=given["log_samples"],
        baselines=given["baselines"],
    )
    return benchmark_of(given), ",".join(given["defenses"]), ",".join(given["attacks"]), settings


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
        chosen["lora"] = LoRA(given["lora_rank"] or 16, given["lora_alpha"] or 32, targets=targets)
    elif stray := [name for name in ("lora_rank", "lora_alpha", "lora_targets") if given[name]]:
        raise click.UsageError(f"--{stray[0].replace('_', '-')} says how adapters are trained; add --peft lora")
    return chosen


def batch_size_of(text: str) -> int:
    """Sequences per pass; 0 is for the program to choose."""
    if text == "auto":
        return 0
    if not text.isdigit() or int(text) < 1:
        raise click.UsageError(f"--batch-size is '{text}'; write a whole number, or auto")
    return int(text)
