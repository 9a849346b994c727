"""What stands under a MaxTER table: errors, noise, chance, and what was published."""

from __future__ import annotations

from collections.abc import Sequence

from memdefense.published import Claim, claim_lines
from memdefense.results import Row, model_free_line

from .cells import interval, last_points, mean, number, rank
from .epsilon import bounds_of

BUDGET = 20  # percent of utility, where areas end
_OF_UTILITY = ("perplexity", "utility kept")  # published figures that have no attack


def notes_of(group: Sequence[Row], points: Sequence[Row], claims: Sequence[Claim]) -> list[str]:
    """The lines under a table, none twice.

    Args:
        group: all entries of the table.
        points: the points that they rest on.
        claims: what was published.
    """
    found = [
        *_problems(group),
        *_runs(group),
        *_unmeasured(group, points),
        *_idle(group, points),
        *_left_out(group),
        *_not_played(group),
        *_front(group),
        *_trivial(group),
        *_beside(group),
        *_before(group),
    ]
    if not group[0].get("attacks"):
        found += [*_rates(group, points), *_kept(group, points), *bounds_of(group, points)]
    found += _baseline(points)
    if not group[0].get("attacks"):
        found += _chance(points)
    found += [line for entry in group for line in _claimed(entry, claims)]
    return list(dict.fromkeys(found))


def _before(group: Sequence[Row]) -> list[str]:
    """What the base model, which no private text can have taught, leaks by the very reading of the undefended run."""
    found = {entry["defense"]: entry for entry in group}
    base, undefended = found.get("never-trained"), found.get("none")
    if base is None or undefended is None or not (base.get("leakage") or {}).get("low"):
        return []
    taken = (undefended.get("leakage") or {}).get("readings") or []
    points = [(base.get("readings") or {}).get(reading, {}) for reading in taken]
    known = [list(point.values())[-1][place] for place, point in enumerate(points) if point]
    value = mean(known) if len(known) == len(taken) else None
    if value is None or base["leakage"]["low"] <= 0:
        return []
    own = f"{number(base['leakage']['value'], 2)} by whatever tells it best, chosen where it is read"
    by = " or ".join(dict.fromkeys(reading.lstrip("/") or "its headline" for reading in taken))
    said = "so much of every row is due to the split or to what was known before"
    return [
        f"the base model, which saw no private text, leaks {own}; by what tells the undefended run best ({by}), "
        f"{number(value, 2)}: " + (said if value > 0 else "nothing of what the others leak was there before")
    ]


def front_of(group: Sequence[Row]) -> list[tuple[float, float, str]]:
    """Cost, share taken away and name of the points of all arms that none beats up to `BUDGET`, means over seeds."""
    points = [
        (point["delta"], point["reduction"], f"{entry['defense_label']} at {label}")
        for entry in group
        for label, point in ((entry.get("plain") or {}).get("points") or {}).items()
        if point["delta"] is not None and point["reduction"] is not None and point["delta"] <= BUDGET
    ]
    found: list[tuple[float, float, str]] = []
    highest = 0.0  # of doing nothing
    for delta, reduction, name in sorted(points, key=lambda point: (max(point[0], 0.0), -point[1])):
        if reduction > highest:
            highest = reduction
            found.append((delta, reduction, name))
    return found


def _front(group: Sequence[Row]) -> list[str]:
    found = [f"{name} (d {delta:.1f}, {reduction:.0f} % taken away)" for delta, reduction, name in front_of(group)]
    return [f"Pareto front of all points up to d = {BUDGET} %, which flatters: {', '.join(found)}"] if found else []


def _trivial(group: Sequence[Row]) -> list[str]:
    """How arms that beat early stopping stand to the best of the trivial rows that do, by pairs and without Holm."""
    ahead = [entry for entry in group if ((entry.get("gain") or {}).get("value") or 0) > 0]
    rivals = sorted((entry for entry in ahead if entry.get("family") == "trivial"), key=rank)
    if not rivals:
        return []
    best = rivals[0]["defense_label"]
    pairs = {entry["defense_label"]: (entry.get("versus") or {}).get(best) for entry in ahead if entry not in rivals}
    found = [f"{label} {_flat(pair)}" for label, pair in pairs.items() if pair]
    return [f"AURC less that of {best}, the best of the trivial rows: {', '.join(found)}"] if found else []


def _flat(pair: dict[str, float]) -> str:
    return interval({**pair, "value": pair["difference"]}, 0, 0, sign=True).replace("\n", " ")


