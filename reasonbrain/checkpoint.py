"""Checkpoints: a folder with config.yaml and one folder per slot.

    config.json, model.safetensors, tokenizer files    the whole slot
    trained.safetensors                                the trained tensors only; config.yaml locates the published rest

Only safetensors are read and written (``plugin_folder``), nothing is pickled, and a checkpoint can only refer to
registered plug-ins.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__
from omegaconf import DictConfig, OmegaConf
from torch import nn

from reasonbrain.config.loading import make_config, portable_config, presets, read_config
from reasonbrain.config.schema import Config, EditConfig, ModelConfig, set_slot, slot_config
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain, build_plugin
from reasonbrain.plugin import Plugin
from reasonbrain.plugin_folder import (
    TRAINED,
    Partition,
    forget_folders,
    load_part,
    read_tensors,
    save_part,
    write_tensors,
)
from reasonbrain.registry import SLOTS, plugin
from reasonbrain.utils.hub import download, is_repository

# What runs where diffusers' DiffusionPipeline loads a folder and may run its code. Nothing here runs it.
PIPELINE = """import reasonbrain.components  # the plug-ins that model_index.json names
from reasonbrain.editing.pipeline import ReasonBrainPipeline
"""


def slot_folder(folder: Path, slot: str) -> Path:
    """The folder of a slot in a checkpoint folder: ``frce.patch`` is in ``frce_patch``."""
    return folder / slot.replace(".", "_")


def save_model(
    model: ReasonBrain,
    cfg: Config,
    folder: Path,
    dtype: torch.dtype | None = None,
    trained_only: bool = False,
    max_shard_size: int | str | None = None,
    variant: str | None = None,
) -> None:
    """Writes a self-contained checkpoint folder of what is in the model, frozen tensors included. Slots are replaced;
    empty ones become null, and their folders are removed.

    cfg: how the model was configured, where it still is so. trained_only: of slots with published weights, store only
    the trainable tensors; loading then reads the published weights from where ``cfg`` says. The others: as for
    ``save_part``."""
    folder.mkdir(parents=True, exist_ok=True)
    replaces = (folder / "config.yaml").is_file()
    cfg = deepcopy(cfg)
    cfg.model.width = model.width
    for name in SLOTS:
        part, target = model.slot(name), slot_folder(folder, name)
        if part is None:
            set_slot(cfg.model, name, None)
            if replaces and target.is_dir():
                shutil.rmtree(target)
            continue
        params = _configured(part, slot_config(cfg.model, name))
        # a slot built from ``architecture`` has random initial weights, so its frozen tensors are stored too
        if (trained_only or part.reference) and part.loads_published(params):
            target.mkdir(exist_ok=True)
            for old in target.glob("*.safetensors*"):
                old.unlink()
            write_tensors(dict(_trained(part)), target, TRAINED, dtype, max_shard_size)
        else:
            params |= forget_folders(part, params)
            save_part(part, target, dtype, max_shard_size, variant)
        set_slot(cfg.model, name, params)
    (folder / "config.yaml").write_text(portable_config(cfg), encoding="utf-8")
    if not trained_only:
        _write_index(model, cfg, folder)


def _write_index(model: ReasonBrain, cfg: Config, folder: Path) -> None:
    """Writes what ``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)`` needs to find our classes."""
    index: dict[str, Any] = {"_class_name": ["pipeline", "ReasonBrainPipeline"], "_diffusers_version": __version__}
    for slot in SLOTS:
        part = model.slot(slot)
        found = [None, None] if part is None else ["reasonbrain.components", f"{slot}:{part.plugin_name}"]
        index[slot_folder(folder, slot).name] = found
    index["settings"] = {key: asdict(getattr(cfg, key)) for key in ("model", "edit")}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
    (folder / "pipeline.py").write_text(PIPELINE, encoding="utf-8")


def _configured(part: Plugin, params: Mapping[str, Any] | None) -> dict[str, Any]:
    """The configuration of what is in a slot: ``params``, changed where they say something else."""
    if params is None or params["name"] != part.plugin_name:
        return {"name": part.plugin_name}  # its config.json says the rest
    made = {k: v for k, v in part.config.items() if k not in part.weight_sources and not isinstance(v, dict)}
    return {k: made[k] if made.get(k, v) != v else v for k, v in params.items()}


def save_untrained(cfg: Config, folder: Path) -> None:
    """Writes the initial model of a training run of ``cfg`` slot by slot, with at most one slot in memory.

    Raises UserError if published weights cannot be loaded."""
    cfg = deepcopy(cfg)

    def save(slot: str, part: Plugin) -> None:
        params = slot_config(cfg.model, slot) or {}
        params.update(forget_folders(part, params))
        save_part(part, slot_folder(folder, slot))
        for p in part.parameters():
            p.data = p.data.new_empty(0)

    ReasonBrain.from_config(cfg.model, made=save)
    (folder / "config.yaml").write_text(portable_config(cfg), encoding="utf-8")


def _trained(part: Plugin) -> dict[str, nn.Parameter]:
    return {name: p for name, p in part.named_parameters() if p.requires_grad}


def embedded() -> Path:
    """The folder of the embedded default's weights."""
    return Path(str(files("reasonbrain.configs") / "tiny"))


