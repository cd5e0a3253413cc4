"""The world of ReasonMini 2: what may happen, how it looks, and in which words it is asked for."""

import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from reasonbrain.modules.data.reasonmini2.check import passes, shows
from reasonbrain.modules.data.reasonmini2.things import DRAW
from reasonbrain.modules.data.reasonmini2.world import (
    CATEGORIES,
    SPLITS,
    Scene,
    draw,
    events,
    held_out,
    jumble,
    kinds,
    make,
    things,
)

COMMON = """a an the this that these those it its it's he she they them his her their we us our i me my you your who
whom whose which what when where why how if then than and or but so as at by for from in into of off on onto out over
to up down with without under through until while after before is are was were be been being am do does did done doing
has have had will would shall should can could may might must not no n't never very too all any some each every more
most few such many much hasn't there here just still now again happen happens happened happening imagine suppose show
shows picture look looks looked get gets got gone go goes going went come comes came coming make makes made let lets
let's one ones someone something somebody anyone anything anybody everyone everything everybody nobody nothing thing
things only also once even ever about around against between because since let please inside near above i'm i'd i'll
i've don't doesn't didn't isn't aren't won't can't couldn't wouldn't what's that's there's who's where's here's he's
she's you're we're they're like put take""".split()


def stems(text):
    """The content words of a phrasing, cut to their stems."""
    words = re.findall(r"[a-z0-9']+", text.lower().replace("{what}", ""))
    return {re.sub(r"('s|ing|ed|er|ly|es|s|e)$", "", w) for w in words if w not in COMMON} - {""}


def test_its_size():
    pairs = {(k.event, k.thing) for k in kinds()}
    conditional = {(k.event, k.thing) for k in kinds() if k.conditional}
    assert len(CATEGORIES) >= 14 and len(things()) >= 24 and len(pairs) >= 90 and len(conditional) >= 20
    assert set(CATEGORIES) == set(events()) == {k.event for k in kinds()}
    assert set(DRAW) == set(things())
    assert all(sum(k.event == e for k in kinds()) >= 3 for e in CATEGORIES)


def test_the_same_words_end_otherwise_in_other_pictures():
    heat = {k.thing: k.end for k in kinds() if k.event == "heat"}
    assert heat["ice"] in ("puddle", "dry") and heat["chocolate"] == "melted" and heat["balloon"].startswith("popped")
    ends = {k.start: k.end for k in kinds() if (k.thing, k.event) == ("candle", "time")}
    assert ends == {"tall": "stump", "short": "spent"}


@pytest.mark.parametrize("name", things())
def test_the_states_of_a_thing_look_different_and_only_outcomes_are_said(name):
    thing = things()[name]
    ends = {end for outcomes in thing.starts.values() for end in outcomes.values()}
    assert set(thing.says) == ends
    scene = make("picture", 3, kind=next(k.name for k in kinds() if k.thing == name)).scene
    (placed,) = scene.placed
    drawn = {
        state: np.asarray(replace(scene, placed=(placed | {"state": state},)).render(64), dtype=int)
        for state in (*thing.starts, *thing.says)
    }
    for start, outcomes in thing.starts.items():
        assert len(set(outcomes.values()) - {start}) == len(set(outcomes.values()))  # something happens
        for a in (start, *outcomes.values()):
            for b in outcomes.values():
                if a != b:
                    assert (np.abs(drawn[a] - drawn[b]).max(-1) > 24).mean() > 0.008, (a, b)


@pytest.mark.parametrize("number", range(4))
def test_a_check_passes_the_target_and_nothing_else(number):
    for index, kind in list(enumerate(kinds()))[number::4]:
        s = make("picture", index, size=64, kind=kind.name)
        assert shows(s.target, s.scene, kind.event, s.on), kind
        assert not shows(s.source, s.scene, kind.event, s.on), kind
        after = s.scene.after(kind.event, s.on)
        others = [other for other in s.scene.outcomes() if other != after]
        for other in others:
            assert not shows(other.render(64), s.scene, kind.event, s.on), (kind, other)


