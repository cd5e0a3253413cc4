"""Things in a room that are used."""

from __future__ import annotations

from reasonbrain.modules.data.reasonmini2.drawing import Drawing, drops, flames, puddle, shade, smoke
from reasonbrain.modules.data.reasonmini2.things import Params, draws

STEEL = "#b8c0c8"
WATER = "#5fb0e8"


@draws("tap")
def tap(d: Drawing, p: Params) -> None:
    """A tap over a bucket."""
    state, color = p["state"], p["color"]
    d.shadow(0, 4, 24)
    if state == "overflowing":
        puddle(d, 0, 2, 30, WATER)
    d.rect(-29, -56, 24, 6, STEEL, "bar", 2)
    d.rect(-8, -56, 7, 14, STEEL, "tube", 2)
    d.rect(-20, -62, 5, 7, STEEL, "tube", 1)
    d.rect(-24, -64, 13, 3.4, "#d04040", "bar", 1.5)
    if state in ("running", "filled", "overflowing"):
        d.rect(-6, -42, 4, 22 if state == "running" else 17, WATER, "tube", 1)
    elif state == "icicle":
        d.polygon([(-10, -44), (1, -44), (-4, -24)], "#d8f0ff", "side")
        for x, y in ((-27, 12), (-20, 9), (-14, 7)):
            d.polygon([(x - 2, -50), (x + 2, -50), (x, -50 + y)], "#d8f0ff", "side")
    elif state == "frozen":
        d.polygon([(-8, -42), (-1, -42), (-3, -24), (-5, -24)], "#d8f0ff", "side")
    d.polygon([(-16, -26), (16, -26), (12, 2), (-12, 2)], color, "tube")
    d.ellipse(0, -26, 16, 4.4, shade(color, 0.55))
    if state in ("filled", "overflowing"):
        d.ellipse(0, -25.4, 14.5, 3.6, WATER, "face")
    elif state == "running":
        d.ellipse(0, -23.6, 13, 2.2, WATER, "face")
    elif state == "frozen":
        d.path("M-14.5 -26 Q-12 -36 0 -34 Q13 -37 14.5 -26 Q0 -21 -14.5 -26Z", "#e6f6ff", "ball")
    if state == "overflowing":
        for x in (-15, 14):
            d.line(f"M{x} -25 Q{x * 1.02} -10 {x * 0.85} 1", 3.4, WATER)
    d.line("M-16 -27 Q0 -42 16 -27" if state in ("closed", "icicle") else "M-16 -26 Q-24 -14 -15 -8", 1.3, "#6c7078")


@draws("lamp")
def lamp(d: Drawing, p: Params) -> None:
    """A table lamp with its cable."""
    state, color = p["state"], p["color"]
    d.shadow(0, 3, 20)
    if state == "broken":
        d.ellipse(14, 1, 13, 3.4, "#6a5a4a", "face")
        with d.frame(0, -6, turn=82):
            d.rect(-1.8, -30, 3.6, 30, "#6a5a4a", "tube")
            d.polygon([(-12, -29), (12, -29), (8, -46), (-8, -46)], color, "tube")
        for x, y, t in ((-30, 2, 10), (-22, 5, 50), (-26, -2, 80)):
            with d.frame(x + 4, y, turn=t):
                d.polygon([(-3, 2), (0, -4), (3, 1)], "#f6f2d8", "side")
        return
    d.ellipse(0, 0, 13, 3.6, "#6a5a4a", "face")
    d.rect(-1.8, -30, 3.6, 30, "#6a5a4a", "tube")
    lit = state == "on"
    if lit:
        d.circle(0, -38, 30, "#ffe28a", "glow", 0.75)
    d.polygon([(-16, -28), (16, -28), (9, -54), (-9, -54)], shade(color, 1.25) if lit else shade(color, 0.8), "tube")
    if lit:
        d.ellipse(0, -28, 15, 3, "#fff6c8")
    else:
        d.ellipse(0, -28, 15, 3, shade(color, 0.45))
    if state == "cut":
        d.line("M12 0 q5 4 7 -3", 1.6, "black")
        d.line("M29 3 q2 0 3 -2", 1.6, "black")
        with d.lights():
            for x, y, r in ((24, -6, 6), (18, -14, 3), (30, -15, 3.4)):
                d.star(x, y, r, "#ffe25a")
    elif state == "burnt_out":
        smoke(d, 0, -50, 20, "#5a5a62")
    else:
        d.line("M12 0 q10 5 19 1", 1.6, "black")


