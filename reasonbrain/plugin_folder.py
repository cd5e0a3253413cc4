"""One plug-in in a folder: config.json, model.safetensors, and the files of its tokenizer and image processor.

Weights above ``max_shard_size`` are split into shards with an index, in the hub's layout. ``variant`` is a part of the
files' names (``model.fp16.safetensors``), so that a folder may hold several. Only safetensors are read and written.
"""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from reasonbrain.config.loading import check_sizes
from reasonbrain.errors import UserError, reason
from reasonbrain.utils.bounds import TENSORS, at_most

Partition = Callable[[nn.Parameter], None]
WHOLE, TRAINED = "model", "trained"  # stems of the weight files
SHARD = "5GB"  # the largest file


def save_part(
    part: Any,
    folder: Path,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str | None = None,
    variant: str | None = None,
) -> None:
    """Writes a whole plug-in, in place of one that was there.

    dtype: the precision of stored floats; None keeps each tensor's own. max_shard_size: the largest size of a file,
    exceeded only by a single larger tensor."""
    folder.mkdir(parents=True, exist_ok=True)
    part.register_to_config(**forget_folders(part, part.config))
    part.save_config(folder)
    part.save_assets(folder)
    write_tensors(part.state_dict(), folder, _stem(variant), dtype, max_shard_size)


def refuse_pickle(safe_serialization: bool) -> None:
    """Raises UserError for ``safe_serialization=False`` of diffusers' ``save_pretrained``."""
    if not safe_serialization:
        raise UserError("safe_serialization=False would pickle; only safetensors are written")


def _stem(variant: str | None) -> str:
    return f"{WHOLE}.{variant}" if variant else WHOLE


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file with the permissions of other new files; safetensors itself lets only the owner read
    it."""
    save_file(tensors, path, metadata)
    like = path.with_name(f".{secrets.token_hex(8)}.tmp")
    like.touch()
    path.chmod(like.stat().st_mode)
    like.unlink()


def write_tensors(
    state: Mapping[str, Tensor],
    folder: Path,
    stem: str,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str | None = None,
) -> None:
    """Writes tensors, in place of what had the same stem. Those that share memory are stored once; the metadata of
    every file has ``shared``, a mapping from alias to stored name."""
    for pattern in (f"{stem}.safetensors*", f"{stem}-*-of-*.safetensors", f"{TRAINED}*.safetensors*"):
        for old in folder.glob(pattern):  # it may have more shards, or hold the trained tensors alone
            old.unlink()
    shared: dict[str, str] = {}
    seen: dict[tuple[int, torch.Size], str] = {}
    for key, value in state.items():
        first = seen.setdefault((value.data_ptr(), value.shape), key)
        if first != key:
            shared[key] = first
    kept = {k: v for k, v in state.items() if k not in shared}
    split = split_torch_state_dict_into_shards(
        kept, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=max_shard_size or SHARD
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


def read_tensors(folder: Path, stem: str) -> Iterator[tuple[list[str], Tensor]]:
    """Yields the tensors that ``write_tensors`` wrote one at a time, each with all its names. Raises UserError for a
    file that is missing or broken."""
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


def forget_folders(part: Any, params: Mapping[str, Any]) -> dict[str, None]:
    """The weight sources that are local folders, as null: unlike hub ids, they mean nothing on another machine."""
    return {k: None for k in part.weight_sources if params.get(k) and Path(params[k]).exists()}


def load_part(
    cls: Any,
    folder: Path,
    asked: Mapping[str, Any],
    dtype: torch.dtype,
    partition: Partition | None = None,
    variant: str | None = None,
) -> Any:
    """Reads a plug-in of class ``cls``.

    asked: parameters that config.json must not contradict. dtype: the precision of float32 weights after loading.
    partition: called with every parameter as soon as it is loaded, before the next one is read, except parameters of
    modules that only prepare records.

    Raises UserError for a folder that is incomplete, damaged or of another plug-in."""
    params = _params(folder, asked, cls)
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
        for names, value in read_tensors(folder, _stem(variant)):
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
            f"checkpoint file '{folder}/{_stem(variant)}.safetensors' does not fit its config.json: {detail}"
        ) from None
    if partition:
        part.tie_weights()
    try:
        part.load_assets(folder)
    except Exception as e:  # tokenizers and image processors raise whatever a damaged file leads to
        raise UserError(f"checkpoint slot '{folder}': a file is missing or broken: {reason(e)}") from None
    return part


def _params(folder: Path, asked: Mapping[str, Any], cls: Any) -> dict[str, Any]:
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
                f"model.{cls.slot}.{key}: config.yaml has {value}, but {folder / cls.config_name} has {made}; "
                f"the weights are of only one of them"
            )
    return params


def _load_state(part: Any, state: dict[str, Tensor]) -> None:
    """Loads all tensors and ties weights. A tensor may be missing only if it is tied to one that is there: a file that
    another program wrote does not say so. Raises RuntimeError like ``load_state_dict``."""
    missing, unexpected = part.load_state_dict(state, strict=False, assign=True)
    part.tie_weights()
    parameters = dict(part.named_parameters(remove_duplicate=False))
    missing = [n for n in missing if n not in parameters or parameters[n].is_meta]
    if missing or unexpected:
        raise RuntimeError(f"missing tensors: {missing}; unexpected tensors: {unexpected}")


def _load_tensor(part: Any, names: dict[str, Tensor], partition: Partition) -> None:
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
