from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from click.testing import CliRunner

import memdefense
from memdefense import pii, registry
from memdefense.bench import Bench
from memdefense.cli import cli
from memdefense.detector import Detector, joined
from memdefense.errors import MemdefenseError, ModelError, PluginError, SpecError
from memdefense.export import one_defense
from memdefense.lab import Lab
from memdefense.pii import Pii
from memdefense.presidio import Presidio
from memdefense.results import Row
from memdefense.store import Store
from memdefense.testing import check_detector, tiny_benchmark
from memdefense.train import TrainConfig


@dataclasses.dataclass(frozen=True)
class Names(Detector):
    """The patterns, and a few first names with the name behind them."""

    name: ClassVar[str] = "first-names"
    summary: ClassVar[str] = "Some first names."

    first: tuple[str, ...] = ("Ann", "Bob")

    def find(self, text: str) -> list[Pii]:
        found = re.finditer(rf"\b(?:{'|'.join(self.first)})(?: [A-Z][a-z]+)?\b", text)
        return joined(super().find(text), [_hit("person", text, match.start(), match.end()) for match in found])


@dataclasses.dataclass(frozen=True)
class Broken(Detector):
    name: ClassVar[str] = "broken"
    summary: ClassVar[str] = "Breaks the contract."

    how: str = ""

    def find(self, text: str) -> list[Pii]:
        if not text:
            return []
        broken = {
            "kind": [Pii("name", 0, 1, text[0], text[0])],
            "order": [_hit("person", text, 3, 5), _hit("person", text, 0, 2)],
            "over": [_hit("person", text, 0, 4), _hit("person", text, 2, 6)],
            "value": [Pii("person", 0, 2, "??", "??")],
            "canonical": [Pii("email", 0, 3, text[:3], "?")],
            "again": [_hit("person", text, 0, int(np.random.default_rng().integers(2, len(text))))],
        }
        return broken[self.how]


def _hit(kind: str, text: str, start: int, end: int) -> Pii:
    return Pii(kind, start, end, text[start:end], pii.canonical(kind, text[start:end]))


def _lab(folder: Path, detector: Detector) -> Lab:
    bench = Bench(Store(folder), detector=detector)
    return Lab(bench, who="me", seed=0, originals=(), public=(), config=TrainConfig(), base=None)


TEXT = "Ann Lee <Ann.Lee@fenwick.com> met Bob; ann lee called."


def test_the_class_itself_finds_what_patterns_find() -> None:
    assert Detector().find(TEXT) == pii.find(TEXT)
    assert registry.instances("detectors", "patterns")[0][1] == [Detector()]
    assert Detector().spec == "patterns"


def test_of_two_detectors_the_first_stands_where_both_find_something() -> None:
    found = Names().find(TEXT)
    assert [(hit.kind, hit.value) for hit in found] == [
        ("person", "Ann Lee"),
        ("email", "Ann.Lee@fenwick.com"),
        ("person", "Bob"),
    ]


def test_joined_equals_a_search_of_all_pairs() -> None:
    text, rng = "abcdefghij" * 8, np.random.default_rng(5)
    for _ in range(200):
        places = sorted(tuple(sorted(rng.choice(80, 2, replace=False).tolist())) for _ in range(12))
        first: list[Pii] = []
        for start, end in places[:6]:
            if not first or start >= first[-1].end:
                first.append(_hit("person", text, start, end))
        more = [_hit("location", text, *rng.permutation(places[6:])[0].tolist()) for _ in range(6)]
        kept = list(first)
        for hit in sorted(more, key=lambda h: (h.start, -h.end)):
            if not any(hit.start < other.end and other.start < hit.end for other in kept):
                kept.append(hit)
        assert joined(first, more) == sorted(kept, key=lambda h: h.start)


def test_a_lab_finds_with_the_runs_detector_and_by_kind(tmp_path: Path) -> None:
    lab = _lab(tmp_path, Names())
    assert lab.find(TEXT) == Names().find(TEXT)
    assert [hit.value for hit in lab.find(TEXT, ["person"])] == ["Ann Lee", "Bob"]
    assert lab.find(TEXT, ["phone"]) == []
    assert lab.find(TEXT, ()) == lab.find(TEXT)


