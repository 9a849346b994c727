"""The table as it is printed: every kind of entry, at 100 columns, in Markdown, with ties and published figures."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from memdefense.errors import DataError
from memdefense.leaderboard import table
from memdefense.leaderboard.commands import leaderboard
from memdefense.leaderboard.groups import tables_of
from memdefense.results import Row, plain

PLACE = {
    "benchmark": "mailbox:documents=50",
    "benchmark_version": "1",
    "model": "mailbox default",
    "attack": "prefix",
    "attack_spec": "prefix",
    "attack_family": "extraction",
    "access": "text",
}


def score(value: float | None, low: float | None = None, high: float | None = None, **more: object) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 60, "events": 33, **more}


def entry(label: str, limits: tuple[float, float, float] = (0, 0, 0), *, status: str = "ok", **more: Any) -> Row:
    budgets = {tau: score(value, value - 12, value + 9) for tau, value in (("1", 10.0), ("5", 55.0), ("20", 81.5))}
    row: Row = {
        "row": "entry",
        **PLACE,
        "defense": label.partition(":")[0],
        "defense_label": label,
        "defense_spec": [label],
    }
    row |= {"resolvable": True, "note": "", "statuses": {status: 5}, "errors": [], "undefended": score(0.5)}
    numbers = {"maxter": budgets, "aurc": score(40.0, 20.0, 60.0), "gain": score(*limits)}
    return row | numbers | more


def unresolved(label: str, note: str, *, status: str = "ok", errors: tuple[str, ...] = ()) -> Row:
    row = entry(label, status=status, resolvable=False, note=note, errors=list(errors))
    return {name: value for name, value in row.items() if name not in ("maxter", "aurc", "gain")}


def point(label: str, leakage: float = 0.25, *, status: str = "ok", seed: int = 0, **more: Any) -> Row:
    row = {"row": "point", **PLACE, "defense_label": label, "defense_spec": label, "seed": seed, "point": "1.0"}
    if status in ("error", "n/a"):
        return row | {"status": status, "error": "it broke", "leakage": None}
    scores = {"leakage": score(leakage, leakage - 0.1, leakage + 0.1), "hit_rate": score(0.5)}
    scores |= {"chance": score(0.01), "held_out_rate": score(0.02) | {"n": 20, "events": 1}}
    d = {"perplexity": 2.5, "continuation": 12.0, "copy": None, "worst": 12.0}
    detector = {"name": "memdefense.pii", "recall": 0.8}
    row |= {"status": status, "leakage": leakage, "scores": scores, "d": d, "cost": {"train_seconds": 61.4}}
    return row | {"detector": detector, "overfit_percent": 0.0} | more


EVERYTHING = [
    entry("none"),
    entry("rmft", (30.0, 20.0, 40.0)),
    entry("dedup:level=near|pii,match-steps=true+rmft:keep=none,kinds=email|phone", (25.0, 15.0, 35.0)),
    entry("twin", (0.0, -2.0, 2.0), status="no-op"),
    unresolved("broken", "no seed was measured", status="error", errors=("broken failed in train(): [oops] a|b",)),
    unresolved("absent", "no seed was measured", status="n/a"),
    unresolved("small", "not resolvable: the undefended leakage rests on 2 events"),
    point("none", 0.5),
    point("rmft"),
    point("rmft", 0.35, seed=1),
    point("twin", 0.5, status="no-op"),
    point("broken", status="error"),
    point("absent", status="n/a"),
    point("small"),
]

Printed = Callable[..., str]


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Printed:
    def run(rows: list[Row], width: int = 100, **options: bool) -> str:
        out = io.StringIO()
        monkeypatch.setattr(table, "Console", lambda **more: Console(file=out, width=width, **more))
        table.print_tables([json.loads(json.dumps(plain(row))) for row in rows], **options)
        return out.getvalue()

    return run


@pytest.mark.parametrize("width", [table._WIDTH, 160])
def test_every_kind_of_entry_is_printed_within_the_width(printed: Printed, width: int) -> None:
    text = printed(EVERYTHING, width, points=True)
    assert max(map(len, text.splitlines())) <= width
    for word in ("rmft", "twin", "broken", "absent", "small", "5 ok", "5 no-op", "5 error", "5 n/a", "unresolved"):
        assert word in text
    assert "broken failed in train(): [oops] a|b" in text
    assert "nan" not in text.lower()


def test_numbers_have_units_intervals_and_directions(printed: Printed) -> None:
    text = printed(EVERYTHING)
    line = next(line for line in text.splitlines() if line.split()[1:2] == ["rmft"])
    # The mean over seeds of the leakage at the end; MaxTER at 1, 5, 20 %; AURC; gain; the worst cost.
    assert line.split() == ["1-2", "rmft", "0.300", "10.0", "55.0", "81.5", "40.0", "+30.0", "12.0", "5", "ok"]
    after = text.splitlines()[text.splitlines().index(line) + 1]
    assert after.split() == ["[0.20,0.40]", "[-2,19]", "[43,64]", "[70,90]", "[20,60]", "[20,40]", "contin.", "61", "s"]
    head = text.splitlines()[2:4]
    assert head[0].split() == ["MaxTER", "MaxTER", "MaxTER", "AURC", "gain", "d"]
    assert head[1].split() == ["#", "defense", "leakage", "@1", "%", "@5", "%", "@20", "%", "%", "%", "%", "status"]
    assert "leakage ↓" in text
    assert "MaxTER@τ ↑" in text
    assert "chance 0.010 (twins); held-out values 1 of 20" in " ".join(text.split())
    assert "finds 80.0 % of the secrets' occurrences" in " ".join(text.split())


def test_whose_chance_it_was_is_said(printed: Printed) -> None:
    unread = point("none")["scores"] | {"unread_rate": score(0.01)}
    rows = [entry("none"), point("none", 0.5, scores=unread)]
    assert "chance 0.010 (models that have not read the value, 60 values)" in " ".join(printed(rows).split())
    strangers = {"chance": score(0.02) | {"n": 20, "events": 1}, "held_out_rate": score(0.02) | {"n": 20, "events": 1}}
    scores = point("none")["scores"] | strangers
    text = " ".join(printed([entry("none"), point("none", 0.5, scores=scores)]).split())
    assert "chance 0.020 (held-out values, not exchangeable)" in text


@pytest.mark.parametrize(
    ("low", "verdict"), [(0.52, "the split gives members away"), (0.48, "not told from chance"), (None, "not known")]
)
def test_membership_is_read_against_a_classifier_without_a_model(
    printed: Printed, low: float | None, verdict: str
) -> None:
    mia: dict[str, Any] = {"attack": "mia", "attack_spec": "mia", "attack_family": "membership"}
    shadow: dict[str, Any] = {"attack": "shadow", "attack_spec": "shadow", "attack_family": "membership"}
    worst: dict[str, Any] = {
        "attack": "worst",
        "attack_spec": "worst",
        "attack_family": "membership",
        "attacks": ["mia", "shadow"],
    }
    scores = {"leakage": score(0.4), "auc_model_free": score(low and 0.6, low, low and 0.7)}
    rows = [
        entry("none", **mia),
        entry("none", **shadow),
        entry("none", **worst),
        point("none", 0.4, scores=scores, **mia),
        point("none", 0.4, scores={"leakage": score(0.4)}, **shadow),
    ]
    text = " ".join(printed(rows).split())
    assert text.count(verdict) == 2  # under mia and under the worst of the family
    assert text.count("model-free baseline: ") == 2


def test_a_detector_that_was_made_to_miss_values_is_named(printed: Printed) -> None:
    found = [{"name": "memdefense.pii", "asked": 0.9, "recall": recall} for recall in (0.7, 0.74)]
    rows = [entry("none"), *(point("none", seed=seed, detector=one) for seed, one in enumerate(found))]
    text = " ".join(printed(rows).split())
    assert "finds 72.0 % of the secrets' occurrences, since it is made to miss 10 % of the values" in text


def test_an_attack_that_one_arm_never_met_is_named_under_the_worst(printed: Printed) -> None:
    worst: dict[str, Any] = {"attack": "worst", "attack_spec": "worst", "attacks": ["prefix", "verbatim", "inference"]}
    rows = [
        entry("none", not_played=["inference"], **worst),
        entry("refuse", not_played=["inference", "verbatim"], **worst),
        point("none"),
        point("refuse"),
    ]
    text = " ".join(printed(rows).split())
    assert "refuse: verbatim cannot be played against it" in text
    assert text.count("cannot be played") == 1


def test_two_data_sets_of_one_name_and_two_detectors_are_not_mixed(printed: Printed) -> None:
    settings: list[dict[str, Any]] = [{"data": "a/m"}, {"data": "b/m"}, {"data": "a/m", "detector_recall": 0.9}]
    rows = [row for own in settings for row in (entry("none", **own), point("none", **own))]
    text = printed(rows)
    assert text.count("mailbox:documents=50 v1 · mailbox default · prefix (text)") == 2
    assert text.count("mailbox:documents=50 v1 · mailbox default · detector recall 0.9 · prefix (text)") == 1


def test_an_arm_that_found_no_pii_says_so(printed: Printed) -> None:
    idle: dict[str, Any] = {"status": "no-op", "notes": {"values": 0.0}}
    rows = [entry(label) for label in ("none", "rmft", "pme")]
    rows += [point("none"), point("rmft", **idle), point("pme", status="no-op", notes={"values": 7.0})]
    text = " ".join(printed(rows).split())
    assert "rmft: the defender's detector found no PII, so nothing was changed" in text
    assert "pme: the" not in text
    assert "nothing was edited" not in text


def test_an_edit_that_never_came_to_pass_says_so(printed: Printed) -> None:
    rows = [entry(label) for label in ("none", "pme", "memit")]
    rows += [point("none"), point("pme", status="no-op", notes={"values": 9.0, "edited": 0.0, "skipped": 1794.0})]
    rows += [point("memit", status="no-op", notes={"values": 9.0, "edited": 0.0, "skipped": 0.0})]
    text = " ".join(printed(rows).split())
    assert "pme: nothing was edited, since none of the 1,794 contexts that leak could be brought to say" in text
    assert "memit: nothing" not in text


def places(text: str) -> dict[str, str]:
    """The place of every line of a table, by the first five letters of its defense."""
    lines = (line.split() for line in text.splitlines() if line[:1] == " " and line[1:3].strip())
    return {cells[1][:5]: cells[0] for cells in lines if len(cells) > 3 and (cells[0] == "-" or cells[0][0].isdigit())}


def test_overlapping_gains_are_ties_and_clear_ones_are_not(printed: Printed) -> None:
    ranks = places(printed(EVERYTHING))
    assert (ranks["rmft"], ranks["dedup"]) == ("1-2", "1-2")  # 20 to 40 and 15 to 35
    assert (ranks["none"], ranks["twin"]) == ("3-4", "3-4")  # 0 to 0 and -2 to 2, both below the two
    assert ranks["small"] == ranks["broke"] == "-"


def test_entries_that_were_compared_pair_by_pair_keep_their_places(printed: Printed) -> None:
    pair = [
        entry("none", versus={"rmft": {"holm": 0.01, "low": -4.0}}),
        entry("rmft", (1.0, -1.0, 3.0), aurc=score(41.0), versus={"none": {"holm": 0.01, "low": 1.0}}),
    ]
    # The pair was told apart person by person, though the intervals overlap.
    assert places(printed(pair)) == {"rmft": "1", "none": "2"}
    # An entry of another run was compared with neither.
    assert places(printed([*pair, entry("dedup")])) == {"rmft": "1-2", "none": "2-3", "dedup": "1-3"}
    tied = [pair[0], pair[1] | {"versus": {"none": {"holm": 0.06, "low": 1.0}}}]
    assert places(printed(tied)) == {"rmft": "1-2", "none": "1-2"}


def test_no_more_than_all_is_taken_away_and_doing_nothing_is_no_certainty(printed: Printed) -> None:
    budgets = entry("none")["maxter"] | {"1": score(0.0, 0.0, 0.0, chosen=["do nothing"] * 3)}
    row = entry("rmft", maxter=budgets | {"20": score(103.6, 89.0, 111.0)}, aurc=score(100.4, 98.0, 104.0))
    text = printed([row], markdown=True)
    assert "| 0.0<br>nothing | 55.0<br>[43,64] | 100.0<br>[89,100] | 100.0<br>[98,100] |" in text


def test_points_that_were_left_out_are_named(printed: Printed) -> None:
    text = printed([entry("pme", left_out=["1.0/a", "1.0/b"]), entry("none", left_out=[])])
    assert "pme: not measured on every seed, and left out: 1.0/a, 1.0/b" in " ".join(text.split())


def test_the_worst_attack_ranks_and_comes_first(printed: Printed) -> None:
    worst: dict[str, Any] = {"attack": "worst", "attack_spec": "worst", "attacks": ["prefix", "sampling"]}
    read = {"leakage": score(0.21, 0.1, 0.3) | {"readings": ["sampling/", "prefix/"]}}
    rows = [entry("none"), entry("rmft"), entry("none") | worst, entry("rmft", (30.0, 20.0, 40.0)) | worst | read]
    rows += [point("none", 0.5), point("rmft", 0.1), point("rmft", 0.2) | {"attack_spec": "sampling"}]
    text = printed(rows)
    first, second = "worst extraction attack of prefix, sampling (text)", "· prefix (text)"
    assert 0 <= text.index(first) < text.index(second)
    text = text[text.index(first) :]
    assert "the attack that leaks most at the end: rmft sampling or prefix" in " ".join(text.split())
    assert next(line for line in text.splitlines() if line.split()[1:2] == ["rmft"]).split()[2] == "0.210"
    # Where seeds end at different points, the worst attack at the end is not known.
    unlike = [entry("none") | worst, point("none", 0.5), point("none", 0.7) | {"attack_spec": "sampling"}]
    text_of = printed([unlike[0] | {"leakage": None}, *unlike[1:]])
    assert next(line for line in text_of.splitlines() if line.split()[1:2] == ["none"]).split()[2] == "-"
    # The tables of single attacks keep their own points.
    assert text.count("member values extracted") == 1
    assert printed(rows, points=True).count("d contin.") == 1


def test_every_attack_of_a_family_stands_in_one_matrix_with_the_worst_last(printed: Printed) -> None:
    worst: dict[str, Any] = {"attack": "worst", "attack_spec": "worst", "attacks": ["prefix", "sampling"]}
    low = {"aurc": score(12.5), "leakage": score(0.345)}
    rows = [entry("none"), entry("rmft") | {"aurc": score(70.0), "leakage": score(0.05)}]
    rows += [entry("rmft") | {"attack": "sampling", "attack_spec": "sampling"} | low]
    rows += [entry("none") | worst, entry("rmft", (30.0, 20.0, 40.0)) | worst | low]
    text = printed(rows)
    head = text.index("AURC % by extraction attack, leakage beneath")
    lines = [line for line in text[head:].splitlines() if line.strip()]
    assert lines[1].split() == ["defense", "prefix", "sampling", "worst"]
    row = next(place for place, line in enumerate(lines) if line.split()[:1] == ["rmft"])
    assert lines[row].split() == ["rmft", "70.0", "12.5", "12.5"]
    assert lines[row + 1].split() == ["0.050", "0.345", "0.345"]
    # What was not measured is no zero.
    none = next(line for line in lines if line.split()[:1] == ["none"])
    assert none.split()[2] == "-"
    assert "| rmft | 70.0<br>0.050 | 12.5<br>0.345 | 12.5<br>0.345 |" in printed(rows, markdown=True)


def test_noise_by_its_source_and_figures_for_comparison_stand_below(printed: Printed) -> None:
    gain = score(30.0, 20.0, 40.0) | {"run_limits": [18.0, 42.0], "sample_limits": [24.0, 36.0]}
    plain_maximum = {"maxter": {"1": 60.2, "5": 80.0, "20": None}}
    paper = {"ter_mean": 75.0, "maxter_paper": 87.5, "aurc_paper": 70.0}
    text = " ".join(printed([entry("rmft", gain=gain, plain=plain_maximum, paper=paper), entry("none")]).split())
    assert "half width of the gain's interval from runs / from persons, in %: rmft 12 / 6" in text
    assert "plain maximum at 1 / 5 / 20 %, which flatters: rmft 60 / 80 / -" in text
    assert "as the RMFT paper counts, mean TER / MaxTER / AURC: rmft 75 / 88 / 70" in text


def test_what_was_published_stands_beside_what_was_measured(printed: Printed) -> None:
    text = " ".join(printed(EVERYTHING).split())
    assert "published: rmft TER -80.81 %, SER -80.17 %, perplexity +5.73 % (GPT2-XL, 10,000 Enron messages" in text
    assert "perplexity 4.254 → 4.42" in text
    assert "published: twin" not in text
    assert "published" not in printed([entry("none"), point("none")])


def test_markdown_has_as_many_cells_in_every_row(printed: Printed) -> None:
    text = printed(EVERYTHING, markdown=True)
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 7
    assert {row.count("|") for row in rows} == {len(rows[0].split("|")) - 1}
    assert "10.0<br>[-2,19]" in text
    assert "level=near\\|pii" in text
    assert "**mailbox:documents=50 v1 · mailbox default · prefix (text)**" in text


def test_unbounded_and_unknown_limits(printed: Printed) -> None:
    wide = entry(
        "wide",
        (1.0, -math.inf, math.inf),
        aurc=score(1.0, -123456.0, 20.0),
        maxter={tau: score(math.nan, math.nan, math.nan) for tau in ("1", "5", "20")},
    )
    text = printed([wide, point("wide")])
    assert "[-∞,20]" in text
    assert "+1.0" in text


def test_a_later_entry_takes_the_place_of_an_earlier_one(printed: Printed) -> None:
    text = printed([entry("rmft", (1.0, 0.0, 2.0)), entry("rmft", (7.0, 6.0, 8.0))])
    assert "+7.0" in text
    assert "+1.0" not in text


def test_a_run_without_entries_is_an_error(printed: Printed) -> None:
    with pytest.raises(DataError, match="results of memdefense attack"):
        tables_of([{"row": "attack"}])
    with pytest.raises(DataError, match="interrupted"):
        printed([point("none")])


def test_the_command_reads_a_folder(tmp_path: Path) -> None:
    lines = [json.dumps(plain(row)) for row in EVERYTHING]
    (tmp_path / "results.jsonl").write_text("\n".join(lines) + "\n")
    done = CliRunner().invoke(leaderboard, [str(tmp_path), "--markdown"])
    assert done.exit_code == 0, done.output
    assert "| rmft |" in done.output


def test_a_membership_table_holds_tpr_at_one_percent_where_it_is_resolved(printed: Printed) -> None:
    family: dict[str, Any] = {"attack": "mia", "attack_spec": "mia", "attack_family": "membership"}

    def rows(*, resolved: bool) -> list[Row]:
        made = [entry("none", **family), entry("rmft", (30.0, 20.0, 40.0), **family)]
        for label, one, ten in (("none", 0.81, 0.95), ("rmft", 0.43, 0.64)):
            for seed, shift in ((0, -0.02), (1, 0.02)):
                scores = {
                    "tpr_at_1%_fpr": score(one + shift if resolved else None, one - 0.1, one + 0.1),
                    "tpr_at_10%_fpr": score(ten + shift, ten - 0.1, ten + 0.1),
                }
                made.append(point(label, seed=seed, **family) | {"scores": scores})
        return made

    text = printed(rows(resolved=True))
    line = next(line for line in text.splitlines() if line.split()[1:2] == ["rmft"])
    assert line.split()[3] == "0.43"
    assert "[0.33,0.53]" in text
    assert max(map(len, text.splitlines())) <= table._WIDTH
    for resolved in (True, False):
        text = printed(rows(resolved=resolved), markdown=True)
        assert ("TPR@1 %" in text.split("---")[0]) is resolved
        assert "TPR at 10 % FPR at the end: none 0.95, rmft 0.64" in text


@pytest.mark.parametrize(("low", "by_the_same"), [(0.1, -0.2), (0.1, 0.25), (-0.1, 0.25)])
def test_what_a_base_model_leaks_is_told_by_the_reading_of_the_others(
    printed: Printed, low: float, by_the_same: float
) -> None:
    base = {"-zlib": {"do nothing": [-0.9, -0.9], "base": [0.34, 0.34]}}
    base |= {"loss": {"do nothing": [0.9, 0.9], "base": [by_the_same, by_the_same]}}
    rows = [
        entry("none", leakage=score(0.9, 0.8, 0.95) | {"readings": ["loss", "loss"]}),
        entry("never-trained", leakage=score(0.34, low, 0.54) | {"readings": ["-zlib", "-zlib"]}, readings=base),
        point("none"),
    ]
    text = " ".join(printed(rows).split())
    assert ("the base model, which saw no private text, leaks 0.34" in text) is (low > 0)
    assert (f"by what tells the undefended run best (loss), {by_the_same:.2f}" in text) is (low > 0)
    assert ("nothing of what the others leak was there before" in text) is (low > 0 > by_the_same)


def test_the_front_is_of_points_that_nothing_beats_within_the_budget(printed: Printed) -> None:
    def plain_of(**points: tuple[float | None, float]) -> dict[str, Any]:
        found = {label: {"delta": delta, "reduction": reduction} for label, (delta, reduction) in points.items()}
        return {"plain": {"maxter": {"1": 0.0, "5": 0.0, "20": 0.0}, "points": found}}

    rows = [
        entry("none", **plain_of(early=(3.0, 40.0), late=(0.0, 0.0))),
        entry("rmft", **plain_of(early=(-1.0, 30.0), late=(4.0, 35.0), dear=(30.0, 100.0), unknown=(None, 99.0))),
        point("none"),
    ]
    text = " ".join(printed(rows).split())
    assert "which flatters: rmft at early (d -1.0, 30 % taken away), none at early (d 3.0, 40 % taken away)" in text
    assert "rmft at late" not in text
    assert "dear" not in text


def test_arms_are_held_against_the_best_trivial_row_that_beats_early_stopping(printed: Printed) -> None:
    def versus(difference: float, low: float, high: float) -> dict[str, Any]:
        return {"difference": difference, "low": low, "high": high, "holm": 1.0}

    rows = [
        entry("none"),
        entry("shuffle", (12.0, 2.0, 22.0), family="trivial", aurc=score(52.0, 40.0, 60.0)),
        entry("low-rate", (20.0, 10.0, 30.0), family="trivial", aurc=score(60.0, 50.0, 70.0)),
        entry("rmft", (23.4, 13.0, 33.0), versus={"low-rate": versus(3.4, -2.2, 8.6), "shuffle": versus(11, 1, 21)}),
        entry("dedup", (-3.0, -9.0, 3.0), versus={"low-rate": versus(-23.0, -30.0, -16.0)}),
        point("none", 0.5),
    ]
    text = " ".join(printed(rows, 400).split())
    assert "AURC less that of low-rate, the best of the trivial rows: rmft +3 [-2,9]" in text
    assert "dedup -23" not in text, "what early stopping beats needs no other rival"
    behind = [entry("none"), entry("refuse", (-5.0, -9.0, -1.0), family="trivial"), *rows[3:]]
    assert "trivial rows" not in printed(behind, 400), "a trivial row behind early stopping is no rival"


def test_the_part_that_costs_is_the_one_that_is_lost_on_some_seed(printed: Printed) -> None:
    costs = [{"perplexity": d, "continuation": None, "copy": 0.0, "worst": max(d, 0.0)} for d in (-1.9, 1.9, -0.6)]
    points = [point("rmft", seed=seed, d=d) for seed, d in enumerate(costs)]
    text = printed([entry("none"), entry("rmft", (1.0, 0.0, 2.0)), point("none", 0.5), *points], 200)
    assert "0.6" in text
    assert "perpl." in text
    assert "copy " not in text.partition("[95 %")[0]


def test_an_arm_whose_cost_is_not_known_is_named(printed: Printed) -> None:
    unknown = {"perplexity": 0.0, "continuation": None, "copy": None, "worst": None}
    rows = [entry("none"), entry("refuse"), point("none"), point("refuse", d=unknown)]
    text = " ".join(printed(rows).split())
    assert "refuse: what a guard costs is not known here" in text
    assert "none: what" not in text


def test_arms_of_fewer_runs_are_named(printed: Printed) -> None:
    rows = [entry("none", seeds=[0, 1, 2]), entry("rmft", seeds=[0, 1, 2]), entry("retro", seeds=[0, 1]), point("none")]
    assert "runs: 3 of none, rmft; 2 of retro;" in " ".join(printed(rows).split())
    assert "runs:" not in printed([row for row in rows if row.get("defense") != "retro"])


def test_a_zero_has_no_sign(printed: Printed) -> None:
    budgets = {tau: score(-0.004, -0.3, 0.2) for tau in ("1", "5", "20")}
    text = printed([entry("none", maxter=budgets), point("none")], markdown=True)
    assert "| 0.0<br>[0,0] |" in text
    assert "-0" not in text.split("\n- ")[0]


def test_what_kept_and_removed_contexts_bring_out_stands_under_a_table(printed: Printed) -> None:
    gone = {"leakage_kept": score(0.125), "hit_rate_removed": score(0.25), "leakage": score(0.2)}
    whole = {"leakage_kept": score(0.5), "hit_rate_removed": score(None), "leakage": score(0.5)}
    rows = [entry("none"), entry("rmft"), point("none", scores=whole)]
    rows += [point("rmft", seed=seed, scores=gone) for seed in range(2)]
    text = " ".join(printed(rows).split())
    assert "left in the text / hits by those taken out: rmft 0.125 / 0.250" in text


AUDIT: dict[str, Any] = {"attack": "audit", "attack_spec": "audit", "attack_family": "audit"}


def bounds(all_copies: float, single: float) -> dict[str, Any]:
    names = ("epsilon_bound", "epsilon_bound_delta", "epsilon_bound_single", "epsilon_bound_single_delta")
    given = {name: score(single if "single" in name else all_copies) for name in names}
    ceilings = {name.replace("bound", "ceiling"): score(2.7 if "single" in name else 3.1) for name in names}
    return {"leakage": score(0.5), **given, **ceilings}


@pytest.mark.parametrize(("unit", "held"), [("", "0.25 / 0.50 of at most 2.7"), (":unit=author", "1.00 / 1.25 of at")])
def test_bounds_on_epsilon_stand_beside_what_is_claimed(printed: Printed, unit: str, held: str) -> None:
    notes = {"epsilon": 7.99, "delta": 0.0004, "claim_void": 0.0}
    rows = [entry("none", **AUDIT), entry("dp-sgd", **AUDIT, defense_spec=[f"dp-sgd{unit}"])]
    for seed in (1, 0):
        rows.append(point("none", seed=seed, **AUDIT, scores=bounds(1.5, 1.0)))
        drawn = bounds(1.0 + seed / 4, 0.25 + seed / 4)
        spec = f"dp-sgd{unit}"
        rows.append({**point("dp-sgd", seed=seed, **AUDIT, scores=drawn, notes=notes), "defense_spec": spec})
    text = " ".join(printed(rows).split())
    assert "at most 3.1 could be shown): none 1.50 / 1.50, dp-sgd 1.00 / 1.25" in text
    claimed = "an author" if unit else "a document"
    assert f"dp-sgd claims epsilon 7.99 at delta 0.0004 for {claimed}; the bound for that: {held}" in text
    assert "the others claim no epsilon" in text


def test_an_audit_without_a_claim_names_none(printed: Printed) -> None:
    text = printed([entry("none", **AUDIT), point("none", **AUDIT, scores=bounds(1.5, 1.0))])
    assert "lower bound on epsilon" in text
    assert "claim" not in text
