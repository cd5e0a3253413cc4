"""Things in a room that are eaten, cooked or poured."""

from __future__ import annotations

from reasonbrain.modules.data.reasonmini2.drawing import Drawing, drops, flames, puddle, shade, smoke
from reasonbrain.modules.data.reasonmini2.things import Params, draws

CRUST, CRUMB = "#b9742e", "#f3d9a4"
PLATE = "#e9e6df"


def _plate(d: Drawing, color: str, rx: float = 27) -> None:
    d.shadow(0, 3, rx * 1.1)
    d.ellipse(0, 0, rx, rx * 0.25, shade(color, 0.75))
    d.ellipse(0, -1.5, rx, rx * 0.25, color, "face")
    d.ellipse(0, -1.8, rx * 0.7, rx * 0.16, shade(color, 1.25))


@draws("candle")
def candle(d: Drawing, p: Params) -> None:
    """A candle on its holder."""
    state, color = p["state"], p["color"]
    d.shadow(0, 3, 20)
    d.ellipse(0, 0, 17, 5, "#5a4a3c")
    d.ellipse(0, -1.5, 17, 5, "#9a8468", "face")
    if state == "fallen":
        with d.frame(-6, -3, turn=90):
            d.rect(-7, -38, 14, 38, color, "tube", 2)
            d.line("M0 -38 V-42", 1.2, "black")
        return
    if state == "pool":
        puddle(d, 0, -3, 22, shade(color, 1.15))
        d.line("M-2 -4 L3 -6", 1.2, "black")
        return
    if state == "bent":
        d.line("M0 -3 C0 -22 2 -34 22 -30", 13, shade(color, 0.8))
        d.line("M-1 -3 C-1 -22 1 -36 22 -31", 9, color)
        d.line("M22 -30 Q29 -28 30 -22", 1.2, "black")
        d.ellipse(10, -2, 9, 2.6, color, "face")
        return
    height = {"tall": 38 + 6 * p["vary"], "unlit": 38 + 6 * p["vary"], "out": 38 + 6 * p["vary"]}.get(state, 14)
    if state in ("stump", "spent"):
        height = 9 if state == "stump" else 4
        d.ellipse(0, -3, 13, 4, color, "face")
    if state == "soaked":
        height = 38 + 6 * p["vary"]
        puddle(d, 0, 0, 24)
    d.rect(-7, -3 - height, 14, height, color, "tube", 2)
    d.ellipse(0, -3 - height, 7, 2, shade(color, 1.3))
    top = -3 - height
    d.line(f"M0 {top} V{top - 3.5}", 1.2, "black")
    if state in ("tall", "short", "stump"):
        if state == "stump":
            d.line("M-7 -8 V-5", 2, color)
        d.circle(0, top - 8, 9, "#ffd860", "glow", 0.6)
        flames(d, 0, top - 2, 7, 13)
    elif state in ("out", "snuffed", "spent"):
        smoke(d, 0, top - 4, 17)
    elif state == "soaked":
        drops(d, [(-12, -20), (12, -32), (-10, -42), (11, -12)])


@draws("ice")
def ice(d: Drawing, p: Params) -> None:
    """A plate with an ice cube, or with what became of it."""
    state, s = p["state"], 13 + 2 * p["vary"]
    _plate(d, p["color"])
    if state == "cube":
        d.polygon([(-s, -4), (-s, -4 - 1.5 * s), (0.4 * s, -2 - 1.5 * s), (0.4 * s, -1)], "#bfe6fa", "side")
        d.polygon([(0.4 * s, -1), (0.4 * s, -2 - 1.5 * s), (s, -6 - 1.5 * s), (s, -5)], "#8cc8ec", "face")
        d.polygon([(-s, -4 - 1.5 * s), (0.4 * s, -2 - 1.5 * s), (s, -6 - 1.5 * s), (-0.3 * s, -8 - 1.5 * s)], "#e6f7ff")
        d.line(f"M{-0.7 * s} -9 V{-1.3 * s}", 2, "#ffffff", 0.8)
    elif state == "puddle":
        puddle(d, 0, -2, 20)
    elif state == "dry":
        for x, y in ((-9, -2), (2, -3), (9, -1.5), (-2, -0.5)):
            d.ellipse(x, y, 4, 1, "#ffffff", None, 0.55)
    elif state == "shards":
        for x, y, r, t in ((-17, -4, 6, 10), (-6, -3, 8, 40), (6, -5, 7, 75), (16, -2, 6, 20), (1, -10, 5, 55)):
            with d.frame(x, y, turn=t):
                d.polygon([(-r, r * 0.6), (0, -r), (r, r * 0.3)], "#b4e0f8", "side")
                d.polygon([(-r, r * 0.6), (0, -r), (-0.1 * r, r * 0.4)], "#e6f7ff")