@pytest.mark.parametrize("kind", pii.NAMES)
def test_names_are_replaced_in_their_written_form(kind: str) -> None:
    rng = np.random.default_rng(3)
    drawn = [pii.fake(kind, "Dr. ANN de la O'Neil 7", rng) for _ in range(20)]
    assert len(set(drawn)) == 20
    for text in drawn:
        assert re.fullmatch(r"[A-Z][a-z]+\. [A-Z]+ [a-z]+ [a-z]+ [A-Z]'[A-Z][a-z]+ [0-9]", text)
    if kind == "identifier":
        assert {len(text) for text in drawn} == {len("Dr. ANN de la O'Neil 7")}


def test_many_single_names_find_a_pseudonym_each() -> None:
    rng, taken = np.random.default_rng(0), set[str]()
    for number in range(3000):
        drawn = pii.fake("person", f"Name{number}", rng, avoid=taken)
        taken.add(pii.canonical("person", drawn))
    assert len(taken) == 3000


def test_names_are_equal_but_for_case_and_spacing() -> None:
    assert pii.canonical("person", "Ann\n  LEE") == pii.canonical("person", "ann lee") == "ann lee"
    with pytest.raises(SpecError, match="patterns find no 'person'"):
        pii.find(TEXT, ["person"])
    with pytest.raises(SpecError, match="did you mean 'person'"):
        pii.canonical("persn", "Ann")


def test_the_contract_is_checked() -> None:
    check_detector(Detector())
    check_detector(Names(), [TEXT])
    check_detector(Names(first=("Carol", "Dora")))


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("kind", "finds a kind 'name'"),
        ("order", "out of order"),
        ("over", "over each other"),
        ("value", "finds what is not there"),
        ("canonical", "another canonical form of kind email"),
        ("again", "finds something else in the same text"),
    ],
)
def test_a_broken_detector_is_told(how: str, said: str) -> None:
    with pytest.raises(PluginError, match=said):
        check_detector(Broken(how=how))


def test_a_run_reads_with_the_detector_and_says_so(tmp_path: Path) -> None:
    store = str(tmp_path / "store")

    def rows(detector: str | Detector) -> tuple[list[Row], dict[str, str]]:
        folder = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        results = memdefense.run(
            tiny_benchmark(), "none,scrub", "prefix", store=store, device="cpu", output=str(folder), detector=detector
        )
        settings = json.loads((folder / "config.json").read_text())["settings"]
        return [row for row in results.points if row["defense"] == "scrub"], settings

    plain, _ = rows("patterns")
    named, settings = rows(f"{__name__}:Names:first=the|to|a")
    again, same = rows(Names(first=("the", "to", "a")))
    assert {row["detector"]["name"] for row in plain} == {"patterns"}
    assert {row["detector_spec"] for row in named} == {"first-names:first=the|to|a"}
    assert settings["detector"] == same["detector"] == "first-names:first=the|to|a"
    assert min(row["notes"]["replaced"] for row in named) > max(row["notes"]["replaced"] for row in plain)
    assert not {row["recipe"] for row in named} & {row["recipe"] for row in plain}
    assert [(r["recipe"], r["key"], r["leakage"]) for r in again] == [
        (r["recipe"], r["key"], r["leakage"]) for r in named
    ]


def test_one_detector_and_a_known_one() -> None:
    for given, said in (
        ("patterns,presidio", "one detector, not 2"),
        ("", "one detector, not 0: none"),
        ("patern", "unknown detector 'patern'"),
        (3, "detector is 3; it takes a memdefense.Detector"),
        (Presidio, "detector is <class"),
        (memdefense.Defense(), "it takes a memdefense.Detector"),
    ):
        with pytest.raises(MemdefenseError, match=said):
            memdefense.run(tiny_benchmark(), "none", "prefix", detector=given)


