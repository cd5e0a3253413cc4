"""Scenes at home: a burning candle, an ice cube on a plate, a plant in a pot."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..canvas import Box, Canvas, Look, Point, rotate, shade
from ..world import Kind, Params, Scene

FLAME, GLOW, FIRE = (240, 130, 30), (250, 212, 66), (245, 171, 48)  # FIRE lies between the other two
SMOKE = (104, 106, 112)
ICE, ICE_TOP, ICE_SIDE = (96, 190, 245), (160, 222, 252), (66, 158, 222)
WATER = (30, 100, 215)
LEAF, STEM, DEAD = (46, 160, 80), (30, 120, 60), (128, 82, 46)
PETAL, HEART = (236, 70, 150), (250, 212, 66)


def _become(state: str, p: Params) -> Params:
    return {**p, "state": state}


def _around(center: Point, half_width: float, half_height: float | None = None) -> Box:
    x, y = center
    half_height = half_height or half_width
    return (x - half_width, y - half_height, x + half_width, y + half_height)


def _uniform(rng: np.random.Generator, **ranges: tuple[float, float]) -> Params:
    return {name: round(float(rng.uniform(low, high)), 4) for name, (low, high) in ranges.items()}


# --- candle ---

HOLDER, WICK = 0.06, 0.05  # heights
FLAME_RADIUS = 0.065


def _candle(p: Params, height: float) -> Box:
    bottom = p["y"] - HOLDER
    return (p["x"] - p["w"] / 2, bottom - height, p["x"] + p["w"] / 2, bottom)


def _stump(p: Params) -> Box:
    return _candle(p, 0.28 * p["h"])


def _fallen(p: Params) -> Box:
    left = p["x"] + p["w"] + 0.01
    return (left, p["y"] - p["w"], left + p["h"], p["y"])


def _flame(p: Params, candle: Box) -> Point:
    """Centre of the flame's round lower part, over a standing candle."""
    return (p["x"], candle[1] - WICK - 0.035)


def _puffs(p: Params) -> list[tuple[Point, float]]:
    """Centres and radii of the smoke, from the wick upwards."""
    x, y = p["x"], _candle(p, p["h"])[1] - WICK
    return [((x, y - 0.04), 0.035), ((x + 0.035, y - 0.1), 0.05), ((x - 0.025, y - 0.18), 0.065)]


def _fire_share(look: Look, center: Point) -> float:
    return look.share(_around(center, 0.035), FIRE, 80)


def _wax_share(look: Look, p: Params, box: Box) -> float:
    """How much of the box's inside has the candle's colour; a wider tolerance would take pink for a slate wall."""
    x0, y0, x1, y1 = box
    return look.share((x0 + 0.03, y0 + 0.03, x1 - 0.03, y1 - 0.02), p["color"], 50)


def _upper_wax_share(look: Look, p: Params) -> float:
    x0, y0, x1, _ = _candle(p, p["h"])
    return _wax_share(look, p, (x0, y0, x1, y0 + 0.15))


def _check_burned_down(look: Look, p: Params) -> bool:
    stump, candle = _stump(p), _candle(p, p["h"])
    return (
        _fire_share(look, _flame(p, stump)) > 0.5
        and _wax_share(look, p, stump) > 0.5
        and _upper_wax_share(look, p) < 0.2
        and _fire_share(look, _flame(p, candle)) < 0.2
    )


def _check_blown_out(look: Look, p: Params) -> bool:
    smoke = [look.share(_around(center, 0.7 * r), SMOKE, 45) for center, r in _puffs(p)]
    return (
        sum(smoke) / len(smoke) > 0.5
        and _fire_share(look, _flame(p, _candle(p, p["h"]))) < 0.2
        and _upper_wax_share(look, p) > 0.5
    )


def _check_tipped(look: Look, p: Params) -> bool:
    return (
        _wax_share(look, p, _fallen(p)) > 0.65
        and _upper_wax_share(look, p) < 0.2
        and _fire_share(look, _flame(p, _candle(p, p["h"]))) < 0.2
    )