@draws("egg")
def egg(d: Drawing, p: Params) -> None:
    """An egg in a pan, in a nest, or on the edge of a table."""
    state = p["state"]
    if state in ("pan", "fried", "rotten"):
        d.shadow(0, 3, 26)
        d.line("M20 -4 H40", 4, "black")
        d.ellipse(0, -2, 24, 7.5, "#26262c")
        d.ellipse(0, -3.5, 24, 7.5, "#4a4a54", "face")
        d.ellipse(0, -3, 20, 5.6, "#33333a")
        if state in ("fried", "rotten"):
            good = state == "fried"
            d.path("M-16 -4 Q-14 -9 -4 -7 Q6 -10 13 -6 Q18 -2 8 -0.5 Q-2 2 -10 -0.5 Q-17 -1 -16 -4Z",
                   "white" if good else "#8f9a5c", "face")  # fmt: skip
            d.circle(-1, -5, 4.6, "#fbb01c" if good else "#4d5a2c", "ball")
            if not good:
                d.line("M-8 -14 q3 -4 0 -8 M0 -14 q3 -4 0 -8 M8 -14 q3 -4 0 -8", 1.2, "#9db04c")
            return
    elif state in ("nest", "chick", "gold"):
        d.shadow(0, 3, 26)
        d.path("M-25 -8 Q0 -2 25 -8 Q22 4 0 4 Q-22 4 -25 -8Z", "#8a6236", "face")
        for x in range(-22, 23, 6):
            d.line(f"M{x} -6 l5 7", 1, "#5e4020")
    else:  # on the edge of a table, or below it
        d.rect(-30, -34, 40, 5, "#9c6b3e", "face", 1)
        d.rect(-27, -29, 4, 29, "#7d5230", "side")
        d.rect(2, -29, 4, 29, "#7d5230", "side")
        if state == "broken":
            d.shadow(20, 2, 10)
            d.path("M10 0 Q12 -4 19 -2 Q30 -4 30 1 Q26 4 18 3 Q10 4 10 0Z", "white", "face", 0.95)
            d.circle(21, -1, 3.6, "#fbb01c", "ball")
            d.path("M10 -1 L12 -7 L14 -4 L16 -7 L17 -1Z", p["color"], "ball")
            d.path("M25 -2 L27 -7 L29 -4 L30 -6 L31 0Z", p["color"], "ball")
            return
    if state == "chick":
        d.circle(0, -16, 9.5, "#ffd83a", "ball")
        d.circle(1, -27, 6.5, "#ffd83a", "ball")
        d.circle(3, -28, 1.1, "black")
        d.polygon([(6, -27), (11, -25.5), (6, -24)], "orange")
        d.path("M-16 -6 L-13 -13 L-9 -9 L-5 -13 L-2 -5Z", p["color"], "ball")
        d.path("M3 -5 L6 -12 L10 -9 L14 -12 L16 -5Z", p["color"], "ball")
        return
    x, y = {"pan": (0, -10), "nest": (0, -12), "gold": (0, -12), "edge": (5, -41)}[state]
    color = "#f5b917" if state == "gold" else p["color"]
    d.path(f"M{x - 8} {y + 1} C{x - 8} {y - 7} {x - 4} {y - 12} {x} {y - 12} C{x + 4} {y - 12} {x + 8} {y - 7} {x + 8} "
           f"{y + 1} A8 7 0 0 1 {x - 8} {y + 1}Z", color, "ball")  # fmt: skip
    if state == "gold":
        for x, y in ((-14, -24), (13, -28), (15, -14)):
            d.star(x, y, 4, "#ffe98a")


