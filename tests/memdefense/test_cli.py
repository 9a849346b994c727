from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn, cast

import pytest
import torch
from click.testing import CliRunner

from memdefense import cli as module
from memdefense import registry
from memdefense.attack import Attack, Outcome
from memdefense.corpus import Corpus, Documents
from memdefense.defense import Defense
from memdefense.lab import AttackLab, Lab
from memdefense.lm import TextTarget
from memdefense.score import Scores

TINY = "memdefense.testing:TinyBenchmark"
BUILT_IN = [
    name
    for name, entry in registry.names("defenses").items()
    if name != "none" and entry.dist and entry.dist.name == "memdefense"
]


@dataclasses.dataclass(frozen=True)
class Fails(Defense):
    """Raises in its first hook."""

    name = "fails"
    summary = "Raises."

    def curate(self, documents: Documents, lab: Lab, *, epoch: int = 0) -> Documents:
        raise ZeroDivisionError("on purpose")


@dataclasses.dataclass(frozen=True)
class Unscored(Attack):
    """Finds something and cannot score it."""

    name = "unscored"
    family = "extraction"
    summary = "Cannot score."

    def run(self, target: TextTarget, corpus: Corpus, lab: AttackLab) -> Iterator[Outcome]:
        yield Outcome("u", "g", True, {"hit": 1.0})

    def score(self, outcomes: Sequence[Outcome]) -> Scores:
        raise IndexError("on purpose")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclasses.dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Invoke = Callable[[Sequence[str]], Said]


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Invoke:
    """Calls the console script's own function, in an empty folder, as a terminal of 200 columns."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("MEMDEFENSE_STORE", str(tmp_path / "store"))

    def call(arguments: Sequence[str]) -> Said:
        monkeypatch.setattr(sys, "argv", ["memdefense", *arguments])
        code = 0
        try:
            module.main()
        except SystemExit as left:
            code = int(left.code or 0)
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["rum"], "did you mean 'run'"),
        (["run", "--defnse", "rmft"], "--defense"),
        (["run", "-d", "rmtf"], "unknown defense 'rmtf'; did you mean 'rmft'?"),
        (["run", "-a", "prefx"], "did you mean 'prefix'?"),
        (["run", "-b", "mailbx"], "did you mean 'mailbox'?"),
        (["run", "-d", "rmft:kep=none"], "no field 'kep'; did you mean 'keep'?"),
        (["run", "-d", "rmft:keep=nnoe"], "did you mean 'none'?"),
        (["run", "-d", "rmft:keep"], "write name=value"),
        (["run", "-d", "nowhere:Thing"], "No module named 'nowhere'"),
        (["run", "-b", "mailbox:documents=many"], "takes a whole number"),
        (["run", "-b", "mailbox:documents=5"], "out of range"),
        (["run", "-b", "mailbox,enron"], "a run has one benchmark, not 2"),
        (["run", "-b", "mailbox", "--data", "x.jsonl"], "leave out --benchmark"),
        (["run", "--data", "a, b.jsonl"], "'a, b.jsonl'"),
        (["run", "--epochs", "-1"], "-1"),
        (["run", "--seed", "-1"], "-1 is not in the range"),
        (["run", "-d", ""], "no defense was named"),
        (["run", "--lora-rank", "4"], "add --peft lora"),
        (["run", "--revision", "main"], "name it with --model"),
        (["run", "--batch-size", "big"], "write a whole number, or auto"),
        (["run", "--device", "tpu9", "-b", TINY], "device 'tpu9' cannot be used here"),
        (["run", "--model", "./nowhere", "-b", TINY], "there is no model folder './nowhere'"),
        (["run", "--block-size", "5000", "-b", TINY], "--block-size"),
        (["list", "atacks"], "there is no list of 'atacks'; did you mean 'attacks'?"),
        (["show", "rmtf"], "no plugin is called 'rmtf'; did you mean 'rmft'?"),
        (["show"], "Missing argument 'NAME'"),
        (["leaderboard", "nowhere"], "no results at nowhere"),
        (["cache", "explain"], "no run has used the store"),
        (["cache", "explain", "abc"], "holds nothing of key abc"),
        (["run", "--config", "none.toml"], "cannot read --config none.toml: No such file"),
    ],
)
def test_wrong_input_is_one_sentence_with_a_way_out(invoke: Invoke, arguments: list[str], complaint: str) -> None:
    said = invoke(arguments)
    assert said.code == 2
    assert complaint in said.err
    assert "Traceback" not in said.err
    assert said.err.strip().splitlines()[-1].lower().startswith("error:")


def test_store_that_cannot_be_made_names_the_flag(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = invoke(["run", "-b", TINY, "--store", str(tmp_path / "file")])
    assert said.code == 2
    assert "--store" in said.err


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("c.toml", "epoch = 3", "unknown key 'epoch'; did you mean 'epochs'"),
        ("c.toml", "[training]\nepochs = 3", "unknown key 'training'"),
        ("c.toml", "epochs = ", "is no TOML"),
        ("c.json", "{", "is no JSON"),
        ("c.yaml", "epochs: 3", "takes a .toml or a .json file"),
        ("c.json", "[1]", "holds no options by name"),
        ("c.toml", 'epochs = "many"', "'many' is not a valid float"),
        ("c.toml", 'config = "other.toml"', "unknown key 'config'"),
        ("c.toml", 'defense = ["rmtf"]', "did you mean 'rmft'"),  # the flag's own name is one of its names
    ],
)
def test_wrong_config_file_is_told(invoke: Invoke, tmp_path: Path, name: str, content: str, complaint: str) -> None:
    (tmp_path / name).write_text(content)
    said = invoke(["run", "--config", name])
    assert said.code == 2
    assert complaint in said.err


def test_help_names_every_command() -> None:
    text = CliRunner().invoke(module.cli, ["--help"]).output
    for command in ("run", "list", "show", "leaderboard", "cache"):
        assert f"\n  {command} " in text


def test_a_docstring_flows_into_any_width() -> None:
    from memdefense.describe import _flowed

    text = """First words of a