def test_a_check_of_a_pair_wants_both_or_the_one_that_is_meant():
    seen = set()
    for index in range(40):
        s = make("pair", index, seed=1, size=64)
        assert len(s.scene.placed) == 2 or s.scene.setting == "sea" or not s.kind.local or not s.kind.named
        if len(s.scene.placed) == 2:
            seen.add(s.on)
        assert passes(s.target, s.kind.name, s.params)
        for number in s.on if len(s.on) == 2 else ():
            half = s.scene.after(s.kind.event, (number,))
            assert not passes(half.render(64), s.kind.name, s.params)
        if len(s.on) == 1 and s.scene.touched(s.kind.event) == (0, 1):
            both = s.scene.after(s.kind.event, (0, 1))
            assert not passes(both.render(64), s.kind.name, s.params)
    assert seen == {(0,), (1,), (0, 1)}


def test_a_washed_out_or_half_blended_edit_fails():
    s = make("picture", 11)
    half = (np.asarray(s.source, dtype=float) + np.asarray(s.target)) / 2
    assert not passes(Image.fromarray(half.astype(np.uint8)), s.kind.name, s.params)
    assert not passes(Image.new("RGB", s.source.size, "gray"), s.kind.name, s.params)


def test_what_is_not_meant_stays_the_same():
    for index in range(30):
        s = make("pair", index, seed=2, size=64)
        if len(s.scene.placed) == 2 and len(s.on) == 1:
            x = s.scene.placed[1 - s.on[0]]["x"]
            columns = slice(0, 20) if x < 50 else slice(44, 64)
            assert not s.mask[:, columns].any()


def test_the_same_arguments_give_the_same_record():
    a, b = make("train", 5, seed=3), make("train", 5, seed=3)
    assert a.record() == b.record() and a.source.tobytes() == b.source.tobytes()
    assert make("train", 6, seed=3).record() != a.record()
    again = Scene(**a.params["scene"] | {k: tuple(a.params["scene"][k]) for k in ("placed", "ornaments")})
    assert again == a.scene
    assert again.render().tobytes() == a.source.tobytes() and a.source.size == (128, 128)


def test_each_split_is_what_it_says():
    for index in range(60):
        words = {split: draw(split, index)[3] for split in SPLITS}
        kind = {split: draw(split, index)[1] for split in SPLITS}
        assert set(words["picture"]) == set(events()[kind["picture"].event]["generic"])
        assert kind["conditional"].conditional
        for held in ("paraphrase", "stranger"):
            assert set(words[held]) == set(events()[kind[held].event][held])
            assert not set(words[held]) & set(words["train"])
        scene = draw("compositional", index)[0]
        assert all(held_out(p["name"], p["color"], scene.background) for p in scene.placed)
        scene = draw("train", index)[0]
        assert not any(held_out(p["name"], p["color"], scene.background) for p in scene.placed)


def test_no_word_tells_which_of_two_states_is_shown():
    """Conditional kinds of one thing and event have the same wordings, and each start is as frequent as any other."""
    count = {}
    for index in range(2 * sum(k.conditional for k in kinds())):
        _, kind, _, texts = draw("conditional", index)
        assert not any("{" in text for text in texts)
        assert tuple(texts) == events()[kind.event]["generic"]
        count[kind] = count.get(kind, 0) + 1
    assert set(count.values()) == {2}


@pytest.mark.parametrize("event", CATEGORIES)
def test_words(event):
    lists = events()[event]
    assert len(lists["generic"]) >= 60 and len(lists["named"]) >= 15 and len(lists["stranger"]) >= 15
    flat = [text for texts in lists.values() for text in texts]
    assert len({text.lower() for text in flat}) == len(flat)
    assert all((text.count("{what}") == 1) == (text in lists["named"]) for text in flat)
    known = set().union(*(stems(text) for key in ("generic", "named") for text in lists[key]))
    for text in lists["stranger"]:
        assert not stems(text) & known, (text, stems(text) & known)
    for kind in (k for k in kinds() if k.event == event):
        for text in (*lists["generic"], *lists["paraphrase"], *lists["stranger"]):
            assert kind.thing not in re.findall(r"\w+", text.lower()), (kind.name, text)


def test_objects_and_outcome_are_those_of_what_changes():
    s = make("pair", 1, seed=4)
    for index in range(1, 60):
        s = make("pair", index, seed=4)
        if len(s.scene.placed) == 2 and len(s.on) == 2:
            break
    assert s.outcome.count(", and ") == 1 and len(s.objects) >= 2
    assert all("{" not in text and "#" not in text for text in (s.outcome, s.instruction, *s.objects))


def test_a_jumble_has_the_size_of_a_picture():
    assert jumble(np.random.default_rng(0)).size == (128, 128)
