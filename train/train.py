"""Launch script for torchrun and deepspeed, equivalent to `reasonbrain train`. The training is in run.py.

torchrun --nproc_per_node 2 train/train.py --config tiny -o RUN
deepspeed train/train.py --config CONFIG --deepspeed configs/deepspeed/zero3.json -o RUN
"""

from __future__ import annotations

import sys

from reasonbrain.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
