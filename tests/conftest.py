"""Tiny untrained models of the real classes, in folders as the first three stages of ``make tiny`` write them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reasonbrain.config.loading import load_config
from reasonbrain.model import ReasonBrain
from reasonbrain.modules.data.reasonmini import make

WIDTH = 32
FLUX = "model.diffusion.architecture.transformer"
SMALL = [
    f"model.width={WIDTH}",
    "model.encoders.layers=[-1,-2]",
    "model.encoders.object_tokens=8",
    *(f"model.{slot}.heads=2" for slot in ("frce.patch", "frce.region", "frce.text", "connector", "cme", "diffusion")),
    *(f"model.frce.{branch}.layers=1" for branch in ("patch", "region", "text")),
    "model.frce.patch.pool=2",
    "model.frce.region.max_regions=12",
    "model.connector.layers=1",
    "model.connector.queries=6",
    "model.cme.blocks=1",
    "model.cme.queries=6",
    "model.diffusion.source=channel",
    "model.diffusion.trained=full",
    f"{FLUX}.in_channels=16",
    f"{FLUX}.num_layers=1",
    f"{FLUX}.num_single_layers=1",
    f"{FLUX}.num_attention_heads=2",
    f"{FLUX}.attention_head_dim=16",
    f"{FLUX}.axes_dims_rope=[4,6,6]",
    f"{FLUX}.joint_attention_dim=32",
    f"{FLUX}.pooled_projection_dim=32",
    "edit.steps=3",
    "edit.guidance=1",
    "edit.size=64",
    "data.size=64",
    "train.bf16=false",
    "train.tracker=null",
]


@pytest.fixture(scope="session")
def parts(tmp_path_factory):
    """The folder with ``clip``, ``mllm`` and ``vae``."""
    from diffusers import AutoencoderKL
    from transformers import CLIPConfig, CLIPModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    from reasonbrain.train.tiny import autoencoder, clip, mllm

    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    words = clip.train_tokenizer()

    tokenizer = clip.wrap(words, eos_token=clip.END)
    raw = mllm.architecture(tokenizer).to_dict()
    raw["text_config"] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    raw["text_config"] |= {"num_attention_heads": 2, "num_key_value_heads": 1}
    raw["text_config"]["layer_types"] = ["full_attention"] * 2
    raw["text_config"]["rope_parameters"]["mrope_section"] = [2, 3, 3]
    raw["vision_config"] |= {"depth": 1, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2}
    raw["vision_config"] |= {"out_hidden_size": 32, "fullatt_block_indexes": [0]}
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(raw))
    for name, p in model.named_parameters():  # larger weights than usual, so that the output depends on the input
        p.data.mul_(8.0 if p.ndim > 1 and "embed" not in name else 1.0)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder / "mllm")
    tokenizer.save_pretrained(folder / "mllm")
    mllm.image_processor().save_pretrained(folder / "mllm")

    tokenizer = clip.clip_tokenizer(words)
    raw = clip.architecture(tokenizer).to_dict()
    for tower in ("text_config", "vision_config"):
        raw[tower] |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    raw["vision_config"]["patch_size"] = 16
    CLIPModel(CLIPConfig.from_dict(raw)).save_pretrained(folder / "clip")
    tokenizer.save_pretrained(folder / "clip")

    small = {"block_out_channels": [8, 8, 8], "latent_channels": 4, "norm_num_groups": 4}
    vae = AutoencoderKL.from_config(autoencoder.architecture(1) | small)
    autoencoder.normalise(vae.eval(), 32)
    vae.save_pretrained(folder / "vae")
    return folder


@pytest.fixture(scope="session")
def overrides(parts):
    """``key=value`` overrides that make the shipped ``tiny`` smaller, with the parts in these folders."""
    return [
        *SMALL,
        f"model.encoders.pretrained={parts / 'clip'}",
        f"model.mllm.pretrained={parts / 'mllm'}",
        f"model.diffusion.autoencoder={parts / 'vae'}",
    ]


@pytest.fixture(scope="session")
def settings(overrides):
    """``settings("model.cme=null", ...)``: the tiny configuration with more overrides."""
    return lambda *more: load_config("tiny", [*overrides, *more])


@pytest.fixture(scope="session")
def build(settings):
    """``build("model.cme=null", ...)``: a fresh model, always from the same seed, in eval mode."""

    def one(*more: str) -> ReasonBrain:
        torch.manual_seed(0)
        return ReasonBrain.from_config(settings(*more).model).eval()

    return one


def _wake(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for name, p in module.named_parameters():
        if "lora_B" in name or name.endswith("x_embedder.weight"):
            p.data.add_(torch.randn_like(p) * 0.2)
    return module


@pytest.fixture(scope="session")
def wake():
    """``wake(module)``: changes weights that are initialised to zero (LoRA, FLUX's new inputs), as training does."""
    return _wake


@pytest.fixture(scope="session")
def model(build):
    """A complete model as if trained for a few steps. Tests must not change it."""
    return _wake(build())


@pytest.fixture(scope="session")
def records():
    """Three ReasonMini records whose instructions differ in length."""
    found = sorted((make("test", i) for i in range(12)), key=lambda s: len(s.instruction.split()))
    return [found[0], found[6], found[-1]]


@pytest.fixture(scope="session")
def inputs(model, records):
    """The records as a batch of Inputs."""
    from reasonbrain.utils.images import to_tensor

    images = to_tensor([s.source for s in records])
    return model.make_inputs(images, [s.instruction for s in records], [s.objects for s in records])
