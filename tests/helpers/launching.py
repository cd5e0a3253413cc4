"""Helpers for tests of real launches: launching two processes, and reading the files of a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

from reasonbrain.train import checkpoints

ROOT = Path(__file__).parents[2]
ZERO = ROOT / "configs" / "deepspeed"
QUICK = ["data.count=8", "train.batch_size=8", "train.micro_batch=2", "train.warmup=3", "train.log_every=1"]
QUICK += ["train.save_every=3", "train.keep=100", "train.optimizer=adamw"]


def launch(*args, launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"), env=(), cwd=ROOT):
    env = {**os.environ, **dict(env), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *launcher, *map(str, args)], env=env, capture_output=True, text=True, timeout=600, cwd=cwd
    )


def zero(stage, run, *overrides):
    """Two processes."""
    done = launch(
        "train/train.py", "--config", "tiny", "--deepspeed", ZERO / f"zero{stage}.json", "-o", run, *overrides
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count(str(run / "model")) == 1


def logged(run, name):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line[name] for line in lines if name in line]


def losses(run):
    return logged(run, "loss")


def state(run):
    return {f"{what}/{name}": value for what, name, value in checkpoints.read(checkpoints.last(run))}
