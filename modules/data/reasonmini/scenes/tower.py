"""A tower of blocks: it is pushed over, or loses its lowest block."""

from __future__ import annotations

from functools import cache
from math import degrees

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Color, Look, box_points, rotate
from reasonbrain.modules.data.reasonmini.scenes.common import uniform
from reasonbrain.modules.data.reasonmini.scenes.mechanics import (
    COLORS,
    DARK,
    UNITS,
    add_body,
    add_shape,
    bounds,
    new_space,
    place,
    settle,
    share_around,
)
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

# A block is [its index from the bottom, x and y of its centre, angle].


@cache
def _toppled(count: int) -> list[list[float]]:
    """Where the blocks come to rest, in block sides relative to the tower's foot, independent of their size."""
    space = new_space(0)
    bodies = []
    for i in range(count):
        bodies.append(add_body(space, (0, -i - 0.5)))
        add_shape(space, bodies[-1], box_points((-0.5, -0.5, 0.5, 0.5)))
        bodies[-1].velocity = (0.85 * UNITS * (i + 0.5), 0)  # pushes of 0.6 to 1 end similarly
    settle(space)
    return [[i, *place(b), round(degrees(b.angle), 1)] for i, b in enumerate(bodies)]


def _tower_blocks(p: Params) -> list[list[float]]:
    return p.get("blocks") or [[i, p["x"], p["ground"] - (i + 0.5) * p["block"], 0] for i in range(p["count"])]


def _tower_pushed(p: Params) -> Params:
    s = p["block"]
    blocks = [[i, round(p["x"] + x * s, 4), round(p["ground"] + y * s, 4), a] for i, x, y, a in _toppled(p["count"])]
    return {**p, "state": "pushed", "blocks": blocks}


def _tower_lowered(p: Params) -> Params:
    return {**p, "state": "lowered", "blocks": [[i, x, y + p["block"], a] for i, x, y, a in _tower_blocks(p)[1:]]}


def _block_color(p: Params, i: float) -> Color:
    return p["color"] if i % 2 == 0 else DARK


def _blocks_seen(look: Look, p: Params) -> float:
    """The minimum over the blocks of the share of a block's colour at its centre."""
    return min(share_around(look, (x, y), 0.25 * p["block"], _block_color(p, i)) for i, x, y, _ in _tower_blocks(p))


def _top_share(look: Look, p: Params) -> float:
    i, x, y, _ = _tower_blocks(p)[-1]
    return share_around(look, (x, y), 0.3 * p["block"], _block_color(p, i))


def _tower_pushed_seen(look: Look, p: Params) -> bool:
    return _blocks_seen(look, _tower_pushed(p)) > 0.5 and _top_share(look, p) < 0.2


def _tower_lowered_seen(look: Look, p: Params) -> bool:
    return _blocks_seen(look, _tower_lowered(p)) > 0.5 and _top_share(look, p) < 0.2


class Tower(Scene):
    """A tower of three or four square blocks at the left, alternating between the main colour and black."""

    name = "tower"
    colors = COLORS
    kinds = (
        Kind("tower_pushed", "physical", _tower_pushed, _tower_pushed_seen),
        Kind("tower_bottom_removed", "physical", _tower_lowered, _tower_lowered_seen),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        count = int(rng.integers(3, 5))
        block = round(float(rng.uniform(0.5, 0.56)) / count, 4)
        furthest = _toppled(count)[-1][1] + 0.5
        return {
            "count": count,
            "block": block,
            "x": uniform(rng, 0.03 + block / 2, 0.98 - furthest * block),
            "ground": uniform(rng, 0.87, 0.92),
        }

    def zone(self, p: Params) -> Box:
        both = [*_tower_blocks(p), *_tower_blocks(_tower_pushed(p))]
        return bounds([(x, y) for _, x, y, _ in both], 0.5 * p["block"] + 0.02)

    def draw(self, canvas: Canvas, p: Params) -> None:
        s = p["block"] / 2
        for i, x, y, angle in _tower_blocks(p):
            canvas.polygon(rotate(box_points((x - s, y - s, x + s, y + s)), angle, (x, y)), _block_color(p, i))


SCENE = Tower()
