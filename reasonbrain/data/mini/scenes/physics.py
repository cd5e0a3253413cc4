"""Scenes of mechanics: ramp, seesaw, tower, pendulum and balloon.

Where a thing falls, rolls or tips over, its resting place comes from a small 2-D simulation (pymunk). What
may be taken away to set things going (a peg, a prop) is purple throughout, and no main object is purple.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from math import asin, cos, degrees, hypot, radians, sin

import numpy as np
import pymunk

from ..canvas import Box, Canvas, Color, Look, Point, box_points, rotate
from ..world import Kind, Params, Scene

WOOD = (84, 52, 30)
DARK: Color = "black"
REMOVABLE: Color = "purple"
COLORS = ("red", "orange", "yellow", "green", "blue", "pink")
STRING = 0.028  # width
UNITS = 100.0  # of the simulation, to the side of the picture


def _space(ground: float) -> pymunk.Space:
    """A world with a rough floor at y = ``ground`` (of the picture), where nothing bounces."""
    space = pymunk.Space()
    space.gravity = (0, 5 * UNITS)
    space.collision_slop = 0.01
    _solid(space, space.static_body, box_points((-10, ground, 10, ground + 1)))
    return space


def _solid(space: pymunk.Space, body: pymunk.Body, points: list[Point], friction: float = 1.0) -> None:
    """Gives the body a convex shape; ``points`` are relative to the body's place, of the picture's size."""
    shape = pymunk.Poly(body, [(x * UNITS, y * UNITS) for x, y in points])
    shape.friction, shape.density = friction, 1.0
    space.add(shape)


def _body(space: pymunk.Space, at: Point) -> pymunk.Body:
    body = pymunk.Body()
    body.position = (at[0] * UNITS, at[1] * UNITS)
    space.add(body)
    return body


def _ball(space: pymunk.Space, at: Point, radius: float) -> pymunk.Body:
    body = _body(space, at)
    shape = pymunk.Circle(body, radius * UNITS)
    shape.friction, shape.density = 1.0, 1.0
    space.add(shape)
    return body


def _settle(space: pymunk.Space) -> None:
    """Lets time pass until everything has been at rest for a moment (at most eight seconds)."""
    still = 0
    for _ in range(8 * 200):
        space.step(1 / 200)
        moving = any(b.velocity.length > 1 or abs(b.angular_velocity) > 0.05 for b in space.bodies)
        still = 0 if moving else still + 1
        if still == 15:
            break


def _place(body: pymunk.Body) -> list[float]:
    return [round(v / UNITS, 4) for v in body.position]


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 4)


def _side(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _share(look: Look, at: Point, half: float, color: Color) -> float:
    """Share of a colour in the square of half-side ``half`` about a point."""
    x, y = at
    return look.share((x - half, y - half, x + half, y + half), color, 52)


def _bounds(points: list[Point], margin: float = 0.02) -> Box:
    xs, ys = zip(*points, strict=True)
    return min(xs) - margin, min(ys) - margin, max(xs) + margin, max(ys) + margin


# Ramp: described as running down to the right; side -1 mirrors it.


def _ramp_point(p: Params, along: float, above: float) -> Point:
    """The point so far down the slope from its top and so far off its surface."""
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
    space = _space(p["ground"])
    _solid(space, space.static_body, _ramp_wedge(p))
    _solid(space, space.static_body, _ramp_stop(p), friction=0)  # or the spinning ball would climb it
    ball = _ball(space, _ramp_ball(p), p["radius"])
    _settle(space)
    return {**p, "state": "released", "ball": _place(ball)}


def _mirror(p: Params, points: list[Point]) -> list[Point]:
    return [(0.5 + p["side"] * (x - 0.5), y) for x, y in points]


def _ramp_released_seen(look: Look, p: Params) -> bool:
    old, new = _mirror(p, [_ramp_ball(p), (p["stop"] - p["radius"], p["ground"] - p["radius"])])
    half = 0.5 * p["radius"]
    return _share(look, new, half, p["color"]) > 0.6 and _share(look, old, half, p["color"]) < 0.2


class Ramp(Scene):
    """A ball held by a purple peg at the top of a ramp, a stop block at the far end of the floor."""

    name = "ramp"
    colors = COLORS
    kinds = (
        Kind(
            "ramp_ball_released",
            "physical",
            ("the {color} ball", "the purple peg", "the ramp"),
            "the {color} ball has rolled down the ramp and rests against the block",
            (
                "Release the ball.",
                "Pull out the peg and let the {color} ball go.",
                "Let the {color} ball roll down the ramp.",
                "Remove the purple peg that holds the ball.",
                "Take the peg away from the ramp.",
                "The peg at the top of the ramp is pulled out.",
                "Show this ball at the end of its way down.",
                "Nothing holds the {color} ball back any more.",
                "What would happen if the peg were removed?",
                "What if someone pulled the purple peg out of the ramp?",
                "Imagine the ball is released; where would it come to rest?",
                "If the peg broke, how would this picture look?",
                "Suppose the ball were free to roll; where would it stop?",
                "How would this look if gravity took the {color} ball down to the block?",
            ),
            (
                "What if the ball were released from the top of the ramp?",
                "Remove the peg and let the ball roll to the block.",
                "Suppose the purple peg broke; where would the {color} ball rest?",
                "How would the picture look if someone pulled out the peg?",
                "Imagine nothing holds the ball at the top.",
            ),
            _ramp_released,
            _ramp_released_seen,
        ),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        radius, left, width = _uniform(rng, 0.085, 0.105), _uniform(rng, 0.05, 0.12), _uniform(rng, 0.36, 0.44)
        return {
            "side": _side(rng),
            "radius": radius,
            "left": left,
            "width": width,
            "height": _uniform(rng, 0.34, 0.46),
            "stop": round(min(left + width + 2 * radius + float(rng.uniform(0.04, 0.14)), 0.88), 4),
            "ground": _uniform(rng, 0.87, 0.92),
        }

    def zone(self, p: Params) -> Box:
        top = _ramp_ball(p)[1] - p["radius"]
        return _bounds(_mirror(p, [(p["left"], top), (p["stop"] + 0.08, p["ground"])]))

    def draw(self, canvas: Canvas, p: Params) -> None:
        canvas.polygon(_mirror(p, _ramp_wedge(p)), WOOD)
        canvas.polygon(_mirror(p, _ramp_stop(p)), WOOD)
        if p.get("state") != "released":
            start, end, tall = 1.75 * p["radius"], 1.75 * p["radius"] + 0.055, 1.3 * p["radius"]
            peg = [_ramp_point(p, *q) for q in ((start, -0.02), (end, -0.02), (end, tall), (start, tall))]
            canvas.polygon(_mirror(p, peg), REMOVABLE)
        canvas.circle(_mirror(p, [_ramp_ball(p)])[0], p["radius"], p["color"])


# Seesaw: side 1 has the big weight at the right.


def _pivot(p: Params) -> Point:
    return p["x"], p["ground"] - p["height"]


def _plank(p: Params) -> list[Point]:
    """The plank about the pivot."""
    return box_points((-p["half"], -0.028, p["half"], 0.028))


def _weight(p: Params, size: str) -> list[Point]:
    """The weight, "big" or "small", about the pivot."""
    sign = p["side"] if size == "big" else -p["side"]
    x, s = sign * p[f"{size}_at"], p[size]
    return [(x - s / 2, -0.028), (x + s / 2, -0.028), (x + 0.36 * s, -0.028 - s), (x - 0.36 * s, -0.028 - s)]


def _turned(p: Params, points: list[Point], angle: float) -> list[Point]:
    """Points about the pivot in the picture, the plank turned clockwise by ``angle`` degrees."""
    x, y = _pivot(p)
    return [(x + a, y + b) for a, b in rotate(points, angle, (0, 0))]


def _tilt(p: Params, *weights: str) -> float:
    """Angle in degrees at which the loaded plank comes to rest."""
    space = _space(p["ground"])
    body = _body(space, _pivot(p))
    for points in (_plank(p), *(_weight(p, w) for w in weights)):
        _solid(space, body, points)
    space.add(pymunk.PivotJoint(space.static_body, body, (body.position.x, body.position.y)))
    _settle(space)
    return round(degrees(body.angle), 2)


def _seesaw_released(p: Params) -> Params:
    return {**p, "state": "released", "angle": _tilt(p, "big", "small")}


def _seesaw_lightened(p: Params) -> Params:
    return {**p, "state": "lightened", "angle": _tilt(p, "small")}


def _weight_share(look: Look, p: Params, size: str, angle: float) -> float:
    center = _turned(p, [tuple(np.mean(_weight(p, size), axis=0))], angle)[0]
    return _share(look, center, 0.28 * p[size], p["color"])


def _full_tilt(p: Params) -> float:
    """About how far the plank can turn to the big weight's side."""
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
        Kind(
            "seesaw_released",
            "physical",
            ("the plank with two {color} weights", "the purple prop"),
            "the seesaw has tilted, the big {color} weight down and the small one up",
            (
                "Release the seesaw.",
                "Remove the purple prop under the plank.",
                "Take away the prop and let the seesaw tip.",
                "Let the seesaw tilt freely with both {color} weights on it.",
                "Knock the purple prop out from under the plank.",
                "The prop under the big {color} weight is pulled away.",
                "Nothing props up the plank any more.",
                "Leave both weights on the plank and let it go.",
                "What would happen if the purple prop were removed?",
                "What if someone pulled out the prop that keeps the plank level?",
                "Imagine the seesaw is released with both {color} weights still on; how would it look?",
                "If the seesaw lost its prop, which way would it tip?",
                "Suppose the plank were free to tilt under both weights.",
                "How would this look if the prop gave way?",
            ),
            (
                "What if the seesaw were released?",
                "Suppose someone pulled away the purple prop; which way would it tilt?",
                "Take the prop out from under the plank.",
                "How would the seesaw look if its prop were removed?",
                "Imagine both weights tilt the seesaw freely.",
            ),
            _seesaw_released,
            _seesaw_released_seen,
        ),
        Kind(
            "seesaw_heavy_removed",
            "causal",
            ("the big {color} weight", "the small {color} weight", "the plank"),
            "the big {color} weight is gone and the plank has tilted down to the small one's side",
            (
                "Remove the big weight.",
                "Take the big {color} weight off the plank.",
                "Lift the heavy weight off the seesaw.",
                "The heavier {color} weight is taken off the seesaw.",
                "Leave only the small {color} weight on the plank.",
                "Someone carries the big weight away.",
                "Only the lighter weight stays on the seesaw.",
                "Show the seesaw after the heavy weight has been lifted off.",
                "What would happen if the big weight were removed?",
                "What if someone took the heavy weight away?",
                "Imagine the larger of the two weights was gone; how would the seesaw look?",
                "If the heavier weight fell off, which way would the plank go?",
                "Suppose the small weight were the only one left.",
                "How would this look without the big {color} weight?",
            ),
            (
                "What if the heavy weight were lifted off the plank?",
                "Take away the heavier weight.",
                "Suppose someone took the big {color} weight off the seesaw.",
                "How would the seesaw look if only the small weight were left?",
                "Imagine the big weight was removed; which way would the plank go?",
            ),
            _seesaw_lightened,
            _seesaw_lightened_seen,
        ),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        half = _uniform(rng, 0.34, 0.39)
        return {
            "side": _side(rng),
            "x": _uniform(rng, 0.46, 0.54),
            "half": half,
            "height": _uniform(rng, 0.18, 0.22),
            "big": _uniform(rng, 0.18, 0.21),
            "big_at": round(half - _uniform(rng, 0.1, 0.13), 4),
            "small": _uniform(rng, 0.1, 0.12),
            "small_at": round(half - _uniform(rng, 0.06, 0.1), 4),
            "ground": _uniform(rng, 0.87, 0.92),
        }

    def zone(self, p: Params) -> Box:
        loaded = [*_plank(p), *_weight(p, "big"), *_weight(p, "small")]
        tilt = _full_tilt(p)
        return _bounds([q for angle in (tilt, 0, -tilt) for q in _turned(p, loaded, angle)])

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


