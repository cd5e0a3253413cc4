"""Small stories with a character: a hero at a castle door, a cat with its fish, a sailing boat, a bird and its nest."""

from __future__ import annotations

from functools import partial

import numpy as np

from ..canvas import Box, Canvas, Color, Look, Point, rotate, shade
from ..world import BACKGROUNDS, FLOOR, Kind, Params, Scene

GONE = 40  # tolerance where the old colour must not be: some walls and new things are only 50 to 80 from it


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 4)


def _around(center: Point, half_width: float, half_height: float) -> Box:
    x, y = center
    return x - half_width, y - half_height, x + half_width, y + half_height


def _become(state: str, p: Params) -> Params:
    """What every kind does here; draw() knows how each state looks."""
    return {**p, "state": state}


def _wall(p: Params) -> Color:
    return BACKGROUNDS[p["background"]][0]


# --- The hero at the castle door

GOLD = (226, 166, 16)
WOOD = (134, 86, 48)
MASONRY = (98, 100, 112)
DAYLIGHT = (255, 240, 120)
SKIN = (240, 190, 150)
HAIR = (84, 52, 30)
PETRIFIED = (128, 134, 138)


def _hero_coat_box(p: Params) -> Box:
    """Well inside the coat."""
    return _around((p["x"], p["ground"] - 0.36 * p["h"]), 0.07 * p["h"], 0.14 * p["h"])


def _hero_door_box(p: Params) -> Box:
    """The doorway without its round top."""
    return p["door_x"] - p["door_w"] / 2, FLOOR - p["door_h"], p["door_x"] + p["door_w"] / 2, FLOOR


def _hero_doorway_box(p: Params) -> Box:
    """Well inside the doorway, clear of the keyhole."""
    return _around((p["door_x"] + 0.02, FLOOR - 0.5 * p["door_h"]), 0.24 * p["door_w"], 0.4 * p["door_h"])


def _hero_key_center(p: Params) -> Point:
    return p["x"] + 0.36 * p["h"], p["ground"] - 0.5 * p["h"]


def _hero_key_box(p: Params) -> Box:
    return _around(_hero_key_center(p), 0.04, 0.13)


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
        Kind(
            "hero_opens_door",
            "story",
            ("the hero in the {color} coat", "the golden key", "the castle door"),
            "the castle door stands open, bright light shines through it and the golden key is gone",
            (
                "Open the castle door with the golden key.",
                "Make the castle door stand wide open.",
                "Let the hero in the {color} coat unlock the door.",
                "Show the door open after the key was used.",
                "Use the golden key on the castle door.",
                "Have the {color} hero turn the key in the lock.",
                "What would happen if the hero used the golden key?",
                "What would we see if the key fitted the lock of this door?",
                "What if the hero in the {color} coat unlocked the castle?",
                "Imagine the hero put the key into the lock; how would the door look?",
                "Suppose the golden key belongs to this castle door. What comes next?",
                "How would this picture look once the castle is unlocked?",
                "Show what would follow if the hero tried the key in the lock.",
                "If the hero wanted to enter the castle, what would the key do?",
            ),
            (
                "Use the golden key to open this castle door.",
                "What if the golden key fitted the castle door?",
                "Imagine the hero unlocked the door; how would the castle look?",
                "Suppose the hero tried the golden key on the door. What would we see?",
                "Show the castle once the hero used the key.",
            ),
            partial(_become, "open"),
            _hero_opened_door,
        ),
        Kind(
            "hero_turns_to_stone",
            "story",
            ("the hero in the {color} coat", "the golden key"),
            "the hero has turned into a gray stone statue that still holds the golden key",
            (
                "Turn the hero into a stone statue.",
                "Make the hero in the {color} coat a gray statue.",
                "Change the {color} hero to gray stone.",
                "Show the hero turned to stone by a spell.",
                "A witch casts a spell of stone on the hero.",
                "Let the witch turn the {color} hero into a statue.",
                "What would happen if a witch cast her stone spell on the hero?",
                "What if the hero had met the gaze of Medusa?",
                "What would we see if Medusa looked at this hero?",
                "Imagine an evil witch had cursed the hero; how would the hero look?",
                "Suppose an evil spell struck the hero. What comes next?",
                "How would this picture look if the hero were made of stone?",
                "Show what would follow if the hero were cursed by Medusa.",
                "If the hero became a statue, what would change?",
            ),
            (
                "Cast a spell to change the hero into stone.",
                "What if an evil witch cursed the hero?",
                "Imagine the gaze of Medusa struck the hero; how would this look?",
                "What would happen if the hero became a gray stone statue?",
                "Suppose Medusa looked at the hero in the {color} coat. What would we see?",
            ),
            partial(_become, "stone"),
            _hero_turned_to_stone,
        ),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": _uniform(rng, 0.2, 0.24),
            "h": _uniform(rng, 0.48, 0.6),
            "ground": _uniform(rng, 0.87, 0.93),
            "door_x": _uniform(rng, 0.69, 0.74),
            "door_w": _uniform(rng, 0.24, 0.28),
            "door_h": _uniform(rng, 0.36, 0.44),
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
            canvas.circle((kx, ky - 0.08), 0.025, _wall(p))
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
            canvas.rect(_around((x + side * 0.1 * h, y - 0.07 * h), 0.06 * h, 0.07 * h), dark)
        canvas.line([(x, y - 0.52 * h), (x + 0.34 * h, y - 0.44 * h)], 0.12 * h, shade(coat, 0.8))
        canvas.circle((x + 0.34 * h, y - 0.44 * h), 0.06 * h, skin)
        coat_points = ((-0.13, 0.64), (0.13, 0.64), (0.25, 0.13), (-0.25, 0.13))
        canvas.polygon([(x + dx * h, y - dy * h) for dx, dy in coat_points], coat)
        canvas.circle((x, y - 0.8 * h), 0.2 * h, dark)
        canvas.circle((x + 0.02 * h, y - 0.76 * h), 0.15 * h, skin)
        for side in (-1, 1):
            canvas.circle((x + 0.03 * h + side * 0.07 * h, y - 0.77 * h), 0.02, dark)


