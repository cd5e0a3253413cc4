"""The models of a FLUX repository: transformer, autoencoder and scheduler, from configs or with published weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin, SchedulerMixin
from huggingface_hub import is_offline_mode

from reasonbrain.errors import UserError
from reasonbrain.modules.common.published import load_published
from reasonbrain.plugin import architecture_of


def architectures(source: str) -> dict[str, Any]:
    """The configs of transformer, VAE and scheduler in a FLUX repository."""
    if not Path(source).is_dir():
        return architecture_of(source)
    found = {}
    for part, name in (("transformer", "config.json"), ("vae", "config.json"), ("scheduler", "scheduler_config.json")):
        file = Path(source) / part / name
        if file.is_file():
            found[part] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _class_of(config: dict[str, Any], usual: Any, key: str) -> Any:
    """The class that a config names: ``usual``, or another that a user has put in its place."""
    name = config.get("_class_name", usual.__name__)
    found = getattr(diffusers, name, None)
    kind = "a scheduler" if key == "scheduler" else "an autoencoder"
    base, module = (SchedulerMixin, ".schedulers.") if key == "scheduler" else (ModelMixin, ".autoencoders.")
    if found is usual or (isinstance(found, type) and issubclass(found, base) and module in found.__module__):
        return found
    raise UserError(f"model.diffusion.architecture.{key}: '{name}' is not {kind} of diffusers")


def load_piece(
    cls: Any,
    known: dict[str, Any],
    key: str,
    pretrained: str | None,
    subfolder: str | None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Builds a FLUX model from its config in ``known``, or loads it and adds its config to ``known``."""
    if key in known:
        return _class_of(known[key], cls, key).from_config(known[key])
    if pretrained is None:
        raise UserError(f"model.diffusion: set 'pretrained' or 'architecture.{key}'")
    # diffusers asks the hub for the list of a sharded model's files even where HF_HUB_OFFLINE forbids it
    where: dict[str, Any] = {"subfolder": subfolder, "local_files_only": is_offline_mode()}
    if key == "scheduler":
        part = cls.from_pretrained(pretrained, **where)
    else:
        part = load_published(cls, pretrained, torch_dtype=dtype or torch.float32, **where)
    known[key] = {k: v for k, v in part.config.items() if not k.startswith("_") or k == "_class_name"}
    return part
