"""Edits every record of a manifest with the embedded default and writes the results. ``record.py`` starts it.

python tests/golden/edits.py MANIFEST OUT    # OUT/edits.json, and one picture per record
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from reasonbrain import ReasonBrainPipeline

ALONE, BATCH = 3, 10  # the first records one at a time, the others in batches


def sha(*parts: str | bytes) -> str:
    """A short hash of texts and bytes."""
    return hashlib.sha256(b"\0".join(p.encode() if isinstance(p, str) else p for p in parts)).hexdigest()[:24]


def sha_array(array: np.ndarray | None) -> str | None:
    """A hash of type, shape and bytes."""
    return None if array is None else sha(str(array.dtype), str(array.shape), np.ascontiguousarray(array).tobytes())


def main(manifest: Path, out: Path) -> None:
    """Calls the pipeline once per batch, always with seed 7, with objects found by the pipeline and sentences."""
    records = [json.loads(line) for line in manifest.read_text().splitlines()]
    pipe = ReasonBrainPipeline.from_pretrained("tiny")
    pipe.set_progress_bar_config(disable=True)
    batches = [[r] for r in records[:ALONE]]
    batches += [records[i : i + BATCH] for i in range(ALONE, len(records), BATCH)]
    values = {}
    for batch in batches:
        sources = [Image.open(manifest.parent / r["src_image"]).convert("RGB") for r in batch]
        texts = [r["instruction"] for r in batch]
        made = pipe(sources, texts, generator=torch.Generator().manual_seed(7), reasoning=True)
        for i, r in enumerate(batch):
            made.images[i].save(out / f"{r['kind']}.png")
            values[r["kind"]] = {
                "instruction": r["instruction"],
                "objects": made.objects[i],
                "reasoning": made.reasoning[i],
                "regions sha": sha_array(made.regions[i]),
                "focus sha": sha_array(made.focus[i]),
            }
    (out / "edits.json").write_text(json.dumps(values))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