# --- The cat and the fish

FISH = (70, 214, 214)
BOWL = (48, 105, 220)
BOWL_INSIDE = (50, 44, 60)


def _cat_point(p: Params, dx: float, dy: float) -> Point:
    """A point of the cat, in cat heights from the middle of its feet."""
    return p["x"] + dx * p["h"], p["ground"] - dy * p["h"]


def _cat_bowl_center(p: Params) -> Point:
    return p["bowl_x"], p["ground"] - 0.16


def _cat_fish_box(p: Params) -> Box:
    return _around(_cat_bowl_center(p), 0.6 * p["bowl_r"], 0.055)


def _cat_head_box(p: Params) -> Box:
    """Inside the head of the sitting cat."""
    return _around(_cat_point(p, 0, 0.76), 0.14 * p["h"], 0.14 * p["h"])


def _cat_ate_fish(look: Look, p: Params) -> bool:
    fish = _cat_fish_box(p)
    return (
        look.share(fish, FISH, 50) < 0.12
        and look.share(fish, BOWL_INSIDE, 70) > 0.1
        and look.share(fish, "white", 90) > 0.2
        and look.share(_cat_head_box(p), p["color"]) > 0.4
    )


def _cat_fell_asleep(look: Look, p: Params) -> bool:
    head = _cat_head_box(p)
    return (
        look.share(head, p["color"], GONE) < 0.15
        and look.share(head, _wall(p)) > 0.6
        and look.share(_around(_cat_point(p, -0.2, 0.22), 0.08 * p["h"], 0.06 * p["h"]), p["color"]) > 0.6
        and look.share(_cat_fish_box(p), FISH) > 0.4
    )


