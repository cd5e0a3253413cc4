"""ReasonMini: a small procedural data set with known ground truth, in Reason50K's record format.

A ``Scene`` samples parameters and draws itself in any state. A ``Kind`` is an event that may happen in a scene: it maps
the parameters to those of the outcome, describes the outcome in words, and checks from pixels whether a picture shows
it. Source and target are drawings of the same scene, so everything that a kind does not change is identical. Several
kinds share a scene, so the edit cannot be guessed from the picture alone.

See ``reasonbrain data mini --help`` for the command that writes a split to disk.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

import numpy as np
import yaml
from PIL import Image

from reasonbrain.data.record import SCENARIOS
from reasonbrain.modules.data.reasonmini.canvas import Box, Canvas, Look, shade
from reasonbrain.modules.data.reasonmini.sample import DrawnSample

Params = dict[str, Any]

VERSION = 1
SIZE = 64  # pixels
CATEGORIES = SCENARIOS
SPLITS = ("train", "val", "test", "paraphrase", "compositional")
BACKGROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {  # wall, floor
    "cream": ((244, 232, 206), (176, 140, 104)),
    "sky": ((190, 222, 244), (120, 150, 110)),
    "mint": ((204, 236, 216), (110, 128, 136)),
    "lilac": ((222, 210, 240), (126, 104, 140)),
    "sand": ((232, 204, 160), (150, 112, 84)),
    "slate": ((176, 188, 200), (92, 98, 112)),
}
DISTRACTORS = ("ball", "box", "cone", "star")
DISTRACTOR_COLORS = ("red", "orange", "green", "blue", "purple", "pink")
FLOOR = 0.82  # y of the line where the wall meets the floor


@cache
def _words() -> dict[str, dict[str, Any]]:
    """The texts of each kind in ``words.yaml``, by the kind's name."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster, if PyYAML was built with it
    return yaml.load((files(__package__) / "words.yaml").read_text(encoding="utf-8"), loader)


@dataclass(frozen=True)
class Kind:
    """An event that may happen in a scene. Its texts are those of ``words.yaml`` under its name (KeyError if missing).

    ``after`` maps the source's parameters to the outcome's, deterministically and without changing its argument.
    ``check`` returns whether a picture of this scene shows the outcome, from its pixels and the source's parameters.
    ``phrasings`` (12 or more, from explicit to truly hypothetical) are the training instructions; ``paraphrases`` (4 or
    more) are held out. They and ``outcome`` are format strings over the scene's parameters, e.g.
    ``"the {color} candle"``.
    """

    name: str
    category: str
    after: Callable[[Params], Params] = field(repr=False)
    check: Callable[[Look, Params], bool] = field(repr=False)
    objects: tuple[str, ...] = field(init=False, repr=False)
    outcome: str = field(init=False, repr=False)
    phrasings: tuple[str, ...] = field(init=False, repr=False)
    paraphrases: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        for key, words in _words()[self.name].items():
            object.__setattr__(self, key, words if isinstance(words, str) else tuple(words))


class Scene:
    """A scene in which events happen. Subclasses set the three attributes and implement ``sample``, ``zone`` and
    ``draw``."""

    name: str
    colors: tuple[str, ...]  # names of PALETTE that the main object may have, as params["color"]
    kinds: tuple[Kind, ...]

    def sample(self, rng: np.random.Generator) -> Params:
        """Free parameters of the source (positions, sizes, counts): plain JSON values.

        ``color`` and ``background`` are added by the world."""
        raise NotImplementedError

    def zone(self, p: Params) -> Box:
        """The box around everything that this scene draws, in the source and in every outcome. Distractors are placed
        outside it."""
        raise NotImplementedError

    def draw(self, canvas: Canvas, p: Params) -> None:
        """Draws the scene's own objects over the background and the distractors."""
        raise NotImplementedError

    def backdrop(self, canvas: Canvas, p: Params) -> None:
        """Draws wall and floor; outdoor scenes override this."""
        wall, floor = BACKGROUNDS[p["background"]]
        canvas.rect((0, 0, 1, FLOOR), wall)
        canvas.rect((0, FLOOR, 1, 1), floor)

    def finish(self, canvas: Canvas, p: Params) -> None:
        """Draws last, over everything (the tint of night); nothing by default."""

    def render(self, p: Params, size: int = 64) -> Image.Image:
        """The picture of the scene in state ``p``."""
        canvas = Canvas(size)
        self.backdrop(canvas, p)
        for d in p.get("distractors", ()):
            _draw_distractor(canvas, **d)
        self.draw(canvas, p)
        self.finish(canvas, p)
        return canvas.image()


def _draw_distractor(canvas: Canvas, shape: str, x: float, y: float, r: float, color: str) -> None:
    """Draws an object that no kind changes, standing at (x, y) with half-size r."""
    if shape == "ball":
        canvas.circle((x, y - r), r, color)
    elif shape == "box":
        canvas.rect((x - r, y - 2 * r, x + r, y), color)
        canvas.rect((x - r, y - 2 * r, x + r, y - 1.5 * r), shade(color, 0.75))
    elif shape == "cone":
        canvas.polygon([(x, y - 2 * r), (x + r, y), (x - r, y)], color)
    else:
        canvas.star((x, y - r), r * 1.1, color)


