"""Things under the open sky."""

from __future__ import annotations

from contextlib import nullcontext

from reasonbrain.modules.data.reasonmini2.drawing import Drawing, flames, puddle, shade, smoke, snow
from reasonbrain.modules.data.reasonmini2.things import Params, draws

BARK = "#7a4e2a"
WATER = "#4a92d6"


@draws("snowman")
def snowman(d: Drawing, p: Params) -> None:
    """A snowman with a hat."""
    state, color = p["state"], p["color"]

    def hat(x: float, y: float, turn: float = 0) -> None:
        with d.frame(x, y, turn=turn):
            d.rect(-9, -2, 18, 3, color, "bar", 1)
            d.rect(-6, -12, 12, 11, color, "tube", 1)

    def carrot(x: float, y: float, turn: float = 0) -> None:
        with d.frame(x, y, turn=turn):
            d.polygon([(0, -1.6), (9, 0.4), (0, 1.8)], "orange", "face")

    if state in ("melted", "spring"):
        puddle(d, 0, 1, 27)
        hat(-8, -2, -14)
        carrot(10, -1, 20)
        d.line("M14 3 L28 -2", 1.2, BARK)
        if state == "spring":
            for x, y, c in (
                (-24, 2, "#8c48be"),
                (-16, 5, "#fad442"),
                (20, 4, "#f682b0"),
                (27, 1, "#8c48be"),
                (3, 6, "#fafafa"),
            ):
                d.line(f"M{x} {y} v-9", 1.1, "#2e8b3d")
                for dx, dy in ((-2.2, -9), (2.2, -9), (0, -11.5), (0, -7)):
                    d.circle(x + dx, y + dy, 2, c)
                d.circle(x, y - 9, 1.4, "#ffb52c")
        return
    d.shadow(0, 3, 22)
    if state == "toppled":
        for x, y, r in ((-8, -9, 13), (14, -6, 9), (26, -3, 6)):
            d.circle(x, y, r, "#f2f6fc", "ball")
        hat(-25, 0, -30)
        carrot(26, -2, 30)
        return
    size = 0.6 if state == "small" else 1
    with d.frame(0, 0, size):
        for y, r in ((-13, 15), (-33, 11), (-48, 8)):
            d.circle(0, y, r, "#f2f6fc", "ball")
        d.line("M10 -34 L23 -42 M-10 -34 L-23 -42", 1.4, BARK)
        for y in (-37, -31, -15):
            d.circle(0, y, 1.3, "black")
        for x in (-3, 3):
            d.circle(x, -50, 1.2, "black")
        carrot(0, -47)
        if state != "hatless":
            hat(0, -54)
    if state == "hatless":
        hat(25, -24, 50)
        d.line("M-2 -60 H10 M8 -54 H18 M14 -46 H22", 1, "#ffffff", 0.9)
    elif state == "small":
        puddle(d, 0, 3, 24)
        for x, y in ((-24, -50), (-12, -60), (14, -58), (26, -46), (-28, -26), (26, -22)):
            d.line(f"M{x} {y} l-1.5 6", 1.1, "#4a9ade")


