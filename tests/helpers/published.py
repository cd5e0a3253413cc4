"""Tiny random models in folders in the hub's layout: sharded, with its names, written by the real classes.

save_clip(folder)    # or save_sam, save_qwen, save_llava, save_flux; returns the models by subfolder
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    SamConfig,
    SamModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from reasonbrain.plugin import public_architecture

TEXTS = [
    "What would happen if the ice were left in the sun?",
    "USER: a candle\non the table ASSISTANT: the flame is out",
]
LAYERS = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {"hidden_size": 32, **LAYERS, "num_key_value_heads": 2, "max_position_embeddings": 512}
VISION = {"hidden_size": 32, **LAYERS, "image_size": 32, "patch_size": 8, "projection_dim": 32}
QWEN_TOKENS = [f"<|{n}|>" for n in ("im_start", "im_end", "vision_start", "vision_end", "image_pad", "video_pad")]
SHARD = "40KB"


def small(name: str, **changes: dict | object) -> dict:
    """The published architecture ``name`` at small size; a dict changes a section."""
    raw = public_architecture(name)
    for key, value in changes.items():
        raw[key] = raw[key] | value if isinstance(value, dict) else value
    return raw


def write_processor(folder: Path, name: str, **settings: object) -> None:
    """preprocessor_config.json as on the hub, where the class does not carry the backend in its name."""
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": name, **settings}))


def lively(model: nn.Module) -> nn.Module:
    """Makes weights larger than the usual initialisation, so that the output depends on the input."""
    for p in model.parameters():
        if p.ndim > 1:
            nn.init.normal_(p, std=p[0].numel() ** -0.5)
    return model.eval()


def save_clip(folder: Path) -> dict[str, nn.Module]:
    tokenizer = CLIPTokenizer().train_new_from_iterator(TEXTS, 600)
    tokenizer.model_max_length = 20
    text = {k: v for k, v in TEXT.items() if k != "num_key_value_heads"} | {"max_position_embeddings": 20}
    text |= {"vocab_size": len(tokenizer), "projection_dim": 32, "eos_token_id": tokenizer.eos_token_id}
    vision = VISION | {"num_hidden_layers": 14}  # the presets use layer -14
    raw = small("openai/clip-vit-large-patch14", text_config=text, vision_config=vision, projection_dim=32)
    model = lively(CLIPModel(CLIPConfig.from_dict(raw)))
    model.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)
    return {"": model}


def save_sam(folder: Path) -> dict[str, nn.Module]:
    vision = {"hidden_size": 32, "output_channels": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "mlp_dim": 64}
    vision |= {"image_size": 64, "patch_size": 8, "window_size": 4, "global_attn_indexes": [1], "num_pos_feats": 8}
    raw = small(
        "facebook/sam-vit-huge",
        vision_config=vision,
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8},
        mask_decoder_config={"hidden_size": 16, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16},
    )
    model = lively(SamModel(SamConfig.from_dict(raw)))
    for head in model.mask_decoder.output_hypernetworks_mlps:
        head.proj_out.weight.data *= 30  # logits as far from zero as SAM's
    model.save_pretrained(folder, max_shard_size=SHARD)
    square, quarter = {"height": 64, "width": 64}, {"height": 16, "width": 16}
    sizes = {
        "size": {"longest_edge": 64},
        "pad_size": square,
        "mask_pad_size": quarter,
        "mask_size": {"longest_edge": 16},
    }
    write_processor(folder, "SamImageProcessor", **sizes)
    return {"": model}


def save_qwen(folder: Path) -> dict[str, nn.Module]:
    base = Qwen2Tokenizer(extra_special_tokens=QWEN_TOKENS, eos_token="<|im_end|>")
    tokenizer = base.train_new_from_iterator(TEXTS, 400)
    ids = {
        n: tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    raw = small(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        **TEXT,
        vocab_size=len(tokenizer) + 39,  # published: 399 rows more than tokens
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.pad_token_id,
        rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]},
        max_window_layers=2,
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}
        | {"fullatt_block_indexes": [1]},
    )
    model = lively(Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(raw)))
    model.save_pretrained(folder, max_shard_size=SHARD)
    (folder / "config.json").write_text(json.dumps(raw))  # as published: the language model's keys are not nested
    tokenizer.save_pretrained(folder)
    write_processor(folder, "Qwen2VLImageProcessor", min_pixels=56 * 56, max_pixels=112 * 112)
    return {"": model}


def save_llava(folder: Path) -> dict[str, nn.Module]:
    base = LlamaTokenizer(extra_special_tokens=["<image>"], pad_token="<pad>", add_bos_token=True)
    tokenizer = base.train_new_from_iterator(TEXTS, 200)
    raw = small(
        "llava-hf/llava-1.5-7b-hf",
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        text_config=TEXT | {"vocab_size": len(tokenizer) + 62},
        vision_config=VISION,
    )
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    raw["text_config"] |= ids
    model = lively(LlavaForConditionalGeneration(LlavaConfig.from_dict(raw)))
    model.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)
    square = {"height": 32, "width": 32}
    write_processor(folder, "CLIPImageProcessor", size={"shortest_edge": 32}, crop_size=square)
    return {"": model}


def save_llama(folder: Path) -> dict[str, nn.Module]:
    base = LlamaTokenizer(pad_token="<pad>", add_bos_token=True)
    tokenizer = base.train_new_from_iterator(TEXTS, 200)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = lively(LlamaForCausalLM(LlamaConfig(**TEXT, vocab_size=len(tokenizer), **ids)))
    model.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.save_pretrained(folder)
    return {"": model}


def save_flux(folder: Path) -> dict[str, nn.Module]:
    known = small(
        "black-forest-labs/FLUX.1-dev",
        transformer={"in_channels": 16, "num_layers": 1, "num_single_layers": 2, "num_attention_heads": 2}
        | {
            "attention_head_dim": 16,
            "joint_attention_dim": 32,
            "pooled_projection_dim": 32,
            "axes_dims_rope": [4, 6, 6],
        },
        vae={"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4},
    )
    models = {
        "transformer": FluxTransformer2DModel.from_config(known["transformer"]),
        "vae": AutoencoderKL.from_config(known["vae"]),
    }
    for name, model in models.items():
        lively(model).save_pretrained(folder / name, max_shard_size=SHARD)
    FlowMatchEulerDiscreteScheduler.from_config(known["scheduler"]).save_pretrained(folder / "scheduler")
    return models


def save_kontext(folder: Path) -> dict[str, nn.Module]:
    """FLUX with its text encoders."""
    known = small("black-forest-labs/FLUX.1-Kontext-dev")
    clip_words, t5_words = CLIPTokenizer(), T5Tokenizer(extra_ids=0)
    words = {"tokenizer": clip_words.train_new_from_iterator(TEXTS, 600)}
    words |= {"tokenizer_2": t5_words.train_new_from_iterator(TEXTS, 200)}
    text = {k: v for k, v in TEXT.items() if k != "num_key_value_heads"}
    clip = known["text_encoder"] | text | {"vocab_size": len(words["tokenizer"]), "max_position_embeddings": 77}
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 37, "num_layers": 2, "num_heads": 4}
    t5 = known["text_encoder_2"] | sizes | {"vocab_size": len(words["tokenizer_2"])}
    models = {
        "text_encoder": CLIPTextModel(CLIPTextConfig.from_dict(clip)),
        "text_encoder_2": T5EncoderModel(T5Config.from_dict(t5)),
    }
    for name, model in models.items():
        lively(model).save_pretrained(folder / name, max_shard_size=SHARD if name.endswith("2") else "5GB")
    for name, tokenizer in words.items():
        tokenizer.save_pretrained(folder / name)
    return save_flux(folder) | models


REPOSITORIES = {
    "openai/clip-vit-large-patch14": save_clip,
    "facebook/sam-vit-huge": save_sam,
    "Qwen/Qwen2.5-VL-7B-Instruct": save_qwen,
    "llava-hf/llava-1.5-7b-hf": save_llava,
    "black-forest-labs/FLUX.1-dev": save_flux,
    "black-forest-labs/FLUX.1-Kontext-dev": save_kontext,
}
PRECISION = {  # the others are published in bfloat16
    "openai/clip-vit-large-patch14": torch.float32,
    "facebook/sam-vit-huge": torch.float32,
    "llava-hf/llava-1.5-7b-hf": torch.float16,
}
OLD_NAMES = {  # of tensors, as published; libraries convert them
    "Qwen/Qwen2.5-VL-7B-Instruct": [(r"^model\.language_model\.", "model."), (r"^model\.visual\.", "visual.")],
    "llava-hf/llava-1.5-7b-hf": [
        (r"^(model\.)?language_model\.(?!model\.|lm_head\.)", "language_model.model."),
        (r"^lm_head\.", "language_model.lm_head."),
        (r"^(model\.)?vision_tower\.(?!vision_model\.)", "vision_tower.vision_model."),
        (r"^(model\.)?multi_modal_projector\.", "multi_modal_projector."),
    ],
}
# FLUX's repositories also hold what ReasonBrain does not read: the whole model in one file and, without ``prompt: t5``,
# two text encoders
UNREAD = ("flux1-dev.safetensors", "ae.safetensors", "text_encoder/model.safetensors", "model_index.json")


def save_as_published(repository: str, folder: Path) -> None:
    """Writes a repository: in its published precision, with the published names of tensors, with files that are not
    read."""
    torch.manual_seed(0)
    REPOSITORIES[repository](folder)
    dtype = PRECISION.get(repository, torch.bfloat16)
    for path in folder.rglob("*.safetensors"):
        save_file({_old(repository, k): v.to(dtype) for k, v in load_file(path).items()}, path, {"format": "pt"})
    for path in folder.glob("*.index.json"):
        index = json.loads(path.read_text())
        index["weight_map"] = {_old(repository, k): file for k, file in index["weight_map"].items()}
        path.write_text(json.dumps(index))
    if "Qwen" in repository:  # as published: two tokens end a sentence
        config = json.loads((folder / "config.json").read_text())
        ends = [config["eos_token_id"], config["bos_token_id"]]
        sampling = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 1e-06}
        (folder / "generation_config.json").write_text(json.dumps(sampling | {"eos_token_id": ends}))
    if "FLUX" in repository:
        for name in UNREAD:
            (folder / name).parent.mkdir(exist_ok=True)
            if not (folder / name).is_file():
                (folder / name).write_bytes(b"not read")


def _old(repository: str, name: str) -> str:
    for pattern, old in OLD_NAMES.get(repository, ()):
        name = re.sub(pattern, old, name)
    return name
