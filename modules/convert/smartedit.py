"""SmartEdit (arXiv:2312.06739): the authors' folder, with LLaVA v1.1 beside it.

    LLM-*/adapter_model.bin                          the language model, and LoRA, which is merged into it
    embeddings_qformer/*_embeddings_qformer.bin      QFormer, projector, head
    modulate-*/adapter_model.bin                     the Bidirectional Interaction Module
    unet-*/adapter_model.bin                         the UNet
    adapter_config.json                              LoRA's scale
    (any folder)/pytorch_model-*.bin, tokenizer      LLaVA v1.1, whose rows the tables of embeddings keep

Text encoder, vision tower, VAE and noise schedule are those of the preset.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from reasonbrain.config.loading import load_config
from reasonbrain.config.schema import Config, slot_config
from reasonbrain.errors import UserError
from reasonbrain.model import ReasonBrain, build_plugin
from reasonbrain.modules.convert.mgie import LANGUAGE, LLAVA_V1, tokenizer, tower
from reasonbrain.modules.convert.tensors import Report, empty, fill, read, take
from reasonbrain.plugin import architecture_of
from reasonbrain.registry import plugin

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant can generate <img>. The "
    "assistant needs to conduct the image to image translation task based on given image and text information. The "
    "assistant gives helpful, detailed, and polite answers to the user's questions."
)
# one of the wordings that it was trained with
QUESTION = (
    "Please generate an image that corresponds to the previous image and text description "
    '"<im_start> <image> <im_end>{instruction}".'
)
TOKENS = ("<img>", "<im_start>", "<im_end>", "<image>")  # the last has no row in the published tables
QFORMER_NAMES = (
    (r"embeddings\.LayerNorm\.", "layernorm."),
    (r"\.(attention|crossattention)\.self\.", r".\1.attention."),
)
BIM_NAMES = ((r"\.norm(\d)\.", r".layer_norm\1."), (r"\.norm_final_attn\.", ".layer_norm_final_attn."))


def convert(source: Path, overrides: tuple[str, ...], report: Report) -> tuple[Config, ReasonBrain]:
    """The configuration and the model of the authors' folder. Raises UserError like ``fill``, and for a file that is
    missing."""
    cfg = load_config("smartedit", [f"model.mllm.pretrained={LLAVA_V1}", *overrides])
    slots = ("encoders", "mllm", "connector", "cme", "diffusion")
    params: dict[str, Any] = {slot: slot_config(cfg.model, slot) for slot in slots}
    params["mllm"] |= {"system": SYSTEM, "question": QUESTION, "sentence": True, "lora_rank": 0}
    width, parts = cfg.model.width, {}
    for slot in ("encoders", "diffusion"):
        made = dict(params[slot])
        parts[slot] = build_plugin(slot, plugin(slot, made.pop("name")), width, made)
    parts |= {slot: empty(slot, params[slot], width) for slot in ("connector", "cme")}

    llm = read(_file(source, "LLM-*/adapter_model.bin"))
    shared = read(_file(source, "**/*embeddings_qformer.bin"))
    original = {n: t for file in sorted(source.glob("**/pytorch_model*.bin")) for n, t in read(file).items()}
    found = language(llm, _scale(source)) | projector(shared) | tower(params["encoders"]["vision"])
    rows = params["mllm"]["img_tokens"]
    for table, name, place, images in (
        (found.pop(f"{LANGUAGE}embed_tokens.weight"), "model.embed_tokens.weight", f"{LANGUAGE}embed_tokens", "img_in"),
        (shared.pop("lm_head.weight"), "lm_head.weight", "model.lm_head", "img_out"),
    ):
        found[f"{place}.weight"], found[images] = grown(table, original.get(name), rows)
    known = architecture_of(params["mllm"]["pretrained"])
    count = len(found["model.lm_head.weight"])
    known["text_config"] |= {"vocab_size": count}
    known["image_token_index"] = count - 1
    parts["mllm"] = mllm = empty("mllm", params["mllm"] | {"architecture": known}, width)
    fill("mllm", mllm, found, report, ("cue_in",))
    folder = next(iter(sorted(source.glob("**/tokenizer_config.json"))), None)
    if folder is None:
        raise UserError(f"'{source}' has no tokenizer_config.json of LLaVA v1.1")
    mllm.tokenizer = tokenizer(folder.parent, TOKENS)
    mllm.image_processor = mllm.stand_in_processor(mllm.model.config.vision_config)
    ends = {"eos_token_id": mllm.tokenizer.eos_token_id, "pad_token_id": mllm.tokenizer.pad_token_id}
    mllm.model.generation_config = GenerationConfig(**ends)

    fill("connector", parts["connector"], qformer(shared), report)
    bim = read(_file(source, "modulate-*/adapter_model.bin"))
    fill("cme", parts["cme"], {_renamed(name, BIM_NAMES): value for name, value in bim.items()}, report)
    unet = take(read(_file(source, "unet-*/adapter_model.bin")), "unet.")
    fill("diffusion.unet", parts["diffusion"].unet, unet, report)
    report.unused += [f"LLM {name}" for name in llm] + [f"embeddings_qformer {name}" for name in shared]
    for slot in ("mllm", "diffusion"):
        params[slot]["pretrained"] = None
    return cfg, ReasonBrain(parts, width).eval()


def _file(source: Path, pattern: str) -> Path:
    found = sorted(source.glob(pattern))
    if not found:
        raise UserError(f"'{source}' has no {pattern} of SmartEdit")
    return found[-1]


def _scale(source: Path) -> float:
    """LoRA's alpha / r, that of adapter_config.json."""
    file = next(iter(sorted(source.glob("**/adapter_config.json"))), None)
    try:
        config = json.loads(file.read_text(encoding="utf-8")) if file else {"lora_alpha": 16, "r": 8}
        return config["lora_alpha"] / config["r"]
    except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
        raise UserError(f"'{file}' is no adapter_config.json with lora_alpha and r") from None


