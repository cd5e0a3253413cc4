"""The models of a diffusers repository: transformer or UNet, autoencoder and scheduler, from configs or with published
weights."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import diffusers
import torch
from diffusers import ModelMixin, SchedulerMixin
from huggingface_hub import is_offline_mode

from reasonbrain.errors import UserError
from reasonbrain.modules.common.published import architectures, load_published
from reasonbrain.plugin import architecture_of


def with_autoencoder(params: dict[str, Any]) -> dict[str, Any]:
    """``params`` with ``architecture`` completed by the configs of ``autoencoder`` and ``pretrained``."""
    known = dict(params.get("architecture") or {})
    if params.get("autoencoder"):
        known = {"vae": architecture_of(params["autoencoder"])} | known
    if params.get("pretrained"):
        known = architectures(params["pretrained"]) | known
    return params | {"architecture": known}


def record(known: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """``known`` with the configs of these models and schedulers, which a user may have put in place of others."""
    known = dict(known)
    for key, part in parts.items():
        known[key] = {k: v for k, v in dict(part.config).items() if not k.startswith("_")}
        known[key]["_class_name"] = type(part).__name__
    return known


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
    """Builds a model from its config in ``known``, or loads it and adds its config to ``known``."""
    if key in known:
        kind = _class_of(known[key], cls, key)
        with (
            torch.device("cpu") if key == "scheduler" else nullcontext()
        ):  # it computes tables, also beside a meta model
            return kind.from_config(known[key])
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
