"""Checkpoints: a folder with config.yaml and one folder a slot (config.json, model.safetensors, a tokenizer's files).

Safetensors in, safetensors out; nothing is pickled, and a checkpoint can only name registered plug-ins.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import Config, dump_config, load_config, slot_config
from .errors import UserError
from .model import WEIGHT_SOURCES, ReasonBrain
from .plugin import Plugin
from .registry import SLOTS, plugin

WEIGHTS = "model.safetensors"


def slot_folder(folder: Path, slot: str) -> Path:
    return folder / slot.replace(".", "_")


def save_model(model: ReasonBrain, cfg: Config, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Writes every tensor of every slot, frozen ones too, so that the folder stands alone. ``dtype``: store floats
    in this precision. Tensors that share memory are stored once."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = deepcopy(cfg)
    for name in SLOTS:
        for params in filter(None, [slot_config(cfg.model, name)]):
            params.update(_forget_folders(params))
    (folder / "config.yaml").write_text(dump_config(cfg), encoding="utf-8")
    for name in SLOTS:
        part = model.slot(name)
        if part is None:
            continue
        target = slot_folder(folder, name)
        target.mkdir(exist_ok=True)
        part.register_to_config(**_forget_folders(part.config))
        part.save_config(target)
        part.save_assets(target)
        tensors: dict[str, Tensor] = {}
        shared: dict[str, str] = {}
        seen: dict[tuple[int, torch.Size], str] = {}
        for key, value in part.state_dict().items():
            first = seen.setdefault((value.data_ptr(), value.shape), key)
            if first != key:
                shared[key] = first
            else:
                half = dtype is not None and value.is_floating_point()
                tensors[key] = value.to(dtype).contiguous() if half else value.contiguous()
        save_file(tensors, target / WEIGHTS, metadata={"format": "pt", "shared": json.dumps(shared)})


def _forget_folders(params: Mapping[str, Any]) -> dict[str, None]:
    """A hub id says where weights came from; a folder of this machine says nothing elsewhere."""
    return {k: None for k in WEIGHT_SOURCES if params.get(k) and Path(params[k]).exists()}


def embedded() -> Path:
    """The folder of the embedded default's weights."""
    return Path(str(files("reasonbrain.configs") / "tiny"))


def find_checkpoint(name: str | Path) -> Path:
    """The checkpoint folder: ``tiny``, a checkpoint, or a training run. Raises UserError if it is none of these."""
    folder = embedded() if str(name) == "tiny" else Path(name)
    if (folder / "model" / "config.yaml").is_file():
        folder = folder / "model"
    if not (folder / "config.yaml").is_file():
        if (folder / "checkpoints").is_dir():
            raise UserError(
                f"checkpoint '{name}' is a training run that is not through; make a model of its last checkpoint: "
                f"reasonbrain export {name} -o DIR"
            )
        raise UserError(f"checkpoint '{name}' is neither 'tiny' nor a folder that holds a model (config.yaml)")
    return folder


def _without_sources(params: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if params is None else {k: v for k, v in params.items() if k not in WEIGHT_SOURCES}


def check_same_model(cfg: Config, saved: Config, folder: Path) -> None:
    """Raises UserError unless ``cfg`` asks for the saved model, or for a part of it (a slot set to null)."""
    if cfg.model.width != saved.model.width:
        raise UserError(f"checkpoint '{folder}' has model.width={saved.model.width}, not {cfg.model.width}")
    for slot in SLOTS:
        asked, stored = (_without_sources(slot_config(c.model, slot)) for c in (cfg, saved))
        if asked is None or asked == stored:
            continue
        if stored is None or asked["name"] != stored["name"]:
            has = "null" if stored is None else f"'{stored['name']}'"
            raise UserError(
                f"model.{slot}: checkpoint '{folder}' has {has}, so it holds no trained weights for '{asked['name']}'; "
                f"train them first: reasonbrain train -o RUN model.{slot}.name={asked['name']}"
            )
        key = next(k for k in {**asked, **stored} if asked.get(k) != stored.get(k))
        made, wanted = stored.get(key, "its default"), asked.get(key, "its default")
        raise UserError(f"model.{slot}.{key}: checkpoint '{folder}' was made with {made}, not {wanted}")


def load_model(
    name: str | Path,
    overrides: Sequence[str] = (),
    config: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[ReasonBrain, Config]:
    """The model of a checkpoint with its configuration, in eval mode.

    ``overrides`` may change what does not touch trained weights (``edit.*``, a slot set to null). ``config``: the
    preset or file that the checkpoint is expected to be made by. Raises UserError for a checkpoint that is missing,
    truncated, incomplete or made by another configuration."""
    folder = find_checkpoint(name)
    saved = load_config(str(folder / "config.yaml"))
    if set(OmegaConf.load(folder / "config.yaml")) != set(Config.__annotations__):  # slots would be null unnoticed
        raise UserError(f"checkpoint file '{folder / 'config.yaml'}' is cut short")
    if config is not None:
        check_same_model(load_config(config), saved, folder)
    cfg = load_config(str(folder / "config.yaml"), overrides)
    check_same_model(cfg, saved, folder)
    slots = {}
    for slot in SLOTS:
        params = slot_config(cfg.model, slot)
        if params is not None:
            slots[slot] = _load_slot(slot_folder(folder, slot), slot, params["name"], dtype)
    return ReasonBrain(slots, cfg.model.width).eval(), cfg


def _load_slot(folder: Path, slot: str, name: str, dtype: torch.dtype) -> Plugin:
    cls = plugin(slot, name)
    try:
        params = json.loads((folder / cls.config_name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"checkpoint slot '{folder}': {cls.config_name} is missing or not JSON") from None
    with init_empty_weights(include_buffers=False):
        part = cls.from_config({k: v for k, v in params.items() if k != "pretrained"})
    try:
        with safe_open(folder / WEIGHTS, "pt") as f:
            shared = json.loads(f.metadata()["shared"])
            state = {k: f.get_tensor(k) for k in f.keys()}
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise UserError(f"checkpoint file '{folder / WEIGHTS}' is missing or broken: {reason}") from None
    # copied out of the mapped file: there they lie unaligned, which changes the last bit of matrix products
    state = {k: v.to(dtype if v.is_floating_point() else v.dtype, copy=True) for k, v in state.items()}
    state |= {alias: state[key] for alias, key in shared.items()}
    try:
        part.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as e:
        detail = " ".join(str(e).split())[:200]
        raise UserError(f"checkpoint file '{folder / WEIGHTS}' does not fit its config.json: {detail}") from None
    part.tie_weights()
    try:
        part.load_assets(folder)
    except (OSError, ValueError) as e:
        raise UserError(f"checkpoint slot '{folder}': a file is missing or broken: {str(e).splitlines()[0]}") from None
    return part
