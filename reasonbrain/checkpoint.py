"""Checkpoints: a folder with config.yaml and one folder per slot.

    config.json, model.safetensors, tokenizer files    the whole slot
    trained.safetensors                                the trained tensors only; config.yaml locates the published rest

Weights above 5 GB are split into shards with an index, in the hub's layout. Only safetensors are read and written,
nothing is pickled, and a checkpoint can only refer to registered plug-ins.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import split_torch_state_dict_into_shards
from omegaconf import DictConfig, OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reasonbrain.config.loading import check_sizes, make_config, portable_config, presets, read_config
from reasonbrain.config.schema import Config, EditConfig, ModelConfig, slot_config
from reasonbrain.errors import UserError, reason
from reasonbrain.model import ReasonBrain, build_plugin
from reasonbrain.plugin import Plugin
from reasonbrain.registry import SLOTS, plugin
from reasonbrain.utils.bounds import TENSORS, at_most

Partition = Callable[[nn.Parameter], None]
WHOLE, TRAINED = "model", "trained"  # stems of the weight files


def slot_folder(folder: Path, slot: str) -> Path:
    """The folder of a slot in a checkpoint folder: ``frce.patch`` is in ``frce_patch``."""
    return folder / slot.replace(".", "_")


def save_model(
    model: ReasonBrain,
    cfg: Config,
    folder: Path,
    dtype: torch.dtype | None = None,
    trained_only: bool = False,
    max_shard_size: str = "5GB",
) -> None:
    """Writes a self-contained checkpoint folder, frozen tensors included.

    dtype: the precision of stored floats; None keeps each tensor's own. trained_only: of slots with published weights,
    store only the trainable tensors; loading then reads the published weights from where ``cfg`` says. max_shard_size:
    the largest size of a file, exceeded only by a single larger tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    cfg = deepcopy(cfg)
    for name in SLOTS:
        part, params = model.slot(name), slot_config(cfg.model, name)
        if part is None or params is None:
            continue
        target = slot_folder(folder, name)
        target.mkdir(exist_ok=True)
        for old in target.glob("*.safetensors*"):  # the old checkpoint may have more shards
            old.unlink()
        _save_slot(part, params, target, dtype, max_shard_size, trained_only)
    (folder / "config.yaml").write_text(portable_config(cfg), encoding="utf-8")


def save_untrained(cfg: Config, folder: Path) -> None:
    """Writes the initial model of a training run of ``cfg`` slot by slot, with at most one slot in memory.

    Raises UserError if published weights cannot be loaded."""
    cfg = deepcopy(cfg)

    def save(slot: str, part: Plugin) -> None:
        target = slot_folder(folder, slot)
        target.mkdir(parents=True)
        _save_slot(part, slot_config(cfg.model, slot) or {}, target, None, "5GB", trained_only=False)
        for p in part.parameters():
            p.data = p.data.new_empty(0)

    ReasonBrain.from_config(cfg.model, made=save)
    (folder / "config.yaml").write_text(portable_config(cfg), encoding="utf-8")


