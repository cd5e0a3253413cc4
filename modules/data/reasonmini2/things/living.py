"""Things that live, or come to life."""

from __future__ import annotations

from contextlib import nullcontext

from reasonbrain.modules.data.reasonmini2.drawing import Drawing, drops, puddle, shade
from reasonbrain.modules.data.reasonmini2.things import Params, draws

LEAF = "#3f9c46"
STRAW = "#a8803c"


@draws("plant")
def plant(d: Drawing, p: Params) -> None:
    """A plant in a pot."""
    state, color = p["state"], p["color"]
    d.shadow(0, 3, 18)
    if state == "tipped":
        with d.frame(-4, -9, turn=84):
            d.polygon([(-12, -2), (12, -2), (8, 18), (-8, 18)], color, "tube")
            d.line("M0 -3 Q-2 -14 2 -24", 2.4, LEAF)
            for x, y, t in ((-6, -12, -30), (7, -16, 30), (2, -25, 0)):
                with d.frame(x, y, turn=t):
                    d.ellipse(0, 0, 7, 3.4, LEAF, "ball")
        d.path("M0 2 Q6 -5 14 -2 Q24 -3 26 2 Q12 5 0 2Z", "#5a3a22", "face")
        return
    d.polygon([(-12, -18), (12, -18), (8.5, 2), (-8.5, 2)], color, "tube")
    d.rect(-13.5, -21, 27, 5, color, "tube", 1)
    d.ellipse(0, -20.5, 12, 2, "#5a3a22")

    def leaf(x: float, y: float, turn: float, size: float = 1, fill: str = LEAF) -> None:
        with d.frame(x, y, size, turn):
            d.path("M0 0 Q6 -7 15 -5 Q10 3 0 0Z", fill, "face")

    def flower(x: float, y: float, r: float) -> None:
        for dx, dy in ((0, -1), (0.95, -0.3), (0.6, 0.8), (-0.6, 0.8), (-0.95, -0.3)):
            d.circle(x + dx * r, y + dy * r, r * 0.72, "#f06ea4", "ball")
        d.circle(x, y, r * 0.6, "#ffd23e", "ball")

    if state in ("green", "revived"):
        d.line("M0 -20 V-38", 2, LEAF)
        for y, t, s in ((-24, 0, 1), (-31, -10, 0.9), (-37, -25, 0.8)):
            leaf(0, y, t, s)
            with d.frame(0, y, mirror=True):
                leaf(0, 0, t, s)
        if state == "revived":
            drops(d, [(-18, -34), (17, -40), (0, -48)])
    elif state == "bloom":
        d.line("M0 -20 V-46", 2.4, LEAF)
        for y, t in ((-24, 0), (-32, -10), (-39, -20)):
            leaf(0, y, t)
            with d.frame(0, y, mirror=True):
                leaf(0, 0, t)
        flower(0, -51, 7)
    elif state == "jungle":
        d.line("M0 -20 Q-3 -40 0 -58 M0 -26 Q12 -38 16 -48 M0 -26 Q-12 -36 -18 -44", 2.6, LEAF)
        for x, y, t in (
            (0, -58, -60),
            (16, -48, -20),
            (16, -48, 40),
            (8, -36, 10),
            (0, -44, -15),
            (4, -24, 20),
            (2, -52, 0),
        ):
            leaf(x, y, t, 1.1)
            with d.frame(0, y, mirror=True):
                leaf(x, 0, t, 1.1)
    elif state in ("wilted", "thirsty"):
        fill = STRAW if state == "wilted" else "#9aa646"
        d.line("M0 -20 Q2 -34 12 -32 Q18 -30 19 -22", 2, fill)
        for x, y, t in ((4, -31, 120), (12, -31, 110), (18, -24, 95), (1, -25, 130)):
            leaf(x, y, t, 0.85, fill)
    elif state == "dead":
        d.line("M0 -20 V-29", 2, "#6b4f2a")
        for x, y in ((-20, 3), (-9, 5), (12, 4), (22, 2)):
            d.ellipse(x, y, 4, 1.6, "#8a6430", "face")
    elif state == "cropped":
        d.line("M0 -20 V-27", 2.4, LEAF)
        d.ellipse(0, -27, 1.6, 0.8, "#d5e8b0")
        with d.frame(20, 1, turn=92):
            d.line("M0 6 V-10", 2, LEAF)
            for y in (-2, -8):
                leaf(0, y, 0, 0.8)
    elif state == "frosted":
        d.line("M0 -20 V-36", 2, "#a9c8d4")
        for y, t, s in ((-24, 35, 1), (-31, 30, 0.9), (-36, 10, 0.8)):
            leaf(0, y, t, s, "#cfe6ef")
            with d.frame(0, y, mirror=True):
                leaf(0, 0, t, s, "#cfe6ef")
        for x, y in ((-10, -30), (9, -34), (0, -42)):
            d.line(f"M{x - 2.5} {y} h5 M{x} {y - 2.5} v5", 0.8, "#ffffff")