class Cat(Scene):
    """A coloured cat sits at the left of a bowl with a big fish in it."""

    name = "cat"
    colors = ("orange", "black", "purple", "pink", "red", "yellow")
    kinds = (
        Kind(
            "cat_eats_fish",
            "story",
            ("the {color} cat", "the fish in the bowl"),
            "the fish has been eaten by the {color} cat and only white bones lie in the bowl",
            (
                "Let the cat eat the fish.",
                "Leave only the bones of the fish in the bowl.",
                "Replace the fish with bare bones.",
                "Show the bowl after the {color} cat has eaten.",
                "The {color} cat finishes its meal.",
                "Show what remains when the hungry cat is done with the bowl.",
                "What would happen if the cat ate the fish?",
                "What would remain in the bowl if the cat were hungry?",
                "What if this {color} cat could not resist the fish?",
                "Imagine the cat had finished its dinner; how would the bowl look?",
                "Suppose the cat was very hungry. What comes next?",
                "How would this picture look once the meal is over?",
                "Show what would follow if nobody guarded the fish from the cat.",
                "If the fish were dinner for the cat, what would we see in the bowl?",
            ),
            (
                "Show what remains of the fish once the cat has finished.",
                "What would we see in the bowl if the cat finished the fish?",
                "Imagine nobody guarded this bowl from the hungry cat; how would this look?",
                "Suppose the {color} cat has eaten its dinner. What would remain?",
                "What if the cat was very hungry?",
            ),
            partial(_become, "eaten"),
            _cat_ate_fish,
        ),
        Kind(
            "cat_falls_asleep",
            "story",
            ("the {color} cat",),
            "the {color} cat lies curled up asleep with closed eyes beside the bowl, the fish untouched",
            (
                "Let the cat fall asleep.",
                "Make the cat lie down and close its eyes.",
                "Show the {color} cat curled up asleep.",
                "Put the tired cat to sleep on the floor.",
                "The {color} cat curls up for a nap.",
                "Show the cat taking a long nap.",
                "What would happen if the cat were very tired?",
                "What would we see if the cat took a nap?",
                "What if this {color} cat lay down to sleep?",
                "Imagine the cat got sleepy; how would it look?",
                "Suppose the tired cat began to dream. What comes next?",
                "How would this picture look while the cat dreams?",
                "Show what would follow if the cat could not stay awake.",
                "If it were time for a nap, what would the sleepy cat do?",
            ),
            (
                "Make the sleepy cat lie down on the floor.",
                "What would happen if the cat curled up to sleep?",
                "Imagine the {color} cat could not stay awake; how would it look?",
                "Suppose it were time to sleep. What would the cat do?",
                "What if the cat took a long nap?",
            ),
            partial(_become, "asleep"),
            _cat_fell_asleep,
        ),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": _uniform(rng, 0.25, 0.27),
            "h": _uniform(rng, 0.48, 0.6),
            "ground": _uniform(rng, 0.87, 0.94),
            "bowl_x": _uniform(rng, 0.74, 0.77),
            "bowl_r": _uniform(rng, 0.18, 0.21),
        }

    def zone(self, p: Params) -> Box:
        return p["x"] - 0.42 * p["h"], p["ground"] - 1.06 * p["h"], p["bowl_x"] + p["bowl_r"] + 0.02, p["ground"] + 0.02

    def draw(self, canvas: Canvas, p: Params) -> None:
        h, asleep = p["h"], p.get("state") == "asleep"
        edge = shade(p["color"], 1.3 if p["color"] == "black" else 0.72)
        if asleep:
            canvas.ellipse(_around(_cat_point(p, 0, 0.19), 0.39 * h, 0.2 * h), p["color"])
            canvas.line([_cat_point(p, -0.34, 0.05), _cat_point(p, 0.1, 0.03)], 0.09 * h, edge)
            self._head(canvas, p, _cat_point(p, 0.19, 0.2), edge)
        else:
            tail = ((-0.1, 0.06), (-0.34, 0.1), (-0.36, 0.36))
            canvas.line([_cat_point(p, *point) for point in tail], 0.1 * h, edge)
            canvas.ellipse(_around(_cat_point(p, 0, 0.3), 0.26 * h, 0.32 * h), p["color"])
            for side in (-1, 1):
                canvas.ellipse(_around(_cat_point(p, side * 0.11, 0.04), 0.09 * h, 0.05 * h), edge)
            self._head(canvas, p, _cat_point(p, 0, 0.74), edge)
        self._bowl(canvas, p)

    def _head(self, canvas: Canvas, p: Params, center: Point, edge: Color) -> None:
        (x, y), h = center, p["h"]
        asleep, ink = p.get("state") == "asleep", "white" if p["color"] == "black" else "black"
        for side in (-1, 1):
            ear = [(x + side * 0.21 * h, y - 0.3 * h), (x + side * 0.03 * h, y - 0.18 * h), (x + side * 0.21 * h, y)]
            canvas.polygon(ear, edge)
        canvas.circle(center, 0.235 * h, edge)
        canvas.circle(center, 0.21 * h, p["color"])
        for side in (-1, 1):
            eye = _around((x + side * 0.1 * h, y - 0.02 * h), 0.075 * h, 0.075 * h)
            if asleep:
                canvas.arc(eye, 10, 170, 0.025, ink)
            else:
                canvas.ellipse(eye, "white")
                canvas.circle((x + side * 0.09 * h, y - 0.02 * h), 0.022, "black")

    def _bowl(self, canvas: Canvas, p: Params) -> None:
        (x, y), r = _cat_bowl_center(p), p["bowl_r"]
        canvas.polygon([(x - r, y), (x + r, y), (x + 0.7 * r, p["ground"]), (x - 0.7 * r, p["ground"])], BOWL)
        canvas.ellipse(_around((x, y), r, 0.115), BOWL)
        canvas.ellipse(_around((x, y), r - 0.02, 0.095), BOWL_INSIDE)
        eaten = p.get("state") == "eaten"
        color = "white" if eaten else FISH
        canvas.polygon([(x + 0.4 * r, y), (x + 0.8 * r, y - 0.055), (x + 0.8 * r, y + 0.055)], color)
        if eaten:
            canvas.line([(x - 0.6 * r, y), (x + 0.6 * r, y)], 0.025, color)
            for dx in (-0.07, 0.24):
                canvas.line([(x + dx * r, y - 0.055), (x + dx * r, y + 0.055)], 0.03, color)
            canvas.circle((x - 0.6 * r, y), 0.045, color)
        else:
            canvas.ellipse((x - 0.8 * r, y - 0.065, x + 0.55 * r, y + 0.065), color)
        canvas.circle((x - 0.6 * r, y - 0.01), 0.018, "black")


