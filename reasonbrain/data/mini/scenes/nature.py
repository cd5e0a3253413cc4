"""Scenes of water, fire and weather: a dam and its lake, a tap over a bucket, a campfire, a house on a lawn."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi, sin

import numpy as np

from ..canvas import Box, Canvas, Color, Look, Point, box_points, rotate, shade
from ..world import BACKGROUNDS, FLOOR, Kind, Params, Scene

WATER = (48, 105, 220)
GRASS = (104, 164, 72)
SNOW = (240, 248, 255)
FIRE, FIRE_CORE = (244, 112, 24), (255, 218, 70)
SMOKE = (70, 68, 72)
WOOD, WOOD_LIGHT, WOOD_END = (92, 54, 28), (126, 78, 42), (222, 180, 124)
MUD, CRACK = (180, 104, 58), (74, 44, 26)
METAL = (84, 90, 104)
INSIDE = (240, 244, 246)  # of the empty bucket
PLASTER, GLASS, LAMP = (204, 154, 112), (74, 98, 132), (255, 226, 92)
SUN, MOON = (252, 200, 40), (236, 238, 220)
NIGHT_SKY, NIGHT_TINT = (36, 52, 132), (12, 16, 60)


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 4)


def _sky(p: Params) -> tuple[int, int, int]:
    return BACKGROUNDS[p["background"]][0]


def _teardrop(x: float, base: float, width: float, height: float) -> list[Point]:
    """A flame's outline: round at the base, pointed at the top."""
    turns = [2 * pi * i / 32 for i in range(32)]
    return [(x + 0.65 * width * sin(t) * abs(sin(t / 2)), base - height * (1 + cos(t)) / 2) for t in turns]


def _flames(canvas: Canvas, x: float, base: float, width: float, height: float) -> None:
    """Three tongues of fire with yellow hearts, the middle one ``height`` high."""
    tongues = ((-0.28, 0.65), (0.28, 0.75), (0, 1))
    for color, scale in ((FIRE, 1.0), (FIRE_CORE, 0.55)):
        for offset, part in tongues:
            canvas.polygon(_teardrop(x + offset * width, base, 0.6 * width * scale, height * part * scale), color)


def _burns(look: Look, box: Box) -> bool:
    """Whether the box is full of fire, yellow and orange."""
    return look.share(box, FIRE) + look.share(box, FIRE_CORE) > 0.6 and look.share(box, FIRE_CORE) > 0.15


def _becomes(state: str) -> Callable[[Params], Params]:
    """An ``after`` that only sets the state."""
    return lambda p: {**p, "state": state}


# --- dam ---------------------------------------------------------------------------------------------------