@draws("tree")
def tree(d: Drawing, p: Params) -> None:
    """A tree, or a sapling."""
    state = p["state"]
    wide = 0.9 + 0.2 * p["vary"]
    d.shadow(0, 3, 22)
    if state == "sapling":
        d.line("M0 0 V-16", 1.8, "#5c7a34")
        for y, x in ((-8, 5), (-12, -5), (-16, 4)):
            d.ellipse(x, y, 4.6, 2.2, "#4caf50", "face")
        return
    if state == "stub":
        d.line("M0 0 V-5", 1.8, "#5c7a34")
        with d.frame(12, 1, turn=86):
            d.line("M0 0 V-14", 1.8, "#5c7a34")
            for y, x in ((-5, 4), (-9, -4), (-13, 3)):
                d.ellipse(x, y, 4, 2, "#4caf50", "face")
        return
    if state == "felled":
        d.rect(-7, -9, 14, 10, BARK, "tube", 1)
        d.ellipse(0, -9, 7, 2.4, "#d9b27c")
        d.ellipse(0, -9, 4, 1.3, "#b98a52")
        d.rect(12, -4, 18, 6, BARK, "bar", 2)
        d.ellipse(12, -1, 1.6, 3, "#d9b27c")
        return
    bark = {"charred": "#1d1a18"}.get(state, BARK)
    d.path("M-5 2 Q-3 -14 -4 -28 H4 Q3 -14 6 2Z", bark, "tube")
    d.line("M0 -24 L-13 -42 M0 -26 L12 -44 M0 -24 L0 -50 M-8 -36 L-17 -36 M7 -37 L17 -34", 2.6, bark)
    crown = {
        **{"leafy": "#3f9c46", "apples": "#3f9c46", "picked": "#3f9c46", "fallen_fruit": "#3f9c46"},
        **{"blossom": "#f7b8d0", "autumn": "#dd7f26", "brown": "#9a7b4a"},
    }.get(state)
    if crown:
        for x, y, r in ((-14, -36, 11), (14, -35, 11), (-7, -48, 11), (9, -48, 11), (0, -38, 13)):
            d.circle(x * wide, y, r, crown, "ball")
    fruit = [(-15, -34), (-6, -44), (5, -34), (14, -42), (0, -52), (16, -31), (-8, -31)]
    if state == "apples":
        for x, y in fruit:
            d.circle(x, y, 2.6, p["color"], "ball")
    elif state == "fallen_fruit":
        for i, (x, _) in enumerate(fruit):
            d.circle(x * 1.4, 2 - (i % 3) * 2, 2.6, p["color"], "ball")
    elif state == "blossom":
        for x, y in fruit + [(8, -52), (-16, -44), (3, -42)]:
            for dx, dy in ((-1.3, 0), (1.3, 0), (0, -1.3), (0, 1.3)):
                d.circle(x + dx, y + dy, 1.2, "#fff3f8")
    elif state == "autumn":
        for x, y in ((-24, 1), (-14, 4), (-3, 3), (10, 5), (19, 1), (27, 3)):
            d.ellipse(x, y, 3.4, 1.4, "#d2691e", "face")
    elif state == "snowy":
        for x, y, r in ((-13, -42, 7), (12, -44, 7), (0, -50, 8), (-17, -36, 4), (17, -34, 4)):
            d.ellipse(x, y - 1, r, 2.4, "#f7faff", "face")
    elif state == "windswept":
        for x, y, r in ((10, -38, 9), (16, -46, 8)):
            d.circle(x, y, r, "#3f9c46", "ball")
        for x, y, t in ((22, -20, 30), (28, -30, 80), (26, -52, 10), (18, -8, 50), (30, -12, 0)):
            with d.frame(x, y, turn=t):
                d.ellipse(0, 0, 2.8, 1.2, "#4caf50")
        d.line("M-30 -52 H-14 M-28 -38 H-18 M-30 -22 H-12", 1, "#ffffff", 0.9)
    elif state == "charred":
        smoke(d, 4, -46, 14)
        for x, y in ((-13, -43), (12, -45), (0, -51)):
            flames(d, x, y + 2, 4, 7)


