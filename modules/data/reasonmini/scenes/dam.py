"""A dam and its lake: the dam breaks, or the lake dries up."""

from __future__ import annotations

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look, Point, box_points, rotate
from reasonbrain.modules.data.reasonmini.scenes.common import becomes, uniform, wall_color
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

WATER = (48, 105, 220)
GRASS = (104, 164, 72)
MUD, CRACK = (180, 104, 58), (74, 44, 26)


def _dam_box(p: Params, x0: float, y0: float, x1: float, y1: float) -> Box:
    """A box whose x is measured from the lake's edge of the picture."""
    return (x0, y0, x1, y1) if p["lake"] == "left" else (1 - x1, y0, 1 - x0, y1)


def _flood_level(p: Params) -> float:
    """The lake's water spread over the whole width."""
    return p["ground"] - (p["ground"] - p["level"]) * p["x"]


def _dam_broken(look: Look, p: Params) -> bool:
    flood, ground, x, w = _flood_level(p), p["ground"], p["x"], p["w"]
    return (
        look.share(_dam_box(p, x + w + 0.16, flood + 0.03, 0.98, ground - 0.03), WATER) > 0.6
        and look.share(_dam_box(p, 0.02, flood + 0.03, x - w, ground - 0.03), WATER) > 0.6
        and look.share(_dam_box(p, 0.02, p["level"] + 0.03, x - w, flood - 0.05), WATER) < 0.2
        and look.share(_dam_box(p, x - w / 4, p["level"], x + w / 4, flood - 0.05), p["color"], 40) < 0.2
    )


def _lake_dried(look: Look, p: Params) -> bool:
    ground, x, w = p["ground"], p["x"], p["w"]
    bed = _dam_box(p, 0.02, ground + 0.06, x - w, 0.98)
    return (
        look.share(_dam_box(p, 0.02, p["level"] + 0.03, x - w, ground - 0.08), WATER) < 0.15
        and look.share(bed, MUD) + look.share(bed, CRACK, 40) > 0.6
        and look.share(bed, GRASS, 40) < 0.2
        and look.share(_dam_box(p, x - w / 4, p["level"], x + w / 4, ground - 0.05), p["color"]) > 0.6
    )


class Dam(Scene):
    """A thick coloured dam from the side, a deep blue lake behind it and dry grass in front."""

    name = "dam"
    colors = ("red", "orange", "yellow", "pink", "purple", "black")
    kinds = (
        Kind("dam_breaks", "causal", becomes("broken"), _dam_broken),
        Kind("dam_drought", "temporal", becomes("dry"), _lake_dried),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "lake": str(rng.choice(["left", "right"])),
            "x": uniform(rng, 0.48, 0.58),
            "w": uniform(rng, 0.12, 0.16),
            "level": uniform(rng, 0.36, 0.44),
            "ground": uniform(rng, 0.78, 0.82),
        }

    def zone(self, p: Params) -> Box:
        return (0, p["level"] - 0.07, 1, 1)

    def backdrop(self, canvas: Canvas, p: Params) -> None:
        canvas.rect((0, 0, 1, 1), wall_color(p))
        canvas.rect((0, p["ground"], 1, 1), GRASS)

    def draw(self, canvas: Canvas, p: Params) -> None:
        x, w, ground, level = p["x"], p["w"], p["ground"], p["level"]
        state = p.get("state")

        def points(*xy: Point) -> list[Point]:
            return [(u, v) if p["lake"] == "left" else (1 - u, v) for u, v in xy]

        if state == "broken":
            canvas.rect((0, _flood_level(p), 1, ground), WATER)
            jags = ((-1, 0), (-0.8, 0.13), (-0.3, 0.06), (0.2, 0.11), (1, 0))
            canvas.polygon(points(*((x + u * w, ground - v) for u, v in jags)), p["color"])
            chunk = box_points((x + w + 0.02, ground - 0.1, x + w + 0.12, ground))
            canvas.polygon(points(*rotate(chunk, 25, (x + w + 0.07, ground - 0.05))), p["color"])
            return
        if state == "dry":
            canvas.rect(_dam_box(p, 0, ground, x, 1), MUD)
            for u in (0.12, 0.42, 0.72):  # the cracks, at shares of the bed's length
                zigzag = ((u * x, ground), (u * x + 0.05, ground + 0.07), (u * x - 0.01, 0.93), (u * x + 0.04, 1))
                canvas.line(points(*zigzag), 0.035, CRACK)
            canvas.ellipse(_dam_box(p, 0.3 * x, ground - 0.02, 0.62 * x, ground + 0.04), WATER)
        else:
            canvas.rect(_dam_box(p, 0, level, x, ground), WATER)
        crest = level - 0.06
        wall = points((x - w / 2, crest), (x + w / 2, crest), (x + w, ground), (x - w / 2, ground))
        canvas.polygon(wall, p["color"])


SCENE = Dam()