def _dam_box(p: Params, x0: float, y0: float, x1: float, y1: float) -> Box:
    """A box whose x counts from the lake's edge of the picture."""
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

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "lake": str(rng.choice(["left", "right"])),
            "x": _uniform(rng, 0.48, 0.58),
            "w": _uniform(rng, 0.12, 0.16),
            "level": _uniform(rng, 0.36, 0.44),
            "ground": _uniform(rng, 0.78, 0.82),
        }

    def zone(self, p: Params) -> Box:
        return (0, p["level"] - 0.07, 1, 1)

    def backdrop(self, canvas: Canvas, p: Params) -> None:
        canvas.rect((0, 0, 1, 1), _sky(p))
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

    kinds = (
        Kind(
            "dam_breaks",
            "causal",
            ("the {color} dam", "the lake", "the dry land"),
            "the {color} dam has broken down to a stump and the water floods both sides",
            (
                "Break the dam.",
                "Break the {color} dam and let the water out.",
                "Destroy this dam so that the lake floods the dry land.",
                "The {color} dam collapses; show the flood.",
                "A crack in the dam grew until the wall gave way.",
                "Let the {color} wall give way under the pressure of the water.",
                "An explosion tears the dam apart.",
                "What would happen if the dam broke?",
                "What would happen if this wall could no longer hold back the water?",
                "How would this place look if the {color} dam collapsed?",
                "Suppose a strong earthquake struck this dam.",
                "Imagine the wall suddenly gave way; how would this look?",
                "If an earthquake destroyed the dam, where would all the water go?",
                "Picture this valley just after the dam burst.",
            ),
            (
                "How would the valley look just after the dam broke?",
                "Imagine a strong earthquake destroyed the {color} wall.",
                "Suppose the dam gave way under the pressure of the lake.",
                "Show the dry land after the {color} dam burst.",
                "What would happen if this wall suddenly collapsed?",
            ),
            _becomes("broken"),
            _dam_broken,
        ),
        Kind(
            "dam_drought",
            "temporal",
            ("the {color} dam", "the lake"),
            "the lake behind the {color} dam has dried up and its cracked brown bed is bare",
            (
                "Dry up the lake behind the dam.",
                "Show the lake behind the {color} dam after a long drought.",
                "Let the hot sun dry out the lake.",
                "Make all the water behind the dam evaporate.",
                "Turn the lake into a cracked brown bed.",
                "It has not rained in this valley for two years.",
                "Leave this lake without any rain for a very long time.",
                "A drought lasts for years in this place.",
                "What would happen if no rain fell here for years?",
                "What would happen to the lake behind the {color} dam during a drought?",
                "How would this place look after a very hot and dry summer?",
                "Imagine that it never rained again; how would the lake look?",
                "Suppose the river that feeds this lake dried up.",
                "If all of the water evaporated, what would be left behind the {color} dam?",
            ),
            (
                "What would be left of the lake if it never rained again?",
                "Suppose no rain fell in this valley for two years.",
                "Imagine a long hot summer without rain; how would this place look?",
                "Let all the water behind the {color} dam evaporate.",
                "How would the lake look after years of drought?",
            ),
            _becomes("dry"),
            _lake_dried,
        ),
    )


# --- tap ---------------------------------------------------------------------------------------------------


def _bucket_filled(look: Look, p: Params) -> bool:
    x, top, bottom = p["x"], p["top"], p["bottom"]
    inner = 0.8 * p["w"] - 0.08
    upper = (x - inner, top + 0.08, x + inner, (top + bottom) / 2)
    lower = (x - inner, (top + bottom) / 2, x + inner, bottom - 0.09)
    stream = (x - 0.02, p["nozzle"] + 0.03, x + 0.02, top + 0.01)
    return (
        all(look.share(box, WATER) > 0.65 and look.share(box, INSIDE) < 0.2 for box in (upper, lower))
        and look.share(stream, WATER) > 0.5
        and look.share((x - inner, bottom - 0.05, x + inner, bottom - 0.01), p["color"]) > 0.4
    )


