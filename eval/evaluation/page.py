"""The HTML page of a report: tables and pictures in one file, worst cases first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from reasonbrain.data.record import Records
from reasonbrain.errors import UserError, reason
from reasonbrain.eval.evaluation.against import Other
from reasonbrain.eval.evaluation.edits import Edits
from reasonbrain.utils.gallery import Card, render, thumbnail

SHOWN = 100  # maximum number of records per category


def page(
    found: dict[str, Any],
    notes: list[str],
    sections: list[tuple[str, list[list[str]]]],
    records: Records,
    edits: Edits,
    other: Other | None,
) -> Iterator[str]:
    """Yields the page in pieces; pictures are read one record at a time."""
    worst = worst_first(found["records"], found["metrics"])
    scores = next(iter(found["tables"]))["scores"]
    return render(
        f"{found['benchmark']}: {found['system']}",
        (card(row, found["system"], records, edits, other) for row in worst),
        notes,
        sections,
        f"At most {SHOWN} records per category, worst first: by {', then '.join(found['metrics'])}.",
        {name: score["higher_is_better"] for name, score in scores.items()},
    )


def worst_first(rows: list[dict[str, Any]], metrics: dict[str, bool]) -> list[dict[str, Any]]:
    """The worst ``SHOWN`` rows of each category, by the first metric, then by the next. Rows without a value come
    last."""

    def badness(row: dict[str, Any]) -> list[float]:
        values = [(row["scores"]["edits"][name], higher) for name, higher in metrics.items()]
        return [float("inf") if v is None else v if higher else -v for v, higher in values]

    taken: Counter[str] = Counter()
    shown = []
    for row in sorted(rows, key=badness):
        category = row["groups"].get("category", "")
        taken[category] += 1
        if taken[category] <= SHOWN:
            shown.append(row)
    return shown


def card(row: dict[str, Any], system: str, records: Records, edits: Edits, other: Other | None) -> Card:
    """The card of a scored record."""
    try:
        record = records[row["index"]]
        pictures = {"source": record.source, "target": record.target, system: edits(record)}
    except Exception as e:  # it has become unreadable since it was scored
        return Card(row["id"], (), [row["instruction"]], row["groups"], row["scores"]["edits"], wrong=reason(e))
    if other and other.edits:
        try:
            pictures[f"against {other.system}"] = other.edits(record)
        except UserError:  # the other report lists it as unreadable
            pass
    shown = [(name, thumbnail(image)) for name, image in pictures.items() if image]
    return Card(row["id"], shown, [row["instruction"]], row["groups"], row["scores"]["edits"])
