"""Writes what `make tiny` trained as the embedded default.

    python -m reasonbrain.train.tiny.publish runs/tiny configs/tiny

The whole model goes into the folder in half precision; parts/ gets what the first three stages made, from which
`reasonbrain train --config tiny` starts.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from reasonbrain import ReasonBrainPipeline

PARTS = ("vae", "clip", "mllm")


def main() -> None:
    """Writes the trained model in half precision: the command line of this module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    pipe = ReasonBrainPipeline.from_pretrained(args.run / "edit")
    shutil.rmtree(args.folder, ignore_errors=True)
    pipe.save_pretrained(args.folder, dtype=torch.float16)
    for part in PARTS:
        unneeded = shutil.ignore_patterns("checkpoints", "log.jsonl")
        shutil.copytree(args.run / part, args.folder / "parts" / part, ignore=unneeded)
    size = sum(f.stat().st_size for f in args.folder.rglob("*") if f.is_file())
    print(f"{args.folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