class Tap(Scene):
    """A metal tap above a coloured bucket that is cut open to show its light inside."""

    name = "tap"
    colors = ("red", "orange", "yellow", "green", "purple", "pink", "black")

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": _uniform(rng, 0.38, 0.62),
            "w": _uniform(rng, 0.21, 0.27),
            "top": _uniform(rng, 0.48, 0.56),
            "bottom": _uniform(rng, 0.87, 0.93),
            "nozzle": _uniform(rng, 0.3, 0.36),
            "pipe": str(rng.choice(["left", "right"])),
        }

    def zone(self, p: Params) -> Box:
        reach = 0.31
        return (p["x"] - reach, p["nozzle"] - 0.24, p["x"] + reach, p["bottom"])

    def draw(self, canvas: Canvas, p: Params) -> None:
        x, w, top, bottom, nozzle = p["x"], p["w"], p["top"], p["bottom"], p["nozzle"]
        side = -1 if p["pipe"] == "left" else 1

        def across(inset: float, y: float) -> tuple[Point, Point]:
            """Left and right point at height y, ``inset`` inside the bucket, which narrows downwards."""
            half = w * (1 - 0.2 * (y - top) / (bottom - top)) - inset
            return (x - half, y), (x + half, y)

        def part(inset: float, y0: float, y1: float, color: Color) -> None:
            canvas.polygon([*across(inset, y0), *reversed(across(inset, y1))], color)

        part(0, top, bottom, p["color"])
        part(0.055, top, bottom - 0.06, INSIDE)
        if p.get("state") == "open":
            part(0.055, top + 0.04, bottom - 0.06, WATER)
            canvas.rect((x - 0.035, nozzle, x + 0.035, top + 0.05), WATER)
        pipe = sorted((x - side * 0.055, x + side * 0.28))
        canvas.rect((pipe[0], nozzle - 0.14, pipe[1], nozzle - 0.05), METAL)
        canvas.rect((x - 0.055, nozzle - 0.14, x + 0.055, nozzle), METAL)
        plate = sorted((x + side * 0.25, x + side * 0.31))
        canvas.rect((plate[0], nozzle - 0.18, plate[1], nozzle - 0.01), shade(METAL, 0.6))
        knob = x + side * 0.12
        canvas.rect((knob - 0.025, nozzle - 0.2, knob + 0.025, nozzle - 0.12), METAL)
        canvas.rect((knob - 0.09, nozzle - 0.24, knob + 0.09, nozzle - 0.19), shade(METAL, 0.6))

    kinds = (
        Kind(
            "tap_left_open",
            "causal",
            ("the tap", "the empty {color} bucket"),
            "the tap is running and the {color} bucket is full of water",
            (
                "Open the tap.",
                "Turn on the tap and fill the {color} bucket.",
                "Fill the {color} bucket with water from the tap.",
                "Let the water run into the bucket.",
                "Show the {color} bucket when it is full of water.",
                "Someone opens the tap and walks away.",
                "Leave the tap running for a few minutes.",
                "Somebody forgot to close the tap.",
                "What would happen if someone opened this tap?",
                "What would happen if the tap were left open?",
                "How would the bucket look after the tap has been running for a while?",
                "Imagine that nobody turned off the tap; how would this look?",
                "Suppose the tap was left on for five minutes.",
                "If water ran from the tap for a while, where would it go?",
            ),
            (
                "What would happen if somebody forgot to turn off the tap?",
                "Suppose someone opened the tap and left it running.",
                "How would this look if the tap were left open for a few minutes?",
                "Run water from the tap into the {color} bucket until it is full.",
                "Imagine the {color} bucket after the tap was left on for a while.",
            ),
            _becomes("open"),
            _bucket_filled,
        ),
    )


# --- campfire ----------------------------------------------------------------------------------------------


def _campfire_flames(p: Params) -> tuple[float, float, float, float]:
    """Arguments of ``_flames``."""
    return p["x"], p["base"] - 0.7 * p["h"], 1.6 * p["s"], p["s"] + 0.22


def _stones(p: Params) -> list[tuple[float, float]]:
    """Centre x and radius of every stone."""
    outer = [(p["x"] + side * p["s"], p["r"]) for side in (-1, 1)]
    return outer + [(p["x"] + side * (p["s"] - 1.7 * p["r"]), 0.8 * p["r"]) for side in (-1, 1)]


def _stones_seen(look: Look, p: Params) -> bool:
    """Whether the lower half of the outer stones shows their colour."""
    feet = [(x - 0.5 * r, p["base"] - 0.8 * r, x + 0.5 * r, p["base"] - 0.2 * r) for x, r in _stones(p)[:2]]
    return all(look.share(box, p["color"]) > 0.5 for box in feet)


def _campfire_burns(look: Look, p: Params) -> bool:
    top = p["base"] - p["h"]
    above = (p["x"] - 0.06, top - 0.14, p["x"] + 0.06, top - 0.03)
    return _burns(look, above) and look.share(above, _sky(p), 40) < 0.2 and _stones_seen(look, p)