# --- The boat and the island

SEA = (64, 136, 200)
ISLAND = (240, 214, 140)
STORM_SKY = (72, 78, 94)
STORM_CLOUD = (40, 42, 52)
SUN = (255, 220, 50)


def _boat_box(p: Params, x: float, left: float, top: float, right: float, bottom: float) -> Box:
    """A box in boat lengths from the boat's middle at the water line."""
    return x + left * p["s"], p["y"] + top * p["s"], x + right * p["s"], p["y"] + bottom * p["s"]


def _boat_sail_box(p: Params, x: float) -> Box:
    """Inside the main sail of an upright boat at x."""
    return _boat_box(p, x, 0.04, -0.68, 0.18, -0.45)


def _boat_harbour(p: Params) -> float:
    """Where the boat lies when it is at the island."""
    return round(p["island_x"] - 0.2, 4)


def _boat_reached_island(look: Look, p: Params) -> bool:
    before, after = (_boat_sail_box(p, x) for x in (p["x"], _boat_harbour(p)))
    return (
        look.share(after, p["color"]) > 0.5
        and look.share(before, p["color"], GONE) < 0.2
        and look.share(_boat_box(p, _boat_harbour(p), -0.3, -0.16, 0.3, -0.02), WOOD) > 0.35
        and look.share((0.05, 0.03, 0.3, 0.25), _wall(p)) > 0.6
    )


def _boat_sank_in_storm(look: Look, p: Params) -> bool:
    return (
        look.brightness((0.05, 0.03, 0.95, 0.25)) < 110
        and look.share((0.0, 0.3, 1.0, 0.36), STORM_SKY, 50) > 0.4
        and look.share(_boat_sail_box(p, p["x"]), p["color"], GONE) < 0.2
        and look.share(_boat_box(p, p["x"], -0.36, -0.12, 0.2, -0.02), WOOD) < 0.35
        and look.share(_boat_box(p, p["x"], 0.34, -0.26, 0.46, -0.06), p["color"], 70) > 0.3
    )