paragraph that goes on.

- one item
  of two lines
- another

Attributes:
    field: what it
        is.
    other: a well-known thing."""
    assert _flowed(text, 30).splitlines() == [
        "First words of a paragraph",
        "that goes on.",
        "",
        "- one item of two lines",
        "- another",
        "",
        "Attributes:",
        "    field: what it is.",
        "    other: a well-known thing.",
    ]
    assert all(len(line) <= 24 for line in _flowed(text, 24).splitlines())
    assert _flowed(text, 24).split() == text.split()


def test_list_and_show(invoke: Invoke) -> None:
    listed = invoke(["list"])
    for name in ("rmft", "never-trained", "prefix", "perplexity", "mailbox"):
        assert any(line.split()[:1] == [name] for line in listed.out.splitlines())
    one = invoke(["list", "attack"])
    assert "mia" in one.out
    assert "rmft" not in one.out
    shown = invoke(["show", "rmft"]).out
    for text in ("2512.03310", "hooks: curate", "does not protect against", "keep", "first"):
        assert text in shown


def test_show_takes_a_spec_for_its_plugin(invoke: Invoke) -> None:
    assert invoke(["show", "unlearn:method=rmu"]).out == invoke(["show", "unlearn"]).out


def test_show_tells_what_a_paper_claims(invoke: Invoke) -> None:
    def claims(name: str) -> list[str]:
        return [line for line in invoke(["show", name]).out.splitlines() if line.startswith("published: ")]

    assert claims("rmft") == [
        "published: rmft TER -80.81 %, SER -80.17 %, perplexity +5.73 % (GPT2-XL, 10,000 Enron messages; "
        "arXiv 2512.03310 [paper])",
        "published: rmft TER 0.255 → 0.049 %, perplexity 6.798 (GPT2-XL, Enron; arXiv 2512.03310 [second-hand])",
        "published: rmft TER 0.0526 → 0.004, perplexity 4.254 → 4.42 (Enron; arXiv 2512.03310, rerun [code])",
        "published: rmft SER 0.3365 → 0.1384 (web prompts; arXiv 2512.03310, rerun [code])",
    ]
    assert claims("low-rate") == []


@pytest.mark.parametrize("name", BUILT_IN)
def test_show_tells_of_a_defense_what_it_is_and_is_not(invoke: Invoke, name: str) -> None:
    kind = cast(type[Defense], registry.load("defenses", name))
    shown = invoke(["show", name]).out
    head, _, weakness = shown.partition("\ndoes not protect against: ")
    lines = head.splitlines()
    assert lines[0] == f"{name} (defense)  {kind.summary}"
    assert kind.summary not in ("", Defense.summary)
    assert any(line.startswith("source: ") and line.removeprefix("source: ").strip() for line in lines)
    (hooks,) = (line.removeprefix("hooks: ").split(", ") for line in lines if line.startswith("hooks: "))
    assert set(hooks) <= {"configure", "curate", "train", "edit", "guard"}
    fields = [field.name.replace("_", "-") for field in dataclasses.fields(kind)]
    table = [line.split()[0] for line in lines[-len(fields) - 1 :]] if fields else []
    assert table[1:] == fields
    assert len(weakness.partition("\n")[0].split()) > 3


def test_whole_run_then_everything_that_reads_it(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        f'defenses = ["rmft"]\nbenchmark = "{TINY}"\noutput = "elsewhere"\nbaselines = ""\n'
    )
    arguments = ["run", "--config", "run.toml", "-a", "prefix", "-o", "out"]
    first = invoke(arguments)
    assert first.code == 0, first.err
    assert "rmft" in first.out
    assert not (tmp_path / "elsewhere").exists()  # the flag wins
    written = (tmp_path / "out" / "results.jsonl").read_bytes()
    rows = [json.loads(line) for line in written.splitlines()]
    assert {row["defense"] for row in rows} == {"none", "rmft"}
    assert b"@example.com" not in written

    made = invoke(["cache", "explain"]).out
    assert "the first of its kind" in made
    assert invoke(arguments).code == 0
    assert (tmp_path / "out" / "results.jsonl").read_bytes() == written
    lines = [line.split()[:2] for line in invoke(["cache", "explain"]).out.splitlines() if line.strip()]
    assert ["reused", "fit"] in lines
    assert not any(line[0] == "made" for line in lines)
    assert lines[-1] == [str(sum(line[0] == "reused" for line in lines)), "reused"]

    board = invoke(["leaderboard", "out"])
    assert board.code == 0
    assert "MaxTER" in board.out

    for weights in tmp_path.glob("**/artifacts/fit/**/*.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    more = ["run", "-b", TINY, "-d", "rmft", "-a", "verbatim", "--baselines", "", "-o", "more"]
    assert invoke(more).code == 0
    reasons = invoke(["cache", "explain"]).out
    assert reasons.count("what the store held was damaged") == 2  # the undefended training and that of rmft
    verbatim = [line for line in reasons.splitlines() if "verbatim" in line]
    assert "the first of its kind" in verbatim[0]
    assert not any("the first of its kind" in line for line in verbatim[1:])

    unknown = invoke(["cache", "prune", "--kind", "outcome"])
    assert unknown.code == 2
    assert "nothing of kind 'outcome'; did you mean 'outcomes'" in unknown.err
    would = invoke(["cache", "prune"]).out
    assert would.startswith("would remove")
    assert invoke(["cache", "prune", "--kind", "outcomes", "--yes"]).out.startswith("removed")
    assert invoke(["cache", "prune", "--yes"]).out.startswith("removed")
    assert invoke(["cache", "prune"]).out.startswith("would remove 0 artifacts")


def test_failed_pair_is_told_and_the_others_are_kept(invoke: Invoke, tmp_path: Path) -> None:
    said = invoke(["run", "-b", TINY, "-d", f"{__name__}:Fails", "-a", "prefix", "--baselines", "", "-o", "out"])
    assert said.code == 1
    assert "fails x prefix: 'fails' failed in curate(): ZeroDivisionError: on purpose" in said.err
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {(row["defense"], row["status"]) for row in rows if row["row"] == "point"} >= {("fails", "error")}
    assert any(row["defense"] == "none" and row["row"] == "point" and row["status"] == "ok" for row in rows)


def test_attack_that_cannot_score_is_a_failed_pair(invoke: Invoke) -> None:
    said = invoke(["run", "-b", TINY, "-d", "none", "-a", f"{__name__}:Unscored", "--baselines", "", "-o", "out"])
    assert said.code == 1
    assert "none x unscored: 'unscored' failed in score(): IndexError: on purpose" in said.err


def test_interrupt_is_130_and_says_how_to_go_on(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    from memdefense import describe

    def interrupted(groups: Sequence[str]) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(describe, "print_lists", interrupted)
    said = invoke(["list"])
    assert said.code == 130
    assert "the same command goes on from there" in said.err


def test_a_defended_model_is_written_out(invoke: Invoke, tmp_path: Path) -> None:
    said = invoke(["defend", "-d", "refuse", "-b", TINY, "-o", "mine"])
    assert said.code == 0, said.err
    assert "mine: refuse, seed 0, point 1.0; it holds private text" in said.out
    assert f"{Path('mine') / 'model'} alone is not defended" in said.err
    assert (tmp_path / "mine" / "model" / "model.safetensors").is_file()
    again = invoke(["defend", "-d", "refuse", "-b", TINY, "-o", "mine"])
    assert again.code == 2
    assert "nothing is overwritten" in again.err
