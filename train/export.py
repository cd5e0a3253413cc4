"""Exports the last checkpoint of a run for inference: trained weights from the run, frozen weights as published.

It runs in one process, on any device.

    reasonbrain export RUN -o DIR                 # all weights, with separate LoRA adapters
    reasonbrain export RUN -o DIR --merged        # all weights, with LoRA adapters merged
    reasonbrain export RUN -o DIR --adapters      # trained weights only, without the published ones
    reasonbrain export RUN -o DIR --lora          # FLUX's LoRA alone, for diffusers and ComfyUI
"""

from __future__ import annotations

from pathlib import Path

from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE
from peft.tuners.tuners_utils import BaseTunerLayer

from reasonbrain.checkpoint import save_model
from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import Config, slot_config
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain
from reasonbrain.registry import SLOTS
from reasonbrain.train import checkpoints
from reasonbrain.train.building import START, build, note_start
from reasonbrain.utils.files import check_replaceable, whole_folder


def merge_adapters(model: ReasonBrain, cfg: Config) -> None:
    """Merges all LoRA adapters into their base weights, in place, and removes them from the model and from ``cfg``.

    The result is rounded to the precision of the base weight. Raises UserError for 4-bit weights, and for an MLLM whose
    generated sentence is encoded, since it is generated without adapters.
    """
    for slot in SLOTS:
        part, params = model.slot(slot), slot_config(cfg.model, slot)
        if part is None or params is None:
            continue
        layers = {name: m for name, m in part.named_modules() if isinstance(m, BaseTunerLayer)}
        if layers and slot == "mllm" and model.reads_sentence and not part.reads_sentence:
            raise UserError(
                "model.mllm: its sentence is read, which it generates without its adapters; export without --merged"
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


def _read_last(model: ReasonBrain, run: Path, wanted: str) -> None:
    """Copies the ``wanted`` tensors of the run's last checkpoint into the model."""
    while True:
        folder = checkpoints.last(run)
        assert folder  # ``export`` has checked that there is one
        try:
            for what, name, value in checkpoints.read(folder):
                if what == wanted:
                    model.get_parameter(name).data.copy_(value)
            return
        except FileNotFoundError:  # the run goes on, and has removed it
            continue


def export(
    run: Path, out: Path, average: bool = True, merged: bool = False, adapters: bool = False, lora: bool = False
) -> None:
    """Exports the last checkpoint of ``run`` to ``out``, replacing one that was exported there before.

    Args:
        run: folder of the training run
        out: folder to write
        average: export the averaged weights instead of the last ones
        merged: merge LoRA adapters into the weights
        adapters: leave out published weights
        lora: export the diffusion model's LoRA alone, as its ``save_lora_weights`` writes it

    Raises:
        UserError: if ``run`` is not a run or has no checkpoint, ``out`` holds anything else (see
            ``whole_folder``), or adapters cannot be merged
    """
    if merged + adapters + lora > 1:
        raise UserError("--merged, --adapters and --lora exclude each other; choose one")
    if (run / "stages").is_dir() and not (run / "config.yaml").is_file():
        raise UserError(f"run '{run}' has not reached its last stage; export one of those in {run / 'stages'}")
    if not (run / "config.yaml").is_file():
        raise UserError(f"run '{run}' has no config.yaml: it was not made by `reasonbrain train`")
    check_replaceable(out)
    if not checkpoints.complete(run):
        raise UserError(f"run '{run}' has no checkpoint yet")
    cfg = load_config(str(run / "config.yaml"))
    if (run / START).is_file():  # otherwise it would be written, and a run may be on a read-only disk
        note_start(cfg, run)
    model = build(cfg).eval()
    _read_last(model, run, "average" if average else "param")
    if merged:
        merge_adapters(model, cfg)
    if lora:
        if not hasattr(diffusion := model.slot("diffusion"), "save_lora_weights"):
            raise UserError("model.diffusion: it has no LoRA adapters; export without --lora")
        with whole_folder(out, last=LORA_WEIGHT_NAME_SAFE) as new:
            diffusion.save_lora_weights(new)  # type: ignore[union-attr, operator]
        return
    with whole_folder(out, last="config.yaml") as new:
        save_model(model, cfg, new, trained_only=adapters)
