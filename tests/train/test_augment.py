"""Random changes of training instructions: what the tiny preset's share, drop and replace do to a text."""

import numpy as np

from reasonbrain.config.loading import load_config
from reasonbrain.train.tiny.batches import AUGMENT, augment


def test_augment_changes_half_of_the_texts_a_little():
    text = "what would happen if the tall red candle were left to burn for many hours"
    rng = np.random.default_rng(0)
    texts = [augment(text, rng) for _ in range(200)]
    changed = [t for t in texts if t != text]
    assert 40 < len(changed) < 120
    assert all(t and len(t.split()) <= len(text.split()) for t in texts)
    kept = np.mean([len(set(t.split()) & set(text.split())) / len(set(text.split())) for t in changed])
    assert 0.75 < kept < 1


def test_the_stages_of_the_embedded_default_augment_as_its_preset_says():
    assert load_config("tiny").data.augment == AUGMENT
