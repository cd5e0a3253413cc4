"""ReasonMini, the small world with known truth: see ``world`` for what it is, ``scenes/`` for what happens in it."""

from reasonbrain.modules.data.reasonmini.dataset import ReasonMini
from reasonbrain.modules.data.reasonmini.world import (
    CATEGORIES,
    SPLITS,
    Kind,
    Sample,
    Scene,
    find_kind,
    kinds,
    make,
    scenes,
)

__all__ = ["CATEGORIES", "SPLITS", "Kind", "ReasonMini", "Sample", "Scene", "find_kind", "kinds", "make", "scenes"]