@draws("cat")
def cat(d: Drawing, p: Params) -> None:
    """A cat with a fish in a bowl, or with a mouse."""
    state, color = p["state"], p["color"]
    dark = shade(color, 0.7)
    fish = state in ("fish", "asleep_fish", "wet_fish", "ate_fish")
    d.shadow(-4, 3, 28)
    if fish:
        d.path("M10 -5 H30 Q28 3 20 3 Q12 3 10 -5Z", "#4a74b8", "tube")
        d.ellipse(20, -5, 10, 2.2, "#2d4a7c")
        if state == "ate_fish":
            d.line("M13 -6 H27 M17 -8 V-4 M20 -8.5 V-3.5 M23 -8 V-4 M27 -8 L29 -6 L27 -4", 1, "#f4f0e4")
        else:
            d.path("M12 -7 Q18 -13 25 -8 L29 -11 V-4 L25 -7 Q18 -3 12 -7Z", "#ff9d5c", "face")
            d.circle(15, -8, 0.8, "black")
    elif state != "ate_mouse":
        d.ellipse(22, -1, 7, 4, "#9a9ca4", "ball")
        d.circle(16, -2, 3, "#9a9ca4", "ball")
        d.circle(16.5, -5, 1.8, "#d8b0b4")
        d.circle(14.6, -2.2, 0.7, "black")
        d.line("M29 -1 q4 1 3 5", 0.9, "#d8b0b4")
    if state.startswith("asleep"):
        d.ellipse(-10, -7, 18, 10, color, "ball")
        d.circle(-22, -7, 7.5, color, "ball")
        d.polygon([(-28, -11), (-26, -18), (-22, -13)], dark)
        d.polygon([(-21, -13), (-17, -17), (-16, -10)], dark)
        d.line("M-26 -7 q1.5 1.6 3 0 M-20.5 -7 q1.5 1.6 3 0", 0.9, "black")
        d.line("M6 -4 Q4 3 -14 2", 4, dark)
        return
    belly = 1.35 if state == "ate_mouse" else 1
    d.line("M-18 -2 Q-30 -6 -27 -20", 4, dark)
    d.path(f"M{-20 * belly:.1f} 1 Q{-21 * belly:.1f} -22 -8 -26 Q{4 * belly:.1f} -22 {6 * belly:.1f} 1Z", color, "ball")
    d.circle(-6, -33, 10, color, "ball")
    d.polygon([(-15, -37), (-14, -48), (-7, -42)], dark)
    d.polygon([(-4, -42), (3, -47), (3.5, -36)], dark)
    if state.startswith("ate"):
        d.line("M-11 -34 q1.6 -2 3.2 0 M-3 -34 q1.6 -2 3.2 0", 0.9, "black")
        d.line("M-8 -28.5 q2.5 2.6 5 0", 1, "#c0405a")
    else:
        for x in (-9.5, -1.5):
            d.circle(x, -34, 2, "#d8f05a")
            d.ellipse(x, -34, 0.8, 1.8, "black")
    d.polygon([(-7, -31), (-4, -31), (-5.5, -29.4)], "#e07a8a")
    if state.startswith("wet"):
        puddle(d, -6, 3, 22)
        drops(d, [(-20, -30), (10, -38), (-24, -14), (8, -16), (-6, -50)])
        d.line("M-16 -20 q2 6 -1 12 M-6 -20 q2 6 -1 12 M3 -18 q2 6 -1 10", 1.4, dark)


