"""Tiny random editing pipelines in folders in the hub's layout, written by diffusers' own classes.

save_kontext(folder)    # or save_klein, save_qwen_edit, save_pix2pix, save_pix2pix_xl, save_omnigen
"""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import diffusers
import numpy as np
import torch
from published import QWEN_TOKENS, TEXTS, lively, save_qwen, write_processor
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlamaTokenizer,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

CHAT = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>\n{% endfor %}"
CLIP = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [8] * 4,
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "latent_channels": 4,
}
FLUX = {  # of FLUX.1 and FLUX.2
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
}
UNET = {  # of both InstructPix2Pix
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "sample_size": 8,
    "in_channels": 8,
    "out_channels": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}


def _vae(**changes: object) -> nn.Module:
    return diffusers.AutoencoderKL(**VAE, **changes)


def _clip(kind: type = CLIPTextModel) -> tuple[nn.Module, CLIPTokenizer]:
    tokenizer = CLIPTokenizer().train_new_from_iterator(TEXTS, 600)
    tokenizer.model_max_length = 77
    config = CLIPTextConfig(
        **CLIP, vocab_size=len(tokenizer), max_position_embeddings=77, projection_dim=32, eos_token_id=2
    )
    return kind(config), tokenizer


def _qwen_tokenizer() -> Qwen2Tokenizer:
    base = Qwen2Tokenizer(extra_special_tokens=["<|im_start|>", "<|im_end|>"], eos_token="<|im_end|>")
    tokenizer = base.train_new_from_iterator(TEXTS, 400)
    tokenizer.chat_template = CHAT
    return tokenizer


def _save(kind: type, folder: Path, **parts: object) -> object:
    for part in parts.values():
        if isinstance(part, nn.Module):
            lively(part)
    pipe = kind(**parts)
    pipe.save_pretrained(folder)
    return pipe


