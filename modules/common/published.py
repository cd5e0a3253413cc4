"""Loading a published model and its tokenizer: whole, or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import is_offline_mode, snapshot_download
from safetensors import safe_open
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from reasonbrain.errors import UserError
from reasonbrain.plugin import architecture_of

# buffers that libraries once stored and now compute
STORED_ONCE = ("position_ids", "inv_freq")


def load_published(cls: Any, source: str, spare: tuple[str, ...] = (), **options: Any) -> Any:
    """``cls.from_pretrained`` of transformers or diffusers, which only warn of weights that do not fit. Reads
    safetensors, unless ``options`` say otherwise.

    spare: beginnings of the names of published tensors that ``cls`` leaves out on purpose.

    Raises UserError if the model is of another kind, or if tensors are missing, have another shape, or belong to no
    module of the model, and whatever the library raises."""
    if issubclass(cls, PreTrainedModel):  # without its config.json, the library's default architecture would be built
        where = {"subfolder": options.get("subfolder", "")}
        kind, wanted = (
            cls.config_class.get_config_dict(source, **where)[0].get("model_type"),
            cls.config_class.model_type,
        )
        if kind is None:
            raise UserError(f"the model in '{source}' has no config.json that says what it is")
        if kind != wanted:
            raise UserError(f"the model in '{source}' is a {kind}, not a {wanted}")
    # tensors of another shape are listed, too, instead of an error that does not name them
    told = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, info = cls.from_pretrained(source, **told, **{"use_safetensors": True, **options})
    unexpected = [n for n in info["unexpected_keys"] if not n.endswith(STORED_ONCE) and not n.startswith(spare)]
    mismatched = [name if isinstance(name, str) else name[0] for name in info["mismatched_keys"]]
    # diffusers believes the index of a sharded model; a tensor that only the index names stays without data
    missing = {*info["missing_keys"], *(name for name, p in model.named_parameters() if p.is_meta)} - {*mismatched}
    for names, fault in (
        (missing, "lack"),
        (mismatched, "have in another shape"),
        (unexpected, "have, but the model does not,"),
    ):
        if names := sorted(names):
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(f"the weights of {cls.__name__} in '{source}' {fault} {', '.join(names[:3])}{more}")
    return model


def architectures(source: str) -> dict[str, Any]:
    """The configs of the models and the scheduler in a repository of diffusers."""
    if not Path(source).is_dir():
        return architecture_of(source)
    found = {}
    for part in ("transformer", "unet", "text_encoder", "text_encoder_2", "vae", "scheduler"):
        file = Path(source) / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        if file.is_file():
            found[part] = json.loads(file.read_text(encoding="utf-8"))
    return found


def stored_dtype(source: str, subfolder: str) -> torch.dtype:
    """The precision in which to load a diffusers model that will be trained: bfloat16 if it is stored so, otherwise
    float32. Reads the header of a weight file. ``source``: a folder or a repository of the hub.

    Raises OSError if there is no such file, and whatever the library raises."""
    stem = "diffusion_pytorch_model.safetensors"
    where = {"subfolder": subfolder}
    index = cached_file(source, f"{stem}.index.json", _raise_exceptions_for_missing_entries=False, **where)
    if index is not None:
        stem = next(iter(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    with safe_open(cached_file(source, stem, **where), "pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a mapping
    return torch.bfloat16 if kinds == {"BF16"} else torch.float32


def load_tokenizer(source: Path | str, subfolder: str | None = None) -> Any:
    """The tokenizer in a folder or a repository of the hub, or in a subfolder of these.

    Raises OSError if its vocabulary is missing, without which transformers makes one that knows no words, and whatever
    the library raises."""
    if subfolder:
        if not Path(source).is_dir():  # with ``subfolder``, transformers asks for more than a tokenizer's files
            only = f"{subfolder}/*"
            source = snapshot_download(str(source), allow_patterns=only, local_files_only=is_offline_mode())
        source = Path(source) / subfolder
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if tokenizer.vocab_size <= len(set(tokenizer.all_special_ids)):
        raise OSError(f"the tokenizer in '{source}' has no vocabulary: its files are incomplete")
    return tokenizer