class Boat(Scene):
    """A boat with a coloured sail on the sea, and at the right an island with a palm."""

    name = "boat"
    colors = ("red", "orange", "purple", "pink", "green", "yellow")
    kinds = (
        Kind(
            "boat_reaches_island",
            "story",
            ("the boat with the {color} sail", "the island"),
            "the boat with the {color} sail has reached the island and lies at its beach",
            (
                "Bring the boat to the island.",
                "Move the boat with the {color} sail to the beach.",
                "Let the boat reach the island.",
                "Show the boat landing at the island.",
                "The boat with the {color} sail arrives at the shore.",
                "Sail the boat over to the palm.",
                "What would happen if the wind blew the boat to the right?",
                "What would we see if the boat arrived at the island?",
                "What if the sailor steered the boat to the palm?",
                "Imagine the sailor wanted to land on the beach; how would this look?",
                "Suppose the boat with the {color} sail reached the shore. What would this look like?",
                "How would this picture look at the end of the voyage?",
                "Show what would follow if the wind were fair and the voyage went well.",
                "If the sailor headed for the island, where would the boat be?",
            ),
            (
                "Sail the boat over to the beach of the island.",
                "What would happen if the sailor steered for the shore?",
                "Imagine the boat arrived at the beach; how would this picture look?",
                "Suppose the wind blew the boat to the palm. Where would the voyage end?",
                "What if the boat reached the island?",
            ),
            partial(_become, "arrived"),
            _boat_reached_island,
        ),
        Kind(
            "boat_sinks_in_storm",
            "story",
            ("the boat with the {color} sail", "the sea"),
            "under a dark stormy sky the boat has sunk and only the tip of its {color} sail sticks out of the water",
            (
                "Sink the boat in a storm.",
                "Make the sky dark and let the boat sink.",
                "Let a storm wreck the boat with the {color} sail.",
                "Show the boat sunk under a dark sky.",
                "A terrible storm breaks over the boat.",
                "Show the wreck of the boat with the {color} sail in the storm.",
                "What would happen if a terrible storm hit the boat?",
                "What would we see if the boat went down in a storm?",
                "What if thunder and huge waves came over the boat?",
                "Imagine the boat had a leak in a storm; how would this look?",
                "Suppose dark clouds and thunder came. What would be left of the boat?",
                "How would this picture look after a shipwreck?",
                "Show what would follow if huge waves filled the boat with water.",
                "If the {color} sail were lost in a hurricane, what would be left?",
            ),
            (
                "Let huge waves sink the boat under dark clouds.",
                "What would happen if the boat went down in a hurricane?",
                "Imagine a terrible shipwreck; how would this picture look?",
                "Suppose a storm hit the boat with the {color} sail. What would we see?",
                "What if a hurricane came over the boat?",
            ),
            partial(_become, "sunk"),
            _boat_sank_in_storm,
        ),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": _uniform(rng, 0.21, 0.24),
            "y": _uniform(rng, 0.76, 0.86),
            "s": _uniform(rng, 0.37, 0.42),
            "horizon": _uniform(rng, 0.54, 0.62),
            "island_x": _uniform(rng, 0.78, 0.82),
        }

    def zone(self, p: Params) -> Box:
        return 0.0, 0.0, 1.0, 1.0  # the storm darkens the whole sky

    def backdrop(self, canvas: Canvas, p: Params) -> None:
        storm = p.get("state") == "sunk"
        canvas.rect((0, 0, 1, p["horizon"]), STORM_SKY if storm else _wall(p))
        canvas.rect((0, p["horizon"], 1, 1), SEA)
        if storm:
            for x, r in ((0.1, 0.16), (0.34, 0.21), (0.6, 0.17), (0.86, 0.21)):
                canvas.circle((x, 0.05), r, STORM_CLOUD)
        else:
            canvas.circle((0.52, 0.16), 0.09, SUN)

    def draw(self, canvas: Canvas, p: Params) -> None:
        self._island(canvas, p)
        if p.get("state") == "sunk":
            self._boat(canvas, p, p["x"], tilt=25, depth=0.38 * p["s"])
        else:
            self._boat(canvas, p, _boat_harbour(p) if p.get("state") == "arrived" else p["x"])

    def _island(self, canvas: Canvas, p: Params) -> None:
        x, y = p["island_x"], p["horizon"] + 0.1
        canvas.ellipse(_around((x, y), 0.22, 0.13), ISLAND)
        canvas.rect((x - 0.23, y, 1, y + 0.14), SEA)
        x += 0.05
        canvas.rect((x - 0.022, y - 0.36, x + 0.022, y - 0.09), WOOD)
        for side in (-1, 1):
            for drop in (-0.06, 0.08):
                leaf = [(x, y - 0.41), (x + side * 0.15, y - 0.36 + drop), (x, y - 0.33)]
                canvas.polygon(leaf, (24, 120, 60))

    def _boat(self, canvas: Canvas, p: Params, x: float, tilt: float = 0, depth: float = 0) -> None:
        y, s, color = p["y"], p["s"], p["color"]
        parts: tuple[tuple[tuple[Point, ...], Color], ...] = (
            (((-0.04, -1.05), (0.02, -1.05), (0.02, -0.1), (-0.04, -0.1)), "black"),
            (((0.02, -1.0), (0.5, -0.25), (0.02, -0.25)), color),
            (((-0.06, -0.85), (-0.06, -0.25), (-0.4, -0.25)), shade(color, 1.3)),
            (((-0.5, -0.18), (0.5, -0.18), (0.36, 0.08), (-0.36, 0.08)), WOOD),
        )
        for points, fill in parts:
            turned = rotate([(x + dx * s, y + dy * s) for dx, dy in points], tilt, (x, y))
            canvas.polygon([(px, py + depth) for px, py in turned], fill)
        canvas.rect((x - s, y, x + s, 1), SEA)  # the water hides what is below its line


