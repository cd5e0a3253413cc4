"""The model that a training run starts from.

model = build(load_config("tiny"))            # from published parts, or from the checkpoint train.start
reasonbrain init --config CONFIG -o DIR       # writes such a checkpoint
"""

from __future__ import annotations

from pathlib import Path

import torch

from reasonbrain.checkpoint import Partition, check_same_model, load_model, partition_all, save_untrained
from reasonbrain.config.schema import Config
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.utils.files import check_replaceable, whole_folder


def build(cfg: Config, partition: Partition | None = None) -> ReasonBrain:
    """The model as a run starts from it: the checkpoint ``train.start``, or published parts, and what has none drawn
    from ``train.seed``.

    ``partition`` is called with every parameter of a slot, except those that only prepare records, as soon as it is
    loaded: one after the other from a checkpoint, otherwise all of a slot at once. Raises UserError for weights that
    cannot be loaded, and for a checkpoint of another model."""
    if cfg.train.start:
        model, made = load_model(cfg.train.start, partition=partition)
        check_same_model(cfg, made, Path(cfg.train.start))
        return model
    torch.manual_seed(cfg.train.seed)
    return ReasonBrain.from_config(cfg.model, made=lambda _, part: partition_all(part, partition))


def without_weights(cfg: Config) -> ReasonBrain:
    """The model on the meta device. Raises UserError for a published part whose architecture is neither in its folder
    nor kept here."""
    with torch.device("meta"):
        return ReasonBrain.from_config(cfg.model, weights=False)


def init(cfg: Config, out: Path) -> None:
    """Writes the model that a training of ``cfg`` starts from to ``out``, for ``train.start``: published parts and what
    is new in one layout, which many processes read a tensor at a time.

    Raises UserError for published weights that cannot be had, and for a folder that is not empty."""
    if check_replaceable(out):
        raise UserError(f"output '{out}' is not empty: name a new or an empty folder")
    torch.manual_seed(cfg.train.seed)
    with whole_folder(out, last="config.yaml") as new:
        save_untrained(cfg, new)