@draws("book")
def book(d: Drawing, p: Params) -> None:
    """A book that lies on the floor."""
    state, color = p["state"], p["color"]
    d.shadow(0, 3, 28)
    if state == "ash":
        d.path("M-24 2 Q-18 -6 -8 -5 Q0 -11 9 -6 Q20 -7 25 2 Q0 7 -24 2Z", "#4c4a4c", "face")
        for x, y in ((-12, -1), (3, -4), (14, 0)):
            d.circle(x, y, 1.5, "#ff7a30", "ball")
        smoke(d, 0, -6, 30)
        return
    if state in ("closed", "dusty", "soaked"):
        cover = shade(color, 0.7) if state == "soaked" else color
        if state == "soaked":
            puddle(d, 0, 2, 30)
        d.rect(-24, -12, 48, 14, "#f6efdc", "face", 1)
        for y in (-8, -5, -2):
            d.line(
                f"M-22 {y} H22" if state != "soaked" else f"M-22 {y} q6 -3 11 0 q6 3 11 0 q6 -3 11 0 q5 2 9 0",
                0.6,
                "#cbbf9e",
            )
        d.rect(-26, -15, 52, 4, cover, "face", 1)
        d.rect(-26, 0, 52, 3, cover, "face", 1)
        d.rect(-26, -15, 5, 18, shade(cover, 0.8), "bar", 2)
        if state == "dusty":
            d.ellipse(2, -16, 22, 2.6, "#cfcac0", "face")
            for x in (-20, -6, 8, 20):
                d.line(f"M{x} -15 L{x * 0.6 + 14} -34", 0.5, "#f2f2f2", 0.9)
            d.line("M-20 -18 Q0 -14 22 -20 M-12 -22 Q2 -19 18 -25", 0.5, "#f2f2f2", 0.9)
        elif state == "soaked":
            drops(d, [(-20, -24), (0, -30), (18, -22), (8, -18)])
        return
    page = "#e6d3a0" if state == "yellowed" else "#fbf6e8"
    d.path("M-28 0 Q-14 -8 0 -2 Q14 -8 28 0 V4 Q14 -3 0 3 Q-14 -3 -28 4Z", color, "face")
    d.path("M-26 -3 Q-14 -12 0 -5 V0 Q-14 -6 -26 1Z", page, "side")
    d.path("M26 -3 Q14 -12 0 -5 V0 Q14 -6 26 1Z", page, "face")
    for k in (0, 1.8):
        d.line(f"M-22 {-4 + k} Q-13 {-10 + k} -3 {-5 + k} M22 {-4 + k} Q13 {-10 + k} 3 {-5 + k}", 0.6, "#8a8578")
    if state == "blown":
        for x, y, t in ((10, -16, 30), (18, -28, -20), (4, -36, 50), (26, -44, 10)):
            with d.frame(x, y, turn=t):
                d.rect(-5, -6.5, 10, 13, "#fbf6e8", "side")
                d.line("M-3 -3 H3 M-3 0 H3 M-3 3 H2", 0.7, "#8a8578")
    elif state == "yellowed":
        for x, y in ((-15, -6), (12, -7), (20, -3)):
            d.ellipse(x, y, 2.6, 1, "#a07838", None, 0.7)
        d.line("M-26 -3 L-20 -26 L4 -6 M-20 -26 L20 -22 L26 -3", 0.5, "#f2f2f2", 0.9)
    elif state == "wet":
        puddle(d, 0, 5, 26)
        d.path("M-26 -3 q4 -8 8 -3 q5 -8 9 -2 q5 -6 9 3 q5 -9 9 -3 q5 -5 9 0 q4 -4 8 5 L0 3Z", "#c9d8e2", "face")
        drops(d, [(-18, -20), (0, -28), (18, -20)])


@draws("umbrella")
def umbrella(d: Drawing, p: Params) -> None:
    """An umbrella that stands on its handle."""
    state, color = p["state"], p["color"]
    d.shadow(0, 3, 14)
    if state in ("closed", "fallen"):
        with d.frame(0, 0) if state == "closed" else d.frame(-27, -4, turn=90):
            d.line("M0 -2 V-50", 1.6, "#5a4632")
            d.line("M0 -3 Q0 2 4 1.5 Q7 1 6.5 -2", 2, "#5a4632")
            d.polygon([(-5, -14), (5, -14), (2, -48), (-2, -48)], color, "tube")
            d.polygon([(-6, -13), (-1, -18), (4, -12)], shade(color, 0.8))
        return
    rain = state in ("rain", "opened")
    if rain:
        for x, y in ((-28, -50), (-18, -60), (-4, -63), (10, -61), (23, -56), (30, -44), (-30, -30), (30, -22),
                     (-28, -12), (28, -6)):  # fmt: skip
            d.line(f"M{x} {y} l-1.5 5", 1.1, "#4a9ade")
        puddle(d, -24, 3, 8)
        puddle(d, 24, 3, 8)
    d.line("M0 -4 V-50", 1.6, "#5a4632")
    d.line("M0 -5 Q0 1 5 0.5 Q8 0 7.5 -3", 2, "#5a4632")
    if state in ("open", "rain", "opened"):
        d.path("M-26 -28 C-24 -46 -12 -53 0 -53 C12 -53 24 -46 26 -28 Q20 -33 13 -28 Q6 -33 0 -28 Q-6 -33 -13 -28 Q-20 "
               "-33 -26 -28Z", color, "ball")  # fmt: skip
        d.line("M0 -53 Q-11 -44 -13 -29 M0 -53 Q11 -44 13 -29 M0 -53 V-29", 0.7, shade(color, 0.6))
    elif state == "inverted":
        d.path("M0 -34 C-12 -36 -22 -44 -27 -60 Q-18 -54 -13 -61 Q-6 -54 0 -60 Q6 -54 13 -61 Q18 -54 27 -60 C22 -44 12 "
               "-36 0 -34Z", color, "face")  # fmt: skip
        d.line("M0 -34 L-13 -60 M0 -34 L13 -60 M0 -34 V-59", 0.8, shade(color, 0.55))
    else:  # skeleton
        d.line(
            "M0 -52 Q-20 -50 -26 -30 M0 -52 Q20 -50 26 -30 M0 -52 Q-10 -46 -13 -30 M0 -52 Q10 -46 13 -30", 1, "black"
        )
        flames(d, -22, -28, 7, 9)
        flames(d, 18, -30, 6, 8)
        smoke(d, 0, -52, 9)