@draws("bird")
def bird(d: Drawing, p: Params) -> None:
    """A bird on a stump beside a tree with its nest."""
    state, color = p["state"], p["color"]
    d.shadow(-14, 3, 16)
    d.rect(20, -40, 5, 42, "#7a4e2a", "tube")
    for x, y, r in ((14, -46, 9), (28, -46, 8), (22, -54, 9)):
        d.circle(x, y, r, LEAF, "ball")
    d.line("M22 -28 L6 -26", 2.6, "#7a4e2a")

    def nest() -> None:
        d.path("M-4 -32 Q9 -28 20 -32 Q19 -23 8 -23 Q-3 -23 -4 -32Z", "#9a7238", "face")
        for x in range(-2, 18, 4):
            d.line(f"M{x} -30 l3 5", 0.8, "#5e4020")

    if state in ("eggs", "laid"):
        for x in (3, 12):
            d.ellipse(x, -35, 4.6, 6, "#fdfaf0", "ball")
    elif state == "chicks":
        for x in (2, 13):
            d.circle(x, -36, 5.4, "#ffd83a", "ball")
            d.polygon([(x - 2.2, -39), (x + 2.2, -39), (x, -46)], "#ff8a3c")
            d.circle(x + 1.6, -37, 0.9, "black")
    d.rect(-22, -13, 16, 15, "#8a6236", "tube", 1)
    d.ellipse(-14, -13, 8, 2.4, "#d9b27c")
    if state == "worm":
        d.line("M-4 2 q4 -8 8 -2 q4 5 9 -1", 3.6, "#e08a90")

    def body(
        x: float, y: float, turn: float = 0, flying: bool = False, worm: bool = False, asleep: bool = False
    ) -> None:
        with d.frame(x, y, turn=turn):
            d.ellipse(0, -7, 8.5, 6.5, color, "ball")
            d.polygon([(-7, -8), (-16, -10), (-14, -4)], shade(color, 0.7))
            if asleep:
                d.circle(0, -12, 5, color, "ball")
                d.line("M-2 -12 q1.4 1.6 2.8 0", 0.8, "black")
                d.ellipse(-1, -7, 5, 3.4, shade(color, 0.7), "ball")
            else:
                d.circle(6, -13, 5, color, "ball")
                d.polygon([(10.5, -14), (16, -12.5), (10.5, -11)], "orange")
                d.circle(7.5, -14, 1.1, "black")
                if worm:
                    d.line("M14 -12 q3 5 0 9 q-3 4 2 8", 3.2, "#e08a90")
            if flying:
                d.path("M-4 -9 Q-10 -26 4 -22 Q6 -14 4 -8Z", shade(color, 0.75), "face")
            elif not asleep:
                d.ellipse(-1, -7, 5, 3.4, shade(color, 0.7), "ball")
            d.line("M-2 -1 V3 M2 -1 V3", 0.9, "orange")

    if state == "flown":
        body(-14, -44, -18, flying=True)
    elif state == "home":
        body(8, -32)
    elif state == "asleep":
        body(-14, -16, asleep=True)
    else:
        body(-14, -16, worm=state == "fed")
    nest()