@draws("dam")
def dam(d: Drawing, p: Params) -> None:
    """A valley with a lake behind a dam."""
    state, color = p["state"], p["color"]
    d.rect(-32, -38, 64, 44, "#8aa05c", "face", 2)  # the valley
    d.polygon([(-32, -38), (-24, -38), (-14, 4), (-32, 4)], "#6f8548", "face")
    d.polygon([(32, -12), (24, -12), (20, 4), (32, 4)], "#6f8548", "face")
    if state == "flooded":
        d.path("M-28 -18 Q-12 -21 4 -14 T30 -13 V4 H-18Z", WATER, "face")
        d.polygon([(0, 4), (0, -8), (3, -5), (6, -11), (9, -6), (12, 4)], color, "side")
        d.ellipse(20, -8, 7, 1.4, "#cfe8fa", None, 0.8)
        return
    if state in ("full", "overflowing"):
        level = -32 if state == "full" else -37
        d.polygon([(-27, level), (2, level), (2, 4), (-15, 4)], WATER, "face")
        d.ellipse(-14, level + 1, 8, 0.9, "#cfe8fa", None, 0.8)
    elif state == "frozen":
        d.polygon([(-27, -32), (2, -32), (2, 4), (-15, 4)], "#bfe0f2", "face")
        d.polygon([(-27, -34), (2, -34), (2, -30), (-26, -30)], "#f4faff")
        d.line("M-20 -26 l6 6 l-3 6 M-8 -28 l4 8", 0.8, "#ffffff")
    elif state in ("empty", "dry"):
        d.polygon([(-27, -32), (2, -32), (2, 4), (-15, 4)], "#b89468" if state == "dry" else "#a5925f", "face")
        if state == "dry":
            d.line("M-18 -8 l6 3 l5 -5 l8 6 M-15 0 l7 -3 l6 4 M-6 -10 l2 8 M-20 -18 l8 2 l6 -4 l7 3 "
                   "M-23 -27 l9 3 l6 -5 l8 4 M-10 -27 l3 9", 1.8, "#5c4020")  # fmt: skip
        else:
            d.ellipse(-7, -1, 9, 3, "#6d8fa8")
    elif state == "meadow":
        d.polygon([(-27, -32), (2, -32), (2, 4), (-15, 4)], "#5cab4a", "face")
        for x, y, c in (
            (-18, -14, "#fad442"),
            (-10, -6, "#fafafa"),
            (-4, -20, "#f682b0"),
            (-14, -24, "#fafafa"),
            (-4, -2, "#fad442"),
        ):
            d.circle(x, y, 1.8, c)
            d.circle(x, y, 0.7, "orange")
    d.polygon([(0, 4), (2, -38), (8, -38), (14, 4)], color, "side")
    for y in (-28, -18, -8):
        d.line(f"M2 {y} H{8 + (y + 38) * 0.14:.1f}", 0.7, shade(color, 0.6))
    if state == "overflowing":
        d.line("M2 -37 Q9 -40 10 -34 Q13 -20 18 2", 5, "#8cc4ee")
        d.ellipse(22, 2, 9, 2, WATER, "face")


@draws("campfire")
def campfire(d: Drawing, p: Params) -> None:
    """Logs in a ring of stones."""
    state = p["state"]
    d.shadow(0, 4, 29)
    if state in ("burning", "flaring"):
        d.circle(0, -12, 30, "#ffb848", "glow", 0.5)
    stones = [(-25, 1), (-17, 4), (17, 4), (25, 1)]
    if state == "ashes":
        d.ellipse(0, 0, 20, 5, "#6b6866", "face")
        d.ellipse(-4, -1.5, 11, 2.6, "#a5a29f", "face")
        for x, y in ((-6, -1), (5, 0), (10, -2)):
            d.circle(x, y, 1, "#e06a30")
    else:
        burnt = state in ("burning", "flaring", "doused")
        for x, y, t in ((0, -3, 14), (0, -3, -14), (0, -7, 0)):
            with d.frame(x, y, turn=t):
                d.rect(-19, -3.4, 38, 7, "#3d2a1e" if burnt else BARK, "bar", 3)
                d.ellipse(19, 0, 1.8, 3.4, "#d9b27c" if not burnt else "#5a4636")
    for x, y in stones:
        d.ellipse(x, y, 6, 4.4, p["color"], "ball")
    if state == "burning":
        flames(d, 0, -4, 26, 34)
    elif state == "flaring":
        flames(d, 0, -4, 40, 58)
        for x, y in ((-20, -46), (22, -50), (-26, -34), (26, -30)):
            d.circle(x, y, 1.2, "#ffcf50")
    elif state == "doused":
        puddle(d, 0, 6, 26)
        smoke(d, 0, -10, 34, "#b9bcc2")
    elif state == "snowed":
        snow(d, 0, -3, 16, 7)
        snow(d, -22, 0, 9, 4)
        snow(d, 22, 0, 9, 4)
    elif state == "mossy":
        for x, y, rx in ((-12, -8, 8), (8, -11, 9), (16, -3, 6), (-3, -4, 7)):
            d.ellipse(x, y, rx, 3, "#4f8a3c", "face")
        for x, y in ((-5, -11), (3, -14), (13, -12)):
            d.rect(x - 0.8, y, 1.6, 5, "#f2e8d0")
            d.ellipse(x, y, 3.4, 2.2, "#c8402c", "ball")


