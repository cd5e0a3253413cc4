"""Things that fall, roll, tip and fly."""

from __future__ import annotations

from math import cos, radians, sin

from reasonbrain.modules.data.reasonmini2.drawing import Drawing, flames, shade
from reasonbrain.modules.data.reasonmini2.things import Params, draws

WOOD = "#8b5a2f"


@draws("seesaw")
def seesaw(d: Drawing, p: Params) -> None:
    """A seesaw with a big and a small weight."""
    state, color = p["state"], p["color"]
    tilt = {  # degrees clockwise: positive is the right end down
        **{"held_left": 0, "held_right": 0, "level": 0},
        **{"left_down": -17, "right_down": 17, "only_right": 17, "only_left": -17},
        **{"anvil_right": 17, "anvil_left": -17},
    }[state]
    big_left = state in ("held_left", "left_down", "only_right", "anvil_right")
    d.shadow(0, 3, 30)
    d.polygon([(-8, 0), (8, 0), (0, -16)], "#6a6e78", "side")
    if state == "held_left":
        d.rect(-26, -15, 4, 15, p["color"], "tube")
    elif state == "held_right":
        d.rect(22, -15, 4, 15, p["color"], "tube")
    with d.frame(0, -16, turn=tilt):
        d.rect(-30, -3, 60, 4, WOOD, "bar", 1.5)
        side = 1 if not big_left else -1
        if state not in ("only_left", "only_right"):
            d.rect(side * 20 - 8, -19, 16, 16, color, "ball", 2)
        d.rect(-side * 22 - 5, -12, 10, 9, shade(color, 1.35), "ball", 1.5)
        if state in ("anvil_left", "anvil_right"):
            x = -side * 20
            d.polygon([(x - 10, -30), (x + 10, -30), (x + 5, -22), (x + 7, -12), (x - 7, -12), (x - 5, -22)], "#34363e",
                      "face")  # fmt: skip


@draws("tower")
def tower(d: Drawing, p: Params) -> None:
    """A tower of five blocks."""
    state, color = p["state"], p["color"]
    fills = (color, "black", color, "black", color)
    d.shadow(0, 3, 30)
    if state in ("scattered", "heap"):
        places = {
            "scattered": ((-24, -5, 12), (-11, -5, 35), (2, -5, 0), (15, -5, 60), (27, -5, 25)),
            "heap": ((6, -5, 0), (17, -5, 0), (28, -5, 10), (12, -15, 8), (23, -15, 30)),
        }[state]
        for fill, (x, y, turn) in zip(fills, places, strict=True):
            with d.frame(x, y, turn=turn):
                d.rect(-5.5, -5, 11, 10, fill, "face", 1)
        return
    count = 4 if state == "dropped" else 5
    lean = 2.2 if state == "leaning" else 0
    if state == "topless":
        count = 4
        with d.frame(-22, -5, turn=20):
            d.rect(-5.5, -5, 11, 10, color, "face", 1)
    for i in range(count):
        at = i + 1 if state == "dropped" else i
        d.rect(-6.5 + lean * i, -10.6 * (i + 1), 13, 10.2, fills[at], "face", 1)
    if state == "leaning":
        d.line("M26 0 L14 -34", 2.6, WOOD)
    elif state == "crushed":
        d.rect(-20, -10.6 * 5 - 10, 40, 10, "#34363e", "face", 2)


@draws("pendulum")
def pendulum(d: Drawing, p: Params) -> None:
    """A ball on a string under a beam."""
    state, color = p["state"], p["color"]
    angle = {"held_left": 38, "swung_left": 38, "held_right": -38, "swung_right": -38, "aside": 38}.get(state, 0)
    d.rect(-16, -62, 32, 5, WOOD, "bar", 1)
    length = 40
    if state in ("floor", "floor_left", "floor_right"):
        d.line("M0 -57 q2 6 -1 12", 1.2, "black")
        below = {"floor": 0, "floor_left": -24, "floor_right": 24}[state]
        d.shadow(below, 2, 11)
        d.circle(below, -7, 8.5, color, "ball")
        d.line(f"M{below} -15 q5 -6 10 -1", 1.2, "black")
        return
    x, y = -length * sin(radians(angle)), -57 + length * cos(radians(angle))
    if state == "aside":
        x = -x
    d.shadow(x, 2, 9)
    d.line(f"M0 -57 L{x:.2f} {y:.2f}", 1.2, "black")
    if state in ("held_left", "held_right"):
        side = -1 if state == "held_left" else 1
        d.line(f"M{x:.2f} {y + 6:.2f} L{side * 29} 0", 2.6, "#5f636b")
        d.line(f"M{side * 24} 0 H{side * 31}", 2.6, "#5f636b")
    else:
        for k in (1, 2) if state != "hanging" else ():
            turn = -angle if state != "aside" else angle
            a = radians(turn * (1 - 0.3 * k))
            d.circle(length * sin(-a) * -1, -57 + length * cos(a), 8, color, None, 0.16)
    d.circle(x, y, 8.5, color, "ball")