@draws("frog")
def frog(d: Drawing, p: Params) -> None:
    """A frog on a cushion, the tadpole it was, or the prince it may become."""
    state = p["state"]
    green = "#56b03c"
    if state == "tadpole":
        d.shadow(0, 3, 20)
        d.ellipse(0, -14, 19, 17, "#bfe3f4", "ball", 0.9)
        d.ellipse(0, -26, 14, 3, "#e8f6fc")
        d.circle(-4, -12, 4.4, "#2c3a2c", "ball")
        d.line("M0 -12 q5 -5 11 0", 2.2, "#2c3a2c")
        d.ellipse(0, 1, 14, 2.6, p["color"], "face")
        return
    if state == "prince":
        d.shadow(0, 3, 15)
        d.path("M-12 2 Q-10 -24 0 -28 Q10 -24 12 2Z", p["color"], "ball")
        d.circle(0, -35, 9, "#f3cfa4", "ball")
        d.path("M-9 -36 Q-8 -46 0 -45 Q8 -46 9 -36 Q4 -41 0 -40 Q-4 -41 -9 -36Z", "#7a4a20")
        d.polygon([(-8, -44), (-9, -54), (-4, -48), (0, -56), (4, -48), (9, -54), (8, -44)], "#f5c518", "face")
        for x in (-3, 3):
            d.circle(x, -35, 1.1, "black")
        d.line("M-3 -31 q3 2.4 6 0", 1, "#b04a4a")
        return
    d.shadow(0, 4, 27)
    d.ellipse(0, 2, 26, 5, p["color"], "face")
    d.polygon([(0, 2), (27, -2), (24, 6)], shade(p["color"], 0.7))
    fat = 1.25 if state == "fed" else 1
    for x in (-13, 13):
        d.ellipse(x * fat, -4, 7, 5.4, shade(green, 0.8), "ball")
    d.ellipse(0, -10, 14 * fat, 11, green, "ball")
    d.ellipse(0, -6, 8 * fat, 6, "#d9efb4", "ball")
    for x in (-8, 8):
        d.circle(x, -22, 5, green, "ball")
        d.circle(x, -22.5, 3, "#fdfdf0")
        d.circle(x, -22.5, 1.5, "black")
    d.line("M-9 -14 Q0 -8 9 -14" if state != "fed" else "M-10 -15 Q0 -5 10 -15", 1.3, "#2d5c1c")
    if state == "fly":
        d.ellipse(24, -38, 2.6, 2, "black")
        d.ellipse(21, -41, 4, 1.8, "#dfeaf2", None, 0.9)
        d.ellipse(27, -41, 4, 1.8, "#dfeaf2", None, 0.9)
        d.line("M22 -30 q3 3 6 -1", 0.8, "#8a8a90")


