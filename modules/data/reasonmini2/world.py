"""ReasonMini 2: a drawn world in which the same words mean different things in different pictures.

A thing is shown in one of its starting states, and an event leads it to another state (``things.yaml``). Most
instructions name the event alone (``events.yaml``), so the picture decides what happens: heat melts the ice cube and
boils the pot, and a short candle ends otherwise than a tall one. In a picture of two things an event touches both, or
the one that is named or meant. Source and target are two drawings of the same scene, so everything else is identical.

A ``Scene`` is the picture in numbers: JSON values that draw it again. ``make`` draws a record of a split.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import import_module
from importlib.resources import files
from typing import Any

import numpy as np
import yaml
from PIL import Image

from reasonbrain.modules.data.reasonmini.sample import DrawnSample
from reasonbrain.modules.data.reasonmini2.drawing import PALETTE, Drawing
from reasonbrain.modules.data.reasonmini2.scenery import BACKGROUNDS, backdrop, ornaments, veil
from reasonbrain.modules.data.reasonmini2.things import DRAW, Params

Numbers = tuple[int, ...]  # of the things in a scene, from the left

VERSION = 2
SIZE = 128  # pixels
SPLITS = ("train", "val", "test", "paraphrase", "compositional", "picture", "conditional", "pair", "stranger")
PAIRS = 0.35  # share of training records with two things
BOTH = 0.4  # share of these in which the event touches both, where it can
CATEGORIES = {  # of each event
    **dict.fromkeys(("wind", "push", "cut", "gravity", "weight", "unweight"), "physical"),
    **dict.fromkeys(("cold", "time", "drought", "dark", "growth"), "temporal"),
    **dict.fromkeys(("heat", "water", "fire"), "causal"),
    **dict.fromkeys(("hunger", "magic", "goal"), "story"),
}


def _table(name: str) -> dict[str, Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one is ten times faster, where PyYAML has it
    return yaml.load((files(__package__) / name).read_text(encoding="utf-8"), loader)


@dataclass(frozen=True)
class Thing:
    """One entry of ``things.yaml``, where the fields are explained."""

    name: str
    setting: str
    colors: tuple[str, ...]
    noun: str
    starts: dict[str, dict[str, str]] = field(repr=False)
    says: dict[str, str] = field(repr=False)
    parts: tuple[str, ...] = ()
    shown: dict[str, str] = field(default_factory=dict)
    traits: tuple[str, ...] = ()
    scenery: dict[str, str] = field(default_factory=dict)
    unnamed: tuple[str, ...] = ()
    mirrors: bool = True

    def called(self, state: str, color: str) -> str:
        """Its name in a starting state."""
        return self.shown.get(state, self.noun).format(color=color)

    def outcome(self, state: str, color: str) -> str:
        """The sentence for a state."""
        return self.says[state].format(color=color)


@cache
def things() -> dict[str, Thing]:
    """Every thing by name."""
    for module in ("home", "kitchen", "living", "outdoors", "play"):
        import_module(f"{__package__}.things.{module}")
    found = {}
    for name, entry in _table("things.yaml").items():
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        found[name] = Thing(name, **fields)
    return found


@cache
def events() -> dict[str, dict[str, tuple[str, ...]]]:
    """The phrasings of every event, by list: generic, named, paraphrase, stranger."""
    return {e: {k: tuple(v) for k, v in lists.items() if k != "meaning"} for e, lists in _table("events.yaml").items()}


@dataclass(frozen=True)
class Kind:
    """What one event makes of one thing in one starting state."""

    thing: str
    start: str
    event: str

    @property
    def name(self) -> str:
        return f"{self.thing}.{self.start}.{self.event}"

    @property
    def category(self) -> str:
        return CATEGORIES[self.event]

    @property
    def end(self) -> str:
        return things()[self.thing].starts[self.start][self.event]

    @property
    def conditional(self) -> bool:
        """Whether the event ends otherwise for another starting state of the thing."""
        ends = {outcomes[self.event] for outcomes in things()[self.thing].starts.values() if self.event in outcomes}
        return len(ends) > 1

    @property
    def named(self) -> bool:
        """Whether an instruction can ask for it by naming the thing."""
        return self.event not in things()[self.thing].unnamed

    @property
    def local(self) -> bool:
        """Whether the scenery stays as it is."""
        scenery = things()[self.thing].scenery
        return scenery.get(self.start) == scenery.get(self.end)


@cache
def kinds() -> tuple[Kind, ...]:
    """Every kind, in a fixed order in which neighbours are of different things."""
    listed = (Kind(t.name, s, e) for t in things().values() for s, ends in t.starts.items() for e in ends)
    return tuple(sorted(listed, key=lambda kind: zlib.crc32(kind.name.encode())))


def find_kind(name: str) -> Kind:
    """The kind of that name. Raises KeyError."""
    return {kind.name: kind for kind in kinds()}[name]


@dataclass(frozen=True)
class Scene:
    """A picture in numbers.

    placed: the parameters of one or two things: name, state, color, vary, and x, y, scale, mirror of its frame.
    ornaments: what stands around and never changes.
    """

    setting: str
    background: str
    ornaments: tuple[Params, ...]
    placed: tuple[Params, ...]

    def render(self, size: int = SIZE) -> Image.Image:
        """The picture, ``size`` x ``size`` pixels."""
        moods = [things()[p["name"]].scenery.get(p["state"], "") for p in self.placed]
        d = Drawing()
        backdrop(d, self.setting, self.background, moods)
        ornaments(d, self.ornaments, moods)
        for p in self.placed:
            with d.frame(p["x"], p["y"], p["scale"], mirror=p["mirror"]):
                DRAW[p["name"]](d, p)
        veil(d, moods)
        return d.image(size)

    def after(self, event: str, on: Numbers) -> Scene:
        """The scene after an event that touches the things with the numbers ``on``."""
        placed = [
            p | {"state": things()[p["name"]].starts[p["state"]][event]} if i in on else p
            for i, p in enumerate(self.placed)
        ]
        return replace(self, placed=tuple(placed))

    def touched(self, event: str) -> Numbers:
        """The numbers of the things in which the event changes something."""
        return tuple(i for i, p in enumerate(self.placed) if event in things()[p["name"]].starts.get(p["state"], {}))

    def outcomes(self) -> Iterator[Scene]:
        """Everything that may happen: each event on all things that it touches, and on each of them alone."""
        for event in CATEGORIES:
            on = self.touched(event)
            for numbers in {on, *((i,) for i in on)} - {()}:
                yield self.after(event, numbers)


@dataclass
class Sample(DrawnSample):
    """One record with its pictures.

    ``on``: the numbers of the things that change. ``instructions``: all wordings; ``instruction``: one of
    them."""

    id: str
    scene: Scene
    kind: Kind
    on: Numbers
    instructions: list[str]
    instruction: str
    source: Image.Image
    target: Image.Image

    def record(self) -> dict[str, Any]:
        return super().record() | {"version": VERSION}

    @property
    def scene_name(self) -> str:
        return "+".join(p["name"] for p in self.scene.placed)

    @property
    def params(self) -> dict[str, Any]:
        """The scene and the numbers of the things that change, as JSON values."""
        return {"scene": asdict(self.scene), "on": list(self.on)}

    @property
    def outcome(self) -> str:
        """What happens, in one sentence."""
        after = self.scene.after(self.kind.event, self.on)
        said = (things()[p["name"]].outcome(p["state"], p["color"]) for p in (after.placed[i] for i in self.on))
        return ", and ".join(said)

    @property
    def objects(self) -> list[str]:
        found = []
        for i in self.on:
            p = self.scene.placed[i]
            thing = things()[p["name"]]
            found += [thing.called(p["state"], p["color"]), *(part.format(color=p["color"]) for part in thing.parts)]
        return found


def held_out(thing: str, color: str, background: str) -> bool:
    """Whether a combination of thing, colour and background is kept for the compositional split."""
    return zlib.crc32(f"{thing}/{color}/{background}".encode()) % 6 == 0


def make(split: str, index: int, seed: int = 0, size: int = SIZE, kind: str | None = None) -> Sample:
    """Record ``index`` of a split. The same arguments give the same record, on every machine.

    Kinds take turns by index, so that consecutive records are balanced; ``kind`` fixes one by name."""
    scene, chosen, on, texts = draw(split, index, seed, kind)
    return Sample(
        id=f"{split}-{seed}-{index:06d}",
        scene=scene,
        kind=chosen,
        on=on,
        instructions=texts,
        instruction=texts[np.random.default_rng([seed, index]).integers(len(texts))],
        source=scene.render(size),
        target=scene.after(chosen.event, on).render(size),
    )


def draw(split: str, index: int, seed: int = 0, kind: str | None = None) -> tuple[Scene, Kind, Numbers, list[str]]:
    """What is random in a record: its scene, its kind, the numbers of the things that change, and all its wordings."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index, VERSION])
    order = [k for k in kinds() if k.conditional] if split == "conditional" else kinds()
    chosen = order[index % len(order)] if kind is None else find_kind(kind)
    if split == "pair" or (split in ("train", "val", "test") and rng.random() < PAIRS):
        found = _pair(chosen, rng)
        if found is not None:
            return found
    scene = _scene([(chosen.thing, chosen.start)], rng, split == "compositional")
    words = events()[chosen.event]
    if split in ("paraphrase", "stranger"):
        return scene, chosen, (0,), list(words[split])
    texts = list(words["generic"])
    if chosen.named and split not in ("picture", "conditional"):
        noun = _noun(scene.placed[0])
        texts += _filled(words["named"], [f"the {noun}", f"this {noun}", "this"], rng)
    return scene, chosen, (0,), texts


