"""The panel: one picture that explains an edit.

Four tiles in a row: source, regions found, where the model looked, result. Below them the instruction, the objects and
the reasoning.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from math import ceil

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage.color import label2rgb
from skimage.segmentation import mark_boundaries

# lengths are in pixels
TILE = 320  # longest side of a tile
GAP, MARGIN = 20, 32
CAPTION, TEXT = 17, 18  # font sizes
LINE = 27  # line height
LABEL_WIDTH = 124
MIN_HEIGHT = 48  # of the row of tiles
MAX_LINES = 12  # per text
PAPER, CARD, EDGE = (251, 250, 247), (240, 238, 233), (206, 203, 196)
INK, FAINT = (38, 40, 46), (126, 126, 124)
AREAS = (
    np.array(  # colours of the regions; consecutive ones are easy to tell apart
        [
            (230, 25, 75),
            (60, 180, 75),
            (67, 99, 216),
            (245, 130, 49),
            (145, 30, 180),
            (66, 212, 244),
            (240, 50, 230),
            (255, 225, 25),
            (70, 153, 144),
            (154, 99, 36),
        ]
    )
    / 255
)
HEAT = np.array([(20, 12, 70), (125, 20, 130), (225, 60, 80), (252, 160, 40), (255, 250, 150)]) / 255  # low to high

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def make_panel(
    source: Image.Image,
    result: Image.Image,
    regions: np.ndarray | None,
    focus: np.ndarray | None,
    instruction: str,
    objects: Sequence[str],
    reasoning: str | None,
) -> Image.Image:
    """The panel as an RGB picture, 1404 pixels wide; the height depends on the texts.

    regions: int [H, W], a label map of the source (-1: no region). focus: [rows, columns], weights >= 0 on the patches
    of the source. If a map is None or empty, its tile says "none".

    Pictures of any size are scaled into tiles of ``TILE`` pixels and keep their aspect ratio. A text of more than
    ``MAX_LINES`` lines is truncated with "...". Pillow's font has the Latin alphabet without accents: accents are
    dropped, other scripts show as boxes."""
    base = _fit(source)
    tiles = [
        ("Source", base),
        ("Regions found", None if regions is None or (regions < 0).all() else _region_tile(base, regions)),
        ("Where the model looked", None if focus is None or not focus.any() else _focus_tile(base, focus)),
        ("Result", _fit(result)),
    ]
    width = 2 * MARGIN + len(tiles) * TILE + (len(tiles) - 1) * GAP
    height = max([MIN_HEIGHT] + [tile.height for _, tile in tiles if tile])
    font = ImageFont.load_default(TEXT)
    texts = [
        ("Instruction", instruction),
        ("Objects", ", ".join(objects)),
        ("Reasoning", reasoning or ""),
    ]
    rows = [(label, _wrap(text, font, width - 2 * MARGIN - LABEL_WIDTH) or ["none"]) for label, text in texts]
    top = MARGIN + CAPTION + 12
    below = top + height + 28
    lines = sum(len(wrapped) for _, wrapped in rows)
    panel = Image.new("RGB", (width, below + lines * LINE + (len(rows) - 1) * 8 + MARGIN - 6), PAPER)
    draw = ImageDraw.Draw(panel)
    for i, (caption, tile) in enumerate(tiles):
        _draw_tile(panel, draw, caption, tile, (MARGIN + i * (TILE + GAP), top), height)
    y = below
    for label, wrapped in rows:
        _bold(draw, (MARGIN, y), label, font)
        for line in wrapped:
            draw.text((MARGIN + LABEL_WIDTH, y), line, FAINT if wrapped == ["none"] else INK, font)
            y += LINE
        y += 8
    return panel


def _draw_tile(
    panel: Image.Image,
    draw: ImageDraw.ImageDraw,
    caption: str,
    tile: Image.Image | None,
    at: tuple[int, int],
    height: int,
) -> None:
    """Draws a card of width TILE at ``at``, with its caption above and the tile, or the word "none", in its centre."""
    x, y = at
    _bold(draw, (x, y - CAPTION - 10), caption, ImageFont.load_default(CAPTION))
    draw.rectangle((x - 1, y - 1, x + TILE, y + height), CARD, EDGE)
    if tile:
        panel.paste(tile, (x + (TILE - tile.width) // 2, y + (height - tile.height) // 2))
    else:
        draw.text((x + TILE // 2, y + height // 2), "none", FAINT, ImageFont.load_default(TEXT), anchor="mm")


def _bold(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, font: Font) -> None:
    """The bundled font has one weight; a thin stroke makes it bold."""
    draw.text(at, text, INK, font, stroke_width=0.4, stroke_fill=INK)


def _fit(image: Image.Image) -> Image.Image:
    """Scales a picture so that its longest side has TILE pixels."""
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    filter = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS  # Lanczos rings when upscaling
    return image.convert("RGB").resize(size, filter)


def _region_tile(base: Image.Image, regions: np.ndarray) -> Image.Image:
    """Each region in its own colour, with a light border."""
    labels = np.asarray(Image.fromarray(regions.astype(np.int32) + 1).resize(base.size, Image.Resampling.NEAREST))
    tinted = label2rgb(labels, np.asarray(base), AREAS, alpha=0.4, bg_label=0, bg_color=None, saturation=1)
    return _image(mark_boundaries(tinted, labels, color=(1, 1, 1), mode="inner"))


def _focus_tile(base: Image.Image, focus: np.ndarray) -> Image.Image:
    """The source in grey under a smooth heat map, brighter and less transparent where the weight is higher."""
    weights = Image.fromarray((focus / focus.max()).astype(np.float32))
    heat = np.asarray(weights.resize(base.size, Image.Resampling.BICUBIC)).clip(0, 1)[..., None]
    ramp = np.linspace(0, 1, len(HEAT))
    glow = np.stack([np.interp(heat[..., 0], ramp, HEAT[:, c]) for c in range(3)], -1)
    grey = np.asarray(base.convert("L").convert("RGB")) / 255 * 0.8 + 0.1
    alpha = 0.2 + 0.6 * heat
    return _image(grey * (1 - alpha) + glow * alpha)


def _image(array: np.ndarray) -> Image.Image:
    return Image.fromarray((array * 255).round().clip(0, 255).astype(np.uint8))


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Breaks a text into lines of at most ``width`` pixels. A word that does not fit into one line is split."""
    lines = [""]
    for word in _words(_drawable(text), font, width):
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) < MAX_LINES:
            lines.append(word)
        else:
            while font.getlength(lines[-1] + " ...") > width:
                lines[-1] = lines[-1][:-1]
            lines[-1] += " ..."
            break
    return lines if lines[0] else []


def _words(text: str, font: Font, width: int) -> Iterator[str]:
    """The words of a text; those wider than ``width`` pixels in parts."""
    for word in text.split():
        while font.getlength(word) > width:
            fits = bisect_right(range(len(word)), width, lo=2, key=lambda n: ceil(font.getlength(word[:n]))) - 1
            yield word[:fits]
            word = word[fits:]
        yield word


def _drawable(text: str) -> str:
    """Replaces characters that the bundled font lacks by plain ones: accented letters, long dashes."""
    plain = unicodedata.normalize("NFKD", text).replace("\u2013", "-").replace("\u2014", "-").replace("\u00df", "ss")
    return "".join(c for c in plain if not unicodedata.combining(c))