# --- The bird and the nest

LEAVES = (46, 140, 70)
NEST = (176, 122, 60)
NEST_INSIDE = (70, 44, 24)


def _bird_in_nest(p: Params) -> Point:
    return p["nest_x"], round(p["nest_y"] + 0.04, 4)


def _bird_body_box(p: Params, feet: Point) -> Box:
    """Inside the body, above the wing, of a bird whose feet are there."""
    x, y = feet
    return _around((x + 0.05 * p["s"], y - 0.42 * p["s"]), 0.2 * p["s"], 0.1 * p["s"])


def _bird_eggs(p: Params) -> list[Point]:
    return [(p["nest_x"] + side * 0.42 * p["nest_r"], p["nest_y"] - 0.035) for side in (-1, 1)]


def _bird_flew_to_nest(look: Look, p: Params) -> bool:
    before, after = (_bird_body_box(p, feet) for feet in ((p["x"], p["y"]), _bird_in_nest(p)))
    return (
        look.share(after, p["color"], 70) > 0.5
        and look.share(before, p["color"], GONE) < 0.2
        and look.share(before, _wall(p)) > 0.6
    )


def _bird_laid_eggs(look: Look, p: Params) -> bool:
    eggs = [_around((x, y - 0.01), 0.035, 0.035) for x, y in _bird_eggs(p)]
    return (
        all(look.share(egg, "white", 70) > 0.5 for egg in eggs)
        and all(look.share(egg, LEAVES) + look.share(egg, NEST_INSIDE) < 0.3 for egg in eggs)
        and look.share(_bird_body_box(p, (p["x"], p["y"])), p["color"], 70) > 0.5
    )


