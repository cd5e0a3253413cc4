"""A campfire: it is lit, or snowed in."""

from __future__ import annotations

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look
from reasonbrain.modules.data.reasonmini.scenes.common import becomes, burns, flames, uniform, wall_color
from reasonbrain.modules.data.reasonmini.world import FLOOR, Kind, Params, Scene

SNOW = (240, 248, 255)
WOOD, WOOD_LIGHT, WOOD_END = (92, 54, 28), (126, 78, 42), (222, 180, 124)


def _campfire_flames(p: Params) -> tuple[float, float, float, float]:
    """Arguments of ``flames``."""
    return p["x"], p["base"] - 0.7 * p["h"], 1.6 * p["s"], p["s"] + 0.22


def _stones(p: Params) -> list[tuple[float, float]]:
    """Centre x and radius of every stone."""
    outer = [(p["x"] + side * p["s"], p["r"]) for side in (-1, 1)]
    return outer + [(p["x"] + side * (p["s"] - 1.7 * p["r"]), 0.8 * p["r"]) for side in (-1, 1)]


def _stones_seen(look: Look, p: Params) -> bool:
    """Whether the lower half of the outer stones shows their colour."""
    feet = [(x - 0.5 * r, p["base"] - 0.8 * r, x + 0.5 * r, p["base"] - 0.2 * r) for x, r in _stones(p)[:2]]
    return all(look.share(box, p["color"]) > 0.5 for box in feet)


def _campfire_burns(look: Look, p: Params) -> bool:
    top = p["base"] - p["h"]
    above = (p["x"] - 0.06, top - 0.14, p["x"] + 0.06, top - 0.03)
    return burns(look, above) and look.share(above, wall_color(p), 40) < 0.2 and _stones_seen(look, p)


def _campfire_buried(look: Look, p: Params) -> bool:
    x, base, h = p["x"], p["base"], p["h"]
    heap = (x - 0.4 * p["s"], base - 0.9 * h, x + 0.4 * p["s"], base - 0.4 * h)
    return (
        look.share(heap, SNOW) > 0.6
        and look.share(heap, WOOD) < 0.2
        and look.share((0.02, base + 0.02, 0.98, 0.98), SNOW) > 0.6
        and _stones_seen(look, p)
    )


class Campfire(Scene):
    """An unlit heap of crossed logs between coloured stones."""

    name = "campfire"
    colors = ("red", "green", "blue", "purple", "pink", "black")
    kinds = (
        Kind("campfire_lit", "causal", becomes("lit"), _campfire_burns),
        Kind("campfire_snowed_in", "temporal", becomes("snow"), _campfire_buried),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": uniform(rng, 0.38, 0.62),
            "base": uniform(rng, 0.87, 0.92),
            "s": uniform(rng, 0.25, 0.29),
            "h": uniform(rng, 0.24, 0.28),
            "r": uniform(rng, 0.07, 0.085),
        }

    def zone(self, p: Params) -> Box:
        _, base, _, height = _campfire_flames(p)
        return (0, base - height, 1, 1)

    def backdrop(self, canvas: Canvas, p: Params) -> None:
        super().backdrop(canvas, p)
        if p.get("state") == "snow":
            canvas.rect((0, FLOOR, 1, 1), SNOW)

    def draw(self, canvas: Canvas, p: Params) -> None:
        x, base, s, h = p["x"], p["base"], p["s"], p["h"]
        state = p.get("state")
        if state == "lit":
            flames(canvas, *_campfire_flames(p))
        for row, (half, side) in enumerate(((0.85, 1), (0.65, -1), (0.45, 1))):
            bottom, r = base - row * h / 3, h / 6
            canvas.rect((x - half * s, bottom - 2 * r, x + half * s, bottom), WOOD if row % 2 else WOOD_LIGHT)
            canvas.circle((x + side * half * s, bottom - r), r, WOOD_END)
        if state == "snow":
            canvas.ellipse((x - 0.95 * s, base - h - 0.08, x + 0.95 * s, base - 0.2 * h), SNOW)
        for stone, r in _stones(p):
            canvas.circle((stone, base - r), r, p["color"])
            if state == "snow":
                canvas.ellipse((stone - 1.1 * r, base - 2.4 * r, stone + 1.1 * r, base - r), SNOW)


SCENE = Campfire()