@draws("balloon")
def balloon(d: Drawing, p: Params) -> None:
    """A balloon, tied to a weight, held by a clip, or under the ceiling."""
    state, color = p["state"], p["color"]

    def body(x: float, y: float, size: float = 1) -> None:
        with d.frame(x, y, size):
            d.path("M0 0 C-8 -5 -13 -12 -13 -19 A13 14 0 0 1 13 -19 C13 -12 8 -5 0 0Z", color, "ball")
            d.polygon([(-2, 2), (2, 2), (0, -1)], shade(color, 0.8))

    if state in ("tied", "popped", "shrunk", "leaning"):
        d.shadow(0, 2, 10)
        d.rect(-6, -8, 12, 9, "#4b4e57", "face", 1.5)
    elif state in ("clipped", "popped_clip", "released"):
        d.shadow(0, 2, 10)
        d.rect(-3, -10, 6, 11, WOOD, "tube", 1)
        d.rect(-5, -13, 10, 4, "#c9a26a", "bar", 1)
    if state == "clipped":
        body(0, -15)
    elif state == "tied":
        d.line("M0 -8 Q3 -16 0 -24", 0.8, "black")
        body(0, -24)
    elif state in ("released", "unweighted"):
        d.line("M0 -46 Q4 -38 -1 -30 Q-3 -26 1 -22", 0.8, "black")
        body(0, -46)
    elif state == "ceiling":
        d.line("M8 -46 Q12 -38 7 -30 Q5 -26 9 -22", 0.8, "black")
        body(8, -46)
    elif state in ("popped", "popped_clip"):
        for x, y, t in ((-20, -2, 10), (-10, 2, 60), (13, -1, 30), (22, 3, 80), (18, -4, 0)):
            with d.frame(x, y, turn=t):
                d.path("M-5 2 Q-2 -5 4 -3 Q6 1 2 3Z", color, "face")
    elif state == "shrunk":
        d.line("M0 -3 q8 4 14 1", 0.8, "black")
        with d.frame(16, -1, turn=70):
            body(0, 0, 0.5)
    elif state == "leaning":
        d.line("M0 -8 Q10 -14 13 -22", 0.8, "black")
        with d.frame(13, -22, turn=40):
            body(0, 0)
    elif state == "sunk":
        d.line("M8 -8 q6 2 10 8", 0.8, "black")
        body(8, -8, 0.6)
    elif state == "pulled":
        d.shadow(4, 2, 10)
        d.rect(-2, -8, 12, 9, "#4b4e57", "face", 1.5)
        d.line("M4 -8 V-12", 0.8, "black")
        body(4, -12)


@draws("ramp")
def ramp(d: Drawing, p: Params) -> None:
    """A ball on a ramp with a block at its end."""
    state, color = p["state"], p["color"]
    d.shadow(0, 4, 31)
    d.polygon([(-30, 0), (-30, -34), (16, 0)], "#b98a55", "face")
    d.line("M-30 -34 L16 0", 1.6, shade("#b98a55", 0.7))
    d.rect(24, -14, 6, 14, "#6a6e78", "face", 1)
    r = 7
    slope = (46**2 + 34**2) ** 0.5
    up = (34 / slope * r, -46 / slope * r)  # from the slope to the ball's middle

    def on(share: float) -> tuple[float, float]:
        return -30 + 46 * share + up[0], -34 + 34 * share + up[1]

    if state in ("blocked", "stopped"):
        with d.frame(-30 + 46 * 0.62, -34 + 34 * 0.62, turn=36.5):
            d.polygon([(-1, 0), (9, 0), (4, -12)], "#d8b13a", "side")
    if state in ("pegged", "blocked"):
        with d.frame(-30 + 46 * 0.34, -34 + 34 * 0.34, turn=36.5):
            d.rect(-1.5, -9, 3, 10, "#3a3c44", "tube", 1)
    x, y = {"pegged": on(0.12), "blocked": on(0.12), "rolled": (16.5, -r), "stopped": on(0.48)}[state]
    d.circle(x, y, r, color, "ball")