@pytest.fixture
def presidio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Stands for the installed extra: Presidio's own interface, and what it says of a text."""
    (tmp_path / "presidio_analyzer").mkdir()
    (tmp_path / "presidio_analyzer" / "nlp_engine.py").write_text(
        "class NlpEngineProvider:\n"
        "    def __init__(self, nlp_configuration):\n"
        "        (self.model,) = nlp_configuration['models']\n"
        "    def create_engine(self):\n"
        "        return self.model['model_name']\n"
    )
    (tmp_path / "presidio_analyzer" / "__init__.py").write_text(
        "from types import SimpleNamespace as R\n"
        "class AnalyzerEngine:\n"
        "    def __init__(self, *, nlp_engine, supported_languages):\n"
        "        assert (nlp_engine, supported_languages) == ('small_model', ['en'])\n"
        "    def analyze(self, *, text, language, score_threshold):\n"
        "        assert language == 'en'\n"
        "        found = [('PERSON', 0.9, 'Ann  Lee'), ('URL', 0.5, 'fenwick.com'), ('DATE_TIME', 0.6, 'today')]\n"
        "        found += [('EMAIL_ADDRESS', 1.0, 'Ann@fenwick.com'), ('US_PASSPORT', 0.4, 'X912803')]\n"
        "        found += [('IP_ADDRESS', 0.6, '::'), ('PERSON', 0.8, 'Q'), ('NRP', 0.7, 'Danish')]\n"
        "        where = lambda value: dict(start=text.index(value), end=text.index(value) + len(value))\n"
        "        found = [(kind, score, value) for kind, score, value in found if value in text]\n"
        "        return [R(entity_type=k, score=s, **where(v)) for k, s, v in found if s >= score_threshold]\n"
    )
    info = tmp_path / "small_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: small_model\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "presidio_analyzer", raising=False)
    yield tmp_path
    for name in ("presidio_analyzer", "presidio_analyzer.nlp_engine"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("presidio")
def test_presidio_adds_to_the_patterns() -> None:
    text = "today Ann  Lee <Ann@fenwick.com> Q. of 10.0.0.7, passport X912803, :: Danish"
    found = Presidio("small_model").find(text)
    assert [(hit.kind, hit.value, hit.canonical) for hit in found] == [
        ("person", "Ann  Lee", "ann lee"),
        ("email", "Ann@fenwick.com", "ann@fenwick.com"),
        ("ip", "10.0.0.7", "10.0.0.7"),
        ("identifier", "X912803", "x912803"),
        ("group", "Danish", "danish"),
    ]
    sure = Presidio("small_model", score=0.8).find(text)
    assert [hit.kind for hit in sure] == ["person", "email", "ip"], "patterns are always sure"
    check_detector(Presidio("small_model"), [text])


@pytest.mark.usefixtures("presidio")
def test_scrub_with_presidio_masks_names(tmp_path: Path) -> None:
    lab = _lab(tmp_path / "store", Presidio("small_model"))
    documents = [memdefense.Document("a", "Ask Ann  Lee <Ann@fenwick.com>, a Danish clerk.")]
    (masked,) = one_defense("scrub").curate(documents, lab)
    assert masked.text == "Ask <PERSON> <<EMAIL>>, a <GROUP> clerk."
    (other,) = one_defense("scrub:method=pseudonymise,kinds=person").curate(documents, lab)
    assert re.fullmatch(r"Ask [A-Z][a-z]+  [A-Z][a-z]+ <Ann@fenwick\.com>, a Danish clerk\.", other.text)
    assert "Ann  Lee" not in other.text


def test_presidio_missing_names_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [])
        with pytest.raises(ModelError, match=r'pip install "memdefense\[presidio\]"'):
            Presidio().ready()
    with pytest.raises(SpecError, match=r"score is 1\.5"):
        Presidio(score=1.5)


@pytest.mark.usefixtures("presidio")
def test_a_missing_language_model_is_told_before_anything_is_read(tmp_path: Path) -> None:
    said = CliRunner().invoke(
        cli, ["run", "-d", "none", "-a", "prefix", "--detector", "presidio", "--store", str(tmp_path / "store")]
    )
    assert isinstance(said.exception, ModelError)
    assert "python -m spacy download en_core_web_lg" in str(said.exception)
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("presidio")
def test_another_language_model_is_another_detector(presidio: Path) -> None:
    before = Presidio("small_model").outside()
    metadata = presidio / "small_model-1.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("1.0", "1.1"))
    assert Presidio("small_model").outside() != before


@pytest.mark.usefixtures("presidio")
def test_a_pipeline_in_a_folder_is_known_by_its_content(tmp_path: Path) -> None:
    names = []
    for place, content in (("one", "a"), ("two", "a"), ("three", "b")):
        folder = tmp_path / place / "own_pipeline"
        folder.mkdir(parents=True)
        (folder / "config.cfg").write_text(content)
        bench = Bench(Store(tmp_path / "store"), detector=Presidio(str(folder)))
        bench.detector.ready()
        names.append(bench.detector_identity)
    assert names[0] == names[1] != names[2]
    assert names[0][0] == "presidio:model=own_pipeline"