def _runs(group: Sequence[Row]) -> list[str]:
    """How many runs each arm rests on, where they differ."""
    arms: dict[int, list[str]] = {}
    for entry in group:
        arms.setdefault(len(entry.get("seeds") or ()), []).append(entry["defense_label"])
    if len(arms) < 2:
        return []
    counts = "; ".join(f"{count} of {', '.join(arms[count])}" for count in sorted(arms, reverse=True))
    return [f"runs: {counts}; gains are over the undefended runs of an arm's own seeds, places on the seeds of both"]


def _unmeasured(group: Sequence[Row], points: Sequence[Row]) -> list[str]:
    """Arms whose cost is not known, and which nobody can choose therefore."""
    arms = [entry["defense_label"] for entry in group]
    last = {arm: last_points([row for row in points if row["defense_label"] == arm]) for arm in arms}
    blind = [arm for arm, rows in last.items() if rows and all(row["d"].get("worst") is None for row in rows)]
    if not blind:
        return []
    return [
        f"{', '.join(blind)}: what a guard costs is not known here, since the undefended model continues held-out "
        "text no better than chance, or there is none; such points are never chosen"
    ]


def _idle(group: Sequence[Row], points: Sequence[Row]) -> list[str]:
    """Why arms changed nothing: their detector found no PII, or what they sought could not be had."""
    blind, lines = [], []
    for entry in group:
        own = [row for row in points if row["defense_label"] == entry["defense_label"] and row["status"] == "no-op"]
        notes = [row.get("notes") or {} for row in own]
        if own and all(note.get("values") == 0 for note in notes):
            blind.append(entry["defense_label"])
        skipped = [int(note.get("skipped") or 0) for note in notes if note.get("edited") == 0]
        if own and len(skipped) == len(own) and max(skipped):
            lines.append(
                f"{entry['defense_label']}: nothing was edited, since none of the {max(skipped):,} contexts that leak "
                "could be brought to say the dummy"
            )
    if blind:
        lines.append(f"{', '.join(blind)}: the defender's detector found no PII, so nothing was changed")
    return lines


def _left_out(group: Sequence[Row]) -> list[str]:
    """Points that no table could count."""
    return [
        f"{entry['defense_label']}: not measured on every seed, and left out: {', '.join(entry['left_out'])}"
        for entry in group
        if entry.get("left_out") and entry.get("resolvable")
    ]


def _not_played(group: Sequence[Row]) -> list[str]:
    """Attacks that make no sense against an arm: its worst is sought among the others, the undefended run's among all.

    Where no arm met an attack there is nothing to say.
    """
    met = {spec for entry in group for spec in set(entry.get("attacks") or ()) - set(entry.get("not_played") or ())}
    found = {entry["defense_label"]: sorted(met & set(entry.get("not_played") or ())) for entry in group}
    return [
        f"{label}: {', '.join(specs)} cannot be played against it, so its worst attack is one of fewer"
        for label, specs in found.items()
        if specs
    ]


def _rates(group: Sequence[Row], points: Sequence[Row]) -> list[str]:
    """TPR at 10 % FPR, which a tenth of the non-members resolve that TPR at 1 % needs."""
    found = []
    for entry in group:
        final = last_points([row for row in points if row["defense_label"] == entry["defense_label"]])
        value = mean([(row["scores"].get("tpr_at_10%_fpr") or {}).get("value") for row in final])
        found += [f"{entry['defense_label']} {number(value, 2)}"] if value is not None else []
    return [f"TPR at 10 % FPR at the end: {', '.join(found)}"] if found else []


def _kept(group: Sequence[Row], points: Sequence[Row]) -> list[str]:
    """What contexts bring out that a defense of text left in place, with which one who knows of it would ask."""
    found = []
    for entry in group:
        final = last_points([row for row in points if row["defense_label"] == entry["defense_label"]])
        gone = [(row["scores"].get("hit_rate_removed") or {}).get("value") for row in final]
        left = [(row["scores"].get("leakage_kept") or {}).get("value") for row in final]
        if mean(gone) is not None and mean(left) is not None:
            found.append(f"{entry['defense_label']} {number(mean(left), 3)} / {number(mean(gone), 3)}")
    return (
        [f"leakage by contexts that were left in the text / hits by those taken out: {', '.join(found)}"]
        if found
        else []
    )