@draws("caterpillar")
def caterpillar(d: Drawing, p: Params) -> None:
    """A caterpillar on a leaf, its cocoon, and the butterfly."""
    state, color = p["state"], p["color"]
    d.shadow(0, 3, 16)
    d.line("M-14 2 Q-16 -30 -10 -58", 3, "#5c7a34")
    whole = "M-14 -30 Q4 -46 28 -34 Q8 -22 -14 -30Z"
    eaten = "M-14 -30 Q-9 -35 -5 -36 q3 5 5 1 q4 3 5 -2 q3 6 7 2 q2 5 -3 4 q-4 5 -7 1 q-4 5 -7 1 Q-9 -27 -14 -30Z"
    d.path(eaten if state == "fed" else whole, LEAF, "face")
    d.line("M-13 -30 Q6 -36 25 -34", 0.9, "#2a6e30")
    d.path("M-14 -50 Q-24 -60 -31 -54 Q-26 -46 -14 -50Z", LEAF, "face")
    if state in ("caterpillar", "fed"):
        size = 1.35 if state == "fed" else 1
        for k in range(6):
            x = -12 + 5.4 * k * size * 0.9
            d.circle(x, -38 - (2.4 if k % 2 else 0) * size, 4 * size, color if k % 2 else shade(color, 1.3), "ball")
        x = -12 + 5.4 * 6 * size * 0.9
        d.circle(x, -40, 4.8 * size, shade(color, 0.8), "ball")
        d.circle(x + 1.5, -41, 0.9, "black")
        d.line(f"M{x - 1} {-44 * 1} q-1 -5 -3 -6 M{x + 2} -44 q1 -5 3 -6", 0.8, "black")
    elif state == "cocoon":
        d.line("M8 -31 V-26", 1, "#cbbf9e")
        d.path("M8 -27 Q17 -20 14 -8 Q11 0 8 0 Q5 0 2 -8 Q-1 -20 8 -27Z", shade(color, 1.2), "ball")
        for y in (-20, -14, -8):
            d.line(f"M2 {y} Q8 {y + 3} 14 {y}", 0.9, shade(color, 0.7))
    elif state == "butterfly":
        for side in (-1, 1):
            d.path(f"M8 -22 Q{8 + side * 20} -46 {8 + side * 22} -26 Q{8 + side * 20} -18 8 -20Z", color, "ball")
            d.path(
                f"M8 -19 Q{8 + side * 16} -16 {8 + side * 14} -4 Q{8 + side * 6} -4 8 -17Z", shade(color, 1.35), "ball"
            )
            d.circle(8 + side * 14, -30, 2.6, "#fff3b0")
        d.line("M8 -28 V-9", 2.2, "black")
        d.line("M8 -28 q-3 -6 -6 -7 M8 -28 q3 -6 6 -7", 0.8, "black")


@draws("hero")
def hero(d: Drawing, p: Params) -> None:
    """A hero with a key before a door."""
    state, color = p["state"], p["color"]
    d.path("M2 2 V-32 A14 14 0 0 1 30 -32 V2Z", "#6a6e78", "side")
    opened = state == "opened"
    d.path("M5 2 V-31 A11 11 0 0 1 27 -31 V2Z", "#ffe98a" if opened else "#7d5230", "face" if opened else "side")
    if opened:
        d.circle(16, -20, 20, "#fff6c0", "glow", 0.9)
        d.polygon([(27, 2), (27, -34), (33, -30), (33, 5)], "#6b4526", "face")
    else:
        d.line("M12 1 V-40 M20 1 V-40", 0.8, "#5a3818")
        d.circle(9, -18, 1.6, "#222228")
    d.shadow(-16, 3, 13)
    stone = state in ("statue",)
    coat, skin, hair = ("#a3a6ac", "#b9bcc2", "#8c9096") if stone else (color, "#f3cfa4", "#4a2f18")
    if state == "asleep":
        with d.frame(-12, -2, turn=-88):
            d.path("M-9 2 Q-8 -18 0 -22 Q8 -18 9 2Z", coat, "ball")
            d.circle(0, -27, 7, skin, "ball")
            d.path("M-7 -28 Q-6 -36 0 -35 Q6 -36 7 -28 Q0 -33 -7 -28Z", hair)
            d.line("M-3.6 -26 q1.4 1.4 2.8 0 M1.4 -26 q1.4 1.4 2.8 0", 0.8, "black")
        return
    d.path("M-26 2 Q-25 -20 -16 -25 Q-7 -20 -6 2Z", coat, "ball")
    d.circle(-16, -31, 7.6, skin, "ball")
    d.path("M-23.6 -31 Q-23 -41 -16 -40 Q-9 -41 -8.4 -31 Q-16 -37 -23.6 -31Z", hair)
    for x in (-18, -13):
        d.circle(x, -31, 1, "black" if not stone else "#6a6e78")
    d.line("M-9 -14 L-3 -18", 3.4, coat)
    if not opened:
        gold = "#b9bcc2" if stone else "#f0b818"
        d.circle(-1, -22, 2.8, gold)
        d.circle(-1, -22, 1.1, "#6a6e78")
        d.line("M-1 -19 V-10 M-1 -12 H2 M-1 -15 H2", 1.4, gold)