def _pair(chosen: Kind, rng: np.random.Generator) -> tuple[Scene, Kind, Numbers, list[str]] | None:
    """A picture of two things and wordings that mean both or one of them; None if the kind allows none."""
    thing = things()[chosen.thing]
    others = [t for t in things().values() if t.setting == thing.setting and t is not thing]
    words = events()[chosen.event]
    both = [(t.name, s) for t in others for s, ends in t.starts.items() if chosen.event in ends]
    if both and rng.random() < BOTH:
        pair = [(chosen.thing, chosen.start), both[int(rng.integers(len(both)))]]
        return _scene(pair[:: int(rng.choice((1, -1)))], rng), chosen, (0, 1), list(words["generic"])
    if not (others and chosen.local and chosen.named):
        return None
    partner = others[int(rng.integers(len(others)))]
    number = int(rng.integers(2))
    pair = [(chosen.thing, chosen.start), (partner.name, str(rng.choice(list(partner.starts))))]
    scene = _scene(pair[::-1] if number else pair, rng)
    side = ("left", "right")[number]
    what = [f"the {_noun(scene.placed[number])}"] * 2 + [f"the one on the {side}", f"the {side} one"]
    what += [f"the one that {trait}" for trait in thing.traits if trait not in partner.traits]
    return scene, chosen, (number,), _filled(words["named"], what, rng)


