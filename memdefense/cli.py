"""The command line: parse, call, print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click

from memdefense import __version__
from memdefense.errors import MemdefenseError
from memdefense.options import (
    MACHINE,
    MODEL,
    STORE,
    TEXT,
    TRAINING,
    batch_size_of,
    benchmark_of,
    config_file,
    logs,
    many,
    run_of,
    settings_of,
    store_folder,
)


class Commands(click.Group):
    """Our commands, and those that plugins bring through ``memdefense.commands``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *(entry.name for entry in _brought())})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        own = super().get_command(ctx, cmd_name)
        if own is not None:
            return own
        for entry in _brought():
            if entry.name == cmd_name:
                try:
                    command: click.Command = entry.load()
                except Exception as error:
                    return _broken(cmd_name, f"{type(error).__name__}: {error}")
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from memdefense.errors import hint

            raise click.UsageError(
                f"{error.message.rstrip('.')}{hint(args[0], self.list_commands(ctx))}", ctx
            ) from error


def _broken(name: str, why: str) -> click.Command:
    """What stands in for a stranger's command that cannot be imported: it says so, and the others go on."""

    def complain() -> None:
        raise MemdefenseError(f"the command '{name}' cannot be imported: {why}; reinstall or uninstall its package")

    return click.Command(name, callback=complain, help=f"Cannot be imported: {why}")


def _brought() -> Any:
    return entry_points(group="memdefense.commands")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="memdefense")
@click.option("-v", "--verbose", is_flag=True, help="Say what is done, and why.")
def cli(verbose: bool) -> None:
    """Which defense keeps a fine-tuned language model from handing out its private text, and at what cost."""
    logs(verbose=verbose)


@cli.command()
@click.option("--config", callback=config_file, is_eager=True, help="TOML or JSON file of these options; flags win.")
@many("-d", "--defense", "--defenses", "defenses", default="rmft", help="Comma list or repeated; 'all' is every one.")
@many("-a", "--attack", "--attacks", "attacks", default="prefix", help="Comma list or repeated.")
@TEXT
@MODEL
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="So many runs, seeds 0, 1, ...")
@click.option("--seed", "seed", type=click.IntRange(0), multiple=True, help="Exactly this seed; may be repeated.")
@TRAINING
@click.option("--general-text", default="", help="A text file for the general perplexity.")
@click.option("--limit", type=click.IntRange(0), default=0, help="Measure a sample of so many; for trials only.")
@click.option("--batch-size", default="auto", show_default=True, help="Sequences per evaluation pass.")
@click.option(
    "--baselines", default="never-trained,refuse", show_default=True, help="Trivial rows that come along; '' for none."
)
@click.option("--log-samples", is_flag=True, help="Also write prompts and generations: they hold private text.")
@MACHINE
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Share the work; on GPUs, one process each.",
)
@click.option("-o", "--output", default="", help="Results folder. [default: runs/BENCHMARK-DIGEST]")
def run(**given: Any) -> None:
    """Measure defenses against attacks and print the MaxTER table.

    \b
    memdefense run --defense rmft --attack prefix
    memdefense run -d none,rmft,dedup -a prefix,mia --seeds 3
    """
    from memdefense import registry

    benchmark, defenses, attacks, settings = run_of(given)
    for group, named in (("benchmarks", benchmark), ("defenses", defenses), ("attacks", attacks)):
        registry.instances(group, named)  # a wrong name or field is told before torch is loaded

    from memdefense.recipe import digest
    from memdefense.runner import run as measure
    from memdefense.watch import watching

    spec = benchmark if isinstance(benchmark, str) else benchmark.spec
    if not settings.output:
        import dataclasses

        unimportant = ("store", "output", "device", "batch_size", "micro_batch")
        said = {name: value for name, value in dataclasses.asdict(settings).items() if name not in unimportant}
        name = digest([spec, given["defenses"], given["attacks"], said])[:8]
        settings = dataclasses.replace(settings, output=f"runs/{spec.partition(':')[0]}-{name}")
    with watching() as progress:
        if given["processes"] > 1:
            from memdefense.results import Writer
            from memdefense.runner import planned
            from memdefense.team import share_out

            Writer(Path(settings.output))  # a wrong folder is told at once
            planned(benchmark, defenses, attacks, settings)  # reads the code that is loaded here, before it can change
            share_out(given, progress)
        results = measure(benchmark, defenses, attacks, settings=settings, progress=progress)
    _print_table(Path(settings.output))
    click.echo(f"results: {settings.output}")
    if results.failed:
        pairs = sorted({f"{row['defense_spec']} x {row['attack_spec']}: {row['error']}" for row in results.failed})
        click.echo("\nfailed pairs (the others are kept):\n  " + "\n  ".join(pairs), err=True)
        sys.exit(1)


