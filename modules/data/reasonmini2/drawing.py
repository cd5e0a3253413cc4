"""Drawing of ReasonMini 2's pictures as SVG.

The picture is 100 x 100 units, with (0, 0) at the top left, so that things are independent of the resolution. A thing
is drawn in a frame of its own: (0, 0) is the middle of its base, y points down, so what stands above the ground has a
negative y. Colours are names of ``PALETTE``, or hexadecimal. Light comes from the upper left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from math import cos, pi, sin

from PIL import Image

Point = tuple[float, float]

PALETTE = {
    "red": "#d63031",
    "orange": "#f08c28",
    "yellow": "#fad442",
    "green": "#2ea050",
    "blue": "#3069dc",
    "purple": "#8c48be",
    "pink": "#f682b0",
    "brown": "#865630",
    "white": "#fafafa",
    "gray": "#8c9096",
    "black": "#222228",
}
SHADINGS = {  # gradient element and its stops: (offset, factor for ``shade``)
    "ball": ("radial", ((0, 1.65), (0.45, 1.05), (1, 0.62))),
    "tube": ("across", ((0, 0.85), (0.3, 1.35), (1, 0.62))),  # an upright cylinder
    "bar": ("down", ((0, 0.95), (0.3, 1.35), (1, 0.65))),  # a lying cylinder
    "face": ("down", ((0, 1.18), (1, 0.86))),
    "side": ("across", ((0, 1.14), (1, 0.84))),
    "glow": ("radial", ((0, 1), (1, 1))),  # fades out towards its edge
}


def shade(color: str, factor: float) -> str:
    """The colour made darker (factor < 1) or blended towards white (factor > 1, 2 = white), as hexadecimal."""
    code = PALETTE.get(color, color)
    channels = [int(code[i : i + 2], 16) for i in (1, 3, 5)]
    if factor <= 1:
        channels = [round(c * factor) for c in channels]
    else:
        channels = [round(c + (255 - c) * min(factor - 1, 1)) for c in channels]
    return "#{:02x}{:02x}{:02x}".format(*channels)


class Drawing:
    """Collects shapes, and the gradients they use. ``style``: name of a shading in ``SHADINGS``, None for a flat
    colour. ``alpha``: opacity, 0..1."""

    def __init__(self) -> None:
        self._shapes: list[str] = []
        self._lights: list[str] = []  # drawn last, over the darkness of a night
        self._frames: list[str] = []  # the frames that are open
        self._gradients: dict[str, str] = {}

    def _fill(self, color: str, style: str | None, alpha: float) -> str:
        code = PALETTE.get(color, color)
        opacity = f' fill-opacity="{alpha:g}"' if alpha < 1 else ""
        if style is None:
            return f'fill="{code}"{opacity}'
        name = f"{style}{code[1:]}"
        if name not in self._gradients:
            kind, stops = SHADINGS[style]
            points = "".join(
                f'<stop offset="{at:g}" stop-color="{shade(code, factor)}"'
                f"{f' stop-opacity={chr(34)}{1 - at:g}{chr(34)}' if style == 'glow' else ''}/>"
                for at, factor in stops
            )
            if kind == "radial":
                where = "" if style == "glow" else ' cx=".36" cy=".32" r=".75"'
                self._gradients[name] = f'<radialGradient id="{name}"{where}>{points}</radialGradient>'
            else:
                where = ' x2="0" y2="1"' if kind == "down" else ""
                self._gradients[name] = f'<linearGradient id="{name}"{where}>{points}</linearGradient>'
        return f'fill="url(#{name})"{opacity}'

    def rect(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        color: str,
        style: str | None = None,
        r: float = 0,
        alpha: float = 1,
    ) -> None:
        """A rectangle by its upper left corner; r: radius of the corners."""
        corner = f' rx="{r:g}"' if r else ""
        self._shapes.append(
            f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"{corner} '
            f"{self._fill(color, style, alpha)}/>"
        )

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, color: str, style: str | None = None, alpha: float = 1
    ) -> None:
        """An ellipse by its centre and radii."""
        self._shapes.append(
            f'<ellipse cx="{x:.2f}" cy="{y:.2f}" rx="{rx:.2f}" ry="{ry:.2f}" {self._fill(color, style, alpha)}/>'
        )

    def circle(self, x: float, y: float, r: float, color: str, style: str | None = None, alpha: float = 1) -> None:
        """A circle by its centre and radius."""
        self.ellipse(x, y, r, r, color, style, alpha)

    def polygon(self, points: Sequence[Point], color: str, style: str | None = None, alpha: float = 1) -> None:
        """A filled polygon."""
        listed = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
        self._shapes.append(f'<polygon points="{listed}" {self._fill(color, style, alpha)}/>')

    def path(self, data: str, color: str, style: str | None = None, alpha: float = 1) -> None:
        """A filled SVG path."""
        self._shapes.append(f'<path d="{data}" {self._fill(color, style, alpha)}/>')

    def line(self, data: str, width: float, color: str, alpha: float = 1) -> None:
        """The outline of an SVG path, with round ends."""
        code = PALETTE.get(color, color)
        self._shapes.append(
            f'<path d="{data}" fill="none" stroke="{code}" stroke-width="{width:g}" stroke-linecap="round" '
            f'stroke-linejoin="round" stroke-opacity="{alpha:g}"/>'
        )

    def shadow(self, x: float, y: float, rx: float, ry: float | None = None) -> None:
        """A soft shadow on the ground."""
        self.ellipse(x, y, rx, ry or rx * 0.22, "#000000", "glow", 0.45)

    def star(self, x: float, y: float, r: float, color: str, style: str | None = None) -> None:
        """A star with five points."""
        radii = [r if i % 2 == 0 else r * 0.45 for i in range(10)]
        self.polygon([(x + q * sin(i * pi / 5), y - q * cos(i * pi / 5)) for i, q in enumerate(radii)], color, style)

    @contextmanager
    def frame(
        self, x: float = 0, y: float = 0, scale: float = 1, turn: float = 0, mirror: bool = False
    ) -> Iterator[None]:
        """What is drawn inside has its origin at (x, y), is scaled, turned clockwise by degrees and mirrored."""
        across = -scale if mirror else scale
        group = f'<g transform="translate({x:.2f} {y:.2f}) rotate({turn:g}) scale({across:.3f} {scale:.3f})">'
        self._shapes.append(group)
        self._frames.append(group)
        yield
        self._frames.pop()
        self._shapes.append("</g>")

    @contextmanager
    def lights(self) -> Iterator[None]:
        """What is drawn inside lies above everything else."""
        shapes, self._shapes = self._shapes, [*self._frames]
        yield
        self._lights += self._shapes + ["</g>"] * len(self._frames)
        self._shapes = shapes

    def svg(self) -> str:
        """The SVG document."""
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">'
            f"<defs>{''.join(self._gradients.values())}</defs>{''.join(self._shapes + self._lights)}</svg>"
        )

    def image(self, size: int) -> Image.Image:
        """The RGB picture, ``size`` x ``size``."""
        return _raster(self.svg(), size).copy()


@lru_cache(maxsize=256)  # the outcomes of a scene are drawn again for each system that is checked
def _raster(svg: str, size: int) -> Image.Image:
    from resvg_py import svg_to_bytes  # only those who draw need it

    png = svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(BytesIO(bytes(png))).convert("RGB")


def flames(d: Drawing, x: float, y: float, width: float, height: float) -> None:
    """A fire of three tongues whose base is centred at (x, y)."""
    for color, part in (("#f06018", 1.0), ("#fcae2c", 0.68), ("#fff0a0", 0.36)):
        for offset, share in ((-0.3, 0.66), (0.3, 0.74), (0, 1)):
            w, h = 0.34 * width * part, height * share * part
            cx = x + offset * width
            d.path(
                f"M{cx - w:.2f} {y - 0.18 * h:.2f} C{cx - w:.2f} {y - 0.55 * h:.2f} {cx - 0.1 * w:.2f} "
                f"{y - 0.6 * h:.2f} {cx + 0.1 * w:.2f} {y - h:.2f} C{cx + 0.5 * w:.2f} {y - 0.6 * h:.2f} {cx + w:.2f} "
                f"{y - 0.5 * h:.2f} {cx + w:.2f} {y - 0.18 * h:.2f} C{cx + w:.2f} {y + 0.06 * h:.2f} {cx - w:.2f} "
                f"{y + 0.06 * h:.2f} {cx - w:.2f} {y - 0.18 * h:.2f}Z",
                color,
            )


def smoke(d: Drawing, x: float, y: float, height: float, color: str = "#5c5c62") -> None:
    """Puffs that rise from (x, y)."""
    for at, aside, r in ((0.08, 0.02, 0.11), (0.3, 0.1, 0.14), (0.55, -0.02, 0.17), (0.85, 0.14, 0.2)):
        d.circle(x + aside * height, y - at * height, r * height, color, "ball", 0.75)


def puddle(d: Drawing, x: float, y: float, rx: float, color: str = "#6fb7ea") -> None:
    """A flat pool with a highlight."""
    d.ellipse(x, y, rx, rx * 0.24, shade(color, 0.8))
    d.ellipse(x, y - rx * 0.02, rx * 0.93, rx * 0.2, color, "face")
    d.ellipse(x - rx * 0.35, y - rx * 0.07, rx * 0.3, rx * 0.05, "#ffffff", None, 0.7)


def snow(d: Drawing, x: float, y: float, rx: float, height: float) -> None:
    """A cap of snow whose base is centred at (x, y)."""
    w, h = rx, height
    d.path(
        f"M{x - w:.2f} {y:.2f} C{x - w:.2f} {y - 1.2 * h:.2f} {x - 0.3 * w:.2f} {y - 1.1 * h:.2f} {x:.2f} {y - h:.2f} "
        f"C{x + 0.5 * w:.2f} {y - 1.25 * h:.2f} {x + w:.2f} {y - h:.2f} {x + w:.2f} {y:.2f} Q{x:.2f} {y + 0.4 * h:.2f} "
        f"{x - w:.2f} {y:.2f}Z",
        "#f4f8ff",
        "face",
    )


def drops(d: Drawing, points: Sequence[Point], r: float = 1.6, color: str = "#4aa3e8") -> None:
    """Drops of water with their round ends at the points."""
    for x, y in points:
        d.path(
            f"M{x:.2f} {y - 2.4 * r:.2f} Q{x + 1.3 * r:.2f} {y - 0.4 * r:.2f} {x + r:.2f} {y:.2f} "
            f"A{r:.2f} {r:.2f} 0 0 1 {x - r:.2f} {y:.2f} Q{x - 1.3 * r:.2f} {y - 0.4 * r:.2f} {x:.2f} "
            f"{y - 2.4 * r:.2f}Z",
            color,
            "ball",
        )
