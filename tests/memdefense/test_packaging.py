"""What is installed is what pyproject says, and imports go one way only."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from click.testing import CliRunner

from memdefense import registry
from memdefense.cli import cli
from memdefense.errors import MemdefenseError, PluginError
from memdefense.published import published

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = ("defenses", "attacks", "benchmarks", "leaderboard")
SOURCES = sorted(path for folder in ("memdefense", *FOLDERS) for path in (ROOT / folder).rglob("*.py"))


def _imported(path: Path) -> set[str]:
    """Full names of the modules a file imports, and of the names it takes from them."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.update({node.module, *(f"{node.module}.{alias.name}" for alias in node.names)})
    return found


def test_installed_entry_points_are_those_of_pyproject() -> None:
    for group, declared in PROJECT["project"]["entry-points"].items():
        installed = {e.name: e.value for e in entry_points(group=group) if e.dist and e.dist.name == "memdefense"}
        assert installed == declared, f"{group}: run pip install -e . again"


def test_every_entry_point_loads_and_is_called_what_it_says() -> None:
    for group, declared in PROJECT["project"]["entry-points"].items():
        for name in declared if group != "memdefense.published" else ():  # a package, not a plugin
            (entry,) = {e for e in entry_points(group=group, name=name) if e.dist and e.dist.name == "memdefense"}
            assert entry.load().name == name


def test_every_plugin_file_has_its_entry_point() -> None:
    for group in ("defenses", "attacks", "benchmarks"):
        declared = PROJECT["project"]["entry-points"][f"memdefense.{group}"]
        for name, value in declared.items():
            module = value.partition(":")[0]
            if module != "memdefense.defense":  # the undefended baseline is the base class itself
                assert module == f"memdefense.{group}.{name.replace('-', '_')}"


def test_packages_are_listed_completely() -> None:
    setup = PROJECT["tool"]["setuptools"]
    places = {setup["package-dir"][name]: name for name in setup["packages"]}
    holding = {str(path.parent.relative_to(ROOT)) for path in SOURCES}
    assert holding == set(places)
    assert all((ROOT / place / "__init__.py").exists() for place in places)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_a_plugin_folder_by_its_bare_name(path: Path) -> None:
    assert not {name for name in _imported(path) if name.partition(".")[0] in FOLDERS}


def test_core_never_imports_a_plugin() -> None:
    for path in (ROOT / "memdefense").rglob("*.py"):
        for name in _imported(path):
            assert not name.startswith(tuple(f"memdefense.{folder}" for folder in FOLDERS)), path.name


def _python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return done.stdout


HEAVY = "{'torch', 'transformers', 'datasets', 'scipy', 'peft', 'numpy'} & set(sys.modules)"


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert _python(f"import sys, memdefense; print({HEAVY})") == "set()\n"


def test_help_loads_nothing_heavy() -> None:
    code = f"""
import sys
from memdefense.cli import cli
for command in ([], ['run'], ['list'], ['show'], ['cache'], ['cache', 'prune'], ['leaderboard']):
    cli([*command, '--help'], standalone_mode=False)
print({HEAVY})
"""
    assert _python(code).splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    "wrong", [["-d", "rmtf"], ["-d", "rmft:seed=7"], ["-a", "prefx"], ["--benchmark", "mailbox:documents=many"]]
)
def test_a_wrong_name_or_field_is_told_before_anything_heavy_is_loaded(wrong: list[str]) -> None:
    code = f"""
import sys
from memdefense.cli import cli
from memdefense.errors import SpecError
try:
    cli(['run', *{wrong}], standalone_mode=False)
except SpecError:
    print({HEAVY} - {{'numpy'}})
"""
    assert _python(code).splitlines()[-1] == "set()"


def test_public_names_all_exist() -> None:
    code = "import memdefense; print([n for n in memdefense.__all__ if not hasattr(memdefense, n)], dir(memdefense)[0])"
    assert _python(code).startswith("[]")


