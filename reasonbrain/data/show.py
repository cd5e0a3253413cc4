"""A data set to look at: one HTML file that needs nothing else, paged, to be filtered by category.

reasonbrain data show data/magicbrush -o gallery.html
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from reasonbrain.data.reader import Reader
from reasonbrain.errors import UserError
from reasonbrain.utils.files import whole_file

SIDE = 224  # pixels of a thumbnail's longest side

# texts come into the page as textContent only, and it may load nothing
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Records</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; color: #222; background: #fafafa }
nav { position: sticky; top: 0; background: #fafafa; padding: .5rem 0; display: flex; gap: .75rem; align-items: center }
#records { display: grid; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); gap: 1rem }
article { background: #fff; border: 1px solid #ddd; border-radius: 6px; padding: .75rem }
article p { margin: .25rem 0; overflow-wrap: anywhere } .quiet { color: #777; font-size: 13px } .bad { color: #b00020 }
.row { display: flex; gap: .5rem; flex-wrap: wrap } figure { margin: 0 }
img { width: 224px; height: 224px; max-width: 100%; object-fit: contain; display: block }
</style></head><body>
<nav><b id="title"></b><select id="category"></select>
<button id="back">&larr;</button><span id="page"></span><button id="next">&rarr;</button></nav>
<div id="records"></div>
<script type="application/json" id="data">"""
SCRIPT = """</script>
<script>
const all = JSON.parse(document.getElementById("data").textContent), perPage = 24
const at = id => document.getElementById(id)
let page = 0
function add(parent, tag, text, cls) {
  const made = parent.appendChild(document.createElement(tag))
  if (text !== undefined) made.textContent = text
  if (cls) made.className = cls
  return made
}
function draw() {
  const wanted = at("category").value
  const chosen = all.records.filter(r => !wanted || r.category === wanted)
  const last = Math.max(0, Math.ceil(chosen.length / perPage) - 1)
  page = Math.min(Math.max(page, 0), last)
  at("page").textContent = `page ${page + 1} of ${last + 1}, ${chosen.length} records`
  at("back").disabled = page === 0
  at("next").disabled = page === last
  at("records").replaceChildren()
  for (const record of chosen.slice(page * perPage, (page + 1) * perPage)) {
    const card = add(at("records"), "article")
    const row = add(card, "div", undefined, "row")
    for (const [name, source] of record.pictures) {
      const figure = add(row, "figure")
      add(figure, "img").src = source
      add(figure, "figcaption", name, "quiet")
    }
    for (const words of record.words) add(card, "p", words)
    if (record.wrong) add(card, "p", record.wrong, "bad")
    add(card, "p", [record.id, record.category, ...record.more].filter(Boolean).join(" \\u00b7 "), "quiet")
  }
}
at("title").textContent = all.title
add(at("category"), "option", "all categories").value = ""
for (const name of [...new Set(all.records.map(r => r.category))].sort()) if (name) add(at("category"), "option", name)
at("category").onchange = () => { page = 0; draw() }
at("back").onclick = () => { page--; draw() }
at("next").onclick = () => { page++; draw() }
draw()
</script></body></html>
"""


def show(reader: Reader, output: Path, limit: int) -> None:
    """Writes the gallery of ``limit`` records, evenly spread. A record that cannot be read is shown with the reason.

    Raises UserError where ``output`` cannot be written."""
    numbers = range(0, len(reader), max(1, -(-len(reader) // limit)))
    title = f"{reader.name}: {len(numbers)} of {len(reader)} records"
    write_page(output, title, partial(card, reader), numbers, tqdm(total=len(numbers), desc="records", disable=None))


def write_page(output: Path, title: str, make: Callable[[Any], dict[str, Any]], items: Iterable[Any], bar: Any) -> None:
    """Writes a gallery of what ``make`` makes of items: {"id", "category", "words", "pictures": [(name, data URI)],
    "more", "wrong"}. Raises UserError where ``output`` cannot be written."""
    items, comma = iter(items), "\n"
    with whole_file(output) as file, ThreadPoolExecutor() as pool, bar:
        file.write(f'{PAGE}{{"title": {_closed(json.dumps(title))}, "records": [')
        while part := list(islice(items, 64)):  # no more than these are in memory
            for made in pool.map(make, part):
                file.write(comma + _closed(json.dumps(made)))
                comma = ",\n"
                bar.update()
        file.write("]}" + SCRIPT)


def card(reader: Reader, index: int) -> dict[str, Any]:
    """A record as the page takes it."""
    try:
        record = reader[index]
    except UserError as e:
        return {"id": f"record {index}", "category": "", "words": [], "pictures": [], "more": [], "wrong": str(e)}
    pictures = [(name, getattr(record, name)) for name in ("source", "target", "mask")]
    more = [
        *(record.objects or []),
        *filter(None, record.captions or ()),
        *(f"{k}: {v}" for k, v in record.notes.items()),
    ]
    return {
        "id": record.id,
        "category": record.category,
        "words": list(record.instructions),
        "pictures": [(name, thumbnail(image)) for name, image in pictures if image],
        "more": more,
        "wrong": "",
    }


def thumbnail(image: Image.Image) -> str:
    """A data URI."""
    image = image.copy()
    image.thumbnail((SIDE, SIDE))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _closed(text: str) -> str:
    """JSON that cannot end the script element it stands in."""
    return text.replace("<", "\\u003c")
