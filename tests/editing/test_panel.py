"""The panel: its dimensions, the content of its tiles, and that nothing is drawn outside its place."""

import numpy as np
import pytest
from PIL import Image

from reasonbrain.editing import panel as P
from reasonbrain.editing.panel import make_panel
from reasonbrain.modules.data.reasonmini import make

WIDTH = 2 * P.MARGIN + 4 * P.TILE + 3 * P.GAP
TOP = P.MARGIN + P.CAPTION + 12  # of the tiles


def plain(size=(64, 64), color=(90, 140, 60)):
    return Image.new("RGB", size, color)


def panel(
    source=None, result=None, regions=None, focus=None, instruction="Melt it.", objects=("ice",), reasoning="It melts."
):
    source = source or plain()
    return make_panel(source, result or source, regions, focus, instruction, objects, reasoning)


def tile(image, i, height=P.TILE):
    left = P.MARGIN + i * (P.TILE + P.GAP)
    return np.asarray(image)[TOP : TOP + height, left : left + P.TILE].astype(int)


def below(image, height=P.TILE):
    return np.asarray(image)[TOP + height + 2 :].astype(int)


def ink(array):
    """Where anything is drawn on the paper."""
    return np.abs(array - np.array(P.PAPER)).max(-1) > 8


def assert_margins_are_clean(image):
    drawn = ink(np.asarray(image).astype(int))
    rows, columns = np.where(drawn.any(1))[0], np.where(drawn.any(0))[0]
    assert columns[0] >= P.MARGIN - 2 and columns[-1] <= WIDTH - P.MARGIN + 1
    assert rows[0] >= P.MARGIN - 8 and rows[-1] <= image.height - P.MARGIN / 2
    for i in range(3):  # between the tiles too
        left = P.MARGIN + i * (P.TILE + P.GAP) + P.TILE + 2
        assert not drawn[TOP - 2 : TOP + 40, left : left + P.GAP - 4].any()


def test_a_reasonmini_record_end_to_end():
    sample = make("test", 14, 7)
    labels = np.arange(64)[:, None] // 16 * 4 + np.arange(64)[None] // 16 - 1
    image = panel(sample.source, sample.target, labels, np.eye(8), sample.instruction, sample.objects, sample.outcome)
    assert image.mode == "RGB" and image.width == WIDTH
    assert_margins_are_clean(image)
    for i, picture in ((0, sample.source), (3, sample.target)):
        expected = np.asarray(picture.resize((P.TILE, P.TILE), Image.Resampling.BICUBIC)).astype(int)
        assert np.array_equal(tile(image, i), expected)


@pytest.mark.parametrize(
    "size, fitted",
    [
        ((64, 64), (320, 320)),
        ((2000, 1000), (320, 160)),
        ((30, 60), (160, 320)),
        ((1, 1), (320, 320)),
        ((1000, 1), (320, 1)),
    ],
)
def test_pictures_of_any_size_keep_their_aspect_ratio(size, fitted):
    regions = np.zeros(size[::-1], int)
    image = panel(plain(size), regions=regions, focus=np.ones((2, 3)))
    height = max(fitted[1], P.MIN_HEIGHT)
    assert_margins_are_clean(image)
    source = (tile(image, 0, height) == (90, 140, 60)).all(-1)
    rows, columns = np.where(source.any(1))[0], np.where(source.any(0))[0]
    assert (len(columns), len(rows)) == fitted
    assert abs(columns[0] - (P.TILE - 1 - columns[-1])) <= 1 and abs(rows[0] - (height - 1 - rows[-1])) <= 1  # centred


def test_the_result_may_have_another_shape_than_the_source():
    image = panel(plain((64, 32)), plain((10, 40), (200, 0, 0)), focus=np.ones((2, 2)))
    assert_margins_are_clean(image)
    assert (tile(image, 3) == (200, 0, 0)).all(-1).sum() == 80 * 320
    assert (tile(image, 0) == (90, 140, 60)).all(-1).sum() == 320 * 160


def test_regions_have_colours_and_borders_and_the_rest_is_the_source():
    labels = np.full((64, 64), -1)
    labels[:32, :32], labels[:32, 32:] = 0, 7
    grey = (120, 120, 120)
    shown = tile(panel(plain(color=grey), regions=labels), 1)
    first, second, outside = shown[80, 80], shown[80, 240], shown[240, 160]
    assert np.array_equal(outside, grey)
    assert np.abs(first - outside).max() > 20 and np.abs(second - outside).max() > 20
    assert np.abs(first - second).max() > 20
    assert np.array_equal(first, np.round(0.6 * np.array(grey) + 0.4 * 255 * P.AREAS[0]))
    assert (shown[80, 156:164] == 255).all(-1).any(), "no border between the regions"


def test_the_heat_map_follows_the_weights():
    focus = np.zeros((4, 8))
    focus[0, 7] = 3.0
    shown = tile(panel(focus=focus), 2)
    red_over_blue = shown[..., 0] - shown[..., 2]
    assert red_over_blue[20, 300] > 40 and red_over_blue[300, 20] < 10
    assert np.abs(np.diff(shown, axis=1)).max() < 30, "the heat map has hard edges"
    assert np.array_equal(shown, tile(panel(focus=focus * 100), 2)), "only relative weight counts"


@pytest.mark.parametrize("regions, focus", [(None, None), (np.full((64, 64), -1), np.zeros((4, 4)))])
def test_missing_maps_say_none(regions, focus):
    image = panel(regions=regions, focus=focus)
    for i in (1, 2):
        shown = tile(image, i)
        card = (np.abs(shown - np.array(P.CARD)) <= 1).all(-1)
        assert card.mean() > 0.98
        written = np.where(~card[5:-5, 5:-5])
        assert len(written[0]) > 50
        assert 140 < written[0].mean() < 180 and 140 < written[1].mean() < 180  # in the middle


@pytest.mark.parametrize("text", ["word " * 100, "x" * 700, "Wörter — " * 60, "i" * 20_000, "a b " * 30_000])
def test_long_texts_wrap_inside(text):
    short, long = panel(), panel(instruction=text)
    assert_margins_are_clean(long)
    extra = (long.height - short.height) / P.LINE
    assert extra == int(extra) and 0 < extra < P.MAX_LINES
    rows = ink(below(long)).any(1)
    assert rows[: 27 * int(extra)].any()


def test_wrapping_keeps_every_word_and_truncation_is_marked():
    font = P.ImageFont.load_default(P.TEXT)
    text = " ".join(f"word{i}" for i in range(120))
    lines = P._wrap(text, font, 1000)
    assert " ".join(lines) == text and max(map(font.getlength, lines)) <= 1000
    assert "".join(P._wrap("x" * 700, font, 1000)) == "x" * 700
    cut = P._wrap(text * 20, font, 1000)
    assert len(cut) == P.MAX_LINES and cut[-1].endswith(" ...") and font.getlength(cut[-1]) <= 1000


def test_empty_texts_say_none():
    assert panel(objects=[], reasoning=None).size == panel().size
    assert P._wrap(" \n ", P.ImageFont.load_default(P.TEXT), 1000) == []


def test_the_texts_are_drawn():
    """Each text changes its own lines only."""
    first = below(panel())
    changes = (panel(instruction="Burn it."), panel(objects=["cup"]), panel(reasoning="It burns."))
    bands = [np.where((below(p) != first).any((1, 2)))[0] for p in changes]
    assert all(len(b) for b in bands)
    assert bands[0][-1] < bands[1][0] and bands[1][-1] < bands[2][0]
