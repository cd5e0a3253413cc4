"""A bird and its nest: it flies there, or lays eggs."""

from __future__ import annotations

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look, Point, shade
from reasonbrain.modules.data.reasonmini.scenes.common import GONE, around, becomes, uniform, wall_color
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

WOOD = (134, 86, 48)
LEAVES = (46, 140, 70)
NEST = (176, 122, 60)
NEST_INSIDE = (70, 44, 24)


def _bird_in_nest(p: Params) -> Point:
    return p["nest_x"], round(p["nest_y"] + 0.04, 4)


def _bird_body_box(p: Params, feet: Point) -> Box:
    """Inside the body, above the wing, of a bird whose feet are there."""
    x, y = feet
    return around((x + 0.05 * p["s"], y - 0.42 * p["s"]), 0.2 * p["s"], 0.1 * p["s"])


def _bird_eggs(p: Params) -> list[Point]:
    return [(p["nest_x"] + side * 0.42 * p["nest_r"], p["nest_y"] - 0.035) for side in (-1, 1)]


def _bird_flew_to_nest(look: Look, p: Params) -> bool:
    before, after = (_bird_body_box(p, feet) for feet in ((p["x"], p["y"]), _bird_in_nest(p)))
    return (
        look.share(after, p["color"], 70) > 0.5
        and look.share(before, p["color"], GONE) < 0.2
        and look.share(before, wall_color(p)) > 0.6
    )


def _bird_laid_eggs(look: Look, p: Params) -> bool:
    eggs = [around((x, y - 0.01), 0.035, 0.035) for x, y in _bird_eggs(p)]
    return (
        all(look.share(egg, "white", 70) > 0.5 for egg in eggs)
        and all(look.share(egg, LEAVES) + look.share(egg, NEST_INSIDE) < 0.3 for egg in eggs)
        and look.share(_bird_body_box(p, (p["x"], p["y"])), p["color"], 70) > 0.5
    )


class Bird(Scene):
    """A coloured bird on a stump at the left, and at the right a tree with an empty nest."""

    name = "bird"
    colors = ("red", "blue", "purple", "pink", "yellow", "orange")
    kinds = (
        Kind("bird_flies_to_nest", "story", becomes("home"), _bird_flew_to_nest),
        Kind("bird_lays_eggs", "story", becomes("eggs"), _bird_laid_eggs),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": uniform(rng, 0.2, 0.22),
            "y": uniform(rng, 0.6, 0.7),
            "s": uniform(rng, 0.25, 0.3),
            "nest_x": uniform(rng, 0.69, 0.73),
            "nest_y": uniform(rng, 0.42, 0.5),
            "nest_r": uniform(rng, 0.15, 0.18),
        }

    def zone(self, p: Params) -> Box:
        return p["x"] - 0.62 * p["s"], p["nest_y"] - 0.3, p["nest_x"] + 0.28, 0.93

    def draw(self, canvas: Canvas, p: Params) -> None:
        (x, y), (nx, ny), r = (p["x"], p["y"]), (p["nest_x"], p["nest_y"]), p["nest_r"]
        canvas.rect((x - 0.11, y, x + 0.11, 0.92), WOOD)
        canvas.rect((x - 0.12, y, x + 0.12, y + 0.05), shade(WOOD, 0.7))
        canvas.rect((nx - 0.06, ny, nx + 0.06, 0.9), WOOD)
        canvas.ellipse(around((nx, ny), 0.27, 0.28), LEAVES)
        canvas.ellipse(around((nx, ny), r, 0.05), NEST_INSIDE)
        if p.get("state") == "eggs":
            for egg in _bird_eggs(p):
                canvas.ellipse(around(egg, 0.055, 0.085), "white")
        self._bird(canvas, p, _bird_in_nest(p) if p.get("state") == "home" else (x, y))
        canvas.polygon([(nx - r, ny), (nx + r, ny), (nx + 0.65 * r, ny + 0.14), (nx - 0.65 * r, ny + 0.14)], NEST)
        canvas.line([(nx - 0.8 * r, ny + 0.07), (nx + 0.8 * r, ny + 0.07)], 0.03, shade(NEST, 0.65))

    def _bird(self, canvas: Canvas, p: Params, feet: Point) -> None:
        (x, y), s, color = feet, p["s"], p["color"]
        tail = [(x - 0.6 * s, y - 0.62 * s), (x - 0.2 * s, y - 0.5 * s), (x - 0.2 * s, y - 0.2 * s)]
        canvas.polygon(tail, shade(color, 0.7))
        beak = [(x + 0.4 * s, y - 0.82 * s), (x + 0.62 * s, y - 0.68 * s), (x + 0.4 * s, y - 0.56 * s)]
        canvas.polygon(beak, "black")
        canvas.ellipse((x - 0.45 * s, y - 0.62 * s, x + 0.45 * s, y), color)
        canvas.circle((x + 0.26 * s, y - 0.7 * s), 0.22 * s, color)
        canvas.ellipse((x - 0.3 * s, y - 0.34 * s, x + 0.12 * s, y - 0.1 * s), shade(color, 0.7))
        canvas.circle((x + 0.3 * s, y - 0.74 * s), 0.026, "black")


SCENE = Bird()
