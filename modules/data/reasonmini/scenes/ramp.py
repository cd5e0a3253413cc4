"""A ball on a ramp: it is released."""

from __future__ import annotations

from math import hypot

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look, Point, box_points
from reasonbrain.modules.data.reasonmini.scenes.common import uniform
from reasonbrain.modules.data.reasonmini.scenes.mechanics import (
    COLORS,
    REMOVABLE,
    WOOD,
    add_ball,
    add_shape,
    bounds,
    new_space,
    place,
    random_side,
    settle,
    share_around,
)
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

# Described as descending to the right; side -1 mirrors it.


def _ramp_point(p: Params, along: float, above: float) -> Point:
    """The point at these distances along the slope from its top and from its surface."""
    length = hypot(p["width"], p["height"])
    dx, dy = p["width"] / length, p["height"] / length
    return p["left"] + dx * along + dy * above, p["ground"] - p["height"] + dy * along - dx * above


def _ramp_ball(p: Params) -> Point:
    return p.get("ball") or _ramp_point(p, 0.8 * p["radius"], p["radius"])


def _ramp_wedge(p: Params) -> list[Point]:
    x, y = p["left"], p["ground"]
    return [(x, y - p["height"]), (x + p["width"], y), (x, y)]


def _ramp_stop(p: Params) -> list[Point]:
    return box_points((p["stop"], p["ground"] - 2.2 * p["radius"], p["stop"] + 0.08, p["ground"]))


def _ramp_released(p: Params) -> Params:
    space = new_space(p["ground"])
    add_shape(space, space.static_body, _ramp_wedge(p))
    add_shape(space, space.static_body, _ramp_stop(p), friction=0)  # with friction the spinning ball would climb it
    ball = add_ball(space, _ramp_ball(p), p["radius"])
    settle(space)
    return {**p, "state": "released", "ball": place(ball)}


def _mirror(p: Params, points: list[Point]) -> list[Point]:
    return [(0.5 + p["side"] * (x - 0.5), y) for x, y in points]


def _ramp_released_seen(look: Look, p: Params) -> bool:
    old, new = _mirror(p, [_ramp_ball(p), (p["stop"] - p["radius"], p["ground"] - p["radius"])])
    half = 0.5 * p["radius"]
    return share_around(look, new, half, p["color"]) > 0.6 and share_around(look, old, half, p["color"]) < 0.2


class Ramp(Scene):
    """A ball held by a purple peg at the top of a ramp, a stop block at the far end of the floor."""

    name = "ramp"
    colors = COLORS
    kinds = (Kind("ramp_ball_released", "physical", _ramp_released, _ramp_released_seen),)

    def sample(self, rng: np.random.Generator) -> Params:
        radius, left, width = uniform(rng, 0.085, 0.105), uniform(rng, 0.05, 0.12), uniform(rng, 0.36, 0.44)
        return {
            "side": random_side(rng),
            "radius": radius,
            "left": left,
            "width": width,
            "height": uniform(rng, 0.34, 0.46),
            "stop": round(min(left + width + 2 * radius + float(rng.uniform(0.04, 0.14)), 0.88), 4),
            "ground": uniform(rng, 0.87, 0.92),
        }

    def zone(self, p: Params) -> Box:
        top = _ramp_ball(p)[1] - p["radius"]
        return bounds(_mirror(p, [(p["left"], top), (p["stop"] + 0.08, p["ground"])]))

    def draw(self, canvas: Canvas, p: Params) -> None:
        canvas.polygon(_mirror(p, _ramp_wedge(p)), WOOD)
        canvas.polygon(_mirror(p, _ramp_stop(p)), WOOD)
        if p.get("state") != "released":
            start, end, tall = 1.75 * p["radius"], 1.75 * p["radius"] + 0.055, 1.3 * p["radius"]
            peg = [_ramp_point(p, *q) for q in ((start, -0.02), (end, -0.02), (end, tall), (start, tall))]
            canvas.polygon(_mirror(p, peg), REMOVABLE)
        canvas.circle(_mirror(p, [_ramp_ball(p)])[0], p["radius"], p["color"])


SCENE = Ramp()
