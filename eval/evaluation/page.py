"""The report's HTML page: tables and pictures in one file that needs nothing else, worst cases first."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from jinja2 import Environment
from PIL import Image

from reasonbrain.data.record import Records
from reasonbrain.errors import UserError
from reasonbrain.eval.evaluation.edits import Edits

if TYPE_CHECKING:
    from reasonbrain.eval.evaluation.report import Other

SHOWN = 100  # records of a category, the worst
SIDE = 256  # pixels of a thumbnail

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{{ title }}</title>
<style>
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1500px; padding: 0 1rem; }
body { color: #1c2024; background: #fff; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
.bar { position: sticky; top: 0; background: #fff; padding: .6rem 0; border-bottom: 1px solid #ddd; }
label { margin-right: 1.2rem; }
article { padding: 1rem 0; border-bottom: 1px solid #ddd; }
article p { margin: 0 0 .5rem; }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; }
figure { margin: 0; }
img { display: block; width: 220px; image-rendering: auto; background: #eee; }
.small img { image-rendering: pixelated; }
.numbers, figcaption, .id { color: #5a6169; font-size: 12px; }
</style></head><body>
<h1>{{ title }}</h1>
<ul>{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>
{% for heading, cells in sections %}
<details{% if loop.first %} open{% endif %}><summary>{{ heading }}</summary><div class="wide"><table>
<tr>{% for cell in cells[0] %}<th>{{ cell }}</th>{% endfor %}</tr>
{% for line in cells[1:] %}<tr>{% for cell in line %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table></div></details>
{% endfor %}
<h2>Pictures, worst first</h2>
<p>The {{ most }} worst of each category at most; the worst is worst by {{ order }}, in this order.</p>
<div class="bar">
{% for group, values in groups %}<label>{{ group }} <select data-group="{{ group }}"><option value="">all</option>
{% for value in values %}<option>{{ value }}</option>{% endfor %}</select></label>{% endfor %}
<label>worst by <select id="by"><option value="">the order above</option>
{% for score in scores %}<option data-up="{{ better[score]|int }}">{{ score }}</option>{% endfor %}</select></label>
<span id="count"></span></div>
<main>
{% for card in cards %}<article data-groups="{{ card.groups|tojson|forceescape }}"
 data-scores="{{ card.scores|tojson|forceescape }}">
<p>{{ card.instruction }} <span class="id">{{ card.id }}</span></p>
<div class="pictures">
{% for name, uri, small in card.pictures %}<figure{% if small %} class="small"{% endif %}><img loading="lazy"
 src="{{ uri }}" alt="{{ name }}"><figcaption>{{ name }}</figcaption></figure>
{% endfor %}</div>
<div class="numbers">{% for name, value in card.scores.items() %}{{ name }}
 {{ "–" if value is none else "%.4g"|format(value) }}{{ "" if loop.last else " · " }}{% endfor %}</div>
</article>
{% endfor %}</main>
<script>
const main = document.querySelector("main"), by = document.querySelector("#by");
const cards = [...main.children], choices = [...document.querySelectorAll("select[data-group]")];
cards.forEach((card, i) => {
  card.rank = i; card.groups = JSON.parse(card.dataset.groups); card.scores = JSON.parse(card.dataset.scores);
});
function show() {
  const up = by.selectedOptions[0].dataset.up === "1" ? 1 : -1;
  const key = card => !by.value ? card.rank : card.scores[by.value] == null ? Infinity : up * card.scores[by.value];
  let count = 0;
  for (const card of cards) {
    card.hidden = choices.some(c => c.value && card.groups[c.dataset.group] !== c.value);
    count += !card.hidden;
  }
  main.append(...cards.sort((a, b) => key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : a.rank - b.rank));
  document.querySelector("#count").textContent = count + " records";
}
[...choices, by].forEach(c => c.addEventListener("change", show));
show();
</script></body></html>
"""


def page(
    found: dict[str, Any],
    notes: list[str],
    sections: list[tuple[str, list[list[str]]]],
    records: Records,
    edits: Edits,
    other: Other | None,
) -> Iterator[str]:
    """The page in pieces; pictures are read one record at a time."""
    worst = worst_first(found["records"], found["metrics"])
    groups = {g: sorted({row["groups"][g] for row in worst} - {""}) for g in worst[0]["groups"]}
    scores = next(iter(found["tables"]))["scores"]
    return (
        Environment(autoescape=True)
        .from_string(TEMPLATE)
        .generate(
            title=f"{found['benchmark']}: {found['system']}",
            notes=notes,
            sections=sections,
            most=SHOWN,
            order=", ".join(found["metrics"]),
            groups=[(g, values) for g, values in groups.items() if values],
            scores=list(scores),
            better={name: s["higher_is_better"] for name, s in scores.items()},
            cards=(card(row, found["system"], records, edits, other) for row in worst),
        )
    )


def worst_first(rows: list[dict[str, Any]], metrics: dict[str, bool]) -> list[dict[str, Any]]:
    """The worst ``SHOWN`` rows of each category, by the first metric, then the next; unknown values last."""

    def badness(row: dict[str, Any]) -> list[float]:
        values = [(row["scores"]["edits"][name], higher) for name, higher in metrics.items()]
        return [float("inf") if v is None else v if higher else -v for v, higher in values]

    taken: Counter[str] = Counter()
    shown = []
    for row in sorted(rows, key=badness):
        category = row["groups"]["category"]
        taken[category] += 1
        if taken[category] <= SHOWN:
            shown.append(row)
    return shown


def card(row: dict[str, Any], system: str, records: Records, edits: Edits, other: Other | None) -> dict[str, Any]:
    """What the template shows of a record."""
    record = records[row["index"]]
    pictures = {"source": record.source, "target": record.target, system: edits(record)}
    if other and other.edits:
        try:
            pictures[f"against {other.system}"] = other.edits(record)
        except UserError:  # it was said in the other report
            pass
    shown = [(name, _uri(image), image.width < SIDE) for name, image in pictures.items() if image]
    return {**row, "scores": row["scores"]["edits"], "pictures": shown}


def _uri(image: Image.Image) -> str:
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