def _save_slot(
    part: Plugin,
    params: dict[str, Any],
    target: Path,
    dtype: torch.dtype | None,
    max_shard_size: str,
    trained_only: bool,
) -> None:
    """Writes a slot. If it is written whole, removes local folders of weights from ``params``, its configuration."""
    # a slot built from ``architecture`` has random initial weights, so its frozen tensors are stored too
    if (trained_only or part.reference) and part.loads_published(params):
        _write(dict(_trained(part)), target, TRAINED, dtype, max_shard_size)
        return
    params.update(_forget_folders(part, params))
    part.register_to_config(**_forget_folders(part, part.config))
    part.save_config(target)
    part.save_assets(target)
    _write(part.state_dict(), target, WHOLE, dtype, max_shard_size)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file with the permissions of other new files; safetensors itself lets only the owner read
    it."""
    save_file(tensors, path, metadata)
    like = path.with_name(f".{secrets.token_hex(8)}.tmp")
    like.touch()
    path.chmod(like.stat().st_mode)
    like.unlink()


def _write(
    state: Mapping[str, Tensor], folder: Path, stem: str, dtype: torch.dtype | None, max_shard_size: str
) -> None:
    """Writes tensors. Those that share memory are stored once; the metadata of every file has ``shared``, a mapping
    from alias to stored name."""
    shared: dict[str, str] = {}
    seen: dict[tuple[int, torch.Size], str] = {}
    for key, value in state.items():
        first = seen.setdefault((value.data_ptr(), value.shape), key)
        if first != key:
            shared[key] = first
    kept = {k: v for k, v in state.items() if k not in shared}
    split = split_torch_state_dict_into_shards(
        kept, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=max_shard_size
    )
    # a slot without tensors gets an empty file
    for file, keys in (split.filename_to_tensors or {f"{stem}.safetensors": []}).items():
        tensors = {k: kept[k].to(dtype if kept[k].is_floating_point() else None).contiguous() for k in keys}
        storages = Counter(t.untyped_storage().data_ptr() for t in tensors.values())
        for key, value in tensors.items():  # safetensors rejects views of one storage with different shapes
            if storages[value.untyped_storage().data_ptr()] > 1:
                tensors[key] = value.clone()
        save_tensors(tensors, folder / file, {"format": "pt", "shared": json.dumps(shared)})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def _read(folder: Path, stem: str) -> Iterator[tuple[list[str], Tensor]]:
    """Yields the tensors that ``_write`` wrote one at a time, each with all its names. Raises UserError for a file that
    is missing or broken."""
    path = folder / f"{stem}.safetensors.index.json"
    try:
        if path.is_file():
            files = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
            if outside := next((file for file in files if Path(file).name != file), None):
                raise ValueError(f"'{outside}' is not a file of this folder")
        else:
            files = [f"{stem}.safetensors"]
        for path in (folder / file for file in files):
            with safe_open(path, "pt") as f:
                shared = json.loads((f.metadata() or {}).get("shared", "{}"))  # another program may have written it
                for key in f.keys():
                    yield [key, *(alias for alias, first in shared.items() if first == key)], f.get_tensor(key)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as e:
        raise UserError(f"checkpoint file '{path}' is missing or broken: {reason(e)}") from None


def _trained(part: Plugin) -> dict[str, nn.Parameter]:
    return {name: p for name, p in part.named_parameters() if p.requires_grad}


def _forget_folders(part: Plugin, params: Mapping[str, Any]) -> dict[str, None]:
    """The weight sources that are local folders, as null: unlike hub ids, they mean nothing on another machine."""
    return {k: None for k in part.weight_sources if params.get(k) and Path(params[k]).exists()}


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
                f"config '{name}' needs a checkpoint: some of its weights are not published; "
                f"train them first: reasonbrain train --config {name} -o RUN"
            )
        return None, written
    folder = find_checkpoint(name)
    written = read_config(str(folder / "config.yaml"))
    if set(written) != set(Config.__annotations__):  # slots would be null unnoticed
        raise UserError(f"checkpoint file '{folder / 'config.yaml'}' is truncated")
    return folder, written


def find_checkpoint(name: str | Path) -> Path:
    """The checkpoint folder of ``tiny``, of a checkpoint, or of a finished training run. Raises UserError if ``name``
    is none of these."""
    folder = embedded() if str(name) == "tiny" else Path(name)
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


def load_model(
    name: str | Path,
    overrides: Sequence[str] = (),
    config: str | None = None,
    dtype: torch.dtype | Callable[[EditConfig], torch.dtype] = torch.float32,
    partition: Partition | None = None,
) -> tuple[ReasonBrain, Config]:
    """Loads a checkpoint. Returns the model in eval mode and its configuration.

    name: as for ``find_model``. overrides: ``key=value``, only for settings that do not affect trained weights:
    ``edit.*``, a slot set to null, or the location of published weights that the checkpoint omits
    (``model.mllm.pretrained``). config: the preset or file that the checkpoint must have been made with; its ``edit``
    settings replace the checkpoint's. dtype: the precision of float32 weights after loading, or a function of ``edit``
    that returns it. partition: called with every parameter as soon as it is loaded, before the next one is read, except
    parameters of modules that only prepare records.

    Raises UserError for a checkpoint that is missing, truncated, incomplete or made with another configuration, and if
    published weights cannot be loaded."""
    folder, written = find_model(name, overrides)
    if folder is None:
        cfg = make_config(written, overrides, reads_data=False)
        model = ReasonBrain.from_config(cfg.model).eval()
        for p in model.parameters():
            p.data = p.data.to(_asked(dtype, cfg) if p.dtype == torch.float32 else p.dtype)
        return model, cfg
    saved = make_config(written, reads_data=False)
    if config is not None:
        asked = read_config(config)
        check_same_model(make_config(asked), saved, folder)
        written.edit = OmegaConf.merge(written.edit, asked.get("edit", {}))
    cfg = make_config(written, overrides, reads_data=False) if overrides or config else saved
    check_same_model(cfg, saved, folder)
    dtype = _asked(dtype, cfg)
    slots = {}
    for slot in SLOTS:
        params = slot_config(cfg.model, slot)
        if params is None:
            continue
        target = slot_folder(folder, slot)
        if any(target.glob(f"{TRAINED}.safetensors*")):
            slots[slot] = _load_trained(target, slot, cfg.model.width, params, dtype)
            partition_all(slots[slot], partition)
        else:
            slots[slot] = _load_slot(target, slot, {**params, "width": cfg.model.width}, dtype, partition)
    return ReasonBrain(slots, cfg.model.width).eval(), cfg


def _asked(dtype: torch.dtype | Callable[[EditConfig], torch.dtype], cfg: Config) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else dtype(cfg.edit)


def partition_all(part: Plugin, partition: Partition | None) -> None:
    """Calls ``partition`` with every parameter of a plug-in, except those of modules that only prepare records."""
    apart = {id(p) for m in part.prepares().values() for p in m.parameters()}
    for p in part.parameters():
        if partition and id(p) not in apart:
            partition(p)


def _slot_params(folder: Path, slot: str, asked: dict[str, Any], cls: type[Plugin]) -> dict[str, Any]:
    """The parameters in a slot's config.json. Raises UserError if config.yaml, ``asked``, contradicts them."""
    try:
        params = json.loads((folder / cls.config_name).read_text(encoding="utf-8"))
        params = {k: v for k, v in params.items() if k not in cls.weight_sources}
    except (OSError, ValueError, AttributeError, RecursionError):
        raise UserError(f"checkpoint slot '{folder}': {cls.config_name} is missing or not a JSON object") from None
    check_sizes(params, f"checkpoint slot '{folder}'")
    for key, value in asked.items():
        made = params.get(key, value)
        if made != value and not isinstance(made, dict):  # an architecture is kept whole in config.json alone
            raise UserError(
                f"model.{slot}.{key}: config.yaml has {value}, but {folder / cls.config_name} has {made}; "
                f"the weights are of only one of them"
            )
    return params