def _noun(p: Params) -> str:
    return things()[p["name"]].called(p["state"], p["color"])


def _filled(texts: Sequence[str], what: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The texts with {what} filled in, each with one of the expressions."""
    filled = [
        text.format(what=what[i]) for text, i in zip(texts, rng.integers(len(what), size=len(texts)), strict=True)
    ]
    return [text[0].upper() + text[1:] for text in filled]


def _scene(pair: list[tuple[str, str]], rng: np.random.Generator, compositional: bool = False) -> Scene:
    """A scene with one or two things in their starting states."""
    setting = things()[pair[0][0]].setting
    while True:
        background = str(rng.choice(list(BACKGROUNDS[setting])))
        colors = [str(rng.choice(things()[name].colors)) for name, _ in pair]
        apart = [held_out(name, color, background) for (name, _), color in zip(pair, colors, strict=True)]
        if all(apart) if compositional else not any(apart):
            break
    placed = []
    for i, ((name, state), color) in enumerate(zip(pair, colors, strict=True)):
        alone = len(pair) == 1
        placed.append(
            {
                "name": name,
                "state": state,
                "color": color,
                "vary": _uniform(rng, 0, 1),
                "x": _uniform(rng, 46, 54) if alone else (26, 74)[i] + _uniform(rng, -2, 2),
                "y": _uniform(rng, 82, 87) if alone else _uniform(rng, 78, 84),
                "scale": _uniform(rng, 0.92, 1.08) if alone else _uniform(rng, 0.62, 0.7),
                "mirror": bool(things()[name].mirrors and rng.random() < 0.5),
            }
        )
    return Scene(setting, background, tuple(_ornaments(setting, rng)), tuple(placed))


def jumble(rng: np.random.Generator, size: int = SIZE) -> Image.Image:
    """A picture of up to four things in any state and place, for training an autoencoder."""
    placed = []
    for _ in range(int(rng.integers(1, 5))):
        thing = list(things().values())[int(rng.integers(len(things())))]
        placed.append(
            {
                "name": thing.name,
                "state": str(rng.choice([*thing.starts, *thing.says])),
                "color": str(rng.choice(list(PALETTE))),
                "vary": _uniform(rng, 0, 1),
                "x": _uniform(rng, 5, 95),
                "y": _uniform(rng, 40, 100),
                "scale": _uniform(rng, 0.4, 1.1),
                "mirror": bool(rng.random() < 0.5),
            }
        )
    setting = str(rng.choice(list(BACKGROUNDS)))
    background = str(rng.choice(list(BACKGROUNDS[setting])))
    return Scene(setting, background, tuple(_ornaments(setting, rng)), tuple(placed)).render(size)


def _ornaments(setting: str, rng: np.random.Generator) -> Iterator[Params]:
    """Up to three things that no event changes, in the corners of the picture."""
    shapes = {"room": ("frame", "clock", "shelf"), "field": ("cloud", "hill"), "sea": ("cloud", "gull")}[setting]
    for left in (True, False):
        if rng.random() < 0.55:
            yield {
                "shape": str(rng.choice(shapes)),
                "x": _uniform(rng, 10, 17) if left else _uniform(rng, 83, 90),
                "y": _uniform(rng, 9, 15),
                "color": str(rng.choice(("red", "orange", "green", "blue", "purple", "pink"))),
            }


def _uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return round(float(rng.uniform(low, high)), 3)


@cache
def vocabulary() -> tuple[str, ...]:
    """The words of all training phrasings and of the names of the things, sorted."""
    texts = [text for lists in events().values() for key in ("generic", "named") for text in lists[key]]
    texts += [t.called(s, c) for t in things().values() for s in t.starts for c in t.colors]
    return tuple(sorted({word for text in texts for word in text.split()} - {"{what}"}))
