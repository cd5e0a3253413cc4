"""A hero at a castle door: the hero opens it, or turns to stone."""

from __future__ import annotations

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look, Point, shade
from reasonbrain.modules.data.reasonmini.scenes.common import GONE, around, becomes, uniform, wall_color
from reasonbrain.modules.data.reasonmini.world import FLOOR, Kind, Params, Scene

GOLD = (226, 166, 16)
WOOD = (134, 86, 48)
MASONRY = (98, 100, 112)
DAYLIGHT = (255, 240, 120)
SKIN = (240, 190, 150)
HAIR = (84, 52, 30)
PETRIFIED = (128, 134, 138)


def _hero_coat_box(p: Params) -> Box:
    """Well inside the coat."""
    return around((p["x"], p["ground"] - 0.36 * p["h"]), 0.07 * p["h"], 0.14 * p["h"])


def _hero_door_box(p: Params) -> Box:
    """The doorway without its round top."""
    return p["door_x"] - p["door_w"] / 2, FLOOR - p["door_h"], p["door_x"] + p["door_w"] / 2, FLOOR


def _hero_doorway_box(p: Params) -> Box:
    """Well inside the doorway, clear of the keyhole."""
    return around((p["door_x"] + 0.02, FLOOR - 0.5 * p["door_h"]), 0.24 * p["door_w"], 0.4 * p["door_h"])


def _hero_key_center(p: Params) -> Point:
    return p["x"] + 0.36 * p["h"], p["ground"] - 0.5 * p["h"]


def _hero_key_box(p: Params) -> Box:
    return around(_hero_key_center(p), 0.04, 0.13)


def _hero_opened_door(look: Look, p: Params) -> bool:
    doorway = _hero_doorway_box(p)
    return (
        look.share(doorway, DAYLIGHT) > 0.6
        and look.share(doorway, WOOD) < 0.2
        and look.share(_hero_key_box(p), GOLD) < 0.12
        and look.share(_hero_coat_box(p), p["color"]) > 0.5
    )


def _hero_turned_to_stone(look: Look, p: Params) -> bool:
    coat = _hero_coat_box(p)
    return (
        look.share(coat, PETRIFIED) > 0.6
        and look.share(coat, p["color"], GONE) < 0.2
        and look.share(_hero_key_box(p), GOLD, 75) > 0.2
        and look.share(_hero_doorway_box(p), WOOD) > 0.5
    )


class Hero(Scene):
    """A small hero in a coloured coat holds a big golden key; at the right a closed castle door."""

    name = "hero"
    colors = ("red", "green", "blue", "pink", "orange")  # not purple, too near to stone
    kinds = (
        Kind("hero_opens_door", "story", becomes("open"), _hero_opened_door),
        Kind("hero_turns_to_stone", "story", becomes("stone"), _hero_turned_to_stone),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": uniform(rng, 0.2, 0.24),
            "h": uniform(rng, 0.48, 0.6),
            "ground": uniform(rng, 0.87, 0.93),
            "door_x": uniform(rng, 0.69, 0.74),
            "door_w": uniform(rng, 0.24, 0.28),
            "door_h": uniform(rng, 0.36, 0.44),
        }

    def zone(self, p: Params) -> Box:
        _, spring, right, _ = _hero_door_box(p)
        top = min(p["ground"] - 1.02 * p["h"], spring - p["door_w"] / 2 - 0.06)
        return p["x"] - 0.27 * p["h"], top, right + 0.14, p["ground"] + 0.01

    def draw(self, canvas: Canvas, p: Params) -> None:
        self._door(canvas, p)
        if p.get("state") != "open":
            kx, ky = _hero_key_center(p)
            canvas.rect((kx - 0.02, ky - 0.06, kx + 0.02, ky + 0.15), GOLD)
            canvas.rect((kx, ky + 0.04, kx + 0.065, ky + 0.08), GOLD)
            canvas.rect((kx, ky + 0.11, kx + 0.065, ky + 0.15), GOLD)
            canvas.circle((kx, ky - 0.08), 0.065, GOLD)
            canvas.circle((kx, ky - 0.08), 0.025, wall_color(p))
        self._figure(canvas, p)

    def _door(self, canvas: Canvas, p: Params) -> None:
        left, spring, right, bottom = _hero_door_box(p)
        is_open = p.get("state") == "open"
        fill, radius = DAYLIGHT if is_open else WOOD, p["door_w"] / 2
        for color, margin in ((MASONRY, 0.05), (fill, 0.0)):
            canvas.circle((p["door_x"], spring), radius + margin, color)
            canvas.rect((left - margin, spring, right + margin, bottom), color)
        if is_open:
            leaf = [(right, spring - 0.04), (right + 0.12, spring), (right + 0.12, bottom + 0.05), (right, bottom)]
            canvas.polygon(leaf, WOOD)
        else:
            canvas.circle((left + 0.06, bottom - 0.5 * p["door_h"]), 0.028, "black")

    def _figure(self, canvas: Canvas, p: Params) -> None:
        x, y, h = p["x"], p["ground"], p["h"]
        stone = p.get("state") == "stone"
        coat = PETRIFIED if stone else p["color"]
        skin, dark = (shade(PETRIFIED, 1.35), shade(PETRIFIED, 0.7)) if stone else (SKIN, HAIR)
        for side in (-1, 1):
            canvas.rect(around((x + side * 0.1 * h, y - 0.07 * h), 0.06 * h, 0.07 * h), dark)
        canvas.line([(x, y - 0.52 * h), (x + 0.34 * h, y - 0.44 * h)], 0.12 * h, shade(coat, 0.8))
        canvas.circle((x + 0.34 * h, y - 0.44 * h), 0.06 * h, skin)
        coat_points = ((-0.13, 0.64), (0.13, 0.64), (0.25, 0.13), (-0.25, 0.13))
        canvas.polygon([(x + dx * h, y - dy * h) for dx, dy in coat_points], coat)
        canvas.circle((x, y - 0.8 * h), 0.2 * h, dark)
        canvas.circle((x + 0.02 * h, y - 0.76 * h), 0.15 * h, skin)
        for side in (-1, 1):
            canvas.circle((x + 0.03 * h + side * 0.07 * h, y - 0.77 * h), 0.02, dark)


SCENE = Hero()
