"""A propped seesaw: it is released, or loses its big weight."""

from __future__ import annotations

from math import asin, degrees

import numpy as np
import pymunk

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look, Point, box_points, rotate
from reasonbrain.modules.data.reasonmini.scenes.common import uniform
from reasonbrain.modules.data.reasonmini.scenes.mechanics import (
    COLORS,
    REMOVABLE,
    WOOD,
    add_body,
    add_shape,
    bounds,
    new_space,
    random_side,
    settle,
    share_around,
)
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

# side 1: the big weight is at the right


def _pivot(p: Params) -> Point:
    return p["x"], p["ground"] - p["height"]


def _plank(p: Params) -> list[Point]:
    """The plank, relative to the pivot."""
    return box_points((-p["half"], -0.028, p["half"], 0.028))


def _weight(p: Params, size: str) -> list[Point]:
    """The weight, "big" or "small", relative to the pivot."""
    sign = p["side"] if size == "big" else -p["side"]
    x, s = sign * p[f"{size}_at"], p[size]
    return [(x - s / 2, -0.028), (x + s / 2, -0.028), (x + 0.36 * s, -0.028 - s), (x - 0.36 * s, -0.028 - s)]


def _turned(p: Params, points: list[Point], angle: float) -> list[Point]:
    """Points relative to the pivot as points of the picture, with the plank turned clockwise by ``angle`` degrees."""
    x, y = _pivot(p)
    return [(x + a, y + b) for a, b in rotate(points, angle, (0, 0))]


def _tilt(p: Params, *weights: str) -> float:
    """Angle in degrees at which the loaded plank comes to rest."""
    space = new_space(p["ground"])
    body = add_body(space, _pivot(p))
    for points in (_plank(p), *(_weight(p, w) for w in weights)):
        add_shape(space, body, points)
    space.add(pymunk.PivotJoint(space.static_body, body, (body.position.x, body.position.y)))
    settle(space)
    return round(degrees(body.angle), 2)


def _seesaw_released(p: Params) -> Params:
    return {**p, "state": "released", "angle": _tilt(p, "big", "small")}


def _seesaw_lightened(p: Params) -> Params:
    return {**p, "state": "lightened", "angle": _tilt(p, "small")}


def _weight_share(look: Look, p: Params, size: str, angle: float) -> float:
    center = _turned(p, [tuple(np.mean(_weight(p, size), axis=0))], angle)[0]
    return share_around(look, center, 0.28 * p[size], p["color"])


def _full_tilt(p: Params) -> float:
    """Approximate angle, in degrees, at which the plank touches the ground on the big weight's side."""
    return p["side"] * degrees(asin((p["height"] - 0.028) / p["half"]))


def _seesaw_released_seen(look: Look, p: Params) -> bool:
    tilt = _full_tilt(p)
    there = min(_weight_share(look, p, size, tilt) for size in ("big", "small"))
    return there > 0.55 and _weight_share(look, p, "small", 0) < 0.3


def _seesaw_lightened_seen(look: Look, p: Params) -> bool:
    tilt = -_full_tilt(p)
    gone = max(_weight_share(look, p, "big", angle) for angle in (0, tilt, -tilt))
    return _weight_share(look, p, "small", tilt) > 0.55 and gone < 0.2


class Seesaw(Scene):
    """A plank on a pivot with a big and a small weight, kept level by a purple prop under the big one's end."""

    name = "seesaw"
    colors = COLORS
    kinds = (
        Kind("seesaw_released", "physical", _seesaw_released, _seesaw_released_seen),
        Kind("seesaw_heavy_removed", "causal", _seesaw_lightened, _seesaw_lightened_seen),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        half = uniform(rng, 0.34, 0.39)
        return {
            "side": random_side(rng),
            "x": uniform(rng, 0.46, 0.54),
            "half": half,
            "height": uniform(rng, 0.18, 0.22),
            "big": uniform(rng, 0.18, 0.21),
            "big_at": round(half - uniform(rng, 0.1, 0.13), 4),
            "small": uniform(rng, 0.1, 0.12),
            "small_at": round(half - uniform(rng, 0.06, 0.1), 4),
            "ground": uniform(rng, 0.87, 0.92),
        }

    def zone(self, p: Params) -> Box:
        loaded = [*_plank(p), *_weight(p, "big"), *_weight(p, "small")]
        tilt = _full_tilt(p)
        return bounds([q for angle in (tilt, 0, -tilt) for q in _turned(p, loaded, angle)])

    def draw(self, canvas: Canvas, p: Params) -> None:
        state, angle = p.get("state"), p.get("angle", 0)
        (x, y), ground = _pivot(p), p["ground"]
        if state != "released":
            prop = x + p["side"] * (p["half"] - 0.06)
            canvas.rect((prop - 0.04, y + 0.028, prop + 0.04, ground), REMOVABLE)
        canvas.polygon([(x, y), (x + 0.09, ground), (x - 0.09, ground)], WOOD)
        canvas.polygon(_turned(p, _plank(p), angle), WOOD)
        for size in ("small",) if state == "lightened" else ("big", "small"):
            canvas.polygon(_turned(p, _weight(p, size), angle), p["color"])


SCENE = Seesaw()