# Tower: a block is [its number from the bottom, x, y of its middle, angle].


@cache
def _toppled(count: int) -> list[list[float]]:
    """Where the blocks come to rest, in block sides from the tower's foot (so that size does not matter)."""
    space = _space(0)
    bodies = []
    for i in range(count):
        bodies.append(_body(space, (0, -i - 0.5)))
        _solid(space, bodies[-1], box_points((-0.5, -0.5, 0.5, 0.5)))
        bodies[-1].velocity = (0.85 * UNITS * (i + 0.5), 0)  # any push of 0.6 to 1 ends much alike
    _settle(space)
    return [[i, *_place(b), round(degrees(b.angle), 1)] for i, b in enumerate(bodies)]


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
    """The least share of a block's own colour in any of the blocks' middles."""
    return min(_share(look, (x, y), 0.25 * p["block"], _block_color(p, i)) for i, x, y, _ in _tower_blocks(p))


def _top_share(look: Look, p: Params) -> float:
    i, x, y, _ = _tower_blocks(p)[-1]
    return _share(look, (x, y), 0.3 * p["block"], _block_color(p, i))


def _tower_pushed_seen(look: Look, p: Params) -> bool:
    return _blocks_seen(look, _tower_pushed(p)) > 0.5 and _top_share(look, p) < 0.2