def _campfire_buried(look: Look, p: Params) -> bool:
    x, base, h = p["x"], p["base"], p["h"]
    heap = (x - 0.4 * p["s"], base - 0.9 * h, x + 0.4 * p["s"], base - 0.4 * h)
    return (
        look.share(heap, SNOW) > 0.6
        and look.share(heap, WOOD) < 0.2
        and look.share((0.02, base + 0.02, 0.98, 0.98), SNOW) > 0.6
        and _stones_seen(look, p)
    )


class Campfire(Scene):
    """An unlit heap of crossed logs between coloured stones."""

    name = "campfire"
    colors = ("red", "green", "blue", "purple", "pink", "black")

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": _uniform(rng, 0.38, 0.62),
            "base": _uniform(rng, 0.87, 0.92),
            "s": _uniform(rng, 0.25, 0.29),
            "h": _uniform(rng, 0.24, 0.28),
            "r": _uniform(rng, 0.07, 0.085),
        }

    def zone(self, p: Params) -> Box:
        _, base, _, height = _campfire_flames(p)
        return (0, base - height, 1, 1)

    def backdrop(self, canvas: Canvas, p: Params) -> None:
        super().backdrop(canvas, p)
        if p.get("state") == "snow":
            canvas.rect((0, FLOOR, 1, 1), SNOW)

    def draw(self, canvas: Canvas, p: Params) -> None:
        x, base, s, h = p["x"], p["base"], p["s"], p["h"]
        state = p.get("state")
        if state == "lit":
            _flames(canvas, *_campfire_flames(p))
        for row, (half, side) in enumerate(((0.85, 1), (0.65, -1), (0.45, 1))):
            bottom, r = base - row * h / 3, h / 6
            canvas.rect((x - half * s, bottom - 2 * r, x + half * s, bottom), WOOD if row % 2 else WOOD_LIGHT)
            canvas.circle((x + side * half * s, bottom - r), r, WOOD_END)
        if state == "snow":
            canvas.ellipse((x - 0.95 * s, base - h - 0.08, x + 0.95 * s, base - 0.2 * h), SNOW)
        for stone, r in _stones(p):
            canvas.circle((stone, base - r), r, p["color"])
            if state == "snow":
                canvas.ellipse((stone - 1.1 * r, base - 2.4 * r, stone + 1.1 * r, base - r), SNOW)

    kinds = (
        Kind(
            "campfire_lit",
            "causal",
            ("the logs", "the {color} stones"),
            "the logs between the {color} stones are burning with big flames",
            (
                "Light the campfire.",
                "Set the logs on fire.",
                "Light a fire between the {color} stones.",
                "Make the logs burn with big flames.",
                "Someone holds a burning match to the wood.",
                "Hold a lighter to the dry logs between the {color} stones.",
                "Throw a burning torch onto the pile of wood.",
                "The campers are cold and want to warm their hands here.",
                "What would happen if someone lit this wood?",
                "What would happen if a spark fell onto the dry logs?",
                "How would the campfire look if it was lit?",
                "Imagine that someone dropped a match on the logs; how would this look?",
                "Suppose a torch set fire to the pile between the {color} stones.",
                "If lightning struck these logs, what would happen?",
            ),
            (
                "What would happen if a burning match fell onto the logs?",
                "Imagine the campers lit a fire here to warm their hands.",
                "Hold a burning torch to the wood between the {color} stones.",
                "Suppose a spark fell onto the pile of dry wood.",
                "How would these logs look if someone set fire to the wood?",
            ),
            _becomes("lit"),
            _campfire_burns,
        ),
        Kind(
            "campfire_snowed_in",
            "temporal",
            ("the logs", "the {color} stones", "the ground"),
            "thick white snow covers the logs, the {color} stones and the ground",
            (
                "Cover the campfire with snow.",
                "Bury the logs and the {color} stones under thick snow.",
                "Put a thick white cap of snow on the logs.",
                "Let it snow here for the whole night.",
                "Make the ground white and bury the wood in snow.",
                "Show the {color} stones after a heavy snowfall.",
                "Leave the campfire outside until deep winter.",
                "A blizzard passes over this place.",
                "What would happen if it snowed here for hours?",
                "What would happen to the logs if a blizzard came?",
                "How would this place look in deep winter?",
                "Imagine that it snowed all night; how would the campfire look?",
                "Suppose a heavy snowfall came over the {color} stones.",
                "If winter came and nobody used this campfire, how would it look?",
            ),
            (
                "How would the logs look after a heavy blizzard?",
                "Imagine a heavy snowfall in the night; how would this place look?",
                "Suppose it snowed on the {color} stones for hours.",
                "What would happen to this campfire if deep winter came?",
                "Let thick white snow cover the wood.",
            ),
            _becomes("snow"),
            _campfire_buried,
        ),
    )


