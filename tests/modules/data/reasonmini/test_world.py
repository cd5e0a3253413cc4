"""ReasonMini's records: reproducible, with disjoint splits, balanced, and with distractors clear of the scene."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import product

import numpy as np
import pytest

from reasonbrain.modules.data.reasonmini import world
from reasonbrain.modules.data.reasonmini.world import (
    BACKGROUNDS,
    CATEGORIES,
    SPLITS,
    Kind,
    held_out,
    kinds,
    make,
    sample_params,
    scenes,
)

COUNT = len(kinds())
SCENES = [pytest.param(s, id=s.name) for s in scenes().values()]


def fingerprint() -> str:
    """A hash of everything in a few records of every split."""
    digest = hashlib.sha256()
    for split, index in product(SPLITS, range(0, 2 * COUNT, 3)):
        sample = make(split, index, seed=5)
        digest.update(json.dumps(sample.record()).encode())
        for part in (sample.source, sample.target, sample.mask):
            digest.update(np.asarray(part).tobytes())
    return digest.hexdigest()


def combination(sample):
    return sample.scene.name, sample.params["color"], sample.params["background"]


def said(kind, templates):
    """The templates filled in with every colour of the kind's scene."""
    scene = next(s for s, k in kinds() if k is kind)
    return {t.format(color=c) for t in templates for c in scene.colors}


