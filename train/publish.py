"""Writes a training run's model as the embedded default: half precision, a folder that stands alone.

python -m reasonbrain.train.publish runs/tiny/edit configs/tiny
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

from reasonbrain import ReasonBrainPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    pipe = ReasonBrainPipeline.from_pretrained(args.run)
    shutil.rmtree(args.folder, ignore_errors=True)
    pipe.save_pretrained(args.folder, dtype=torch.float16)
    size = sum(f.stat().st_size for f in args.folder.rglob("*") if f.is_file())
    print(f"{args.folder}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
