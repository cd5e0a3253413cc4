"""What the records of both worlds of ReasonMini have in common."""

from __future__ import annotations

from typing import Any

import numpy as np


class DrawnSample:
    """The mask and the JSONL record of a sample with the attributes id, kind, instruction, source, target, outcome,
    objects, params and scene_name."""

    @property
    def mask(self: Any) -> np.ndarray:
        """[size, size] bool: where source and target differ by more than 2 of 255 in any channel."""
        a, b = (np.asarray(i, dtype=np.int16) for i in (self.source, self.target))
        return np.abs(a - b).max(-1) > 2

    def record(self: Any) -> dict[str, Any]:
        """The JSONL record (Reason50K's fields, then ReasonMini's own); paths are relative to the manifest."""
        return {
            "id": self.id,
            "category": self.kind.category,
            "src_image": f"images/{self.id}_src.png",
            "tgt_image": f"images/{self.id}_tgt.png",
            "instruction": self.instruction,
            "target_caption": self.outcome,
            "objects": self.objects,
            "mask": f"masks/{self.id}.png",
            "scene": self.scene_name,
            "kind": self.kind.name,
            "params": self.params,
        }