class Candle(Scene):
    """A thick candle burning in a dark holder, with room to its right."""

    name = "candle"
    colors = ("red", "green", "blue", "purple", "pink")
    kinds = (
        Kind(
            name="candle_burns_down",
            category="temporal",
            objects=("{color} candle", "flame"),
            outcome="the {color} candle has burned down to a short stump",
            phrasings=(
                "Burn the {color} candle down to a short stump.",
                "Let this candle burn until only a stump is left.",
                "Show the candle after it has burned for many hours.",
                "Make the {color} candle much shorter, with the flame still burning.",
                "Leave the candle burning all night.",
                "Keep this flame alight for the whole evening and show what is left.",
                "What will the candle look like after hours of burning?",
                "What would happen if the {color} candle kept burning all evening?",
                "How would this candle look if nobody put the flame out for many hours?",
                "Imagine the candle burned through the whole night; how would it look?",
                "Suppose the candle were left alight until the wax was almost gone.",
                "If the flame kept eating the wax for hours, what would remain?",
                "Picture the {color} candle at the end of a long evening, still alight.",
                "Fast forward through the night while this candle keeps burning.",
            ),
            paraphrases=(
                "After many hours of burning, how short would the {color} candle be?",
                "Suppose this candle kept burning through the whole night; show what would remain.",
                "What if nobody put out the candle all night?",
                "Show this candle at the end of the night, when only a short stump is left.",
                "Imagine the {color} candle left alight all evening; how much wax would remain?",
            ),
            after=partial(_become, "short"),
            check=_check_burned_down,
        ),
        Kind(
            name="candle_blown_out",
            category="causal",
            objects=("{color} candle", "flame"),
            outcome="the {color} candle has been blown out and smoke rises from its wick",
            phrasings=(
                "Blow out the {color} candle.",
                "Put out the flame on this candle.",
                "Extinguish the candle and let smoke rise from the wick.",
                "Make someone blow on the flame until it goes out.",
                "Remove the flame and show grey smoke above the wick.",
                "Show the moment after the {color} candle is blown out.",
                "What would happen if someone blew on this candle?",
                "What if a gust of wind reached the flame through the window and put it out?",
                "Imagine a child making a wish and blowing at the {color} candle.",
                "At the birthday party a child makes a wish and blows.",
                "How would the candle look just after a puff of breath?",
                "Suppose a draught from the window killed the flame; what would we see?",
                "If somebody took a deep breath and blew, how would this candle look?",
                "Bedtime has come, so someone puffs at the flame.",
            ),
            paraphrases=(
                "Show how this candle would look just after someone blew out the flame.",
                "What would we see if a child took a deep breath and blew on the {color} candle?",
                "Imagine a puff of wind put the flame out; how would the wick look?",
                "Suppose somebody blew at this candle to make a wish.",
                "If a gust from the window reached the candle, what would happen to the flame?",
            ),
            after=partial(_become, "out"),
            check=_check_blown_out,
        ),
        Kind(
            name="candle_tips_over",
            category="physical",
            objects=("{color} candle", "flame", "holder"),
            outcome="the {color} candle has fallen over and lies beside its holder",
            phrasings=(
                "Tip the {color} candle over.",
                "Knock this candle over so that it lies on its side.",
                "Lay the candle on its side, next to the holder.",
                "Make the candle fall out of its holder to the right.",
                "Push the {color} candle until it topples.",
                "The cat bumps into this candle and it falls.",
                "Show the {color} candle lying on the ground beside its holder.",
                "What would happen if someone knocked over this candle?",
                "What if the cat jumped up and bumped against the {color} candle?",
                "How would the scene look after the table was jolted and the candle fell?",
                "Imagine an elbow hits the candle from the left.",
                "Suppose a careless hand pushed the candle over; what would we see?",
                "If the candle lost its balance, how would it look?",
                "An elbow knocks the candle; show where it lies afterwards.",
            ),
            paraphrases=(
                "What would we see if an elbow knocked the {color} candle over?",
                "Show the scene after the cat pushed this candle out of its holder.",
                "Suppose someone bumped against the candle and it lost its balance.",
                "Imagine the table was jolted; where would the candle fall?",
                "How would this candle look lying on its side?",
            ),
            after=partial(_become, "fallen"),
            check=_check_tipped,
        ),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return _uniform(rng, x=(0.23, 0.3), y=(0.87, 0.93), w=(0.16, 0.2), h=(0.34, 0.42))

    def zone(self, p: Params) -> Box:
        return (p["x"] - p["w"], p["y"] - HOLDER - p["h"] - 0.31, _fallen(p)[2] + WICK, p["y"])

    def draw(self, canvas: Canvas, p: Params) -> None:
        x, y, w, state = p["x"], p["y"], p["w"], p.get("state")
        canvas.rect((x - w, y - 0.8 * HOLDER, x + w, y), "black")
        canvas.rect((x - 0.6 * w, y - HOLDER - 0.02, x + 0.6 * w, y), "black")
        if state == "fallen":
            fallen = _fallen(p)
            middle = (fallen[1] + fallen[3]) / 2
            canvas.rect((fallen[2], middle - 0.02, fallen[2] + WICK, middle + 0.02), "black")
            canvas.rect(fallen, p["color"])
            return
        candle = _stump(p) if state == "short" else _candle(p, p["h"])
        canvas.rect((x - 0.02, candle[1] - WICK, x + 0.02, candle[1]), "black")
        canvas.rect(candle, p["color"])
        if state == "out":
            for center, radius in _puffs(p):
                canvas.circle(center, radius, SMOKE)
        else:
            fx, fy = _flame(p, candle)
            canvas.circle((fx, fy), FLAME_RADIUS, FLAME)
            canvas.polygon([(fx - 0.058, fy - 0.03), (fx, fy - 0.16), (fx + 0.058, fy - 0.03)], FLAME)
            canvas.circle((fx, fy + 0.01), 0.035, GLOW)


# --- ice ---


def _cube(p: Params) -> Box:
    """The cube's front face."""
    return (p["x"] - 0.6 * p["s"], p["y"] + 0.03 - p["s"], p["x"] + 0.4 * p["s"], p["y"] + 0.03)


def _plate(p: Params) -> Box:
    return _around((p["x"], p["y"]), p["s"], 0.1)


def _shards(p: Params) -> list[tuple[Point, list[Point]]]:
    """Middle and corners of every splinter, wide apart on the plate."""
    s, x, y = p["s"], p["x"], p["y"]
    shapes = (
        ((-0.62, 0.0), ((-0.24, 0.06), (-0.1, -0.4), (0.24, 0.08))),
        ((-0.02, 0.08), ((-0.24, 0.04), (-0.14, -0.3), (0.06, -0.52), (0.22, 0.12))),
        ((0.6, 0.0), ((-0.24, 0.1), (0.04, -0.34), (0.22, -0.26), (0.24, 0.04))),
    )
    return [
        ((x + s * mx, y + s * my), [(x + s * (mx + dx), y + s * (my + dy)) for dx, dy in corners])
        for (mx, my), corners in shapes
    ]


def _cube_share(look: Look, p: Params) -> float:
    """How much of the whole cube's upper half is still ice."""
    x0, y0, x1, _ = _cube(p)
    return look.share((x0 + 0.04, y0 + 0.04, x1 - 0.04, y0 + 0.45 * p["s"]), ICE, 50)


def _check_melted(look: Look, p: Params) -> bool:
    puddle = _around((p["x"], p["y"] + 0.02), 0.5 * p["s"], 0.025)
    return look.share(puddle, WATER, 55) > 0.6 and _cube_share(look, p) < 0.2


def _check_shattered(look: Look, p: Params) -> bool:
    shards = [look.share(_around((x, y - 0.06 * p["s"]), 0.03), ICE, 50) for (x, y), _ in _shards(p)]
    return min(shards) > 0.4 and sum(shards) > 1.8 and _cube_share(look, p) < 0.2


class Ice(Scene):
    """A big light-blue ice cube on a round coloured plate."""

    name = "ice"
    colors = ("red", "orange", "yellow", "green", "pink")
    kinds = (
        Kind(
            name="ice_melts",
            category="temporal",
            objects=("ice cube", "{color} plate"),
            outcome="the ice cube has melted into a puddle of water on the {color} plate",
            phrasings=(
                "Melt the ice cube.",
                "Turn the ice on the {color} plate into a puddle of water.",
                "Let this ice cube thaw completely.",
                "Leave this ice in the sun for an hour.",
                "Show the {color} plate after the ice has melted.",
                "Keep the ice cube in a warm room all afternoon.",
                "Wait until only water remains of the ice cube.",
                "What would happen if this ice cube were left in the sun?",
                "Imagine the freezer door was never closed; how would this look?",
                "How would the plate look if the room became very hot?",
                "Suppose nobody put the ice back into the freezer for hours.",
                "If the {color} plate stood beside a warm stove, what would remain of the ice?",
                "What will be left of the ice cube on a hot summer afternoon?",
                "Picture this ice cube hours later, at room temperature.",
            ),
            paraphrases=(
                "Show the ice cube after hours in a warm room.",
                "What if the ice were left beside a hot stove all afternoon?",
                "Imagine the {color} plate stood in the summer sun; what would remain of this ice?",
                "How would the ice cube look if nobody closed the freezer door?",
                "Leave the {color} plate in the hot sun until the ice has melted.",
            ),
            after=partial(_become, "melted"),
            check=_check_melted,
        ),
        Kind(
            name="ice_shatters",
            category="causal",
            objects=("ice cube", "{color} plate"),
            outcome="the ice cube has been shattered into shards on the {color} plate",
            phrasings=(
                "Shatter the ice cube.",
                "Smash the ice on the {color} plate with a hammer.",
                "Break this ice cube into several sharp pieces.",
                "Crack the ice so that only shards lie on the plate.",
                "Strike the ice cube with a heavy hammer.",
                "Show the {color} plate after a hammer blow has broken the ice.",
                "Make splinters of the ice cube with one blow.",
                "What would happen if someone hit this ice with a hammer?",
                "What if a heavy stone fell onto the ice cube?",
                "How would the ice look after a hard blow from above?",
                "Imagine an angry cook swinging a hammer at the ice on the {color} plate.",
                "Suppose the cook needed crushed ice and smashed the cube; what would we see?",
                "If a hammer came down hard on this ice cube, what would be left?",
                "Picture the ice cube after it was struck by a falling stone.",
            ),
            paraphrases=(
                "Show how this ice would look if a stone struck it hard.",
                "Imagine a hammer blow from above; how would the ice on the {color} plate look?",
                "What would we see if the cook hit the ice cube with a heavy stone?",
                "With one hard blow, break the ice into shards.",
                "What would be left of this ice cube if a hammer fell onto it?",
            ),
            after=partial(_become, "shattered"),
            check=_check_shattered,
        ),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return _uniform(rng, x=(0.4, 0.6), y=(0.8, 0.87), s=(0.32, 0.39))

    def zone(self, p: Params) -> Box:
        x0, _, x1, y1 = _plate(p)
        return (x0, _cube(p)[1] - 0.09, x1, y1 + 0.03)

    def draw(self, canvas: Canvas, p: Params) -> None:
        x0, y0, x1, y1 = _plate(p)
        canvas.ellipse((x0, y0 + 0.03, x1, y1 + 0.03), shade(p["color"], 0.65))
        canvas.ellipse((x0, y0, x1, y1), p["color"])
        if p.get("state") == "melted":
            x, y, s = p["x"], p["y"], p["s"]
            canvas.ellipse(_around((x - 0.3 * s, y + 0.01), 0.5 * s, 0.055), WATER)
            canvas.ellipse(_around((x + 0.2 * s, y + 0.005), 0.6 * s, 0.08), WATER)
            canvas.ellipse(_around((x + 0.2 * s, y - 0.03), 0.25 * s, 0.022), ICE_TOP)
        elif p.get("state") == "shattered":
            for _, corners in _shards(p):
                canvas.polygon(corners, ICE)
        else:
            x0, y0, x1, y1 = _cube(p)
            dx, dy = 0.1, -0.07
            canvas.polygon([(x0, y0), (x0 + dx, y0 + dy), (x1 + dx, y0 + dy), (x1, y0)], ICE_TOP)
            canvas.polygon([(x1, y0), (x1 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1, y1)], ICE_SIDE)
            canvas.rect((x0, y0, x1, y1), ICE)


# --- plant ---

GROWTH, FLOWER = 0.1, 0.15  # how much taller the blooming plant is, and the radius of its flower


def _top(p: Params) -> float:
    """Height of the stem's end."""
    return p["y"] - p["pot"] - p["stem"]


def _blossom(p: Params) -> Point:
    return (p["x"], _top(p) - GROWTH)


def _leaf(base: Point, length: float, degrees: float) -> list[Point]:
    """A leaf that points to the right, turned clockwise about its base."""
    x, y = base
    outline = [(0, 0), (0.25, -0.2), (0.55, -0.24), (1, 0), (0.55, 0.24), (0.25, 0.2)]
    return rotate([(x + length * u, y + length * v) for u, v in outline], degrees, base)


def _nodes(p: Params) -> list[float]:
    """Heights on the stem where a pair of leaves grows."""
    return [p["y"] - p["pot"] - p["stem"] * share for share in (0.3, 0.8)]


def _droop(p: Params) -> list[Point]:
    """The dead stem, from the pot over to the right and down."""
    x, y, s = p["x"], p["y"] - p["pot"], p["stem"]
    bends = ((0, 0), (0, 0.5), (0.05, 0.75), (0.12, 0.85), (0.2, 0.78), (0.25, 0.55))
    return [(x + dx, y - s * up) for dx, up in bends]


def _leaf_share(look: Look, p: Params) -> float:
    """How green it is where the source's leaves are."""
    middles = [(p["x"] + side * 0.5 * p["leaf"], y - 0.23 * p["leaf"]) for y in _nodes(p) for side in (-1, 1)]
    return sum(look.share(_around(middle, 0.03, 0.025), LEAF) for middle in middles) / len(middles)


def _petal_share(look: Look, p: Params) -> float:
    x, y = _blossom(p)
    middles = [(x + dx, y + dy) for dx, dy in ((-0.1, 0), (0.1, 0), (0, -0.1), (0, 0.1))]
    return sum(look.share(_around(middle, 0.025), PETAL) for middle in middles) / len(middles)


def _check_blooms(look: Look, p: Params) -> bool:
    return (
        _petal_share(look, p) > 0.6
        and look.share(_around(_blossom(p), 0.03), HEART) > 0.5
        and _leaf_share(look, p) > 0.5
    )


def _check_wilts(look: Look, p: Params) -> bool:
    x, y = _droop(p)[-1]
    return (
        look.share(_around((x, y + 0.45 * p["leaf"]), 0.025, 0.04), DEAD) > 0.5
        and _leaf_share(look, p) < 0.2
        and _petal_share(look, p) < 0.2
    )


class Plant(Scene):
    """A straight stem with a bud and two pairs of green leaves, in a coloured pot."""

    name = "plant"
    colors = ("red", "orange", "yellow", "blue", "purple")
    kinds = (
        Kind(
            name="plant_blooms",
            category="temporal",
            objects=("green plant", "{color} pot"),
            outcome="the plant in the {color} pot has grown taller and bears a big pink flower",
            phrasings=(
                "Make the plant bloom.",
                "Add a big pink flower on top of the stem.",
                "Let this plant grow taller and open a flower.",
                "Show the plant in the {color} pot in full bloom.",
                "Give this plant water and sunlight for several weeks.",
                "Show what the plant becomes when spring comes.",
                "Water the {color} pot every day until the bud opens.",
                "What would happen if this plant got sun and water for a month?",
                "What if a gardener cared for this plant all spring?",
                "How would the plant look after a month of good care?",
                "Imagine the plant in the {color} pot has reached its flowering season; how would it look?",
                "Suppose the gardener added fertilizer and waited for some weeks; what would we see?",
                "If this plant were healthy and happy until summer, what would grow on its stem?",
                "Fast forward to the day when the plant blossoms.",
            ),
            paraphrases=(
                "Show this plant after several weeks of water and sun.",
                "What would grow on the stem if the gardener cared for this plant until summer?",
                "Imagine spring comes; how would the plant in the {color} pot bloom?",
                "Suppose this plant got good care for a month; what flower would we see?",
                "How would the plant look in full flowering season?",
            ),
            after=partial(_become, "blooming"),
            check=_check_blooms,
        ),
        Kind(
            name="plant_wilts",
            category="temporal",
            objects=("green plant", "{color} pot"),
            outcome="the plant in the {color} pot has wilted and hangs brown to one side",
            phrasings=(
                "Make the plant wilt.",
                "Dry out the plant so that it hangs to one side.",
                "Turn the leaves and the stem brown and drooping.",
                "Let this plant die of thirst.",
                "Show the plant in the {color} pot after weeks without water.",
                "Stop watering the {color} pot for a month.",
                "Leave this plant dry in the heat.",
                "What would happen if nobody watered this plant?",
                "What if the owner went on a long holiday and forgot the plant?",
                "How would the plant look after a month of drought?",
                "Imagine the owner forgot to water the {color} pot; how would it look?",
                "Suppose the soil stayed dry for weeks; what would we see?",
                "If no rain and no water came for a long time, what would become of the leaves?",
                "Picture this plant withered and thirsty at the end of a dry summer.",
            ),
            paraphrases=(
                "Show this plant at the end of a long drought.",
                "What would we see if nobody watered the {color} pot for weeks?",
                "Suppose the owner forgot this plant and went on holiday for a month.",
                "How would the leaves look after a long time without rain?",
                "Imagine the soil stayed dry in the heat of summer; how would this plant look?",
            ),
            after=partial(_become, "wilted"),
            check=_check_wilts,
        ),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return _uniform(rng, x=(0.32, 0.58), y=(0.88, 0.95), pot=(0.2, 0.25), stem=(0.27, 0.33), leaf=(0.19, 0.23))

    def zone(self, p: Params) -> Box:
        return (p["x"] - p["leaf"] - 0.02, _blossom(p)[1] - FLOWER, p["x"] + 0.34, p["y"])

    def draw(self, canvas: Canvas, p: Params) -> None:
        x, y, leaf = p["x"], p["y"] - p["pot"], p["leaf"]
        if p.get("state") == "wilted":
            stem = _droop(p)
            canvas.line(stem, 0.05, DEAD)
            for base, degrees in ((stem[1], 135), (stem[3], 100), (stem[5], 85)):
                canvas.polygon(_leaf(base, leaf, degrees), DEAD)
        else:
            top = _blossom(p)[1] if p.get("state") == "blooming" else _top(p)
            canvas.rect((x - 0.025, top, x + 0.025, y), STEM)
            for height in _nodes(p):
                canvas.polygon(_leaf((x, height), leaf, -25), LEAF)
                canvas.polygon(_leaf((x, height), leaf, -155), LEAF)
            if p.get("state") == "blooming":
                _draw_flower(canvas, (x, top))
            else:
                canvas.circle((x, top), 0.04, STEM)
        canvas.polygon([(x - 0.15, y), (x + 0.15, y), (x + 0.1, p["y"]), (x - 0.1, p["y"])], p["color"])
        canvas.rect((x - 0.17, y, x + 0.17, y + 0.06), shade(p["color"], 0.75))


def _draw_flower(canvas: Canvas, center: Point) -> None:
    for i in range(6):
        petal = rotate([(center[0], center[1] - 0.085)], 60 * i, center)[0]
        canvas.circle(petal, 0.065, PETAL)
    canvas.circle(center, 0.06, HEART)


SCENES = (Candle(), Ice(), Plant())