def _load_slot(
    folder: Path, slot: str, asked: dict[str, Any], dtype: torch.dtype, partition: Partition | None
) -> Plugin:
    cls = plugin(slot, asked["name"])
    params = _slot_params(folder, slot, asked, cls)
    try:
        with init_empty_weights(include_buffers=False), at_most(TENSORS, f"checkpoint slot '{folder}'"):
            part = cls.from_config(params)
    except UserError:
        raise
    except Exception as e:  # whatever libraries raise for parameters that do not fit together
        raise UserError(f"checkpoint slot '{folder}': {cls.config_name} describes no model: {reason(e)}") from None
    held = {name: p.dtype for name, p in part.named_parameters() if p.dtype != torch.float32}
    state: dict[str, Tensor] = {}
    wanted = set(part.state_dict()) if partition else set()
    try:
        for names, value in _read(folder, WHOLE):
            to = held.get(names[0], dtype) if value.is_floating_point() else value.dtype
            # copied, since tensors in the mapped file are unaligned, which changes the last bit of matrix products
            state |= dict.fromkeys(names, value.to(to, copy=True))
            if partition:
                _load_tensor(part, state, partition)
                wanted -= state.keys()
                state = {}
        if partition is None:
            _load_state(part, state)
        elif wanted:
            part.load_state_dict({}, strict=True)
    except (RuntimeError, AttributeError) as e:
        detail = " ".join(str(e).split())[:200]
        raise UserError(
            f"checkpoint file '{folder}/{WHOLE}.safetensors' does not fit its config.json: {detail}"
        ) from None
    if partition:
        part.tie_weights()
    try:
        part.load_assets(folder)
    except Exception as e:  # tokenizers and image processors raise whatever a damaged file leads to
        raise UserError(f"checkpoint slot '{folder}': a file is missing or broken: {reason(e)}") from None
    return part


def _load_state(part: Plugin, state: dict[str, Tensor]) -> None:
    """Loads all tensors and ties weights. A tensor may be missing only if it is tied to one that is there: a file that
    another program wrote does not say so. Raises RuntimeError like ``load_state_dict``."""
    missing, unexpected = part.load_state_dict(state, strict=False, assign=True)
    part.tie_weights()
    parameters = dict(part.named_parameters(remove_duplicate=False))
    missing = [n for n in missing if n not in parameters or parameters[n].is_meta]
    if missing or unexpected:
        raise RuntimeError(f"missing tensors: {missing}; unexpected tensors: {unexpected}")


def _load_tensor(part: Plugin, names: dict[str, Tensor], partition: Partition) -> None:
    """Loads one tensor under all its names and partitions it."""
    first: Any = None
    for name, value in names.items():
        owner, _, leaf = name.rpartition(".")
        module = part.get_submodule(owner)
        if first is not None:
            setattr(module, leaf, first)
            continue
        module.load_state_dict({leaf: value}, strict=False, assign=True)
        first = getattr(module, leaf)
        if isinstance(first, nn.Parameter) and not name.startswith(tuple(f"{path}." for path in part.prepares())):
            partition(first)


def _load_trained(folder: Path, slot: str, width: int, params: dict[str, Any], dtype: torch.dtype) -> Plugin:
    """Loads published weights from the source in the configuration, then the trained tensors on top."""
    params = dict(params)
    part = build_plugin(slot, plugin(slot, params.pop("name")), width, params)
    missing = _trained(part)
    for (name,), value in _read(folder, TRAINED):
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
