"""A plant in a pot: it blooms or wilts."""

from __future__ import annotations

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look, Point, rotate, shade
from reasonbrain.modules.data.reasonmini.scenes.common import around, becomes, uniform
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

LEAF, STEM, DEAD = (46, 160, 80), (30, 120, 60), (128, 82, 46)
PETAL, HEART = (236, 70, 150), (250, 212, 66)
GROWTH, FLOWER = 0.1, 0.15  # how much taller the blooming plant is, and the radius of its flower


def _top(p: Params) -> float:
    """Height of the stem's end."""
    return p["y"] - p["pot"] - p["stem"]


def _blossom(p: Params) -> Point:
    return (p["x"], _top(p) - GROWTH)


def _leaf(base: Point, length: float, degrees: float) -> list[Point]:
    """A leaf that points to the right, turned clockwise about its base."""
    x, y = base
    outline = [(0, 0), (0.25, -0.2), (0.55, -0.24), (1, 0), (0.55, 0.24), (0.25, 0.2)]
    return rotate([(x + length * u, y + length * v) for u, v in outline], degrees, base)


def _nodes(p: Params) -> list[float]:
    """Heights on the stem where a pair of leaves grows."""
    return [p["y"] - p["pot"] - p["stem"] * share for share in (0.3, 0.8)]


def _droop(p: Params) -> list[Point]:
    """The dead stem, from the pot over to the right and down."""
    x, y, s = p["x"], p["y"] - p["pot"], p["stem"]
    bends = ((0, 0), (0, 0.5), (0.05, 0.75), (0.12, 0.85), (0.2, 0.78), (0.25, 0.55))
    return [(x + dx, y - s * up) for dx, up in bends]


def _leaf_share(look: Look, p: Params) -> float:
    """Share of green at the positions of the source's leaves."""
    middles = [(p["x"] + side * 0.5 * p["leaf"], y - 0.23 * p["leaf"]) for y in _nodes(p) for side in (-1, 1)]
    return sum(look.share(around(middle, 0.03, 0.025), LEAF) for middle in middles) / len(middles)


def _petal_share(look: Look, p: Params) -> float:
    x, y = _blossom(p)
    middles = [(x + dx, y + dy) for dx, dy in ((-0.1, 0), (0.1, 0), (0, -0.1), (0, 0.1))]
    return sum(look.share(around(middle, 0.025), PETAL) for middle in middles) / len(middles)


def _check_blooms(look: Look, p: Params) -> bool:
    return (
        _petal_share(look, p) > 0.6
        and look.share(around(_blossom(p), 0.03), HEART) > 0.5
        and _leaf_share(look, p) > 0.5
    )


def _check_wilts(look: Look, p: Params) -> bool:
    x, y = _droop(p)[-1]
    return (
        look.share(around((x, y + 0.45 * p["leaf"]), 0.025, 0.04), DEAD) > 0.5
        and _leaf_share(look, p) < 0.2
        and _petal_share(look, p) < 0.2
    )


class Plant(Scene):
    """A straight stem with a bud and two pairs of green leaves, in a coloured pot."""

    name = "plant"
    colors = ("red", "orange", "yellow", "blue", "purple")
    kinds = (
        Kind("plant_blooms", "temporal", becomes("blooming"), _check_blooms),
        Kind("plant_wilts", "temporal", becomes("wilted"), _check_wilts),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": uniform(rng, 0.32, 0.58),
            "y": uniform(rng, 0.88, 0.95),
            "pot": uniform(rng, 0.2, 0.25),
            "stem": uniform(rng, 0.27, 0.33),
            "leaf": uniform(rng, 0.19, 0.23),
        }

    def zone(self, p: Params) -> Box:
        return (p["x"] - p["leaf"] - 0.02, _blossom(p)[1] - FLOWER, p["x"] + 0.34, p["y"])

    def draw(self, canvas: Canvas, p: Params) -> None:
        x, y, leaf = p["x"], p["y"] - p["pot"], p["leaf"]
        if p.get("state") == "wilted":
            stem = _droop(p)
            canvas.line(stem, 0.05, DEAD)
            for base, degrees in ((stem[1], 135), (stem[3], 100), (stem[5], 85)):
                canvas.polygon(_leaf(base, leaf, degrees), DEAD)
        else:
            top = _blossom(p)[1] if p.get("state") == "blooming" else _top(p)
            canvas.rect((x - 0.025, top, x + 0.025, y), STEM)
            for height in _nodes(p):
                canvas.polygon(_leaf((x, height), leaf, -25), LEAF)
                canvas.polygon(_leaf((x, height), leaf, -155), LEAF)
            if p.get("state") == "blooming":
                _draw_flower(canvas, (x, top))
            else:
                canvas.circle((x, top), 0.04, STEM)
        canvas.polygon([(x - 0.15, y), (x + 0.15, y), (x + 0.1, p["y"]), (x - 0.1, p["y"])], p["color"])
        canvas.rect((x - 0.17, y, x + 0.17, y + 0.06), shade(p["color"], 0.75))


def _draw_flower(canvas: Canvas, center: Point) -> None:
    for i in range(6):
        petal = rotate([(center[0], center[1] - 0.085)], 60 * i, center)[0]
        canvas.circle(petal, 0.065, PETAL)
    canvas.circle(center, 0.06, HEART)


SCENE = Plant()
