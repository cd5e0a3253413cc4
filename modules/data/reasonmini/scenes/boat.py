"""A sailing boat: it reaches the island, or sinks in a storm."""

from __future__ import annotations

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Color, Look, Point, rotate, shade
from reasonbrain.modules.data.reasonmini.scenes.common import GONE, around, becomes, uniform, wall_color
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

WOOD = (134, 86, 48)
SEA = (64, 136, 200)
ISLAND = (240, 214, 140)
STORM_SKY = (72, 78, 94)
STORM_CLOUD = (40, 42, 52)
SUN = (255, 220, 50)


def _boat_box(p: Params, x: float, left: float, top: float, right: float, bottom: float) -> Box:
    """A box in boat lengths, relative to the boat's middle at the water line."""
    return x + left * p["s"], p["y"] + top * p["s"], x + right * p["s"], p["y"] + bottom * p["s"]


def _boat_sail_box(p: Params, x: float) -> Box:
    """Inside the main sail of an upright boat at x."""
    return _boat_box(p, x, 0.04, -0.68, 0.18, -0.45)


def _boat_harbour(p: Params) -> float:
    """The position of the boat at the island."""
    return round(p["island_x"] - 0.2, 4)


def _boat_reached_island(look: Look, p: Params) -> bool:
    before, after = (_boat_sail_box(p, x) for x in (p["x"], _boat_harbour(p)))
    return (
        look.share(after, p["color"]) > 0.5
        and look.share(before, p["color"], GONE) < 0.2
        and look.share(_boat_box(p, _boat_harbour(p), -0.3, -0.16, 0.3, -0.02), WOOD) > 0.35
        and look.share((0.05, 0.03, 0.3, 0.25), wall_color(p)) > 0.6
    )


def _boat_sank_in_storm(look: Look, p: Params) -> bool:
    return (
        look.brightness((0.05, 0.03, 0.95, 0.25)) < 110
        and look.share((0.0, 0.3, 1.0, 0.36), STORM_SKY, 50) > 0.4
        and look.share(_boat_sail_box(p, p["x"]), p["color"], GONE) < 0.2
        and look.share(_boat_box(p, p["x"], -0.36, -0.12, 0.2, -0.02), WOOD) < 0.35
        and look.share(_boat_box(p, p["x"], 0.34, -0.26, 0.46, -0.06), p["color"], 70) > 0.3
    )


class Boat(Scene):
    """A boat with a coloured sail on the sea, and at the right an island with a palm."""

    name = "boat"
    colors = ("red", "orange", "purple", "pink", "green", "yellow")
    kinds = (
        Kind("boat_reaches_island", "story", becomes("arrived"), _boat_reached_island),
        Kind("boat_sinks_in_storm", "story", becomes("sunk"), _boat_sank_in_storm),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": uniform(rng, 0.21, 0.24),
            "y": uniform(rng, 0.76, 0.86),
            "s": uniform(rng, 0.37, 0.42),
            "horizon": uniform(rng, 0.54, 0.62),
            "island_x": uniform(rng, 0.78, 0.82),
        }

    def zone(self, p: Params) -> Box:
        return 0.0, 0.0, 1.0, 1.0  # the storm darkens the whole sky

    def backdrop(self, canvas: Canvas, p: Params) -> None:
        storm = p.get("state") == "sunk"
        canvas.rect((0, 0, 1, p["horizon"]), STORM_SKY if storm else wall_color(p))
        canvas.rect((0, p["horizon"], 1, 1), SEA)
        if storm:
            for x, r in ((0.1, 0.16), (0.34, 0.21), (0.6, 0.17), (0.86, 0.21)):
                canvas.circle((x, 0.05), r, STORM_CLOUD)
        else:
            canvas.circle((0.52, 0.16), 0.09, SUN)

    def draw(self, canvas: Canvas, p: Params) -> None:
        self._island(canvas, p)
        if p.get("state") == "sunk":
            self._boat(canvas, p, p["x"], tilt=25, depth=0.38 * p["s"])
        else:
            self._boat(canvas, p, _boat_harbour(p) if p.get("state") == "arrived" else p["x"])

    def _island(self, canvas: Canvas, p: Params) -> None:
        x, y = p["island_x"], p["horizon"] + 0.1
        canvas.ellipse(around((x, y), 0.22, 0.13), ISLAND)
        canvas.rect((x - 0.23, y, 1, y + 0.14), SEA)
        x += 0.05
        canvas.rect((x - 0.022, y - 0.36, x + 0.022, y - 0.09), WOOD)
        for side in (-1, 1):
            for drop in (-0.06, 0.08):
                leaf = [(x, y - 0.41), (x + side * 0.15, y - 0.36 + drop), (x, y - 0.33)]
                canvas.polygon(leaf, (24, 120, 60))

    def _boat(self, canvas: Canvas, p: Params, x: float, tilt: float = 0, depth: float = 0) -> None:
        y, s, color = p["y"], p["s"], p["color"]
        parts: tuple[tuple[tuple[Point, ...], Color], ...] = (
            (((-0.04, -1.05), (0.02, -1.05), (0.02, -0.1), (-0.04, -0.1)), "black"),
            (((0.02, -1.0), (0.5, -0.25), (0.02, -0.25)), color),
            (((-0.06, -0.85), (-0.06, -0.25), (-0.4, -0.25)), shade(color, 1.3)),
            (((-0.5, -0.18), (0.5, -0.18), (0.36, 0.08), (-0.36, 0.08)), WOOD),
        )
        for points, fill in parts:
            turned = rotate([(x + dx * s, y + dy * s) for dx, dy in points], tilt, (x, y))
            canvas.polygon([(px, py + depth) for px, py in turned], fill)
        canvas.rect((x - s, y, x + s, 1), SEA)  # the water hides what is below its line


SCENE = Boat()
