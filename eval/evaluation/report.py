"""The report of a benchmark run: tables with intervals, and significance against another report, as JSON, Markdown and
HTML (page.py).

report.json contains the scores of every record. The files do not depend on when they are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reasonbrain.data.record import Records
from reasonbrain.eval.evaluation.against import Other
from reasonbrain.eval.evaluation.edits import Edits
from reasonbrain.eval.evaluation.page import page
from reasonbrain.eval.evaluation.stats import holm, interval, p_value
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.reading import check_ours

SUFFIXES = ("json", "md", "html")  # json first: by its content ``check_ours`` recognises a report
STRETCHED = "since their aspect ratio is not that of the picture they are compared with"
MANY = 12  # a group with more values gets one table for all of them


def tables(found: dict[str, Any], groups: Sequence[str], other: Other | None) -> list[dict[str, Any]]:
    """One table of all records and one per value of each group, as JSON values::

        {"group": "category", "value": "causal", "records": 50, "scores": {"L1 outside": {
            "higher_is_better": false,
            "systems": {"edits": {"n": 50, "mean": 0.0031, "low": 0.0022, "high": 0.0041}, "do nothing": {...}},
            "against": {"n": 50, "mean": ..., "difference": -0.002, "low": ..., "high": ..., "p": 0.04, "holm": 0.12}}}}

    ``low`` and ``high`` bound the 95 % interval of the mean, or of the mean difference. ``holm`` is ``p`` corrected for
    all scores of the table. Systems are compared on the records with an edit; ``against`` on those in both reports."""
    rows, seed = found["records"], found["seed"]
    made = [_table("all", "", rows, found["metrics"], other, seed)]
    for group in groups:
        values = dict.fromkeys(row["groups"][group] for row in rows)
        for value in values if len(values) > 1 else ():
            part = [row for row in rows if row["groups"][group] == value]
            made.append(_table(group, value or "none", part, found["metrics"], other, seed))
    return made


def _table(
    group: str, value: str, rows: list[dict[str, Any]], metrics: dict[str, bool], other: Other | None, seed: int
) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    for score in dict.fromkeys(name for row in rows for name in row["scores"]["edits"]):
        systems = {
            system: _mean((row["scores"][system].get(score) for row in rows), seed) for system in rows[0]["scores"]
        }
        better = metrics[score.removesuffix(" inside").removesuffix(" outside")]
        scores[score] = {"higher_is_better": better, "systems": systems}
        if other:
            scores[score]["against"] = _compare(score, rows, other, seed)
    tested = [s["against"] for s in scores.values() if s.get("against", {}).get("p") is not None]
    for against, corrected in zip(tested, holm([a["p"] for a in tested]), strict=True):
        against["holm"] = corrected
    return {"group": group, "value": value, "records": len(rows), "scores": scores}


def _mean(values: Iterable[float | None], seed: int) -> dict[str, Any]:
    known = [v for v in values if v is not None]
    low, high = interval(known, seed) or (None, None)
    return {"n": len(known), "mean": float(np.mean(known)) if known else None, "low": low, "high": high}


def _compare(score: str, rows: list[dict[str, Any]], other: Other, seed: int) -> dict[str, Any]:
    both = [(row["scores"]["edits"].get(score), other.scores.get(row["id"], {}).get(score)) for row in rows]
    pairs = [(ours, theirs) for ours, theirs in both if ours is not None and theirs is not None]
    differences = [ours - theirs for ours, theirs in pairs]
    change = _mean(differences, seed)
    theirs = float(np.mean([t for _, t in pairs])) if pairs else None
    return change | {"mean": theirs, "difference": change["mean"], "p": p_value(differences, seed)}


def grid(table: dict[str, Any], found: dict[str, Any], other: Other | None) -> list[list[str]]:
    """A table as cells, the header row first."""
    first = next(iter(table["scores"].values()))["systems"]
    names = [found["system"] if system == "edits" else system for system in first]
    lines = [["", "n", *names]]
    if other:
        lines[0] += [f"against {other.system}", "difference", "p (Holm)"]
    for score, s in table["scores"].items():
        cells = [_interval(of["mean"], of) for of in s["systems"].values()]
        if other:
            a = s["against"]
            cells += [f"{_number(a['mean'])} (n = {a['n']})", _interval(a["difference"], a), _number(a.get("holm"))]
        lines.append([f"{score} {_arrow(s)}", str(s["systems"]["edits"]["n"]), *cells])
    return lines


def overview(group: list[dict[str, Any]]) -> list[list[str]]:
    """One table for a group with many values: a row per value, with the means of the edits only."""
    lines = [[group[0]["group"], "n", *(f"{name} {_arrow(s)}" for name, s in group[0]["scores"].items())]]
    for table in group:
        means = [_number(s["systems"]["edits"]["mean"]) for s in table["scores"].values()]
        lines.append([table["value"], str(table["records"]), *means])
    return lines


def sections(found: dict[str, Any], other: Other | None) -> list[tuple[str, list[list[str]]]]:
    """Heading and cells of every table in the report."""
    shown = []
    for group in dict.fromkeys(table["group"] for table in found["tables"]):
        part = [table for table in found["tables"] if table["group"] == group]
        if len(part) > MANY:
            shown.append((f"By {group}", overview(part)))
        else:
            for t in part:
                title = f"{t['group']}: {t['value']}" if t["value"] else "All records"
                shown.append((f"{title} ({t['records']})", grid(t, found, other)))
    return shown


def notes(found: dict[str, Any], other: Other | None) -> list[str]:
    """Notes above the tables: counts, networks, and what is missing."""
    said = [
        f"{len(found['records'])} records scored; seed {found['seed']}; reasonbrain {found['versions']['reasonbrain']}",
        "mean [95 % bootstrap interval over records]; ↑ higher is better, ↓ lower is better",
    ]
    if found["networks"]:
        said.append("networks: " + ", ".join(f"{k} {v}" for k, v in found["networks"].items()))
    if other:
        said.append(
            f"difference: this minus {other.system}, same records; p: two-sided paired permutation test, "
            f"Holm's correction"
        )
    if "seconds" in found:
        each = ", ".join(f"{of:.3g} ({name})" for name, of in found["seconds"].items())
        said.append(f"mean seconds of an edit: {each}")
    for name, of in found.get("judged", {}).items():
        lost = f"{len(of['unparsable'])} unparsable answers and {len(of['failed'])} failed calls not scored"
        said.append(f"{name}: {of['judged']} judged, {lost}")
    said += [f"not available: {name} ({reason})" for name, reason in found["unavailable"].items()]
    for what, then in (("missing", "not scored"), ("unreadable", "not scored"), ("stretched", STRETCHED)):
        if ids := list(found[what]):
            more = ", ..." if len(ids) > 20 else ""
            said.append(f"{len(ids)} {what}, {then}: {', '.join(ids[:20])}{more}")
    return said


def markdown(found: dict[str, Any], other: Other | None) -> str:
    """report.md."""
    lines = [f"# {found['benchmark']}: {found['system']}", "", *(f"- {_plain(note)}" for note in notes(found, other))]
    for title, cells in sections(found, other):
        head, *rest = (f"| {' | '.join(_plain(c) for c in line)} |" for line in cells)
        lines += ["", f"## {_plain(title)}", "", head, "|---" * len(cells[0]) + "|", *rest]
    return "\n".join(lines) + "\n"


def check_output(output: Path) -> None:
    """Raises UserError if ``output`` holds a report.json, .md or .html that `reasonbrain eval` did not write."""
    check_ours(output, [f"report.{suffix}" for suffix in SUFFIXES], ("benchmark", "system", "records", "tables"))


def write(found: dict[str, Any], output: Path, records: Records, edits: Edits, other: Other | None) -> None:
    """Writes report.json, report.md and report.html, each completely or not at all.

    Raises UserError for a file that cannot be written."""
    shown = page(found, notes(found, other), sections(found, other), records, edits, other)
    texts = ([json.dumps(found, allow_nan=False)], [markdown(found, other)], shown)
    for suffix, text in zip(SUFFIXES, texts, strict=True):
        with whole_file(output / f"report.{suffix}") as file:
            file.writelines(text)


def _plain(text: str) -> str:
    """The text as one line of Markdown, without HTML and without column separators."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _arrow(score: dict[str, Any]) -> str:
    return "↑" if score["higher_is_better"] else "↓"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _interval(value: float | None, bounds: dict[str, Any]) -> str:
    between = f" [{_number(bounds['low'])}, {_number(bounds['high'])}]" if bounds["low"] is not None else ""
    return _number(value) + between