@cli.command()
@click.option("-d", "--defense", required=True, help="One spec, such as rmft or dedup+rmft.")
@TEXT
@MODEL
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The run's seed.")
@click.option("--point", default="", help="The operating point, as the tables name it. [default: the last]")
@click.option("--whole", is_flag=True, help="Also train on the text that a run holds out for measuring.")
@TRAINING
@MACHINE
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="A new folder.")
def defend(**given: Any) -> None:
    """Write out one defended model and its text, for use: what a run has trained is not trained again.

    \b
    memdefense defend -d rmft --data mine.jsonl --text-field text --model ./my-model -o defended
    """
    from memdefense.export import export, one_defense, told
    from memdefense.runner import one_benchmark
    from memdefense.settings import Settings
    from memdefense.watch import watching

    benchmark = one_benchmark(benchmark_of(given))
    defense = one_defense(given["defense"])
    settings = Settings(**settings_of(given), seeds=(given["seed"],))
    output = given["output"]
    with watching() as progress:
        facts = export(
            benchmark,
            defense,
            output,
            settings=settings,
            point=given["point"],
            whole=given["whole"],
            progress=progress,
        )
    click.echo(f"{output}: {facts['defense']}, seed {facts['seed']}, point {facts['point']}; it holds private text")
    for line in told(facts):
        click.echo(line)
    if facts["guarded"]:
        click.echo(
            f"{facts['defense']} answers through a guard, which is no part of the weights: {output / 'model'} alone "
            "is not defended by it",
            err=True,
        )


@cli.command()
@click.option("-m", "--model", required=True, help="Hub id or folder of the causal LM that is attacked.")
@click.option("--members", required=True, help="What it was trained on: JSONL, CSV, Parquet, text file or folder.")
@click.option("--non-members", required=True, help="Text of the same kind that it was not trained on.")
@many(
    "-a", "--attack", "--attacks", "attacks", default="prefix,mia", help="Comma list or repeated; 'all' is every one."
)
@click.option("--reference", default="", help="The model before it saw the members, for attacks that compare.")
@click.option("--text-field", default="text", show_default=True, help="The text's field in both files.")
@click.option("--author-field", default="", help="The author's field in both files.")
@click.option("--revision", default="", help="Branch, tag or commit of the hub model; not of --reference.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every draw an attack makes.")
@click.option("--scores", is_flag=True, help="Print every score of each attack.")
@click.option("--batch-size", default="auto", show_default=True, help="Sequences per pass.")
@MACHINE
@click.option("-o", "--output", default="", help="Results folder. [default: none is written]")
def attack(**given: Any) -> None:
    """Attack a model and data of your own: no defense, no training but of the copies that shadow and relearn make.

    \b
    memdefense attack --model ./my-model --members seen.jsonl --non-members unseen.jsonl -a all
    """
    from memdefense import registry
    from memdefense.attack_table import print_attacks
    from memdefense.attacking import attack_model
    from memdefense.settings import Settings
    from memdefense.watch import watching

    fields = {name: given[name] for name in ("members", "non_members", "text_field", "author_field")}
    benchmark: Any = registry.build("benchmarks", "brought", **fields)[0]
    settings = Settings(
        model=given["model"],
        revision=given["revision"],
        seeds=(given["seed"],),
        store=given["store"],
        output=given["output"],
        device=given["device"],
        batch_size=batch_size_of(given["batch_size"]),
    )
    with watching() as progress:
        rows = attack_model(
            benchmark, ",".join(given["attacks"]), settings=settings, reference=given["reference"], progress=progress
        )
    print_attacks(rows, scores=given["scores"])
    if given["output"]:
        click.echo(f"results: {given['output']}")
    if any(row["status"] == "error" for row in rows):
        sys.exit(1)


@cli.command(name="list")
@click.argument("groups", nargs=-1)
def list_(groups: tuple[str, ...]) -> None:
    """List the installed defenses, attacks, benchmarks and utilities."""
    from memdefense.describe import print_lists

    print_lists(groups)


@cli.command()
@click.argument("name")
def show(name: str) -> None:
    """Show a plugin: the idea, its source, its fields and what it does not protect against."""
    from memdefense.describe import print_plugin

    print_plugin(name)


@cli.group()
def cache() -> None:
    """Look into the store, and clean it up."""


@cache.command()
@click.argument("key", required=False)
@STORE
def explain(key: str | None, store: str) -> None:
    """Say what the last run reused and what it made, and why; or what one KEY was made from."""
    from memdefense.describe import print_explanation

    print_explanation(store_folder(store), key)


@cache.command()
@STORE
@click.option("--older-than", type=click.FloatRange(0), default=0.0, help="Days since it was made; 0 is everything.")
@click.option("--kind", default="", help="Only this kind: fit, train, edit, outcomes, ...")
@click.option("--yes", is_flag=True, help="Really remove; without it, only say what would go.")
def prune(store: str, older_than: float, kind: str, yes: bool) -> None:
    """Remove artifacts from the store; what a later run needs, it makes again."""

    from memdefense.describe import prune_store

    prune_store(store_folder(store), older_than, kind, yes)


def _print_table(folder: Path) -> None:
    """The leaderboard's own command prints it, as it does for a results folder of any age."""
    for entry in _brought():
        if entry.name == "leaderboard":
            entry.load()([str(folder)], standalone_mode=False)


def main() -> None:
    """Runs the command line; an error is a sentence, not a traceback."""
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo(
            "\ninterrupted; what was finished is in the store, and the same command goes on from there", err=True
        )
        sys.exit(130)
    except KeyboardInterrupt:
        click.echo(
            "\ninterrupted; what was finished is in the store, and the same command goes on from there", err=True
        )
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MemdefenseError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except BrokenPipeError:  # whoever read our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