def _tower_lowered_seen(look: Look, p: Params) -> bool:
    return _blocks_seen(look, _tower_lowered(p)) > 0.5 and _top_share(look, p) < 0.2


class Tower(Scene):
    """A tower of three or four square blocks, by turns in the main colour and black, at the left."""

    name = "tower"
    colors = COLORS
    kinds = (
        Kind(
            "tower_pushed",
            "physical",
            ("the tower of {color} and black blocks",),
            "the {color} and black blocks of the tower lie scattered on the floor",
            (
                "Push the tower over.",
                "Knock over the tower of {color} and black blocks.",
                "Tip the tower over to the right.",
                "Give the tower a hard push from the left.",
                "Make the whole tower of {color} blocks fall over.",
                "Topple this tower.",
                "Someone pushes the tower from the left.",
                "A strong wind from the left knocks the blocks down.",
                "What would happen if someone pushed the tower over?",
                "What if the {color} tower were knocked over?",
                "Imagine a child ran into the tower; where would the blocks lie?",
                "If the tower toppled, how would this picture look?",
                "Suppose a hand gave the blocks a hard push from the left.",
                "How would it look if the whole tower fell over on the floor?",
            ),
            (
                "What if someone knocked the tower over from the left?",
                "Push the whole tower of {color} and black blocks over.",
                "Suppose the tower toppled; where would the blocks lie?",
                "How would this look if a strong wind knocked over the tower?",
                "Imagine someone gave the tower a hard push.",
            ),
            _tower_pushed,
            _tower_pushed_seen,
        ),
        Kind(
            "tower_bottom_removed",
            "physical",
            ("the {color} block at the bottom", "the tower of blocks"),
            "the lowest {color} block is gone and the others have dropped by one",
            (
                "Remove the bottom block.",
                "Pull out the {color} block at the bottom of the tower.",
                "Take away the lowest block.",
                "Take the lowest {color} block out of the tower.",
                "Quickly pull the bottom block away.",
                "The lowest block is pulled out and the others drop.",
                "Show the tower one block shorter, without its lowest block.",
                "Let the other blocks drop straight down by one.",
                "What would happen if the bottom block were removed?",
                "What if someone quickly pulled out the {color} block at the bottom?",
                "Imagine the lowest block was gone; how would the tower look?",
                "If the bottom block vanished, where would the others be?",
                "Suppose the tower lost its bottom block.",
                "How would this look without the lowest block?",
            ),
            (
                "What if the lowest block were pulled away?",
                "Quickly take the bottom block out of the tower.",
                "Suppose someone removed the lowest {color} block.",
                "How would the tower look if its bottom block vanished?",
                "Imagine the tower without the block at the bottom.",
            ),
            _tower_lowered,
            _tower_lowered_seen,
        ),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        count = int(rng.integers(3, 5))
        block = round(float(rng.uniform(0.5, 0.56)) / count, 4)
        furthest = _toppled(count)[-1][1] + 0.5
        return {
            "count": count,
            "block": block,
            "x": _uniform(rng, 0.03 + block / 2, 0.98 - furthest * block),
            "ground": _uniform(rng, 0.87, 0.92),
        }

    def zone(self, p: Params) -> Box:
        both = [*_tower_blocks(p), *_tower_blocks(_tower_pushed(p))]
        return _bounds([(x, y) for _, x, y, _ in both], 0.5 * p["block"] + 0.02)

    def draw(self, canvas: Canvas, p: Params) -> None:
        s = p["block"] / 2
        for i, x, y, angle in _tower_blocks(p):
            canvas.polygon(rotate(box_points((x - s, y - s, x + s, y + s)), angle, (x, y)), _block_color(p, i))


BEAM_TOP, BEAM_BOTTOM = 0.05, 0.12


def _hanging(p: Params, sign: int = 1) -> Point:
    """Where the ball hangs, or where it is on the other side with sign -1."""
    angle = radians(p["angle"])
    return p["x"] + sign * p["side"] * p["length"] * sin(angle), BEAM_BOTTOM + p["length"] * cos(angle)


def _pendulum_cut(p: Params) -> Params:
    space = _space(p["ground"])
    ball = _ball(space, _hanging(p), p["radius"])
    _settle(space)
    return {**p, "state": "cut", "ball": _place(ball)}


def _pendulum_swung(p: Params) -> Params:
    return {**p, "state": "swung", "side": -p["side"]}


def _ball_went(look: Look, p: Params, to: Point) -> bool:
    half = 0.5 * p["radius"]
    return _share(look, to, half, p["color"]) > 0.6 and _share(look, _hanging(p), half, p["color"]) < 0.2


def _pendulum_cut_seen(look: Look, p: Params) -> bool:
    return _ball_went(look, p, (_hanging(p)[0], p["ground"] - p["radius"]))


def _pendulum_swung_seen(look: Look, p: Params) -> bool:
    return _ball_went(look, p, _hanging(p, -1))


class Pendulum(Scene):
    """A ball on a string under a beam, held aside to the left or the right."""

    name = "pendulum"
    colors = COLORS
    kinds = (
        Kind(
            "pendulum_string_cut",
            "physical",
            ("the {color} ball", "the string"),
            "the string is cut and the {color} ball lies on the floor",
            (
                "Cut the string.",
                "Cut the string that holds the {color} ball.",
                "Snip the string with scissors.",
                "Let the {color} ball drop to the floor.",
                "Someone cuts the string above the ball.",
                "The string snaps and the {color} ball falls.",
                "Drop the ball straight down.",
                "Show the ball lying on the floor below.",
                "What would happen if the string were cut?",
                "What if someone snipped the string of the {color} ball with scissors?",
                "Imagine the string broke; where would the ball lie?",
                "If the string could not hold the ball any more, how would this look?",
                "Suppose the string snapped right now.",
                "How would the picture look if the ball fell off its string?",
            ),
            (
                "What if the string snapped and the {color} ball fell?",
                "Snip the string above the ball.",
                "Suppose someone cut the string with scissors.",
                "How would this look if the string broke?",
                "Imagine the ball lying on the floor below its string.",
            ),
            _pendulum_cut,
            _pendulum_cut_seen,
        ),
        Kind(
            "pendulum_swings_over",
            "physical",
            ("the {color} ball", "the string", "the beam"),
            "the {color} ball has swung over to the other side",
            (
                "Let the pendulum swing to the other side.",
                "Swing the {color} ball over to the opposite side.",
                "Release the ball and let it swing across.",
                "Move the pendulum through half a swing.",
                "Show the {color} ball at the far end of its swing.",
                "The hand lets go and the pendulum swings over.",
                "The {color} ball swings across on its string.",
                "Show this pendulum half a swing later.",
                "What would happen if the pendulum were allowed to swing across?",
                "What if someone released the ball and it swung to the opposite side?",
                "Imagine the pendulum has swung over; where would the ball be?",
                "If the ball swung freely on its string, how far across would it get?",
                "Suppose the hand let go and the pendulum made half a swing.",
                "How would this look when the ball is on the other side?",
            ),
            (
                "What if the ball swung across to the other side?",
                "Let the {color} ball swing over on its string.",
                "Suppose the pendulum were released and swung to the opposite side.",
                "How would the pendulum look half a swing later?",
                "Imagine the hand lets go and the ball swings across.",
            ),
            _pendulum_swung,
            _pendulum_swung_seen,
        ),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "side": _side(rng),
            "x": _uniform(rng, 0.44, 0.56),
            "angle": _uniform(rng, 30, 42),
            "length": _uniform(rng, 0.4, 0.48),
            "radius": _uniform(rng, 0.085, 0.105),
            "ground": _uniform(rng, 0.87, 0.92),
        }

    def zone(self, p: Params) -> Box:
        reach = abs(_hanging(p)[0] - p["x"]) + p["radius"]
        return _bounds([(p["x"] - reach, BEAM_TOP), (p["x"] + reach, p["ground"])])

    def draw(self, canvas: Canvas, p: Params) -> None:
        ball = p.get("ball") or _hanging(p)
        string_end = (p["x"], BEAM_BOTTOM + 0.12) if p.get("state") == "cut" else ball
        canvas.line([(p["x"], BEAM_TOP + 0.03), string_end], STRING, DARK)
        canvas.rect((p["x"] - 0.2, BEAM_TOP, p["x"] + 0.2, BEAM_BOTTOM), WOOD)
        canvas.circle(ball, p["radius"], p["color"])


CEILING = 0.06
SCRAPS = (-0.27, -0.15, 0.28)  # x from the weight


def _balloon_in(state: str) -> Callable[[Params], Params]:
    return lambda p: {**p, "state": state}


def _balloon_old(look: Look, p: Params) -> float:
    return _share(look, (p["x"], p["y"] + 0.3 * p["radius"]), 0.4 * p["radius"], p["color"])


def _balloon_untied_seen(look: Look, p: Params) -> bool:
    top = (p["x"], CEILING + 0.7 * p["radius"])
    return _share(look, top, 0.35 * p["radius"], p["color"]) > 0.6 and _balloon_old(look, p) < 0.25


def _balloon_pricked_seen(look: Look, p: Params) -> bool:
    x, y = p["x"], p["ground"]
    scraps = min(look.share((x + dx - 0.04, y - 0.05, x + dx + 0.04, y), p["color"], 52) for dx in SCRAPS)
    return scraps > 0.35 and _balloon_old(look, p) < 0.2


def _balloon_later_seen(look: Look, p: Params) -> bool:
    small = (p["x"] + 0.2, p["ground"] - 0.07)
    return _share(look, small, 0.035, p["color"]) > 0.6 and _balloon_old(look, p) < 0.2


class Balloon(Scene):
    """A balloon under the ceiling on a string that is tied to a black weight on the floor."""

    name = "balloon"
    colors = COLORS
    kinds = (
        Kind(
            "balloon_untied",
            "physical",
            ("the {color} balloon", "the string", "the black weight"),
            "the {color} balloon has risen to the ceiling while the weight stays on the floor",
            (
                "Untie the balloon.",
                "Untie the string from the weight.",
                "Let the {color} balloon float up to the ceiling.",
                "Set the {color} balloon free.",
                "Make the balloon rise as far as it can.",
                "Someone unties the string and the balloon flies up.",
                "Let go of the {color} balloon.",
                "The knot at the weight comes loose.",
                "What would happen if the balloon were untied?",
                "What if someone untied the string of this {color} balloon?",
                "Imagine the knot came loose; where would the balloon float?",
                "If nothing held the balloon down, how would this look?",
                "Suppose the string slipped off the weight.",
                "How would the picture look if the balloon were free to rise?",
            ),
            (
                "What if the string came loose from the weight?",
                "Untie the knot and let the balloon rise.",
                "Suppose someone untied the {color} balloon.",
                "How would this look if nothing held the balloon?",
                "Imagine the balloon were set free; where would it float?",
            ),
            _balloon_in("untied"),
            _balloon_untied_seen,
        ),
        Kind(
            "balloon_pricked",
            "causal",
            ("the {color} balloon", "the string"),
            "the {color} balloon has burst and its scraps lie on the floor",
            (
                "Pop the balloon.",
                "Burst the {color} balloon.",
                "Prick the balloon with a needle.",
                "Stick a pin into the {color} balloon.",
                "The {color} balloon bursts with a bang.",
                "Someone pokes the balloon with something sharp.",
                "A sharp needle touches the balloon.",
                "Show only scraps of the balloon on the floor.",
                "What would happen if someone pricked the balloon?",
                "What if a needle were stuck into this {color} balloon?",
                "Imagine the balloon popped; what would be left of it?",
                "If a sharp pin touched the balloon, how would this look?",
                "Suppose a dart hit the balloon.",
                "How would the picture look if the balloon burst?",
            ),
            (
                "What if someone popped the {color} balloon?",
                "Stick a sharp needle into the balloon.",
                "Suppose the balloon were pricked with a pin.",
                "How would this look if a dart hit the {color} balloon?",
                "Imagine only scraps were left of the balloon.",
            ),
            _balloon_in("pricked"),
            _balloon_pricked_seen,
        ),
        Kind(
            "balloon_days_later",
            "temporal",
            ("the {color} balloon", "the string", "the black weight"),
            "the {color} balloon has shrunk and lies on the floor beside its weight",
            (
                "Show the balloon a few days later.",
                "Let several days pass.",
                "Let the {color} balloon slowly lose its gas.",
                "Make the {color} balloon old and shrunken.",
                "Leave the balloon here for a week.",
                "A week passes and the balloon slowly shrinks.",
                "The {color} balloon has slowly lost its gas over many days.",
                "Come back to this balloon after a week.",
                "What would happen if the balloon were left here for several days?",
                "What will this {color} balloon look like in a week?",
                "Imagine many days have passed; how would the balloon look?",
                "If a week went by since the party, how would this look?",
                "Suppose the party was many days ago.",
                "How would this look a few days after the party?",
            ),
            (
                "What will the balloon look like after several days?",
                "Leave the {color} balloon for a few days.",
                "Suppose a week has passed since the party.",
                "How would this look if the balloon slowly lost its gas?",
                "Imagine the balloon many days later, old and shrunken.",
            ),
            _balloon_in("later"),
            _balloon_later_seen,
        ),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": _uniform(rng, 0.36, 0.64),
            "y": _uniform(rng, 0.48, 0.53),
            "radius": _uniform(rng, 0.13, 0.16),
            "ground": _uniform(rng, 0.88, 0.92),
        }

    def zone(self, p: Params) -> Box:
        return p["x"] - 0.34, 0, p["x"] + 0.34, p["ground"] + 0.02

    def draw(self, canvas: Canvas, p: Params) -> None:
        x, ground, color, state = p["x"], p["ground"], p["color"], p.get("state")
        canvas.rect((0, 0, 1, CEILING), WOOD)
        rise = p["y"] - CEILING - 1.15 * p["radius"] if state == "untied" else 0
        if state == "pricked":
            canvas.line([(x, ground - 0.015), (x + 0.22, ground - 0.015)], STRING, DARK)
            for dx in SCRAPS:
                torn = ((-0.05, 0), (-0.05, -0.075), (-0.02, -0.045), (0.025, -0.085), (0.05, -0.03), (0.05, 0))
                canvas.polygon([(x + dx + a, ground + b) for a, b in torn], color)
        elif state == "later":
            canvas.line([(x, ground - 0.1), (x + 0.12, ground - 0.07)], STRING, DARK)
            canvas.ellipse((x + 0.11, ground - 0.14, x + 0.29, ground), color)
        else:
            y, r = p["y"] - rise, p["radius"]
            canvas.line([(x, y), (x, ground - 0.08 - rise)], STRING, DARK)
            canvas.polygon([(x, y + r), (x + 0.04, y + 1.3 * r), (x - 0.04, y + 1.3 * r)], color)
            canvas.ellipse((x - r, y - 1.15 * r, x + r, y + 1.15 * r), color)
        top = ground - 0.1
        canvas.polygon([(x - 0.05, top), (x + 0.05, top), (x + 0.08, ground), (x - 0.08, ground)], DARK)


SCENES = (Ramp(), Seesaw(), Tower(), Pendulum(), Balloon())
