"""Makes a checkpoint that editing takes of a run's last one: what did not train as it was published, the rest from
the run. Needs neither the processes nor the devices of the run.

    reasonbrain export RUN -o DIR
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from reasonbrain.checkpoint import save_model
from reasonbrain.config import Config, load_config
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.train import checkpoints


def build(cfg: Config) -> ReasonBrain:
    """The model as a run starts from it; what has no published weights is drawn from ``train.seed``."""
    torch.manual_seed(cfg.train.seed)
    return ReasonBrain.from_config(cfg.model)


def export(run: Path, out: Path, average: bool = True) -> None:
    """Writes the run's last checkpoint to ``out``, in the place of one that is there; ``average``: the averaged
    weights, not the last ones.

    Raises UserError for a folder that is no run or has no checkpoint yet, and for one that is in the way of ``out``."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"run '{run}' has no config.yaml: it is not a folder that `reasonbrain train` made")
    if out.exists() and any(out.iterdir()) and not (out / "config.yaml").is_file():
        raise UserError(f"output '{out}' is neither empty nor a checkpoint")
    folder = checkpoints.last(run)
    if folder is None:
        raise UserError(f"run '{run}' has no checkpoint yet")
    cfg = load_config(str(run / "config.yaml"))
    model = build(cfg).eval()
    wanted = "average" if average else "param"
    for what, name, value in checkpoints.read(folder):
        if what == wanted:
            model.get_parameter(name).data.copy_(value)
    new = out.with_name(out.name + ".new")
    shutil.rmtree(new, ignore_errors=True)
    save_model(model, cfg, new)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(new, out)
