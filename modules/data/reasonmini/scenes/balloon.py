"""A balloon tied to a weight: it is untied, pricked, or left alone for days."""

from __future__ import annotations

import numpy as np

from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look
from reasonbrain.modules.data.reasonmini.scenes.common import becomes, uniform
from reasonbrain.modules.data.reasonmini.scenes.mechanics import COLORS, DARK, STRING, WOOD, share_around
from reasonbrain.modules.data.reasonmini.world import Kind, Params, Scene

CEILING = 0.06
SCRAPS = (-0.27, -0.15, 0.28)  # x relative to the weight


def _balloon_old(look: Look, p: Params) -> float:
    return share_around(look, (p["x"], p["y"] + 0.3 * p["radius"]), 0.4 * p["radius"], p["color"])


def _balloon_untied_seen(look: Look, p: Params) -> bool:
    top = (p["x"], CEILING + 0.7 * p["radius"])
    return share_around(look, top, 0.35 * p["radius"], p["color"]) > 0.6 and _balloon_old(look, p) < 0.25


def _balloon_pricked_seen(look: Look, p: Params) -> bool:
    x, y = p["x"], p["ground"]
    scraps = min(look.share((x + dx - 0.04, y - 0.05, x + dx + 0.04, y), p["color"], 52) for dx in SCRAPS)
    return scraps > 0.35 and _balloon_old(look, p) < 0.2


def _balloon_later_seen(look: Look, p: Params) -> bool:
    small = (p["x"] + 0.2, p["ground"] - 0.07)
    return share_around(look, small, 0.035, p["color"]) > 0.6 and _balloon_old(look, p) < 0.2


class Balloon(Scene):
    """A balloon under the ceiling on a string that is tied to a black weight on the floor."""

    name = "balloon"
    colors = COLORS
    kinds = (
        Kind("balloon_untied", "physical", becomes("untied"), _balloon_untied_seen),
        Kind("balloon_pricked", "causal", becomes("pricked"), _balloon_pricked_seen),
        Kind("balloon_days_later", "temporal", becomes("later"), _balloon_later_seen),
    )

    def sample(self, rng: np.random.Generator) -> Params:
        return {
            "x": uniform(rng, 0.36, 0.64),
            "y": uniform(rng, 0.48, 0.53),
            "radius": uniform(rng, 0.13, 0.16),
            "ground": uniform(rng, 0.88, 0.92),
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


SCENE = Balloon()