# --- house -------------------------------------------------------------------------------------------------


def _openings(p: Params) -> list[Box]:
    """Three equal places along the wall: windows, except the one of the door."""
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
    """Arguments of ``_flames``."""
    return p["x"], p["ground"] - p["wall"] - 0.4 * p["roof"], 1.1 * p["w"], 0.34


def _smoke(p: Params) -> list[tuple[Point, float]]:
    """Centre and radius of every cloud, drifting away from the sun."""
    drift = 1 if p["sun"] == "left" else -1
    top = p["ground"] - p["wall"] - p["roof"]
    return [((p["x"] + drift * 0.13, top - 0.1), 0.11), ((p["x"] + drift * 0.27, top - 0.18), 0.13)]


def _inside(center: Point, radius: float) -> Box:
    """A box well within a circle."""
    (x, y), r = center, 0.55 * radius
    return (x - r, y - r, x + r, y + r)


def _roof_core(p: Params) -> Box:
    eave = p["ground"] - p["wall"]
    return (p["x"] - 0.4 * p["w"], eave - 0.85 * p["roof"], p["x"] + 0.4 * p["w"], eave - 0.45 * p["roof"])


def _is_night(look: Look, p: Params) -> bool:
    sky = (0.26, 0.04, 0.74, 0.2)
    return (
        all(look.share(box, LAMP) > 0.4 for box in _windows(p))
        and look.share(_inside(_sun(p), 0.09), MOON) > 0.5
        and look.brightness(sky) < 100
        and look.share(sky, _sky(p)) < 0.2
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
        _burns(look, (x - 0.15 * width, base - 0.6 * height, x + 0.15 * width, base - 0.1 * height))
        and look.share(_inside(center, radius), SMOKE) > 0.5
        and look.share(_inside(center, radius), _sky(p)) < 0.2
        and look.share((0.02, p["ground"] + 0.04, 0.98, 0.98), GRASS) > 0.6
    )


