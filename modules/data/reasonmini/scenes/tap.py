"""A tap over a bucket: it is left open."""

from __future__ import annotations

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Color, Look, Point, shade
from reasonbrain.modules.data.reasonmini.scenes.common import becomes, uniform
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

WATER = (48, 105, 220)
METAL = (84, 90, 104)
INSIDE = (240, 244, 246)  # of the empty bucket


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
    kinds = (Kind("tap_left_open", "causal", becomes("open"), _bucket_filled),)

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": uniform(rng, 0.38, 0.62),
            "w": uniform(rng, 0.21, 0.27),
            "top": uniform(rng, 0.48, 0.56),
            "bottom": uniform(rng, 0.87, 0.93),
            "nozzle": uniform(rng, 0.3, 0.36),
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


SCENE = Tap()
