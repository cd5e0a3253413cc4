"""Builds the model that a training run starts from.

model = build(load_config("tiny"))            # from published weights, or from the checkpoint train.start
reasonbrain init --config CONFIG -o DIR       # writes such a checkpoint
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.modeling_utils import no_init_weights

from reasonbrain.checkpoint import check_same_model, load_model, partition_all, save_untrained
from reasonbrain.config.schema import Config
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.plugin_folder import Partition
from reasonbrain.utils.files import check_replaceable, whole_folder


def build(cfg: Config, partition: Partition | None = None) -> ReasonBrain:
    """Builds the initial model of a run from the checkpoint ``train.start``, or from published weights.

    Without a checkpoint, parameters that have no published weights are initialised from ``train.seed``.

    Args:
        cfg: the run's configuration
        partition: called with each parameter once it is loaded, except those that only prepare records: one parameter
            at a time from a checkpoint, otherwise one slot at a time

    Raises:
        UserError: if weights cannot be loaded, or ``train.start`` is a checkpoint of another model
    """
    if cfg.train.start:
        model, made = load_model(cfg.train.start, partition=partition)
        check_same_model(cfg, made, Path(cfg.train.start))
        return model
    torch.manual_seed(cfg.train.seed)
    return ReasonBrain.from_config(cfg.model, made=lambda _, part: partition_all(part, partition))


def without_weights(cfg: Config) -> ReasonBrain:
    """Builds the model on the meta device.

    Raises UserError if the architecture of a published model is neither in its folder nor bundled in configs/.
    """
    with torch.device("meta"), no_init_weights():
        return ReasonBrain.from_config(cfg.model, weights=False)


def init(cfg: Config, out: Path) -> None:
    """Writes the initial model of ``cfg`` to ``out``, to be used as ``train.start``.

    Published and newly initialised weights are stored in one layout that processes can read one tensor at a time.
    Raises UserError if published weights cannot be loaded, or if ``out`` is not empty.
    """
    if check_replaceable(out):
        raise UserError(f"output '{out}' is not empty; choose a new or an empty folder")
    torch.manual_seed(cfg.train.seed)
    with whole_folder(out, last="config.yaml") as new:
        save_untrained(cfg, new)
