"""ReasonMini, a small procedural data set with known ground truth, defined in ``world`` and ``scenes/``."""

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