def edits_as_published(model: ModelConfig) -> bool:
    """Whether a model needs no trained weights of its own: each slot that is not null edits as published."""
    filled = {slot: params for slot in SLOTS if (params := slot_config(model, slot))}
    return all(plugin(slot, params["name"]).is_whole(params) for slot, params in filled.items())


def find_model(name: str | Path, overrides: Sequence[str] = ()) -> tuple[Path | None, DictConfig]:
    """The folder of a checkpoint, as ``find_checkpoint``, and its configuration. None and the configuration for the
    name of a preset, or a YAML file, of a model that needs no checkpoint with these overrides.

    Raises UserError like ``find_checkpoint`` and ``read_config``, and for a preset or a file of another model."""
    is_config = str(name) in presets() or Path(name).suffix in (".yaml", ".yml")
    if str(name) != "tiny" and is_config and not Path(name).is_dir():
        written = read_config(str(name))
        if not edits_as_published(make_config(written, overrides, reads_data=False).model):
            raise UserError(
                f"config '{name}' needs --checkpoint: some of its weights are not published; "
                f"train them first: reasonbrain train --config {name} -o RUN"
            )
        return None, written
    folder = find_checkpoint(name)
    written = read_config(str(folder / "config.yaml"))
    if set(written) != set(Config.__annotations__):  # slots would be null unnoticed
        raise UserError(f"checkpoint file '{folder / 'config.yaml'}' is truncated")
    return folder, written


def find_checkpoint(name: str | Path) -> Path:
    """The checkpoint folder of ``tiny``, of a checkpoint, of a finished training run, or of a repository of the hub
    (``download``). Raises UserError if ``name`` is none of these."""
    folder = embedded() if str(name) == "tiny" else download(str(name)) if is_repository(name) else Path(name)
    if (folder / "model" / "config.yaml").is_file():
        folder = folder / "model"
    if not (folder / "config.yaml").is_file() or not any(slot_folder(folder, slot).is_dir() for slot in SLOTS):
        if (folder / "checkpoints").is_dir() or (folder / "log.jsonl").is_file():
            raise UserError(
                f"checkpoint '{name}' is an unfinished training run; export its last checkpoint first: "
                f"reasonbrain export {name} -o DIR"
            )
    if not (folder / "config.yaml").is_file():
        raise UserError(f"checkpoint '{name}' is neither 'tiny' nor a folder that holds a model (config.yaml)")
    return folder


def _without_sources(slot: str, params: dict[str, Any] | None) -> dict[str, Any] | None:
    if params is None:
        return None
    return {k: v for k, v in params.items() if k not in plugin(slot, params["name"]).weight_sources}


def check_same_model(cfg: Config, saved: Config, folder: Path) -> None:
    """Raises UserError unless ``cfg`` asks for the saved model, or for a part of it (a slot set to null)."""
    if cfg.model.width != saved.model.width:
        raise UserError(f"checkpoint '{folder}' has model.width={saved.model.width}, not {cfg.model.width}")
    for slot in SLOTS:
        asked, stored = (_without_sources(slot, slot_config(c.model, slot)) for c in (cfg, saved))
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


def find_settings(name: str | Path, overrides: Sequence[str], config: str | None) -> tuple[Path | None, Config]:
    """The folder of ``find_model``, and the configuration with which ``load_model`` loads it.

    overrides: ``key=value``, only for settings that do not affect trained weights: ``edit.*``, a slot set to null, or
    the location of published weights that the checkpoint omits (``model.mllm.pretrained``). config: the preset or file
    that the checkpoint must have been made with; its ``edit`` settings replace the checkpoint's.

    Raises UserError for a checkpoint that is missing, truncated or made with another configuration."""
    given = None if config is None else read_config(config)
    folder, written = find_model(name, overrides)
    if folder is None:
        return None, make_config(written, overrides, reads_data=False)
    saved = make_config(written, reads_data=False)
    if given is not None:
        check_same_model(make_config(given), saved, folder)
        written.edit = OmegaConf.merge(written.edit, given.get("edit", {}))
    cfg = make_config(written, overrides, reads_data=False) if overrides or given is not None else saved
    check_same_model(cfg, saved, folder)
    return folder, cfg


