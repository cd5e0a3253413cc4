"""A cat and its fish: the cat eats it, or falls asleep."""

from __future__ import annotations

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Color, Look, Point, shade
from reasonbrain.modules.data.reasonmini.scenes.common import GONE, around, becomes, uniform, wall_color
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

FISH = (70, 214, 214)
BOWL = (48, 105, 220)
BOWL_INSIDE = (50, 44, 60)


def _cat_point(p: Params, dx: float, dy: float) -> Point:
    """A point of the cat, in cat heights relative to the middle of its feet."""
    return p["x"] + dx * p["h"], p["ground"] - dy * p["h"]


def _cat_bowl_center(p: Params) -> Point:
    return p["bowl_x"], p["ground"] - 0.16


def _cat_fish_box(p: Params) -> Box:
    return around(_cat_bowl_center(p), 0.6 * p["bowl_r"], 0.055)


def _cat_head_box(p: Params) -> Box:
    """Inside the head of the sitting cat."""
    return around(_cat_point(p, 0, 0.76), 0.14 * p["h"], 0.14 * p["h"])


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
        and look.share(head, wall_color(p)) > 0.6
        and look.share(around(_cat_point(p, -0.2, 0.22), 0.08 * p["h"], 0.06 * p["h"]), p["color"]) > 0.6
        and look.share(_cat_fish_box(p), FISH) > 0.4
    )


class Cat(Scene):
    """A coloured cat sits at the left of a bowl with a big fish in it."""

    name = "cat"
    colors = ("orange", "black", "purple", "pink", "red", "yellow")
    kinds = (
        Kind("cat_eats_fish", "story", becomes("eaten"), _cat_ate_fish),
        Kind("cat_falls_asleep", "story", becomes("asleep"), _cat_fell_asleep),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": uniform(rng, 0.25, 0.27),
            "h": uniform(rng, 0.48, 0.6),
            "ground": uniform(rng, 0.87, 0.94),
            "bowl_x": uniform(rng, 0.74, 0.77),
            "bowl_r": uniform(rng, 0.18, 0.21),
        }

    def zone(self, p: Params) -> Box:
        return p["x"] - 0.42 * p["h"], p["ground"] - 1.06 * p["h"], p["bowl_x"] + p["bowl_r"] + 0.02, p["ground"] + 0.02

    def draw(self, canvas: Canvas, p: Params) -> None:
        h, asleep = p["h"], p.get("state") == "asleep"
        edge = shade(p["color"], 1.3 if p["color"] == "black" else 0.72)
        if asleep:
            canvas.ellipse(around(_cat_point(p, 0, 0.19), 0.39 * h, 0.2 * h), p["color"])
            canvas.line([_cat_point(p, -0.34, 0.05), _cat_point(p, 0.1, 0.03)], 0.09 * h, edge)
            self._head(canvas, p, _cat_point(p, 0.19, 0.2), edge)
        else:
            tail = ((-0.1, 0.06), (-0.34, 0.1), (-0.36, 0.36))
            canvas.line([_cat_point(p, *point) for point in tail], 0.1 * h, edge)
            canvas.ellipse(around(_cat_point(p, 0, 0.3), 0.26 * h, 0.32 * h), p["color"])
            for side in (-1, 1):
                canvas.ellipse(around(_cat_point(p, side * 0.11, 0.04), 0.09 * h, 0.05 * h), edge)
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
            eye = around((x + side * 0.1 * h, y - 0.02 * h), 0.075 * h, 0.075 * h)
            if asleep:
                canvas.arc(eye, 10, 170, 0.025, ink)
            else:
                canvas.ellipse(eye, "white")
                canvas.circle((x + side * 0.09 * h, y - 0.02 * h), 0.022, "black")

    def _bowl(self, canvas: Canvas, p: Params) -> None:
        (x, y), r = _cat_bowl_center(p), p["bowl_r"]
        canvas.polygon([(x - r, y), (x + r, y), (x + 0.7 * r, p["ground"]), (x - 0.7 * r, p["ground"])], BOWL)
        canvas.ellipse(around((x, y), r, 0.115), BOWL)
        canvas.ellipse(around((x, y), r - 0.02, 0.095), BOWL_INSIDE)
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


SCENE = Cat()
