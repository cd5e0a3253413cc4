"""A burning candle: it burns down, is blown out or tips over."""

from __future__ import annotations

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look, Point
from reasonbrain.modules.data.reasonmini.scenes.common import around, becomes, uniform
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

FLAME, GLOW, FIRE = (240, 130, 30), (250, 212, 66), (245, 171, 48)  # FIRE lies between the other two
SMOKE = (104, 106, 112)
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
    return look.share(around(center, 0.035), FIRE, 80)


def _wax_share(look: Look, p: Params, box: Box) -> float:
    """Share of the box's inside in the candle's colour. A wider tolerance would confuse pink with a slate wall."""
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
    smoke = [look.share(around(center, 0.7 * r), SMOKE, 45) for center, r in _puffs(p)]
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
        Kind("candle_burns_down", "temporal", becomes("short"), _check_burned_down),
        Kind("candle_blown_out", "causal", becomes("out"), _check_blown_out),
        Kind("candle_tips_over", "physical", becomes("fallen"), _check_tipped),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": uniform(rng, 0.23, 0.3),
            "y": uniform(rng, 0.87, 0.93),
            "w": uniform(rng, 0.16, 0.2),
            "h": uniform(rng, 0.34, 0.42),
        }

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


SCENE = Candle()