def save_kontext(folder: Path) -> object:
    clip, words = _clip()
    t5_words = T5Tokenizer(extra_ids=0).train_new_from_iterator(TEXTS, 200)
    t5 = T5EncoderModel(
        T5Config(vocab_size=len(t5_words), d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, is_decoder=False)
    )
    transformer = diffusers.FluxTransformer2DModel(
        **FLUX,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    )
    return _save(
        diffusers.FluxKontextPipeline,
        folder,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_vae(shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=clip,
        tokenizer=words,
        text_encoder_2=t5,
        tokenizer_2=t5_words,
        transformer=transformer,
    )


def save_klein(folder: Path) -> object:
    words = _qwen_tokenizer()
    text = Qwen3Config(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=28,  # the pipeline reads layers 9, 18 and 27
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    transformer = diffusers.Flux2Transformer2DModel(
        **FLUX,
        joint_attention_dim=48,
        axes_dims_rope=[4, 4, 4, 4],
        guidance_embeds=False,
    )
    return _save(
        diffusers.Flux2KleinPipeline,
        folder,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=diffusers.AutoencoderKLFlux2(**VAE),
        text_encoder=Qwen3ForCausalLM(text),
        tokenizer=words,
        transformer=transformer,
        is_distilled=True,
    )


def save_pix2pix(folder: Path) -> object:
    clip, words = _clip()
    unet = diffusers.UNet2DConditionModel(
        **UNET,
        cross_attention_dim=32,
        attention_head_dim=8,
    )
    return _save(
        diffusers.StableDiffusionInstructPix2PixPipeline,
        folder,
        vae=_vae(),
        text_encoder=clip,
        tokenizer=words,
        unet=unet,
        scheduler=diffusers.EulerAncestralDiscreteScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save_pix2pix_xl(folder: Path) -> object:
    clip, words = _clip()
    big, _ = _clip(CLIPTextModelWithProjection)
    unet = diffusers.UNet2DConditionModel(
        **UNET,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=8 * 6 + 32,
        cross_attention_dim=64,
    )
    return _save(
        diffusers.StableDiffusionXLInstructPix2PixPipeline,
        folder,
        vae=_vae(),
        text_encoder=clip,
        text_encoder_2=big,
        tokenizer=words,
        tokenizer_2=words,
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(),
        add_watermarker=False,
    )


def save_omnigen(folder: Path) -> object:
    words = LlamaTokenizer(extra_special_tokens=["<img>", "</img>"], pad_token="<pad>")
    words = words.train_new_from_iterator(TEXTS, 200)
    transformer = diffusers.OmniGenTransformer2DModel(
        hidden_size=16,
        num_attention_heads=4,
        num_key_value_heads=4,
        intermediate_size=32,
        num_layers=1,
        in_channels=4,
        time_step_dim=4,
        vocab_size=len(words),
        pad_token_id=words.pad_token_id,
        rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
    )
    return _save(
        diffusers.OmniGenPipeline,
        folder,
        vae=_vae(),
        transformer=transformer,
        tokenizer=words,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
    )


def save_qwen_edit(folder: Path) -> object:
    """transformers' processor needs torchvision, so model_index.json names it, and its files are written by hand."""
    save_qwen(folder / "text_encoder")
    for file in (folder / "text_encoder").iterdir():
        if "config.json" not in file.name and "model" not in file.name or file.name == "preprocessor_config.json":
            for part in ("tokenizer", "processor") if file.name != "preprocessor_config.json" else ("processor",):
                (folder / part).mkdir(exist_ok=True)
                (folder / part / file.name).write_bytes(file.read_bytes())
    for part in ("tokenizer", "processor"):
        name = "tokenizer_config.json"
        (folder / part / name).write_bytes((folder / "text_encoder" / name).read_bytes())
    transformer = diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=32,
        axes_dims_rope=(8, 4, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 2, 4, 4], latents_mean=[0.0] * 4, latents_std=[1.0] * 4
    )
    pipe = diffusers.QwenImageEditPlusPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=lively(vae),
        text_encoder=Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder"),
        tokenizer=Qwen2Tokenizer.from_pretrained(folder / "tokenizer"),
        processor=None,
        transformer=lively(transformer),
    )
    pipe.save_pretrained(folder)
    index = folder / "model_index.json"
    named = '"processor": ["transformers", "Qwen2VLProcessor"]'
    written = index.read_text().replace('"processor": [\n    null,\n    null\n  ]', named)
    assert named in written
    index.write_text(written)
    return pipe


def save_qwen3_vl(folder: Path) -> nn.Module:
    """A multimodal LLM, not a pipeline."""
    tokenizer = Qwen2Tokenizer(extra_special_tokens=QWEN_TOKENS, eos_token="<|im_end|>").train_new_from_iterator(
        TEXTS, 400
    )
    names = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = {f"{n.replace('pad', 'token')}_id": tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in names[:2]}
    ids |= {f"{n}_token_id": tokenizer.convert_tokens_to_ids(f"<|{n}|>") for n in names[2:]}
    text = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "head_dim": 16,
    }
    text |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [4, 2, 2]}}
    vision = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "out_hidden_size": 32}
    vision |= {"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    model = lively(Qwen3VLForConditionalGeneration(config))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = {"size": {"shortest_edge": 64**2, "longest_edge": 128**2}, "patch_size": 16}
    write_processor(folder, "Qwen2VLImageProcessorFast", **pixels, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return model


EDITORS = {
    "black-forest-labs/FLUX.1-Kontext-dev": save_kontext,
    "black-forest-labs/FLUX.2-klein-4B": save_klein,
    "Qwen/Qwen-Image-Edit-2511": save_qwen_edit,
    "timbrooks/instruct-pix2pix": save_pix2pix,
    "diffusers/sdxl-instructpix2pix-768": save_pix2pix_xl,
    "Shitao/OmniGen-v1-diffusers": save_omnigen,
}


def stand_in_torchvision(monkeypatch: object) -> None:
    """What OmniGen's processor takes from torchvision, which is not installed here."""
    from diffusers.pipelines.omnigen import pipeline_omnigen, processor_omnigen

    class Transforms:
        @staticmethod
        def Compose(steps: list) -> object:
            return lambda image: reduce(lambda x, step: step(x), steps, image)

        @staticmethod
        def Lambda(step: object) -> object:
            return step

        @staticmethod
        def ToTensor() -> object:
            return lambda image: torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 255

        @staticmethod
        def Normalize(**_: object) -> object:
            return lambda x: x * 2 - 1

    monkeypatch.setattr(processor_omnigen, "transforms", Transforms, raising=False)
    kind = processor_omnigen.OmniGenMultiModalProcessor
    monkeypatch.setattr(pipeline_omnigen, "OmniGenMultiModalProcessor", kind, raising=False)


def save_editor(repository: str, folder: Path) -> object:
    """Writes a repository and returns its pipeline."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    return EDITORS[repository](folder)
