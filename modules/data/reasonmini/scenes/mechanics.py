"""Helpers shared by the mechanics scenes: colours, and a small 2-D simulation (pymunk) that computes where an object
that falls, rolls or tips over comes to rest.

Objects whose removal starts the motion (a peg, a prop) are always purple, and no main object is purple.
"""

from __future__ import annotations

import numpy as np
import pymunk

from reasonbrain.modules.data.reasonmini.canvas import Box, Color, Look, Point, box_points
from reasonbrain.modules.data.reasonmini.scenes.common import around

WOOD = (84, 52, 30)
DARK: Color = "black"
REMOVABLE: Color = "purple"
COLORS = ("red", "orange", "yellow", "green", "blue", "pink")
STRING = 0.028  # width
UNITS = 100.0  # simulation units per side of the picture


def new_space(ground: float) -> pymunk.Space:
    """A simulation with a rough floor at y = ``ground`` of the picture, where nothing bounces."""
    space = pymunk.Space()
    space.gravity = (0, 5 * UNITS)
    space.collision_slop = 0.01
    add_shape(space, space.static_body, box_points((-10, ground, 10, ground + 1)))
    return space


def add_shape(space: pymunk.Space, body: pymunk.Body, points: list[Point], friction: float = 1.0) -> None:
    """Adds a convex shape to the body. ``points``: relative to the body's position, in fractions of the picture's
    side."""
    shape = pymunk.Poly(body, [(x * UNITS, y * UNITS) for x, y in points])
    shape.friction, shape.density = friction, 1.0
    space.add(shape)


def add_body(space: pymunk.Space, at: Point) -> pymunk.Body:
    """Adds a dynamic body without a shape at a point of the unit square."""
    body = pymunk.Body()
    body.position = (at[0] * UNITS, at[1] * UNITS)
    space.add(body)
    return body


def add_ball(space: pymunk.Space, at: Point, radius: float) -> pymunk.Body:
    """Adds a ball with friction. ``at`` and ``radius`` are in fractions of the image's side."""
    body = add_body(space, at)
    shape = pymunk.Circle(body, radius * UNITS)
    shape.friction, shape.density = 1.0, 1.0
    space.add(shape)
    return body


def settle(space: pymunk.Space) -> None:
    """Steps the simulation until all bodies have been at rest for 15 steps, or for at most eight seconds."""
    still = 0
    for _ in range(8 * 200):
        space.step(1 / 200)
        moving = any(b.velocity.length > 1 or abs(b.angular_velocity) > 0.05 for b in space.bodies)
        still = 0 if moving else still + 1
        if still == 15:
            break


def place(body: pymunk.Body) -> list[float]:
    """The position of the body in the picture."""
    return [round(v / UNITS, 4) for v in body.position]


def random_side(rng: np.random.Generator) -> int:
    """-1 (left) or 1 (right), each with probability 1/2."""
    return 1 if rng.random() < 0.5 else -1


def share_around(look: Look, center: Point, half: float, color: Color) -> float:
    """Share of a colour in the square of half-side ``half`` around a point."""
    return look.share(around(center, half), color, 52)


def bounds(points: list[Point], margin: float = 0.02) -> Box:
    """The box around the points, with a margin on each side."""
    xs, ys = zip(*points, strict=True)
    return min(xs) - margin, min(ys) - margin, max(xs) + margin, max(ys) + margin
