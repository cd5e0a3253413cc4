"""Publishes the models trained by `make tiny` as the embedded default.

    python -m reasonbrain.train.tiny.publish runs/tiny configs/tiny

The full model is written to the folder in half precision. parts/ holds the models of the first three stages, from which
`reasonbrain train --config tiny` starts.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from reasonbrain import ReasonBrainPipeline
from reasonbrain.checkpoint import slot_folder
from reasonbrain.registry import SLOTS

PARTS = ("vae", "clip", "mllm")


def main() -> None:
    """Writes the trained model in half precision: the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    pipe = ReasonBrainPipeline.from_pretrained(args.run / "edit")
    for part in ("parts", *(slot_folder(Path(), slot) for slot in SLOTS)):  # of the default published before
        shutil.rmtree(args.folder / part, ignore_errors=True)
    pipe.save_pretrained(args.folder, dtype=torch.float16)
    for part in PARTS:
        unneeded = shutil.ignore_patterns("checkpoints", "log.jsonl")
        shutil.copytree(args.run / part, args.folder / "parts" / part, ignore=unneeded)
    size = sum(f.stat().st_size for f in args.folder.rglob("*") if f.is_file())
    print(f"{args.folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
