"""Where and how a command edits: ``edit.device``, ``edit.dtype``, ``edit.offload``, ``edit.cache``, ``edit.compile``.

pipe = open_pipeline("runs/edit/model", ["edit.dtype=nf4", "edit.offload=model"])
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from reasonbrain.checkpoint import load_model
from reasonbrain.config.schema import EditConfig
from reasonbrain.editing.acceleration import accelerate
from reasonbrain.editing.pipeline import ReasonBrainPipeline, check_overrides
from reasonbrain.errors import UserError
from reasonbrain.utils.device import usable_device


def open_pipeline(
    checkpoint: str | Path, overrides: Sequence[str] = (), config: str | None = None, index: int = 0
) -> ReasonBrainPipeline:
    """Loads a checkpoint and moves it where its edits are computed.

    index: the accelerator of this machine to use where ``edit.device`` does not say, modulo their number. The other
    arguments, and the errors raised: as for ``load_model``. Raises UserError also for a device that is not there, and
    like ``check_overrides``."""
    check_overrides(overrides)
    return make_ready(ReasonBrainPipeline.from_model(*load_model(checkpoint, overrides, config, weights_dtype)), index)


def make_ready(pipe: ReasonBrainPipeline, index: int = 0) -> ReasonBrainPipeline:
    """Does what the pipeline's ``edit`` settings say, with weights that are in ``weights_dtype`` already. index, and
    the errors raised: as for ``open_pipeline``."""
    edit = pipe.settings.edit
    device = find_device(edit, index)
    if edit.dtype in ("fp8", "nf4"):
        for part in pipe.model.parts.values():
            part.compress(edit.dtype)
    accelerate(pipe)
    if edit.offload is None:
        return pipe.to(device)
    if device.type == "cpu":
        raise UserError(f"edit.offload: '{edit.offload}' moves weights to an accelerator, but edits run on '{device}'")
    if edit.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    else:
        pipe.enable_group_offload(onload_device=device, offload_type="leaf_level", use_stream=device.type == "cuda")
    return pipe


def find_device(edit: EditConfig, index: int = 0) -> torch.device:
    """The device of ``edit.device``; null: accelerator ``index``, modulo their number, or the CPU without one. Raises
    UserError for one that is not there."""
    if edit.device is None:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is None:
            return torch.device("cpu")
        return torch.device(accelerator.type, index % torch.accelerator.device_count())
    return usable_device("edit.device", edit.device)


def dtype_name(edit: EditConfig) -> str:
    """``edit.dtype``, or the precision that null stands for."""
    return edit.dtype or ("float32" if find_device(edit).type == "cpu" else "bfloat16")


def weights_dtype(edit: EditConfig) -> torch.dtype:
    """The precision in which weights are loaded: that of ``dtype_name``, bfloat16 for fp8 and nf4."""
    return {"float32": torch.float32, "float16": torch.float16}.get(dtype_name(edit), torch.bfloat16)