@draws("bread")
def bread(d: Drawing, p: Params) -> None:
    """A loaf or a slice of bread on a board."""
    state = p["state"]
    d.shadow(0, 4, 32)
    d.rect(-29, -3, 58, 6, p["color"], "bar", 2)
    if state in ("loaf", "burnt", "bitten", "mouldy_loaf", "charred_loaf"):
        crust = {"burnt": "#4a2c14", "charred_loaf": "#1c1a1a", "mouldy_loaf": "#9a8a50"}.get(state, CRUST)
        right = 6 if state == "bitten" else 24
        d.path(f"M-24 -3 V-15 Q-24 -27 -8 -27 H{right - 10} Q{right} -27 {right} -15 V-3Z", crust, "bar")
        for x in range(-16, right - 8, 9):
            d.line(f"M{x} -24 l6 6", 2, shade(crust, 1.4))
        if state == "bitten":
            for y, r in ((-22.0, 5.0), (-13.0, 5.5), (-6.0, 4.0)):
                d.circle(6, y, r, CRUMB)
            for at, y in ((14, -4.0), (20, -5.0), (17, -3.5)):
                d.circle(at, y, 1.4, CRUST)
        elif state == "mouldy_loaf":
            _mould(d, ((-15, -18, 6), (0, -12, 7), (13, -20, 6), (-5, -25, 4), (15, -8, 4)))
        elif state == "charred_loaf":
            smoke(d, 0, -27, 24)
    elif state == "sliced":
        for x in (-20, -10, 0, 10):
            d.rect(x, -27, 6.5, 24, CRUST, "bar", 3)
            d.ellipse(x + 6.5, -15, 2.2, 11, CRUMB)
        d.rect(20, -10, 7, 7, CRUST, "bar", 2)
    elif state == "crumbs":
        for at, r in ((-18, 1.6), (-9, 2.2), (-2, 1.5), (6, 2.0), (13, 1.4), (19, 1.8)):
            d.circle(at, -2.6 - r, r, CRUST, "ball")
    else:  # one slice, leaning upright
        crust, crumb = {
            "toast": ("#7a4317", "#c98d42"),
            "mouldy_slice": ("#8a7a48", "#d8d0a0"),
            "charred_slice": ("#161414", "#2a2726"),
        }.get(state, (CRUST, CRUMB))
        d.path("M-13 -3 V-21 Q-18 -32 -8 -33 H8 Q18 -32 13 -21 V-3Z", crust, "side")
        d.path("M-10.5 -5 V-20 Q-14 -29 -7 -30 H7 Q14 -29 10.5 -20 V-5Z", crumb, "face")
        if state == "toast":
            for x in (-6, 0, 6):
                d.line(f"M{x} -24 V-10", 2, "#8a4f1c")
        elif state == "mouldy_slice":
            _mould(d, ((-4, -22, 4.5), (5, -14, 5), (-5, -9, 3)))
        elif state == "charred_slice":
            smoke(d, 0, -32, 22)


def _mould(d: Drawing, spots: tuple[tuple[float, float, float], ...]) -> None:
    for x, y, r in spots:
        d.circle(x, y, r, "#5f8f78", "ball", 0.95)
        d.circle(x, y, r * 0.45, "#dfe9d8")


