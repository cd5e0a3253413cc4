"""A gallery of a data set: one self-contained HTML file with pages and a filter by category.

reasonbrain data show data/magicbrush -o gallery.html
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tqdm import tqdm

from reasonbrain.data.reader import Reader
from reasonbrain.errors import UserError
from reasonbrain.utils.files import whole_file
from reasonbrain.utils.gallery import Card, in_threads, render, thumbnail
from reasonbrain.utils.text import printable


def show(reader: Reader, output: Path, limit: int) -> None:
    """Writes the gallery of ``limit`` records, evenly spread. A record that cannot be read is shown with the reason.

    Raises UserError if ``output`` cannot be written or is a file of the data."""
    reader.check_output(output)
    numbers = range(0, len(reader), max(1, -(-len(reader) // limit)))
    title = f"{reader.name}: {len(numbers)} of {len(reader)} records"
    cards = tqdm(in_threads(partial(card, reader), numbers), total=len(numbers), desc="records", disable=None)
    with whole_file(output) as page:
        page.writelines(render(title, cards))


def card(reader: Reader, index: int) -> Card:
    """A record as the page shows it."""
    try:
        record = reader[index]
    except UserError as e:
        return Card(f"record {index}", groups={"category": ""}, wrong=printable(str(e)))
    pictures = [(name, image) for name in ("source", "target", "mask") if (image := getattr(record, name))]
    more = [f"objects: {', '.join(record.objects)}"] if record.objects else []
    more += [f"sentence: {record.sentence}"] if record.sentence else []
    captions = zip(("source", "target"), record.captions or ("", ""), strict=True)
    more += [f"caption of the {name}: {text}" for name, text in captions if text]
    return Card(
        record.id,
        [(name, thumbnail(image)) for name, image in pictures],
        list(record.instructions),
        {"category": record.category},
        more=[*more, *(f"{key}: {value}" for key, value in record.notes.items())],
    )