def _renamed(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for old, new in pairs:
        name = re.sub(old, new, name)
    return name


def language(llm: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The language model with LoRA merged into it, under this package's names. Removes its tensors from ``llm``."""
    held = take(llm, "model.base_model.model.")
    lora = {name: held.pop(name).float() for name in list(held) if ".lora_" in name}
    found = {}
    for name, value in held.items():
        if name.endswith("rotary_emb.inv_freq"):  # computed now
            continue
        path = name.replace(".base_layer.", ".").removesuffix(".weight")
        adapter = {
            key.removeprefix(f"{path}.lora_")[0]: m for key, m in lora.items() if key.startswith(f"{path}.lora_")
        }
        if adapter:
            value = value.float() + scale * adapter["B"] @ adapter["A"]
        found[f"{LANGUAGE}{path}.weight"] = value
    return found


def projector(shared: dict[str, Tensor]) -> dict[str, Tensor]:
    """LLaVA's projector, under this package's names. Removes it from ``shared``."""
    return {f"model.model.multi_modal_projector.linear_1.{n}": t for n, t in take(shared, "mm_projector.").items()}


def qformer(shared: dict[str, Tensor]) -> dict[str, Tensor]:
    """The QFormer, under this package's names. Removes it from ``shared``."""
    found = {f"qformer.{_renamed(n, QFORMER_NAMES)}": t for n, t in take(shared, "sd_qformer.").items()}
    found.pop("qformer.embeddings.position_ids", None)
    return found | {"query_tokens": shared.pop("sd_query_tokens")}


def grown(table: Tensor, original: Tensor | None, img_tokens: int) -> tuple[Tensor, Tensor]:
    """A published table of embeddings as this package's table, with a row for ``<image>``, and the [IMG] rows.

    original: LLaVA's table, whose rows the authors restore before the words of TOKENS; None: they stay as published"""
    words, images = table[:-img_tokens], table[-img_tokens:]
    if original is not None:
        old = len(words) - (len(TOKENS) - 1)
        words = torch.cat([original[:old].to(words), words[old:]])
    return torch.cat([words, torch.zeros_like(words[:1])]), images
