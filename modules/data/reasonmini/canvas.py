"""Draws ReasonMini's pictures, and computes pixel statistics for its outcome checks.

All coordinates are in the unit square, with (0, 0) at the top left and (1, 1) at the bottom right, so that scenes are
independent of the resolution. Colours are names of ``PALETTE`` or RGB tuples.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, pi, radians, sin

import numpy as np
from PIL import Image, ImageDraw

Color = str | tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 40),
    "yellow": (250, 212, 66),
    "green": (46, 160, 80),
    "blue": (48, 105, 220),
    "purple": (140, 72, 190),
    "pink": (246, 130, 176),
    "brown": (134, 86, 48),
    "white": (250, 250, 250),
    "gray": (140, 144, 150),
    "black": (34, 34, 40),
}

SUPERSAMPLING = 4


def rgb(color: Color) -> tuple[int, int, int]:
    """RGB tuple (0..255) of a palette name; a tuple passes through."""
    return PALETTE[color] if isinstance(color, str) else color


def shade(color: Color, factor: float) -> tuple[int, int, int]:
    """A darker shade of the colour (factor < 1), or a blend with white (factor > 1; 2 is white)."""
    if factor <= 1:
        r, g, b = (int(round(c * factor)) for c in rgb(color))
    else:
        r, g, b = (int(round(c + (255 - c) * min(factor - 1, 1))) for c in rgb(color))
    return r, g, b


def rotate(points: Sequence[Point], degrees: float, center: Point) -> list[Point]:
    """Rotates points clockwise (as seen on screen, y down) about ``center``."""
    c, s = cos(radians(degrees)), sin(radians(degrees))
    cx, cy = center
    return [(cx + (x - cx) * c - (y - cy) * s, cy + (x - cx) * s + (y - cy) * c) for x, y in points]


def box_points(box: Box) -> list[Point]:
    """The four corners of a box, in order, for ``rotate`` and ``Canvas.polygon``."""
    x0, y0, x1, y1 = box
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


class Canvas:
    """An anti-aliased drawing surface of ``size`` x ``size`` pixels, addressed in 0..1."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._n = size * SUPERSAMPLING
        self._image = Image.new("RGB", (self._n, self._n))
        self._draw = ImageDraw.Draw(self._image)

    def _xy(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self._n, y * self._n) for x, y in points]

    def rect(self, box: Box, color: Color) -> None:
        x0, y0, x1, y1 = (v * self._n for v in box)
        if x1 > x0 and y1 > y0:
            self._draw.rectangle((x0, y0, x1 - 1, y1 - 1), fill=rgb(color))

    def ellipse(self, box: Box, color: Color) -> None:
        x0, y0, x1, y1 = (v * self._n for v in box)
        if x1 > x0 and y1 > y0:
            self._draw.ellipse((x0, y0, x1 - 1, y1 - 1), fill=rgb(color))

    def circle(self, center: Point, radius: float, color: Color) -> None:
        x, y = center
        self.ellipse((x - radius, y - radius, x + radius, y + radius), color)

    def polygon(self, points: Sequence[Point], color: Color) -> None:
        self._draw.polygon(self._xy(points), fill=rgb(color))

    def line(self, points: Sequence[Point], width: float, color: Color) -> None:
        self._draw.line(self._xy(points), fill=rgb(color), width=max(1, round(width * self._n)), joint="curve")

    def arc(self, box: Box, start: float, end: float, width: float, color: Color) -> None:
        """Part of an ellipse's outline, degrees clockwise from three o'clock."""
        x0, y0, x1, y1 = (v * self._n for v in box)
        self._draw.arc((x0, y0, x1, y1), start, end, fill=rgb(color), width=max(1, round(width * self._n)))

    def star(self, center: Point, radius: float, color: Color) -> None:
        x, y = center
        radii = [radius if i % 2 == 0 else radius * 0.45 for i in range(10)]
        self.polygon([(x + r * sin(i * pi / 5), y - r * cos(i * pi / 5)) for i, r in enumerate(radii)], color)

    def tint(self, color: Color, alpha: float) -> None:
        """Blends the picture drawn so far with one colour (night, fog)."""
        self._image = Image.blend(self._image, Image.new("RGB", self._image.size, rgb(color)), alpha)
        self._draw = ImageDraw.Draw(self._image)

    def image(self) -> Image.Image:
        """The finished RGB picture, ``size`` x ``size``."""
        return self._image.reduce(SUPERSAMPLING)


class Look:
    """Pixel statistics of a picture, used by the outcome checks."""

    def __init__(self, image: Image.Image) -> None:
        self.pixels = np.asarray(image.convert("RGB"), dtype=np.int16)

    def crop(self, box: Box) -> np.ndarray:
        """Pixels [h, w, 3] inside the box (at least one pixel)."""
        h, w = self.pixels.shape[:2]
        x0, y0, x1, y1 = box
        left, top = min(max(round(x0 * w), 0), w - 1), min(max(round(y0 * h), 0), h - 1)
        return self.pixels[top : max(round(y1 * h), top + 1), left : max(round(x1 * w), left + 1)]

    def share(self, box: Box, color: Color, tolerance: int = 60) -> float:
        """Share (0..1) of the box's pixels whose every channel is within ``tolerance`` of the colour."""
        return float((np.abs(self.crop(box) - np.array(rgb(color))).max(-1) <= tolerance).mean())

    def brightness(self, box: Box) -> float:
        """Mean brightness of the box, 0..255."""
        return float(self.crop(box).mean())
