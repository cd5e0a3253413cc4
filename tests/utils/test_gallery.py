"""HTML galleries: escaping, order, lazy rendering and thumbnails."""

import base64
import io
import threading

import numpy as np
from galleries import Page
from PIL import Image

from reasonbrain.utils.gallery import SIDE, Card, in_threads, render, thumbnail

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--<script> {{ 7 * 7 }}"


def opened(uri):
    kind, _, data = uri.removeprefix("data:image/").partition(";base64,")
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert image.format.lower() == kind
    return image


def test_texts_cannot_become_markup():
    card = Card(EVIL, [(EVIL, thumbnail(Image.new("RGB", (4, 4))))], [EVIL], {EVIL: EVIL}, {EVIL: None}, [EVIL], EVIL)
    page = Page("".join(render(EVIL, [card], [EVIL], [(EVIL, [[EVIL], [EVIL]])], EVIL, {EVIL: True})))
    assert page.text.count(EVIL) == 1 + 1 + 1 + 1 + 2 + 1  # title, heading, note, section, cells, about
    (shown,) = page.cards
    for name in ("id", "words", "groups", "scores", "more", "wrong"):
        assert shown[name] == getattr(card, name)
    assert page.better == {EVIL: True}


def test_cards_are_taken_one_at_a_time_and_keep_their_order():
    """Scores keep their order, too, and are not sorted by name."""
    taken = []

    def cards():
        for i in range(3):
            taken.append(i)
            yield Card(str(i), scores={"b": 1.0, "a": None})

    pieces = render("x", cards())
    text = ""
    while '"id": "0"' not in text:
        text += next(pieces)
    assert taken[-1] < 2
    page = Page(text + "".join(pieces))
    assert [card["id"] for card in page.cards] == ["0", "1", "2"]
    assert list(page.cards[0]["scores"]) == ["b", "a"]
    assert Page("".join(render("x", []))).cards == []


def test_cards_made_by_threads_keep_their_order_and_do_not_run_ahead():
    asked, threads = [], set()

    def numbers():
        for i in range(1000):
            asked.append(i)
            yield i

    def make(i):
        threads.add(threading.current_thread())
        return Card(str(i))

    cards = in_threads(make, numbers())
    assert [next(cards).id for _ in range(100)] == [str(i) for i in range(100)]
    assert len(asked) < 300 and threading.main_thread() not in threads


def test_thumbnails():
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 256, (64, 40, 3), dtype=np.uint8))
    assert opened(thumbnail(small)).tobytes() == small.tobytes()  # lossless
    for mode, size in (("RGB", (1000, 500)), ("L", (500, 1000)), ("RGBA", (300, 300))):
        image = Image.new(mode, size)
        shown = opened(thumbnail(image))
        assert max(shown.size) == SIDE and shown.width * size[1] == shown.height * size[0] and image.size == size
