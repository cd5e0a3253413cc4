"""Every kind of ReasonMini: its check accepts the target, and rejects the source and other outcomes."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFilter

from reasonbrain.modules.data.reasonmini.canvas import Look
from reasonbrain.modules.data.reasonmini.world import CATEGORIES, kinds, sample_params

DRAWS = 25
ALL = [pytest.param(s, k, id=k.name) for s, k in kinds()]


def draws(scene):
    rng = np.random.default_rng(zlib_seed(scene.name))
    return [sample_params(scene, rng, compositional=i % 5 == 4) for i in range(DRAWS)]


def zlib_seed(name):
    return sum(name.encode()) * 7919


@pytest.mark.parametrize("scene, kind", ALL)
def test_check_accepts_only_the_target(scene, kind):
    for p in draws(scene):
        before = json.dumps(p, sort_keys=True)
        target = scene.render(kind.after(p))
        assert json.dumps(p, sort_keys=True) == before, "after() must not change its argument"
        assert kind.check(Look(target), p), f"refuses the true target: {p}"
        assert not kind.check(Look(scene.render(p)), p), f"accepts the untouched source: {p}"
        for other in scene.kinds:
            if other is not kind:
                assert not kind.check(Look(scene.render(other.after(p))), p), f"accepts {other.name}: {p}"
        for grey in (0, 127, 255):
            assert not kind.check(Look(Image.new("RGB", (64, 64), (grey,) * 3)), p), "accepts a blank picture"


@pytest.mark.parametrize("scene, kind", ALL)
def test_check_tolerates_slight_blur_and_noise(scene, kind):
    """An autoencoder's artefacts must not make a correct outcome fail."""
    rng = np.random.default_rng(0)
    for p in draws(scene):
        soft = np.asarray(scene.render(kind.after(p)).filter(ImageFilter.GaussianBlur(0.6)), dtype=np.float64)
        noisy = np.clip(soft + rng.normal(0, 8, soft.shape), 0, 255).astype(np.uint8)
        assert kind.check(Look(Image.fromarray(noisy)), p)


@pytest.mark.parametrize("scene, kind", ALL)
def test_checks_hold_at_another_resolution(scene, kind):
    for p in draws(scene)[:5]:
        assert kind.check(Look(scene.render(kind.after(p), 128)), p)
        assert not kind.check(Look(scene.render(p, 128)), p)


@pytest.mark.parametrize("scene, kind", ALL)
def test_the_outcome_is_deterministic_and_visible(scene, kind):
    for p in draws(scene)[:8]:
        source, target = (np.asarray(scene.render(q), dtype=np.int16) for q in (p, kind.after(p)))
        assert np.array_equal(target, np.asarray(scene.render(kind.after(p))))
        changed = np.abs(source - target).max(-1) > 40
        assert changed.mean() > 0.008, "fewer than 33 of 4096 pixels change clearly"
        x0, y0, x1, y1 = scene.zone(p)
        outside = np.ones_like(changed)
        outside[int(y0 * 64) : int(np.ceil(y1 * 64)) + 1, int(x0 * 64) : int(np.ceil(x1 * 64)) + 1] = False
        assert not (changed & outside).any(), "something changes outside the zone"


@pytest.mark.parametrize("scene, kind", ALL)
def test_words(scene, kind):
    assert kind.category in CATEGORIES
    assert len(set(kind.phrasings)) == len(kind.phrasings) >= 12
    assert len(set(kind.paraphrases)) == len(kind.paraphrases) >= 4
    assert not set(kind.phrasings) & set(kind.paraphrases)
    assert 1 <= len(kind.objects) <= 4
    for p in draws(scene)[:3]:
        for text in (*kind.phrasings, *kind.paraphrases, kind.outcome, *kind.objects):
            assert 0 < len(text.format(**p).split()) <= 22
            assert text.format(**p) == text.format(**p).strip()


def test_the_world_is_large_enough():
    per_category = Counter(k.category for _, k in kinds())
    assert len(kinds()) >= 24
    assert all(per_category[c] >= 6 for c in CATEGORIES), per_category
    names = [k.name for _, k in kinds()]
    assert len(set(names)) == len(names)
    assert sum(len(s.kinds) > 1 for s in {s.name: s for s, _ in kinds()}.values()) >= 8