def test_third_party_plugin_is_installed_and_works_like_a_built_in(tmp_path: Path) -> None:
    source, target = tmp_path / "plugin", tmp_path / "site"
    source.mkdir()
    for name in ("pyproject.toml", "memdefense_lowercase.py", "memdefense_short_prefix.py", "README.md"):
        source.joinpath(name).write_bytes((ROOT / "examples" / "plugin" / name).read_bytes())
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run(
        [*command, "--disable-pip-version-check", "--target", str(target), str(source)], check=True, capture_output=True
    )
    path = {"PYTHONPATH": str(target), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}

    listed = subprocess.run(
        [sys.executable, "-m", "memdefense", "list", "defenses", "attacks"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **path},
    ).stdout
    assert any(line.startswith("short-prefix") for line in listed.splitlines())
    (line,) = [line for line in listed.splitlines() if line.startswith("lowercase")]
    assert line.split() == ["lowercase", "data", "Lower-cases", "the", "training", "text.", "memdefense-lowercase"]
    assert any(line.startswith("rmft") for line in listed.splitlines())

    code = """
from memdefense import registry
from memdefense.testing import check_attack, check_defense
check_attack(registry.build("attacks", "short-prefix")[0])
for spec in ("lowercase", "lowercase:percent=50", "dedup+lowercase"):
    (made,) = registry.build("defenses", spec)
    check_defense(made)
    print(made.spec)
"""
    checked = _python(code, **path)
    assert checked.split() == ["lowercase", "lowercase:percent=50.0", "dedup+lowercase"]

    # A row says which version of whose plugin it was made with.
    code = f"""
import memdefense
from memdefense.testing import tiny_benchmark
store = {str(tmp_path / "store")!r}
found = memdefense.run(tiny_benchmark(), "dedup+lowercase", "prefix,short-prefix", store=store, device="cpu")
for label in ("none", "dedup+lowercase"):
    row = next(row for row in found.points if row["defense_label"] == label and row["attack"] == "prefix")
    other = next(row for row in found.points if row["defense_label"] == label and row["attack"] == "short-prefix")
    assert other["status"] == "ok"
    assert other["scores"]["hit_rate"]["n"] == row["scores"]["hit_rate"]["n"]
    print(row["provenance"]["versions"].get("memdefense-lowercase"))
"""
    assert _python(code, **path).splitlines()[-2:] == ["None", "0.1.0"]


@pytest.fixture
def broken_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger's installed package, none of whose entry points can be imported."""
    info = tmp_path / "stranger-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    groups = ("defenses", "attacks", "utilities", "benchmarks", "commands")
    lines = [f"[memdefense.{group}]\nstray = no_such_package:Thing\n" for group in groups]
    (info / "entry_points.txt").write_text("".join([*lines, "[memdefense.published]\nstray = no_such_package\n"]))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("broken_distribution")
def test_a_strangers_broken_package_breaks_only_itself(caplog: pytest.LogCaptureFixture) -> None:
    for group in ("defenses", "utilities"):
        assert "stray" in registry.names(group)
        labels = [label for label, _ in registry.instances(group, "all")]
        assert set(labels) == set(registry.names(group)) - {"stray"}
        assert "plugin stray (stranger 1.0) cannot be imported" in caplog.text
        with pytest.raises(PluginError, match=r"stray \(stranger 1.0\) cannot be imported"):
            registry.build(group, "stray")
    assert published()
    assert "published figures of 'no_such_package' cannot be read" in caplog.text


@pytest.mark.usefixtures("broken_distribution")
def test_a_strangers_broken_command_says_so_and_help_goes_on() -> None:
    said = CliRunner().invoke(cli, ["--help"])
    assert said.exit_code == 0
    assert "stray" in said.output
    assert "leaderboard" in said.output
    asked = CliRunner().invoke(cli, ["stray"])
    assert isinstance(asked.exception, MemdefenseError)
    assert "the command 'stray' cannot be imported" in str(asked.exception)
