"""A house on a lawn: night falls, winter comes, or it catches fire."""

from __future__ import annotations

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look, Point
from reasonbrain.modules.data.reasonmini.scenes.common import around, becomes, burns, flames, uniform, wall_color
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

GRASS = (104, 164, 72)
SNOW = (240, 248, 255)
SMOKE = (70, 68, 72)
WOOD = (92, 54, 28)
PLASTER, GLASS, LAMP = (204, 154, 112), (74, 98, 132), (255, 226, 92)
SUN, MOON = (252, 200, 40), (236, 238, 220)
NIGHT_SKY, NIGHT_TINT = (36, 52, 132), (12, 16, 60)


def _openings(p: Params) -> list[Box]:
    """Three equal places along the wall: one for the door, the others for windows."""
    top = p["ground"] - p["wall"] + 0.06
    return [(x - 0.06, top, x + 0.06, top + 0.12) for x in (p["x"] + k * 0.63 * p["w"] for k in (-1, 0, 1))]


def _windows(p: Params) -> list[Box]:
    return [box for k, box in enumerate(_openings(p)) if k != p["door"]]


def _roof(p: Params, share: float = 1) -> list[Point]:
    """The upper ``share`` of the roof, a trapezoid."""
    eave = p["ground"] - p["wall"]
    ridge, edge = 0.5 * p["w"], p["w"] + 0.06
    half, y = ridge + (edge - ridge) * share, eave - p["roof"] * (1 - share)
    top = eave - p["roof"]
    return [(p["x"] - ridge, top), (p["x"] + ridge, top), (p["x"] + half, y), (p["x"] - half, y)]


def _sun(p: Params) -> Point:
    return (0.14, 0.15) if p["sun"] == "left" else (0.86, 0.15)


def _house_flames(p: Params) -> tuple[float, float, float, float]:
    """Arguments of ``flames``."""
    return p["x"], p["ground"] - p["wall"] - 0.4 * p["roof"], 1.1 * p["w"], 0.34


def _smoke(p: Params) -> list[tuple[Point, float]]:
    """Centre and radius of every cloud, drifting away from the sun."""
    drift = 1 if p["sun"] == "left" else -1
    top = p["ground"] - p["wall"] - p["roof"]
    return [((p["x"] + drift * 0.13, top - 0.1), 0.11), ((p["x"] + drift * 0.27, top - 0.18), 0.13)]


def _inside(center: Point, radius: float) -> Box:
    """A box well within a circle."""
    return around(center, 0.55 * radius)


def _roof_core(p: Params) -> Box:
    eave = p["ground"] - p["wall"]
    return (p["x"] - 0.4 * p["w"], eave - 0.85 * p["roof"], p["x"] + 0.4 * p["w"], eave - 0.45 * p["roof"])


def _is_night(look: Look, p: Params) -> bool:
    sky = (0.26, 0.04, 0.74, 0.2)
    return (
        all(look.share(box, LAMP) > 0.4 for box in _windows(p))
        and look.share(_inside(_sun(p), 0.09), MOON) > 0.5
        and look.brightness(sky) < 100
        and look.share(sky, wall_color(p)) < 0.2
        and look.share((0.02, p["ground"] + 0.04, 0.98, 0.98), GRASS, 40) < 0.2
    )


def _is_winter(look: Look, p: Params) -> bool:
    footing = (p["x"] - p["w"] + 0.02, p["ground"] - 0.08, p["x"] + p["w"] - 0.02, p["ground"] - 0.02)
    return (
        look.share(_roof_core(p), SNOW) > 0.6
        and look.share(_roof_core(p), p["color"]) < 0.2
        and look.share((0.02, p["ground"] + 0.04, 0.98, 0.98), SNOW) > 0.6
        and look.share(footing, SNOW) < 0.3
    )


def _house_burns(look: Look, p: Params) -> bool:
    center, radius = _smoke(p)[1]
    x, base, width, height = _house_flames(p)
    return (
        burns(look, (x - 0.15 * width, base - 0.6 * height, x + 0.15 * width, base - 0.1 * height))
        and look.share(_inside(center, radius), SMOKE) > 0.5
        and look.share(_inside(center, radius), wall_color(p)) < 0.2
        and look.share((0.02, p["ground"] + 0.04, 0.98, 0.98), GRASS) > 0.6
    )


class House(Scene):
    """A house with a coloured roof, a door and two windows on a green lawn, under the sun."""

    name = "house"
    colors = ("red", "green", "blue", "purple", "pink", "brown")
    kinds = (
        Kind("house_night", "temporal", becomes("night"), _is_night),
        Kind("house_winter", "temporal", becomes("winter"), _is_winter),
        Kind("house_on_fire", "causal", becomes("fire"), _house_burns),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": uniform(rng, 0.45, 0.55),
            "w": uniform(rng, 0.26, 0.31),
            "ground": uniform(rng, 0.79, 0.84),
            "wall": uniform(rng, 0.25, 0.29),
            "roof": uniform(rng, 0.18, 0.22),
            "door": int(rng.integers(0, 3)),
            "sun": str(rng.choice(["left", "right"])),
        }

    def zone(self, p: Params) -> Box:
        return (0, 0, 1, 1)

    def backdrop(self, canvas: Canvas, p: Params) -> None:
        state = p.get("state")
        canvas.rect((0, 0, 1, 1), NIGHT_SKY if state == "night" else wall_color(p))
        canvas.rect((0, p["ground"], 1, 1), SNOW if state == "winter" else GRASS)

    def draw(self, canvas: Canvas, p: Params) -> None:
        x, w, ground, state = p["x"], p["w"], p["ground"], p.get("state")
        canvas.circle(_sun(p), 0.09, SUN)
        canvas.rect((x - w, ground - p["wall"], x + w, ground), PLASTER)
        for box in _windows(p):
            canvas.rect(box, GLASS)
        left, top, right, _ = _openings(p)[p["door"]]
        canvas.rect((left, top, right, ground), WOOD)
        canvas.polygon(_roof(p), p["color"])
        if state == "winter":
            canvas.polygon(_roof(p, 0.75), SNOW)
        elif state == "fire":
            for center, radius in _smoke(p):
                canvas.circle(center, radius, SMOKE)
            flames(canvas, *_house_flames(p))

    def finish(self, canvas: Canvas, p: Params) -> None:
        if p.get("state") == "night":
            canvas.tint(NIGHT_TINT, 0.5)
            canvas.circle(_sun(p), 0.09, MOON)
            for box in _windows(p):
                canvas.rect(box, LAMP)


SCENE = House()