class Bird(Scene):
    """A coloured bird on a stump at the left, and at the right a tree with an empty nest."""

    name = "bird"
    colors = ("red", "blue", "purple", "pink", "yellow", "orange")
    kinds = (
        Kind(
            "bird_flies_to_nest",
            "story",
            ("the {color} bird", "the empty nest", "the tree"),
            "the {color} bird has left the stump and sits in the nest in the tree",
            (
                "Move the bird to the nest.",
                "Put the {color} bird in its nest.",
                "Let the bird fly home to the tree.",
                "Show the bird sitting in the nest.",
                "The {color} bird flies up into the tree.",
                "Make the bird leave the stump and go home.",
                "What would happen if the bird flew to its nest?",
                "What would we see if the bird went home?",
                "What if the {color} bird spread its wings and left the stump?",
                "Imagine the bird wanted to rest in its nest; how would this look?",
                "Suppose a loud noise scared the bird up into the tree. What comes next?",
                "How would this picture look once the bird is home?",
                "Show what would follow if the bird had to hide in the tree.",
                "If the bird were tired of the stump, where would it sit?",
            ),
            (
                "Let the bird leave the stump and fly up to its nest.",
                "What would happen if a loud noise scared the bird?",
                "Imagine the {color} bird spread its wings and flew home; how would this look?",
                "Suppose the bird wanted to sit in the tree. What would we see?",
                "What if the tired bird went home to rest?",
            ),
            partial(_become, "home"),
            _bird_flew_to_nest,
        ),
        Kind(
            "bird_lays_eggs",
            "story",
            ("the {color} bird", "the empty nest"),
            "two big white eggs lie in the nest while the {color} bird stays on the stump",
            (
                "Put two eggs in the nest.",
                "Add two white eggs to the nest.",
                "Fill the empty nest with white eggs.",
                "Show the nest with two big eggs in it.",
                "The {color} bird has laid two eggs.",
                "Show the eggs of the {color} bird in the tree.",
                "What would happen if two eggs were laid in the nest?",
                "What would we see if the {color} bird became a mother?",
                "What if it were the season for laying eggs?",
                "Imagine the bird was about to become a mother; how would the nest look?",
                "Suppose the bird wanted chicks. What would the nest hold?",
                "How would this picture look if the nest were no longer empty?",
                "Show what would follow if chicks were soon to hatch in the nest.",
                "If the bird started a family, what would lie in the nest?",
            ),
            (
                "Fill the nest with two big white eggs.",
                "What would happen if the bird started a family?",
                "Imagine it were the season for eggs; how would the nest look?",
                "Suppose the {color} bird has laid eggs. What would we see in the nest?",
                "What if two chicks were about to hatch?",
            ),
            partial(_become, "eggs"),
            _bird_laid_eggs,
        ),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": _uniform(rng, 0.2, 0.22),
            "y": _uniform(rng, 0.6, 0.7),
            "s": _uniform(rng, 0.25, 0.3),
            "nest_x": _uniform(rng, 0.69, 0.73),
            "nest_y": _uniform(rng, 0.42, 0.5),
            "nest_r": _uniform(rng, 0.15, 0.18),
        }

    def zone(self, p: Params) -> Box:
        return p["x"] - 0.62 * p["s"], p["nest_y"] - 0.3, p["nest_x"] + 0.28, 0.93

    def draw(self, canvas: Canvas, p: Params) -> None:
        (x, y), (nx, ny), r = (p["x"], p["y"]), (p["nest_x"], p["nest_y"]), p["nest_r"]
        canvas.rect((x - 0.11, y, x + 0.11, 0.92), WOOD)
        canvas.rect((x - 0.12, y, x + 0.12, y + 0.05), shade(WOOD, 0.7))
        canvas.rect((nx - 0.06, ny, nx + 0.06, 0.9), WOOD)
        canvas.ellipse(_around((nx, ny), 0.27, 0.28), LEAVES)
        canvas.ellipse(_around((nx, ny), r, 0.05), NEST_INSIDE)
        if p.get("state") == "eggs":
            for egg in _bird_eggs(p):
                canvas.ellipse(_around(egg, 0.055, 0.085), "white")
        self._bird(canvas, p, _bird_in_nest(p) if p.get("state") == "home" else (x, y))
        canvas.polygon([(nx - r, ny), (nx + r, ny), (nx + 0.65 * r, ny + 0.14), (nx - 0.65 * r, ny + 0.14)], NEST)
        canvas.line([(nx - 0.8 * r, ny + 0.07), (nx + 0.8 * r, ny + 0.07)], 0.03, shade(NEST, 0.65))

    def _bird(self, canvas: Canvas, p: Params, feet: Point) -> None:
        (x, y), s, color = feet, p["s"], p["color"]
        tail = [(x - 0.6 * s, y - 0.62 * s), (x - 0.2 * s, y - 0.5 * s), (x - 0.2 * s, y - 0.2 * s)]
        canvas.polygon(tail, shade(color, 0.7))
        beak = [(x + 0.4 * s, y - 0.82 * s), (x + 0.62 * s, y - 0.68 * s), (x + 0.4 * s, y - 0.56 * s)]
        canvas.polygon(beak, "black")
        canvas.ellipse((x - 0.45 * s, y - 0.62 * s, x + 0.45 * s, y), color)
        canvas.circle((x + 0.26 * s, y - 0.7 * s), 0.22 * s, color)
        canvas.ellipse((x - 0.3 * s, y - 0.34 * s, x + 0.12 * s, y - 0.1 * s), shade(color, 0.7))
        canvas.circle((x + 0.3 * s, y - 0.74 * s), 0.026, "black")


SCENES = (Hero(), Cat(), Boat(), Bird())
