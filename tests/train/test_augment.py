"""Random changes of training instructions: what the tiny preset's share, drop and replace do to a text."""

import numpy as np
import pytest

from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import AugmentConfig
from reasonbrain.train.augment import augment as train_augment
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


def test_words_are_dropped_and_replaced_in_the_given_shares():
    cfg = AugmentConfig(share=1, drop=0.2, replace=0.3)
    words = [f"w{i}" for i in range(5000)]
    found = train_augment(" ".join(words), cfg, np.array(["new"]), np.random.default_rng(0)).split()
    kept = [word for word in found if word != "new"]
    assert found.count("new") / 5000 == pytest.approx(0.3, abs=0.03)
    assert len(kept) / 5000 == pytest.approx(0.5, abs=0.03) and kept == sorted(kept, key=lambda w: int(w[1:]))
    never = AugmentConfig(share=0, drop=1, replace=0)
    assert train_augment("a b", never, np.array(["new"]), np.random.default_rng(0)) == "a b"


def test_the_stages_of_the_embedded_default_augment_as_its_preset_says():
    assert load_config("tiny").data.augment == AUGMENT
