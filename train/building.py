"""Builds the model that a training run starts from.

model = build(load_config("tiny"))            # from published weights, or from the checkpoint train.start
reasonbrain init --config CONFIG -o DIR       # writes such a checkpoint
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch
from diffusers.models.modeling_utils import no_init_weights

from reasonbrain.checkpoint import check_same_model, find_settings, load_model, partition_all, save_untrained
from reasonbrain.config.schema import Config
from reasonbrain.editing.batch.identity import model_hash
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.plugin_folder import Partition
from reasonbrain.utils.files import check_replaceable, whole_file, whole_folder

START = "start.json"  # of a run: what its initial weights were

log = logging.getLogger(__name__)


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


def initial_hash(cfg: Config) -> str | None:
    """A hash of the folders that ``build`` reads weights from; None: there are none. Raises UserError like
    ``find_settings`` and ``model_hash``."""
    folder, made = find_settings(cfg.train.start, (), None) if cfg.train.start else (None, cfg)
    return model_hash(folder, made.model)


def note_start(cfg: Config, run: Path) -> None:
    """Writes ``initial_hash`` to RUN/start.json when the run starts. Later, logs if it is another one: checkpoints hold
    trained weights alone, and frozen ones are read from these folders again."""
    now = {"weights": initial_hash(cfg)}
    try:
        then = json.loads((run / START).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a run that starts, was started by an earlier version, or lost it in a power failure
        with whole_file(run / START) as file:
            json.dump(now, file)
        return
    if then != now:
        log.warning(
            f"{run}: the weights in train.start, or in folders of published weights, are not those that the run was "
            f"started with; its frozen weights are read from there"
        )


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