def _distractors(rng: np.random.Generator, zone: Box) -> list[dict[str, Any]]:
    """Up to two distractors on the floor or high on the wall, clear of the zone and of each other."""
    placed: list[dict[str, Any]] = []
    taken = [zone]
    for _ in range(int(rng.integers(0, 3))):
        for _ in range(12):
            r = float(rng.uniform(0.045, 0.065))
            x = float(rng.uniform(r + 0.02, 0.98 - r))
            y = float(rng.uniform(FLOOR + 0.03, 0.95) if rng.random() < 0.7 else rng.uniform(0.15, 0.3))
            box = (x - r - 0.02, y - 2 * r - 0.02, x + r + 0.02, y + 0.02)
            if all(box[2] < t[0] or box[0] > t[2] or box[3] < t[1] or box[1] > t[3] for t in taken):
                taken.append(box)
                shape, color = str(rng.choice(DISTRACTORS)), str(rng.choice(DISTRACTOR_COLORS))
                placed.append({"shape": shape, "x": round(x, 4), "y": round(y, 4), "r": round(r, 4), "color": color})
                break
    return placed


def held_out(scene: str, color: str, background: str) -> bool:
    """Whether a combination of object, colour and background is reserved for the compositional split."""
    return zlib.crc32(f"{scene}/{color}/{background}".encode()) % 6 == 0


@dataclass
class Sample(DrawnSample):
    """One record of ReasonMini with its pictures."""

    id: str
    scene: Scene
    kind: Kind
    params: Params
    instruction: str
    outcome: str
    source: Image.Image
    target: Image.Image

    @property
    def objects(self) -> list[str]:
        return [o.format(**self.params) for o in self.kind.objects]

    @property
    def narration(self) -> str:
        """The full narration: what is seen, what is asked in plain words, the outcome, and what stays unchanged."""
        stays = [f"{d['color']} {d['shape']}" for d in self.params["distractors"]]
        if self.mask.mean() < 0.5:  # night and a storm change the background
            stays.append(f"{self.params['background']} background")
        asked = self.kind.phrasings[0].format(**self.params)
        told = f"The picture shows {', '.join(self.objects)}. {asked} {self.outcome.capitalize()}."
        return f"{told} The rest stays the same: {', '.join(stays)}." if stays else told

    @property
    def scene_name(self) -> str:
        return self.scene.name


SCENE_MODULES = (  # one scene each; kinds take their turns in this order
    *("candle", "ice", "plant"),
    *("ramp", "seesaw", "tower", "pendulum", "balloon"),
    *("dam", "tap", "campfire", "house"),
    *("hero", "cat", "boat", "bird"),
)


@cache
def scenes() -> dict[str, Scene]:
    """Every scene by name."""
    found = [import_module(f"{__package__}.scenes.{m}").SCENE for m in SCENE_MODULES]
    return {s.name: s for s in found}


@cache
def kinds() -> tuple[tuple[Scene, Kind], ...]:
    """Every (scene, kind), in a fixed order."""
    return tuple((s, k) for s in scenes().values() for k in s.kinds)


def find_kind(name: str) -> tuple[Scene, Kind]:
    """The scene and kind of that name. Raises KeyError."""
    for scene, kind in kinds():
        if kind.name == name:
            return scene, kind
    raise KeyError(name)


def passes(edit: Image.Image, kind: str, params: Params) -> bool:
    """Whether an edit shows the outcome of a record, whose kind and params are given. Raises KeyError for an unknown
    kind; a check raises whatever params of another kind bring about."""
    return bool(find_kind(kind)[1].check(Look(edit), params))


def sample_params(scene: Scene, rng: np.random.Generator, compositional: bool = False) -> Params:
    """Samples the parameters of a source, distractors included, from the training or the held-out combinations."""
    while True:
        color, background = str(rng.choice(scene.colors)), str(rng.choice(list(BACKGROUNDS)))
        if held_out(scene.name, color, background) == compositional:
            break
    p: Params = {"color": color, "background": background, **scene.sample(rng)}
    return {**p, "distractors": _distractors(rng, scene.zone(p))}


def make(split: str, index: int, seed: int = 0, size: int = 64, kind: str | None = None) -> Sample:
    """Record ``index`` of a split. The same arguments give the same record, on every machine.

    Kinds take turns by index, so that any 100 consecutive records are balanced; ``kind`` fixes one by name."""
    scene, chosen, p, instruction = _draw(split, index, seed, kind)
    return Sample(
        id=f"{split}-{seed}-{index:06d}",
        scene=scene,
        kind=chosen,
        params=p,
        instruction=instruction,
        outcome=chosen.outcome.format(**p),
        source=scene.render(p, size),
        target=scene.render(chosen.after(p), size),
    )


def _draw(split: str, index: int, seed: int = 0, kind: str | None = None) -> tuple[Scene, Kind, Params, str]:
    """Draws the random parts of a record: scene, kind, the source's parameters, instruction."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene, chosen = kinds()[index % len(kinds())] if kind is None else find_kind(kind)
    p = sample_params(scene, rng, split == "compositional")
    texts = chosen.paraphrases if split == "paraphrase" else chosen.phrasings
    return scene, chosen, p, str(rng.choice(texts)).format(**p)


@cache
def vocabulary() -> tuple[str, ...]:
    """The words of the first 4000 training instructions, sorted."""
    return tuple(sorted({word for i in range(4000) for word in _draw("train", i)[3].split()}))