def test_the_same_seed_gives_the_same_records_in_any_process():
    program = f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); import test_world as t"
    other = subprocess.run(
        [sys.executable, "-c", f"{program}; print(t.fingerprint())"],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout.strip() == fingerprint() == fingerprint()


def test_another_seed_split_or_index_gives_another_record():
    # records 0 and COUNT have the same kind, so they can differ in their parameters only
    places = list(product(("train", "val", "test", "paraphrase"), (0, 1), (0, COUNT)))
    seen = {json.dumps(make(split, index, seed).params) for split, seed, index in places}
    ids = {make(split, index, seed).id for split, seed, index in places}
    assert len(seen) == len(ids) == len(places)


def test_a_size_draws_the_same_record():
    small, large = make("test", 4), make("test", 4, size=128)
    assert small.record() == large.record()
    assert (small.source.size, large.source.size) == ((64, 64), (128, 128))


def test_paraphrases_are_never_trained_on():
    trained = set().union(*(said(k, k.phrasings) for _, k in kinds()))
    held = set().union(*(said(k, k.paraphrases) for _, k in kinds()))
    assert not trained & held
    for split in SPLITS:
        instructions = {make(split, i).instruction for i in range(3 * COUNT)}
        assert instructions <= (held if split == "paraphrase" else trained), split
        assert len(instructions) > COUNT, "records of a kind always say the same"


def test_every_phrasing_occurs():
    kind = kinds()[0][1]
    shown = {make("train", i, kind=kind.name).instruction for i in range(200)}
    assert all(said(kind, [t]) & shown for t in kind.phrasings)


@pytest.mark.parametrize("scene", SCENES)
def test_combinations_are_held_out_but_their_parts_are_not(scene):
    """Every colour and every background occurs in training, but some pairs of them never do."""
    pairs = set(product(scene.colors, BACKGROUNDS))
    held = {(c, b) for c, b in pairs if held_out(scene.name, c, b)}
    assert held, "the compositional split has nothing to show"
    trained = pairs - held
    assert {c for c, _ in trained} == set(scene.colors)
    assert {b for _, b in trained} == set(BACKGROUNDS)

    rng = np.random.default_rng(0)
    for compositional, allowed in ((False, trained), (True, held)):
        draws = [sample_params(scene, rng, compositional) for _ in range(120)]
        assert {(p["color"], p["background"]) for p in draws} <= allowed


def test_only_the_compositional_split_shows_held_out_combinations():
    shown = {split: {combination(make(split, i)) for i in range(4 * COUNT)} for split in SPLITS}
    for split in set(SPLITS) - {"compositional"}:
        assert not shown["compositional"] & shown[split], split
        assert not any(held_out(*c) for c in shown[split])
    assert all(held_out(*c) for c in shown["compositional"])


@pytest.mark.parametrize("scene", [s for s in scenes().values() if len(s.kinds) > 1], ids=lambda s: s.name)
def test_the_picture_alone_does_not_determine_the_edit(scene):
    """Kinds of one scene have the same sources and different targets."""
    for index in range(5):
        samples = [make("test", index, kind=k.name) for k in scene.kinds]
        assert len({s.source.tobytes() for s in samples}) == 1
        assert len({s.target.tobytes() for s in samples}) == len(samples)
        assert len({s.instruction for s in samples}) == len(samples)


@pytest.mark.parametrize("start", [0, 17])
def test_any_hundred_records_in_a_row_are_balanced(start):
    counts = Counter(make("train", i).kind.name for i in range(start, start + 100))
    assert len(counts) == COUNT
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("scene", SCENES)
def test_distractors_are_outside_the_zone(scene):
    rng = np.random.default_rng(3)
    for _ in range(60):
        p = sample_params(scene, rng)
        assert len(p["distractors"]) <= 2
        with_them, without = (np.asarray(scene.render(q), dtype=np.int16) for q in (p, {**p, "distractors": []}))
        touched = (with_them != without).any(-1)
        x0, y0, x1, y1 = scene.zone(p)
        rows, columns = (slice(max(round(64 * a), 0), round(64 * b)) for a, b in ((y0, y1), (x0, x1)))
        assert not touched[rows, columns].any(), "a distractor lies in the zone"
        for d in p["distractors"]:
            alone = np.asarray(scene.render({**p, "distractors": [d]}), dtype=np.int16)
            assert ((alone != without).any(-1) <= touched).all()
            assert (alone != without).any(), "a distractor cannot be seen"
        if len(p["distractors"]) == 2:
            first, second = (np.asarray(scene.render({**p, "distractors": [d]})) != without for d in p["distractors"])
            assert not (first.any(-1) & second.any(-1)).any(), "distractors overlap"


def test_distractors_occur_and_stay_unchanged():
    with_distractors = [s for s in (make("train", i) for i in range(2 * COUNT)) if s.params["distractors"]]
    assert len(with_distractors) > COUNT / 2
    for sample in with_distractors:
        bare = {**sample.params, "distractors": []}
        source, target = np.asarray(sample.source), np.asarray(sample.target)
        where = (source != np.asarray(sample.scene.render(bare))).any(-1)
        assert np.array_equal(source[where], target[where])


@pytest.mark.parametrize("index", range(COUNT))
def test_record_fields(index):
    sample = make("val", index, seed=2)
    record = sample.record()
    assert json.loads(json.dumps(record)) == record
    assert record["id"] == f"val-2-{index:06d}"
    assert record["src_image"] == f"images/{record['id']}_src.png"
    assert record["tgt_image"] == f"images/{record['id']}_tgt.png"
    assert record["mask"] == f"masks/{record['id']}.png"
    assert record["category"] in CATEGORIES
    assert (record["scene"], record["kind"]) == (kinds()[index][0].name, kinds()[index][1].name)
    assert record["params"]["background"] in BACKGROUNDS
    assert "state" not in record["params"], "the source's parameters, not the outcome's"
    words = [record["instruction"], record["target_caption"], *record["objects"]]
    assert all(w and "{" not in w for w in words)


@pytest.mark.parametrize("kind", [k.name for _, k in kinds()])
def test_the_narration(kind):
    """One sentence each on what is seen, what is asked, the outcome, and what stays, which the pixels confirm."""
    for index in range(4):
        s = make("paraphrase", index, kind=kind)
        seen, asked, happens, *rest = re.split(r"(?<=\.) ", s.narration)
        assert all(thing in seen for thing in s.objects)
        assert asked in [p.format(**s.params) for p in s.kind.phrasings] and asked != s.instruction
        assert happens.lower() == f"{s.outcome}."
        stays = " ".join(rest)
        assert all(f"{d['color']} {d['shape']}" in stays for d in s.params["distractors"])
        corner = np.asarray(s.source)[:8] == np.asarray(s.target)[:8]
        assert (f"{s.params['background']} background" in stays) == (corner.mean() > 0.5), s.narration


def test_the_mask_is_where_the_pictures_differ():
    for index in range(COUNT):
        sample = make("test", index)
        source, target = (np.asarray(i, dtype=int) for i in (sample.source, sample.target))
        assert sample.mask.shape == (64, 64) and sample.mask.any()
        assert (np.abs(source - target)[~sample.mask] <= 2).all()
        assert (np.abs(source - target)[sample.mask].max(-1) > 2).all()


def test_the_words_belong_to_the_kinds():
    assert set(world._words()) == {k.name for _, k in kinds()}
    for name, words in world._words().items():
        assert set(words) == {"objects", "outcome", "phrasings", "paraphrases"}, name
    with pytest.raises(KeyError, match="candle_sings"):
        Kind("candle_sings", "story", dict, lambda look, p: True)