@draws("apple")
def apple(d: Drawing, p: Params) -> None:
    """An apple, or what is left of it."""
    state, color = p["state"], p["color"]
    d.shadow(0, 2, 22)
    body = "M0 -30 C-8 -37 -22 -32 -20 -17 C-19 -4 -9 1 0 -2 C9 1 19 -4 20 -17 C22 -32 8 -37 0 -30Z"
    flesh = "#fbf0cc"
    if state in ("whole", "shrivelled"):
        if state == "shrivelled":
            color = "#7a5230"
            with d.frame(0, 0, 0.8):
                d.path(body, color, "ball")
                for x in (-9, -2, 6):
                    d.line(f"M{x} -26 q4 10 -1 20", 1.2, "#4e321a")
                d.line("M0 -30 q-4 -4 -7 -3", 1.8, "#4a2f18")
            return
        d.path(body, color, "ball")
        d.line("M0 -30 Q1 -37 5 -40", 2, "#5a3a1c")
        d.path("M3 -36 Q12 -43 17 -36 Q10 -31 3 -36Z", "#4caf50", "face")
    elif state in ("halves", "half", "brown_half"):
        for x in (-14, 14) if state == "halves" else (0,):
            d.ellipse(x, -11, 13, 14, color, "side")
            d.ellipse(x + 1, -11, 11, 12.4, "#9c6a34" if state == "brown_half" else flesh, "face")
            d.ellipse(x + 1, -11, 4, 6, shade("#9c6a34" if state == "brown_half" else flesh, 0.85))
            for s in (-1.6, 1.6):
                d.ellipse(x + 1 + s, -10, 1, 2, "#4a2a12")
    elif state == "core":
        d.path("M-9 -30 Q0 -24 9 -30 Q2 -16 9 -2 Q0 3 -9 -2 Q-2 -16 -9 -30Z", flesh, "side")
        d.path("M-9 -30 Q0 -24 9 -30 Q6 -33 0 -30 Q-6 -33 -9 -30Z", color)
        d.line("M0 -28 Q1 -35 4 -38", 2, "#5a3a1c")
        for y in (-18, -14):
            d.ellipse(0, y, 1, 2, "#4a2a12")
    elif state == "peel":
        d.line("M-16 -2 q-8 -10 4 -12 q14 -2 14 6 q0 8 -8 6", 3.4, color)
        for x in (9, 14):
            d.ellipse(x, -1, 1.2, 2, "#4a2a12")
    elif state == "seedling":
        d.path("M-14 1 Q0 -8 14 1 Q0 4 -14 1Z", "#5a3a22", "face")
        d.line("M0 -3 V-26", 1.8, "#5c7a34")
        for x, y, t in ((1, -25, -50), (1, -18, -15), (1, -12, 5)):
            for mirror in (False, True):
                with d.frame(0, y, turn=0, mirror=mirror), d.frame(x, 0, turn=t):
                    d.path("M0 0 Q6 -7 14 -4 Q9 3 0 0Z", "#4caf50", "face")
    elif state == "crushed":
        d.path("M-26 0 Q-22 -8 -8 -6 Q0 -11 10 -6 Q26 -8 27 0 Q14 5 -4 3 Q-20 5 -26 0Z", flesh, "face")
        for x, t in ((-16, -12), (2, 8), (17, -5)):
            with d.frame(x, -4, turn=t):
                d.path("M-7 0 Q0 -8 7 0 Q0 -3 -7 0Z", color, "ball")


@draws("cup")
def cup(d: Drawing, p: Params) -> None:
    """A glass of water with a coloured band."""
    state, color = p["state"], p["color"]
    drink = "#6fb7ea"
    glass = "#dcecf2"
    if state in ("lying", "spilled"):
        if state == "spilled":
            puddle(d, 10, 1, 24, drink)
        d.shadow(-6, 2, 22)
        with d.frame(-20, -10, turn=90):
            d.polygon([(-10, -28), (10, -28), (8, 2), (-8, 2)], glass, "tube", 0.85)
            d.polygon([(-9.4, -19), (9.4, -19), (8.7, -9), (-8.7, -9)], color, "tube")
            d.ellipse(0, -28, 10, 3, shade(glass, 0.8))
        return
    if state in ("shards", "dry_shards"):
        if state == "shards":
            puddle(d, 0, 1, 25, drink)
        for x, y, r, t in ((-16, -3, 7, 10), (-4, -4, 9, 60), (9, -3, 8, 30), (18, -1, 5, 80)):
            with d.frame(x, y, turn=t):
                d.polygon([(-r, r * 0.5), (0.2 * r, -r), (r, r * 0.2)], color if r > 8 else glass, "side")
        return
    d.shadow(0, 2, 18)
    full = state in ("full", "frozen", "overflowing")
    if state == "overflowing":
        puddle(d, 0, 2, 28, drink)
    d.polygon([(-12, -38), (12, -38), (9.5, 0), (-9.5, 0)], glass, "tube", 0.8)
    if full:
        water = "#cfeaf8" if state == "frozen" else drink
        d.polygon([(-11.2, -32), (11.2, -32), (9, -1.5), (-9, -1.5)], water, "tube")
    d.polygon([(-10.9, -22), (10.9, -22), (10.2, -11), (-10.2, -11)], color, "tube")
    d.ellipse(0, -38, 12, 3, shade(glass, 0.85))
    d.ellipse(0, -38, 10, 2.2, "#f4fafc")
    if state == "frozen":
        d.ellipse(0, -38, 10.5, 6, "#e8f7ff", "ball")
        d.line("M-8 -30 L-3 -24 L-6 -18 M4 -32 L8 -25 M2 -9 L6 -4", 1.2, "#ffffff")
        d.line("M-9.5 -10 L-4 -5", 1.2, "#ffffff")
    elif state == "overflowing":
        d.ellipse(0, -38, 11.5, 3.4, drink, "ball")
        for side in (-11.5, 11):
            d.line(f"M{side} -36 Q{side * 1.05} -20 {side * 0.95} 0", 2.4, drink)
    elif state == "dried":
        d.ellipse(0, -3, 8.5, 2, "#b08a5a")
        d.line("M-10 -30 H10", 1, "#b9a98c")


