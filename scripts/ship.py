"""Puts a results folder among the results that ship, and prints every shipped table into the pages.

``python scripts/ship.py`` renews the tables of README.md and leaderboard/RESULTS.md from the rows that ship;
``python scripts/ship.py runs/mailbox-1234 mailbox`` first makes leaderboard/results/mailbox.jsonl of that folder's
entries and of the last point of each arm, attack and seed, and leaderboard/outcomes/mailbox.tar.xz of all that is in
it, which ``memdefense pool`` scores anew. What the pages say about tables is written by hand. The figures of the
default benchmark are drawn into leaderboard/figures.
"""

from __future__ import annotations

import json
import re
import sys
import tarfile
from pathlib import Path

from click.testing import CliRunner

from memdefense.leaderboard.commands import leaderboard
from memdefense.leaderboard.figure import draw
from memdefense.results import detector_of, latest, read_rows

ROOT = Path(__file__).parents[1]
README, RESULTS = ROOT / "README.md", ROOT / "leaderboard" / "RESULTS.md"
_TABLE = re.compile(r"^\*\*(?P<title>[^\n]+)\*\*\n\n(?:\|[^\n]*\n)+", re.MULTILINE)


def take(folder: Path, name: str) -> None:
    """Makes the file of rows that ships of a results folder."""
    rows = list(read_rows(folder))
    last = {}
    for row in latest(row for row in rows if row["row"] == "point"):
        last[row["defense_label"], row["defense_spec"], row["attack_spec"], row["seed"], detector_of(row)] = row
    entries = {
        (row["defense_label"], row["attack_spec"], row["attack_family"], detector_of(row)): row
        for row in rows
        if row["row"] == "entry"
    }
    lines = [json.dumps(row) + "\n" for row in (*last.values(), *entries.values())]
    (ROOT / "leaderboard" / "results" / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    keep(folder, name)


def keep(folder: Path, name: str) -> None:
    """Packs a results folder; the same folder gives the same bytes."""
    packed = ROOT / "leaderboard" / "outcomes" / f"{name}.tar.xz"
    packed.parent.mkdir(exist_ok=True)
    with tarfile.open(packed, "w:xz", preset=9) as archive:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            entry = tarfile.TarInfo(f"{name}/{path.relative_to(folder).as_posix()}")
            entry.size = path.stat().st_size
            with path.open("rb") as content:
                archive.addfile(entry, content)


def renew() -> None:
    """Prints the shipped tables into the pages."""
    said = CliRunner().invoke(leaderboard, ["--markdown"])
    if said.exit_code:
        raise SystemExit(said.output)
    # Of tables of one title the last section's, which is that of all defenses, stands in the README.
    printed = {found["title"]: found[0] for found in _TABLE.finditer(said.output)}
    legend = said.output[said.output.rindex("[95 % interval]") :].strip()
    readme = _TABLE.sub(lambda old: printed.get(old["title"], old[0]), README.read_text(encoding="utf-8"))
    readme = re.sub(r"^\[95 % interval\].*$", lambda _: legend, readme, flags=re.MULTILINE)
    README.write_text(readme, encoding="utf-8")
    head, *old = re.split(r"^## ", RESULTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    # Of each section the words before its first table stay; the rest is printed.
    words = {part.partition("\n")[0]: part.partition("\n")[2].partition("**")[0].strip() for part in old}
    _, *sections = re.split(r"^## ", said.output, flags=re.MULTILINE)
    made = []
    for section in sections:
        name, _, body = section.partition("\n")
        made.append(f"## {name}\n\n{words.get(name, '')}\n\n{body.strip()}\n")
    RESULTS.write_text(head + "\n".join(made), encoding="utf-8")
    draw(list(read_rows(ROOT / "leaderboard" / "results" / "mailbox.jsonl")), ROOT / "leaderboard" / "figures")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        take(Path(sys.argv[1]), sys.argv[2])
    elif len(sys.argv) != 1:
        raise SystemExit("give a results folder and a name, or nothing")
    renew()
