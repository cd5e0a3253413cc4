"""The report of `reasonbrain ablate`: scores with differences to the full model, the cost of each variant, pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reasonbrain.data.record import Records
from reasonbrain.errors import UserError
from reasonbrain.eval.ablation.plan import Study
from reasonbrain.eval.evaluation.edits import Edits
from reasonbrain.eval.evaluation.stats import mean_interval
from reasonbrain.train.validation import draw
from reasonbrain.utils.files import check_name, whole_file
from reasonbrain.utils.images import save_image
from reasonbrain.utils.reading import check_ours

PICTURES = 8  # number of records in the picture
FULL = "full model"
LOSS = "validation loss"
COSTS = {  # heading, divisor of a run's value, and format
    "parameters": ("parameters, million", 1e6, ".3f"),
    "trained": ("of these trained", 1e6, ".3f"),
    "flops": ("GFLOP per step", 1e9, ".1f"),
    "gib": ("peak memory, GiB", 1, ".2f"),
    "seconds_per_step": ("seconds per step", 1, ".3f"),
}

Results = Mapping[tuple[str, int], dict[str, Any]]  # (variant, seed) -> all numbers of a run, or why it "failed"


def summary(studies: Sequence[Study], results: Results) -> list[dict[str, Any]]:
    """One row per variant, the full model first, as JSON values; ``records`` is the number of scored records by seed::

        {"variant": "REMOVE CME", "seeds": [0, 1, 2], "failed": {}, "records": {"0": 80, ...}, "scores": {"outcome": {
            "mean": 0.61, "low": 0.55, "high": 0.67, "difference": {"mean": -0.1, "low": -0.2, "high": 0.0, "n": 3}}},
         "costs": {"parameters": 9.9e6, ...}}

    ``low`` and ``high`` bound the 95 % interval of the mean over seeds by Student's t. Differences are between runs of
    the same seed. ``costs`` are means over seeds; ``gib`` is the maximum."""
    rows = []
    for variant in dict.fromkeys(variant for variant, _ in results):
        runs = {seed: found for (v, seed), found in results.items() if v == variant}
        good = {seed: found for seed, found in runs.items() if "failed" not in found}
        study = next((s for s in studies if s.name == variant), None)
        metrics = study.metrics if study else dict.fromkeys(m for s in studies for m in s.metrics)
        scores = {}
        for metric in [*metrics, LOSS] if good else []:
            scores[metric] = mean_interval([found[metric] for found in good.values()])
            full = {seed: results[FULL, seed].get(metric) for seed in good}
            changes = [good[seed][metric] - value for seed, value in full.items() if value is not None]
            if study and changes:
                scores[metric]["difference"] = mean_interval(changes)
        costs = {name: sum(found[name] for found in good.values()) / len(good) for name in COSTS if good}
        if good:
            costs["gib"] = max(found["gib"] for found in good.values())
        failed = {str(seed): found["failed"] for seed, found in runs.items() if "failed" in found}
        scored = {str(seed): found["records"] for seed, found in good.items()}
        row = {"variant": variant, "seeds": list(good), "failed": failed, "records": scored}
        rows.append(row | {"scores": scores, "costs": costs})
    return rows


def _number(of: dict[str, Any] | None, sign: str = "") -> str:
    if of is None:
        return ""
    between = "" if of["low"] is None else f" [{of['low']:{sign}.3g}, {of['high']:{sign}.3g}]"
    return f"{of['mean']:{sign}.3g}{between}"


def _lines(cells: list[list[str]]) -> list[str]:
    head, *rest = (f"| {' | '.join(line)} |" for line in cells)
    return [head, "|---" * len(cells[0]) + "|", *rest]


def markdown(title: str, budget: dict[str, Any], rows: list[dict[str, Any]], columns: list[str], records: int) -> str:
    """The two tables. ``columns``: the columns of the picture, from left to right."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["scores"]))
    scores = [["", "seeds", *(h for m in metrics for h in (m, "difference"))]]
    costs = [["", *(heading for heading, _, _ in COSTS.values())]]
    for row in rows:
        of = row["scores"]
        pairs = [(_number(of.get(m)), _number(of.get(m, {}).get("difference"), "+")) for m in metrics]
        scores.append([row["variant"], str(len(row["seeds"])), *(cell for pair in pairs for cell in pair)])
        if row["costs"]:
            costs.append([row["variant"], *(f"{row['costs'][n] / unit:{f}}" for n, (_, unit, f) in COSTS.items())])
    said = [
        f"- every run: `{budget['config']}` {' '.join(f'`{word}`' for word in budget['overrides'])}",
        f"- {records} records of {budget['benchmark']}; means over seeds, [95 % interval over seeds, Student's t]",
        "- difference: from the full model of the same seed; validation loss: 16 records, the last weights, not the "
        "average",
        "- GFLOP: counted, forward and backward; memory and time: measured during the run, which other load may affect",
    ]
    failed = [
        f"- failed: {row['variant']}, seed {seed}: {reason}" for row in rows for seed, reason in row["failed"].items()
    ]
    failed += [
        f"- {row['variant']}, seed {seed}: only {count} records could be edited and scored"
        for row in rows
        for seed, count in row["records"].items()
        if count < records
    ]
    shown = [f"{title}.png, from left to right, first seed: {', '.join(columns)}"] if columns else []
    lines = [f"# Ablation: {title}", "", *said, *failed, "", *_lines(scores), "", *_lines(costs), "", *shown]
    return "\n".join(lines).rstrip() + "\n"


def check_output(title: str, out: Path) -> None:
    """Raises UserError if ``out`` holds a <title>.json, .md or .png that `reasonbrain ablate` did not write,
    and like ``check_name``."""
    check_name(out)
    check_ours(out, [f"{title}.{suffix}" for suffix in ("json", "md", "png")], ("budget", "rows", "runs"))


def write(
    title: str,
    budget: dict[str, Any],
    studies: Sequence[Study],
    results: Results,
    records: Records,
    edits: Mapping[str, Edits],
    out: Path,
) -> Path:
    """Writes ``out``/<title>.json, .md and .png, and returns the path of the .md. ``edits``: by variant.

    Raises UserError for a file that cannot be written."""
    rows = summary(studies, results)
    pictures = []
    for number in range(min(PICTURES, len(records)) if edits else 0):
        try:
            record = records[number]
            shown = [record.source, record.target, *(of(record) for of in edits.values())]
            pictures.append((record.instructions[0], [picture for picture in shown if picture]))
        except Exception:  # the report has the reason why it was not measured
            continue
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UserError(f"output '{out}': {e.strerror}") from None
    runs = [{"variant": variant, "seed": seed, **found} for (variant, seed), found in results.items()]
    with whole_file(out / f"{title}.json") as file:
        json.dump({"budget": budget, "rows": rows, "runs": runs}, file, indent=1)
    if pictures:
        save_image(draw(pictures), out / f"{title}.png")
    table = out / f"{title}.md"
    with whole_file(table) as file:
        file.write(markdown(title, budget, rows, ["source", "true target", *edits] if edits else [], len(records)))
    return table