@draws("pot")
def pot(d: Drawing, p: Params) -> None:
    """A pot on a stove."""
    state, color = p["state"], p["color"]
    d.shadow(0, 4, 30)
    d.rect(-26, -6, 52, 9, "#3a3c44", "face", 2)
    d.ellipse(0, -6, 19, 3.4, "#ff7a3c" if state in ("boiling", "burnt") else "#1e1f24")
    burnt = state == "burnt"
    color = "#2a2624" if burnt else color
    for x in (-24, 24):
        d.ellipse(x, -24, 5, 2.6, "black")
    d.rect(-20, -33, 40, 27, color, "tube", 3)
    d.ellipse(0, -33, 20, 5.5, shade(color, 0.7))
    inside = {"dry": "#8a8d94", "burnt": "#0c0b0b", "frozen": "#e6f6ff"}.get(state, "#6fb7ea")
    d.ellipse(0, -33, 17.5, 4.3, inside, "face")
    if state == "boiling":
        for x, r in ((-10, 2), (-3, 2.6), (5, 2.2), (11, 1.6), (1, 1.5)):
            d.circle(x, -34, r, "#dff2ff", "ball")
        smoke(d, 0, -37, 22, "#eef2f6")
    elif burnt:
        smoke(d, 0, -36, 24, "#3c3a3a")
    elif state == "frozen":
        d.path("M-16 -34 Q-10 -41 0 -40 Q12 -42 16 -34 Q0 -29 -16 -34Z", "#eaf8ff", "ball")
        for x in (-17, -9, 12):
            d.polygon([(x - 1.6, -30), (x + 1.6, -30), (x, -19)], "#d6f0ff")


@draws("chocolate")
def chocolate(d: Drawing, p: Params) -> None:
    """A bar of chocolate in its wrapper."""
    state, dark = p["state"], "#5a3018"
    d.shadow(0, 3, 29)
    if state == "melted":
        d.path("M-28 1 Q-27 -5 -14 -5 Q0 -9 12 -5 Q28 -6 29 0 Q20 6 0 4 Q-20 6 -28 1Z", dark, "face")
        d.ellipse(-8, -3, 9, 1.2, "#a06a44", None, 0.8)
        d.rect(-24, -1, 20, 4, p["color"], "bar", 1)
        return
    color = "#b09a8c" if state == "bloomed" else dark
    cells = [(i, j) for j in range(2) for i in range(4)]
    if state == "bitten":
        cells = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 1)]
    for i, j in cells:
        x, y, turn = -18.0 + 12 * i, -19.5 + 11 * j, 0.0
        if state == "pieces":
            x, y, turn = x + 3 * (i - 1.5), y + 5 * (j - 0.5) + (3 if i % 2 else 0), 8.0 * ((i + j) % 3 - 1)
        with d.frame(x, y, turn=turn):
            d.rect(-6, -5.5, 12, 11, shade(color, 0.75), None, 1)
            d.rect(-4.6, -4.4, 9, 8.2, color, "face", 1)
            if state == "bloomed":
                d.circle(1, 0, 2.2, "#e0d6cc", None, 0.8)
    if state == "bitten":
        for x, y in ((0, -20), (12, -9), (4, -15)):
            d.circle(x, y, 2.6, shade(dark, 1.25))
        d.rect(-27, -4, 40, 6, p["color"], "bar", 1)
    elif state == "pieces":
        d.rect(-30, 1, 22, 4, p["color"], "bar", 1)
    else:
        d.rect(-27, -9, 54, 11, p["color"], "bar", 1)
        d.rect(-20, -6.5, 26, 5, "#fdf3d8", None, 1)