def _problems(entries: Sequence[Row]) -> list[str]:
    """Errors and what could not be resolved; a note that several entries share is one line."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        unresolved = "" if entry.get("resolvable") else str(entry.get("note", ""))
        for note in entry.get("errors") or [unresolved]:
            if note:
                found.setdefault(note, []).append(entry["defense_label"])
    return [note if len(who) == len(entries) else f"{', '.join(who)}: {note}" for note, who in found.items()]


def _beside(entries: Sequence[Row]) -> list[str]:
    """Seed noise and sample noise apart, the worst attacks, the plain maximum and the paper's figures, a line each."""
    noise, worst, plain, paper = [], [], [], []
    for entry in entries:
        label, gain = entry["defense_label"], entry.get("gain") or {}
        halves = [_half(gain.get(name)) for name in ("run_limits", "sample_limits")]
        noise += [f"{label} {halves[0]} / {halves[1]}"] if halves != ["-", "-"] else []
        if entry.get("attacks"):
            read = dict.fromkeys(name.rpartition("/")[0] for name in (entry.get("leakage") or {}).get("readings", ()))
            worst += [f"{label} {' or '.join(read)}"] if read else []
        most = (entry.get("plain") or {}).get("maxter") or {}
        plain += [f"{label} {' / '.join(number(most[tau], 0) for tau in ('1', '5', '20'))}"] if most else []
        figures = entry.get("paper") or {}
        names = ("ter_mean", "maxter_paper", "aurc_paper")
        paper += [f"{label} {' / '.join(number(figures[name], 0) for name in names)}"] if figures else []
    lines = {
        "the attack that leaks most at the end": worst,
        "half width of the gain's interval from runs / from persons, in %": noise,
        "plain maximum at 1 / 5 / 20 %, which flatters": plain,
        "as the RMFT paper counts, mean TER / MaxTER / AURC": paper,
    }
    return [f"{what}: {', '.join(found)}" for what, found in lines.items() if found]


def _half(limits: Sequence[float | None] | None) -> str:
    low, high = limits or (None, None)
    return "-" if low is None or high is None else f"{(high - low) / 2:.0f}"


def _baseline(rows: Sequence[Row]) -> list[str]:
    """What membership numbers of these rows must be read against: a classifier that sees the texts and no model.

    Attacks that ask about other texts, as in a table of the worst, have a line each.
    """
    blind = [row for row in _undefended(rows) if "auc_model_free" in (row.get("scores") or {})]
    said = {}
    for spec in dict.fromkeys(row["attack_spec"] for row in blind):
        said[spec] = [
            model_free_line(row["scores"]["auc_model_free"])
            for row in last_points([row for row in blind if row["attack_spec"] == spec])
        ]
    alone = len(said) == 1
    return [line if alone else f"{spec}, {line}" for spec, lines in said.items() for line in dict.fromkeys(lines)]


def _chance(rows: Sequence[Row]) -> list[str]:
    """What extraction numbers of these rows must be read against."""
    notes = []
    undefended = last_points(_undefended(rows))
    for row in undefended[:1]:
        scores = row["scores"]
        if "hit_rate" in scores:
            hit, chance, held = scores["hit_rate"], scores["chance"], scores["held_out_rate"]
            buckets = ", ".join(
                f"{name}: {number(scores[f'hit_rate_{name}']['value'], 2)} of {scores[f'hit_rate_{name}']['n']}"
                for name in ("1", "2-4", "5-16", ">16")
                if scores.get(f"hit_rate_{name}", {}).get("n")
            )
            # Chance by twins rests on the members, chance by strangers on the held-out values.
            strangers = (chance["n"], chance["events"]) == (held["n"], held["events"])
            of = "held-out values, not exchangeable" if strangers else "twins"
            if "unread_rate" in scores:
                of = f"models that have not read the value, {chance['n']} values"
            notes.append(
                f"undefended, seed {row['seed']}: {hit['events']} of {hit['n']} member values extracted; chance "
                f"{number(chance['value'], 3)} ({of}); "
                f"held-out values {held['events']} of {held['n']}" + (f"; by occurrences {buckets}" if buckets else "")
            )
    detectors = [row.get("detector") or {} for row in undefended]
    found = mean([detector.get("recall") for detector in detectors])
    if found is not None:
        asked = min(detector.get("asked", 1.0) for detector in detectors)
        missed = f", since it is made to miss {100 * (1 - asked):.0f} % of the values" if asked < 1 else ""
        notes.append(f"the defender's detector finds {100 * found:.1f} % of the secrets' occurrences{missed}")
    return notes


def _undefended(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["defense_spec"] == "none"]


def _claimed(entry: Row, claims: Sequence[Claim]) -> list[str]:
    """What was published of an entry's defense, one line per source."""
    extracts = entry.get("attack_family") in (None, "extraction")  # rates of extraction say nothing of other attacks
    return claim_lines(
        [
            claim
            for claim in claims
            if claim["defense"] == entry["defense"] and (extracts or claim["metric"] in _OF_UTILITY)
        ]
    )