@draws("pumpkin")
def pumpkin(d: Drawing, p: Params) -> None:
    """A pumpkin, plain or carved."""
    state = p["state"]
    orange = "#e8811c"
    d.shadow(0, 3, 26)
    if state == "carriage":
        for x in (-14, 14):
            d.circle(x, -6, 8, "#f5c518", "ball")
            d.circle(x, -6, 5.6, "#6b4526")
            d.line(f"M{x - 6} -6 H{x + 6} M{x} -12 V0", 1, "#f5c518")
        for x, rx in ((-12, 10), (12, 10), (0, 12)):
            d.ellipse(x, -28, rx, 17, "#f2c14a", "ball")
        d.rect(-7, -34, 14, 13, "#bfe3f4", "face", 3)
        d.line("M0 -45 q2 -7 8 -7", 2, "#5c7a34")
        d.star(0, -55, 5, "#ffe98a")
        return
    if state == "squashed":
        d.path("M-29 1 Q-26 -8 -12 -7 Q0 -12 12 -7 Q27 -8 29 1 Q14 6 0 4 Q-14 6 -29 1Z", shade(orange, 0.9), "face")
        d.path("M-16 -2 Q0 -8 15 -2 Q2 2 -16 -2Z", "#fbc36a")
        for x in (-8, 0, 7):
            d.ellipse(x, -3, 1.8, 1, "#fff3d8")
        d.rect(-18, -24, 36, 17, "#34363e", "face", 2)
        return
    rotten = state in ("rotten", "collapsed")
    color = "#7a5a34" if rotten else "#cfd8dc" if state == "frosted" else orange
    size = (1.35 if state == "giant" else 1) * (0.95 + 0.1 * p["vary"])
    with d.frame(0, 0, size):
        height = 11 if rotten else 16
        for x, rx in ((-13, 10), (-6, 10)) if state == "eaten" else ((-13, 10), (13, 10), (-6, 10), (6, 10), (0, 8)):
            d.ellipse(x, -height + 1, rx, height, color, "ball")
        d.path(f"M-2 {-2 * height + 2} q0 -6 5 -8 l2 3 q-3 2 -3 5Z", "#5c7a34", "face")
        if state in ("carved", "lantern", "collapsed"):
            y = -19 if state != "collapsed" else -13
            with d.lights() if state == "lantern" else nullcontext():
                if state == "lantern":
                    d.circle(0, -15, 28, "#ffc24a", "glow", 0.5)
                hole = "#ffe27a" if state == "lantern" else "#3a200c"
                d.polygon([(-11, y), (-4, y), (-7.5, y - 7)], hole)
                d.polygon([(11, y), (4, y), (7.5, y - 7)], hole)
                d.path(f"M-12 {y + 5} Q0 {y + 12} 12 {y + 5} L8 {y + 10} L4 {y + 8} L0 {y + 13} L-4 {y + 8} L-8 "
                       f"{y + 10}Z", hole)  # fmt: skip
        elif state == "rotten":
            for x, y, r in ((-10, -12, 4), (6, -8, 5), (13, -14, 3)):
                d.circle(x, y, r, "#5f8f78", "ball")
                d.circle(x, y, r * 0.4, "#dfe9d8")
        elif state == "eaten":
            d.ellipse(2, -15, 5, 15, "#fbc36a", "side")
            for y in (-20, -14, -8):
                d.ellipse(2, y, 1.2, 2, "#fff3d8")
    if state == "giant":
        d.line("M-28 2 q-4 -12 4 -18 M28 2 q4 -10 -2 -16", 2, "#5c7a34")
        for x, y in ((-28, -18), (28, -16)):
            d.ellipse(x, y, 5, 4, LEAF, "ball")
