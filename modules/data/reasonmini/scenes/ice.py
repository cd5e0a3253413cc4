"""An ice cube on a plate: it melts or is shattered."""

from __future__ import annotations

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look, Point, shade
from reasonbrain.modules.data.reasonmini.scenes.common import around, becomes, uniform
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

ICE, ICE_TOP, ICE_SIDE = (96, 190, 245), (160, 222, 252), (66, 158, 222)
WATER = (30, 100, 215)


def _cube(p: Params) -> Box:
    """The cube's front face."""
    return (p["x"] - 0.6 * p["s"], p["y"] + 0.03 - p["s"], p["x"] + 0.4 * p["s"], p["y"] + 0.03)


def _plate(p: Params) -> Box:
    return around((p["x"], p["y"]), p["s"], 0.1)


def _shards(p: Params) -> list[tuple[Point, list[Point]]]:
    """Centre and corners of every splinter, far apart on the plate."""
    s, x, y = p["s"], p["x"], p["y"]
    shapes = (
        ((-0.62, 0.0), ((-0.24, 0.06), (-0.1, -0.4), (0.24, 0.08))),
        ((-0.02, 0.08), ((-0.24, 0.04), (-0.14, -0.3), (0.06, -0.52), (0.22, 0.12))),
        ((0.6, 0.0), ((-0.24, 0.1), (0.04, -0.34), (0.22, -0.26), (0.24, 0.04))),
    )
    return [
        ((x + s * mx, y + s * my), [(x + s * (mx + dx), y + s * (my + dy)) for dx, dy in corners])
        for (mx, my), corners in shapes
    ]


def _cube_share(look: Look, p: Params) -> float:
    """Share of the intact cube's upper half that is still ice."""
    x0, y0, x1, _ = _cube(p)
    return look.share((x0 + 0.04, y0 + 0.04, x1 - 0.04, y0 + 0.45 * p["s"]), ICE, 50)


def _check_melted(look: Look, p: Params) -> bool:
    puddle = around((p["x"], p["y"] + 0.02), 0.5 * p["s"], 0.025)
    return look.share(puddle, WATER, 55) > 0.6 and _cube_share(look, p) < 0.2


def _check_shattered(look: Look, p: Params) -> bool:
    shards = [look.share(around((x, y - 0.06 * p["s"]), 0.03), ICE, 50) for (x, y), _ in _shards(p)]
    return min(shards) > 0.4 and sum(shards) > 1.8 and _cube_share(look, p) < 0.2


class Ice(Scene):
    """A big light-blue ice cube on a round coloured plate."""

    name = "ice"
    colors = ("red", "orange", "yellow", "green", "pink")
    kinds = (
        Kind("ice_melts", "temporal", becomes("melted"), _check_melted),
        Kind("ice_shatters", "causal", becomes("shattered"), _check_shattered),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": uniform(rng, 0.4, 0.6),
            "y": uniform(rng, 0.8, 0.87),
            "s": uniform(rng, 0.32, 0.39),
        }

    def zone(self, p: Params) -> Box:
        x0, _, x1, y1 = _plate(p)
        return (x0, _cube(p)[1] - 0.09, x1, y1 + 0.03)

    def draw(self, canvas: Canvas, p: Params) -> None:
        x0, y0, x1, y1 = _plate(p)
        canvas.ellipse((x0, y0 + 0.03, x1, y1 + 0.03), shade(p["color"], 0.65))
        canvas.ellipse((x0, y0, x1, y1), p["color"])
        if p.get("state") == "melted":
            x, y, s = p["x"], p["y"], p["s"]
            canvas.ellipse(around((x - 0.3 * s, y + 0.01), 0.5 * s, 0.055), WATER)
            canvas.ellipse(around((x + 0.2 * s, y + 0.005), 0.6 * s, 0.08), WATER)
            canvas.ellipse(around((x + 0.2 * s, y - 0.03), 0.25 * s, 0.022), ICE_TOP)
        elif p.get("state") == "shattered":
            for _, corners in _shards(p):
                canvas.polygon(corners, ICE)
        else:
            x0, y0, x1, y1 = _cube(p)
            dx, dy = 0.1, -0.07
            canvas.polygon([(x0, y0), (x0 + dx, y0 + dy), (x1 + dx, y0 + dy), (x1, y0)], ICE_TOP)
            canvas.polygon([(x1, y0), (x1 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1, y1)], ICE_SIDE)
            canvas.rect((x0, y0, x1, y1), ICE)


SCENE = Ice()
