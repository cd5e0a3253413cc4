"""HTML galleries. A gallery is one file that loads nothing else, with filters, sorting and pagination.

with whole_file(out / "gallery.html") as file:
    file.writelines(render("Results", in_threads(card_of, results)))

Texts are embedded as JSON and inserted as text nodes, so no text can become markup. The templates are in templates/.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from io import BytesIO
from itertools import islice
from typing import Any, TypeVar

from PIL import Image

SIDE = 256  # pixels of a thumbnail's longer side
PLAIN = 128  # pixels of the longer side up to which a picture is stored losslessly
AHEAD = 64  # cards made ahead

Item = TypeVar("Item")


@dataclass
class Card:
    """What a gallery shows of one record. Empty texts are left out."""

    id: str
    pictures: Sequence[tuple[str, str]] = ()  # caption and data URI, see ``thumbnail``
    words: Sequence[str] = ()  # paragraphs
    groups: Mapping[str, str] = field(default_factory=dict)  # values to filter by; the same names on every card
    scores: Mapping[str, float | None] = field(default_factory=dict)
    more: Sequence[str] = ()  # details in small print
    wrong: str = ""  # an error


def render(
    title: str,
    cards: Iterable[Card],
    notes: Sequence[str] = (),
    sections: Sequence[tuple[str, list[list[str]]]] = (),
    about: str = "",
    better: Mapping[str, bool] | None = None,
) -> Iterator[str]:
    """Yields the page in pieces; cards are taken one at a time.

    ``notes``: a list under the title. ``sections``: headings and tables, as cells with the header row first. ``about``:
    a sentence about the cards and their order. ``better``: the scores to sort by, and whether higher is better."""
    template = environment().get_template("gallery.html")
    pieces = template.generate(
        title=title, notes=notes, sections=sections, about=about, better=better or {}, cards=map(vars, cards)
    )
    yield from map(str, pieces)  # plain text, not Markup, which would escape what is added to it


def in_threads(make: Callable[[Item], Card], items: Iterable[Item]) -> Iterator[Card]:
    """Yields ``make(item)`` of each item in order, computed by several threads. At most ``AHEAD`` cards are in
    memory."""
    items = iter(items)
    with ThreadPoolExecutor() as pool:
        while part := list(islice(items, AHEAD)):
            yield from pool.map(make, part)


def thumbnail(image: Image.Image) -> str:
    """The picture as a data URI, at most ``SIDE`` pixels on its longer side."""
    kind = "png" if max(image.size) <= PLAIN else "jpeg"
    image = image.convert("RGB")
    image.thumbnail((SIDE, SIDE))
    return data_uri(image, kind)


def data_uri(image: Image.Image, kind: str) -> str:
    """The picture as a data URI, encoded as ``kind``: png or jpeg."""
    file = BytesIO()
    image.save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


@cache
def environment() -> Any:
    """The Jinja environment with the templates. Values are escaped for HTML."""
    from jinja2 import Environment, PackageLoader

    made = Environment(loader=PackageLoader("reasonbrain.utils"), autoescape=True)
    made.policies["json.dumps_kwargs"] = {}  # keys keep their order
    return made