def load_model(
    name: str | Path,
    overrides: Sequence[str] = (),
    config: str | None = None,
    dtype: torch.dtype | Mapping[str, torch.dtype] | Callable[[EditConfig], torch.dtype] = torch.float32,
    partition: Partition | None = None,
    variant: str | None = None,
) -> tuple[ReasonBrain, Config]:
    """Loads a checkpoint. Returns the model in eval mode and its configuration.

    name, overrides, config: as for ``find_settings``. dtype: the precision of float32 weights after loading, a function
    of ``edit`` that returns it, or a mapping from slots (``frce_patch``) and ``default``, which is float32 where it is
    not given. partition, variant: as for ``load_part``.

    Raises UserError like ``find_settings``, for a checkpoint that is incomplete, and if published weights cannot be
    loaded."""
    folder, cfg = find_settings(name, overrides, config)
    if folder is None:
        model = ReasonBrain.from_config(cfg.model).eval()
        for slot, to in _by_slot(dtype, cfg).items():
            for p in () if model.slot(slot) is None else model.slot(slot).parameters():
                p.data = p.data.to(to if p.dtype == torch.float32 else p.dtype)
        return model, cfg
    dtypes = _by_slot(dtype, cfg)
    slots = {}
    for slot in SLOTS:
        params = slot_config(cfg.model, slot)
        if params is None:
            continue
        target = slot_folder(folder, slot)
        if any(target.glob(f"{TRAINED}.safetensors*")):
            slots[slot] = _load_trained(target, slot, cfg.model.width, params, dtypes[slot])
            partition_all(slots[slot], partition)
        else:
            asked = {**params, "width": cfg.model.width}
            slots[slot] = load_part(plugin(slot, params["name"]), target, asked, dtypes[slot], partition, variant)
    return ReasonBrain(slots, cfg.model.width, cfg.model.thinking).eval(), cfg


def _by_slot(
    dtype: torch.dtype | Mapping[str, torch.dtype] | Callable[[EditConfig], torch.dtype], cfg: Config
) -> dict[str, torch.dtype]:
    """The precision of each slot. Raises UserError for a mapping from something else."""
    dtypes = dtype if isinstance(dtype, Mapping) else {"default": dtype(cfg.edit) if callable(dtype) else dtype}
    names = {slot: slot.replace(".", "_") for slot in SLOTS}
    if unknown := next((key for key in dtypes if key not in (*names.values(), "default")), None):
        raise UserError(f"dtype: there is no slot '{unknown}'; choose from {', '.join((*names.values(), 'default'))}")
    return {slot: dtypes.get(name, dtypes.get("default", torch.float32)) for slot, name in names.items()}


def partition_all(part: Plugin, partition: Partition | None) -> None:
    """Calls ``partition`` with every parameter of a plug-in, except those of modules that only prepare records."""
    apart = {id(p) for m in part.prepares().values() for p in m.parameters()}
    for p in part.parameters():
        if partition and id(p) not in apart:
            partition(p)


def _load_trained(folder: Path, slot: str, width: int, params: dict[str, Any], dtype: torch.dtype) -> Plugin:
    """Loads published weights from the source in the configuration, then the trained tensors on top."""
    params = dict(params)
    part = build_plugin(slot, plugin(slot, params.pop("name")), width, params)
    missing = _trained(part)
    for (name,), value in read_tensors(folder, TRAINED):
        p = missing.pop(name, None)
        if p is None or p.shape != value.shape:
            kind = "there is no such tensor" if p is None else f"expected {list(p.shape)}"
            raise UserError(
                f"checkpoint slot '{folder}' holds {name} {list(value.shape)}, which does not fit model.{slot}: {kind}"
            )
        p.data = value.to(dtype, copy=True)
    if missing:
        raise UserError(f"checkpoint slot '{folder}' lacks {len(missing)} trained tensors, e.g. {next(iter(missing))}")
    for p in part.parameters():  # copied, as above
        p.data = p.data.to(dtype if p.dtype == torch.float32 else p.dtype, copy=True)
    return part
