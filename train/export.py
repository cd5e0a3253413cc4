"""Makes a checkpoint that editing takes of a run's last one: what did not train as it was published, the rest from
the run. Needs neither the processes nor the devices of the run.

    reasonbrain export RUN -o DIR                 # all weights, LoRA adapters beside those that they adapt
    reasonbrain export RUN -o DIR --merged        # all weights, adapters added to them
    reasonbrain export RUN -o DIR --adapters      # without what is published elsewhere
"""

from __future__ import annotations

from pathlib import Path

from peft.tuners.tuners_utils import BaseTunerLayer

from reasonbrain.checkpoint import save_model
from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import Config, slot_config
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.registry import SLOTS
from reasonbrain.train import checkpoints
from reasonbrain.train.building import build
from reasonbrain.utils.files import check_replaceable, whole_folder


def merge_adapters(model: ReasonBrain, cfg: Config) -> None:
    """Adds every LoRA adapter to the weight that it adapts and takes it away, in the model and in its configuration.
    The sum is rounded to the weight's own precision.

    Raises UserError for a weight in 4 bits, and for an MLLM whose sentence, said without them, is read."""
    for slot in SLOTS:
        part, params = model.slot(slot), slot_config(cfg.model, slot)
        if part is None or params is None:
            continue
        layers = {name: m for name, m in part.named_modules() if isinstance(m, BaseTunerLayer)}
        if layers and slot == "mllm" and model.reads_sentence:
            raise UserError(
                "model.encoders: its text is the sentence that the MLLM generates without its adapters; "
                "export without --merged"
            )
        for name, layer in layers.items():
            base = layer.get_base_layer()
            if not base.weight.is_floating_point():
                raise UserError(
                    f"model.{slot}: its weights are held in 4 bits, which would round merged adapters away; "
                    f"export without --merged, or with --adapters"
                )
            layer.merge()
            part.set_submodule(name, base)
        if layers:
            params.update(part.without_adapters)
            part.register_to_config(**part.without_adapters)


def export(run: Path, out: Path, average: bool = True, merged: bool = False, adapters: bool = False) -> None:
    """Writes the run's last checkpoint to ``out``, replacing one that was written there before. ``average``: the
    averaged weights, not the last ones. ``merged``: with LoRA adapters merged. ``adapters``: without the published
    weights.

    Raises UserError for a folder that is no run or has no checkpoint yet, for an ``out`` that holds anything else
    (see ``whole_folder``), and for adapters that cannot be merged."""
    if merged and adapters:
        raise UserError("--merged and --adapters exclude each other; choose one")
    if not (run / "config.yaml").is_file():
        raise UserError(f"run '{run}' has no config.yaml: it is not a folder that `reasonbrain train` made")
    check_replaceable(out)
    folder = checkpoints.last(run)
    if folder is None:
        raise UserError(f"run '{run}' has no checkpoint yet")
    cfg = load_config(str(run / "config.yaml"))
    model = build(cfg).eval()
    wanted = "average" if average else "param"
    for what, name, value in checkpoints.read(folder):
        if what == wanted:
            model.get_parameter(name).data.copy_(value)
    if merged:
        merge_adapters(model, cfg)
    with whole_folder(out, last="config.yaml") as new:
        save_model(model, cfg, new, trained_only=adapters)
