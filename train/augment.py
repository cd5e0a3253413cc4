"""Text augmentation of training instructions: ``data.augment``."""

from __future__ import annotations

import numpy as np

from reasonbrain.config.schema import AugmentConfig


def augment(text: str, cfg: AugmentConfig, vocabulary: np.ndarray, rng: np.random.Generator) -> str:
    """Drops or replaces random words of ``text`` with probability ``cfg.share``.

    Replacements are drawn from ``vocabulary``. A text that would lose all its words is returned unchanged.
    """
    if rng.random() < 1 - cfg.share:
        return text
    words = []
    for word in text.split():
        draw = rng.random()
        if draw < cfg.drop:
            continue
        words.append(str(rng.choice(vocabulary)) if draw < cfg.drop + cfg.replace else word)
    return " ".join(words) or text
