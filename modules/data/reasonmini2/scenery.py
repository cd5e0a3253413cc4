"""What is behind the things of ReasonMini 2: a room, a field or the sea, in the light of the moment."""

from __future__ import annotations

from collections.abc import Sequence

from reasonbrain.modules.data.reasonmini2.drawing import Drawing, shade
from reasonbrain.modules.data.reasonmini2.things import Params

HORIZON = {"room": 72, "field": 66, "sea": 62}
BACKGROUNDS = {  # setting -> name -> upper and lower colour
    "room": {
        "cream": ("#f4e8ce", "#b08c68"),
        "mint": ("#ccecd8", "#8a9a90"),
        "lilac": ("#ded2f0", "#84708f"),
        "sand": ("#ecd6ae", "#967054"),
        "slate": ("#b8c4d0", "#6c7480"),
        "rose": ("#f3d4d4", "#9c7a72"),
    },
    "field": {
        "noon": ("#a8d8f4", "#8cbc5c"),
        "haze": ("#d4e4ea", "#a2b46c"),
        "evening": ("#f6cfa2", "#9aa450"),
        "spring": ("#bce6ee", "#78c060"),
        "heath": ("#c4d2ec", "#a08a6a"),
    },
    "sea": {
        "calm": ("#bfe2f4", "#4088c8"),
        "dawn": ("#f8d4bc", "#4a80b0"),
        "green": ("#d2ecdc", "#3c9690"),
        "deep": ("#a4c8ec", "#2c64ac"),
    },
}
DARK = ("dark", "night")


def backdrop(d: Drawing, setting: str, background: str, moods: Sequence[str]) -> None:
    """Fills the picture. moods: what the states of the things make of the scenery ("" for nothing)."""
    upper, lower = BACKGROUNDS[setting][background]
    line = HORIZON[setting]
    if "storm" in moods:
        upper, lower = "#5a6274", "#3c6484"
    elif "rain" in moods:
        upper = "#9aa4b0"
    elif "night" in moods:
        upper = "#2a3460"
    if "snow" in moods:
        lower = "#eef4fc"
    elif "drained" in moods:
        lower = "#b89468"
    d.rect(0, 0, 100, line + 1, upper, "face")
    d.rect(0, line, 100, 100 - line, lower, "face")
    if setting == "room":
        d.rect(0, line - 2.2, 100, 2.4, shade(lower, 1.3), "face")
    elif setting == "field":
        d.path(f"M0 {line} Q26 {line - 7} 52 {line} T100 {line - 2} V{line + 4} H0Z", shade(lower, 0.93), "face")
    else:
        d.path(
            f"M72 {line + 1} Q86 {line - 10} 100 {line - 5} V{line + 6} Q84 {line + 6} 72 {line + 1}Z",
            "#e8cf94",
            "face",
        )
        d.line(f"M88 {line - 5} Q87 {line - 14} 90 {line - 22}", 1.8, "#7a4e2a")
        for x, y in ((-9, 2), (-6, -5), (3, -6), (8, 1)):
            d.line(f"M90 {line - 22} q{x / 2} {y - 3} {x} {y}", 2, "#2e8b3d")
        if "drained" in moods:
            d.line("M6 80 l14 4 l9 -6 l16 8 l12 -5 l18 6 l20 -6 M14 94 l18 -5 l14 4 l22 -4 l16 5", 1, "#6f5230")
        elif "snow" not in moods:
            for y, x in ((70, 10), (76, 64), (90, 30), (94, 74)):
                d.line(f"M{x} {y} q4 -2 8 0 t8 0", 0.9, shade(lower, 1.3))
    if "night" in moods:
        with d.lights():
            d.circle(70, 12, 5, "#f6f2d0", "ball")
            for x, y in ((26, 20), (38, 6), (48, 16), (60, 28), (66, 34)):
                d.circle(x, y, 0.6, "#fdfbe8")
    if "storm" in moods:
        for x, y, r in ((8, 4, 14), (30, 2, 17), (56, 4, 15), (82, 2, 18)):
            d.circle(x, y, r, "#3a404e", "ball")
        d.path("M60 16 L54 30 H59 L53 44 L66 26 H60 L65 16Z", "#ffe46a")
        for x in range(6, 100, 9):
            d.line(f"M{x} 24 l-4 12 M{x + 4} 44 l-4 12", 0.8, "#b8c8d8", 0.7)


def ornaments(d: Drawing, placed: Sequence[Params], moods: Sequence[str]) -> None:
    """Draws what stands in the corners and never changes."""
    for p in placed:
        x, y, color = p["x"], p["y"], p["color"]
        if p["shape"] == "frame":
            d.rect(x - 7, y - 6, 14, 12, "#7a5634", "face", 1)
            d.rect(x - 5.4, y - 4.4, 10.8, 8.8, "#fbf6e8")
            d.polygon([(x - 4, y + 3), (x, y - 3), (x + 4, y + 3)], color, "face")
        elif p["shape"] == "clock":
            d.circle(x, y, 6, color, "ball")
            d.circle(x, y, 4.6, "#fdfaf0")
            d.line(f"M{x} {y} V{y - 3} M{x} {y} l2 1.4", 0.8, "black")
        elif p["shape"] == "shelf":
            d.rect(x - 8, y + 3, 16, 2, "#7a5634", "bar")
            for k, c in enumerate((color, shade(color, 1.4), shade(color, 0.7))):
                d.rect(x - 6 + 3.4 * k, y - 4 + k, 3, 7 - k, c, "side")
        elif p["shape"] == "cloud":
            for dx, dy, r in ((-5, 1, 3.6), (0, -1, 4.6), (5, 1, 3.8)):
                d.circle(x + dx, y + dy, r, "#ffffff", None, 0.85)
        elif p["shape"] == "hill":
            d.polygon([(x - 14, 64), (x, 64 - 18), (x + 14, 64)], shade(color, 1.5), "side")
        else:
            d.line(f"M{x - 5} {y} q2.5 -3 5 0 q2.5 -3 5 0", 1.1, "#4a4f58")


def veil(d: Drawing, moods: Sequence[str]) -> None:
    """Darkens the whole picture where the light is gone."""
    if any(mood in DARK for mood in moods):
        d.rect(0, 0, 100, 100, "#0a1030", None, 0, 0.42 if "dark" in moods else 0.34)
    elif "rain" in moods or "storm" in moods:
        d.rect(0, 0, 100, 100, "#2a3444", None, 0, 0.16)