@draws("bridge")
def bridge(d: Drawing, p: Params) -> None:
    """A bridge of wood or stone over a river."""
    state = p["state"]
    stone = state.startswith("stone")
    d.rect(-32, -3, 64, 9, "#4a92d6", "face")
    if "flooded" in state:
        d.rect(-32, -24, 64, 30, "#7a9cb4", "face")
    for side in (-1, 1):
        d.polygon([(side * 32, 6), (side * 32, -20), (side * 20, -20), (side * 15, 6)], "#7b8a4e", "face")
    fill = "#9ea2a8" if stone else WOOD
    if state in ("broken", "sawn"):
        for side in (-1, 1):
            with d.frame(side * 24, -21, turn=side * (-34 if state == "broken" else -62)):
                d.rect(-8 if side > 0 else -10, -3, 18, 4.4, fill, "bar", 1)
        if state == "broken":
            d.rect(-9, -8, 18, 10, "#34363e", "face", 2)
        return
    if state == "burnt":
        for side in (-1, 1):
            d.rect(side * 24 - 6, -24, 12, 4.4, "#1d1a18", "bar", 1)
        d.rect(-8, -2, 16, 3, "#1d1a18", "bar", 1)
        flames(d, 17, -23, 6, 9)
        flames(d, -17, -23, 6, 9)
        return
    if stone:
        d.path("M-26 -24 H26 V-14 H18 Q14 -20 0 -20 Q-14 -20 -18 -14 H-26Z", fill, "face")
        for x in range(-20, 21, 8):
            d.line(f"M{x} -23.5 V-20.5", 0.8, "#74787e")
    else:
        d.rect(-26, -24, 52, 4.4, fill, "bar", 1)
        for x in range(-20, 21, 8):
            d.line(f"M{x} -24 V-20", 0.8, "#5a3818")
    for x in (-24, 24):
        d.rect(x - 1.2, -34, 2.4, 11, p["color"], "tube", 1)
    d.line("M-24 -32 Q0 -27 24 -32", 1, p["color"])
    if state == "stone_loaded":
        d.rect(-11, -37, 22, 13, "#34363e", "face", 2)
    elif "flooded" in state:
        d.path("M-32 -26 q8 -4 16 0 t16 0 t16 0 t16 0 V6 H-32Z", "#6fa2c8", "face", 0.93)
    elif state == "mossy":
        for x, y, rx in ((-18, -25, 7), (2, -24, 8), (18, -25, 5)):
            d.ellipse(x, y, rx, 2.4, "#4f8a3c", "face")
        for x in (-14, 4, 16):
            d.line(f"M{x} -20 q-2 7 1 12", 1.4, "#4f8a3c")
    elif state == "icy":
        d.rect(-15, -4, 30, 7, "#d9effa", "face")
        d.ellipse(0, -25, 25, 3, "#f4f8ff", "face")
        for x in (-16, -4, 8, 17):
            d.polygon([(x - 1.5, -20), (x + 1.5, -20), (x, -12)], "#d8f0ff")


@draws("kite")
def kite(d: Drawing, p: Params) -> None:
    """A kite and the peg it is tied to."""
    state, color = p["state"], p["color"]

    def body(x: float, y: float, size: float, turn: float) -> None:
        with d.frame(x, y, size, turn):
            d.polygon([(0, -14), (10, -2), (0, 14), (-10, -2)], color, "side")
            d.polygon([(0, -14), (10, -2), (0, -2)], shade(color, 1.3))
            d.polygon([(0, 14), (-10, -2), (0, -2)], shade(color, 0.75))
            d.line("M0 14 q5 5 0 9 q-4 4 1 8", 1, "black")
            for y in (19, 26):
                d.polygon([(-3, y - 2), (3, y + 2), (3, y - 2), (-3, y + 2)], shade(color, 1.5))

    peg = state not in ("away", "ash")
    if peg or state == "away":
        d.shadow(-22, 2, 6)
        d.rect(-24, -8, 4, 9, WOOD, "tube", 1)
    if state == "lying":
        d.shadow(12, 2, 14)
        d.line("M-22 -5 q12 8 24 2", 0.7, "black")
        body(12, -5, 0.9, 78)
    elif state == "flying":
        d.line("M-22 -6 Q-4 -20 10 -34", 0.7, "black")
        body(12, -42, 1, 24)
    elif state == "away":
        d.line("M-22 -6 q6 6 12 4", 0.7, "black")
        body(24, -54, 0.5, 48)
    elif state == "torn":
        d.line("M-22 -6 Q0 -16 6 -26", 0.7, "black")
        with d.frame(8, -34, 1, 60):
            d.polygon([(0, -14), (4, -2), (0, 14), (-10, -2)], color, "side")
            d.line("M0 -14 L0 14 M-10 -2 L8 -2", 1, WOOD)
        with d.frame(26, -46, 0.7, 20):
            d.polygon([(-6, -4), (5, -6), (2, 6)], color, "face")
    elif state == "ash":
        d.path("M-2 2 Q4 -4 12 -3 Q22 -4 26 2 Q12 6 -2 2Z", "#4c4a4c", "face")
        d.line("M4 -1 L20 -5 M8 2 L16 -8", 1.4, "#1d1a18")
        flames(d, 12, -3, 8, 10)
    elif state == "wet":
        d.shadow(12, 2, 14)
        body(12, -3, 0.8, 94)
        for x in (-10, 2, 14, 26):
            d.line(f"M{x} -50 l-2 8 M{x - 6} -34 l-2 8 M{x} -20 l-2 6", 1.1, "#4a9ade")