class House(Scene):
    """A house with a coloured roof, a door and two windows on a green lawn, under the sun."""

    name = "house"
    colors = ("red", "green", "blue", "purple", "pink", "brown")

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": _uniform(rng, 0.45, 0.55),
            "w": _uniform(rng, 0.26, 0.31),
            "ground": _uniform(rng, 0.79, 0.84),
            "wall": _uniform(rng, 0.25, 0.29),
            "roof": _uniform(rng, 0.18, 0.22),
            "door": int(rng.integers(0, 3)),
            "sun": str(rng.choice(["left", "right"])),
        }

    def zone(self, p: Params) -> Box:
        return (0, 0, 1, 1)

    def backdrop(self, canvas: Canvas, p: Params) -> None:
        state = p.get("state")
        canvas.rect((0, 0, 1, 1), NIGHT_SKY if state == "night" else _sky(p))
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
            _flames(canvas, *_house_flames(p))

    def finish(self, canvas: Canvas, p: Params) -> None:
        if p.get("state") == "night":
            canvas.tint(NIGHT_TINT, 0.5)
            canvas.circle(_sun(p), 0.09, MOON)
            for box in _windows(p):
                canvas.rect(box, LAMP)

    kinds = (
        Kind(
            "house_night",
            "temporal",
            ("the house with the {color} roof", "the windows", "the sun"),
            "it is night, the moon is in the dark sky and the windows are lit",
            (
                "Make it night.",
                "Turn the day into night.",
                "Show the house with the {color} roof at midnight.",
                "Let the sun set and the moon rise over the house.",
                "Switch on the lights behind the windows after dark.",
                "Make the sky dark and light up the windows.",
                "Come back to this house late in the evening.",
                "The sun has gone down and the family is at home.",
                "What would happen to this house after sunset?",
                "What would happen if the sun went down?",
                "How would the house with the {color} roof look at night?",
                "Imagine it was midnight; how would this place look?",
                "Suppose twelve hours have passed and the moon is in the sky.",
                "If you came back after dark, how would the {color} roof and the windows look?",
            ),
            (
                "How would this house look at midnight?",
                "Imagine the house with the {color} roof late in the evening, after sunset.",
                "Suppose the sun has set and the family is at home.",
                "Let the moon rise in a dark sky and switch on the lights.",
                "If it was night, how would the windows look?",
            ),
            _becomes("night"),
            _is_night,
        ),
        Kind(
            "house_winter",
            "temporal",
            ("the house with the {color} roof", "the lawn"),
            "white snow covers the {color} roof of the house and the lawn",
            (
                "Make it winter.",
                "Cover the roof and the lawn with snow.",
                "Put white snow on the {color} roof.",
                "Let it snow on the house and the lawn.",
                "Turn the green lawn white with snow.",
                "Show the house with the {color} roof in the middle of winter.",
                "A heavy snowfall comes over the house.",
                "Wait until January, when it is cold and snowing.",
                "What would happen if it snowed here all day?",
                "What would happen to the {color} roof in a snowstorm?",
                "How would this house look in January?",
                "Imagine a snowstorm passed over the lawn; how would this place look?",
                "Suppose it was a cold winter day after a heavy snowfall.",
                "If winter came, how would the roof and the lawn look?",
            ),
            (
                "How would the lawn look after a heavy snowstorm?",
                "Imagine the house with the {color} roof on a cold January day.",
                "What would happen to the house if winter came?",
                "Suppose it snowed on the lawn and the roof all day.",
                "Let white snow cover the {color} roof.",
            ),
            _becomes("winter"),
            _is_winter,
        ),
        Kind(
            "house_on_fire",
            "causal",
            ("the {color} roof of the house",),
            "flames and dark smoke come out of the {color} roof of the house",
            (
                "Set the house on fire.",
                "Set fire to the {color} roof.",
                "Let flames come out of the {color} roof.",
                "Make the roof burn with dark smoke.",
                "A bolt of lightning strikes the house.",
                "Show the {color} roof after it has caught fire.",
                "Sparks fall on the roof and nobody puts them out.",
                "Someone left a burning candle in the attic.",
                "What would happen if lightning struck the roof?",
                "What would happen if the attic caught fire?",
                "How would this house look if the {color} roof was burning?",
                "Imagine that a burning candle fell over in the attic; how would the house look?",
                "Suppose lightning struck this house and nobody put out the flames.",
                "If sparks from a firework fell on the roof, what would happen?",
            ),
            (
                "What would happen if a candle set fire to the attic?",
                "How would the roof look if lightning struck it?",
                "Imagine sparks fell on the {color} roof and it caught fire.",
                "Suppose someone left a burning firework in the attic.",
                "Let the roof burn with flames and dark smoke.",
            ),
            _becomes("fire"),
            _house_burns,
        ),
    )


SCENES = (Dam(), Tap(), Campfire(), House())
