"""A pendulum held aside: its string is cut, or it swings over."""

from __future__ import annotations

from math import cos, radians, sin

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look, Point
from reasonbrain.modules.data.reasonmini.scenes.common import uniform
from reasonbrain.modules.data.reasonmini.scenes.mechanics import (
    COLORS,
    DARK,
    STRING,
    WOOD,
    add_ball,
    bounds,
    new_space,
    place,
    random_side,
    settle,
    share_around,
)
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

BEAM_TOP, BEAM_BOTTOM = 0.05, 0.12


def _hanging(p: Params, sign: int = 1) -> Point:
    """The position of the ball, or with sign -1 its mirror image on the other side."""
    angle = radians(p["angle"])
    return p["x"] + sign * p["side"] * p["length"] * sin(angle), BEAM_BOTTOM + p["length"] * cos(angle)


def _pendulum_cut(p: Params) -> Params:
    space = new_space(p["ground"])
    ball = add_ball(space, _hanging(p), p["radius"])
    settle(space)
    return {**p, "state": "cut", "ball": place(ball)}


def _pendulum_swung(p: Params) -> Params:
    return {**p, "state": "swung", "side": -p["side"]}


def _ball_went(look: Look, p: Params, to: Point) -> bool:
    half = 0.5 * p["radius"]
    return share_around(look, to, half, p["color"]) > 0.6 and share_around(look, _hanging(p), half, p["color"]) < 0.2


def _pendulum_cut_seen(look: Look, p: Params) -> bool:
    return _ball_went(look, p, (_hanging(p)[0], p["ground"] - p["radius"]))


def _pendulum_swung_seen(look: Look, p: Params) -> bool:
    return _ball_went(look, p, _hanging(p, -1))


class Pendulum(Scene):
    """A ball on a string under a beam, held aside to the left or the right."""

    name = "pendulum"
    colors = COLORS
    kinds = (
        Kind("pendulum_string_cut", "physical", _pendulum_cut, _pendulum_cut_seen),
        Kind("pendulum_swings_over", "physical", _pendulum_swung, _pendulum_swung_seen),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "side": random_side(rng),
            "x": uniform(rng, 0.44, 0.56),
            "angle": uniform(rng, 30, 42),
            "length": uniform(rng, 0.4, 0.48),
            "radius": uniform(rng, 0.085, 0.105),
            "ground": uniform(rng, 0.87, 0.92),
        }

    def zone(self, p: Params) -> Box:
        reach = abs(_hanging(p)[0] - p["x"]) + p["radius"]
        return bounds([(p["x"] - reach, BEAM_TOP), (p["x"] + reach, p["ground"])])

    def draw(self, canvas: Canvas, p: Params) -> None:
        ball = p.get("ball") or _hanging(p)
        string_end = (p["x"], BEAM_BOTTOM + 0.12) if p.get("state") == "cut" else ball
        canvas.line([(p["x"], BEAM_TOP + 0.03), string_end], STRING, DARK)
        canvas.rect((p["x"] - 0.2, BEAM_TOP, p["x"] + 0.2, BEAM_BOTTOM), WOOD)
        canvas.circle(ball, p["radius"], p["color"])


SCENE = Pendulum()
