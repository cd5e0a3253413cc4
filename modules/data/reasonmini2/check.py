"""Whether an edit shows the outcome: it must look more like the true target than like anything else that may happen.

passes(edit, record["kind"], record["params"])
"""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from reasonbrain.modules.data.reasonmini2.world import Numbers, Scene, find_kind

DIFFERENT = 24  # of 255, where two outcomes are compared
NEARER = 0.6  # the distance from the target must be below this share of that from any other outcome


def passes(edit: Image.Image, kind: str, params: dict[str, Any]) -> bool:
    """Whether the edit shows the outcome of a record, whose kind and params are given. Raises KeyError or TypeError if
    they are not those of a record of this world."""
    scene = params["scene"]
    placed, ornaments = tuple(scene["placed"]), tuple(scene["ornaments"])
    return shows(
        edit,
        Scene(scene["setting"], scene["background"], ornaments, placed),
        find_kind(kind).event,
        tuple(params["on"]),
    )


def shows(edit: Image.Image, scene: Scene, event: str, on: Numbers) -> bool:
    """Whether the edit shows what the event makes of the things with the numbers ``on``.

    The edit is compared with the unchanged source and with every other outcome of the scene, each where it differs
    clearly from the target. An edit of another size is resized."""
    after = scene.after(event, on)
    size = edit.width
    others = [scene, *(other for other in scene.outcomes() if other != after)]
    target = _pixels(after.render(size))
    given = _pixels(edit.resize((size, size), Image.Resampling.LANCZOS))
    missed = np.abs(given - target).mean(-1)
    for other in others:
        pixels = _pixels(other.render(size))
        where = np.abs(target - pixels).max(-1) > DIFFERENT
        if where.any() and missed[where].mean() >= NEARER * np.abs(given - pixels).mean(-1)[where].mean():
            return False
    return True


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"), dtype=np.float32)
