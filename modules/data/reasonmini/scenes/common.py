"""Helpers shared by several scenes: sampling, boxes, state changes, and fire."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import cos, pi, sin

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Color, Look, Point
from reasonbrain.modules.data.reasonmini.world import BACKGROUNDS, Params

GONE = 40  # tolerance where the old colour must not be: some walls and new things are only 50 to 80 from it
FIRE, FIRE_CORE = (244, 112, 24), (255, 218, 70)


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
    """A uniform random number from ``low`` to ``high``, rounded to 4 decimals."""
    return round(float(rng.uniform(low, high)), 4)


def around(center: Point, half_width: float, half_height: float | None = None) -> Box:
    """The box around a point; a square without ``half_height``."""
    x, y = center
    half_height = half_height or half_width
    return (x - half_width, y - half_height, x + half_width, y + half_height)


def wall_color(p: Params) -> Color:
    """The colour of the wall, or outdoors of the sky."""
    return BACKGROUNDS[p["background"]][0]


def _become(state: str, p: Params) -> Params:
    return {**p, "state": state}


def becomes(state: str) -> Callable[[Params], Params]:
    """An ``after`` that only sets the state; ``draw`` draws each state."""
    return partial(_become, state)


def _teardrop(x: float, base: float, width: float, height: float) -> list[Point]:
    """A flame's outline: round at the base, pointed at the top."""
    turns = [2 * pi * i / 32 for i in range(32)]
    return [(x + 0.65 * width * sin(t) * abs(sin(t / 2)), base - height * (1 + cos(t)) / 2) for t in turns]


def flames(canvas: Canvas, x: float, base: float, width: float, height: float) -> None:
    """Draws three tongues of fire with yellow cores, the middle one ``height`` high."""
    tongues = ((-0.28, 0.65), (0.28, 0.75), (0, 1))
    for color, scale in ((FIRE, 1.0), (FIRE_CORE, 0.55)):
        for offset, part in tongues:
            canvas.polygon(_teardrop(x + offset * width, base, 0.6 * width * scale, height * part * scale), color)


def burns(look: Look, box: Box) -> bool:
    """Whether the box is full of fire, both yellow and orange."""
    return look.share(box, FIRE) + look.share(box, FIRE_CORE) > 0.6 and look.share(box, FIRE_CORE) > 0.15