@draws("house")
def house(d: Drawing, p: Params) -> None:
    """A house, or what is built of it."""
    state, color = p["state"], p["color"]
    wall = "#f0e2c4"
    d.shadow(0, 3, 30)
    if state == "castle":
        for x, y, w in ((-27, -48, 13), (14, -48, 13), (-14, -32, 28)):
            d.rect(x, y, w, -y + 1, "#c9c6d8", "side")
            for k in range(int(w // 4)):
                d.rect(x + 4.2 * k + 0.4, y - 3, 2.6, 3.4, "#c9c6d8")
        for middle in (-20.5, 20.5):
            d.polygon([(middle - 8, -50), (middle + 8, -50), (middle, -63)], color, "side")
            d.rect(middle - 1.5, -40, 3, 6, "#3a3550", None, 1.5)
        d.path("M-6 1 V-12 A6 6 0 0 1 6 -12 V1Z", "#5a3818", "side")
        d.star(0, -42, 4.6, "#ffd84a")
        return
    if state == "site":
        d.rect(-22, -12, 44, 13, wall, "side")
        d.rect(-4, -12, 9, 13, "#8aa05c")
        d.line("M-22 0 V-30 M22 0 V-30 M-22 -29 H22", 1.6, "#a87a44")
        for x, y in ((-18, 4), (-11, 5), (-15, 0)):
            d.rect(x - 4, y - 3, 8, 3.6, "#b5563c", "face")
        return
    if state == "ruin":
        d.path("M-22 1 V-24 L-16 -29 L-12 -18 L-5 -14 L2 -20 L8 -9 L14 -16 L22 -6 V1Z", shade(wall, 0.8), "side")
        d.rect(-5, -12, 9, 13, "#4c3d2c")
        for x, y, r in ((-20, -4, 7), (14, -4, 6), (-24, 1, 5), (20, 0, 6)):
            d.circle(x, y, r, "#4f8a3c", "ball")
        d.line("M-16 -28 q-4 8 0 16 M14 -16 q3 7 0 14", 1.6, "#3f7a30")
        d.line("M-8 2 L10 -3 M12 3 L24 1", 2, "#5a3818")
        return
    d.rect(-22, -27, 44, 28, wall, "side")
    roof = shade(color, 0.45) if state == "charred" else color
    if state != "roofless":
        d.rect(10, -50, 6, 16, "#a8563c", "tube")
        d.polygon([(-27, -26), (27, -26), (15, -47), (-15, -47)], roof, "face")
    else:
        d.line("M-22 -27 L-15 -42 M22 -27 L15 -42 M0 -27 V-42", 1.6, "#7d5a34")
        with d.frame(24, -50, 0.6, 32):
            d.polygon([(-20, 4), (20, 4), (12, -10), (-12, -10)], color, "face")
    for x in (-17, 8):
        with d.lights() if state == "night" else nullcontext():
            if state == "night":
                d.circle(x + 4.5, -17, 10, "#ffe27a", "glow", 0.7)
            d.rect(x, -21, 9, 8, {"night": "#ffe27a", "charred": "#1d1a18"}.get(state, "#9cc4e0"), "face")
            d.line(f"M{x + 4.5} -21 V-13 M{x} -17 H{x + 9}", 0.8, "#6a5a4a")
    d.rect(-4.5, -14, 9, 15, "#7d5230", "side", 1)
    d.circle(2.5, -7, 0.8, "#f0d080")
    if state == "winter":
        d.polygon([(-28, -25), (28, -25), (16, -50), (-16, -50)], "#f4f8ff", "face")
        for x in range(-26, 27, 6):
            d.polygon([(x - 1.4, -25), (x + 1.4, -25), (x, -20)], "#d8f0ff")
        snow(d, 0, 5, 31, 4)
    elif state == "burning":
        smoke(d, 8, -52, 11, "#3c3a3a")
        flames(d, -10, -34, 16, 24)
        flames(d, 9, -32, 18, 27)
        flames(d, -12, -13, 6, 9)
    elif state == "charred":
        smoke(d, -4, -46, 16, "#8a8a90")
        for x in (-14, 2, 14):
            d.ellipse(x, -24, 5, 3, "#1d1a18", None, 0.6)
        puddle(d, 0, 4, 27)
    elif state == "ivy":
        for x, y, r in (
            (-19, -6, 6),
            (-20, -16, 5),
            (-15, -25, 5),
            (18, -5, 6),
            (20, -15, 5),
            (14, -26, 5),
            (-8, -29, 4),
        ):
            d.circle(x, y, r, "#3f8f3e", "ball")
            d.circle(x + 1, y - 1, 1.4, "#f682b0")
            d.circle(x - 2, y + 2, 1.2, "#fff3f8")


@draws("boat")
def boat(d: Drawing, p: Params) -> None:
    """Drawn on the sea that fills the picture; x and y are those of the boat's water line."""
    state, color = p["state"], p["color"]
    if state == "sunk":
        with d.frame(-16, 6, turn=24):
            d.line("M0 -10 V-44", 1.8, BARK)
            d.polygon([(1, -44), (1, -14), (20, -14)], color, "side")
        d.rect(-40, 2, 90, 14, "#3c6484")
        d.ellipse(-10, 2, 20, 1.6, "#cfe0ea", None, 0.7)
        return
    with d.frame(13 if state == "arrived" else -16):
        _sailing(d, state, color)


def _sailing(d: Drawing, state: str, color: str) -> None:
    with d.frame(0, 4 if state == "laden" else 0, turn=7 if state == "stranded" else 0):
        d.line("M0 -6 V-52", 1.8, BARK)
        d.polygon([(1.5, -51), (1.5, -13), (24, -13)], color, "side")
        d.polygon([(-1.5, -45), (-1.5, -13), (-18, -13)], shade(color, 1.35), "side")
        d.path("M-25 -9 H25 Q21 4 15 5 H-15 Q-22 3 -25 -9Z", "#8b5a2f", "bar")
        d.line("M-24 -7 H24", 1.2, "#f3e3c0")
        if state == "laden":
            for x in (-16, -6, 4):
                d.rect(x, -19, 10, 10, "#34363e", "face", 1)
        elif state == "lantern":
            with d.lights():
                d.circle(-21, -18, 14, "#ffe27a", "glow", 0.9)
                d.circle(-21, -18, 2.6, "#fff3b0")
            d.line("M-21 -16 V-9", 1, "black")
    if state == "stranded":
        d.shadow(0, 6, 26)
        return
    if state == "icebound":
        for x, y, w in ((-30, 4, 20), (-8, 6, 22), (16, 5, 20), (30, 8, 16)):
            d.polygon(
                [(x - w / 2, y), (x - w / 3, y - 3), (x + w / 3, y - 3), (x + w / 2, y), (x, y + 3)], "#eaf6ff", "face"
            )
        return
    d.rect(-26, 2, 52, 5, "#3f86c8", None, 2)
    d.line("M-28 3 q4 -3 8 0 t8 0 t8 0 t8 0 t8 0 t8 0 t8 0", 1.2, "#cfe8fa", 0.9)
